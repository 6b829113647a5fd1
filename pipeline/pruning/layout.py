"""Rules for operators that only move elements: the operator itself runs on the identities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .calls import Call, Result, Tracked, meet, unknown, widened
from .capture import argument_of


def layout(call: Call) -> Result:
    """Elements are moved, never mixed: the operator itself moves the identities."""
    x = call.operands()[0]
    collected: list[list[list[Tensor]]] = [[[] for _ in shape] for shape in call.shapes]  # by result and axis
    for axis, vector in enumerate(x.axes):
        if vector is None:
            continue
        if call.name == "slice" and axis == (call["dim"] or 0) % len(x.shape):
            _tie_periods(call, vector, call["step"])
        grid = vector.reshape([-1 if other == axis else 1 for other in range(len(x.shape))]).expand(x.shape)
        for number, one in enumerate(_rerun(call, x, grid)):
            vectors = call.notes.identities.factor(one)
            if not vectors and one.numel():
                call.freeze(one.reshape(-1)[:1], "a single one of its units is selected")
            for place, found in vectors.items():
                collected[number][place].append(found)
    fuse = call.notes.identities.fuse
    results = [
        Tracked(shape, tuple(fuse(vectors) if vectors else None for vectors in axes))
        for shape, axes in zip(call.shapes, collected, strict=True)
    ]
    if call.name in ("expand", "expand_as", "broadcast_to", "repeat"):  # the repeated axis may be narrower
        lead = len(call.shapes[0]) - len(x.shape)
        sizes = (*(1,) * lead, *x.shape)
        wide = widened(call, results[0]).axes
        axes = [
            new if size == 1 else own for size, own, new in zip(sizes, results[0].axes, wide, strict=True)
        ]
        results = [Tracked(call.shapes[0], tuple(axes))]
    if call.name in ("chunk", "split") and len(set(call.shapes)) == 1:
        _tie(call, results)
    return results


def upscaling(call: Call) -> Result:
    """pixel_shuffle: the channels that become the pixels of one channel are removed together."""
    x, factor = call["self"], call["upscale_factor"]
    vector = _in_runs(call, x.axes[-3], factor * factor)
    for pixels in x.axes[-2:]:
        call.freeze(pixels, "a window slides over this axis")
    return Tracked(call.shapes[0], (*x.axes[:-3], vector, None, None))


def shuffle(call: Call) -> Result:
    """channel_shuffle: groups x ranks, transposed; whole groups are removed, or the same rank in each."""
    call.split(call.operands()[0].axes[1], call["groups"])
    return layout(call)


def _rerun(call: Call, x: Tracked, grid: Tensor) -> list[Tensor]:
    def plain(value: Any) -> Any:
        if value is x:
            return grid
        if isinstance(value, Tracked):
            return value.value if value.value is not None else torch.empty(value.shape, device="meta")
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    # A view cannot merge expanded axes; a reshape copies only then.
    target: Any = call.node.target
    target = torch.ops.aten.reshape.default if target == torch.ops.aten.view.default else target
    schema = call.node.target._schema  # type: ignore[union-attr]
    positional = [plain(call[argument.name]) for argument in schema.arguments if not argument.kwarg_only]
    moved = target(*positional)
    return list(moved) if isinstance(moved, (list, tuple)) else [moved]


def _tie_periods(call: Call, vector: Tensor, step: int) -> None:
    """A strided slice selects one unit of each period: whole periods are removed together."""
    for shift in range(1, step):
        later = vector[shift::step]
        call.notes.identities.unite(vector[::step][: len(later)], later)


def _tie(call: Call, pieces: list[Tracked]) -> None:
    """Equal pieces of one axis stay equal, so that code with `chunk(2)` stays right."""
    axis = (call["dim"] or 0) % len(pieces[0].shape)
    for piece in pieces[1:]:
        call.agree(pieces[0].axes[axis], piece.axes[axis])


_STACKS = {"hstack": 1, "column_stack": 1, "dstack": 2}


def concatenation(call: Call) -> Result:
    """Units are concatenated; along the other axes the parts are narrowed alike."""
    parts = [x for x in call["tensors"] if len(x.shape) == len(call.shapes[0])]
    axis = (call["dim"] or _STACKS.get(call.name, 0)) % len(call.shapes[0])
    return _beside(call, parts, axis, call.shapes[0])


def stack(call: Call) -> Result:
    """Along a new axis, which is fixed."""
    shape = call.shapes[0]
    axis = (call["dim"] or 0) % len(shape)
    parts = [
        Tracked((*x.shape[:axis], 1, *x.shape[axis:]), (*x.axes[:axis], None, *x.axes[axis:]))
        for x in call["tensors"]
    ]
    return _beside(call, parts, axis, shape)


def _beside(call: Call, parts: list[Tracked], axis: int, shape: tuple[int, ...]) -> Tracked:
    across = [
        Tracked((*x.shape[:axis], 1, *x.shape[axis + 1 :]), (*x.axes[:axis], None, *x.axes[axis + 1 :]))
        for x in parts
    ]
    axes = list(meet(call, across, (*shape[:axis], 1, *shape[axis + 1 :])).axes)
    if any(x.axes[axis] is not None for x in parts):
        vectors = []
        for x in parts:
            vector = x.axes[axis]
            if vector is None:
                vector = call.notes.identities.fresh(x.shape[axis])
                call.freeze(vector, "it is concatenated with a tensor of fixed width")
            vectors.append(vector)
        axes[axis] = torch.cat(vectors)
    return Tracked(shape, tuple(axes))


def padding(call: Call) -> Result:
    """Constant padding: along units it takes the width of its users."""
    x = call.operands()[0]
    if (call["mode"] or "constant") != "constant":
        return layout(call)
    y = x
    for place, amount in enumerate(call["pad"]):
        axis = len(x.shape) - 1 - place // 2
        total = (*y.shape[:axis], y.shape[axis] + amount, *y.shape[axis + 1 :])
        if amount > 0 and y.axes[axis] is not None:
            shape = (*y.shape[:axis], amount, *y.shape[axis + 1 :])
            own = call.notes.identities.fresh(amount)
            axes = tuple(own if at == axis else v for at, v in enumerate(y.axes))
            pad = widened(call, Tracked(shape, axes))
            y = _beside(call, [pad, y] if place % 2 == 0 else [y, pad], axis, total)
        elif amount:
            call.freeze(y.axes[axis], "it is cropped")
            y = Tracked(total, tuple(None if at == axis else v for at, v in enumerate(y.axes)))
    return y


def indexing(call: Call) -> Result:
    """x[index], or x[index] = y: the indexed axes are not narrowed, the others are kept."""
    x, values = call["self"], call["values"]
    indices = {place: index for place, index in enumerate(call["indices"]) if index is not None}
    nodes = argument_of(call.node, "indices")
    if values is not None and any(nodes[place].meta["val"].dtype == torch.bool for place in indices):
        return unknown(call)
    for place, index in indices.items():
        call.freeze(x.axes[place], "it is indexed by values")
        for vector in index.axes:
            call.freeze(vector, "it is an index of values")
    first, last = min(indices), max(indices)
    before = first if last - first < len(indices) else 0
    rest = _but(x, *indices)
    new = torch.broadcast_shapes(*(one.shape for one in indices.values()))  # type: ignore[no-untyped-call]
    shape = (*rest.shape[:before], *new, *rest.shape[before:])
    picked = Tracked(shape, (*rest.axes[:before], *(None,) * len(new), *rest.axes[before:]))
    if values is None:
        return picked
    meet(call, [picked, values], shape)
    return Tracked(x.shape, tuple(None if place in indices else v for place, v in enumerate(x.axes)))


def halves(call: Call) -> Result:
    """glu: one half of the units gates the other, so they are removed in pairs."""
    x = call["self"]
    axis = call["dim"] % len(x.shape)
    vector = x.axes[axis]
    half = None if vector is None else call.agree(*vector.chunk(2))
    return Tracked(call.shapes[0], (*x.axes[:axis], half, *x.axes[axis + 1 :]))


def gathering(call: Call) -> Result:
    """gather, scatter, index_add and the like: one axis is indexed and not narrowed, the others are alike."""
    shape = call.shapes[0]
    axis = call["dim"] % len(shape)
    for x in call.operands():
        for vector in x.axes[axis : axis + 1] if len(x.shape) == len(shape) else x.axes:
            call.freeze(vector, "it is indexed by values")
    across = [_but(x, axis) for x in call.operands() if len(x.shape) == len(shape)]
    if len({x.shape for x in across}) > 1 and call.name != "take_along_dim":
        return unknown(call)
    kept = meet(call, across, (*shape[:axis], *shape[axis + 1 :])).axes
    return Tracked(shape, (*kept[:axis], None, *kept[axis:]))


def windows(call: Call) -> Result:
    """unfold: overlapping windows along one axis, which stays."""
    x = call["self"]
    axis = call["dimension"] % len(x.shape)
    call.freeze(x.axes[axis], "a window slides over this axis")
    return Tracked(call.shapes[0], (*x.axes[:axis], None, *x.axes[axis + 1 :], None))


def patches(call: Call) -> Result:
    """im2col: the pixels of a patch become channels, with zeros beyond the border."""
    x, shape = call["self"], call.shapes[0]
    channels = x.axes[-3]
    for vector in x.axes[-2:]:
        call.freeze(vector, "a window slides over this axis")
    kernel = shape[-2] // x.shape[-3]
    spread = None if channels is None else channels.repeat_interleave(kernel)
    return Tracked(shape, (*x.axes[:-3], spread, None))


def unpatched(call: Call) -> Result:
    """col2im, the inverse: the pixels of a patch, which are channels here, are one unit."""
    x, shape = call["self"], call.shapes[0]
    channels = _in_runs(call, x.axes[-2], x.shape[-2] // shape[-3])
    call.freeze(x.axes[-1], "its positions are combined")
    return Tracked(shape, (*x.axes[:-2], channels, None, None))


def _in_runs(call: Call, vector: Tensor | None, length: int) -> Tensor | None:
    """One identity for each run of `length` neighbours, which are removed together."""
    if vector is None:
        return None
    grid = vector.reshape(-1, length)
    call.notes.identities.unite(grid[:, :1].expand(grid.shape), grid)
    return grid[:, 0]


def _but(x: Tracked, *dropped: int) -> Tracked:
    kept = [axis for axis in range(len(x.shape)) if axis not in dropped]
    return Tracked(tuple(x.shape[axis] for axis in kept), tuple(x.axes[axis] for axis in kept))
