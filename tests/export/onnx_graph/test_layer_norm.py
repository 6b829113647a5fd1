from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from support.int8_files import compare_module
from torch import Tensor, nn

from deadweight.export.lint.check import lint
from deadweight.export.onnx_graph.canonical import spell_out_layer_norms
from deadweight.export.onnx_graph.run import runner
from deadweight.export.to_onnx import to_onnx

SPELLED = ["ReduceMean", "Sub", "Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Add"]


class Normed(nn.Module):
    """Norms as ViT, Swin and ConvNeXt have them: of tokens, of whole maps, of channels-last maps."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.LayerNorm(8)
        self.whole = nn.LayerNorm([6, 8], eps=1e-3, bias=False)
        self.plain = nn.LayerNorm(8, elementwise_affine=False)
        for norm in (self.tokens, self.whole):
            nn.init.uniform_(norm.weight, 0.5, 2.0)
        nn.init.uniform_(self.tokens.bias, -1.0, 1.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.tokens(x), self.whole(x), self.plain(x.transpose(1, 2).reshape(-1, 6, 8))


def exported(module: nn.Module, example: dict[str, Tensor], path: Path, **asked: Any) -> list[str]:
    """Writes a module, and gives the operators of the file."""
    torch.manual_seed(0)
    to_onnx(module.eval(), example, path, **asked)
    return [node.op_type for node in onnx.load(path).graph.node]


def refused(path: Path, tensorrt: str) -> set[int]:
    """The rules by which a TensorRT refuses a file."""
    return {found.rule for found in lint(path, tensorrt=tensorrt).findings if found.severity == "error"}


@pytest.mark.parametrize("opset", [17, 18, 20])
def test_spelled_out_it_computes_what_the_module_does(tmp_path: Path, opset: int) -> None:
    module, x = Normed().eval(), torch.randn(2, 6, 8) * 30 + 100
    path = tmp_path / "normed.onnx"
    assert "LayerNormalization" not in exported(
        module, {"x": x}, path, opset=opset, spell_out_layer_norm=True
    )
    hop = compare_module(module, path, [{"x": x}, {"x": torch.randn(5, 6, 8)}])
    assert max(found.relative_largest for found in hop.outputs.values()) < 1e-5


def test_tensorrt_8_5_takes_a_transformer_only_where_its_layer_norms_are_spelled_out(
    net: Callable[[str], Any], tmp_path: Path
) -> None:
    made = net("attentive")
    assert refused(made.path, "8.5") == {103}
    assert not refused(made.path, "8.6")
    path = tmp_path / "spelled.onnx"
    to_onnx(made.module, made.example, path, spell_out_layer_norm=True)
    for tensorrt in ("8.5", "8.6", "10.0", "10.1"):
        assert not refused(path, tensorrt)
    compare_module(made.module, path, made.batches)


def test_the_operators_stand_in_the_order_that_tensorrt_fuses(tmp_path: Path) -> None:
    norm = nn.LayerNorm(8)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    module, example = nn.Sequential(norm), {"input": torch.randn(2, 6, 8)}
    assert exported(module, example, tmp_path / "a.onnx", spell_out_layer_norm=True) == SPELLED
    assert exported(module, example, tmp_path / "b.onnx") == ["LayerNormalization"]


@pytest.mark.parametrize(
    "module", [nn.GroupNorm(2, 4), nn.InstanceNorm1d(4), nn.InstanceNorm1d(4, affine=True), nn.RMSNorm(8)]
)
def test_tensorrt_8_5_takes_the_other_norms_as_they_are(tmp_path: Path, module: nn.Module) -> None:
    path = tmp_path / "norm.onnx"
    exported(nn.Sequential(module), {"input": torch.randn(2, 4, 8)}, path)
    assert not refused(path, "8.5")


@pytest.mark.parametrize("axis", [1, 2, -1, -2])
@pytest.mark.parametrize("shifted", [True, False])
def test_any_axis_with_and_without_a_shift_means_the_same(axis: int, shifted: bool) -> None:
    shape = [6, 8][(axis - 1 if axis > 0 else axis) :]
    random = np.random.default_rng(0)
    constants = [random.normal(size=shape).astype(np.float32) for _ in range(1 + shifted)]
    names = ["scale", "shift"][: 1 + shifted]
    node = helper.make_node("LayerNormalization", ["x", *names], ["y"], name="norm", axis=axis, epsilon=1e-3)
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 6, 8]) for name in "xy"]
    stored = [numpy_helper.from_array(value, name) for name, value in zip(names, constants, strict=True)]
    graph = helper.make_graph([node], "network", values[:1], values[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    x = random.normal(3.0, 5.0, (4, 6, 8)).astype(np.float32)
    before = runner(model)({"x": x})["y"]
    spell_out_layer_norms(model)
    assert "LayerNormalization" not in [node.op_type for node in model.graph.node]
    np.testing.assert_allclose(runner(model, optimize=False)({"x": x})["y"], before, rtol=0, atol=1e-5)


def test_half_precision_is_left_to_the_operator_that_sums_in_float() -> None:
    node = helper.make_node("LayerNormalization", ["x", "scale"], ["y"], name="norm")
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, ["n", 8]) for name in "xy"]
    stored = [numpy_helper.from_array(np.ones(8, np.float16), "scale")]
    model = helper.make_model(helper.make_graph([node], "network", values[:1], values[1:], stored))
    spell_out_layer_norms(model)
    assert [node.op_type for node in model.graph.node] == ["LayerNormalization"]
