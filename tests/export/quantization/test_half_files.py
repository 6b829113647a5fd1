from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from support.onnx_files import save_mlp

from deadweight.export.quantization.half_files import write_half
from deadweight.targets.errors import ModelError
from deadweight.targets.onnx_file import read_nodes


def test_equal_files_are_equal_files_in_fp16(tmp_path: Path) -> None:
    model = save_mlp(tmp_path / "m.onnx", 6, 4)
    for name in ("a.onnx", "b.onnx"):
        assert write_half(model, tmp_path / "deeper" / name) == {}
    first, second = ((tmp_path / "deeper" / name).read_bytes() for name in ("a.onnx", "b.onnx"))
    assert first == second  # so a board keeps one engine for both
    assert read_nodes(tmp_path / "deeper" / "a.onnx").half


def test_what_cannot_be_cast_may_stay_in_fp32(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    body = [
        helper.make_graph(
            [helper.make_node(kind, ["x"], [kind], name=kind)],
            kind,
            [],
            [value(kind, TensorProto.FLOAT, [2])],
        )
        for kind in ("Relu", "Neg")
    ]
    branch = helper.make_node("If", ["c"], ["y"], name="if", then_branch=body[0], else_branch=body[1])
    inputs = [value("x", TensorProto.FLOAT, [2]), value("c", TensorProto.BOOL, [])]
    graph = helper.make_graph([branch], "g", inputs, [value("y", TensorProto.FLOAT, [2])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(ModelError, match="branches or loops") as caught:
        write_half(tmp_path / "m.onnx", tmp_path / "half.onnx")
    assert "--precision fp32" in caught.value.cure
    assert not (tmp_path / "half.onnx").exists()
