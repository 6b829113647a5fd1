from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from support.nets import Concatenated, Flattened, ResidualCnn
from support.onnx_files import numbers, op, write_network
from torch import nn

from deadweight.export.onnx_graph.channels import channels_of
from deadweight.export.onnx_graph.graph import OnnxModel, load, save
from deadweight.export.onnx_graph.run import runner
from deadweight.export.to_onnx import to_onnx
from deadweight.pipeline.pruning.trace import trace
from deadweight.targets.errors import ModelError

from .test_resize import Attention

NETS = {
    "residual": (ResidualCnn, {"image": torch.randn(2, 3, 8, 8)}),
    "concatenated": (Concatenated, {"image": torch.randn(2, 2, 6, 6)}),
    "flattened": (Flattened, {"image": torch.randn(2, 1, 8, 8)}),
    "attention": (Attention, {"tokens": torch.randn(2, 5, 16)}),
}


def exported(build: type[nn.Module], example: dict[str, torch.Tensor], folder: Path) -> OnnxModel:
    torch.manual_seed(0)
    to_onnx(build().eval(), example, folder / "model.onnx")
    return load(folder / "model.onnx")


@pytest.mark.parametrize("name", NETS)
def test_a_file_alone_shows_its_channels_and_runs_with_fewer_and_with_more(name: str, tmp_path: Path) -> None:
    build, example = NETS[name]
    found, resizable = channels_of(exported(build, example, tmp_path))
    rng = np.random.default_rng(0)
    feeds = {key: value.numpy() for key, value in example.items()}
    shape = next(iter(runner(resizable.at({one.name: one.size for one in found}))(feeds).values())).shape
    for most in (1, 1, 2):
        widths = {one.name: int(rng.integers(1, most * one.size + 1)) for one in found}
        made = resizable.at(widths)
        save(made, tmp_path / "resized.onnx")
        assert next(iter(runner(made)(feeds).values())).shape == shape
        sizes = {size for tensor in made.graph.initializer for size in tensor.dims}
        assert all(any(size % width == 0 for size in sizes) for width in widths.values())


@pytest.mark.parametrize("name", ["residual", "concatenated", "flattened"])
def test_they_are_the_groups_that_the_trace_of_the_module_finds(name: str, tmp_path: Path) -> None:
    build, example = NETS[name]
    found, _ = channels_of(exported(build, example, tmp_path))
    torch.manual_seed(0)
    groups = trace(build().eval(), example)
    assert sorted(one.size for one in found) == sorted(group.size for group in groups)


def test_an_operator_without_a_rule_keeps_the_channels_that_it_reads(tmp_path: Path) -> None:
    nodes = [
        op("MatMul", ["x", "w"], ["h"], name="first"),
        op("CumSum", ["h", "axis"], ["c"]),
        op("MatMul", ["c", "v"], ["k"], name="second"),
        op("MatMul", ["k", "u"], ["y"], name="third"),
    ]
    weights = {"w": numbers(4, 8), "axis": np.array(1), "v": numbers(8, 6), "u": numbers(6, 3)}
    path = write_network(tmp_path / "m.onnx", nodes, weights, [1, 4])
    found, _ = channels_of(load(path))
    assert [(one.name, one.size) for one in found] == [("second", 6)]


def test_a_file_of_which_no_width_can_change_is_refused_with_a_cure(tmp_path: Path) -> None:
    path = write_network(tmp_path / "m.onnx", [op("MatMul", ["x", "w"], ["y"])], {"w": numbers(4, 8)}, [1, 4])
    with pytest.raises(ModelError, match="has a width that could change") as caught:
        channels_of(load(path))
    assert "workload" in str(caught.value)


def test_weights_that_are_stored_in_int8_follow_with_their_scales(tmp_path: Path) -> None:
    nodes = [
        op("DequantizeLinear", ["w8", "s", "z"], ["w"], axis=1),
        op("MatMul", ["x", "w"], ["h"], name="first"),
        op("Relu", ["h"], ["r"]),
        op("MatMul", ["r", "v"], ["y"], name="second"),
    ]
    weights = {
        "w8": np.ones((4, 8), np.int8),
        "s": np.full(8, 0.1, np.float32),
        "z": np.zeros(8, np.int8),
        "v": numbers(8, 3),
    }
    path = write_network(tmp_path / "m.onnx", nodes, weights, [1, 4])
    found, resizable = channels_of(load(path))
    made = resizable.at({"first": 5})
    dims = {tensor.name: list(tensor.dims) for tensor in made.graph.initializer}
    assert [one.size for one in found] == [8]
    assert dims == {"w8": [4, 5], "s": [5], "z": [5], "v": [5, 3]}
    onnx.checker.check_model(made, full_check=True)


def test_layers_whose_equal_biases_an_exporter_shares_by_identity_change_alone(tmp_path: Path) -> None:
    nodes = [
        op("Identity", ["b"], ["b2"]),
        op("Gemm", ["x", "w", "b"], ["h"], name="first"),
        op("Gemm", ["h", "v", "b2"], ["k"], name="second"),
        op("Gemm", ["k", "u"], ["y"], name="third"),
    ]
    weights = {"b": numbers(8), "w": numbers(4, 8), "v": numbers(8, 8), "u": numbers(8, 3)}
    path = write_network(tmp_path / "m.onnx", nodes, weights, [1, 4])
    found, resizable = channels_of(load(path))
    assert [one.name for one in found] == ["first", "second"]
    made = resizable.at({"first": 5, "second": 6})
    dims = {tensor.name: list(tensor.dims) for tensor in made.graph.initializer}
    assert dims == {"b": [5], "b2": [6], "w": [4, 5], "v": [5, 6], "u": [6, 3]}
    onnx.checker.check_model(made, full_check=True)


@pytest.mark.parametrize("layer", ["Gemm", "Conv"])
def test_a_layer_whose_bias_is_computed_keeps_its_channels(layer: str, tmp_path: Path) -> None:
    ones = [1, 1] if layer == "Conv" else []
    nodes = [
        op("CumSum", ["b", "axis"], ["c"]),
        op(layer, ["x", "w", "c"], ["h"], name="first"),
        op(layer, ["h", "v"], ["k"], name="second"),
        op(layer, ["k", "u"], ["y"], name="third"),
    ]
    sizes = {"w": (4, 8), "v": (8, 6), "u": (6, 3)}
    turned = {name: size[::-1] if layer == "Conv" else size for name, size in sizes.items()}
    weights = {name: numbers(*size, *ones) for name, size in turned.items()}
    weights |= {"b": numbers(8), "axis": np.array(0)}
    path = write_network(tmp_path / "m.onnx", nodes, weights, [1, 4, *ones])
    found, _ = channels_of(load(path))
    assert [(one.name, one.size) for one in found] == [("second", 6)]
