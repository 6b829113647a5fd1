"""In CI a skipped test is a failure, unless its reason is on the list."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


TEST = """
import pytest

@pytest.mark.skip(reason={!r})
def test_it(): pass

def test_another(): pass
"""


@pytest.mark.parametrize(
    ("ci", "reason", "processes", "code"),
    [("true", "no sshd", 1, 1), ("true", "needs a GPU", 0, 0), ("", "no sshd", 0, 0)],
)
def test_only_ci_fails_for_a_skip_that_is_not_listed(
    tmp_path: Path, ci: str, reason: str, processes: int, code: int
) -> None:
    (tmp_path / "test_it.py").write_text(TEST.format(reason))
    environment = {**os.environ, "CI": ci, "PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "xdist", "-n", str(processes)]
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert ("Skipped in CI: no sshd" in done.stdout) == bool(code)
