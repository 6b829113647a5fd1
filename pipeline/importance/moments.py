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

import functools
import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Values per tile, and its rows at most: bounds the working memory, 16 MB, and the rounding of a column.
_TILE = 1 << 22
_TALLEST = 1 << 16

# Tensors up to this size are cast to float64 at once: it costs nothing, and no slot is measured twice.
_SMALL = 1 << 16

# Largest ratio of mean square to variance at which sums of squares in this type give a deviation to 1e-5.
_CONDITION_LIMIT = {torch.float32: 10.0, torch.float64: 1e6}

# A mean square under this may have lost digits to float32's underflow.
_LEAST_SQUARE = 1e-30

# Rows shorter than this are too slow to reduce one by one: the tensor is transposed and columns are summed.
_SHORTEST_ROW = 16


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
    layout = _layout(tuple(value.shape), value.stride(), tuple(axis % value.ndim for axis in axes))
    matrix = value.permute(layout.order).reshape(layout.matrix)
    total, squares, magnitude, nonzero, maximum = _by_slot(_line_sums(matrix, layout.dim), layout)
    count = value.numel() // total.numel()
    mean = total / count
    deviation = torch.addcmul(squares, total, mean, value=-1).clamp_min_(0)
    # As a difference, so that an overflow gives NaN.
    sound = squares - deviation * _CONDITION_LIMIT[value.dtype] <= 0
    sound &= squares >= nonzero * _LEAST_SQUARE
    shifted = 0 if bool(sound.all()) else int((~sound).sum())
    if shifted:
        old, new = (mean, deviation, magnitude), _shifted(matrix, layout, ~sound)
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


@dataclass(frozen=True)
class _Layout:
    """How a tensor becomes a matrix whose lines (rows, or columns) each belong to one slot.

    Permuted by `order` and reshaped to `matrix`, then summed along `dim`. The remaining lines have the sizes
    `lead`; summing their axes `within` and permuting the rest by `ascending` gives the slots.
    """

    order: tuple[int, ...]
    matrix: tuple[int, int]
    dim: int
    lead: tuple[int, ...]
    within: tuple[int, ...]
    ascending: tuple[int, ...]


@functools.lru_cache(maxsize=1024)
def _layout(shape: tuple[int, ...], stride: tuple[int, ...], axes: tuple[int, ...]) -> _Layout:
    """The layout that copies as little as the tensor's strides allow."""
    kept = {axis for axis in axes if shape[axis] > 1}
    order = sorted(range(len(shape)), key=lambda axis: (shape[axis] > 1, -stride[axis]))
    inner = list(itertools.takewhile(lambda axis: axis not in kept, reversed(order)))
    run = math.prod(shape[axis] for axis in inner)
    by_rows = run >= _SHORTEST_ROW or not kept
    lead = order[: len(order) - len(inner)] if by_rows else [axis for axis in order if axis in kept]
    rest = [axis for axis in order if axis not in lead]
    lines, values = (math.prod(shape[axis] for axis in some) for some in (lead, rest))
    left = [axis for axis in lead if axis in kept]
    return _Layout(
        order=tuple(lead + rest if by_rows else rest + lead),
        matrix=(lines, values) if by_rows else (values, lines),
        dim=1 if by_rows else 0,
        lead=tuple(shape[axis] for axis in lead),
        within=tuple(position for position, axis in enumerate(lead) if axis not in kept),
        ascending=tuple(sorted(range(len(left)), key=lambda position: left[position])),
    )


def _by_slot(sums: Tensor, layout: _Layout) -> tuple[Tensor, ...]:
    """Turns the rows of `sums` from lines into slots: the last row has maxima, the others are added."""
    whole = sums.view(-1, *layout.lead)
    ascending = (0, *(position + 1 for position in layout.ascending))
    within = [position + 1 for position in layout.within]
    added, maxima = whole[:-1], whole[-1:]
    if within:
        added, maxima = added.sum(within), maxima.amax(within)
    return torch.cat((added, maxima)).permute(ascending).reshape(len(sums), -1).unbind()


def _line_sums(matrix: Tensor, dim: int) -> Tensor:
    """For every line, as rows: sum, sum of squares, sum of magnitudes, number of non-zeros, maximum."""
    rows, columns = matrix.shape
    width = min(columns, _TILE)
    height = min(rows, _TALLEST, max(1, _TILE // width))
    room = matrix.new_empty(height * width)
    if matrix.numel() == room.numel():
        return _tile_sums(matrix, dim, room).cpu()
    sums = torch.zeros(5, matrix.shape[1 - dim], dtype=torch.float64, device=matrix.device)
    sums[4] = -torch.inf
    for top, left in itertools.product(range(0, rows, height), range(0, columns, width)):
        part = _tile_sums(matrix[top : top + height, left : left + width], dim, room)
        here = sums[:, top : top + height] if dim else sums[:, left : left + width]
        here[:4] += part[:4]
        torch.maximum(here[4], part[4], out=here[4])
    return sums.cpu()


def _tile_sums(tile: Tensor, dim: int, room: Tensor) -> Tensor:
    """`_line_sums` of one tile, in float64."""
    room = room[: tile.numel()].view(tile.shape)
    squares = torch.mul(tile, tile, out=room).sum(dim)
    if tile.amin() < 0:
        total = tile.sum(dim, dtype=torch.float64)
        magnitude = torch.abs(tile, out=room).sum(dim)
        nonzero = torch.sign(tile, out=room).abs_().sum(dim)
    else:
        total = magnitude = tile.sum(dim)
        nonzero = torch.sign(tile, out=room).sum(dim)
    return torch.stack((total, squares, magnitude, nonzero, tile.amax(dim))).double()


def _shifted(matrix: Tensor, layout: _Layout, ill: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, deviation and magnitude of the `ill` slots, in float64 around one of their own values.

    A value of the slot is within sqrt(count) deviations of its mean, so at most `count` roundings are lost
    around it: this needs no history, cannot overflow, and does not depend on earlier batches.
    """
    dim, slot = layout.dim, _slot_of_line(layout)
    count = matrix.numel() // len(ill)
    shift = torch.full((len(ill),), -torch.inf, dtype=torch.float64)
    shift.scatter_reduce_(0, slot, matrix.select(dim, 0).double().cpu(), "amax")
    lines = ill[slot].nonzero().squeeze(1)
    sums = torch.zeros(4, len(slot), dtype=torch.float64)
    tile = _TILE // 16  # float64, gathered: this should stay in the cache
    for part in torch.split(lines, max(1, tile // matrix.shape[1]) if dim else tile):
        for chunk in torch.split(matrix, max(1, tile // part.numel()), dim):
            near = chunk.index_select(1 - dim, part.to(matrix.device)).double()
            sums[2, part] += near.abs().sum(dim).cpu()
            near -= shift[slot[part]].to(matrix.device).unsqueeze(dim)
            sums[0, part] += near.sum(dim).cpu()
            sums[1, part] += near.square_().sum(dim).cpu()
    around, squares, magnitude, _ = _by_slot(sums, layout)
    return shift + around / count, (squares - around**2 / count).clamp_min(0), magnitude


def _slot_of_line(layout: _Layout) -> Tensor:
    """The slot of every line: the inverse of `_by_slot`."""
    left = [size for position, size in enumerate(layout.lead) if position not in layout.within]
    back = sorted(range(len(left)), key=lambda position: layout.ascending[position])
    slot = torch.arange(math.prod(left)).view([left[position] for position in layout.ascending]).permute(back)
    flat = [1 if position in layout.within else size for position, size in enumerate(layout.lead)]
    return slot.reshape(flat).expand(layout.lead).reshape(-1)
