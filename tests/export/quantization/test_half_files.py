from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from support.onnx_files import save_mlp

from deadweight.export.quantization.fp16 import write_half
from deadweight.targets.onnx_file import read_nodes


def test_equal_files_are_equal_files_in_fp16(tmp_path: Path) -> None:
    model = save_mlp(tmp_path / "m.onnx", 6, 4)
    for name in ("a.onnx", "b.onnx"):
        assert write_half(model, tmp_path / "deeper" / name) == {}
    first, second = ((tmp_path / "deeper" / name).read_bytes() for name in ("a.onnx", "b.onnx"))
    assert first == second  # so a board keeps one engine for both
    assert read_nodes(tmp_path / "deeper" / "a.onnx").half


def test_operators_that_stay_in_fp32_are_named_with_the_reason(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="d"),
        helper.make_node("OperatorOfOurs", ["d"], ["y"], name="o", domain="ours"),
    ]
    stored = [numpy_helper.from_array(np.array(0.1, np.float32), "s")]
    stored += [numpy_helper.from_array(np.array(0, np.int8), "z")]
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [2])], [value("y", TensorProto.FLOAT, [2])], stored
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("ours", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(tmp_path / "m.onnx"))
    left = write_half(tmp_path / "m.onnx", tmp_path / "half.onnx")
    assert left == {"o": "it is not an ONNX operator"}
