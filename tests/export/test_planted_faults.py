"""Ten faults, each planted at one hop of the way from the module to the INT8 file, each found at that hop.

A hop before the fault passes; the hop with it fails, and names the layer or the tensor that was broken.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support.int8_files import compare_files, compare_module, to_qdq

from deadweight.export.to_onnx import to_onnx
from deadweight.targets.errors import ModelError

Nets = Callable[[str], Any]
HOPS = ("torch -> onnx", "simplified", "int8")


@dataclass(frozen=True)
class Fault:
    """What is broken, at which hop, and what the message names; `plant` changes the file of that hop."""

    name: str
    hop: Literal["torch -> onnx", "simplified", "int8"]
    plant: Callable[[onnx.ModelProto], None]
    named: str


def constant(name: str, edit: Callable[[Any], Any]) -> Callable[[onnx.ModelProto], None]:
    def plant(model: onnx.ModelProto) -> None:
        (tensor,) = [one for one in model.graph.initializer if one.name == name]
        value = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.array(edit(value), value.dtype, order="C"), name))

    return plant


def attribute(node_name: str, name: str, value: Any) -> Callable[[onnx.ModelProto], None]:
    def plant(model: onnx.ModelProto) -> None:
        (node,) = [one for one in model.graph.node if one.name == node_name]
        kept = [one for one in node.attribute if one.name != name]
        kept = [onnx.AttributeProto.FromString(one.SerializeToString()) for one in kept]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])

    return plant


def other_scale(model: onnx.ModelProto) -> None:
    """The dequantization of one tensor reads the scale of another."""
    (node,) = [one for one in model.graph.node if one.name == "wider/Relu_dequantize"]
    node.input[1] = "image_scale"


def two_epsilons(weight: Any) -> Any:
    # What a batch norm folded with an epsilon of 1e-3 instead of 1e-5 makes of a variance of 0.5 to 1.5.
    variance = np.linspace(0.5, 1.5, len(weight)).reshape(-1, 1, 1, 1)
    return weight * np.sqrt((variance + 1e-5) / (variance + 1e-3))


FAULTS = (
    Fault(
        "a transposed weight",
        "torch -> onnx",
        constant("same.conv2.weight", lambda w: np.swapaxes(w, 0, 1)),
        "same.conv2/Conv",
    ),
    Fault(
        "a batch norm's epsilon",
        "torch -> onnx",
        constant("wider.conv1.weight", two_epsilons),
        "wider.conv1/Conv",
    ),
    Fault(
        "padding on one side",
        "torch -> onnx",
        attribute("same.conv1/Conv", "pads", [2, 1, 0, 1]),
        "same.conv1/Conv",
    ),
    Fault("a flipped kernel", "torch -> onnx", constant("stem.weight", lambda w: w[..., ::-1]), "stem/Conv"),
    Fault(
        "a channel off by one",
        "simplified",
        constant("wider.shortcut.weight", lambda w: np.roll(w, 1, axis=0)),
        "wider.shortcut/Conv",
    ),
    Fault(
        "a bias that was lost",
        "simplified",
        constant("fc.bias", lambda b: np.zeros_like(b)),
        "fc/Gemm",
    ),
    Fault(
        "a weight in half precision",
        "simplified",
        constant("wider.conv2.weight", lambda w: w.astype(np.float16)),
        "wider.conv2/Conv",
    ),
    Fault(
        "a weight's scales off by one channel",
        "int8",
        constant("same.conv1.weight_scale", lambda s: np.roll(s, 1)),
        "same.conv1",
    ),
    Fault("an activation's scale too small", "int8", constant("image_scale", lambda s: s / 4), "'image'"),
    Fault("the scale of another tensor", "int8", other_scale, "wider/Relu"),
)


def test_there_are_ten_and_every_hop_has_some() -> None:
    assert len({fault.name for fault in FAULTS}) == 10
    assert {fault.hop for fault in FAULTS} == set(HOPS)


@pytest.fixture(scope="module")
def chain(net: Nets, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Path]]:
    """The network, and the honest file of each hop."""
    made, folder = net("residual"), tmp_path_factory.mktemp("chain")
    to_onnx(made.module, made.example, folder / "plain.onnx", simplify=False)
    to_qdq(made.path, made.ranges, folder / "q.onnx")
    return made, dict(zip(HOPS, (folder / "plain.onnx", made.path, folder / "q.onnx"), strict=True))


def pass_hops(made: Any, files: dict[str, Path], upto: str) -> None:
    """Compares hop after hop, up to one; what is broken raises."""
    compare_module(made.module, files["torch -> onnx"], made.batches, name="torch -> onnx")
    if upto != "torch -> onnx":
        compare_files(
            files["torch -> onnx"], files["simplified"], made.batches, kind="float", name="simplified"
        )
    if upto == "int8":
        compare_files(files["simplified"], files["int8"], made.batches, kind="lossy", name="int8")


def test_the_honest_chain_passes(chain: tuple[Any, dict[str, Path]]) -> None:
    pass_hops(*chain, "int8")


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name.replace(" ", "-") for fault in FAULTS])
def test_a_planted_fault_is_found_at_its_hop(
    chain: tuple[Any, dict[str, Path]], tmp_path: Path, fault: Fault
) -> None:
    made, honest = chain
    model = copy.deepcopy(onnx.load(honest[fault.hop]))
    fault.plant(model)
    onnx.save(model, tmp_path / "broken.onnx")
    files = {**honest, fault.hop: tmp_path / "broken.onnx"}
    with pytest.raises(ModelError) as caught:
        pass_hops(made, files, fault.hop)
    assert f"The hop {fault.hop} " in caught.value.what
    assert fault.named in caught.value.what
