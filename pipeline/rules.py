"""What each operator does to identities. The table is short because most operators need no rule.

    layout      view, permute, cat, split, pixel shuffle ...   the operator itself is run on the identities
    pointwise   add, relu, batch norm at inference ...         identities that meet are united
    mixing      linear, convolution, attention ...             what is summed over is united with the weight's
                                                               columns, what comes out are its rows

An operator that is none of these freezes what goes in: less is removed, and nothing is ever wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from .capture import users_line
from .identities import Cause, Identities


@dataclass(frozen=True)
class Tracked:
    """What is known of one value of the graph.

    Attributes:
        shape: sizes in the example.
        axes: for each axis a vector of identities, or None where its size is fixed.
        node: the name of the node that holds it.
        activation: whether it depends on an input of the network.
        value: the tensor itself where it is a known constant.
    """

    shape: tuple[int, ...]
    axes: tuple[Tensor | None, ...]
    node: str = ""
    activation: bool = False
    value: Tensor | None = None


@dataclass
class Notes:
    """What the rules observe beside the identities.

    Attributes:
        identities: who lives with whom.
        produced: rows of weights: identities, kind of the operator.
        consumed: columns of weights.
        reads: values that are read by a mixing operator.
        renormalised: nodes whose result depends on how many units there are (a mean, a norm over them).
    """

    identities: Identities = field(default_factory=Identities)
    produced: list[tuple[Tensor, str]] = field(default_factory=list)
    consumed: list[Tensor] = field(default_factory=list)
    reads: dict[str, Tracked] = field(default_factory=dict)
    renormalised: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One operator of the graph, with its arguments by name and the shapes of what it returns."""

    node: Node
    name: str
    arguments: dict[str, Any]
    shapes: list[tuple[int, ...]]
    notes: Notes

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    def operands(self) -> list[Tracked]:
        """All tensors among the arguments, in order."""
        found: list[Tracked] = []
        for value in self.arguments.values():
            found += [
                item
                for item in (value if isinstance(value, (list, tuple)) else [value])
                if isinstance(item, Tracked)
            ]
        return found

    def freeze(self, vector: Tensor | None, reason: str) -> None:
        """These identities stay, because of this operator."""
        if vector is not None:
            self.notes.identities.freeze(vector, Cause(self.name, users_line(self.node), reason))

    def agree(self, a: Tensor | None, b: Tensor | None) -> Tensor | None:
        """Two vectors that must be narrowed alike; where one side is fixed, so is the other."""
        if a is None or b is None:
            self.freeze(a if b is None else b, "it meets a tensor of fixed width")
            return None
        if a is not b:
            self.notes.identities.unite(a, b)
        return a

    def contract(self, x: Tracked, axis: int, weight: Tracked, column: int) -> None:
        """`x` is summed over `axis` against the columns of a weight."""
        self.read(x)
        if x.shape[axis] > 1:
            self.agree(x.axes[axis], weight.axes[column])
        self.consume(weight.axes[column])

    def read(self, x: Tracked) -> None:
        """A mixing operator reads this value: here its statistics matter."""
        if x.activation and any(vector is not None for vector in x.axes):
            self.notes.reads.setdefault(x.node, x)

    def produce(self, rows: Tensor | None, kind: str) -> None:
        """Rows of a weight, each of which makes one unit."""
        if rows is not None:
            self.notes.produced.append((rows, kind))

    def consume(self, columns: Tensor | None) -> None:
        """Columns of a weight, each of which reads one unit."""
        if columns is not None:
            self.notes.consumed.append(columns)

    def renormalise(self, vector: Tensor | None) -> None:
        """The result is taken over these units: fewer of them is another function."""
        if vector is not None:
            before = self.notes.renormalised.get(self.node.name)
            self.notes.renormalised[self.node.name] = (
                vector if before is None else torch.cat([before, vector])
            )

    def split(self, vector: Tensor | None, groups: int) -> tuple[Tensor | None, Tensor | None]:
        """A vector as groups x members: identities of the groups, and of the ranks within them."""
        if vector is None:
            return None, None
        parts = self.notes.identities.factor(vector.reshape(groups, -1))
        return parts.get(0), parts.get(1)


Result = Tracked | list[Tracked]
Rule = Callable[[Call], Result]


def unknown(call: Call) -> Result:
    """No rule: whatever goes in stays as it is."""
    for operand in call.operands():
        for vector in operand.axes:
            call.freeze(vector, "no rule says what this operator does to its units")
    return [fixed(shape) for shape in call.shapes]


def fixed(shape: tuple[int, ...]) -> Tracked:
    """A value none of whose axes can be narrowed."""
    return Tracked(shape, (None,) * len(shape))


def open_ended(call: Call) -> Result:
    """Zeros and the like: as wide as whoever uses them."""
    return [_widened(call, fixed(shape)) for shape in call.shapes]


def _widened(call: Call, x: Tracked) -> Tracked:
    axes = [
        call.notes.identities.fresh(size) if size > 1 and vector is None else vector
        for size, vector in zip(x.shape, x.axes, strict=True)
    ]
    return Tracked(x.shape, tuple(axes))


def pointwise(call: Call) -> Result:
    """Operands are broadcast; along each axis those of full size are narrowed alike."""
    return [meet(call, call.operands(), shape) for shape in call.shapes]


def meet(call: Call, operands: Sequence[Tracked], shape: tuple[int, ...]) -> Tracked:
    """The broadcast of `operands` to `shape`."""
    axes: list[Tensor | None] = []
    for back in range(len(shape), 0, -1):
        vectors = [x.axes[-back] for x in operands if len(x.shape) >= back and x.shape[-back] > 1]
        vector = vectors[0] if vectors else None
        for other in vectors[1:]:
            vector = call.agree(vector, other)
        if any(other is None for other in vectors):
            for other in vectors:
                call.freeze(other, "it meets a tensor of fixed width")
        axes.append(vector)
    return Tracked(shape, tuple(axes))


def along_channels(x: Tracked | None, dims: int) -> list[Tracked]:
    """A vector of channels, shaped to be broadcast over a (batch, channels, ...) tensor."""
    if x is None:
        return []
    return [Tracked((*x.shape, *(1,) * (dims - 2)), (*x.axes, *(None,) * (dims - 2)))]


def per_channel(call: Call) -> Result:
    """Batch norm, instance norm, PReLU: each channel on its own, with its own parameters."""
    x = call.operands()[0]
    others = [item for operand in call.operands()[1:] for item in along_channels(operand, len(x.shape))]
    others = [item for item in others if item.shape[0] > 1 or x.shape[1] == 1]
    return [meet(call, [x, *others], x.shape), *(fixed(shape) for shape in call.shapes[1:])]


def layer_norm(call: Call) -> Result:
    """Normalised over the last axes: exact only if none of them is narrowed."""
    x = call["input"]
    dims = len(call["normalized_shape"])
    for vector in x.axes[-dims:]:
        call.renormalise(vector)
    affine = [call[name] for name in ("weight", "bias") if call[name] is not None]
    return [meet(call, [x, *affine], x.shape), *(fixed(shape) for shape in call.shapes[1:])]


def group_norm(call: Call) -> Result:
    """Normalised over the members of each group: whole groups may go, or the same rank in each."""
    x = call["input"]
    _, ranks = call.split(x.axes[1], call["num_groups"])
    call.renormalise(ranks)
    for vector in x.axes[2:]:
        call.renormalise(vector)
    affine = [item for name in ("weight", "bias") for item in along_channels(call[name], len(x.shape))]
    return meet(call, [x, *affine], x.shape)


def linear(call: Call) -> Result:
    """y = x W^T + b."""
    x, weight = call["input"], call["weight"]
    call.contract(x, -1, weight, 1)
    call.produce(weight.axes[0], "linear")
    shape = call.shapes[0]
    y = Tracked(shape, (*x.axes[:-1], weight.axes[0]))
    return y if call["bias"] is None else meet(call, [y, call["bias"]], shape)


def convolution(call: Call) -> Result:
    """Channels in meet the weight's columns, channels out are its rows; in groups, depthwise, transposed."""
    x, weight, groups = call["input"], call["weight"], call["groups"] or 1
    shape = call.shapes[0]
    kernel = len(weight.shape) - 2
    channels = len(x.shape) - kernel - 1
    for vector in (*x.axes[channels + 1 :], *weight.axes[2:]):
        call.freeze(vector, "a convolution slides over this axis")
    transposed = call["transposed"] or "transpose" in call.name
    kind = "depthwise" if 1 < groups == x.shape[channels] else "conv"
    if groups == 1:
        call.contract(x, channels, weight, 0 if transposed else 1)
        out = weight.axes[1 if transposed else 0]
    elif transposed:
        call.contract(x, channels, weight, 0)
        blocks, _ = call.split(x.axes[channels], groups)
        out = _outer(call, blocks, weight.axes[1], (groups, weight.shape[1]))
    else:
        call.read(x)
        blocks_in, ranks_in = call.split(x.axes[channels], groups)
        blocks_out, _ = call.split(weight.axes[0], groups)
        call.agree(blocks_in, blocks_out)
        if weight.shape[1] > 1:
            call.agree(ranks_in, weight.axes[1])
            call.consume(weight.axes[1])
        out = weight.axes[0]
    call.produce(out, kind)
    spatial = (None,) * kernel
    y = Tracked(shape, (*x.axes[:channels], out, *spatial))
    return y if call["bias"] is None else meet(call, [y, *along_channels(call["bias"], kernel + 2)], shape)


def _outer(call: Call, blocks: Tensor | None, ranks: Tensor | None, shape: tuple[int, int]) -> Tensor | None:
    """groups x members as one vector."""
    spread = [blocks.reshape(-1, 1).expand(shape)] if blocks is not None else []
    spread += [ranks.reshape(1, -1).expand(shape)] if ranks is not None else []
    return call.notes.identities.fuse([part.reshape(-1) for part in spread]) if spread else None


def addmm(call: Call) -> Result:
    """bias + x W."""
    x, weight = call["mat1"], call["mat2"]
    call.contract(x, 1, weight, 0)
    call.produce(weight.axes[1], "linear")
    return meet(call, [Tracked(call.shapes[0], (x.axes[0], weight.axes[1])), call["self"]], call.shapes[0])


def matmul(call: Call) -> Result:
    """Leading axes are broadcast; a's last axis meets b's last but one."""
    a, b = call.operands()[-2:]
    product = _matmul(call, a, b, call.shapes[0])
    return meet(call, [product, call["self"]], product.shape) if call.name == "baddbmm" else product


def _matmul(call: Call, a: Tracked, b: Tracked, shape: tuple[int, ...]) -> Tracked:
    inner = max(len(b.shape) - 2, 0)
    call.read(a)
    call.read(b)
    if a.shape[-1] > 1:
        call.agree(a.axes[-1], b.axes[inner])
    if not b.activation:
        call.consume(b.axes[inner])
        call.produce(b.axes[-1] if inner < len(b.axes) - 1 else None, "linear")
    rows, columns = a.axes[-2:-1], b.axes[inner + 1 :]
    lead = shape[: len(shape) - len(rows) - len(columns)]
    batch = meet(call, [Tracked(x.shape[:-2], x.axes[:-2]) for x in (a, b)], lead)
    return Tracked(shape, (*batch.axes, *rows, *columns))


def attention(call: Call) -> Result:
    """softmax(q k^T) v. Heads are the third axis from the end; several of q may share one of k and v."""
    q, k, v = call["query"], call["key"], call["value"]
    for x in (q, k, v):
        call.read(x)
    for vector in (q.axes[-2], k.axes[-2], v.axes[-2]):
        call.freeze(vector, "attention runs over this axis")
    if q.shape[-1] > 1:
        call.agree(q.axes[-1], k.axes[-1])
    lead = q.shape[:-2]
    leads = [Tracked(x.shape[:-2], x.axes[:-2]) for x in (q, _shared_heads(k, q), _shared_heads(v, q))]
    mask = [Tracked(call["attn_mask"].shape[:-2], call["attn_mask"].axes[:-2])] if call["attn_mask"] else []
    batch = meet(call, [*leads, *mask], lead)
    out = Tracked(call.shapes[0], (*batch.axes, None, v.axes[-1]))
    return [out, *(fixed(shape) for shape in call.shapes[1:])]


def _shared_heads(x: Tracked, q: Tracked) -> Tracked:
    if len(x.shape) < 3 or x.shape[-3] in (1, q.shape[-3]):
        return x
    heads = x.axes[-3]
    shared = None if heads is None else heads.repeat_interleave(q.shape[-3] // x.shape[-3])
    return Tracked((*x.shape[:-3], q.shape[-3], *x.shape[-2:]), (*x.axes[:-3], shared, *x.axes[-2:]))


def embedding(call: Call) -> Result:
    """Rows are chosen by the data and stay; columns are units."""
    weight = call["weight"]
    call.freeze(weight.axes[0], "rows of an embedding are chosen by the data")
    call.produce(weight.axes[1], "embedding")
    shape = call.shapes[0]
    return Tracked(shape, (*(None,) * (len(shape) - 1), weight.axes[1]))


def softmax(call: Call) -> Result:
    """Normalised along one axis, which must stay whole."""
    x = call.operands()[0]
    call.freeze(x.axes[call["dim"]], "values are weighed against each other along this axis")
    return Tracked(
        x.shape, tuple(None if axis == call["dim"] % len(x.shape) else v for axis, v in enumerate(x.axes))
    )


def reduction(call: Call) -> Result:
    """A sum, mean or maximum over some axes; over units it is another function when there are fewer."""
    x = call.operands()[0]
    dims = call["dim"] if call["dim"] is not None else []
    dims = [dims] if isinstance(dims, int) else list(dims) or list(range(len(x.shape)))
    dims = [axis % len(x.shape) for axis in dims] if x.shape else []
    for axis in dims:
        call.read(x) if call.name == "sum" and x.axes[axis] is not None else call.renormalise(x.axes[axis])
    kept = [None if axis in dims else vector for axis, vector in enumerate(x.axes)]
    if not call["keepdim"]:
        kept = [vector for axis, vector in enumerate(kept) if axis not in dims]
    return [Tracked(shape, tuple(kept)) for shape in call.shapes]


def choice(call: Call) -> Result:
    """argmax, sort, top-k: what comes out are places along the axis, so the axis stays."""
    x = call.operands()[0]
    axis = call["dim"]
    for vector in x.axes if axis is None else x.axes[axis : axis + 1 or None]:
        call.freeze(vector, "places along this axis are what it returns")
    if len(call.shapes[0]) != len(x.shape):
        return unknown(call)
    kept = [None if axis is None or number == axis % len(x.shape) else v for number, v in enumerate(x.axes)]
    return [Tracked(shape, tuple(kept)) for shape in call.shapes]


def pooling(call: Call) -> Result:
    """Pools and resizes: only the spatial axes, those whose size may change, are touched."""
    x = call.operands()[0]
    spatial = next((int(n) for n in "123" if f"{n}d" in call.name), len(x.shape) - 2)
    for vector in x.axes[len(x.shape) - spatial :]:
        call.freeze(vector, "a window slides over this axis")
    kept = (*x.axes[: len(x.shape) - spatial], *(None,) * spatial)
    return [Tracked(shape, kept) for shape in call.shapes]


def concatenation(call: Call) -> Result:
    """Units side by side; along the other axes the parts are narrowed alike."""
    parts = [x for x in call["tensors"] if len(x.shape) == len(call.shapes[0])]
    axis = (call["dim"] or 0) % len(call.shapes[0])
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
                call.freeze(vector, "it stands beside a tensor of fixed width")
            vectors.append(vector)
        axes[axis] = torch.cat(vectors)
    return Tracked(shape, tuple(axes))


def padding(call: Call) -> Result:
    """Constant padding: along units it is as wide as whoever it meets."""
    x = call.operands()[0]
    if (call["mode"] or "constant") != "constant":
        return layout(call)
    y = x
    for place, amount in enumerate(call["pad"]):
        axis = len(x.shape) - 1 - place // 2
        if amount > 0 and y.axes[axis] is not None:
            shape = (*y.shape[:axis], amount, *y.shape[axis + 1 :])
            pad = _widened(
                call, Tracked(shape, tuple(None if at == axis else v for at, v in enumerate(y.axes)))
            )
            total = (*y.shape[:axis], y.shape[axis] + amount, *y.shape[axis + 1 :])
            y = _beside(call, [pad, y] if place % 2 == 0 else [y, pad], axis, total)
        elif amount:
            call.freeze(y.axes[axis], "it is cropped")
            y = Tracked(
                (*y.shape[:axis], y.shape[axis] + amount, *y.shape[axis + 1 :]),
                tuple(None if at == axis else v for at, v in enumerate(y.axes)),
            )
    return y


def layout(call: Call) -> Result:
    """Elements are moved, never mixed: the operator itself says where each identity goes."""
    x = call.operands()[0]
    collected: list[list[list[Tensor]]] = [[[] for _ in shape] for shape in call.shapes]
    for axis, vector in enumerate(x.axes):
        if vector is None:
            continue
        _tie_periods(call, axis, vector)
        grid = vector.reshape([-1 if other == axis else 1 for other in range(len(x.shape))]).expand(x.shape)
        moved = _rerun(call, x, grid)
        for number, one in enumerate(moved):
            vectors = call.notes.identities.factor(one)
            if not vectors and one.numel():
                call.freeze(one.reshape(-1)[:1], "a single one of its units is picked out")
            for place, found in vectors.items():
                collected[number][place].append(found)
    fuse = call.notes.identities.fuse
    results = [
        Tracked(shape, tuple(fuse(vectors) if vectors else None for vectors in axes))
        for shape, axes in zip(call.shapes, collected, strict=True)
    ]
    if call.name in ("expand", "expand_as"):  # what is repeated may be repeated less often
        lead = len(call.shapes[0]) - len(x.shape)
        stretched = [axis for axis in range(lead, len(call.shapes[0])) if x.shape[axis - lead] == 1]
        full = _widened(call, results[0])
        results = [
            Tracked(
                full.shape,
                tuple(v if axis in stretched else results[0].axes[axis] for axis, v in enumerate(full.axes)),
            )
        ]
    if call.name in ("chunk", "split") and len(set(call.shapes)) == 1:
        _tie(call, results)
    return results


def _rerun(call: Call, x: Tracked, grid: Tensor) -> list[Tensor]:
    def plain(value: Any) -> Any:
        if value is x:
            return grid.contiguous() if call.name == "view" else grid  # a view takes no stretched axes
        if isinstance(value, Tracked):
            return value.value if value.value is not None else torch.empty(value.shape, device="meta")
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    schema = call.node.target._schema  # type: ignore[union-attr]
    positional = [plain(call[argument.name]) for argument in schema.arguments if not argument.kwarg_only]
    moved = call.node.target(*positional)  # type: ignore[operator]
    return list(moved) if isinstance(moved, (list, tuple)) else [moved]


def _tie_periods(call: Call, axis: int, vector: Tensor) -> None:
    """A strided slice picks one unit of each period: periods live and die whole."""
    step = call["step"]
    if call.name == "slice" and isinstance(step, int) and step > 1 and (call["dim"] or 0) % 10**6 == axis:
        for shift in range(1, step):
            later = vector[shift::step]
            call.notes.identities.unite(vector[::step][: len(later)], later)


def _tie(call: Call, pieces: list[Tracked]) -> None:
    """Equal pieces of one axis stay equal, so that code which says `chunk(2)` goes on being right."""
    axis = (call["dim"] or 0) % len(pieces[0].shape)
    for piece in pieces[1:]:
        call.agree(pieces[0].axes[axis], piece.axes[axis])


def alike(call: Call) -> Result:
    """zeros_like and the like: the same widths, other values."""
    x = call.operands()[0]
    return Tracked(x.shape, x.axes)


def _names(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_names(linear, "linear"),
    **_names(addmm, "addmm"),
    **_names(matmul, "matmul mm bmm mv dot baddbmm"),
    **_names(attention, "scaled_dot_product_attention"),
    **_names(
        convolution, "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution"
    ),
    **_names(per_channel, "batch_norm instance_norm prelu"),
    **_names(layer_norm, "layer_norm rms_norm"),
    **_names(group_norm, "group_norm"),
    **_names(embedding, "embedding"),
    **_names(softmax, "softmax log_softmax cumsum"),
    **_names(
        reduction,
        "mean sum amax amin var std var_mean std_mean norm linalg_vector_norm logsumexp prod any all",
    ),
    **_names(choice, "argmax argmin max min sort topk"),
    **_names(
        pooling,
        "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d "
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d "
        "upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa",
    ),
    **_names(concatenation, "cat concat concatenate"),
    **_names(stack, "stack"),
    **_names(padding, "pad constant_pad_nd"),
    **_names(open_ended, "zeros ones full empty new_zeros new_ones new_full new_empty"),
    **_names(alike, "zeros_like ones_like full_like empty_like"),
    **_names(
        pointwise,
        "dropout feature_dropout alpha_dropout feature_alpha_dropout native_dropout bernoulli contiguous to "
        "_to_copy detach alias clone lift_fresh_copy type_as float where masked_fill relu6 hardswish fill copy "
        "rsub",
    ),
    **_names(
        layout,
        "view reshape _unsafe_view view_as reshape_as flatten unflatten unsqueeze squeeze expand expand_as "
        "repeat tile repeat_interleave slice select narrow split split_with_sizes chunk unbind tensor_split "
        "permute transpose t movedim swapaxes numpy_T mT pixel_shuffle pixel_unshuffle channel_shuffle flip "
        "diagonal",
    ),
}
