"""The writer of INT8 models: QuantizeLinear / DequantizeLinear pairs at the positions of `placement`.

Numbers are rounded as in Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference" (CVPR 2018): real = scale * (integer - zero point). Weights are stored
as int8 and dequantized in the graph, so the file is a quarter of the float one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...targets.errors import ModelError
from ...targets.target import Target
from ..onnx_graph.external_data import whole_copy
from ..onnx_graph.float_input import as_float
from ..onnx_graph.graph import Array, Index, OnnxModel, drop_unused, replace_nodes
from ..onnx_graph.walk import all_names, unique
from .calibrate import Range, Ranges
from .fusions import join_biases
from .placement import DialectRules, Placement, Weight, clipped_at, nothing_to_quantize, place, rules_of

Parameters = tuple[np.float32, Array]  # scale and zero point

SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
# For a tensor that is 0 in all samples. Its range would give a step of 0, so that it could never be anything
# else; a step of 1 would be the unit of a following int32 bias, and round that to 0.
UNSEEN = Range(-1.0, 1.0)
FINE = 6  # bits from which on a weight's largest value sets its scale
LARGEST_BIAS = 2.0**30  # half of int32: the rest is for the sum of products


@dataclass(frozen=True)
class Placed:
    """What was rounded: tensors, the weighted operators with rounded factors, and those in float, with the
    reason."""

    dialect: str
    tensors: tuple[str, ...]
    in_int8: tuple[str, ...]
    left_float: dict[str, str]


@dataclass(frozen=True)
class Quantized(Placed):
    """The result, with the model."""

    model: OnnxModel

    @property
    def placed(self) -> Placed:
        """It without the model."""
        return Placed(self.dialect, self.tensors, self.in_int8, self.left_float)


def to_qdq(
    model: OnnxModel,
    ranges: Ranges,
    *,
    dialect: str = "tensorrt",
    skip: Collection[str] = (),
    weight_bits: int = 8,
    weight_scales: Mapping[Weight, Array] | None = None,
) -> Quantized:
    """Quantizes a float ONNX model by calibrated ranges.

    Args:
        skip: names of weighted nodes that stay in float.
        weight_bits: 2 to 8; fewer than 8 are stored as int8 too: they show what they cost, not their speed.
            7 are for x86 processors without VNNI or AVX-VNNI: their int8 instruction adds two products of
            uint8 and int8 in 16 bits and saturates; 7 bits cannot overflow.
        weight_scales: by weight of the placement, as `quantize_weight` returns them, where they were learnt;
            else they follow from the weights.

    Raises:
        ModelError: the model is quantized already, a tensor has no range, a name of `skip` is unknown.
    """
    if weight_bits not in range(2, 9):
        raise ModelError(f"Weights of {weight_bits} bits are not supported.", "Choose 2 to 8.")
    rules = rules_of(dialect)
    model, placed = placed_in(model, dialect, skip=skip)
    proto = whole_copy(model.proto, but=_only_rounded(model, placed))
    graph = proto.graph
    in_int8 = tuple(
        node.name
        for node in graph.node
        if node.op_type in rules.operators and node.name not in placed.left_float
    )
    parameters = activation_parameters(model.index, placed, ranges, rules)
    used = all_names(model.graph)
    rounded = rounded_weights(model, placed, parameters, rules, bits=weight_bits, scales=weight_scales or {})
    weights = {
        weight: _stored(graph, weight.name, *values, weight.axis, used) for weight, values in rounded.items()
    }
    stored = list(weights.values())
    if not rules.symmetric:
        stored += _int32_biases(graph, placed, parameters, weights, used)
    _insert(graph, placed, parameters, weights, stored, used)
    drop_unused(graph)
    return Quantized(dialect, placed.tensors, in_int8, placed.left_float, model.derived(proto))


def placed_in(model: OnnxModel, dialect: str, *, skip: Collection[str] = ()) -> tuple[OnnxModel, Placement]:
    """The normalized float model that is quantized, and its placement.

    Raises:
        ModelError: the model is quantized already, has nothing to quantize, or no operator named in `skip`.
    """
    model = as_float(model)
    if not rules_of(dialect).symmetric:
        model = join_biases(model)
    placed = place(model, dialect, skip=skip)
    if not placed.weights and not placed.readers:
        raise nothing_to_quantize(model.path, placed.left_float)
    return model, placed


def _only_rounded(model: OnnxModel, placed: Placement) -> set[str]:
    """The weights that no operator reads in float: gigabytes that need no copy."""
    rounded = Counter(weight.name for weight in placed.weights.values())
    readers, outputs = model.index.readers, model.index.outputs
    return {name for name, count in rounded.items() if count == len(readers[name]) and name not in outputs}


def symmetric(low: float, high: float) -> Parameters:
    """The scale and the zero point, always 0, of int8 for a range. TensorRT allows no other."""
    return np.float32(max(max(abs(low), abs(high)) / 127.0, SMALLEST_SCALE)), np.array(0, np.int8)


def unsigned(low: float, high: float) -> Parameters:
    """The scale and zero point of uint8 for a range, extended to represent 0 exactly (padding, ReLU)."""
    low, high = min(low, 0.0), max(high, 0.0)
    # Rounded down, so that 255 steps never exceed `high`: only then can saturation replace a Clip.
    scale = np.float32(max((high - low) / 255.0, SMALLEST_SCALE))
    if float(scale) * 255.0 > high - low and float(scale) > SMALLEST_SCALE:
        scale = np.nextafter(scale, np.float32(0.0))
    return scale, np.array(round(-low / float(scale)), np.uint8)


def represented(scale: float, zero: Array) -> Range:
    """The range whose scale and zero point these are, by `symmetric` for int8 and `unsigned` for uint8."""
    first, last = (-127, 127) if zero.dtype == np.int8 else (0, 255)
    return Range((first - int(zero)) * scale, (last - int(zero)) * scale)


def quantize_weight(
    weight: Array,
    axis: int | None,
    *,
    bits: int = 8,
    least_scale: Array | None = None,
    scale: Array | None = None,
) -> tuple[Array, Array]:
    """Rounds a weight to symmetric int8, with one scale per index of `axis`.

    Args:
        least_scale: the minimum scale by channel (see `_least_scales`).
        scale: the scales; by default the largest value of each channel is the last step. With fewer than 6
            bits, where steps are coarse, values are clipped as far as that lowers the square error.

    Returns:
        The int8 array and the float32 scales: shape [channels], or [] without an axis. A channel of zeros
        gets the scale of the largest channel, since its bias may be rounded by it; 1 where all are zero.
    """
    steps = 2 ** (bits - 1) - 1
    channels = np.moveaxis(weight, axis, 0) if axis is not None else weight[None]
    if scale is None:
        largest = np.abs(channels).reshape(channels.shape[0], -1).max(axis=1).astype(np.float64)
        whole: Array = np.where(largest > 0, largest, largest.max() or steps) / steps
        scale = _clipping(channels, whole, steps) if bits < FINE else whole
    least = SMALLEST_SCALE if least_scale is None else least_scale
    scale = np.maximum(scale.reshape(-1), least).astype(np.float32)
    rounded = np.rint(channels / scale.reshape(-1, *[1] * (channels.ndim - 1)))
    rounded = np.clip(rounded, -steps, steps).astype(np.int8)
    if axis is None:
        return rounded[0], scale.reshape(())
    return np.ascontiguousarray(np.moveaxis(rounded, 0, axis)), scale


def _clipping(channels: Array, scale: Array, steps: int) -> Array:
    """The scales, from half of these to these, with the least square error by channel."""
    rows = channels.reshape(len(channels), -1).astype(np.float64)
    tried = np.linspace(1.0, 0.5, 26)[:, None] * scale
    errors = [
        np.square(np.clip(np.rint(rows / one[:, None]), -steps, steps) * one[:, None] - rows).sum(axis=1)
        for one in tried
    ]
    return np.asarray(tried[np.argmin(errors, axis=0), np.arange(len(rows))])


def activation_parameters(
    index: Index, placed: Placement, ranges: Ranges, rules: DialectRules
) -> dict[str, Parameters]:
    """The scale and the zero point of each tensor of a placement; a ModelError if one has no range."""
    missing = [name for name in placed.tensors if name not in ranges.tensors]
    if missing:
        raise ModelError(
            f"{len(missing)} tensors have no calibrated range, the first is {missing[0]!r}.",
            "Calibrate this file; ranges are not valid for a network that was changed since.",
        )
    parameters = {}
    for name in placed.tensors:
        tied = [ranges.tensors[other] for other in placed.ties[name]]
        if all(found.low == found.high == 0.0 for found in tied):
            tied = [UNSEEN] * len(tied)
        if rules.symmetric:
            parameters[name] = symmetric(min(r.low for r in tied), max(r.high for r in tied))
        else:
            others = zip(tied, placed.ties[name], strict=True)
            bounded = [_within_clip(found, other, index) for found, other in others]
            parameters[name] = unsigned(min(r.low for r in bounded), max(r.high for r in bounded))
    return parameters


def _within_clip(found: Range, name: str, index: Index) -> Range:
    bound = clipped_at(index.producer[name], index) if name in index.producer else None
    return found if bound is None else Range(0.0, min(found.high, bound))


def rounded_weights(
    model: OnnxModel,
    placed: Placement,
    parameters: Mapping[str, Parameters],
    rules: DialectRules,
    *,
    bits: int,
    scales: Mapping[Weight, Array],
) -> dict[Weight, tuple[Array, Array]]:
    """The integers and the scales of each weight; `scales` has those that do not follow from the weight."""
    least = {} if rules.symmetric else _least_scales(model, placed, parameters)
    found: dict[Weight, tuple[Array, Array]] = {}
    for weight in dict.fromkeys(placed.weights.values()):
        value = model.index.value(weight.name)
        assert value is not None
        if not np.isfinite(value).all():
            raise ModelError(f"The weight {weight.name!r} has NaN or infinity.", "Train or load it again.")
        found[weight] = quantize_weight(
            value, weight.axis, bits=bits, least_scale=least.get(weight), scale=scales.get(weight)
        )
    return found


def _stored(
    graph: onnx.GraphProto, name: str, integers: Array, scale: Array, axis: int | None, used: set[str]
) -> onnx.NodeProto:
    values = {str(integers.dtype): integers, "scale": scale, "zero": np.zeros(scale.shape, integers.dtype)}
    constants = {unique(f"{name}_{end}", used): np.asarray(value) for end, value in values.items()}
    graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in constants.items())
    node = helper.make_node(
        "DequantizeLinear",
        list(constants),
        [unique(f"{name}_dequantized", used)],
        name=unique(f"{name}_dequantize", used),
    )
    if axis is not None:
        node.attribute.append(helper.make_attribute("axis", axis))
    return node


def _least_scales(
    model: OnnxModel, placed: Placement, parameters: Mapping[str, Parameters]
) -> dict[Weight, Array]:
    """The minimum scales by weight, below which an int32 bias (x86) would overflow.

    The unit of the bias is activation scale times weight scale; in a channel with tiny weights and a large
    bias it would overflow. Coarser weights cost nothing there: such a channel consists of its bias.
    """
    least: dict[Weight, Array] = {}
    for (position, _), weight in placed.weights.items():
        node = model.graph.node[position]
        bias = model.index.value(node.input[2]) if len(node.input) > 2 else None
        if bias is None or node.input[0] not in parameters or weight.axis is None:
            continue
        scale = np.abs(bias.astype(np.float64)) / (float(parameters[node.input[0]][0]) * LARGEST_BIAS)
        found = np.maximum(scale.reshape(-1), SMALLEST_SCALE)
        least[weight] = np.maximum(found, least.get(weight, found))
    return least


def _int32_biases(
    graph: onnx.GraphProto,
    placed: Placement,
    parameters: Mapping[str, Parameters],
    weights: Mapping[Weight, onnx.NodeProto],
    used: set[str],
) -> list[onnx.NodeProto]:
    """Stores the bias of each Gemm as int32 and points the Gemm to it.

    ONNX Runtime itself rounds the bias of an operator with a rounded output; a Gemm with a float output, as
    the last one, it would leave in float.
    """
    index = Index.of(graph)
    nodes = []
    for (position, _), weight in placed.weights.items():
        node = graph.node[position]
        bias = index.value(node.input[2]) if node.op_type == "Gemm" and len(node.input) > 2 else None
        scales = index.value(weights[weight].input[1])
        if bias is None or scales is None or node.input[0] not in parameters:
            continue
        bias = np.broadcast_to(bias.reshape(-1), scales.shape)  # ONNX Runtime needs one axis
        unit = (scales.astype(np.float64) * float(parameters[node.input[0]][0])).astype(np.float32)
        unit = np.maximum(unit, SMALLEST_SCALE)
        integers = np.clip(np.rint(bias / unit.astype(np.float64)), -(2**31), 2**31 - 1).astype(np.int32)
        # Two readers of one bias may have different units, so each has its own copy.
        nodes.append(_stored(graph, f"{node.name}_bias", integers, unit, 0, used))
        node.input[2] = nodes[-1].output[0]
    return nodes


def _insert(
    graph: onnx.GraphProto,
    placed: Placement,
    parameters: Mapping[str, Parameters],
    weights: Mapping[Weight, onnx.NodeProto],
    stored: list[onnx.NodeProto],
    used: set[str],
) -> None:
    # An output of the network keeps its name, unless it is an input; the float value before gets another.
    shown = {value.name for value in graph.output if placed.everywhere} - {one.name for one in graph.input}
    before = {name: unique(f"{name}_float", used) if name in shown else name for name in parameters}
    after = {name: name if name in shown else unique(f"{name}_dequantized", used) for name in parameters}
    nodes = list(stored)
    for name in (value.name for value in graph.input if value.name in parameters):
        nodes += _pair(graph, name, before[name], after[name], parameters[name], used)
    for position, node in enumerate(graph.node):
        for place_, name in enumerate(node.input):
            weight = placed.weights.get((position, place_))
            if weight is not None:
                node.input[place_] = weights[weight].output[0]
            elif placed.rounds(position, place_, name):
                node.input[place_] = after[name]
        made = list(node.output)
        node.output[:] = [before.get(name, name) for name in made]
        nodes.append(node)
        for name in made:
            if name in parameters:
                nodes += _pair(graph, name, before[name], after[name], parameters[name], used)
    replace_nodes(graph, nodes)


def _pair(
    graph: onnx.GraphProto, name: str, before: str, after: str, parameters: Parameters, used: set[str]
) -> list[onnx.NodeProto]:
    scale, zero, integers, quantize, dequantize = (
        unique(f"{name}_{end}", used) for end in ("scale", "zero", "int8", "quantize", "dequantize")
    )
    graph.initializer.append(numpy_helper.from_array(np.asarray(parameters[0], np.float32), scale))
    graph.initializer.append(numpy_helper.from_array(parameters[1], zero))
    return [
        helper.make_node("QuantizeLinear", [before, scale, zero], [integers], name=quantize),
        helper.make_node("DequantizeLinear", [integers, scale, zero], [after], name=dequantize),
    ]


def saturation(target: Target, weight_bits: int, cure: str) -> list[str]:
    """A sentence where the target's INT8 sums saturate on this machine; `cure` sets 7 bits."""
    runtime = target.runtime
    if weight_bits < 8 or runtime.saturates is None or not runtime.saturates():
        return []
    return [
        f"this processor has no VNNI: sums in the INT8 kernels of {runtime.title} saturate here, which can "
        f"cost accuracy; {cure} avoids it"
    ]
