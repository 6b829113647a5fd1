from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from support import nets, sequence_nets
from support.cpu import exact_int8
from torch import Tensor, nn

from deadweight.export.onnx_graph.graph import OnnxModel, load
from deadweight.export.onnx_graph.run import runner
from deadweight.export.opened import outputs_of
from deadweight.export.parity.compare import compare_module
from deadweight.export.quantization.calibrate import Ranges, calibrate
from deadweight.export.quantization.to_qdq import to_qdq
from deadweight.export.to_onnx import to_onnx
from deadweight.pipeline.quantization.fake import FakeQuantized, Rounding, Source
from deadweight.pipeline.quantization.torch_operators import operator
from deadweight.targets.errors import ModelError

NETS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "concatenated": (nets.Concatenated, (2, 8, 8)),
    "detector": (nets.Detector, (3, 16, 16)),
    "vit": (sequence_nets.Vit, (3, 8, 8)),
}


@functools.cache
def exported(name: str) -> tuple[nn.Module, Tensor, OnnxModel, Ranges]:
    kind, shape = NETS[name]
    module, image = nets.lively(kind()), nets.image(24, *shape)
    with tempfile.TemporaryDirectory() as folder:
        to_onnx(module, {"image": image[:2]}, Path(folder) / "m.onnx")
        model = load(Path(folder) / "m.onnx")
    return module, image, model, calibrate(model, [{"image": image}])


def source_of(name: str, dialect: str, bits: int = 8) -> tuple[Source, FakeQuantized, Tensor]:
    module, image, model, ranges = exported(name)
    source = Source.of(model, ranges, dialect=dialect, bits=bits)
    with torch.no_grad():
        like = module(image[:2])
    return (
        source,
        FakeQuantized(source, like, [one for one, _ in module.named_parameters()], learnt=True),
        image,
    )


def readers(quantized: OnnxModel) -> set[tuple[str, int, str]]:
    """By node, the inputs that come from a DequantizeLinear, with the name of the tensor that was rounded."""
    made = {node.output[0]: node for node in quantized.graph.node}
    found = set()
    for node in quantized.graph.node:
        for place, name in enumerate(node.input):
            pair = made.get(name)
            if pair is None or pair.op_type != "DequantizeLinear" or node.op_type == "QuantizeLinear":
                continue
            rounded = made.get(pair.input[0])
            weight = pair.input[0].removesuffix("_int8")
            if rounded is not None or not name.startswith(f"{node.name}_bias"):
                found.add((node.name, place, rounded.input[0].removesuffix("_float") if rounded else weight))
    return found


@pytest.mark.parametrize("dialect", ["tensorrt", "x86"])
@pytest.mark.parametrize("name", NETS)
def test_the_trained_graph_and_the_file_round_the_same_tensors_for_the_same_readers(
    name: str, dialect: str
) -> None:
    source, net, _ = source_of(name, dialect)
    read = set()
    for node, step in zip(source.model.graph.node, net._steps, strict=True):
        for place, key in enumerate(step.inputs):
            if key in net.roundings:
                tensor = net.roundings[key][0]
                read.add((node.name, place, node.input[place] if tensor.startswith("network/") else tensor))
    file = to_qdq(source.model, source.ranges, dialect=dialect)
    assert read == readers(file.model)
    rounded = {name for key, (name, _) in net.roundings.items() if not name.startswith("network/")}
    assert rounded == set(file.tensors)


@exact_int8
@pytest.mark.parametrize("dialect", ["tensorrt", "x86"])
@pytest.mark.parametrize("name", NETS)
def test_a_trained_graph_computes_what_its_file_does_and_the_float_graph_what_the_module_did(
    name: str, dialect: str
) -> None:
    source, net, image = source_of(name, dialect)
    net.active = False
    compare_module(net, source.model, [{"image": image}])
    net.active = True
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        sum(one.square().mean() for one in outputs_of(net(image)).values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    _, ranges, quantized = source.written(net)
    assert ranges.tensors != source.ranges.tensors
    hop = compare_module(net, quantized.model, [{"image": image}], kind="lossy")
    assert max(one.noise for one in hop.outputs.values()) < 5e-2
    # x86: as it runs, with the int32 biases that ONNX Runtime makes of a float file's
    ran = runner(quantized.model.proto, optimize=dialect == "x86")({"image": image.numpy()})
    for key, value in outputs_of(net(image)).items():
        off = np.abs(ran[key] - value.detach().numpy())
        assert off.max() / np.abs(ran[key]).max() < 2e-2, key
        assert off.mean() / np.abs(ran[key]).mean() < 5e-4, key


def test_learnt_scales_are_those_of_the_file() -> None:
    source, net, _ = source_of("vit", "tensorrt", bits=4)
    with torch.no_grad():
        for number, key in enumerate(net.roundings):
            net.rounding(key).change.add_(0.001 * (number + 1))
    _, _, quantized = source.written(net)
    index = quantized.model.index
    pairs = {n.input[0]: index.value(n.input[1]) for n in quantized.model.graph.node if "Linear" in n.op_type}
    weights = 0
    for key, (name, _) in net.roundings.items():
        scale = net.rounding(key).scale.detach().numpy().reshape(-1)
        if name.startswith("network/"):
            (found,) = [pairs[one] for one in pairs if f"network/{one[:-5].replace('.', '/')}" == name]
            integers = index.value(next(one for one in pairs if pairs[one] is found))
            assert integers is not None
            assert np.abs(integers).max() == 7
            weights += 1
        else:
            found = pairs[name]
        np.testing.assert_array_equal(np.reshape(found, -1), scale)  # type: ignore[arg-type]
    assert weights == len(set(source.placed.weights.values())) > 3


def test_the_gradient_of_a_rounding_is_that_of_esser_et_al() -> None:
    one = Rounding("x", torch.tensor(0.5), 0, (-8, 7), values=4, learnt=True)
    x = torch.tensor([0.6, -1.2, 9.0, -9.0], requires_grad=True)
    rounded = one(x)
    assert rounded.tolist() == [0.5, -1.0, 3.5, -4.0]
    rounded.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.0, 0.0, 0.0]
    # round(x / s) - x / s inside, the last integer outside; as a share of the scale, times 1 / sqrt(n * 7).
    expected = (1 - 1.2 + -2 + 2.4 + 7 - 8) / 0.5 / (4 * 7) ** 0.5
    assert one.change.grad == pytest.approx(expected, rel=1e-5)


def test_a_fixed_scale_has_no_gradient_and_a_clip_bounds_a_learnt_one() -> None:
    fixed = Rounding("x", torch.tensor(0.5), 0, (0, 255), learnt=False)
    fixed(torch.ones(1, 2, requires_grad=True)).sum().backward()
    assert fixed.change.grad is None
    bounded = Rounding("x", torch.tensor(6.0 / 255), 0, (0, 255), bound=6.0, learnt=True)
    with torch.no_grad():
        bounded.change.add_(1.0)
    assert float(bounded.scale.detach()) * 255 == pytest.approx(6.0)


def test_an_operator_without_a_differentiable_form_is_refused_by_name() -> None:
    node = onnx.helper.make_node("LSTM", ["x", "w", "r"], ["y"], name="rnn/LSTM")
    with pytest.raises(ModelError, match="LSTM of 'rnn/LSTM' cannot be trained as a graph"):
        operator(node)


def test_the_scale_that_is_to_blame_is_named() -> None:
    _, net, _ = source_of("vit", "tensorrt")
    with torch.no_grad():
        net.rounding("rounded image").change.add_(0.7)
    assert "moved most is that of 'image', by a factor of 2.01" in net.suspect()
    with torch.no_grad():
        net.rounding("rounded image").change.fill_(float("nan"))
    assert net.suspect() == "the scale of 'image' is not finite"


CASES: list[tuple[str, dict[str, Any], list[Any]]] = [
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}, [(1, 2, 6, 6)]),
    ("MaxPool", {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "strides": [2, 2]}, [(1, 2, 5, 5)]),
    ("Conv", {"pads": [0, 1, 1, 0], "strides": [2, 1], "group": 2}, [(1, 4, 6, 6), (6, 2, 3, 3), (6,)]),
    ("ConvTranspose", {"pads": [0, 1, 1, 0], "strides": [2, 2]}, [(1, 4, 5, 5), (4, 3, 3, 3)]),
    ("Gemm", {"transA": 1, "alpha": 0.5, "beta": 2.0}, [(3, 2), (3, 4), (4,)]),
    ("Slice", {}, [(4, 6), np.array([1, -1]), np.array([4, 0]), np.array([0, 1]), np.array([2, -2])]),
    ("Split", {"axis": 1, "outputs": 2}, [(2, 6), np.array([2, 4])]),
    ("Gather", {"axis": 1}, [(2, 5, 3), np.array([[0, -1], [2, 2]])]),
    ("GatherElements", {"axis": 1}, [(2, 5), np.array([[0, -1], [2, 2]])]),
    ("Pad", {"mode": "reflect"}, [(1, 2, 4, 4), np.array([0, 0, 1, 0, 0, 0, 2, 1])]),
    ("Pad", {}, [(2, 4), np.array([0, 1, 1, 0]), np.array(3.0, np.float32)]),
    (
        "Resize",
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        [(1, 2, 4, 4), None, None, np.array([1, 2, 7, 8])],
    ),
    ("DepthToSpace", {"blocksize": 2, "mode": "DCR"}, [(1, 8, 2, 2)]),
    ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, [(1, 8, 2, 2)]),
    ("ReduceMean", {"keepdims": 0, "axes": [1]}, [(2, 3, 4)]),
    ("ReduceL2", {"axes": [-1]}, [(2, 3)]),
    ("LayerNormalization", {"axis": -2}, [(2, 3, 4), (3, 4), (3, 4)]),
    ("HardSigmoid", {}, [(3, 4)]),
    ("PRelu", {}, [(2, 3, 4), (3, 1)]),
    ("Elu", {"alpha": 0.5}, [(3, 4)]),
    ("Unsqueeze", {}, [(3, 4), np.array([0, -1])]),
    ("Squeeze", {}, [(1, 3, 1), np.array([2])]),
    ("Expand", {}, [(3, 1), np.array([2, 1, 4])]),
    ("Reshape", {}, [(2, 6), np.array([0, -1, 3])]),
    ("Flatten", {"axis": 2}, [(2, 3, 4)]),
    ("TopK", {"outputs": 2}, [(2, 5), np.array([3])]),
    ("Trilu", {"upper": 0}, [(4, 4)]),
    ("ArgMax", {"axis": 1, "keepdims": 0}, [(3, 4)]),
    ("Clip", {}, [(3, 4), np.array(-0.5, np.float32)]),
    ("Max", {}, [(3, 4), (4,), (3, 1)]),
    ("Cast", {"to": 7}, [(3, 4)]),
    ("CumSum", {}, [(3, 4), np.array(1)]),
    ("ConstantOfShape", {}, [np.array([2, 3])]),
    ("Shape", {"start": 1}, [(3, 4)]),
    ("InstanceNormalization", {}, [(2, 3, 4), (3,), (3,)]),
]


@pytest.mark.parametrize(("kind", "attributes", "inputs"), CASES, ids=[case[0] for case in CASES])
def test_an_operator_computes_what_onnx_runtime_does(
    kind: str, attributes: dict[str, Any], inputs: list[Any]
) -> None:
    generator = np.random.default_rng(0)
    values = [
        generator.normal(size=one).astype(np.float32) if isinstance(one, tuple) else one for one in inputs
    ]
    attributes = dict(attributes)
    made = [f"y{number}" for number in range(attributes.pop("outputs", 1))]
    names = ["" if value is None else f"x{at}" for at, value in enumerate(values)]
    node = onnx.helper.make_node(kind, names, made, name=kind, **attributes)
    given = {f"x{at}": value for at, value in enumerate(values) if value is not None}
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [
            onnx.helper.make_tensor_value_info(k, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for k, v in given.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in made],
    )
    model = onnx.shape_inference.infer_shapes(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    )
    expected = runner(model, made)(given)
    found = operator(node)(*(None if value is None else torch.from_numpy(value) for value in values))
    for name, value in zip(made, found if isinstance(found, (tuple, list)) else [found], strict=True):
        assert tuple(value.shape) == expected[name].shape
        np.testing.assert_allclose(value.numpy(), expected[name], atol=1e-5)
