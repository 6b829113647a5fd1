from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from deadweight.export.onnx_graph.shared_initializers import merge_initializers
from deadweight.export.to_onnx import to_onnx

WEIGHT = np.arange(16, dtype=np.float32).reshape(4, 4)


def model_of(nodes: list[onnx.NodeProto], **constants: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "twins",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def chain(*weights: str) -> list[onnx.NodeProto]:
    names = ["x", *(f"h{at}" for at in range(len(weights) - 1)), "y"]
    return [
        helper.make_node("MatMul", [names[at], weight], [names[at + 1]], name=f"m{at}")
        for at, weight in enumerate(weights)
    ]


def outputs(path: Path, x: np.ndarray) -> np.ndarray:
    return np.asarray(onnxruntime.InferenceSession(path).run(None, {"x": x})[0])


def test_equal_weights_are_stored_once_and_the_outputs_stay_to_the_bit(tmp_path: Path) -> None:
    model = model_of(chain("a", "b", "c"), a=WEIGHT, b=WEIGHT.copy(), c=WEIGHT + 1)
    twice, once = tmp_path / "twice.onnx", tmp_path / "once.onnx"
    onnx.save(model, twice)
    replaced, saved_bytes = merge_initializers(model)
    assert (replaced, saved_bytes > WEIGHT.nbytes) == ({"b": "a"}, True)
    onnx.save(model, once)
    assert [tensor.name for tensor in onnx.load(once).graph.initializer] == ["a", "c"]
    x = np.random.default_rng(0).random((3, 4), np.float32)
    assert np.array_equal(outputs(twice, x), outputs(once, x))
    assert twice.stat().st_size - once.stat().st_size >= WEIGHT.nbytes


def test_weights_that_differ_in_a_bit_a_type_or_a_shape_stay_apart() -> None:
    zero = np.zeros((4, 4), np.float32)
    model = model_of(
        chain("a", "b"),
        a=zero,
        b=-zero,
        c=zero.view(np.int32),
        d=zero.reshape(2, 8),
        e=zero.astype(np.float64),
    )
    assert merge_initializers(model) == ({}, 0)


def test_a_constant_that_is_an_output_or_input_of_the_graph_stays() -> None:
    model = model_of(chain("a", "b"), a=WEIGHT, b=WEIGHT.copy(), z=WEIGHT.copy())
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [4, 4]))
    model.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [4, 4]))
    assert merge_initializers(model)[0] == {}
    assert [node.input[1] for node in model.graph.node] == ["a", "b"]


def test_readers_in_the_body_of_an_if_follow_and_a_name_of_its_own_does_not(tmp_path: Path) -> None:
    def body(name: str, own: list[TensorProto]) -> onnx.GraphProto:
        node = helper.make_node("MatMul", ["x", name], [f"{name}_out"])
        out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, ["batch", 4])
        return helper.make_graph([node], name, [], [out], own)

    node = helper.make_node(
        "If",
        ["yes"],
        ["y"],
        then_branch=body("b", []),
        else_branch=body("c", [numpy_helper.from_array(2 * WEIGHT, "c")]),
    )
    model = model_of([node], a=WEIGHT, b=WEIGHT.copy(), yes=np.array(True))
    assert merge_initializers(model)[0] == {"b": "a"}
    onnx.save(model, tmp_path / "once.onnx")
    x = np.ones((2, 4), np.float32)
    assert np.array_equal(outputs(tmp_path / "once.onnx", x), x @ WEIGHT)


def test_a_plain_export_holds_equal_layers_once(tmp_path: Path) -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(48, 48), nn.Linear(48, 48)
            self.second.load_state_dict(self.first.state_dict())

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.second(torch.relu(self.first(x)))
            return made

    for simplify in (False, True):
        to_onnx(Twins(), {"x": torch.rand(2, 48)}, tmp_path / "twins.onnx", simplify=simplify)
        shapes = [list(tensor.dims) for tensor in onnx.load(tmp_path / "twins.onnx").graph.initializer]
        assert sorted(shapes) == [[48], [48, 48]]
