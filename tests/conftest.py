"""Lets tests import what they share (`import nets`) and the benchmarks, wherever pytest is started."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "examples" / "detector")]


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
