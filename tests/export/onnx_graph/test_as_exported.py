"""What exporters write is brought into one form, and computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.onnx_files import numbers

from deadweight.export.memory.footprint import footprint
from deadweight.export.onnx_graph.graph import load, save
from deadweight.targets.errors import ArtifactError, ModelError

FLOAT = TensorProto.FLOAT
value, node = helper.make_tensor_value_info, helper.make_node


def written(path: Path, nodes: Any, io: Any, constants: Any = (), **more: Any) -> Path:
    graph = helper.make_graph(nodes, "g", io[0], io[1], list(constants), **more)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def ran(path: Path, feeds: dict[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def computes_the_same(path: Path, feeds: dict[str, Any]) -> onnx.ModelProto:
    """The loaded model, after it was saved and run beside the original."""
    loaded = load(path).proto
    save(loaded, path.with_name("loaded.onnx"))
    for one, other in zip(ran(path, feeds), ran(path.with_name("loaded.onnx"), feeds), strict=True):
        assert np.array_equal(one, other)
    return loaded


def weight(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(numbers(*shape), name)


def test_a_size_below_zero_is_open(tmp_path: Path) -> None:
    io = [value("x", FLOAT, [-1, 8])], [value("y", FLOAT, [-1, 4])]
    path = written(tmp_path / "m.onnx", [node("MatMul", ["x", "w"], ["y"])], io, [weight("w", 8, 4)])
    loaded = computes_the_same(path, {"x": numbers(3, 8)})
    assert not loaded.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")
    assert loaded.graph.input[0].type.tensor_type.shape.dim[1].dim_value == 8


def test_an_attribute_without_a_value_is_refused(tmp_path: Path) -> None:
    pool = node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2])
    pool.attribute.append(onnx.AttributeProto(name="dilations", type="INTS", ref_attr_name="elsewhere"))
    io = [value("x", FLOAT, [1, 1, 4, 4])], [value("y", FLOAT, [1, 1, 3, 3])]
    path = written(tmp_path / "m.onnx", [pool], io)
    with pytest.raises(ModelError, match="no value for its attribute 'dilations'"):
        load(path)


@pytest.mark.parametrize("coordinates", [False, True])
@pytest.mark.parametrize("as_node", [False, True])
def test_sparse_constants_become_dense(tmp_path: Path, coordinates: bool, as_node: bool) -> None:
    rows = np.array([[0, 1], [2, 3], [7, 0]], np.int64)
    places = rows if coordinates else np.asarray(np.ravel_multi_index(tuple(rows.T), (8, 4)))
    values = numpy_helper.from_array(np.array([1, 2, 3], np.float32), "w")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(places, "at"), [8, 4])
    made = [node("Constant", [], ["w"], sparse_value=sparse)] if as_node else []
    stored = {} if as_node else {"sparse_initializer": [sparse]}
    io = [value("x", FLOAT, ["n", 8])], [value("y", FLOAT, ["n", 4])]
    path = written(tmp_path / "m.onnx", [*made, node("MatMul", ["x", "w"], ["y"])], io, **stored)
    loaded = computes_the_same(path, {"x": numbers(3, 8)})
    assert not loaded.graph.sparse_initializer
    constants = list(loaded.graph.initializer)
    constants += [one.attribute[0].t for one in loaded.graph.node if one.op_type == "Constant"]
    wanted = np.zeros((8, 4), np.float32)
    wanted[tuple(rows.T)] = [1, 2, 3]
    assert np.array_equal(numpy_helper.to_array(constants[0]), wanted)


@pytest.mark.parametrize(("shape", "place"), [([1 << 40, 4], 0), ([8, 4], 99), ([-8, 4], 0)])
def test_a_sparse_constant_that_is_too_large_or_damaged_is_refused(
    tmp_path: Path, shape: list[int], place: int
) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "w")
    at = numpy_helper.from_array(np.array([place]), "at")
    sparse = onnx.SparseTensorProto(values=values, indices=at, dims=shape)
    io = [value("x", FLOAT, ["n", 8])], [value("y", FLOAT, ["n", 4])]
    path = written(tmp_path / "m.onnx", [node("MatMul", ["x", "w"], ["y"])], io, sparse_initializer=[sparse])
    with pytest.raises(ModelError, match=r"sparse constant 'w' (is damaged|has the shape)"):
        load(path)


def branch(name: str) -> onnx.GraphProto:
    inner = helper.make_graph(
        [node("MatMul", ["x", "k"], [f"{name}1"]), node("MatMul", [f"{name}1", "k"], [name])],
        name,
        [],
        [value(name, FLOAT, None)],
        [numpy_helper.from_array(numbers(64, 64, seed=len(name)), "k")],
    )
    return inner


def test_large_weights_in_bodies_become_the_graphs_also_where_two_have_one_name(tmp_path: Path) -> None:
    outer = helper.make_graph(
        [node("If", ["yes"], ["deep"], then_branch=branch("aa"), else_branch=branch("bbb"))],
        "outer",
        [],
        [value("deep", FLOAT, None)],
    )
    nodes = [
        node("ReduceSum", ["x"], ["s"], keepdims=0),
        node("Greater", ["s", "zero"], ["yes"]),
        node("If", ["yes"], ["y"], then_branch=outer, else_branch=branch("cccc")),
    ]
    zero = numpy_helper.from_array(np.zeros((), np.float32), "zero")
    io = [value("x", FLOAT, ["n", 64])], [value("y", FLOAT, ["n", 64])]
    path = written(tmp_path / "m.onnx", nodes, io, [zero])
    for sign in (1, -1):
        x = np.full((2, 64), sign, np.float32) * np.abs(numbers(2, 64))
        loaded = computes_the_same(path, {"x": x})
    large = [tensor for tensor in loaded.graph.initializer if tensor.dims == [64, 64]]
    assert len({tensor.name for tensor in large}) == 3


def test_nodes_without_a_name_never_get_anothers(tmp_path: Path) -> None:
    nodes = [node("Relu", ["x"], ["h"], name=""), node("Neg", ["h"], ["y"], name="h/Relu")]
    io = [value("x", FLOAT, ["n", 8])], [value("y", FLOAT, ["n", 8])]
    path = written(tmp_path / "m.onnx", nodes, io)
    loaded = computes_the_same(path, {"x": numbers(3, 8)})
    assert [one.name for one in loaded.graph.node] == ["h/Relu_1", "h/Relu"]


@pytest.mark.parametrize("batch", [4, "n"])
def test_shapes_that_were_stored_for_another_batch_are_the_inputs(tmp_path: Path, batch: int | str) -> None:
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["y"])]
    stale = {"value_info": [value("h", FLOAT, [1, 6])]}
    io = [value("x", FLOAT, [batch, 8])], [value("y", FLOAT, [1, 6])]
    path = written(tmp_path / "m.onnx", nodes, io, [weight("w", 8, 6)], **stale)
    loaded = computes_the_same(path, {"x": numbers(4, 8)})
    first = loaded.graph.output[0].type.tensor_type.shape.dim[0]
    assert (first.dim_value or first.dim_param) == batch


def test_a_shape_that_only_the_file_knows_is_kept(tmp_path: Path) -> None:
    nodes = [node("NonZero", ["x"], ["at"]), node("Transpose", ["at"], ["y"])]
    io = [value("x", FLOAT, ["n", 8])], [value("y", TensorProto.INT64, ["found", 2])]
    loaded = load(written(tmp_path / "m.onnx", nodes, io)).proto
    axes = loaded.graph.output[0].type.tensor_type.shape.dim
    assert [axis.dim_param or axis.dim_value for axis in axes] == ["found", 2]


@pytest.mark.parametrize("call", ["own.same (x, x)", "own.same (x)"])
def test_a_function_that_is_called_with_too_much_or_defined_twice_is_refused(
    tmp_path: Path, call: str
) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17, "own" : 1]> g (float[2] x) => (float[2] y)
    {{ y = {call} }} <domain: "own", opset_import: ["" : 17]> same (a) => (b) {{ b = Relu (a) }}"""
    model = onnx.parser.parse_model(text)
    if "x, x" not in call:
        model.functions.append(model.functions[0])
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(ArtifactError, match="functions that do not fit their calls"):
        load(tmp_path / "a.onnx")


@pytest.mark.parametrize("name", [b"maker", b"hidden", b"batch"])
def test_a_name_that_is_no_text_is_refused(tmp_path: Path, name: bytes) -> None:
    x, y = (helper.make_tensor_value_info(each, TensorProto.FLOAT, ["batch"]) for each in "xy")
    nodes = [helper.make_node("Relu", ["x"], ["hidden"]), helper.make_node("Relu", ["hidden"], ["y"])]
    data = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y]), producer_name="maker"
    ).SerializeToString()
    (tmp_path / "a.onnx").write_bytes(data.replace(name, b"\xff" * len(name)))
    with pytest.raises(ModelError, match="not UTF-8"):
        load(tmp_path / "a.onnx")


@pytest.mark.parametrize("number", [0, 127])
@pytest.mark.parametrize("what", ["constant", "input", "inside"])
def test_a_type_that_onnx_does_not_know_is_refused(tmp_path: Path, what: str, number: int) -> None:
    node = helper.make_node("Add", ["x", "w"], ["y"])
    made = helper.make_node("Constant", [], ["c"], value=weight("c", 2))
    x, y = (helper.make_tensor_value_info(each, TensorProto.FLOAT, [2]) for each in "xy")
    graph = helper.make_graph([made, node], "g", [x], [y], [weight("w", 2)])
    if what == "constant":
        graph.initializer[0].data_type = number
    elif what == "input":
        graph.input[0].type.tensor_type.elem_type = number
    else:
        graph.node[0].attribute[0].t.data_type = number
    onnx.save(helper.make_model(graph), tmp_path / "a.onnx")
    with pytest.raises(ModelError, match=f"has the data type {number}"):
        load(tmp_path / "a.onnx")


def test_a_type_of_an_output_that_onnx_does_not_know_follows_from_the_nodes(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(each, TensorProto.FLOAT, [2]) for each in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    graph.output[0].type.tensor_type.elem_type = 127
    onnx.save(helper.make_model(graph), tmp_path / "a.onnx")
    assert load(tmp_path / "a.onnx").types["y"].elem_type == TensorProto.FLOAT


def test_an_output_that_is_no_tensor_keeps_its_type(tmp_path: Path) -> None:
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, None))
    io = [value("x", FLOAT, ["n", 8])], [helper.make_value_info("y", kind)]
    loaded = load(written(tmp_path / "m.onnx", [node("SequenceConstruct", ["x", "x"], ["y"])], io))
    assert loaded.graph.output[0].type.HasField("sequence_type")
    assert "y" not in loaded.types


def test_a_node_without_outputs_is_dropped_and_one_without_inputs_breaks_no_count(tmp_path: Path) -> None:
    sparse = helper.make_sparse_tensor(weight("v", 1), numpy_helper.from_array(np.zeros(1, np.int64)), [2])
    nodes = [node("Relu", ["x"], []), node("Identity", [], ["w"]), node("MatMul", ["x", "w"], ["y"])]
    nodes.append(node("Constant", [], [], sparse_value=sparse))
    io = [value("x", FLOAT, [1, 2])], [value("y", FLOAT, [1, 2])]
    path = written(tmp_path / "model.onnx", nodes, io)
    assert [one.op_type for one in load(path).graph.node] == ["Identity", "MatMul"]
    assert footprint(path).weights_low_bytes == 0
