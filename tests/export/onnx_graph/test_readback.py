from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.int8_files import adaround, compare_files, correct_biases, restore, to_qdq

from deadweight.export.onnx_graph.graph import Index, load
from deadweight.export.onnx_graph.readback import products

Nets = Callable[[str], Any]


@pytest.mark.parametrize("dialect", ["tensorrt", "x86"])
def test_every_product_in_int8_is_read_back_within_half_a_step(
    net: Nets, tmp_path: Path, dialect: Any
) -> None:
    made = net("residual")
    written = to_qdq(made.path, made.ranges, tmp_path / "q.onnx", dialect=dialect, skip=["stem/Conv"])
    found = list(products(load(made.path), load(tmp_path / "q.onnx")))
    assert [one.node.name for one in found] == list(written.in_int8)
    assert "stem/Conv" not in written.in_int8
    for one in found:
        assert one.rounded.shape == one.weight.shape
        assert (
            np.abs(one.rounded - one.weight) <= 0.501 * np.broadcast_to(one.steps, one.weight.shape)
        ).all()
        assert one.zero.dtype == (np.int8 if dialect == "tensorrt" else np.uint8)


def test_an_operator_that_stays_in_float_gets_its_own_constants_back(net: Nets, tmp_path: Path) -> None:
    made = net("residual")
    to_qdq(made.path, made.ranges, tmp_path / "q.onnx")
    adaround(made.path, tmp_path / "q.onnx", made.batches, tmp_path / "a.onnx", iterations=20)
    correct_biases(tmp_path / "a.onnx", tmp_path / "q.onnx", made.batches, tmp_path / "b.onnx")
    layers = [node.name for node in load(made.path).graph.node if node.op_type in ("Conv", "Gemm")]
    restore(tmp_path / "b.onnx", made.path, layers[:3], tmp_path / "some.onnx")
    graphs = [Index.of(load(path).graph) for path in (made.path, tmp_path / "b.onnx", tmp_path / "some.onnx")]
    nodes = [{node.name: node for node in graph.producer.values()} for graph in graphs]
    for place, name in enumerate(layers):
        expected = 0 if place < 3 else 1
        for at in (1, 2):
            value = graphs[2].value(nodes[2][name].input[at])
            assert np.array_equal(
                np.asarray(value), np.asarray(graphs[expected].value(nodes[expected][name].input[at]))
            )
    restore(tmp_path / "b.onnx", made.path, layers, tmp_path / "all.onnx")
    compare_files(made.path, tmp_path / "all.onnx", made.batches, kind="exact", name="restored")
