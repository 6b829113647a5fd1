"""A board whose Python has no TensorRT, from ONNX files to a verdict by `--on`: a stand-in for trtexec."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.onnx_files import save_mlp
from support.trtexec import stand_in

MAIN = "import sys; from deadweight.__main__ import main; sys.exit(main())"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of that board, which is this machine: its bindings do not match its TensorRT."""
    program = stand_in(tmp_path / "bin")
    for name in ("tensorrt", "tensorrt_bindings"):
        (program.parent / f"{name}.py").write_text("raise ImportError('libnvinfer.so.11: cannot open')")
    save_mlp(tmp_path / "a.onnx", 6, 16, 4)
    save_mlp(tmp_path / "b.onnx", 6, 8, 4)
    paths = os.pathsep.join([str(program.parent), str(Path(__file__).parents[1])])
    return {
        **os.environ,
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": paths,
        "HOME": str(tmp_path / "home"),
        "COLUMNS": "200",
    }


def said(environment: dict[str, str], folder: Path, *arguments: str, code: int) -> str:
    command = [sys.executable, "-c", MAIN, *arguments, "--on", "local"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return " ".join(done.stdout.split())


def test_two_onnx_files_are_built_timed_and_never_judged_by_a_stand_in(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    first = said(
        environment, tmp_path, "compare", "a.onnx", "b.onnx", "--batch", "4", "--events", "6", code=3
    )
    assert "simulated on the GPU by trtexec 10.3.0, FP16, batch 4" in first
    assert "the GPU's time of a run, without copies" in first
    again = said(
        environment, tmp_path, "compare", "a.onnx", "b.onnx", "--batch", "4", "--events", "6", code=3
    )
    assert "built before, and not again: baseline, candidate" in again
    shown = said(environment, tmp_path, "profile", "a.onnx", "--events", "4", code=0)
    assert "memory, activations: 1.57 MB (the log of trtexec, whole MiB)" in shown
    assert "memory, opening: not known (trtexec does not say)" in shown


def test_where_tensorrt_has_no_flag_for_fp16_the_file_is_cast_before_it_is_sent(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    stand_in(tmp_path / "bin", number=110400)
    shown = said(environment, tmp_path, "compare", "a.onnx", "b.onnx", "--events", "2", code=3)
    assert "by trtexec 11.4.0, FP16" in shown
