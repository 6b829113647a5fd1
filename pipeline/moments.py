"""What the values of every slot of a tensor look like: mean, deviation, magnitude, zeros, maximum.

A slot is one position along the kept axes (a channel, a neuron); everything else is summed away. Each batch
is measured by itself and merged into what was seen before, so one pass over any number of batches of any
size is enough, and what is kept is a few numbers a slot.

A batch is read in tiles that stay in the cache, so it leaves main memory once however many sums are taken.
The sums are norms and products with a vector of ones: in PyTorch these run at the speed of memory, which
`var` and `(x == 0).mean()` do not. They are taken in float64, cheap inside the cache, and so have one
weakness only: a sum of squares says little about a deviation that the mean dwarfs. Slots where it is so
(mean above 1000 deviations) are found by their condition number and measured again around a shift.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

# Values a tile. On a CPU a tile and its float64 copy should stay in the cache; elsewhere launches cost more.
_TILE_CPU = 1 << 18
_TILE_ELSEWHERE = 1 << 22

# Mean square over variance. A sum over a tile is off by 1e-11 relative at the very worst, so below this
# limit a deviation keeps five digits whatever the data, and usually ten.
_CONDITION_LIMIT = 1e6

# Rows shorter than this are not worth a reduction each: the tensor is turned, and columns are summed.
_SHORTEST_ROW = 16


@dataclass(frozen=True)
class Moments:
    """Of `count` values in each slot. Tensors are float64 on the CPU, one entry a slot.

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
        """Whether every value seen was a finite number."""
        return bool(torch.isfinite(self.deviation).all())


def measure(value: Tensor, axes: Collection[int]) -> Moments:
    """The moments of one tensor: a slot for every position along `axes`, row-major in ascending axis order.

    `value` is of any real type and memory layout and holds at least one element. Deviations are good to
    1e-5 relative and means to 1e-12 of the mean magnitude, for magnitudes between 1e-150 and 1e150. A NaN
    or an infinity makes the slot's deviation NaN: ask `Moments.finite`.
    """
    if value.dtype not in (torch.float32, torch.float64):
        value = value.float() if value.is_floating_point() else value.double()
    lines = _lines(value, {axis % value.ndim for axis in axes})
    sums, maxima = _line_sums(lines.data, lines.dim)
    total, squares, magnitude, nonzero = (_by_slot(line, lines) for line in sums)
    count = value.numel() // lines.slots
    mean = total / count
    deviation = torch.where(torch.isfinite(squares), (squares - total * mean).clamp_min(0), torch.nan)
    ill = (squares > _CONDITION_LIMIT * deviation) & (count > 1)
    if ill.any():
        mean, deviation = _shifted(lines, ill, mean, deviation, count)
    return Moments(
        count=torch.full_like(mean, count),
        mean=mean,
        deviation=deviation,
        magnitude=magnitude,
        nonzero=nonzero,
        maximum=torch.full_like(mean, -torch.inf).scatter_reduce_(0, lines.slot, maxima, "amax"),
        measured=lines.slots,
        shifted=int(ill.sum()),
    )


def merge(first: Moments, second: Moments) -> Moments:
    """The moments of two sets of values together, slot by slot; a slot may be empty (count 0) in either.

    Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance: analysis and recommendations":
    the deviations add, and the distance of the two means adds its part.
    """
    count = first.count + second.count
    share = second.count / count.clamp_min(1)
    apart = second.mean - first.mean
    return Moments(
        count=count,
        mean=first.mean + apart * share,
        deviation=first.deviation + second.deviation + apart**2 * first.count * share,
        magnitude=first.magnitude + second.magnitude,
        nonzero=first.nonzero + second.nonzero,
        maximum=torch.maximum(first.maximum, second.maximum),
        measured=first.measured + second.measured,
        shifted=first.shifted + second.shifted,
    )


def fold(moments: Moments, units: Tensor, size: int) -> Moments:
    """The moments of `size` units: `units` says for every slot which unit it belongs to, -1 for none.

    A unit with several slots (a channel whose positions were flattened) gets all their values; one without
    any gets count 0, mean 0 and maximum -inf. The rule is that of `merge`, over many sets at once.
    """
    mine = units >= 0
    units = units[mine]
    counts, means = moments.count[mine], moments.mean[mine]

    def gathered(values: Tensor) -> Tensor:
        return values.new_zeros(size).index_add_(0, units, values)

    # Means are taken from one of the unit's own, so that equal ones stay exactly equal.
    origin = means.new_zeros(size).scatter_reduce_(0, units, means, "amax", include_self=False)
    count = gathered(counts)
    offset = gathered(counts * (means - origin[units])) / count.clamp_min(1)
    apart = means - origin[units] - offset[units]
    return Moments(
        count=count,
        mean=origin + offset,
        deviation=gathered(moments.deviation[mine] + counts * apart**2),
        magnitude=gathered(moments.magnitude[mine]),
        nonzero=gathered(moments.nonzero[mine]),
        maximum=means.new_full((size,), -torch.inf).scatter_reduce_(0, units, moments.maximum[mine], "amax"),
        measured=moments.measured,
        shifted=moments.shifted,
    )


@dataclass(frozen=True)
class _Lines:
    """A tensor as a matrix: summing along `dim` leaves one figure a line, and `slot` says whose it is."""

    data: Tensor
    dim: int
    slot: Tensor
    slots: int


def _lines(value: Tensor, kept: set[int]) -> _Lines:
    """The matrix in which the slots can be summed with as little copying as the memory layout allows."""
    wide = [axis for axis, length in enumerate(value.shape) if length > 1]
    kept = {position for position, axis in enumerate(wide) if axis in kept}
    value = value.squeeze()
    shape, stride = value.shape, value.stride()
    order = sorted(range(value.ndim), key=lambda axis: -stride[axis])
    inner = list(itertools.takewhile(lambda axis: axis not in kept, reversed(order)))
    run = math.prod(shape[axis] for axis in inner)
    dim = 1 if run >= _SHORTEST_ROW or not kept else 0
    lead = order[: len(order) - len(inner)] if dim else [axis for axis in order if axis in kept]
    rest = [axis for axis in order if axis not in lead]
    data = value.permute(lead + rest if dim else rest + lead)
    number = math.prod(shape[axis] for axis in lead)
    data = data.reshape((number, -1) if dim else (-1, number))
    slots = math.prod(shape[axis] for axis in kept)
    slot = torch.arange(slots).view([shape[axis] if axis in kept else 1 for axis in range(value.ndim)])
    slot = slot.expand([shape[axis] if axis in lead else 1 for axis in range(value.ndim)])
    return _Lines(data, dim, slot.permute(lead + rest).reshape(-1), slots)


def _line_sums(data: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Of every line its sum, sum of squares, of magnitudes and number of non-zeros (as rows); its maximum."""
    rows, columns = data.shape
    width = min(columns, _tile(data))
    height = min(rows, max(1, _tile(data) // width))
    exact = torch.empty(height, width, dtype=torch.float64, device=data.device)
    sign = torch.empty(height, width, dtype=data.dtype, device=data.device)
    ones = exact.new_ones((height, width)[dim]), sign.new_ones((height, width)[dim])
    sums = exact.new_zeros(4, data.shape[1 - dim])
    maxima = exact.new_full((data.shape[1 - dim],), -torch.inf)
    for top, left in itertools.product(range(0, rows, height), range(0, columns, width)):
        tile = data[top : top + height, left : left + width]
        part = _tile_sums(tile, dim, exact, sign, ones)
        here = slice(top, top + height) if dim else slice(left, left + width)
        sums[:, here] += part[:4]
        torch.maximum(maxima[here], part[4], out=maxima[here])
    return sums.cpu(), maxima.cpu()


def _tile_sums(tile: Tensor, dim: int, exact: Tensor, sign: Tensor, ones: tuple[Tensor, Tensor]) -> Tensor:
    """The four sums of a tile, and the maxima below them; `exact` and `sign` are room to work in."""
    if tile.shape != exact.shape:  # the last of a row or column of tiles
        exact = exact.view(-1)[: tile.numel()].view(tile.shape)
        sign = sign.view(-1)[: tile.numel()].view(tile.shape)
        ones = ones[0][: tile.shape[dim]], ones[1][: tile.shape[dim]]
    exact.copy_(tile)
    torch.sign(tile, out=sign)
    signed = bool(tile.amin() < 0)
    total = _along(exact, ones[0], dim)
    magnitude = _along(exact.abs_(), ones[0], dim) if signed else total
    # A norm is the fastest sum of squares there is, but only along rows.
    squares = torch.linalg.vector_norm(exact, dim=1) ** 2 if dim else _along(exact.square_(), ones[0], dim)
    nonzero = _along(sign.abs_() if signed else sign, ones[1], dim)  # whole numbers: float32 holds them
    return torch.stack((total, squares, magnitude, nonzero.double(), tile.amax(dim).double()))


def _along(values: Tensor, ones: Tensor, dim: int) -> Tensor:
    return torch.mv(values if dim else values.T, ones)


def _shifted(
    lines: _Lines, ill: Tensor, mean: Tensor, deviation: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Means and deviations with those of the `ill` slots measured again around one of their own values.

    A value of the slot lies within sqrt(count) deviations of its mean, so at most `count` roundings are
    lost around it: this needs no history, cannot overflow, and is the same whatever came before.
    """
    data, dim = lines.data, lines.dim
    chosen = ill[lines.slot].nonzero().squeeze(1)
    shift = torch.full_like(mean, -torch.inf)
    shift.scatter_reduce_(0, lines.slot, data.select(dim, 0).double().cpu(), "amax")
    sums = mean.new_zeros(2, lines.slot.numel())
    tile = _tile(data)
    for part in torch.split(chosen, max(1, tile // data.shape[1]) if dim else tile):
        for chunk in torch.split(data, max(1, tile // part.numel()), dim):
            near = chunk.index_select(1 - dim, part.to(data.device)).double()
            near -= shift[lines.slot[part]].to(data.device).unsqueeze(dim)
            sums[0, part] += near.sum(dim).cpu()
            sums[1, part] += near.square_().sum(dim).cpu()
    around, squares = (_by_slot(line, lines) for line in sums)
    return (
        torch.where(ill, shift + around / count, mean),
        torch.where(ill, (squares - around**2 / count).clamp_min(0), deviation),
    )


def _by_slot(values: Tensor, lines: _Lines) -> Tensor:
    return values.new_zeros(lines.slots).index_add_(0, lines.slot, values)


def _tile(data: Tensor) -> int:
    return _TILE_CPU if data.device.type == "cpu" else _TILE_ELSEWHERE
