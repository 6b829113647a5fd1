from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from support.int8_files import calibrate, compare_files, equalize, noise_between, to_qdq
from support.onnx_files import numbers, op, write_network
from torch import Tensor, nn

from deadweight.export.onnx_graph.graph import Index
from deadweight.export.to_onnx import to_onnx

Nets = Callable[[str], Any]


class Uneven(nn.Module):
    """Depthwise between two convolutions, a Flatten, a linear layer; channels of very different size."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(8 * 4 * 4, 6)
        self.act = nn.LeakyReLU(0.1)
        with torch.no_grad():
            uneven = torch.logspace(-2, 1, 8)[:, None, None, None]
            self.first.weight *= uneven
            self.depthwise.weight /= uneven

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.first(image))
        x = self.act(self.grouped(torch.relu(self.depthwise(x))))
        out: Tensor = self.fc(self.pool(x).flatten(1))
        return out


@pytest.fixture
def uneven(tmp_path: Path) -> tuple[Path, list[dict[str, Tensor]]]:
    torch.manual_seed(0)
    batches = [{"image": torch.randn(16, 3, 8, 8)} for _ in range(2)]
    to_onnx(Uneven().eval(), {"image": batches[0]["image"][:2]}, tmp_path / "float.onnx")
    return tmp_path / "float.onnx", batches


def test_the_network_computes_what_it_did_and_neighbours_reach_equally_far(
    uneven: tuple[Path, list[dict[str, Tensor]]], tmp_path: Path
) -> None:
    path, batches = uneven
    pairs = equalize(path, tmp_path / "even.onnx")
    assert pairs == (
        "first/Conv -> depthwise/Conv",
        "depthwise/Conv -> grouped/Conv",
        "grouped/Conv -> fc/Gemm",
    )
    hop = compare_files(path, tmp_path / "even.onnx", batches, kind="float", name="equalized")
    assert hop.outputs["output"].largest > 0
    index = Index.of(onnx.load(tmp_path / "even.onnx").graph)
    values = {name: np.asarray(index.value(f"{name}.weight")) for name in ("first", "depthwise", "grouped")}
    reach = {name: np.abs(value).reshape(8, -1).max(axis=1) for name, value in values.items()}
    assert np.allclose(reach["first"], reach["depthwise"], rtol=0.02)
    by_input = np.abs(values["grouped"].reshape(2, 4, 4)).max(axis=1).reshape(-1)
    assert np.allclose(reach["depthwise"], by_input, rtol=0.02)


def test_int8_of_an_uneven_network_gains(
    uneven: tuple[Path, list[dict[str, Tensor]]], tmp_path: Path
) -> None:
    path, batches = uneven
    equalize(path, tmp_path / "even.onnx")
    noises = []
    for source in (path, tmp_path / "even.onnx"):
        to_qdq(source, calibrate(source, batches), tmp_path / "q.onnx", dialect="tensorrt")
        noises.append(noise_between(path, tmp_path / "q.onnx", batches))
    assert noises[1] < 0.7 * noises[0]


@pytest.mark.parametrize("name", ["depthwise", "joined", "attentive"])
def test_nothing_is_written_where_no_factor_can_pass(net: Nets, tmp_path: Path, name: str) -> None:
    # ReLU6 clips at a fixed height; skips, concats and norms have other readers and writers.
    assert equalize(net(name).path, tmp_path / "even.onnx") == ()
    assert not (tmp_path / "even.onnx").exists()


def test_a_residual_network_is_equalized_within_its_blocks_only(net: Nets, tmp_path: Path) -> None:
    made = net("residual")
    pairs = equalize(made.path, tmp_path / "even.onnx")
    assert pairs == ("same.conv1/Conv -> same.conv2/Conv", "wider.conv1/Conv -> wider.conv2/Conv")
    compare_files(made.path, tmp_path / "even.onnx", made.batches, kind="float", name="equalized")


def test_a_dead_channel_stays_dead(net: Nets, tmp_path: Path) -> None:
    model = onnx.load(net("mlp").path)
    (tensor,) = [one for one in model.graph.initializer if one.name == "fc1.weight"]
    weight = numpy_helper.to_array(tensor).copy()
    weight[3] = 0.0
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    onnx.save(model, tmp_path / "dead.onnx")
    assert len(equalize(tmp_path / "dead.onnx", tmp_path / "even.onnx")) == 2
    compare_files(
        tmp_path / "dead.onnx", tmp_path / "even.onnx", net("mlp").batches, kind="float", name="equalized"
    )


def test_a_tensor_that_a_branch_reads_is_not_scaled(tmp_path: Path) -> None:
    def branch(operator: str) -> onnx.GraphProto:
        made = helper.make_tensor_value_info(operator, onnx.TensorProto.FLOAT, None)
        return helper.make_graph([op(operator, ["a"], [operator])], operator, [], [made])

    nodes = [
        op("Gemm", ["x", "w"], ["a"], name="first"),
        op("Gemm", ["a", "v"], ["b"], name="second"),
        op("ReduceMax", ["x"], ["most"], keepdims=0),
        op("Greater", ["most", "zero"], ["asked"]),
        op("If", ["asked"], ["c"], then_branch=branch("Neg"), else_branch=branch("Abs")),
        op("Add", ["b", "c"], ["y"]),
    ]
    constants = {"w": numbers(24, 24), "v": numbers(24, 24, seed=1), "zero": np.float32(0)}
    path = write_network(tmp_path / "m.onnx", nodes, constants, ["batch", 24])
    assert equalize(path, tmp_path / "even.onnx") == ()
