"""Rules 201 to 208: the parser's rules for QuantizeLinear and DequantizeLinear.

Sources: NVIDIA's pages on explicit quantization, onnx-tensorrt's operator tables, and the importer of the two
operators in its release branches 8.5-GA, 8.6-GA and 10.1-GA.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto, TensorProto

from ..onnx_graph.graph import QUANTIZED, WEIGHTED, attribute_of
from ..quantization.placement import channel_axis
from .network import Finding, Network, Severity, type_name
from .platform import Platform, Version

_8_BIT_FLOAT = TensorProto.FLOAT8E4M3FN
_4_BIT_FLOAT = 23  # FLOAT4E2M1, a name that ONNX has from 1.18 on
_QUANTIZED_TYPES: tuple[tuple[Version, tuple[int, ...]], ...] = (  # by first version
    ((10, 8), (TensorProto.INT8, _8_BIT_FLOAT, TensorProto.INT4, _4_BIT_FLOAT)),
    ((10,), (TensorProto.INT8, _8_BIT_FLOAT, TensorProto.INT4)),
    ((8,), (TensorProto.INT8,)),
)
_SYMMETRIC = "Quantize symmetrically to int8: zero point 0, scale = largest magnitude / 127."


def zero_point(network: Network, platform: Platform) -> Iterator[Finding]:
    """201: every zero point is the constant 0."""
    for node in network.quantizers():
        if not _has_zero(node) or _is_bias(network, node):
            continue
        zero = network.constant(node, 2)
        if zero is None:
            what = "its zero point is computed; the parser needs the constant 0"
        elif np.any(zero.astype(np.float32) != 0):
            what = f"its zero point is {_some(zero)}; TensorRT quantizes symmetrically, around 0"
        else:
            continue
        yield Finding(201, _asymmetric(platform), node.name, what + _but_dla(platform), _SYMMETRIC)


def quantized_type(network: Network, platform: Platform) -> Iterator[Finding]:
    """202: the quantized type is int8, from TensorRT 10 on also FP8 or INT4, from 10.8 on FP4."""
    supported = next(kinds for since, kinds in _QUANTIZED_TYPES if platform.version >= since)
    names = ", ".join(type_name(kind) for kind in supported)
    for node in network.quantizers():
        kind = _quantized_type(network, node)
        if kind in supported or kind == TensorProto.UNDEFINED or _is_bias(network, node):
            continue
        severity: Severity = "error"
        if not _has_zero(node) and node.op_type == "QuantizeLinear":
            what = "it has no zero point, which means UINT8 in ONNX but INT8 in TensorRT"
            severity = _in_float(platform)
        else:
            what = f"it quantizes to {type_name(kind)}; {platform.name} supports {names}"
            severity = "error" if _has_zero(node) else _in_float(platform)
        unsigned = kind == TensorProto.UINT8 and _has_zero(node)
        if unsigned:
            zero = network.constant(node, 2)
            # With a zero point of 0 the parser of TensorRT-RTX 1.7.1 takes it.
            severity = _in_float(platform) if zero is not None and not zero.any() else _asymmetric(platform)
        yield Finding(202, severity, node.name, what + (_but_dla(platform) if unsigned else ""), _SYMMETRIC)


def float_bias(network: Network, platform: Platform) -> Iterator[Finding]:
    """203: biases are in float."""
    for node in network.model.graph.node:
        if node.op_type not in WEIGHTED or len(node.input) < 3:
            continue
        maker = network.index.producer.get(node.input[2])
        if maker is not None and maker.op_type == "DequantizeLinear":
            integers = _quantized_type(network, maker)
            kind = type_name(integers)
            what = (
                f"its bias is dequantized from {kind}; TensorRT needs a constant float bias, which it "
                "adds to the accumulator"
            )
            cure = "Store the bias as float (in onnxruntime's quantizer: QuantizeBias=False)."
            severity = _in_float(platform) if integers == TensorProto.INT8 else "error"
            yield Finding(203, severity, node.name, what, cure)


def scale(network: Network, platform: Platform) -> Iterator[Finding]:
    """204: scales are constant, finite and above 0, and there are as many as zero points."""
    for node in network.quantizers():
        severity: Severity = "error"
        scales = network.constant(node, 1)
        if scales is None:
            what = "its scale is computed; TensorRT needs it when it builds the engine"
        elif not scales.size:
            what = "it has no scale"
        elif not (np.isfinite(scales.astype(np.float64)).all() and (scales.astype(np.float64) > 0).all()):
            if (scales.astype(np.float64) > 0).all():  # an infinite one
                severity = _in_float(platform)
            worst = scales.astype(np.float64).reshape(-1)
            worst = worst[~(np.isfinite(worst) & (worst > 0))]
            what = f"{worst.size} of its {scales.size} scales are not positive, the first is {worst[0]:g}"
        else:
            zero = network.constant(node, 2)
            if zero is None or zero.size == scales.size:
                continue
            what = f"it has {scales.size} scales and {zero.size} zero points"
        cure = "Calibrate again; a channel of zeros gets the scale 1, not 0."
        yield Finding(204, severity, node.name, what, cure)


def activation_axis(network: Network, platform: Platform) -> Iterator[Finding]:
    """205: an activation has one scale."""
    for node in network.quantizers():
        scales = network.constant(node, 1)
        if network.weight(node) is None and scales is not None and scales.size > 1:
            what = f"the activation {node.input[0]!r} has {scales.size} scales; only weights may have several"
            cure = "Use one scale for the whole tensor."
            yield Finding(205, _in_float(platform), node.name, what, cure)


def weight_axis(network: Network, platform: Platform) -> Iterator[Finding]:
    """206: the scales of a weight are along the output channels of all its readers."""
    for node in network.quantizers():
        scales, weight = network.constant(node, 1), network.weight(node)
        if weight is None or scales is None or scales.size <= 1:
            continue
        what = ""
        severity: Severity = "error"
        axis = attribute_of(node, "axis")
        if scales.ndim > 1 or attribute_of(node, "block_size", 0):
            if _quantized_type(network, node) == TensorProto.INT8:
                what = f"the scales of {weight.name!r} are by block; int8 needs one scale per channel"
        elif axis is None:
            what = f"the scales of {weight.name!r} have no axis, which means 1 in ONNX but 0 in TensorRT"
            severity = _in_float(platform)
        elif not -len(weight.dims) <= axis < len(weight.dims):
            what = f"{weight.name!r} has no axis {axis} for its {scales.size} scales"
        else:
            axis %= len(weight.dims)
            for reader, place, along in _weighted_readers(network, node.output[0], axis):
                legal = channel_axis(reader, place, len(weight.dims))
                if along != legal:
                    severity = _in_float(platform)
                    should = "one scale" if legal is None else f"axis {legal}, its output channels"
                    what = (
                        f"the scales of {weight.name!r} are along axis {along} of the input of "
                        f"{reader.op_type} {reader.name!r}; it needs {should}"
                    )
            if not what and weight.dims[axis] != scales.size:
                what = f"{weight.name!r} has {scales.size} scales for {weight.dims[axis]} channels"
                severity = "error"
        if what:
            cure = (
                "Quantize weights per output channel and write the axis: Conv 0, ConvTranspose 1, MatMul 1, "
                "Gemm 1 or with transB 0; or use one scale."
            )
            yield Finding(206, severity, node.name, what, cure)


def opset_of_scales(network: Network, platform: Platform) -> Iterator[Finding]:
    """207: the opset allows scales by channel (13) or in half precision (19), of the type of the data."""
    for node in network.quantizers():
        scales = network.constant(node, 1)
        kind = network.types.get(node.input[1], TensorProto.UNDEFINED)
        data = network.types.get(node.input[0], TensorProto.UNDEFINED)
        half = kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16)
        cure = "Give data and scale one type: FLOAT, or FLOAT16 at opset 19."
        if scales is not None and scales.size > 1 and network.opset < 13:
            what = f"it has {scales.size} scales; opset {network.opset} allows one, opset 13 more"
            cure = "Export at opset 17."
        elif half and (network.opset < 19 or platform.version < (10,)):
            name = type_name(kind)
            what = f"its scale is {name}; before opset 19 and TensorRT 10 it is FLOAT"
        elif (
            node.op_type == "QuantizeLinear"
            and 19 <= network.opset < 23
            and TensorProto.UNDEFINED not in (kind, data)
            and kind != data
        ):
            names = [type_name(each) for each in (kind, data)]
            what = f"its scale is {names[0]} and its data {names[1]}; this opset needs one type"
        else:
            continue
        yield Finding(207, _in_float(platform), node.name, what, cure)


def zero_point_given(network: Network, platform: Platform) -> Iterator[Finding]:
    """208: before TensorRT 10 the zero point is explicit."""
    if platform.version < (10,):
        for node in network.quantizers():
            if not _has_zero(node):
                what = f"it has no zero point; the parser of {platform.name} needs three inputs"
                cure = "Add the zero point: an int8 constant 0 of the scale's shape."
                yield Finding(208, "error", node.name, what, cure)


def _in_float(platform: Platform) -> Severity:
    # NVIDIA's pages or ONNX forbid it; TensorRT-RTX 1.7.1 takes it, and runs it in float or wrongly.
    return "warning" if platform.version >= (11,) else "error"


def _has_zero(node: NodeProto) -> bool:
    return len(node.input) > 2 and bool(node.input[2])


def _quantized_type(network: Network, node: NodeProto) -> int:
    if _has_zero(node):
        return network.types.get(node.input[2], TensorProto.UNDEFINED)
    if node.op_type == "QuantizeLinear":
        return int(attribute_of(node, "output_dtype", 0) or TensorProto.UINT8)
    return network.types.get(node.input[0], TensorProto.UNDEFINED)


def _is_bias(network: Network, node: NodeProto) -> bool:
    # Rule 203 covers it, including its type int32.
    readers = network.index.readers.get(node.output[0], ())
    return bool(readers) and all(reader.op_type in WEIGHTED and place == 2 for reader, place in readers)


def _asymmetric(platform: Platform) -> Severity:
    return "warning" if platform.dla_cores and platform.version >= (10, 11) else "error"


def _but_dla(platform: Platform) -> str:
    flag = "ENABLE_UINT8_AND_ASYMMETRIC_QUANTIZATION_DLA"
    return "" if _asymmetric(platform) == "error" else f" (its DLA accepts it with the parser flag {flag})"


def _some(zero: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> str:
    values = sorted({int(value) for value in zero.astype(np.float32).reshape(-1)})
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _weighted_readers(network: Network, name: str, axis: int) -> Iterator[tuple[NodeProto, int, int]]:
    """The weighted operators that read a weight: (node, input index, the axis there)."""
    for reader, place in network.index.readers.get(name, ()):
        if reader.op_type in WEIGHTED and place < 2:
            yield reader, place, axis
        elif reader.op_type in QUANTIZED and place == 0:
            yield from _weighted_readers(network, reader.output[0], axis)
        elif reader.op_type == "Transpose":
            order = list(attribute_of(reader, "perm", []))
            if axis in order:
                yield from _weighted_readers(network, reader.output[0], order.index(axis))
