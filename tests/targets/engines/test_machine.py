"""Whether a machine is the target of a build: its GPU, its TensorRT, its JetPack."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from support.boards import put, unpack

from deadweight.targets.engines.build_settings import BuildSettings
from deadweight.targets.engines.machine import check_target
from deadweight.targets.errors import TargetError
from deadweight.targets.target import load_target


def check(target: str, tensorrt: str, capability: str, root: Path) -> None:
    """The check, as the builder of this version makes it on this board."""
    trt = SimpleNamespace(__version__=tensorrt)
    device = {"compute_capability": capability}
    check_target(trt, load_target(target), device, BuildSettings(), version=trt.__version__, root=root)


def test_a_target_with_another_jetpack_than_the_board_s_is_refused_with_the_option(tmp_path: Path) -> None:
    root = unpack("agx_orin_jp5", tmp_path)
    with pytest.raises(TargetError, match=r"means TensorRT 10\.3\.0\.30 \(JetPack 6\.2\.1\)") as caught:
        check("agx-orin-64gb", "8.5.2.2", "8.7", root)
    assert "this machine has 8.5.2.2 (JetPack 5.1.2)" in caught.value.what
    assert caught.value.cure == 'Give --jetpack 5.1.2; in a recipe: jetpack = "5.1.2".'
    check("agx-orin-64gb@5.1.2", "8.5.2.2", "8.7", root)


def test_hardware_compatibility_is_for_cards_and_refused_on_a_board() -> None:
    settings = BuildSettings(hardware_compatibility="ampere_plus")
    with pytest.raises(TargetError, match="there is no hardware compatibility 'ampere_plus'"):
        check_target(None, None, {"integrated": True}, settings, version="10.3.0")
    check_target(None, None, {"integrated": False}, settings, version="10.3.0")


def test_a_thor_of_drive_is_no_jetson_thor(tmp_path: Path) -> None:
    root = unpack("agx_thor_jp70", tmp_path)
    put(root, "etc/nvidia/version-ubuntu-rootfs.txt", "7.0.3.0-41234567\n")
    with pytest.raises(
        TargetError, match=r"has compute capability 11\.0, but the GPU here has 10\.1"
    ) as caught:
        check("thor-t5000", "10.10.10", "10.1", root)
    assert "give --target drive-agx-thor." in caught.value.cure
    check("drive-agx-thor", "10.10.10", "10.1", root)
