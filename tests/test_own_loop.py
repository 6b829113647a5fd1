"""The page on a loop of one's own: each of its blocks does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "own-loop.md"
BLOCKS = re.findall(r"<!-- run ?(\w*) -->\n```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


def run(text: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_a_network_is_pruned_in_a_plain_loop_of_pytorch(tmp_path: Path) -> None:
    ((_, plain),) = [block for block in BLOCKS if not block[0]]
    printed = run(plain, tmp_path)
    assert "0 (conv): 32 -> 26 -> 21 -> 17" in printed
    assert (tmp_path / "small.onnx").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("package", "text"), [block for block in BLOCKS if block[0]])
def test_a_network_is_pruned_in_the_loop_of_another_library(package: str, text: str, tmp_path: Path) -> None:
    pytest.importorskip(package, reason=f"{package} is the user's own")
    run(text, tmp_path)
