import json
from pathlib import Path

import numpy as np
import pytest

from deadweight.targets.errors import ModelError, TargetError
from deadweight.targets.runtimes.open import open_session, runtime_of, shared_runtime
from deadweight.targets.runtimes.session import TensorSpec, checked_inputs, random_inputs

X = TensorSpec("x", ("batch", 4), "float32")
IDS = TensorSpec("ids", (1, 3), "int64")


def test_an_unknown_runtime_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="'tensorflow' is unknown") as caught:
        open_session(tmp_path / "a.onnx", runtime="tensorflow")
    assert "onnxruntime" in caught.value.cure


def test_no_threads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="0 threads"):
        open_session(tmp_path / "a.onnx", threads=0)


def test_random_inputs_have_the_batch_asked_for_and_repeat_by_seed() -> None:
    made = random_inputs((X, IDS), batch=3, seed=1)
    assert made["x"].shape == (3, 4)
    assert made["x"].dtype == np.float32
    assert made["ids"].shape == (1, 3)
    assert set(np.unique(made["ids"])) <= {0, 1}
    again = random_inputs((X, IDS), batch=3, seed=1)
    other = random_inputs((X, IDS), batch=3, seed=2)
    assert np.array_equal(made["x"], again["x"])
    assert not np.array_equal(made["x"], other["x"])


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "bool", "int8", "uint8", "int32", "int64"]
)
def test_random_inputs_are_of_the_dtype_that_is_wanted(dtype: str) -> None:
    assert random_inputs((TensorSpec("x", (2, 2), dtype),))["x"].dtype == np.dtype(dtype)


def test_random_inputs_refuse_a_second_free_dimension() -> None:
    with pytest.raises(ModelError, match=r"x: float32\[batch, length\] has a dynamic dimension") as caught:
        random_inputs((TensorSpec("x", ("batch", "length"), "float32"),))
    assert "make_dynamic_shape_fixed" in caught.value.cure


def test_random_inputs_that_no_memory_holds_are_refused() -> None:
    with pytest.raises(ModelError, match="does not fit into memory with 1000000000000 samples"):
        random_inputs((TensorSpec("x", ("batch", 1000), "float32"),), batch=10**12)


def test_inputs_that_fit_are_passed_contiguous_and_equal() -> None:
    given = np.arange(8, dtype=np.float32).reshape(4, 2).T
    checked = checked_inputs((X,), {"x": given}, model="m.onnx")
    assert checked["x"].flags["C_CONTIGUOUS"]
    assert np.array_equal(checked["x"], given)


def test_a_single_number_stays_a_single_number() -> None:
    spec = TensorSpec("scale", (), "float32")
    assert checked_inputs((spec,), {"scale": np.array(2, np.float32)}, model="m.onnx")["scale"].shape == ()


def test_every_difference_is_named_at_once() -> None:
    given: dict[str, np.ndarray] = {"X": np.zeros((1, 4), np.float32), "ids": np.zeros((1, 4), np.float64)}
    with pytest.raises(ModelError) as caught:
        checked_inputs((X, IDS), given, model="m.onnx")
    for what in (
        "'x' is missing",
        "'X' is not an input",
        "'ids' is float64, not int64",
        "'ids' has the shape [1, 4]",
    ):
        assert what in caught.value.what
    assert "It needs x: float32[batch, 4], ids: int64[1, 3]." in caught.value.cure


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ModelError, match=r"'x' is empty: its shape is \[0, 4\]"):
        checked_inputs((X,), {"x": np.zeros((0, 4), np.float32)}, model="m.onnx")


def test_an_input_of_length_zero_by_its_own_shape_is_taken() -> None:
    past = TensorSpec("past", ("batch", 0), "float32")
    assert checked_inputs((past,), {"past": np.zeros((2, 0), np.float32)}, model="m")["past"].shape == (2, 0)


def test_a_dimension_without_a_name_is_shown_as_a_question_mark() -> None:
    assert str(TensorSpec("x", (None, 4), "float32")) == "x: float32[?, 4]"


def test_a_file_tells_by_its_name_what_runs_it(tmp_path: Path) -> None:
    assert runtime_of(tmp_path / "a.onnx").name == "onnxruntime"
    assert runtime_of(tmp_path / "a.engine").name == "tensorrt"
    plan = tmp_path / "a.plan"
    record = {
        "schema": 1,
        "kind": "engine",
        "evidence": "measured",
        "rebuild": "",
        "plan": {"bytes": 0, "sha256": ""},
        "tensorrt": {"flavour": "tensorrt_rtx", "version": "1.0"},
        "settings": {"dla_core": None, "version_compatible": False, "hardware_compatibility": ""},
        "platform": {"machine": "x86_64"},
    }
    Path(f"{plan}.json").write_text(json.dumps(record))
    assert runtime_of(plan).name == "tensorrt_rtx"


def test_an_engine_and_an_onnx_file_are_not_timed_by_turns(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"a\.onnx on onnxruntime, a\.plan on tensorrt"):
        shared_runtime([tmp_path / "a.onnx", tmp_path / "a.plan"])
    assert shared_runtime([tmp_path / "a.plan", tmp_path / "b.plan"]).name == "tensorrt"
