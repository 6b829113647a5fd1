"""Small real ONNX models, made with onnx itself, for the tests of the ground floor."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.onnx_files import save_mlp

MakeMlp = Callable[..., Path]


@pytest.fixture
def mlp(tmp_path: Path) -> MakeMlp:
    """Makes an MLP of these widths in the test's own folder."""

    def make(*widths: int, name: str = "model.onnx", batch: int | str = "batch") -> Path:
        return save_mlp(tmp_path / name, *widths, batch=batch)

    return make
