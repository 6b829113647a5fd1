"""What a captured graph takes: which sizes of its inputs are open, and on which conditions.

A graph has the branches that the code took for the example. Their conditions on sizes are kept as expressions
of Python, of which only arithmetic is evaluated.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate

from ...export.opened import leaves_of, tensors_of
from ...targets.errors import ModelError
from .inputs import Inputs, names_of

Shape = tuple[Any, ...]
"""A size for a fixed axis, a name for an open one; axes of the same name have the same size."""

_ARITHMETIC = (
    *(ast.Expression, ast.BoolOp, ast.boolop, ast.UnaryOp, ast.unaryop, ast.BinOp, ast.operator),
    *(ast.Compare, ast.cmpop, ast.Constant, ast.Subscript, ast.Name, ast.Load, ast.Call),
)
_NAMES = {"min": min, "max": max}


@dataclass(frozen=True)
class Takes:
    """The inputs of a graph: names, shapes, conditions on `sizes[input][axis]`, and the example in words.

    `arguments` are those of forward, in which the inputs are nested; `fixed` the values beside tensors there.
    """

    arguments: tuple[str, ...]
    fixed: tuple[Any, ...]
    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    conditions: tuple[str, ...]
    example: tuple[str, ...]

    def tensors(self, values: Sequence[Any]) -> list[Any]:
        """The inputs among the values of the arguments."""
        leaves = [*values] if all(isinstance(one, Tensor) for one in values) else leaves_of([*values])
        inputs = [one for one in leaves if isinstance(one, Tensor)]
        fixed = tuple(one for one in leaves if not isinstance(one, Tensor))
        if len(inputs) != len(self.names) or fixed != self.fixed:
            raise self.refusal(f"there are {len(inputs)} tensors and {fixed}, not {self.fixed}", inputs)
        return inputs

    def check(self, inputs: Sequence[Any]) -> None:
        """Raises a ModelError if the graph would compute something else for these."""
        sizes, known = [_sizes(one) for one in inputs], dict[str, int]()
        for name, shape, given in zip(self.names, self.shapes, sizes, strict=True):
            same = len(given) == len(shape) and all(
                size == (known.setdefault(axis, size) if isinstance(axis, str) else axis)
                for axis, size in zip(shape, given, strict=True)
            )
            if not same:
                fixed = " x ".join("any" if isinstance(axis, str) else str(axis) for axis in shape)
                raise self.refusal(f"{name} is {_shown(given)}, not {fixed}", inputs)
        for condition in self.conditions:
            if not holds(condition, sizes):
                where = re.sub(r"sizes\[(\d+)\]", lambda one: f"{self.names[int(one[1])]}.shape", condition)
                raise self.refusal(f"its code has another branch where not {where}", inputs)

    def refusal(self, why: str, inputs: Sequence[Any]) -> ModelError:
        """The error for inputs that it does not take."""
        given = ", ".join(map(described, self.names, inputs))
        return ModelError(
            f"The graph form does not take {given}: {why}. It was traced with {', '.join(self.example)}.",
            "Give inputs like those, or trace with others, or prune fewer groups, so that the network keeps "
            "its own class.",
        )


def described(name: str, value: Any) -> str:
    """'x: float32 2 x 3 on cpu'."""
    if not isinstance(value, Tensor):
        return f"{name}: {value!r}"
    return f"{name}: {str(value.dtype).removeprefix('torch.')} {_shown(_sizes(value))} on {value.device}"


def takes_of(model: nn.Module, graph: Graph, guards: Sequence[str], inputs: Inputs) -> Takes:
    """What a graph takes, captured on these inputs, without guards that only keep a batch from being one.

    torch.export treats one as another kind of size; surgery tries the graph with one sample.

    Raises:
        ModelError: a guard is more than arithmetic on sizes.
    """
    places = graph.find_nodes(op="placeholder")
    names = tuple(str(node.target) for node in places)
    shapes = tuple(tuple(_axis(size) for size in node.meta["val"].shape) for node in places)
    tensors = tensors_of(inputs)
    one = [(1, *one.shape[1:]) for one in tensors]
    conditions = [functools.reduce(_numbered, enumerate(names), guard) for guard in guards]
    kept = tuple(condition for condition in conditions if holds(condition, one))
    fixed = tuple(leaf for leaf in leaves_of(inputs) if not isinstance(leaf, Tensor))
    arguments = tuple(names_of(model, inputs))
    return Takes(arguments, fixed, names, shapes, kept, tuple(map(described, names, tensors)))


def _numbered(guard: str, input: tuple[int, str]) -> str:
    place, name = input
    forms = (f"L['{name}'].size()", f"L['flat_args'][{place}].size()")
    return functools.reduce(lambda text, form: text.replace(form, f"sizes[{place}]"), forms, guard)


def holds(condition: str, sizes: Sequence[Sequence[int]]) -> bool:
    return bool(eval(_arithmetic(condition), {"__builtins__": {}, "sizes": sizes} | _NAMES))


def _arithmetic(condition: str) -> CodeType:
    tree = ast.parse(condition, mode="eval")
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    if names - {"sizes", *_NAMES} or not all(isinstance(node, _ARITHMETIC) for node in ast.walk(tree)):
        cure = "Prune fewer groups, so that the network keeps its own class."
        raise ModelError(f"A condition of the graph is more than arithmetic on sizes: {condition}", cure)
    return compile(tree, "<condition>", "eval")


def _axis(size: Any) -> Any:
    fixed = size if isinstance(size, int) else size.node.maybe_as_int()
    return str(size) if fixed is None else int(fixed)


def _sizes(value: Any) -> tuple[int, ...]:
    """The sizes of an input; those of the example where an exporter leaves them open."""
    shape = value.shape if isinstance(value, Tensor) else ()
    return tuple(int(size if isinstance(size, int) else size.node.hint) for size in shape)


def _shown(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes)) or "one"


def follow(graph: Graph, tensors: dict[str, Tensor]) -> dict[str, torch.dtype]:
    """Changes a graph so that tensors made in it have the device and the precision of the network.

    Returns:
        By the name of a tensor the precision that it had, where the graph now follows it.
    """
    followed: dict[str, torch.dtype] = {}
    kinds = {one.dtype: name for name, one in reversed(tensors.items()) if one.is_floating_point()}

    def moved(node: Node, value: Any) -> Any:
        if isinstance(value, torch.device) and tensors:
            path = f"{next(iter(tensors))}.device"
        elif isinstance(value, torch.dtype) and value in kinds:
            path = f"{kinds[value]}.dtype"
            followed[kinds[value]] = value
        else:
            return value
        with graph.inserting_before(node):
            return graph.create_node("get_attr", path)

    for node in graph.nodes:
        if node.op == "call_function":
            node.args, node.kwargs = map_aggregate((node.args, node.kwargs), functools.partial(moved, node))
    return followed
