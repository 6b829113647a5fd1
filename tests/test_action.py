"""The steps of action.yml, run by the shell as a runner would: a pass, a regression, a cannot-tell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from test_ci_extra import dense

ROOT = Path(__file__).resolve().parents[1]
ACTION = (ROOT / "action.yml").read_text("utf-8")


def step(name: str) -> str:
    """The shell lines of a step."""
    found = re.search(rf"- name: {name}\n.*?      run: \|\n(.*?)(?=\n    - |\Z)", ACTION, re.DOTALL)
    assert found is not None
    return textwrap.dedent(found.group(1))


def default(name: str) -> str:
    """The default of an input."""
    found = re.search(rf"\n  {name}:\n    description:.*\n    default: (.*)\n", ACTION)
    assert found is not None, name
    return found.group(1).strip('"')


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A checkout of a user's: an accepted model with its baseline, and two candidates."""
    dense(tmp_path / "accepted.onnx", 256)
    dense(tmp_path / "slower.onnx", 2048)
    (tmp_path / "deadweight.toml").write_text("[budgets]\nslowdown = 0.5\n")
    given = "--record --model accepted.onnx --baseline baseline.json"
    recorded = run(tmp_path, f"python3 -m deadweight gate {given}")
    assert recorded.returncode == 0, recorded.stderr
    return tmp_path


def run(place: Path, lines: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """One step, in the shell and with the environment that a runner gives."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "GITHUB_ACTIONS": "true",
        "GITHUB_OUTPUT": str(place / "output"),
        "GITHUB_STEP_SUMMARY": str(place / "summary.md"),
        **settings,
    }
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", lines]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


def gate(place: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    names = ("baseline", "config", "history", "junit", "on", "cap-s", "cannot-tell")
    given = {name.upper().replace("-", "_"): default(name) for name in names}
    return run(place, step("gate"), **{**given, **inputs})


def test_every_input_that_a_step_reads_is_declared() -> None:
    for name in re.findall(r"\$\{\{ inputs\.([\w-]+) \}\}", ACTION):
        assert re.search(rf"\n  {name}:\n    description:", ACTION), name
    assert ACTION.count("shell: bash") == ACTION.count("run: |") == 2


def test_nothing_is_installed_where_nothing_is_to_be(tmp_path: Path) -> None:
    done = run(tmp_path, step("install"), INSTALL="", ACTION_PATH=str(ROOT))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_an_equal_model_passes_with_a_summary_and_a_notice(job: Path) -> None:
    done = gate(job, MODEL="accepted.onnx", HISTORY="history.jsonl")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (job / "output").read_text() == "exit-code=0\n"
    assert "accepted.onnx passes" in (job / "summary.md").read_text()
    assert "::notice title=deadweight gate: slowdown pass::" in done.stdout
    assert 'failures="0"' in (job / "deadweight-gate.xml").read_text()
    assert len((job / "history.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_regression_fails_the_job_with_an_error(job: Path) -> None:
    done = gate(job, MODEL="slower.onnx")
    assert done.returncode == 1, done.stdout + done.stderr
    assert (job / "output").read_text() == "exit-code=1\n"
    assert "::error title=deadweight gate: slowdown fail::" in done.stdout
    assert "slower.onnx is refused" in (job / "summary.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("setting", "code"), [("fail", 3), ("pass", 0)])
def test_what_cannot_be_told_is_a_warning_and_what_the_user_wants_of_it(
    job: Path, setting: str, code: int
) -> None:
    done = gate(job, MODEL="accepted.onnx", CAP_S="0.001", CANNOT_TELL=setting)
    assert done.returncode == code, done.stdout + done.stderr
    assert (job / "output").read_text() == "exit-code=3\n"
    assert "::warning title=deadweight gate: slowdown cannot tell::" in done.stdout


@pytest.mark.slow
def test_bad_input_fails_the_job_whatever_the_user_wants_of_doubt(job: Path) -> None:
    done = gate(job, MODEL="none.onnx", CANNOT_TELL="pass")
    assert done.returncode == 2
    assert "There is no model at" in done.stderr
