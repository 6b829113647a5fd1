from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deadweight.targets.errors import MeasurementError
from deadweight.targets.layers import judge_layers
from deadweight.targets.measurement import Protocol
from deadweight.targets.onnx_nodes import Node, Nodes
from deadweight.targets.ort_layers import owners_of, split_runs, time_layers

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


def test_kernels_are_named_after_nodes_after_tensors_or_after_neither() -> None:
    graph = Nodes(
        (
            Node("conv/Conv", "Conv", ("x", "w"), ("c",)),
            Node("relu/Relu", "Relu", ("c",), ("r",)),
            Node("fc/Gemm", "Gemm", ("r", "v"), ("g",)),
        ),
        {"w": (8, 8, 3, 3), "v": (10, 8)},
    )
    kernels = [
        ("ReorderInput_kernel_time", "ReorderInput"),
        ("r_nchwc_kernel_time", "Conv"),
        ("ReorderOutput_token_4_kernel_time", "ReorderOutput"),
        ("r_quantize_kernel_time", "QuantizeLinear"),
        ("fused fc/Gemm_kernel_time", "FusedGemm"),
    ]
    found = owners_of(kernels, graph)
    assert [found[name][0].name for name, _ in kernels] == ["conv/Conv"] * 3 + ["fc/Gemm"] * 2
    assert [found[name][1] for name, _ in kernels] == [True, False, True, True, False]


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
