"""The footprint of small networks that can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.onnx_files import numbers, op, write_network

from benchmarks.memory.bounds import LEVELS, counted, rows_of
from benchmarks.memory.random_graphs import FLOAT, KINDS, make
from deadweight.export.memory.footprint import footprint
from deadweight.targets.errors import ArtifactError, ModelError, TargetError
from deadweight.targets.timing.memory import measure_memory

UNIT = 8 * 16 * 16 * 4  # bytes of one feature map here


def weight(name: str, *shape: int, kind: Any = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(shape, kind), name)


def node(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], name=output, **attributes)


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[onnx.TensorProto],
    outputs: Sequence[str],
    *,
    shape: Sequence[int | str] = (1, 8, 16, 16),
) -> Path:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    start = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "g", [start], ends, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def conv(x: str, y: str, w: str = "w") -> onnx.NodeProto:
    return node("Conv", [x, w], y, pads=[1, 1, 1, 1])


def two_convolutions(path: Path, **options: Any) -> Path:
    nodes = [conv("x", "a"), node("Relu", ["a"], "b"), conv("b", "c", "v"), node("Relu", ["c"], "y")]
    return save(path, nodes, [weight("w", 8, 8, 3, 3), weight("v", 8, 8, 3, 3)], ["y"], **options)


def test_a_chain_holds_what_a_convolution_reads_and_writes_and_no_activation(tmp_path: Path) -> None:
    found = footprint(two_convolutions(tmp_path / "m.onnx"), runtime="onnxruntime")
    assert found.activations_low_bytes == 2 * UNIT
    assert found.peak_at == "c"
    assert found.inputs_bytes == found.outputs_bytes == UNIT
    assert found.weights_low_bytes == found.weights_high_bytes == 2 * 8 * 8 * 9 * 4
    assert found.activations_high_bytes is not None
    assert found.activations_high_bytes >= 2 * UNIT


def test_memory_grows_with_the_batch_that_the_model_leaves_open(tmp_path: Path) -> None:
    path = two_convolutions(tmp_path / "m.onnx", shape=("n", 8, 16, 16))
    one, four = (footprint(path, batch=batch, runtime="onnxruntime") for batch in (1, 4))
    assert four.activations_low_bytes == 4 * one.activations_low_bytes
    assert four.weights_low_bytes == one.weights_low_bytes


def test_tensorrt_may_keep_everything_in_16_bits_and_a_strongly_typed_build_may_not(tmp_path: Path) -> None:
    path = two_convolutions(tmp_path / "m.onnx")
    half, strong = footprint(path), footprint(path, halves=False)
    assert half.activations_low_bytes * 2 == strong.activations_low_bytes == 2 * UNIT
    assert half.weights_low_bytes * 2 == strong.weights_low_bytes


def test_a_short_cut_lives_across_the_block_and_takes_up_its_result(tmp_path: Path) -> None:
    nodes = [conv("x", "s"), conv("s", "a", "v"), conv("a", "b", "u"), node("Add", ["s", "b"], "y")]
    weights = [weight(name, 8, 8, 3, 3) for name in "wvu"]
    found = footprint(save(tmp_path / "m.onnx", nodes, weights, ["y"]), runtime="onnxruntime")
    assert found.activations_low_bytes == 2 * UNIT  # at b: s and a; b is added into s while it is made


def test_a_gate_is_written_over_its_value_by_tensorrt_only(tmp_path: Path) -> None:
    nodes = [conv("x", "a"), node("Sigmoid", ["a"], "s"), node("Mul", ["a", "s"], "y")]
    path = save(tmp_path / "m.onnx", nodes, [weight("w", 8, 8, 3, 3)], ["y"])
    assert footprint(path, halves=False).activations_low_bytes == UNIT
    assert footprint(path, runtime="onnxruntime").activations_low_bytes == 2 * UNIT


def test_joining_is_free_in_tensorrt_and_a_copy_in_onnx_runtime(tmp_path: Path) -> None:
    nodes = [conv("x", "a"), conv("x", "b", "v"), node("Concat", ["a", "b"], "y", axis=1)]
    path = save(tmp_path / "m.onnx", nodes, [weight("w", 8, 8, 3, 3), weight("v", 8, 8, 3, 3)], ["y"])
    assert footprint(path, halves=False).activations_low_bytes == 2 * UNIT
    assert footprint(path, runtime="onnxruntime").activations_low_bytes == 4 * UNIT


def test_equal_nodes_are_computed_once(tmp_path: Path) -> None:
    nodes = [conv("x", "a"), conv("x", "b"), node("Concat", ["a", "b"], "y", axis=1)]
    path = save(tmp_path / "m.onnx", nodes, [weight("w", 8, 8, 3, 3)], ["y"])
    assert footprint(path, runtime="onnxruntime").activations_low_bytes == 3 * UNIT


def test_quantized_weights_and_values_count_one_byte(tmp_path: Path) -> None:
    scale, zero = (
        numpy_helper.from_array(np.asarray(value), name)
        for value, name in ((np.float32(0.1), "s"), (np.int8(0), "z"))
    )
    nodes = [
        conv("x", "a"),
        node("QuantizeLinear", ["a", "s", "z"], "q"),
        node("DequantizeLinear", ["q", "s", "z"], "d"),
        node("DequantizeLinear", ["v", "s", "z"], "vd"),
        conv("d", "y", "vd"),
    ]
    weights = [weight("w", 8, 8, 3, 3), weight("v", 8, 8, 3, 3, kind=np.int8), scale, zero]
    found = footprint(save(tmp_path / "m.onnx", nodes, weights, ["y"]), runtime="onnxruntime")
    assert found.activations_low_bytes == UNIT // 4 + UNIT
    assert found.weights_low_bytes < found.weights_high_bytes


def test_unknown_sizes_lower_the_bound_and_open_the_upper_end(tmp_path: Path) -> None:
    path = two_convolutions(tmp_path / "m.onnx", shape=(1, 8, "height", 16))
    found = footprint(path, runtime="onnxruntime")
    assert found.activations_low_bytes == 0
    assert found.activations_high_bytes is None
    assert "x" in found.unknown
    assert found.high_bytes is None


def test_an_unknown_operator_is_given_nothing(tmp_path: Path) -> None:
    odd = helper.make_node("Strange", ["a"], ["y"], name="odd", domain="my")
    path = save(tmp_path / "m.onnx", [conv("x", "a"), odd], [weight("w", 8, 8, 3, 3)], ["y"])
    found = footprint(path, runtime="onnxruntime")
    assert found.activations_low_bytes == 0
    assert found.unknown == ("y",)


def test_a_batch_of_none_another_runtime_and_a_cut_file_are_told(tmp_path: Path) -> None:
    path = two_convolutions(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="batch 0"):
        footprint(path, batch=0)
    with pytest.raises(TargetError, match="openvino"):
        footprint(path, runtime="openvino")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ArtifactError):
        footprint(cut)


def test_thirty_random_networks_never_take_less_of_onnx_runtimes_arena(tmp_path: Path) -> None:
    seeds = [seed for seed in range(9000, 9200) if len(make(seed).model.graph.node) <= 40][:30]
    rows = rows_of(seeds)
    assert {row["kind"] for row in rows} <= set(KINDS)
    for level in LEVELS:
        assert all(0 < row["low"] <= min(row[level].values()) for row in rows)
    large = [row for row in counted(rows) if row["kind"] in FLOAT]
    assert len(large) >= 8
    assert sum(row["high"] >= row["EXTENDED"]["planned"] for row in large) >= 0.8 * len(large)


def test_shapes_are_inferred_without_the_numbers_of_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # ONNX's inference takes no message above 2 GB, and a copy would take the memory once more.
    path = save(
        tmp_path / "m.onnx",
        [node("Conv", ["x", "w"], "y")],
        [weight("w", 512, 8, 1, 1)],
        ["y"],
        shape=("batch", 8, 4, 4),
    )
    infer, seen = onnx.shape_inference.infer_shapes, []

    def looked(model: onnx.ModelProto, **settings: Any) -> onnx.ModelProto:
        seen.append(model.ByteSize())
        return infer(model, **settings)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", looked)
    need = footprint(path, batch=2)
    assert max(seen) < 1000 < path.stat().st_size
    assert need.largest_bytes == need.outputs_bytes == 2 * 512 * 4 * 4 * 4
    assert need.weights_high_bytes == 512 * 8 * 4
    assert need.unknown == ()


@pytest.mark.parametrize("operator", ["ConstantOfShape", "Expand", "Tile", "Range"])
def test_constants_that_the_graph_makes_count_at_most_as_weights_do(tmp_path: Path, operator: str) -> None:
    size = 1 << 20
    made = {
        "ConstantOfShape": op("ConstantOfShape", ["shape"], ["made"]),
        "Expand": op("Expand", ["one", "shape"], ["made"]),
        "Tile": op("Tile", ["one", "shape"], ["made"]),
        "Range": op("Range", ["start", "end", "step"], ["made"]),
    }[operator]
    constants: dict[str, Any] = {"shape": np.array([size]), "one": np.ones(1, np.float32)}
    constants |= {"start": np.float32(0), "end": np.float32(size), "step": np.float32(1)}
    nodes = [made, op("ReduceSum", ["made"], ["sum"], keepdims=0), op("Mul", ["x", "sum"], ["y"])]
    need = footprint(write_network(tmp_path / "m.onnx", nodes, constants, [4, 8]), runtime="onnxruntime")
    assert need.high_bytes is None or need.high_bytes >= 4 * size


def test_weights_in_bodies_count_and_what_bodies_hold_meanwhile_opens_the_upper_end(tmp_path: Path) -> None:
    def body(name: str) -> onnx.GraphProto:
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, [8, 64])
        weight = numpy_helper.from_array(numbers(64, 64), "k")
        return helper.make_graph([op("MatMul", ["x", "k"], [name])], name, [], [value], [weight])

    nodes = [op("If", ["yes"], ["y"], then_branch=body("a"), else_branch=body("b"))]
    path = write_network(tmp_path / "m.onnx", nodes, {"yes": np.array(True)}, [8, 64])
    need = footprint(path, runtime="onnxruntime")
    assert need.weights_high_bytes >= 2 * 64 * 64 * 4
    assert need.high_bytes is None


@pytest.mark.slow
def test_what_onnx_runtime_holds_is_within_the_band(tmp_path: Path) -> None:
    nodes, constants = [], {}
    for number in range(6):
        constants[f"w{number}"] = numbers(32, 3 if number == 0 else 32, 3, 3, seed=number)
        read = "x" if number == 0 else f"r{number - 1}"
        nodes += [op("Conv", [read, f"w{number}"], [f"c{number}"], pads=[1, 1, 1, 1])]
        nodes += [op("Relu", [f"c{number}"], [f"r{number}"])]
    path = write_network(tmp_path / "m.onnx", [*nodes, op("Neg", ["r5"], ["y"])], constants, [1, 3, 128, 128])
    need = footprint(path, runtime="onnxruntime")
    assert need.high_bytes
    assert need.low_bytes <= measure_memory(path).resident_bytes <= need.high_bytes


def test_only_a_runtime_that_builds_nothing_holds_something_beside_the_plan(tmp_path: Path) -> None:
    path = write_network(
        tmp_path / "m.onnx", [op("MatMul", ["x", "w"], ["y"])], {"w": numbers(64, 64)}, [8, 64]
    )
    here, board = (footprint(path, runtime=name, halves=False) for name in ("onnxruntime", "tensorrt"))
    assert board.beside_bytes == 0
    assert here.beside_bytes > here.weights_high_bytes + 2 * (here.activations_high_bytes or 0)
    assert here.high_bytes == (board.high_bytes or 0) + here.beside_bytes


def test_open_sides_are_given_by_shape(tmp_path: Path) -> None:
    nodes, constants = [op("Conv", ["x", "w"], ["y"])], {"w": numbers(4, 3, 1, 1)}
    path = write_network(tmp_path / "m.onnx", nodes, constants, ["n", 3, "h", "w"])
    assert footprint(path).high_bytes is None
    high = footprint(path, shapes={"x": (1, 3, 64, 64)}, runtime="onnxruntime").high_bytes
    assert high
    assert high > 4 * 4 * 64 * 64
    for shapes, says in (({"z": (1,)}, "no input 'z'"), ({"x": (1, 4, 64, 64)}, "is \\[\\?, 3, \\?, \\?\\]")):
        with pytest.raises(ModelError, match=says):
            footprint(path, shapes=shapes)
