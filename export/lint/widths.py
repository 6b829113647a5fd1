"""Rules 401 to 403: channels that do not fit the board's step, changes of precision, and FP32 operators.

None of these prevents a build; they predict where time is lost, before any measurement.

`off_step` does so for ONNX Runtime's int8 kernels. Measured on x86 (widths 32 to 66 and 96 to 132): if its
input or output channels are not a multiple of 4, an int8 convolution takes 1.6 times as long; if not a
multiple of 16, a depthwise one takes 2 to 2.5 times as long, more than INT8 gains. The target has the steps;
the effect of a layer's neighbours can only be measured.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from onnx import TensorProto

from ...targets.target import Target
from ..onnx_graph.graph import WEIGHTED, OnnxModel, attribute_of
from ..quantization.placement import rules_of
from .network import Finding, Network, Severity
from .platform import SETS, Platform, keeps_int8

NAMED = 3  # layers in a sentence


def width(network: Network, platform: Platform) -> Iterator[Finding]:
    """401: the widths that can be chosen are multiples of the board's steps."""
    if platform.board is None:
        return
    heads = _heads(network)
    for position, plain in enumerate(network.plain.node):
        weight = network.plain_index.constants.get(plain.input[1]) if plain.op_type in WEIGHTED else None
        if weight is None or position in heads or len(weight.dims) < 2:
            continue
        kind, units = _kind(network, position, list(weight.dims))
        if units < 1:
            continue
        align = platform.board.align(kind)
        step = align.step_for(units)
        severity: Severity = "warning" if units % align.hard else "note"
        if units % align.hard:
            why = f"only multiples of {align.hard} have fast kernels"
        elif units % step:
            why = f"channels are computed in steps of {step}, and the rest of the last step is wasted"
        else:
            continue
        what = f"it has {units} output channels ({kind}); {why}: {-(-units // step) * step} cost no more"
        cure = f"Prune with {platform.board.name} as the target: widths are then multiples of its steps."
        yield Finding(401, severity, network.nodes[position].name, what, cure)


def _heads(network: Network) -> set[int]:
    """The weighted operators whose width is that of an output of the network, so it cannot be chosen."""
    shown = set(network.plain_index.outputs)
    heads = set()
    for position in reversed(range(len(network.plain.node))):
        node = network.plain.node[position]
        if any(name in shown for name in node.output):
            if node.op_type in WEIGHTED:
                heads.add(position)
            else:
                shown.update(node.input)
    return heads


def _kind(network: Network, position: int, dims: list[int]) -> tuple[str, int]:
    """The board's kind of the operator, and its number of output channels."""
    node = network.plain.node[position]
    groups = int(attribute_of(node, "group", 1))
    if node.op_type == "Conv":
        return ("depthwise" if groups > 1 and dims[1] == 1 else "conv"), dims[0]
    if node.op_type == "ConvTranspose":
        return "conv", dims[1] * groups
    if node.op_type == "Gemm":
        return "linear", dims[0] if attribute_of(node, "transB", 0) else dims[1]
    rows = network.shapes.get(network.nodes[position].output[0], ())
    return ("linear" if len(rows) <= 2 else "matmul"), dims[-1]


def change_of_precision(network: Network, platform: Platform) -> Iterator[Finding]:
    """402: no float operator is between int8 operators."""
    near: set[str] = set()  # in int8, or in what an int8 kernel could write
    for position, node in enumerate(network.plain.node):
        if position in network.int8 or (
            keeps_int8(node.op_type) and any(name in near for name in network.plain_index.computed(node))
        ):
            near.update(node.output)
    ahead: set[str] = set()  # an int8 operator follows
    between = []
    for position in reversed(range(len(network.plain.node))):
        node = network.plain.node[position]
        if position in network.int8 or any(name in ahead for name in node.output):
            in_float = position not in network.int8 and not keeps_int8(node.op_type)
            if in_float and any(name in near for name in node.input):
                between.append(position)
            ahead.update(node.input)
    for position in reversed(between):
        node = network.nodes[position]
        what = (
            f"{node.op_type} runs in float between int8 operators; a reformat before and one after it are "
            "predicted"
        )
        cure = "Measure whether INT8 is faster here; if not, keep the operators around it in float."
        yield Finding(402, "note", node.name, what, cure)


def single_precision(network: Network, platform: Platform) -> Iterator[Finding]:
    """403: what a strongly typed engine computes in float is FP16 in the file."""
    pairs = any(True for _ in network.quantizers())
    # TensorRT 10 has a flag for float files, which are weakly typed then; 11 has none.
    if platform.version < ((10,) if pairs else (11,)):
        return
    for position, node in enumerate(network.nodes):
        kind = network.types.get(node.output[0])
        moves = keeps_int8(node.op_type) or node.op_type in SETS["no_numbers"] | {"Cast"}
        if moves or position in network.int8 or kind != TensorProto.FLOAT or not network.index.computed(node):
            continue
        what = f"{node.op_type} is FLOAT: {platform.name} runs it in FP32, since the engine is strongly typed"
        cure = (
            "deadweight build --precision fp16 converts the file on its way to TensorRT 10 or 11. For other "
            "programs write FLOAT16 into it: deadweight quantize --half."
        )
        yield Finding(403, "note", node.name, what, cure)


def off_step(model: OnnxModel, in_int8: Collection[str], target: Target) -> tuple[str, ...]:
    """A sentence on the convolutions of a float model that do not fit the target's int8 steps; or none.

    Args:
        in_int8: the names of the layers that run in int8.
    """
    if not rules_of(target.runtime.dialect).onnx_runtime:
        return ()
    index = model.index
    found = []
    for node in model.graph.node:
        weight = index.constants.get(node.input[1]) if node.op_type == "Conv" else None
        if weight is None or node.name not in in_int8:
            continue
        groups = int(attribute_of(node, "group", 1))
        outputs, inputs = weight.dims[0], weight.dims[1] * groups
        if groups > 1 and weight.dims[1] == 1:
            step, widths = target.align("depthwise").step, [outputs]
        else:
            # The channels of the network's input cannot be chosen.
            first = node.input[0] not in index.producer
            step, widths = target.align("conv").hard, [outputs] if first else [inputs, outputs]
        if any(width % step for width in widths):
            found.append(f"{node.name} ({' to '.join(map(str, widths))}, step {step})")
    if not found:
        return ()
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return (
        "widths that do not fit the steps of int8 kernels, where INT8 may be slower than FP32: "
        f"{', '.join(found[:NAMED])}{more}: prune with this target's alignment, or keep them in float",
    )
