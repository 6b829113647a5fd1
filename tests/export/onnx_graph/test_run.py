from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from support.int8_files import calibrate, compare_files, to_qdq
from support.onnx_files import numbers, op

from deadweight.export.onnx_graph.run import pieces, runner, samples_in
from deadweight.targets.errors import WorkloadError

Nets = Callable[[str], Any]


def test_any_tensor_inside_can_be_looked_at_and_the_model_is_left_as_it_was(net: Nets) -> None:
    model = onnx.load(net("mlp").path)
    before = model.SerializeToString()
    x = net("mlp").batches[0]["x"].numpy()
    found = runner(model, ["Relu_1", "x", "output"])({"x": x})
    assert list(found) == ["Relu_1", "x", "output"]
    assert found["Relu_1"].shape == (20, 32)
    assert (found["Relu_1"] >= 0).all()
    np.testing.assert_array_equal(found["x"], x)
    assert model.SerializeToString() == before


def test_batches_come_in_pieces_and_labels_are_left_out(net: Nets) -> None:
    model = onnx.load(net("joined").path)
    batches = [batch | {"label": torch.zeros(20)} for batch in net("joined").batches[:1]]
    made = list(pieces(model, batches, size=8))
    assert [len(piece["left"]) for piece in made] == [8, 8, 4]
    assert all(set(piece) == {"left", "right"} for piece in made)
    whole = np.concatenate([piece["right"] for piece in made])
    np.testing.assert_array_equal(whole, batches[0]["right"].numpy())


def test_inputs_of_different_lengths_are_refused(net: Nets) -> None:
    model = onnx.load(net("joined").path)
    uneven = {"left": torch.zeros(3, 1, 8, 8), "right": torch.zeros(2, 1, 8, 8)}
    with pytest.raises(WorkloadError, match="have different numbers of samples"):
        list(pieces(model, [uneven]))


def test_tensors_that_are_part_of_a_graph_for_gradients_are_taken(net: Nets) -> None:
    x = torch.randn(4, 64, requires_grad=True)
    (piece,) = pieces(onnx.load(net("mlp").path), [{"x": x}])
    np.testing.assert_array_equal(piece["x"], x.detach().numpy())


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ((torch.zeros(4, 64), torch.zeros(4)), "A batch is a tuple"),
        (torch.zeros(4, 64), "A batch is a Tensor"),
        ({"x": torch.zeros(4, 64).bfloat16()}, "'x' of a batch cannot be made an array"),
        ({"x": [[0.0] * 64, [0.0] * 63]}, "'x' of a batch cannot be made an array"),
        ({"x": 1.0}, "have different numbers of samples"),
    ],
)
def test_a_batch_that_is_no_dict_of_arrays_is_refused_in_words(net: Nets, batch: Any, said: str) -> None:
    with pytest.raises(WorkloadError, match=said):
        list(pieces(onnx.load(net("mlp").path), [batch]))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.zeros((4, 64)), r"is float64, but the model needs float32"),
        (np.zeros((4, 64), np.uint8), r"is uint8, but the model needs float32"),
        (np.zeros((4, 63), np.float32), r"do not fit the model: 'x' has the shape \[4, 63\]"),
        (np.zeros((4, 1, 64), np.float32), r"do not fit the model: 'x' has the shape \[4, 1, 64\]"),
    ],
)
def test_numbers_that_no_runtime_would_take_are_refused_before_any_is_looked_at(
    net: Nets, given: Any, said: str
) -> None:
    with pytest.raises(WorkloadError, match=said) as refused:
        next(pieces(onnx.load(net("mlp").path), [{"x": given}]))
    if given.dtype == np.uint8:
        assert "Scale and normalize" in refused.value.cure


def scaled(path: Path, factor: Any, image: Any = ("batch", 24), *, first: bool = True) -> Path:
    """y = (image @ w) * sum(factor), where the factor comes before the image or behind it."""
    kinds = {"factor": factor, "image": image} if first else {"image": image, "factor": factor}
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in kinds.items()]
    nodes = [
        op("MatMul", ["image", "w"], ["h"]),
        op("ReduceSum", ["factor"], ["sum"], keepdims=0),
        op("Mul", ["h", "sum"], ["y"]),
    ]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 16])]
    graph = helper.make_graph(nodes, "g", inputs, out, [numpy_helper.from_array(numbers(24, 16), "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("shape", "factor"),
    [((), np.float32(0.5)), ((2,), np.full(2, 0.5, np.float32)), ((1, 2), np.ones((1, 2), np.float32))],
)
def test_an_input_without_a_batch_axis_comes_whole_with_every_piece(
    tmp_path: Path, shape: Any, factor: Any, first: bool
) -> None:
    path = scaled(tmp_path / "m.onnx", shape, first=first)
    data = [{"factor": factor, "image": numbers(20, 24)}, {"factor": factor * 2, "image": numbers(3, 24)}]
    found = list(pieces(onnx.load(path), data))
    assert [samples_in(piece) for piece in found] == [8, 8, 4, 3]
    assert [float(piece["factor"].sum() / np.sum(factor)) for piece in found] == [1, 1, 1, 2]
    ranges = calibrate(path, data)
    assert ranges.samples == 23
    to_qdq(path, ranges, tmp_path / "q.onnx")
    hop = compare_files(path, tmp_path / "q.onnx", data, kind="lossy", name="int8")
    assert hop.samples == 23


def test_where_all_sizes_are_fixed_the_batch_is_that_of_the_inputs_with_more_axes(tmp_path: Path) -> None:
    path = scaled(tmp_path / "m.onnx", (2,), (4, 24))
    data = [{"factor": np.ones(2, np.float32), "image": numbers(4, 24)}]
    assert [samples_in(piece) for piece in pieces(onnx.load(path), data)] == [4]


def test_two_open_axes_of_different_lengths_are_still_refused(tmp_path: Path) -> None:
    path = scaled(tmp_path / "m.onnx", ("several", 2))
    with pytest.raises(WorkloadError, match="have different numbers of samples"):
        list(pieces(onnx.load(path), [{"factor": numbers(3, 2), "image": numbers(4, 24)}]))
