from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deadweight.targets.budgets import Budgets
from deadweight.targets.errors import ModelError, RecipeError
from deadweight.targets.gate.settings import GateSettings, accuracy, read_settings
from deadweight.targets.runtimes.open import open_session

MakeMlp = Callable[..., Path]
EXAMPLE = Path(__file__).parents[3] / "examples/ci/deadweight.toml"


def test_without_a_file_nothing_is_set(tmp_path: Path) -> None:
    assert read_settings(tmp_path / "none.toml") == (GateSettings(), Budgets())


def test_the_examples_file_is_read() -> None:
    settings, budgets = read_settings(EXAMPLE)
    assert settings == GateSettings(baseline="baseline.json", history="history.jsonl", cap_s=60.0)
    assert (budgets.slowdown, budgets.p99_s, budgets.file_bytes) == (0.02, 0.02, 20_000_000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[budgets]\nslowdwn = 0.1", "has the unknown key slowdwn"),
        ("[gait]\nmodel = 'a'", "has the unknown key gait"),
        ("[budgets]\nparameters_removed = 0.5", "only a run can check"),
        ("[budgets]\nslowdown = 'much'", "slowdown is 'much'"),
        ("[budgets]\nslowdown = -0.1", "slowdown is -0.1"),
        ("[budgets]\nslowdown = nan", "slowdown is nan"),
        ("[gate]\nmodel = 5", "model is 5"),
        ("gate = 5", "not a table"),
        ("[gate", "is not valid TOML"),
    ],
)
def test_an_invalid_file_is_refused_by_its_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "deadweight.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        read_settings(path)


def test_accuracy_is_the_share_of_largest_outputs_that_are_the_label(mlp: MakeMlp, tmp_path: Path) -> None:
    path = mlp(16, 8, 4)
    x = np.random.default_rng(0).standard_normal((100, 16)).astype(np.float32)
    session = open_session(path)
    label = session.run({"x": x})["y"].argmax(1)
    session.close()
    label[:25] = (label[:25] + 1) % 4
    np.savez(str(tmp_path / "data.npz"), x=x, label=label)
    assert accuracy(path, tmp_path / "data.npz") == 0.75
    fixed = mlp(16, 8, 4, name="fixed.onnx", batch=10)  # a batch that is not open
    assert accuracy(fixed, tmp_path / "data.npz") == 0.75


def test_data_that_cannot_be_scored_on_are_refused(mlp: MakeMlp, tmp_path: Path) -> None:
    path, data = mlp(16, 8, 4), tmp_path / "data.npz"
    with pytest.raises(RecipeError, match="cannot be read"):
        accuracy(path, data)
    np.savez(str(data), y=np.zeros(3))
    with pytest.raises(RecipeError, match="has no x, label; it has y"):
        accuracy(path, data)
    np.savez(str(data), x=np.zeros((0, 16), np.float32), label=np.zeros(0, np.int64))
    with pytest.raises(RecipeError, match="has no samples"):
        accuracy(path, data)
    np.savez(str(data), x=np.full((4, 16), np.nan, np.float32), label=np.zeros(4, np.int64))
    with pytest.raises(RecipeError, match="not finite"):
        accuracy(path, data)
    np.savez(str(data), x=np.zeros((4, 17), np.float32), label=np.zeros(4, np.int64))
    with pytest.raises(ModelError, match="cannot run on these inputs"):
        accuracy(path, data)


@pytest.mark.parametrize("text", ["\ufeff[budgets]\nslowdown = 0.5\n", "[budgets]\r\nslowdown = 0.5\r\n"])
def test_a_file_that_was_written_on_windows_is_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "deadweight.toml"
    path.write_bytes(text.encode("utf-8"))
    assert read_settings(path)[1] == Budgets(slowdown=0.5)


def test_data_that_are_no_archive_of_arrays_are_refused_whatever_numpy_raises(
    mlp: MakeMlp, tmp_path: Path
) -> None:
    model, data = mlp(16, 8, 4), tmp_path / "data.npz"
    x, label = np.zeros((100, 16), np.float32), np.zeros(100, np.int64)
    np.savez(str(data), x=x, label=label)
    whole = data.read_bytes()
    np.save(str(tmp_path / "x.npy"), x)
    for held in (b"", whole[:500], whole[:-30], b"text", (tmp_path / "x.npy").read_bytes()):
        data.write_bytes(held)
        with pytest.raises(RecipeError, match=r"cannot be read: .+\."):
            accuracy(model, data)


@pytest.mark.parametrize(
    "label", [np.zeros(90, np.int64), np.eye(4)[np.zeros(100, np.int64)], np.array(["cat"] * 100)]
)
def test_labels_that_are_not_one_number_a_sample_are_refused(
    mlp: MakeMlp, tmp_path: Path, label: np.ndarray
) -> None:
    np.savez(str(tmp_path / "data.npz"), x=np.zeros((100, 16), np.float32), label=label)
    with pytest.raises(RecipeError, match=r"of label \(.*\) for 100 of x"):
        accuracy(mlp(16, 8, 4), tmp_path / "data.npz")
