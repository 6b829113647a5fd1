from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.digits import Digits
from torch import Tensor

from deadweight.pipeline.workload import example_batch, split_batches
from deadweight.pipeline.workloads import named as module
from deadweight.pipeline.workloads.named import load_workload
from deadweight.targets.errors import WorkloadError, users_code

SUPPORT = Path(__file__).resolve().parents[1] / "support"


def test_a_workload_is_loaded_from_a_file_and_from_a_module() -> None:
    assert load_workload("digits.py:Digits", SUPPORT).score_name == "accuracy"
    assert load_workload("support.digits:Digits", SUPPORT).score_name == "accuracy"


def test_its_neighbours_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "a_neighbour.py").write_text("from support.digits import Digits as Base")
    (tmp_path / "mine.py").write_text("from a_neighbour import Base\nclass Mine(Base): ...\n")
    assert load_workload("mine.py:Mine", tmp_path).higher_is_better


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("digits.py", "names no object"),
        ("digits.py:Digit", "Did you mean 'Digits'"),
        ("nowhere.py:X", "does not exist"),
        ("no_such_module:X", "There is no module no_such_module"),
        ("digits.py:PARTS", "is not a workload"),
    ],
)
def test_what_is_no_workload_is_refused_with_a_cure(spec: str, says: str) -> None:
    with pytest.raises(WorkloadError, match=says):
        load_workload(spec, SUPPORT)


def test_an_example_without_a_batch_axis_is_refused() -> None:
    class Bad(Digits):
        def example_inputs(self) -> dict[str, Tensor]:
            return {"pixels": torch.zeros(1, 64)}

    with pytest.raises(WorkloadError, match="no batch axis of 2"):
        example_batch(Bad())


def test_a_batch_without_an_input_is_refused() -> None:
    class Bad(Digits):
        def batches(self, split: str, *, seed: int = 0) -> Iterator[dict[str, Tensor]]:
            yield {"label": torch.zeros(2)}

    with pytest.raises(WorkloadError, match=r"lacks the inputs \['pixels'\]"):
        list(split_batches(Bad(), "test"))


def test_an_error_in_our_own_code_is_not_called_the_users() -> None:
    def ours() -> None:
        module._import_file(Path("/nowhere.py"))

    with pytest.raises(WorkloadError, match="does not exist"), users_code("it was tried"):
        ours()


def test_pythons_own_lines_are_not_the_users(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError) as caught, users_code("it was tried"):
        importlib.import_module("gone_and_never_was")
    assert "test_workload.py" in caught.value.what
    assert "Check the name" in caught.value.cure
    with pytest.raises(WorkloadError, match=r"test_workload\.py:\d+\.\n"), users_code("it was tried"):
        json.loads("{")  # raised in Python's own file, called from this one
