"""Where a network decides, and the last continuous tensors before it: those are compared, not what is behind.

After rounding a near tie falls the other way: other boxes are selected, in another order. Values behind a
decision then differ wholly though both networks are right. So a network is judged by the tensors ahead of its
decisions, and its decisions by the share that agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..onnx_graph.counts import living
from ..onnx_graph.graph import Array, OnnxModel, number_outputs

DECIDING = (
    *("NonMaxSuppression", "NonZero", "Unique", "Compress"),  # how many rows they give depends on the data
    *("TopK", "ArgMax", "ArgMin", "Hardmax", "Bernoulli", "Multinomial"),
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
)
SIZES = ("Shape", "Size")  # they depend only on a size
SATURATED = 0.02  # a sigmoid this near to 0 and 1 everywhere has no scale of its own
SAME_BOX = 0.5  # intersection over union from which two boxes are the same


@dataclass(frozen=True)
class Judged:
    """By what a network is judged.

    Attributes:
        tensors: the continuous ones, in the order of the graph: outputs, and those ahead of a decision.
        decided: by output behind a decision, the operator that decides.
    """

    tensors: tuple[str, ...]
    decided: Mapping[str, str]


def judged_by(model: OnnxModel) -> Judged:
    """The continuous tensors and the decisions of a model."""
    behind: dict[str, str] = {}
    floats, constants = set(model.float_names()), model.index.constants
    ahead: set[str] = set()
    outputs = number_outputs(model.graph)
    others = model.index.outputs.difference(outputs)  # text, sequences and maps
    for node in living(model.graph):
        if node.op_type in SIZES:
            continue
        found = next((behind[name] for name in node.input if name in behind), None)
        made = list(node.output)
        if node.op_type in DECIDING:
            found = found or node.op_type
            made = made[node.op_type == "TopK" and found == "TopK" :]  # its values are continuous
        if found is None and not others.isdisjoint(node.output):
            found = node.op_type
        if found is None:
            continue
        behind |= dict.fromkeys(made, found)
        ahead |= {name for name in node.input if name in floats and name not in behind}
    decided = {name: behind[name] for name in outputs if name in behind}
    direct = {name for name in outputs if name not in behind}
    order = [name for node in model.graph.node for name in node.output]
    order += [name for name in direct if name not in order]  # an input, or a constant
    return Judged(tuple(n for n in order if n in direct or (n in ahead and n not in constants)), decided)


def before_saturation(model: OnnxModel, values: Mapping[str, Array]) -> dict[str, str]:
    """By tensor, the input of the Sigmoid that makes it, where it is near 0 and 1 everywhere."""
    found = {}
    for name, value in values.items():
        maker = model.index.producer.get(name)
        if maker is None or maker.op_type != "Sigmoid" or not value.size:
            continue
        if bool((np.minimum(np.abs(value), np.abs(1 - value)) < SATURATED).all()):
            found[name] = maker.input[0]
    return found


def agreement(before: Array, after: Array) -> float | None:
    """The share of equal decisions: labels one by one, boxes by their overlap; None if they are neither."""
    if before.dtype.kind in "iub" and before.shape == after.shape:
        return float(np.mean(before == after)) if before.size else 1.0
    boxes = before.dtype.kind == "f" and before.ndim >= 2 and before.shape[-1] in (4, 5, 6, 7)
    if not boxes or after.ndim != before.ndim or after.shape[-1] != before.shape[-1]:
        return None
    wide = [value.reshape(-1, *value.shape[-2:])[..., :4].astype(np.float64) for value in (before, after)]
    if len(wide[0]) != len(wide[1]):
        return None
    overlaps = [_overlaps(one, other) for one, other in zip(*wide, strict=True)]
    found = [bool(best > SAME_BOX) for each in overlaps for best in each]
    return float(np.mean(found)) if found else 1.0


def _overlaps(boxes: Array, others: Array) -> Array:
    """For each box the largest intersection over union with any of the others."""
    if not len(others):
        return np.zeros(len(boxes))
    one, two = (_corners(each) for each in (boxes, others))
    low = np.maximum(one[:, None, :2], two[None, :, :2])
    high = np.minimum(one[:, None, 2:], two[None, :, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=-1)
    areas = [np.prod(each[:, 2:] - each[:, :2], axis=-1) for each in (one, two)]
    union = areas[0][:, None] + areas[1][None] - common
    same = (boxes[:, None] == others[None]).all(-1)  # an empty box has no overlap with itself
    return np.asarray(np.where(same, 1.0, common / np.maximum(union, 1e-12)).max(axis=1))


def _corners(boxes: Array) -> Array:
    """Boxes as two corners; those of a center and a size are converted."""
    if bool((boxes[:, 2:] >= boxes[:, :2]).all()):
        return boxes
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
