from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.onnx_files import read_weights, sparse_weight, write_weights

from deadweight.__main__ import main

Called = Callable[..., tuple[int, str]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    weights = {"a.weight": sparse_weight(60, 80, 0.2), "b.weight": sparse_weight(60, 80, 2.0, seed=1)}
    return write_weights(tmp_path / "m.onnx", weights)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Called:
    """Calls the command line; gives the exit code and what was printed, in one line."""

    def call(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["deadweight", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        return int(caught.value.code or 0), " ".join((printed.out + printed.err).split())

    return call


def test_pack_and_unpack_give_back_the_file(model: Path, called: Called) -> None:
    code, told = called("pack", model)
    assert code == 0
    assert "times smaller" in told
    packed = model.with_suffix(".dwz")
    assert packed.stat().st_size < model.stat().st_size
    back = model.with_name("back.onnx")
    assert called("unpack", packed, "-o", back)[0] == 0
    assert back.read_bytes() == model.read_bytes()


def test_clusters_are_made_before_packing(model: Path, tmp_path: Path, called: Called) -> None:
    small = tmp_path / "s.dwz"
    assert called("pack", model, "--clusters", "3", "--clusters", "b.weight=2", "-o", small)[0] == 0
    assert called("unpack", small)[0] == 0
    found = read_weights(tmp_path / "s.onnx")
    assert len(np.unique(found["a.weight"])) == 9  # and zero
    assert len(np.unique(found["b.weight"])) == 5
    assert small.stat().st_size < model.stat().st_size / 8


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["pack", "none.onnx"], "none.onnx"),
        (["unpack", "none.dwz"], "none.dwz"),
        (["unpack", "MODEL"], "not a .dwz file"),
        (["pack", "MODEL", "--clusters", "x"], "--clusters x"),
        (["pack", "MODEL", "--clusters", "9"], "9 bits"),
        (["pack", "MODEL", "--clusters", "c=4"], "no weight 'c'"),
    ],
)
def test_bad_input_is_exit_code_2_and_leaves_no_file(
    given: list[str], words: str, model: Path, called: Called
) -> None:
    code, told = called(*(model if one == "MODEL" else one for one in given))
    assert code == 2
    assert words in told
    assert [path.name for path in model.parent.iterdir()] == ["m.onnx"]
