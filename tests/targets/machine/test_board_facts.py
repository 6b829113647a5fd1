"""What a machine says of itself, as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.boards import put, unpack

from deadweight.targets.machine.board_facts import board_facts, card_facts

TREE = "proc/device-tree/bus@0/host1x@13e00000"


@pytest.fixture(autouse=True)
def no_gpu_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEADWEIGHT_CUDA", "ctypes:/nowhere/libcudart.so")


def test_a_jetson_s_facts_are_read_from_its_files(tmp_path: Path) -> None:
    facts = board_facts(unpack("orin_nx_jp6", tmp_path))
    assert facts["board"] == {
        "model": facts["board"]["model"],
        "soc": "tegra234",
        "jetpack": "6.2.1",
        "l4t": "36.4.4",
        "tensorrt": "10.3.0",
        "cuda": "12.6.11",
        "compute_capability": "8.7",
    }
    assert facts["power_mode"] == {"name": "MAXN_SUPER", "id": 2}
    assert facts["memory_bytes"] > 15e9
    assert facts["dla_cores"] is None
    assert json.loads(json.dumps(facts)) == facts


def test_a_core_that_the_module_lacks_is_disabled_in_its_device_tree(tmp_path: Path) -> None:
    root = unpack("orin_nx_jp6", tmp_path)
    put(root, f"{TREE}/nvdla0@15880000/status", "okay\0")
    put(root, f"{TREE}/nvdla1@158c0000/status", "disabled\0")
    assert board_facts(root)["dla_cores"] == 1


def test_a_board_without_bindings_has_trtexec(tmp_path: Path) -> None:
    root = unpack("orin_nx_jp6", tmp_path)
    put(root, "usr/src/tensorrt/bin/trtexec", "")
    assert {"name": "trtexec", "version": "10.3.0"} in board_facts(root)["runtimes"]


def test_a_workstation_is_its_card(tmp_path: Path) -> None:
    answer = "NVIDIA H200, 9.0, 143771, 1980\n"
    put(tmp_path, "usr/bin/nvidia-smi", f"#!/bin/sh\necho '{answer.strip()}'\n").chmod(0o755)
    facts = board_facts(tmp_path)
    assert facts["board"]["model"] == "NVIDIA H200"
    assert facts["board"]["compute_capability"] == "9.0"
    assert facts["memory_bytes"] == 143771 << 20
    assert facts["dla_cores"] == 0


def test_a_machine_that_says_nothing_has_a_name(tmp_path: Path) -> None:
    facts = board_facts(tmp_path)
    assert facts["board"]["model"]
    assert facts["board"]["compute_capability"] is None


def test_a_card_s_facts_have_their_source_and_its_highest_clock_is_unsure(tmp_path: Path) -> None:
    put(tmp_path, "usr/bin/nvidia-smi", "#!/bin/sh\necho 'NVIDIA H200, 9.0, 143771, 1980'\n").chmod(0o755)
    facts = card_facts(tmp_path)
    assert facts["compute_capability"] == ("9.0", "nvidia-smi on this machine", "high")
    assert facts["memory_bytes"][0] == 143771 << 20
    assert facts["gpu_hz"] == (1_980_000_000, "nvidia-smi on this machine; the highest clock", "low")
    assert "compute_capability" not in card_facts(tmp_path / "none")
