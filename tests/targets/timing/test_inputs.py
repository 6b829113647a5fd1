"""Inputs from a file, in place of random ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deadweight.targets.errors import ArtifactError, ModelError
from deadweight.targets.timing.clock import time_together
from deadweight.targets.timing.inputs import given_inputs, inputs_mark, with_inputs
from deadweight.targets.timing.layers import profile_layers
from deadweight.targets.timing.measurement import Protocol
from deadweight.targets.timing.memory import measure_memory

MakeMlp = Callable[..., Path]
QUICK = Protocol(events=2, event_s=0.005)


def embedding(path: Path, *, words: int = 50, width: int = 16) -> Path:
    """Words by number, int64[batch, length], both free, through an embedding and a linear layer."""
    weights = {"table": (words, width), "w": (width, 8)}
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "words"], ["e"], name="embedding"),
            helper.make_node("MatMul", ["e", "w"], ["y"], name="fc/MatMul"),
        ],
        "net",
        [info("words", TensorProto.INT64, ["batch", "length"])],
        [info("y", TensorProto.FLOAT, ["batch", "length", 8])],
        [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(made, str(path))
    return path


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """Three sentences of seven words."""
    np.savez(tmp_path / "words.npz", words=np.arange(21).reshape(3, 7))
    return tmp_path / "words.npz"


def test_a_free_length_has_the_size_that_the_inputs_have_everywhere(tmp_path: Path, words: Path) -> None:
    model = embedding(tmp_path / "a.onnx")
    with pytest.raises(ModelError, match="dynamic dimension"):
        time_together({"a": model}, protocol=QUICK)
    arrays = given_inputs(words)
    measured = time_together({"a": model}, protocol=QUICK, inputs=arrays)["a"]
    assert measured.protocol.batch == 3
    assert measured.protocol.inputs == inputs_mark(arrays)
    assert measured.conditions["inputs"] == {"a": ["int64[3, 7]"]}
    assert measure_memory(model, inputs=words).file_bytes == model.stat().st_size
    layers = profile_layers({"a": model}, protocol=QUICK, inputs=arrays)["layers"]["a"]
    assert [layer["name"] for layer in layers] == ["embedding", "fc"]


def test_the_mark_is_of_names_types_shapes_and_values() -> None:
    one = np.arange(4)
    others: list[dict[str, Any]] = [
        {"y": one},
        {"x": one.astype(np.int32)},
        {"x": one.reshape(2, 2)},
        {"x": one + 1},
    ]
    marks = {inputs_mark(each) for each in ({"x": one}, *others)}
    assert len(marks) == 5
    assert inputs_mark({"x": one}) == inputs_mark({"x": np.arange(4)})
    assert inputs_mark(None) == "random"


def test_another_batch_than_the_inputs_have_is_refused() -> None:
    inputs = {"x": np.zeros((3, 2)), "state": np.zeros((3, 5))}
    assert with_inputs(Protocol(), inputs).batch == with_inputs(Protocol(batch=3), inputs).batch == 3
    with pytest.raises(ModelError, match="batch of 4 was requested, but the inputs have 3 samples"):
        with_inputs(Protocol(batch=4), inputs)
    # Where the first axes differ, they are no batch.
    assert with_inputs(Protocol(batch=2), {**inputs, "mask": np.zeros((7, 7))}).batch == 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((3, 8))}, "'x' is float64, not float32"),
        ({"x": np.zeros((3, 9), np.float32)}, r"'x' has the shape \[3, 9\]"),
        ({"input": np.zeros((3, 8), np.float32)}, "'x' is missing; 'input' is not an input"),
        ({"x": np.array(["a", "b"])}, "'x' is <U1, not float32"),
    ],
)
def test_the_error_for_unsuitable_inputs_names_what_the_model_needs(
    mlp: MakeMlp, arrays: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        time_together({"a": mlp(8, 4)}, protocol=QUICK, inputs=arrays)
    assert caught.value.cure == "It needs x: float32[batch, 8]."


def test_a_file_without_named_arrays_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "none.npz")
    np.savez(tmp_path / "code.npz", x=np.array([{}], dtype=object))
    np.savez_compressed(tmp_path / "cut.npz", x=np.random.default_rng(0).random(10_000))
    held = bytearray((tmp_path / "cut.npz").read_bytes())
    held[2000:3000] = bytes(1000)
    (tmp_path / "cut.npz").write_bytes(held)
    for name in ("text.npz", "one.npy", "code.npz", "cut.npz"):
        with pytest.raises(ArtifactError, match="is not a file of named arrays"):
            given_inputs(tmp_path / name)
    with pytest.raises(ArtifactError, match="contains no arrays"):
        given_inputs(tmp_path / "none.npz")
    with pytest.raises(ArtifactError, match="There is no inputs file at"):
        given_inputs(tmp_path / "absent.npz")
    assert given_inputs(None) is None
