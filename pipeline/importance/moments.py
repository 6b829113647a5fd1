"""Streaming moments of a tensor, by slot: mean, deviation, magnitude, zeros, maximum.

A slot is one position along the kept axes (a channel, a neuron); all other axes are reduced. Each batch is
measured alone and merged with those before it, so one pass over any number of batches of any size is enough,
and the state is a few numbers per slot.

Only PyTorch's `sum`, `amax` and `amin` are used: they run at the speed of memory, on any number of threads;
`var` and `(x == 0).mean()` do not. Its `sum` adds pairwise, so that float32 is good to 3e-6 over a
million values of one sign in the worst case tried (Higham 1993, "The accuracy of floating point summation");
products with ones and norms are as fast and lose up to 2e-4 over a 112x112 map. Two things float32 cannot do:
values of both signs, which are therefore summed in float64, and a deviation far below the mean, where a sum
of squares cancels. Such slots are recognised by their condition number, and only they are measured again, in
float64 and around a shift.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Values per tile: bounds the working memory, 16 MB, and the rounding of a sum in float32.
_TILE = 1 << 22

# Tensors up to this size are cast to float64 at once: it costs nothing, and no slot is measured twice.
_SMALL = 1 << 16

# Largest ratio of mean square to variance at which sums of squares in this type give a deviation to 1e-5.
_CONDITION_LIMIT = {torch.float32: 10.0, torch.float64: 1e6}

# A mean square under this may have lost digits to float32's underflow.
_LEAST_SQUARE = 1e-30


@dataclass(frozen=True)
class Moments:
    """Moments of `count` values in each slot. Tensors are float64 on the CPU, one entry per slot.

    `deviation` is the sum of squared deviations from the mean, `magnitude` the sum of absolute values,
    `nonzero` the number of values that are not exactly zero. `measured` counts slots times batches and
    `shifted` how many of these needed the second, shifted pass.
    """

    count: Tensor
    mean: Tensor
    deviation: Tensor
    magnitude: Tensor
    nonzero: Tensor
    maximum: Tensor
    measured: int
    shifted: int

    @property
    def finite(self) -> bool:
        return bool(torch.isfinite(self.deviation).all())


def measure(value: Tensor, axes: Collection[int]) -> Moments:
    """The moments of one tensor: a slot for every position along `axes`, row-major in ascending axis order.

    `value` is of any real type and memory layout and has at least one element. Figures are good to 1e-5
    relative, for magnitudes between 1e-150 and 1e150; the mean of values of both signs to 1e-12 of the mean
    magnitude. A NaN or an infinity makes the slot's deviation NaN or infinite: see `Moments.finite`.
    """
    if value.numel() <= _SMALL or not (value.is_floating_point() or value.dtype == torch.bool):
        value = value.double()
    elif value.dtype not in _CONDITION_LIMIT:
        value = value.float()
    kept = sorted(axis % value.ndim for axis in axes)
    over = [axis for axis in range(value.ndim) if axis not in kept]
    slots = value.permute(*over, *kept).flatten(len(over)) if kept else value.flatten()[:, None]
    slots = slots if over else slots[None]
    total, squares, magnitude, nonzero, maximum = _sums(slots)
    count = value.numel() // total.numel()
    mean = total / count
    deviation = torch.addcmul(squares, total, mean, value=-1).clamp_min_(0)
    # As a difference, so that an overflow gives NaN.
    sound = squares - deviation * _CONDITION_LIMIT[value.dtype] <= 0
    sound &= squares >= nonzero * _LEAST_SQUARE
    shifted = 0 if bool(sound.all()) else int((~sound).sum())
    if shifted:
        old, new = (mean, deviation, magnitude), _shifted(slots, ~sound)
        pairs = zip(old, new, strict=True)
        mean, deviation, magnitude = (torch.where(sound, figure, again) for figure, again in pairs)
    counts = torch.full_like(mean, count)
    return Moments(counts, mean, deviation, magnitude, nonzero, maximum, mean.numel(), shifted)


def merge(several: Sequence[Moments]) -> Moments:
    """The moments of several sets of values together, slot by slot; a slot may be empty (count 0) in some."""
    slots = several[0].mean.numel()
    each = ((one.count, one.mean, one.deviation, one.magnitude, one.nonzero, one.maximum) for one in several)
    count, mean, deviation, magnitude, nonzero, maximum = map(torch.cat, zip(*each, strict=True))
    measured, shifted = (sum(getattr(one, name) for one in several) for name in ("measured", "shifted"))
    together = Moments(count, mean, deviation, magnitude, nonzero, maximum, measured, shifted)
    return fold(together, torch.arange(slots).repeat(len(several)), slots)


def fold(moments: Moments, units: Tensor, size: int) -> Moments:
    """The moments of `size` units: `units` says for every slot which unit it belongs to, -1 for none.

    A unit with several slots (a channel whose positions were flattened) gets all their values; one without
    slots gets count 0, mean 0 and maximum -inf. Deviations are combined by the formula of Chan, Golub,
    LeVeque 1983, "Algorithms for computing the sample variance: analysis and recommendations".
    """
    mine = (units >= 0) & (moments.count > 0)
    units, count, mean = units[mine], moments.count[mine], moments.mean[mine]

    def summed(values: Tensor) -> Tensor:
        return values.new_zeros(size).index_add_(0, units, values)

    def highest(values: Tensor, otherwise: float) -> Tensor:
        lowest = values.new_full((size,), otherwise)
        return lowest.scatter_reduce_(0, units, values, "amax", include_self=False)

    # Means are relative to one of the unit's own, so that equal means stay exactly equal.
    origin = highest(mean, 0.0)
    whole = summed(count)
    offset = summed(count * (mean - origin[units])) / whole.clamp_min(1)
    apart = mean - origin[units] - offset[units]
    return Moments(
        count=whole,
        mean=origin + offset,
        deviation=summed(moments.deviation[mine] + count * apart**2),
        magnitude=summed(moments.magnitude[mine]),
        nonzero=summed(moments.nonzero[mine]),
        maximum=highest(moments.maximum[mine], -torch.inf),
        measured=moments.measured,
        shifted=moments.shifted,
    )


def _sums(value: Tensor) -> Tensor:
    """By slot (the last axis): sum, sum of squares, sum of magnitudes, number of non-zeros, maximum.

    Returns:
        float64[5, slots], on the CPU.
    """
    over = tuple(range(value.ndim - 1))
    widest = max(over, key=lambda axis: value.shape[axis])
    sums = torch.zeros(5, value.shape[-1], dtype=torch.float64)
    sums[4] = -torch.inf
    for tile in torch.split(value, max(1, _TILE * value.shape[widest] // value.numel()), widest):
        total, squares = tile.sum(over), tile.square().sum(over)
        magnitude, nonzero = total, tile.sign()
        if tile.amin() < 0:
            total, magnitude = tile.sum(over, dtype=torch.float64), tile.abs().sum(over)
            nonzero = nonzero.abs_()
        part = [one.double().cpu() for one in (total, squares, magnitude, nonzero.sum(over), tile.amax(over))]
        sums[:4] += torch.stack(part[:4])
        sums[4] = torch.maximum(sums[4], part[4])
    return sums


def _shifted(value: Tensor, ill: Tensor) -> tuple[Tensor, ...]:
    """Mean, deviation and magnitude of the `ill` slots, in float64 around one of their own values.

    A value of the slot is within sqrt(count) deviations of its mean, so at most `count` roundings are lost
    around it: this needs no history, cannot overflow, and does not depend on earlier batches.
    """
    count = value.numel() // len(ill)
    figures = torch.zeros(3, len(ill), dtype=torch.float64)
    tile = _TILE // 16  # float64, gathered: this should stay in the cache
    for slots in torch.split(ill.nonzero().squeeze(1), max(1, tile // count)):
        near = value.index_select(-1, slots.to(value.device)).flatten(0, -2).double()
        shift, magnitude = near[0].clone(), near.abs().sum(0)
        near -= shift
        around = near.sum(0)
        deviation = (near.square_().sum(0) - around**2 / count).clamp_min(0)
        figures[:, slots] = torch.stack((shift + around / count, deviation, magnitude)).cpu()
    return figures.unbind()
