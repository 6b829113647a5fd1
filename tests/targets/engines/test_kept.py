"""Engines that a machine keeps, by a program that stands in for trtexec."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deadweight.targets.engines.build_settings import BuildSettings, needs_half
from deadweight.targets.engines.kept import kept_engine
from deadweight.targets.engines.record import record_path
from deadweight.targets.onnx_file import Node, Nodes

Make = Callable[..., Path]
FLOAT = Nodes((Node("m", "MatMul", ("x", "w"), ("y",)),), {"w": (3, 2)})
QDQ = Nodes((Node("q", "QuantizeLinear", ("x", "s"), ("y",)),), {})


def test_an_engine_is_built_once_for_the_same_model_and_settings(
    mlp: Make, tmp_path: Path, trtexec_only: Make
) -> None:
    trtexec_only()
    model, settings = mlp(3, 4), BuildSettings(batch=(1, 2, 2))
    cache = tmp_path / "cache"
    plan, record, before = kept_engine(model, settings=settings, folder=cache)
    assert not before
    again, same, before = kept_engine(model, settings=settings, folder=cache)
    assert (again, same["plan"], before) == (plan, record["plan"], True)
    for other in (replace(settings, precision="fp32"), replace(settings, batch=(1, 1, 1))):
        assert kept_engine(model, settings=other, folder=cache)[2] is False
    assert kept_engine(mlp(3, 5, name="other.onnx"), settings=settings, folder=cache)[2] is False
    plan.write_bytes(b"something else")
    assert kept_engine(model, settings=settings, folder=cache)[2] is False


def test_a_build_without_its_record_is_done_again(mlp: Make, tmp_path: Path, trtexec_only: Make) -> None:
    trtexec_only()
    model = mlp(3, 4)
    plan, record, _ = kept_engine(model, settings=BuildSettings(), folder=tmp_path / "cache")
    record_path(plan).unlink()
    again, same, before = kept_engine(model, settings=BuildSettings(), folder=tmp_path / "cache")
    assert (again, before) == (plan, False)
    assert same["model"] == record["model"]


LIMITED = """
import resource, sys
most = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
from deadweight.targets.agent import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_disk_that_fills_up_in_a_build_is_reported_and_the_next_build_is_whole(
    mlp: Make, tmp_path: Path, trtexec_only: Make
) -> None:
    trtexec_only()
    model, cache = mlp(3, 4), tmp_path / "cache"
    command = [sys.executable, "-c", LIMITED, "1000", "--cache", str(cache), "build", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    answer = json.loads(done.stdout)
    assert done.returncode == 2
    assert "cannot be written" in answer["error"]["what"], answer
    assert "Free some space" in answer["error"]["cure"]
    assert not list(cache.rglob("*.plan.json"))
    assert not list(cache.rglob(".writing-*"))
    assert kept_engine(model, settings=BuildSettings(), folder=cache)[2] is False
    assert kept_engine(model, settings=BuildSettings(), folder=cache)[2] is True


@pytest.mark.parametrize(
    ("file", "version", "precision", "needed"),
    [
        (FLOAT, "8.5.2", "fp16", False),
        (QDQ, "8.5.2", "fp16", False),
        (FLOAT, "10.3.0", "fp16", False),
        (QDQ, "10.3.0", "fp16", True),
        (QDQ, "10.3.0", "fp32", False),
        (FLOAT, "11.4.0", "fp16", True),
        (FLOAT, "11.4.0", "best", True),
        (FLOAT, "11.4.0", "fp32", False),
        (replace(QDQ, half=True), "11.4.0", "fp16", False),
    ],
)
def test_a_file_is_cast_only_where_no_flag_gives_fp16(
    file: Nodes, version: str, precision: str, needed: bool
) -> None:
    assert needs_half(file, BuildSettings(precision=precision), version=version) is needed


def test_dla_has_its_own_flags_until_10() -> None:
    on_dla = BuildSettings(dla_core=0)
    assert [needs_half(QDQ, on_dla, version=version) for version in ("8.6.1", "10.3.0", "11.4.1")] == [
        *(False, False, True)
    ]
