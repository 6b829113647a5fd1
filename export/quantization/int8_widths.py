"""The check for INT8 layers whose widths are slow in ONNX Runtime's int8 kernels.

Measured on x86 (widths 32 to 66 and 96 to 132): if its input or output channels are not a multiple of 4, an
int8 convolution takes 1.6 times as long; if not a multiple of 16, a depthwise one takes 2 to 2.5 times as
long, more than INT8 gains. The target has the steps; the effect of a layer's neighbours can only be measured.
"""

from __future__ import annotations

from collections.abc import Collection

from ...targets.target import Target
from ..onnx_graph.graph import OnnxModel, attribute_of
from .placement import rules_of

NAMED = 3  # layers in a sentence


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
