"""Lets tests import what they share (`from support import nets`) and the benchmarks, from any place."""

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
sys.path[:0] = [str(HERE), str(HERE.parent), str(EXAMPLES)]
sys.path[:0] = [str(EXAMPLES / name) for name in ("detector", "signs", "steering", "crepe")]

# In CI a test may be skipped for a reason that starts with one of these, and for no other.
SKIPPED_IN_CI = {
    "CUDA cannot be used from Python": "needs a GPU; the same calls run against a library compiled here",
    "CUDA found no suitable driver": "the same, where a libcudart is installed",
    "needs a GPU": "the CI machine has none",
    "there is no Python 3.": "Debian has one Python; ruff holds the syntax of targets/ to 3.8",
    "this processor has no VNNI": "ONNX Runtime's INT8 products saturate there; CI machines differ",
    "needs root": "a user without privileges cannot give a device to a group",
    "this machine allows no mount namespaces": "a container without privileges cannot mount",
    "Pillow is the user's own": "images in folders are an option of the user's; nothing of ours needs it",
    "no mount namespace here": "a container without privileges cannot mount",
    "a small disk cannot be mounted here": "a container without privileges cannot mount",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--on", metavar="USER@HOST", help="the board for tests marked jetson, reached by ssh")


@pytest.fixture
def board(request: pytest.FixtureRequest) -> str:
    """The board that --on names."""
    named = request.config.getoption("--on")
    if not named:
        pytest.skip("no board was given: pytest -m jetson --on USER@HOST")
    return str(named)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of whole runs come first: they take longest, and processes share out files."""
    items.sort(key=lambda item: item.path.parent != HERE)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI the suite fails where a test was skipped for a reason that is not on the list."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not os.environ.get("CI") or reporter is None or hasattr(session.config, "workerinput"):
        return
    reasons = {report.longrepr[2].removeprefix("Skipped: ") for report in reporter.stats.get("skipped", [])}
    for reason in sorted(reason for reason in reasons if not reason.startswith(tuple(SKIPPED_IN_CI))):
        reporter.ensure_newline()
        reporter.write_line(
            f"Skipped in CI: {reason}. Install it in .ci/run, or list it in tests/conftest.py."
        )
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
