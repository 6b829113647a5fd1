"""Rules 501 to 505: what the deep learning accelerator (DLA) of a board leaves to the GPU.

Each change of device splits the network and converts its tensors, so one node in the middle can cost more
than DLA saves. These rules apply only to a board with DLA cores that its TensorRT supports.

Sources: NVIDIA's list of operators on Orin's DLA (Deep-Learning-Accelerator-SW, ea61780, up to TensorRT
8.6.12), and "DLA supported layers and restrictions" in TensorRT's guides for 8.x and 10.x. The builder
decides: it also refuses combinations that are in no list.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from onnx import NodeProto, TensorProto

from ..onnx_graph.graph import QUANTIZED, attribute_of, given_inputs
from .network import Finding, Network, label
from .platform import SETS, Platform, Version

Limit = Callable[[Network, NodeProto, bool], Iterator[str]]

LARGEST_AXIS, LARGEST_BATCH = 8192, 4096
_QUANTIZED_SINCE: Version = (11, 4, 1)  # before, int8 on DLA means a calibration cache
_BANKS, _BANK_BYTES, _BANK_ENTRIES = 16, 32768, 256  # of the buffer that a convolution works in
_LONG_KERNELS = (64, 96, 128)


def quantized(network: Network, platform: Platform) -> Iterator[Finding]:
    """501: before TensorRT 11.4 no activation is quantized by Q/DQ pairs."""
    if platform.dla_cores and platform.version < _QUANTIZED_SINCE:
        for node in network.quantizers():
            if network.weight(node) is None:
                what = f"DLA has no {node.op_type}: its int8 comes from a calibration cache"
                cure = (
                    "For DLA give the float file and its ranges: deadweight quantize FLOAT.onnx --data "
                    f"SAMPLES --target {platform.board.name if platform.board else 'BOARD'} "
                    "--calibration-cache writes them, and deadweight build float.onnx --dla-core 0 "
                    "--calibration-cache calibration.cache takes them."
                )
                yield Finding(501, "error" if platform.for_dla else "note", node.name, what, cure)


def on_dla(network: Network, platform: Platform) -> Iterator[Finding]:
    """502: DLA has every operator."""
    if not platform.dla_cores:
        return
    known = SETS["dla"] | (SETS["dla_since_10"] if platform.version >= (10,) else set())
    for node in network.every_node():
        if node.op_type not in known and not _at_build_time(network, node):
            what = f"{node.op_type} runs on the GPU: DLA has no such operator"
            cure = "Replace it by operators that DLA has, or move it to the end of the network."
            yield Finding(502, "note", label(node), what, cure)


def within_limits(network: Network, platform: Platform) -> Iterator[Finding]:
    """503: each operator is within DLA's limits."""
    if not platform.dla_cores:
        return
    for node in network.every_node():
        limit = _LIMITS.get(node.op_type)
        int8 = any(name in network.rounded for name in node.input)
        faults = list(limit(network, node, int8)) if limit is not None else []
        if faults and not _at_build_time(network, node):
            what = f"{node.op_type} runs on the GPU: {'; '.join(faults)}"
            cure = "Change the operator to be within DLA's limits, or leave it to the GPU."
            yield Finding(503, "note", label(node), what, cure)


def tensor_sizes(network: Network, platform: Platform) -> Iterator[Finding]:
    """504: no tensor exceeds DLA's limit."""
    if not platform.dla_cores:
        return
    for node in network.nodes:
        shape = network.shapes.get(node.output[0], ())
        large = [size for size in shape[1:] if size is not None and size > LARGEST_AXIS]
        batch = math.prod(size or 1 for size in shape[:-3])
        if _at_build_time(network, node) or not (large or batch > LARGEST_BATCH):
            continue
        size = f"an axis of {large[0]}, {LARGEST_AXIS}" if large else f"a batch of {batch}, {LARGEST_BATCH}"
        what = f"{node.op_type} runs on the GPU: its result has {size} is DLA's maximum"
        yield Finding(504, "note", label(node), what, "Process smaller pieces.")


def fixed_sizes(network: Network, platform: Platform) -> Iterator[Finding]:
    """505: the sizes of a file for DLA are fixed."""
    for value in given_inputs(network.model.graph) if platform.for_dla else ():
        free = [place for place, size in enumerate(network.shapes.get(value.name, ())) if size is None]
        if free:
            what = (
                f"axis {free[0]} of the input {value.name!r} has no fixed size; DLA has no dynamic dimensions"
            )
            cure = "Build for one size, e.g. deadweight build --dla-core 0 --batch 1,1,1, or export with it."
            yield Finding(505, "warning", value.name, what, cure)


def _at_build_time(network: Network, node: NodeProto) -> bool:
    """Whether TensorRT computes the node at build time, or rule 501 covers it."""
    whole = (TensorProto.INT64, TensorProto.INT32)
    given = [name for name in node.input if name and name not in network.index.constants]
    integers = bool(given) and all(network.types.get(name) in whole for name in given)
    return node.op_type in SETS["at_build_time"] or not given or integers


def _numbers(node: NodeProto, name: str, default: list[int]) -> list[int]:
    return [int(value) for value in attribute_of(node, name, default)]


def _planar(network: Network, node: NodeProto, int8: bool) -> Iterator[str]:
    axes = len(network.shapes.get(node.output[0], (0,) * 4))
    if axes != 4:
        yield f"its result has {axes} axes, DLA needs [N, C, H, W]"


def _between(name: str, values: list[int], least: int, most: int) -> Iterator[str]:
    if any(not least <= value <= most for value in values):
        yield f"its {name} {values} is not within {least} to {most}"


def _convolution(network: Network, node: NodeProto, int8: bool) -> Iterator[str]:
    weight = network.shapes.get(node.input[1], ())
    if len(weight) != 4:
        yield f"its weight has {len(weight)} axes, DLA needs [out, in, H, W]"
        return
    kernel = [size or 0 for size in weight[2:]]
    pads, dilations = _numbers(node, "pads", [0] * 4), _numbers(node, "dilations", [1, 1])
    yield from _between("kernel", kernel, 1, 32)
    yield from _between("padding", pads, 0, 31)
    if any(pad >= size for pad, size in zip(pads, kernel * 2, strict=False)):
        yield f"its padding {pads} is not less than the kernel {kernel}"
    yield from _between("stride", _numbers(node, "strides", [1, 1]), 1, 8)
    yield from _between("dilation", dilations, 1, 32)
    data = network.shapes.get(node.input[0], ())
    if len(data) == 4 and data[1] is not None and data[3] is not None:
        banks = _banks(data[1], data[3], kernel, dilations[0], 1 if int8 else 2)
        if banks > _BANKS:
            yield f"it needs {banks} banks of the convolution buffer, there are {_BANKS}"


def _banks(channels: int, columns: int, kernel: list[int], dilation: int, item_bytes: int) -> int:
    of_kernel = math.ceil(channels * kernel[0] * kernel[1] * item_bytes / 128) * 128
    entries = math.ceil(math.ceil(channels * item_bytes / 32) * columns / 4)
    rows = (kernel[0] - 1) * dilation + 1
    return math.ceil(of_kernel / _BANK_BYTES) + math.ceil(entries * rows / _BANK_ENTRIES)


def _transposed(network: Network, node: NodeProto, int8: bool) -> Iterator[str]:
    weight = network.shapes.get(node.input[1], ())
    if len(weight) != 4:
        yield f"its weight has {len(weight)} axes, DLA needs [in, out, H, W]"
        return
    kernel = [size or 0 for size in weight[2:]]
    for name, values in (("kernel", kernel), ("stride", _numbers(node, "strides", [1, 1]))):
        if not (1 in values and max(values) in _LONG_KERNELS):
            yield from _between(name, values, 1, 32)
    if any(_numbers(node, "pads", [0])) or any(_numbers(node, "output_padding", [0])):
        yield "it is padded"
    if any(step != 1 for step in _numbers(node, "dilations", [1])):
        yield "it is dilated"
    if attribute_of(node, "group", 1) != 1:
        yield f"it has {attribute_of(node, 'group')} groups"


def _pool(network: Network, node: NodeProto, int8: bool) -> Iterator[str]:
    yield from _planar(network, node, int8)
    yield from _between("window", _numbers(node, "kernel_shape", []), 1, 8)
    yield from _between("padding", _numbers(node, "pads", [0]), 0, 7)
    yield from _between("stride", _numbers(node, "strides", [1]), 1, 16)
    padded = any(_numbers(node, "pads", [0]))
    if node.op_type == "AveragePool" and padded and not attribute_of(node, "count_include_pad", 0):
        yield "its average excludes the padding"


def _clip(network: Network, node: NodeProto, int8: bool) -> Iterator[str]:
    low, high = network.constant(node, 1), network.constant(node, 2)
    bounds = [None if value is None else float(value.reshape(-1)[0]) for value in (low, high)]
    if bounds[0] != 0.0 or bounds[1] is None or not 1.0 <= bounds[1] <= 127.0:
        yield f"it clips to {bounds[0]} and {bounds[1]}, DLA to 0 and a bound between 1 and 127"
    yield from _planar(network, node, int8)


def _product(network: Network, node: NodeProto, int8: bool) -> Iterator[str]:
    name = node.input[1]
    maker = network.index.producer.get(name)
    weight = network.weight(maker) if maker is not None and maker.op_type in QUANTIZED else None
    if name not in network.index.constants and weight is None:
        yield "its second factor is not constant"


def _concat(network: Network, node: NodeProto, int8: bool) -> Iterator[str]:
    axes = len(network.shapes.get(node.input[0], (0,) * 4))
    axis = int(attribute_of(node, "axis", 1)) % max(axes, 1)
    if axis != axes - 3 or len(node.input) < 2:
        yield f"it concatenates {len(node.input)} tensors along axis {axis}, DLA 2 or more along the channels"


def _resize(network: Network, node: NodeProto, int8: bool) -> Iterator[str]:
    most = 4 if attribute_of(node, "mode", b"nearest") != b"nearest" else 32
    before, after = (network.shapes.get(name, ()) for name in (node.input[0], node.output[0]))
    factors = [a / b if a and b else None for a, b in zip(after[-2:], before[-2:], strict=False)]
    if len(before) != 4 or before[1:2] != after[1:2]:
        yield "it changes more than height and width"
    elif any(factor is None or factor != int(factor) or not 1 <= factor <= most for factor in factors):
        yield f"its factors {factors} are not integers from 1 to {most}"


def _softmax(network: Network, node: NodeProto, int8: bool) -> Iterator[str]:
    shape = network.shapes.get(node.input[0], ())
    axis = int(attribute_of(node, "axis", -1)) % max(len(shape), 1)
    others = [size for place, size in enumerate(shape) if place not in (0, axis) and size != 1]
    length = shape[axis] if shape else None
    if axis == 0 and shape:
        yield "it runs along the batch"
    elif length is not None and length > (1024 if others else LARGEST_AXIS):
        yield f"its axis of {length} is too long"


def _norm_window(network: Network, node: NodeProto, int8: bool) -> Iterator[str]:
    if attribute_of(node, "size", 0) not in (3, 5, 7, 9):
        yield f"its window is {attribute_of(node, 'size')}, DLA allows 3, 5, 7 and 9"


def _slope(network: Network, node: NodeProto, int8: bool) -> Iterator[str]:
    if network.constant(node, 1) is None:
        yield "its slope is computed"


_LIMITS: dict[str, Limit] = {
    **dict.fromkeys(("AveragePool", "MaxPool"), _pool),
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    **dict.fromkeys(("Gemm", "MatMul"), _product),
    "LRN": _norm_window,
    "PRelu": _slope,
    "Resize": _resize,
    "Softmax": _softmax,
    **dict.fromkeys(
        ("Add", "LeakyRelu", "Max", "Min", "Mul", "Relu", "Sigmoid", "Sub", "Sum", "Tanh"), _planar
    ),
}
