"""What the tests of a board with the fake TensorRT share; a file may have a board of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import ssh_board, tensorrt_versions
from support.simulated_board import simulated_board


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> ssh_board.Board:
    return simulated_board(tmp_path_factory.mktemp("trt"), "10.3.0")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tensorrt_versions.save_models(tmp_path_factory.mktemp("models"))
