from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deadweight.targets.errors import MeasurementError
from deadweight.targets.timing.layers import judge_layers
from deadweight.targets.timing.measurement import Protocol
from deadweight.targets.timing.ort_layers import split_runs, time_layers

MakeMlp = Callable[..., Path]
SHORT = Protocol(events=3, event_s=0.01, block_s=0.001, settle_s=0.0005)


def conv_net(path: Path, *widths: int, size: int = 14) -> Path:
    """Convolutions with ReLU, named after their place; what ONNX Runtime fuses and lays out anew."""
    generator = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for at, (before, after) in enumerate(itertools.pairwise(widths)):
        weight = generator.standard_normal((after, before, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{at}"))
        pads = [1, 1, 1, 1]
        nodes.append(
            helper.make_node("Conv", [value, f"w{at}"], [f"c{at}"], name=f"block{at}/Conv", pads=pads)
        )
        nodes.append(helper.make_node("Elu" if at == 1 else "Relu", [f"c{at}"], [f"r{at}"], name=f"act{at}"))
        value = f"r{at}"
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "net",
        [info("x", TensorProto.FLOAT, [1, widths[0], size, size])],
        [info(value, TensorProto.FLOAT, None)],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def test_fused_kernels_are_mapped_to_the_layers_of_the_file(tmp_path: Path) -> None:
    path = conv_net(tmp_path / "a.onnx", 16, 16, 32, 16)
    timed = time_layers({"a": path, "b": path}, protocol=SHORT)
    layers = timed["a"]
    assert list(layers) == ["block0", "block1", "act1", "block2"]
    assert layers["block1"].weight == (32, 16, 3, 3)
    assert layers["block1"].macs == 32 * 16 * 9 * 14 * 14
    # The exponential has no kernel for the blocked layout: the way out belongs to the convolution before.
    assert "ReorderOutput" in layers["block1"].kernels
    assert 0 < layers["block1"].conversion_s < layers["block1"].median_s
    assert layers["block0"].times_s.shape == timed["b"]["block0"].times_s.shape
    assert layers["block0"].times_s.shape[0] == 3


def test_no_event_of_layers_is_begun_after_the_time_cap(mlp: MakeMlp) -> None:
    layers = time_layers({"a": mlp(64, 32)}, protocol=replace(SHORT, events=50, cap_s=0.001))["a"]
    assert [len(layer.times_s) for layer in layers.values()] == [1] * len(layers)


def test_a_layer_of_four_times_the_work_takes_longer_than_its_neighbour(tmp_path: Path) -> None:
    timed = time_layers({"a": conv_net(tmp_path / "a.onnx", 16, 16, 64, 64)}, protocol=SHORT)["a"]
    assert timed["block2"].median_s > 2 * timed["block0"].median_s


def test_a_narrowed_layer_is_found_and_what_was_not_touched_is_not(tmp_path: Path) -> None:
    wide = conv_net(tmp_path / "a.onnx", 16, 64, 64, 64, size=20)
    narrow = conv_net(tmp_path / "b.onnx", 16, 64, 16, 64, size=20)
    protocol = Protocol(events=12, event_s=0.01, block_s=0.001, settle_s=0.0005)
    timed = time_layers({"baseline": wide, "candidate": narrow}, protocol=protocol)
    judged = {one.name: one for one in judge_layers(timed["baseline"], timed["candidate"])}
    assert judged["block1"].outcome == judged["block2"].outcome == "faster"
    assert judged["block1"].pruned
    assert not judged["block0"].pruned


def branching(path: Path) -> Path:
    """Multiplies by one weight or by another, by the toss of a coin, and then by a third."""
    info = helper.make_tensor_value_info
    branches = {}
    for side in ("then", "else"):
        weight = numpy_helper.from_array(np.ones((16, 16), np.float32), f"w_{side}")
        node = helper.make_node("MatMul", ["x", f"w_{side}"], [f"y_{side}"], name=f"{side}/MatMul")
        graph = helper.make_graph([node], side, [], [info(f"y_{side}", TensorProto.FLOAT, None)], [weight])
        branches[f"{side}_branch"] = graph
    nodes = [
        helper.make_node("RandomUniform", [], ["toss"], name="toss", shape=[1], low=-1.0, high=1.0),
        helper.make_node("Greater", ["toss", "zero"], ["heads"], name="heads"),
        helper.make_node("If", ["heads"], ["b"], name="if", **branches),
        helper.make_node("MatMul", ["b", "w"], ["m"], name="last/MatMul"),
        helper.make_node("Softmax", ["m"], ["y"], name="last/Softmax"),
    ]
    weights = [
        numpy_helper.from_array(np.zeros(1, np.float32), "zero"),
        numpy_helper.from_array(np.ones((16, 8), np.float32), "w"),
    ]
    ends = [info("x", TensorProto.FLOAT, [1, 16])], [info("y", TensorProto.FLOAT, [1, 8])]
    made = helper.make_model(
        helper.make_graph(nodes, "net", *ends, weights),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(made, str(path))
    return path


def test_a_branch_that_some_runs_do_not_take_is_left_out(tmp_path: Path) -> None:
    # One run a round, so that no round takes both branches.
    tossed = Protocol(events=4, event_s=0.001, block_s=0, settle_s=0, min_rounds=4, clock_share=0.9)
    layers = time_layers({"a": branching(tmp_path / "a.onnx")}, protocol=tossed)["a"]
    assert {"toss", "heads", "last"} <= set(layers)
    assert not {"then", "else"} & set(layers)


def test_two_nodes_of_one_module_are_two_layers_and_the_weighted_has_its_name(tmp_path: Path) -> None:
    layers = time_layers({"a": branching(tmp_path / "a.onnx")}, protocol=SHORT)["a"]
    assert (layers["last"].kind, layers["last"].weight) == ("MatMul", (16, 8))
    assert layers["last/Softmax"].kind == "Softmax"


def test_kernels_of_a_loops_body_add_up_within_a_run() -> None:
    body = {"cat": "Node", "name": "inner_kernel_time", "dur": 3, "args": {"op_name": "MatMul"}}
    end = {"cat": "Session", "name": "model_run", "dur": 20}
    runs = split_runs([body, {**body, "dur": 4}, {**body, "dur": 5}, end, body, end])
    assert [run["inner_kernel_time"]["dur"] for run in runs] == [12, 3]


def test_a_profile_without_layers_is_refused() -> None:
    with pytest.raises(MeasurementError, match="names no layers"):
        split_runs([{"cat": "Session", "name": "model_run", "dur": 5}])


def test_an_unnamed_graph_still_has_layers_by_its_tensors(mlp: MakeMlp) -> None:
    layers = time_layers({"a": mlp(64, 128, 10)}, protocol=SHORT)["a"]
    assert [layer.weight for layer in layers.values() if layer.weight] == [(64, 128), (128, 10)]
