"""Small real ONNX models, made with onnx itself, for the tests of the ground floor."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

MakeMlp = Callable[..., Path]


def save_mlp(path: Path, *widths: int, batch: int | str = "batch") -> Path:
    """A multilayer perceptron with ReLU between the layers: input `x`, output `y`, both float32."""
    generator = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for layer, (inputs, outputs) in enumerate(pairwise(widths)):
        weight = generator.standard_normal((inputs, outputs)) / inputs**0.5
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"w{layer}"))
        last = layer == len(widths) - 2
        nodes.append(helper.make_node("MatMul", [value, f"w{layer}"], ["y" if last else f"m{layer}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"m{layer}"], [f"r{layer}"]))
            value = f"r{layer}"
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, widths[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, widths[-1]])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path


@pytest.fixture
def mlp(tmp_path: Path) -> MakeMlp:
    """Makes an MLP of these widths in the test's own folder."""

    def make(*widths: int, name: str = "model.onnx", batch: int | str = "batch") -> Path:
        return save_mlp(tmp_path / name, *widths, batch=batch)

    return make
