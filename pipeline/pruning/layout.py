"""Rules for operators that only move elements: the operator itself runs on the identities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .calls import Call, Result, Tracked, meet, unknown, widened
from .capture import argument_of

_WINDOW = "a window slides over this axis"


def layout(call: Call) -> Result:
    """Elements are moved, never mixed: the operator itself moves the identities."""
    x = call.operands()[0]
    collected: list[list[list[Tensor]]] = [[[] for _ in shape] for shape in call.shapes]  # by result and axis
    for axis, vector in enumerate(x.axes):
        if vector is None:
            continue
        if call.name == "slice" and axis == (call["dim"] or 0) % len(x.shape):
            _in_runs(call, vector, call["step"])  # whole periods are removed together
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
    call.freeze_all(x.axes[-2:], _WINDOW)
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
    across = meet(call, [x.at(axis, 1) for x in parts], (*shape[:axis], 1, *shape[axis + 1 :]))
    vectors = [x.axes[axis] for x in parts]
    if all(vector is None for vector in vectors):
        return across.at(axis, shape[axis])
    for place, x in enumerate(parts):
        if vectors[place] is None:
            vectors[place] = call.notes.identities.fresh(x.shape[axis])
            call.freeze(vectors[place], "it is concatenated with a tensor of fixed width")
    return across.at(axis, shape[axis], torch.cat([vector for vector in vectors if vector is not None]))


def padding(call: Call) -> Result:
    """Constant padding: along units it takes the width of its users."""
    x = call.operands()[0]
    if (call["mode"] or "constant") != "constant":
        return layout(call)
    y = x
    for place, amount in enumerate(call["pad"]):
        axis = len(x.shape) - 1 - place // 2
        total = y.at(axis, y.shape[axis] + amount)
        if amount > 0 and y.axes[axis] is not None:
            pad = widened(call, y.at(axis, amount, call.notes.identities.fresh(amount)))
            y = _beside(call, [pad, y] if place % 2 == 0 else [y, pad], axis, total.shape)
        elif amount:
            call.freeze(y.axes[axis], "it is cropped")
            y = total
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
        call.freeze_all(index.axes, "it is an index of values")
    first, last = min(indices), max(indices)
    before = first if last - first < len(indices) else 0
    rest = x.but(*indices)
    new = torch.broadcast_shapes(*(one.shape for one in indices.values()))  # type: ignore[no-untyped-call]
    shape = (*rest.shape[:before], *new, *rest.shape[before:])
    picked = Tracked(shape, (*rest.axes[:before], *(None,) * len(new), *rest.axes[before:]))
    if values is None:
        return picked
    meet(call, [picked, values], shape)
    return Tracked(x.shape, tuple(None if place in indices else v for place, v in enumerate(x.axes)))


def halves(call: Call) -> Result:
    """glu: one half of the units gates the other, so they are removed in pairs."""
    x: Tracked = call["self"]
    axis = call["dim"] % len(x.shape)
    vector = x.axes[axis]
    half = None if vector is None else call.agree(*vector.chunk(2))
    return x.at(axis, x.shape[axis] // 2, half)


def gathering(call: Call) -> Result:
    """gather, scatter, index_add and the like: one axis is indexed and not narrowed, the others are alike."""
    shape = call.shapes[0]
    axis = call["dim"] % len(shape)
    for x in call.operands():
        indexed = x.axes[axis : axis + 1] if len(x.shape) == len(shape) else x.axes
        call.freeze_all(indexed, "it is indexed by values")
    across = [x.but(axis) for x in call.operands() if len(x.shape) == len(shape)]
    if len({x.shape for x in across}) > 1 and call.name != "take_along_dim":
        return unknown(call)
    kept = meet(call, across, (*shape[:axis], *shape[axis + 1 :])).axes
    return Tracked(shape, (*kept[:axis], None, *kept[axis:]))


def windows(call: Call) -> Result:
    """unfold: overlapping windows along one axis, which stays."""
    x = call["self"]
    return Tracked(call.shapes[0], (*call.stay(x, [call["dimension"]], _WINDOW), None))


def patches(call: Call) -> Result:
    """im2col: the pixels of a patch become channels, with zeros beyond the border."""
    x, shape = call["self"], call.shapes[0]
    channels = x.axes[-3]
    call.freeze_all(x.axes[-2:], _WINDOW)
    kernel = shape[-2] // x.shape[-3]
    spread = None if channels is None else channels.repeat_interleave(kernel)
    return Tracked(shape, (*x.axes[:-3], spread, None))


def unpatched(call: Call) -> Result:
    """col2im, the inverse: the pixels of a patch, which are channels here, are one unit."""
    x, shape = call["self"], call.shapes[0]
    channels = _in_runs(call, x.axes[-2], x.shape[-2] // shape[-3])
    call.freeze(x.axes[-1], "its positions are combined")
    return Tracked(shape, (*x.axes[:-2], channels, None, None))


def hidden(call: Call) -> Result:
    """vmap: what runs inside does not see one axis, which stays."""
    x: Tracked = call["0"]
    shape = call.shapes[0]
    if len(shape) < len(x.shape):
        call.freeze(x.axes[call["1"]], "vmap runs over this axis")
        return x.but(call["1"])
    axis = call["3"] % len(shape)
    return Tracked(shape, (*x.axes[:axis], None, *x.axes[axis:]))


def _in_runs(call: Call, vector: Tensor | None, length: int) -> Tensor | None:
    """One identity for each run of `length` neighbours, which are removed together."""
    if vector is None:
        return None
    for shift in range(1, length):
        later = vector[shift::length]  # the last run may be shorter
        call.notes.identities.unite(vector[::length][: len(later)], later)
    return vector[::length]
