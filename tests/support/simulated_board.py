"""Boards behind a real sshd that have a TensorRT: NVIDIA's own bindings over the fake, or a trtexec."""

from __future__ import annotations

import sys
from pathlib import Path

from . import ssh_board, tensorrt_versions, trtexec

_SHIM = """
import os, sys
from pathlib import Path
sys.path[:0] = [{fake!r}, {bindings!r}]
import double
fake = double.Fake(Path({libraries!r}), major=os.environ["FAKE_MAJOR"])
import tensorrt_bindings  # it finds the libraries that are loaded already
tensorrt_bindings.fake = fake  # kept alive as long as the module
sys.modules["tensorrt"] = tensorrt_bindings
"""
# The fake runs ONNX Runtime itself; to who asks what is installed, this board has none.
_NO_ONNX_RUNTIME = """
from importlib import util
known = util.find_spec
util.find_spec = lambda name, package=None: None if name == "onnxruntime" else known(name, package)
"""


def simulated_board(place: Path, version: str) -> ssh_board.Board:
    """The board: a module named `tensorrt` connects the bindings to the fake; nothing there is a latency."""
    major = version.split(".")[0]
    bindings = tensorrt_versions.installed(tensorrt_versions.PACKAGES[version])
    libraries = tensorrt_versions.fake_libraries(place, major=major)
    (place / "site").mkdir()
    shim = _SHIM.format(fake=str(tensorrt_versions.FAKE), bindings=str(bindings), libraries=str(libraries))
    (place / "site/tensorrt.py").write_text(shim)
    (place / "site/sitecustomize.py").write_text(_NO_ONNX_RUNTIME)
    environment = {
        "PYTHONPATH": place / "site",
        "FAKE_MAJOR": major,
        "DEADWEIGHT_CUDA": f"ctypes:{libraries / 'libcudart.so'}",
        "OMP_NUM_THREADS": 1,
    }
    return ssh_board.make_board(
        place / "board", python=str(Path(sys.executable).parent), environment=environment
    )


def board_with_trtexec(place: Path) -> ssh_board.Board:
    """A board whose Python has no TensorRT, with the stand-in for trtexec, which says that it simulates."""
    python = trtexec.stand_in(place / "bin").with_name("python3")
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    for name in ("tensorrt", "tensorrt_bindings"):
        (python.parent / f"{name}.py").write_text("raise ImportError('libnvinfer.so.10: cannot open')")
    environment = {"PYTHONPATH": python.parent, "OMP_NUM_THREADS": 1}
    return ssh_board.make_board(place / "board", python=str(python.parent), environment=environment)
