"""Rules 301 to 308: valid Q/DQ pairs that cost more time than they save.

TensorRT fuses a weighted operator with its successors, with the precision of its inputs. A pair in between,
or a missing one at an input, breaks that: INT8 becomes slower than FP16 (TensorRT issues 2067, 3197, 3492,
4366). `placement` has the right positions of pairs; here the file is checked.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto

from ..onnx_graph.graph import WEIGHTED
from ..onnx_graph.kernels import SINGLE_ROW, without_int8_kernel
from ..quantization.fusions import residual_adds
from .network import Finding, Network
from .platform import SETS, Platform, keeps_int8

_RESIDUAL = "Round only the skip side of the sum, not the convolution's side."


def half_quantized(network: Network, platform: Platform) -> Iterator[Finding]:
    """301: where one factor of a product is rounded, the other is too."""
    for node in network.nodes:
        if node.op_type not in WEIGHTED:
            continue
        rounded = [name in network.rounded for name in node.input[:2]]
        if len(set(rounded)) == 1:
            continue
        weight = node.input[1] in network.index.constants
        missing = "weight" if weight and rounded[0] else f"input {node.input[rounded.index(False)]!r}"
        what = f"its {missing} is not rounded but the other factor is: it runs in float"
        cure = "Round both factors, or neither."
        yield Finding(301, "note" if weight else "warning", node.name, what, cure)


def island(network: Network, platform: Platform) -> Iterator[Finding]:
    """302: every pair serves an operator that runs in int8."""
    graph = network.model.graph
    made_in_int8 = {network.nodes[position].output[0] for position in network.int8}
    useful: set[str] = set()
    for node in reversed(graph.node):
        if (
            node.op_type in (*WEIGHTED, "QuantizeLinear")
            or (keeps_int8(node.op_type) and any(name in useful for name in node.output))
            or (node.op_type == "Add" and any(name in made_in_int8 for name in node.input))
        ):
            useful.update(node.input)
    for node in graph.node:
        activation = node.op_type == "DequantizeLinear" and network.weight(node) is None
        if activation and node.output[0] not in useful:
            readers = sorted({reader.op_type for reader in network.readers(node.output[0])})
            read = f"is read by {', '.join(readers)}" if readers else "is an output of the network"
            what = f"it {read}: nothing after it runs in int8, so the pair costs two passes and saves none"
            yield Finding(302, "warning", node.name, what, "Remove the pair.")


def before_activation(network: Network, platform: Platform) -> Iterator[Finding]:
    """303: no pair is between an operator and the batch norm, bias or activation that it fuses with."""
    for node in network.model.graph.node:
        maker = network.index.producer.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        if maker is None or not _fuses_onward(network, maker):
            continue
        for dequantize in network.readers(node.output[0]):
            broken = [
                reader
                for reader in network.readers(dequantize.output[0])
                if reader.op_type in SETS["activations"] or _is_affine(network, reader, maker)
            ]
            if broken:
                what = (
                    f"it is between {maker.op_type} {maker.name!r} and {broken[0].op_type} "
                    f"{broken[0].name!r}, which would be one kernel without it"
                )
                yield Finding(303, "warning", node.name, what, "Put the pair after the activation.")
                break


def _fuses_onward(network: Network, maker: NodeProto) -> bool:
    makers = [network.index.producer.get(name) for name in maker.input]
    behind = any(before is not None and before.op_type in WEIGHTED for before in makers)
    return maker.op_type in WEIGHTED or (maker.op_type in ("Add", "BatchNormalization") and behind)


def _is_affine(network: Network, reader: NodeProto, maker: NodeProto) -> bool:
    bias = reader.op_type == "Add" and any(name in network.index.constants for name in reader.input)
    return maker.op_type in WEIGHTED and (bias or reader.op_type == "BatchNormalization")


def convolution_side(network: Network, platform: Platform) -> Iterator[Finding]:
    """304: of a residual add, the side of the convolution that it fuses with is not rounded."""
    for position, branches in residual_adds(network.plain, network.plain_index, network.int8):
        node = network.nodes[position]
        rounded = [side for side, name in enumerate(node.input) if name in network.rounded]
        if len(rounded) == 2:
            what = "both of its sides are rounded: the convolution before it cannot fuse with it"
        elif rounded and rounded[0] in branches and 1 - rounded[0] not in branches:
            what = "the convolution's side is rounded but the skip is not: they do not fuse"
        else:
            continue
        yield Finding(304, "warning", node.name, what, _RESIDUAL)


def skip_side(network: Network, platform: Platform) -> Iterator[Finding]:
    """305: of a residual add, the skip side is rounded."""
    for position, _ in residual_adds(network.plain, network.plain_index, network.int8):
        node = network.nodes[position]
        if not any(name in network.rounded for name in node.input):
            what = "neither of its sides is rounded: the sum, fused into the convolution, is in float"
            yield Finding(305, "warning", node.name, what, _RESIDUAL)


def concat_scales(network: Network, platform: Platform) -> Iterator[Finding]:
    """306: the inputs of a concat have one scale, that of its result."""
    before: dict[str, set[float]] = {}
    behind: dict[str, set[float]] = {}
    for node in network.model.graph.node:
        scale = network.constant(node, 1) if node.op_type in ("QuantizeLinear", "DequantizeLinear") else None
        if scale is not None and scale.size == 1:
            value = float(scale.reshape(()))
            if node.op_type == "QuantizeLinear":
                behind.setdefault(node.input[0], set()).add(value)
            else:
                before[node.output[0]] = {value}
        elif node.op_type not in ("Concat", *WEIGHTED) and all(
            name in network.rounded for name in node.output
        ):
            before[node.output[0]] = before.get(node.input[0], set())  # moved, with its scale
    for node in network.model.graph.node:
        if node.op_type != "Concat":
            continue
        result = behind.get(node.output[0], set())
        if not result and not any(name in network.rounded for name in node.input):
            continue
        scales = result.union(*(before.get(name, set()) | behind.get(name, set()) for name in node.input))
        if len(scales) > 1:
            what = (
                f"it joins tensors of {len(scales)} scales, {min(scales):.3g} to {max(scales):.3g}; TensorRT "
                "concatenates int8 without rescaling, so they are rounded again"
            )
            cure = "Give all inputs of the concat and its result one scale, the largest."
            yield Finding(306, "warning", node.name, what, cure)


def int8_kernel(network: Network, platform: Platform) -> Iterator[Finding]:
    """307: a quantized operator has the shape of a fast int8 kernel."""
    for position in sorted(network.int8):
        node, plain = network.nodes[position], network.plain.node[position]
        weight = network.plain_index.constants.get(plain.input[1])
        first = plain.input[0] not in network.plain_index.producer
        reason = ""
        if weight is not None and len(weight.dims) >= 2:
            reason = without_int8_kernel(plain, weight.dims, first=first)
        rows = network.shapes.get(node.output[0], ())[-2:-1]
        if not reason and node.op_type in ("Gemm", "MatMul") and rows == (1,):
            reason = SINGLE_ROW
        if reason:
            cure = "Keep it in float (skip it when quantizing), or widen it to a multiple of 16."
            yield Finding(307, "warning", node.name, f"{reason}: its pairs cost more than they save", cure)


def lowest_weight(network: Network, platform: Platform) -> Iterator[Finding]:
    """308: int8 weights are from -127 to 127."""
    for node in network.quantizers():
        weight = network.weight(node)
        values = network.constant(node, 0)
        if weight is not None and values is not None and values.dtype == np.int8 and (values == -128).any():
            what = f"{weight.name!r} has -128; TensorRT's weights are from -127 to 127"
            cure = "Quantize weights with scale = largest magnitude / 127."
            yield Finding(308, "note", node.name, what, cure)
