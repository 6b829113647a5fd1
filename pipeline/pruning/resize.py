"""Resizes the exported graph for a narrower network: every size is derived again from the units that live.

Operators without a width among their arguments are not changed. The others (view, split, slice, the groups of
a convolution ...) are listed here. The scale of attention is set to its old value: it would follow the width.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree

from .calls import Tracked
from .capture import argument_of, copied, declared_argument, operator_name
from .groups import Tracing
from .plan import owner_of


@dataclass(frozen=True)
class Change:
    """A constant of the graph that changed, with its node and the module whose code has it.

    `sizes` are those of the operands and results that changed, before and after.
    """

    node: Node
    module: str
    operator: str
    argument: str
    before: Any
    after: Any
    sizes: tuple[tuple[int, int], ...]

    @property
    def numbers(self) -> list[tuple[int, int]]:
        """The numbers in it, before and after."""
        both = zip(pytree.tree_leaves(self.before), pytree.tree_leaves(self.after), strict=False)
        return [(a, b) for a, b in both if isinstance(a, int) and isinstance(b, int)]


def resized(tracing: Tracing, alive: Tensor) -> tuple[Graph, tuple[Change, ...]]:
    """A copy of the captured graph for parameters that are cut to the living identities."""
    graph = tracing.graph.graph
    result = copied(graph)
    changes: list[Change] = []
    for before, node in zip(graph.nodes, result.nodes, strict=True):
        name = operator_name(node)
        if node.op == "call_function" and name in _RESIZE:
            site = _Site(before, node, name, tracing.values, alive, changes)
            if site.is_narrower():  # else a size may be open
                _RESIZE[name](site)
    result.lint()
    return result, tuple(changes)


def living_shape(value: Tracked, alive: Tensor) -> tuple[int, ...]:
    """The shape of a value if only these identities live."""
    return tuple(
        size if vector is None else int(alive[vector].sum())
        for size, vector in zip(value.shape, value.axes, strict=True)
    )


@dataclass(frozen=True)
class _Site:
    """A node to resize: the original, its copy, and the facts on the original's values."""

    original: Node
    node: Node
    name: str
    values: Mapping[str, Tracked | list[Tracked]]
    alive: Tensor
    changes: list[Change]

    def argument(self, name: str) -> Any:
        return argument_of(self.node, name)

    def set(self, name: str, value: Any) -> None:
        before = self.argument(name)
        if before == value:
            return
        place, declared = declared_argument(self.node, name)
        if place < len(self.node.args) and not declared.kwarg_only:
            self.node.update_arg(place, value)
        else:
            self.node.update_kwarg(name, value)
        self.changed(name, before, value)

    def changed(self, argument: str, before: Any, after: Any) -> None:
        pairs = [zip(one.shape, living_shape(one, self.alive), strict=True) for one in self.tracked()]
        sizes = tuple(dict.fromkeys(pair for one in pairs for pair in one if pair[0] != pair[1]))
        owner = owner_of(self.original)
        self.changes.append(Change(self.original, owner, self.name, argument, before, after, sizes))

    def input(self, name: str) -> Tracked:
        """The facts on the tensor that is an argument, before the resize."""
        source = argument_of(self.original, name)
        assert isinstance(source, Node)
        value = self.values[source.name]
        assert isinstance(value, Tracked)
        return value

    def tracked(self) -> list[Tracked]:
        """The facts on operands and results."""
        nodes = (*self.original.all_input_nodes, self.original)
        return pytree.tree_leaves([self.values.get(one.name, ()) for one in nodes])

    def is_narrower(self) -> bool:
        """Whether an operand or a result has fewer elements."""
        vectors = [vector for one in self.tracked() for vector in one.axes if vector is not None]
        return not all(bool(self.alive[vector].all()) for vector in vectors)

    def results(self) -> list[Tracked]:
        return pytree.tree_leaves(self.values[self.original.name])

    def along(self) -> Tensor:
        """bool[size]: which indices of the axis `dim` of the operand live."""
        x = self.input("self")
        return self.living(x, self.argument("dim") % len(x.shape))

    def living(self, value: Tracked, axis: int) -> Tensor:
        """bool[size of the axis]: which of its indices live."""
        vector = value.axes[axis]
        return torch.ones(value.shape[axis], dtype=torch.bool) if vector is None else self.alive[vector]


def _sizes(argument: str) -> Callable[[_Site], None]:
    """The rule of an operator that has the shape of its result as an argument."""

    def rule(site: _Site) -> None:
        (result,) = site.results()
        after = living_shape(result, site.alive)
        given = list(site.argument(argument))
        first = len(result.shape) - len(given)
        if site.name == "unflatten":
            first = site.argument("dim") % len(site.input("self").shape)
        pairs = zip(given, result.shape[first:], after[first:], strict=False)
        site.set(argument, [_size(site, one, old, new) for one, old, new in pairs])

    return rule


def _size(site: _Site, given: Any, before: int, after: int) -> Any:
    """A dynamic size that includes a width (batch x heads) is scaled where it is used."""
    if before == after or given == -1:
        return given
    if isinstance(given, int):
        return after
    with site.node.graph.inserting_before(site.node):
        scaled = site.node.graph.call_function(operator.mul, (given, after))
        return site.node.graph.call_function(operator.floordiv, (scaled, before))


def _repeats(site: _Site) -> None:
    x, (result,) = site.input("self"), site.results()
    repeats, after = list(site.argument("repeats")), living_shape(result, site.alive)
    for axis, given in enumerate(repeats):
        source = axis - len(repeats) + len(x.shape)
        if source < 0 or x.shape[source] == 1:
            repeats[axis] = _size(site, given, result.shape[axis], after[axis])
    site.set("repeats", repeats)


def _pieces(site: _Site) -> None:
    pieces = site.results()
    if bool(site.along().all()):
        return
    axis = site.argument("dim") % len(pieces[0].shape)
    before = [piece.shape[axis] for piece in pieces]
    after = [living_shape(piece, site.alive)[axis] for piece in pieces]
    if site.name == "split" and len(set(after)) == 1:
        site.set("split_size", after[0])
    elif before != after and not (site.name == "chunk" and len(set(after)) == 1):
        site.changed("sizes", before, after)
        site.node.target = torch.ops.aten.split_with_sizes.default
        site.node.args, site.node.kwargs = (site.node.args[0], after, axis), {}


def _slice(site: _Site) -> None:
    living = site.along()
    if bool(living.all()):
        return
    step = site.argument("step")
    for name in ("start", "end"):
        given = site.argument(name)
        if isinstance(given, int) and abs(given) < len(living):
            at = given % len(living) if given < 0 else given
            whole = at // step * step  # whole periods are removed together
            site.set(name, int(living[:whole].sum()) + at - whole if step > 1 else int(living[:at].sum()))


def _select(site: _Site) -> None:
    living = site.along()
    if isinstance(index := site.argument("index"), int) and not bool(living.all()):  # else -1 is of any size
        site.set("index", int(living[: index % len(living)].sum()))


def _narrow(site: _Site) -> None:
    living = site.along()
    if not bool(living.all()):
        start = site.argument("start") % len(living)
        site.set("length", int(living[start : start + site.argument("length")].sum()))
        site.set("start", int(living[:start].sum()))


def _groups(argument: str) -> Callable[[_Site], None]:
    """The rule of an operator on groups of channels: the number of living groups."""

    def rule(site: _Site) -> None:
        groups = site.argument(argument)
        if groups > 1:
            x = site.input("self" if "shuffle" in site.name else "input")
            axis = len(x.shape) - len(site.input("weight").shape) + 1 if "conv" in site.name else 1
            site.set(argument, int(site.living(x, axis).reshape(groups, -1).any(dim=1).sum()))

    return rule


def _normalized_shape(site: _Site) -> None:
    x, given = site.input("input"), site.argument("normalized_shape")
    sizes = zip(given, x.shape[-len(given) :], living_shape(x, site.alive)[-len(given) :], strict=True)
    site.set("normalized_shape", [_size(site, *one) for one in sizes])


def _attention(site: _Site) -> None:
    q = site.input("query")
    if site.argument("scale") is None and living_shape(q, site.alive)[-1] != q.shape[-1]:
        site.set("scale", q.shape[-1] ** -0.5)


def _padding(site: _Site) -> None:
    (result,) = site.results()
    amounts = list(site.argument("pad"))
    for place, amount in enumerate(amounts):
        living = site.living(result, len(result.shape) - 1 - place // 2)
        if not bool(living.all()) and amount > 0:
            amounts[place] = int((living[:amount] if place % 2 == 0 else living[-amount:]).sum())
    site.set("pad", amounts)


def _roll(site: _Site) -> None:
    x = site.input("self")
    after = list(site.argument("shifts"))
    for place, axis in enumerate(site.argument("dims")):
        living = site.living(x, axis % len(x.shape))
        if not bool(living.all()):
            after[place] = int(living[len(living) - after[place] % len(living) :].sum())
    site.set("shifts", after)


_SIZED = "view _unsafe_view expand broadcast_to zeros ones full empty new_zeros new_ones new_full new_empty"
_GROUPED = (
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution deform_conv2d "
    "channel_shuffle native_channel_shuffle"
)
_TABLE: tuple[tuple[Callable[[_Site], None], str], ...] = (
    (_sizes("size"), _SIZED),
    (_sizes("shape"), "reshape"),
    (_sizes("sizes"), "unflatten"),
    (_repeats, "repeat"),
    (_pieces, "split split_with_sizes chunk tensor_split"),
    (_slice, "slice"),
    (_select, "select"),
    (_narrow, "narrow"),
    (_groups("groups"), _GROUPED),
    (_groups("num_groups"), "group_norm"),
    (_normalized_shape, "layer_norm rms_norm"),
    (_attention, "scaled_dot_product_attention"),
    (_roll, "roll"),
    (_padding, "pad constant_pad_nd"),
)
_RESIZE = {name: rule for rule, names in _TABLE for name in names.split()}
