"""Where the weights of a file stand in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deadweight.export.coding.cutting import tensors_of
from deadweight.targets.errors import ModelError


def saved(path: Path, **weights: np.ndarray) -> bytes:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    held = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:], held)
    onnx.save(helper.make_model(graph), str(path))
    return path.read_bytes()


def test_the_ranges_hold_the_weights_in_the_files_order(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    weights: dict[str, Any] = {
        "a": generator.integers(-128, 128, (20, 30)).astype(np.int8),
        "tiny": np.zeros(3, np.float32),
        "b": generator.standard_normal((40, 5)).astype(np.float32),
        "c": generator.standard_normal((64, 8)).astype(np.float16),
        "a again": generator.integers(-128, 128, (600,)).astype(np.int8),
    }
    weights["a again"] = weights["a"].ravel().copy()
    data = saved(tmp_path / "m.onnx", **weights)
    found = tensors_of(data, tmp_path / "m.onnx")
    assert [each.name for each in found] == ["a", "b", "c", "a again"]
    assert [(each.width, each.shape[0]) for each in found] == [(1, 20), (4, 40), (2, 64), (1, 600)]
    end = 0
    for each in found:
        assert data[each.start : each.end] == weights[each.name].tobytes()
        assert each.start >= end
        end = each.end


def test_what_is_no_onnx_file_is_reported() -> None:
    with pytest.raises(ModelError, match=r"new\.onnx is a truncated or damaged ONNX file"):
        tensors_of(b"\xff\xff broken", Path("new.onnx"))
