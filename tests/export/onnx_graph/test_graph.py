from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.int8_files import calibrate, float_kernels, to_qdq

from deadweight.export.onnx_graph import graph as graphs
from deadweight.targets.errors import ArtifactError, ModelError

Nets = Callable[[str], Any]


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_anywhere_is_no_model(net: Nets, tmp_path: Path, keep: float) -> None:
    data = net("mlp").path.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(data[: int(len(data) * keep)])
    with pytest.raises((ArtifactError, ModelError), match=r"cut\.onnx|no graph|breaks") as caught:
        graphs.save(graphs.load(tmp_path / "cut.onnx").proto, tmp_path / "copy.onnx")
    assert caught.value.cure
    assert not (tmp_path / "copy.onnx").exists()


def test_a_directory_and_a_missing_file_are_errors(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.onnx"):
        with pytest.raises(ArtifactError, match="cannot be read"):
            graphs.load(path)


def test_a_file_of_three_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.onnx").open("wb") as file:
        file.truncate(3 * 2**30)  # sparse: takes no room
    with pytest.raises(ModelError, match=r"3\.0 GB"):
        graphs.load(tmp_path / "huge.onnx")


def test_a_graph_that_breaks_the_rules_is_never_written(net: Nets, tmp_path: Path) -> None:
    model = graphs.load(net("mlp").path).proto
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ModelError, match="breaks ONNX's rules"):
        graphs.save(model, tmp_path / "bad.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_of_another_exporter_is_quantized_as_well(tmp_path: Path) -> None:
    """Weights as Constant nodes, nodes without names, a fixed batch of 3."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((16, 8, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight, "any")),
        helper.make_node("Conv", ["x", "w"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node(
            "Constant", [], ["v"], value=numpy_helper.from_array(weight.reshape(8, 16, 3, 3), "v")
        ),
        helper.make_node("Conv", ["r", "v"], ["y"]),
    ]
    made = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 8, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 8, 6, 6])],
    )
    path = tmp_path / "foreign.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=7), path)
    batches = [{"x": generator.standard_normal((3, 8, 8, 8)).astype(np.float32)} for _ in range(2)]
    ranges = calibrate(path, batches)
    assert ranges.samples == 6
    to_qdq(path, ranges, tmp_path / "q.onnx", dialect="x86")
    assert float_kernels(tmp_path / "q.onnx") == []
    to_qdq(path, ranges, tmp_path / "t.onnx", skip=["h/Conv"])
    names = [tensor.name for tensor in onnx.load(tmp_path / "t.onnx").graph.initializer]
    assert "w" in names
    assert "v_int8" in names


def test_unused_constants_fall_away_and_the_others_come_in_order_of_use() -> None:
    made = helper.make_graph(
        [helper.make_node("Add", ["x", "b"], ["h"]), helper.make_node("Mul", ["h", "a"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.ones(2, np.float32), name) for name in ("a", "idle", "b")],
    )
    graphs.drop_unused(made)
    assert [tensor.name for tensor in made.initializer] == ["b", "a"]


def test_constants_become_initializers_however_they_are_written() -> None:
    made = helper.make_graph(
        [
            helper.make_node("Constant", [], ["f"], value_float=0.5),
            helper.make_node("Constant", [], ["n"], value_ints=[1, 2]),
            helper.make_node("Constant", [], ["s"], value_string=b"left"),
            helper.make_node("Add", ["x", "f"], ["y"]),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    graphs.lift_constants(made)
    index = graphs.Index.of(made)
    assert index.value("f") == np.float32(0.5)
    assert np.array_equal(index.value("n"), [1, 2])  # type: ignore[arg-type]
    assert [node.op_type for node in made.node] == ["Constant", "Add"]
