"""Bytes that stay what they were."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from deadweight.targets.sealed import sealed_bytes


def test_another_process_reads_them_and_nobody_changes_them() -> None:
    with sealed_bytes("model.onnx", b"checked") as path:
        read = [sys.executable, "-c", "import sys; print(open(sys.argv[1]).read())", str(path)]
        assert subprocess.run(read, capture_output=True, text=True, check=True).stdout == "checked\n"
        handle = os.open(path, os.O_RDWR)
        for change in (lambda: os.write(handle, b"x"), lambda: os.ftruncate(handle, 0)):
            with pytest.raises(PermissionError):
                change()
        os.close(handle)
    assert not path.exists()


def test_memory_that_is_not_there_is_reported() -> None:
    root = Path(__file__).parents[2]
    program = (
        "import resource, sys\nsys.path.insert(0, sys.argv[1])\n"
        "from deadweight.targets.errors import TargetError\n"
        "from deadweight.targets.sealed import sealed_bytes\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "try:\n    with sealed_bytes('model.onnx', bytes(100)): pass\n"
        "except TargetError as error: print(error.what)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(root)], capture_output=True, text=True)
    assert "model.onnx (0.0 MB) cannot be held in memory" in done.stdout, done.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 10
