"""Small real ONNX models, made with onnx itself, for the tests of the ground floor."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.onnx_files import save_mlp
from support.trtexec import stand_in

MakeMlp = Callable[..., Path]


@pytest.fixture
def mlp(tmp_path: Path) -> MakeMlp:
    """Makes an MLP of these widths in the test's own folder."""

    def make(*widths: int, name: str = "model.onnx", batch: int | str = "batch") -> Path:
        return save_mlp(tmp_path / name, *widths, batch=batch)

    return make


@pytest.fixture
def trtexec_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes this machine, for other processes too, one with a trtexec and bindings that do not import."""

    def make(*, number: int = 100300, fault: str = "") -> Path:
        program = stand_in(tmp_path / f"bin{number}{fault[:4]}", number=number, fault=fault)
        monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
        for name in ("tensorrt", "tensorrt_bindings"):
            monkeypatch.setitem(sys.modules, name, None)
            text = "raise ImportError('libnvinfer.so.11: cannot open shared object file')"
            (program.parent / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(str(program.parent))
        return program

    return make
