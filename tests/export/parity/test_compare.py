from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from support.int8_files import calibrate, compare_files, compare_module, noise_between, to_qdq
from support.onnx_files import numbers, op, write_network
from torch import Tensor, nn

from deadweight.export.to_onnx import to_onnx
from deadweight.pipeline.stages.export import hop_sentence
from deadweight.targets.errors import ModelError, WorkloadError
from deadweight.targets.plain import plain

Nets = Callable[[str], Any]
ALL = ["mlp", "residual", "depthwise", "joined", "attentive"]


@pytest.mark.parametrize("name", ALL)
def test_an_honest_chain_holds_from_the_module_to_int8(net: Nets, tmp_path: Path, name: str) -> None:
    made = net(name)
    to_onnx(made.module, made.example, tmp_path / "plain.onnx", simplify=False)
    hops = [
        compare_module(made.module, tmp_path / "plain.onnx", made.batches),
        compare_files(tmp_path / "plain.onnx", made.path, made.batches, kind="float", name="simplified"),
        compare_files(made.path, made.path, made.batches, kind="exact", name="copy"),
    ]
    for dialect in ("tensorrt", "x86"):
        to_qdq(made.path, made.ranges, tmp_path / "q.onnx", dialect=dialect)
        hops.append(compare_files(made.path, tmp_path / "q.onnx", made.batches, kind="lossy", name=dialect))
    for hop in hops:
        assert hop.samples == 27
        assert set(hop.outputs) == {o.name for o in onnx.load(made.path).graph.output}
        json.dumps(plain(hop))
    assert all(difference.largest == 0 for difference in hops[2].outputs.values())
    assert all(0 < difference.noise < 0.05 for hop in hops[3:] for difference in hop.outputs.values())
    assert hops[0].flips == hops[1].flips == hops[2].flips == ()


def test_differences_and_flips_are_what_they_say(net: Nets, tmp_path: Path) -> None:
    made = net("mlp")
    shift = np.zeros(10, np.float32)
    shift[4] = 0.1
    path = change(made.path, tmp_path, "fc3.bias", lambda bias: bias + shift)
    x = torch.cat([batch["x"] for batch in made.batches])
    before = made.module(x).detach().numpy()
    after = before + shift
    hop = compare_files(made.path, path, made.batches, kind="lossy", name="by hand")
    found = hop.outputs["output"]
    assert found.largest == pytest.approx(0.1, rel=1e-4)
    assert found.mean == pytest.approx(0.01, rel=1e-4)
    assert found.relative_largest == pytest.approx(0.1 / np.abs(before).max(), rel=1e-4)
    assert found.relative_mean == pytest.approx(0.01 / np.abs(before).mean(), rel=1e-4)
    noises = 0.1 / 10**0.5 / np.sqrt((before**2).mean(axis=1))
    assert found.noise == pytest.approx(np.median(noises), rel=1e-4)
    assert found.worst == pytest.approx(noises.max(), rel=1e-4)
    assert found.worst_sample == noises.argmax()
    flips = np.flatnonzero(before.argmax(axis=1) != after.argmax(axis=1))
    assert len(flips) > 0
    assert hop.flips == tuple(flips)


def change(path: Path, directory: Path, tensor_name: str, edit: Callable[[Any], Any]) -> Path:
    """A copy of the file with one constant edited."""
    model = onnx.load(path)
    [tensor] = [tensor for tensor in model.graph.initializer if tensor.name == tensor_name]
    value = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.array(edit(value), value.dtype, order="C"), tensor.name))
    onnx.save(model, directory / "changed.onnx")
    return directory / "changed.onnx"


def swapped(weight: Any) -> Any:
    return np.swapaxes(weight, 0, 1)


def rolled(weight: Any) -> Any:
    return np.roll(weight, 1, axis=0)


FLOAT_FAULTS = [
    ("same.conv2.weight", swapped, "same.conv2/Conv"),
    ("same.conv1.weight", rolled, "same.conv1/Conv"),
    ("wider.conv2.weight", lambda weight: weight[..., ::-1], "wider.conv2/Conv"),
    ("wider.shortcut.bias", rolled, "wider.shortcut/Conv"),
    ("stem.weight", lambda weight: weight * 1.001, "stem/Conv"),
    ("fc.bias", lambda bias: bias + 1e-3, "fc/Gemm"),
]


@pytest.mark.parametrize(("tensor", "edit", "layer"), FLOAT_FAULTS, ids=[fault[0] for fault in FLOAT_FAULTS])
def test_a_fault_in_the_export_is_found_at_its_layer(
    net: Nets, tmp_path: Path, tensor: str, edit: Callable[[Any], Any], layer: str
) -> None:
    made = net("residual")
    path = change(made.path, tmp_path, tensor, edit)
    with pytest.raises(ModelError, match=rf"torch -> onnx .* by \w+ '{layer}'"):
        compare_module(made.module, path, made.batches)
    with pytest.raises(ModelError, match=rf"simplified .* by \w+ '{layer}'"):
        compare_files(made.path, path, made.batches, kind="float", name="simplified")


def test_another_epsilon_in_a_batch_norm_is_found(net: Nets) -> None:
    made = net("residual")
    module = copy.deepcopy(made.module)
    module.wider.bn1.eps = 1e-3
    with pytest.raises(ModelError, match=r"by Conv 'wider\.conv1/Conv' from module 'wider\.conv1'"):
        compare_module(module, made.path, made.batches)


class Difference(nn.Module):
    """The difference of two products that are nearly equal: it amplifies their roundings a thousandfold."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(2048, 16), nn.Linear(2048, 16)
        with torch.no_grad():
            self.other.weight.copy_(self.one.weight * 1.001)
            self.other.bias.copy_(self.one.bias + 1e-4)

    def forward(self, image: Tensor) -> Tensor:
        difference: Tensor = self.one(image) - self.other(image)
        return difference


def test_the_roundings_of_a_network_that_amplifies_them_are_no_fault_and_a_fault_in_it_is_found(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    module, batch = Difference().eval(), {"image": torch.randn(8, 2048)}
    to_onnx(module, batch, tmp_path / "model.onnx")
    hop = compare_module(module, tmp_path / "model.onnx", [batch])
    assert hop.outputs["output"].beyond("float")
    path = change(
        tmp_path / "model.onnx", tmp_path, "other.bias", lambda bias: bias + 1e-2 * (np.arange(16) == 3)
    )
    with pytest.raises(ModelError, match="beyond its class"):
        compare_module(module, path, [batch])


QUANTIZED_FAULTS = [
    ("same.conv2.weight_int8", swapped, "same.conv2"),
    ("wider.conv1.weight_int8", rolled, "wider.conv1"),
    ("wider.conv2.weight_scale", rolled, "wider.conv2"),
    ("fc.weight_scale", lambda scale: scale * 1.5, "fc.weight"),
    ("image_scale", lambda scale: scale / 4, "'image' is clipped"),
    ("same/Relu_scale", lambda scale: scale * 300, "'same/Relu' is rounded to zero"),
]


@pytest.mark.parametrize("dialect", ["tensorrt", "x86"])
@pytest.mark.parametrize(
    ("tensor", "edit", "said"), QUANTIZED_FAULTS, ids=[fault[0] for fault in QUANTIZED_FAULTS]
)
def test_a_fault_in_the_rounding_is_found_at_its_tensor(
    net: Nets, tmp_path: Path, tensor: str, edit: Callable[[Any], Any], said: str, dialect: Any
) -> None:
    made = net("residual")
    to_qdq(made.path, made.ranges, tmp_path / "q.onnx", dialect=dialect)
    path = change(tmp_path / "q.onnx", tmp_path, tensor, edit)
    with pytest.raises(ModelError, match=said):
        compare_files(made.path, path, made.batches, kind="lossy", name="int8")


def test_a_network_that_returns_nan_is_told_apart_from_a_broken_hop(net: Nets, tmp_path: Path) -> None:
    made = net("mlp")
    module = copy.deepcopy(made.module)
    with torch.no_grad():
        module.fc3.bias[0] = torch.nan
    path = change(made.path, tmp_path, "fc3.bias", lambda bias: bias * np.nan)
    with pytest.raises(ModelError, match=r"Before the hop .* has NaN"):
        compare_module(module, path, made.batches)
    with pytest.raises(ModelError, match="beyond its class"):
        compare_module(made.module, path, made.batches)


def test_a_module_in_training_mode_is_compared_in_eval_mode_and_left_as_it_was(net: Nets) -> None:
    made = net("residual")
    module = copy.deepcopy(made.module).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    compare_module(module, made.path, made.batches)
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_no_samples_are_an_error(net: Nets) -> None:
    made = net("mlp")
    with pytest.raises(WorkloadError, match="no samples"):
        compare_module(made.module, made.path, [])
    with pytest.raises(WorkloadError, match="no samples"):
        compare_files(made.path, made.path, [], kind="lossy", name="none")


def test_files_with_other_outputs_cannot_be_compared(net: Nets, tmp_path: Path) -> None:
    made = net("mlp")
    model = onnx.load(made.path)
    model.graph.node[-1].output[0] = model.graph.output[0].name = "scores"
    onnx.save(model, tmp_path / "renamed.onnx")
    with pytest.raises(ModelError, match="'output' is missing"):
        compare_files(made.path, tmp_path / "renamed.onnx", made.batches, kind="float", name="renamed")


def test_labels_and_masks_are_compared_and_not_judged_by_their_noise(tmp_path: Path) -> None:
    nodes = [
        op("MatMul", ["x", "w"], ["y"]),
        op("ArgMax", ["y"], ["label"], axis=1, keepdims=0),
        op("Greater", ["y", "zero"], ["mask"]),
    ]
    kinds = {"y": (TensorProto.FLOAT, 2), "label": (TensorProto.INT64, 1), "mask": (TensorProto.BOOL, 2)}
    outputs = [helper.make_tensor_value_info(n, kind, [None] * axes) for n, (kind, axes) in kinds.items()]
    # All classes but 0 and 999 are far behind; those two differ by less than a step.
    weight = np.full((24, 1000), -1.0, np.float32)
    weight[:, [0, 999]] = np.add(numbers(24, 1), numbers(24, 2, size=1e-3, seed=1))
    path = write_network(
        tmp_path / "m.onnx", nodes, {"w": weight, "zero": np.float32(0)}, [None, 24], outputs=outputs
    )
    data = [{"x": np.abs(numbers(16, 24))}]
    to_qdq(path, calibrate(path, data), tmp_path / "q.onnx")
    hop = compare_files(path, tmp_path / "q.onnx", data, kind="lossy", name="int8")
    assert 0 < hop.agree["label"] < 1
    assert hop.decided == {"label": "ArgMax"}
    assert hop.outputs["y"].noise < 0.1
    assert hop.outputs["mask"].largest <= 1.0


def masked(path: Path, *, mask: Any, outputs: int = 16) -> Path:
    nodes = [op("MatMul", ["x", "w"], ["h"], name="product"), op("Add", ["h", "mask"], ["y"])]
    return write_network(
        path, nodes, {"w": numbers(24, outputs), "mask": np.array(mask, np.float32)}, [None, 24]
    )


def test_equal_infinities_as_in_masked_scores_are_equal(tmp_path: Path) -> None:
    mask = [0.0] * 12 + [-np.inf] * 4
    path, data = masked(tmp_path / "m.onnx", mask=mask), [{"x": numbers(40, 24)}]
    to_qdq(path, calibrate(path, data), tmp_path / "q.onnx")
    hop = compare_files(path, tmp_path / "q.onnx", data, kind="lossy", name="int8")
    plain = masked(tmp_path / "plain.onnx", mask=[0.0] * 16)
    to_qdq(plain, calibrate(plain, data), tmp_path / "p.onnx")
    expected = compare_files(plain, tmp_path / "p.onnx", data, kind="lossy", name="int8")
    assert 0 < hop.outputs["y"].noise == pytest.approx(expected.outputs["y"].noise, rel=0.3)
    assert hop.outputs["y"].largest < 0.1
    other = masked(tmp_path / "other.onnx", mask=[-np.inf] * 4 + [0.0] * 12)
    with pytest.raises(ModelError, match="beyond its class"):
        compare_files(path, other, data, kind="float", name="another mask")
    nothing = masked(tmp_path / "nothing.onnx", mask=[np.inf] * 16)
    with pytest.raises(ModelError, match="only infinite values"):
        compare_files(nothing, nothing, data, kind="exact", name="copy")


def found(path: Path, *, scores: bool = True) -> Path:
    """Non-maximum suppression over eight boxes whose scores a product makes."""
    nodes = [
        op("MatMul", ["x", "w"], ["scores"], name="product"),
        op("Unsqueeze", ["scores", "one"], ["by_class"]),
        op("Shape", ["scores"], ["sizes"]),
        op("Gather", ["sizes", "first"], ["batch"]),
        op("Concat", ["batch", "rest"], ["boxes_sizes"], axis=0),
        op("Expand", ["corners", "boxes_sizes"], ["boxes"]),
        op("NonMaxSuppression", ["boxes", "by_class", "most", "overlap", "least"], ["kept"]),
        op("Slice", ["kept", "start", "end", "axis", "step"], ["picked"]),
        op("GatherND", ["scores", "picked"], ["best"]),
    ]
    corners = np.array([[[i, 0, i + 0.9, 1] for i in range(8)]], np.float32)
    constants = {
        "w": numbers(24, 8),
        "one": np.array([1]),
        "first": np.array([0]),
        "rest": np.array([8, 4]),
        "corners": corners,
        "most": np.array(8),
        "overlap": np.float32(0.5),
        "least": np.float32(0.3),
        "start": np.array([0]),
        "end": np.array([3]),
        "axis": np.array([1]),
        "step": np.array([2]),
    }
    outputs = [helper.make_tensor_value_info("best", TensorProto.FLOAT, ["found"])]
    if scores:
        outputs.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None, 8]))
    return write_network(path, nodes, constants, [None, 24], outputs=outputs)


def test_what_a_network_selects_is_named_and_the_rest_is_judged(tmp_path: Path) -> None:
    path, data = found(tmp_path / "m.onnx"), [{"x": numbers(40, 24)}]
    to_qdq(path, calibrate(path, data), tmp_path / "q.onnx")
    hop = compare_files(path, tmp_path / "q.onnx", data, kind="lossy", name="int8")
    assert hop.decided == {"best": "NonMaxSuppression"}
    assert 0 < hop.outputs["scores"].noise < 0.05
    assert noise_between(path, tmp_path / "q.onnx", data) == max(one.noise for one in hop.outputs.values())
    assert "best is behind NonMaxSuppression, so" in hop_sentence("int8", hop)
    alone = found(tmp_path / "alone.onnx", scores=False)
    to_qdq(alone, calibrate(alone, data), tmp_path / "q.onnx")
    hop = compare_files(alone, tmp_path / "q.onnx", data, kind="lossy", name="int8")
    assert "scores" in hop.outputs  # a tensor inside, ahead of the selection
    assert noise_between(alone, tmp_path / "q.onnx", data) > 0


def test_an_output_whose_size_is_fixed_again_behind_a_selection_is_judged_ahead_of_it(tmp_path: Path) -> None:
    nodes = [
        op("MatMul", ["x", "w"], ["h"]),
        op("Greater", ["h", "zero"], ["above"]),
        op("NonZero", ["above"], ["where"]),
        op("Transpose", ["where"], ["places"], perm=[1, 0]),
        op("GatherND", ["h", "places"], ["values"]),
        op("Mul", ["h", "zero"], ["nothing"]),
        op("ScatterND", ["nothing", "places", "values"], ["y"]),
    ]
    path = write_network(
        tmp_path / "m.onnx", nodes, {"w": numbers(24, 24), "zero": np.float32(0)}, [None, 24]
    )
    data = [{"x": numbers(40, 24)}]
    to_qdq(path, calibrate(path, data), tmp_path / "q.onnx")
    hop = compare_files(path, tmp_path / "q.onnx", data, kind="lossy", name="int8")
    assert hop.decided == {"y": "NonZero"}
    assert 0 < hop.outputs["h"].noise < 0.1
