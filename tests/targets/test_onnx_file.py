from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deadweight.export.onnx_graph.graph import load
from deadweight.export.quantization.fp16 import to_half
from deadweight.targets.artifact import sha256_of
from deadweight.targets.errors import ModelError
from deadweight.targets.onnx_file import End, files_of, model_sha256, read_nodes

MakeMlp = Callable[..., Path]


def test_nodes_and_weights_are_those_that_onnx_reads(mlp: MakeMlp) -> None:
    path = mlp(300, 200, 10)
    found, expected = read_nodes(path), onnx.load(str(path)).graph
    assert [(one.name, one.op_type) for one in found.nodes] == [(n.name, n.op_type) for n in expected.node]
    assert [one.inputs for one in found.nodes] == [tuple(node.input) for node in expected.node]
    assert [one.outputs for one in found.nodes] == [tuple(node.output) for node in expected.node]
    assert found.shapes == {weight.name: tuple(weight.dims) for weight in expected.initializer}
    assert found.weight_of(found.nodes[0]) == (300, 200)
    assert found.weight_of(found.nodes[1]) == ()  # a ReLU has none


def test_a_file_in_half_precision_is_known_by_its_weights_or_its_casts(mlp: MakeMlp, tmp_path: Path) -> None:
    path = mlp(30, 20)
    assert not read_nodes(path).half
    cast = to_half(load(path)).model.proto
    onnx.save(cast, str(tmp_path / "half.onnx"))
    assert read_nodes(tmp_path / "half.onnx").half
    del cast.graph.initializer[:]
    onnx.save(cast, str(tmp_path / "casts.onnx"))
    assert read_nodes(tmp_path / "casts.onnx").half


def test_a_weight_is_found_behind_its_dequantization(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((4, 3), np.int8), "w_int8")
    scale = numpy_helper.from_array(np.array(0.1, np.float32), "scale")
    nodes = [
        helper.make_node("DequantizeLinear", ["w_int8", "scale"], ["w"], name="dq"),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, [1, 4])],
        [value("y", TensorProto.FLOAT, [1, 3])],
        [weight, scale],
    )
    onnx.save(helper.make_model(graph), str(tmp_path / "a.onnx"))
    found = read_nodes(tmp_path / "a.onnx")
    assert found.weight_of(found.nodes[1]) == (4, 3)


def test_inputs_and_outputs_are_read_with_their_types_and_shapes(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    weight = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["w", "ids"], ["y"]), helper.make_node("Identity", ["half"], ["z"])],
        "g",
        [
            value("ids", TensorProto.INT64, ["batch", 8]),
            value("half", TensorProto.FLOAT16, [None, 3, 32, 32]),
            value("w", TensorProto.FLOAT, [4, 3]),
        ],
        [value("y", TensorProto.FLOAT, None), value("z", TensorProto.FLOAT16, [])],
        [weight],
    )
    onnx.save(helper.make_model(graph), str(tmp_path / "a.onnx"))
    file = read_nodes(tmp_path / "a.onnx")
    inputs, outputs = file.inputs, file.outputs
    assert inputs == (End("ids", "int64", (-1, 8)), End("half", "float16", (-1, 3, 32, 32)))
    assert outputs == (End("y", "float32", ()), End("z", "float16", ()))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_a_file_that_was_cut_or_is_something_else_is_refused(mlp: MakeMlp, share: float) -> None:
    path = mlp(64, 32, 10)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ModelError):
        read_nodes(path)
    path.write_bytes(b"not a model at all \xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")
    with pytest.raises(ModelError):
        read_nodes(path)


@pytest.mark.parametrize(
    ("content", "what", "cure"),
    [
        ("<!DOCTYPE html>\n<html>", "is text, not an ONNX file: <!DOCTYPE html>", "download the model again"),
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:4d\n",
            "a pointer of Git LFS",
            "git lfs pull",
        ),
    ],
)
def test_a_page_and_a_pointer_in_place_of_a_model_are_named(
    tmp_path: Path, content: str, what: str, cure: str
) -> None:
    (tmp_path / "m.onnx").write_text(content)
    with pytest.raises(ModelError, match=what) as caught:
        read_nodes(tmp_path / "m.onnx")
    assert cure in caught.value.cure


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no model at"):
        read_nodes(tmp_path / "none.onnx")


def test_weights_beside_a_model_are_of_its_files_and_of_its_hash(mlp: MakeMlp, tmp_path: Path) -> None:
    whole = mlp(300, 200, 10)
    assert files_of(whole) == (whole,)
    assert model_sha256(whole) == sha256_of(whole)
    path, weights = tmp_path / "apart.onnx", tmp_path / "apart.onnx.data"
    onnx.save(onnx.load(whole), path, save_as_external_data=True, location=weights.name, size_threshold=0)
    assert files_of(path) == (path, weights)
    before = model_sha256(path)
    with weights.open("r+b") as file:
        file.write(b"\1")
    assert model_sha256(path) != before
    weights.unlink()
    assert files_of(path) == (path,)
    weights.with_suffix(".txt").write_text("no model")
    assert files_of(weights.with_suffix(".txt")) == (weights.with_suffix(".txt"),)
