"""Whether two networks compute the same, up to the order of sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .capture import in_mode

TOLERANCE = {
    **dict.fromkeys((torch.float64, torch.complex128), 1e-11),
    **dict.fromkeys((torch.float32, torch.complex64), 1e-5),
    torch.bfloat16: 5e-2,
    torch.float16: 1e-2,
}
"""How far two outputs that are the same up to the order of sums may differ, relative to the largest value."""

_FILLED = 1e6
"""How many times larger a value must be than those that differ to be one that was filled in."""


def run(model: nn.Module, inputs: Sequence[Any]) -> list[Any]:
    """All outputs of a module in eval mode, flat."""
    with in_mode(model, training=False), torch.no_grad():
        return list(pytree.tree_leaves(model(*inputs)))


def relative_error(expected: list[Any], found: Sequence[Any]) -> float:
    """The largest difference, relative to the largest value of that output; infinite where shapes differ."""
    if len(expected) != len(found):
        return float("inf")
    return max((error_of(one, other) for one, other in zip(expected, found, strict=True)), default=0.0)


def tolerance(outputs: Sequence[Any]) -> float:
    """What rounding may do to outputs of these types."""
    kinds = [TOLERANCE.get(value.dtype, 0.0) for value in outputs if isinstance(value, Tensor)]
    return max(kinds, default=0.0)


def error_of(expected: Any, found: Any) -> float:
    """The largest difference of one output, relative to its largest finite value.

    Values that are equal to the bit and a million times larger than any that differ do not count: scores
    masked with -1e9 would hide any mistake. An infinity is equal to itself; NaN to nothing.
    """
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor):
        return 0.0 if expected == found else float("inf")
    if expected.shape != found.shape:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    if not expected.is_floating_point() and not expected.is_complex():
        return 0.0 if torch.equal(expected, found) else float("inf")
    one, other = (
        value.to(torch.complex128 if value.is_complex() else torch.float64) for value in (expected, found)
    )
    difference = torch.where(one == other, 0.0, (one - other).abs())
    size = torch.where(one.isfinite(), one.abs(), 0.0)
    differing = torch.where(difference > 0, size, 0.0).max()
    size = torch.where((difference == 0) & (size > _FILLED * differing), 0.0, size)
    largest = size.max().clamp_min(torch.finfo(torch.float64).tiny)
    return float(difference.max() / largest) if bool(difference.isfinite().all()) else float("inf")
