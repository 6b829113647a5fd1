"""The reference of surgery, on the original's graph: nothing is cut; what is removed is zero everywhere.

An operator that is taken over units (a norm, a mean) is applied to those that live, as it will be in the
narrower network. Every other operator runs as it is, at full width: the two share no surgery.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg

from .calls import Tracked
from .capture import operator_name, users_line
from .compare import error_of, tolerance
from .groups import Groups, Tracing
from .narrow import named_tensors
from .resize import resized


class Survivors(Interpreter):
    """The original's graph with removed elements at zero, and norms and means over those that live."""

    def __init__(self, tracing: Tracing, alive: Tensor) -> None:
        graph = tracing.graph
        super().__init__(graph, garbage_collect_values=False)
        twins = resized(tracing, alive)[0]
        self.twins = {
            node.name: twin for node, twin in zip(graph.graph.nodes, _without_new(twins, graph), strict=True)
        }
        self.tracing, self.alive = tracing, alive
        self.results: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        over = self.tracing.renormalised.get(n.name)
        fewer = over is not None and not bool(self.alive[over].all())
        result = self._of_survivors(n) if fewer else super().run_node(n)
        known = self.tracing.values.get(n.name)
        settle = _spread if fewer else _zeroed
        if isinstance(known, Tracked):
            result = settle(result, known, self.alive)
        elif isinstance(known, list):
            result = [
                settle(one, one_known, self.alive) for one, one_known in zip(result, known, strict=True)
            ]
        self.results[n.name] = result
        return result

    def _of_survivors(self, node: Node) -> Any:
        """The operator on what lives, with the constants of the narrower network."""

        def survivors(argument: Node) -> Any:
            value, known = self.results[argument.name], self.tracing.values.get(argument.name)
            return _selected(value, known, self.alive) if isinstance(known, Tracked) else value

        twin = self.twins[node.name]
        assert callable(twin.target)
        return twin.target(*map_arg(twin.args, survivors), **map_arg(twin.kwargs, survivors))


class _Recorder(Interpreter):
    """Runs a graph over other tensors and keeps what each node returned."""

    def __init__(self, graph: GraphModule, tensors: dict[str, Tensor]) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.tensors = tensors
        self.results: dict[str, Any] = {}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.tensors[target] if target in self.tensors else super().get_attr(target, args, kwargs)

    def run_node(self, n: Node) -> Any:
        self.results[n.name] = super().run_node(n)
        return self.results[n.name]


def _without_new(twins: torch.fx.Graph, graph: GraphModule) -> list[Node]:
    """The nodes of a resized graph that were there before."""
    names = {node.name for node in graph.graph.nodes}
    return [node for node in twins.nodes if node.name in names]


def _living(known: Tracked, alive: Tensor) -> list[tuple[int, Tensor]]:
    """The axes along which something was removed, with the indices that live."""
    vectors = [(axis, alive[vector]) for axis, vector in enumerate(known.axes) if vector is not None]
    return [(axis, keep.nonzero().reshape(-1)) for axis, keep in vectors if not bool(keep.all())]


def _selected(value: Tensor, known: Tracked, alive: Tensor) -> Tensor:
    for axis, indices in _living(known, alive):
        value = value.index_select(axis, indices.to(value.device))
    return value


def _spread(value: Tensor, known: Tracked, alive: Tensor) -> Tensor:
    """The inverse of `_selected`, with zeros in between."""
    for axis, indices in _living(known, alive):
        shape = (*value.shape[:axis], known.shape[axis], *value.shape[axis + 1 :])
        value = value.new_zeros(shape).index_copy(axis, indices.to(value.device), value)
    return value


def _zeroed(value: Tensor, known: Tracked, alive: Tensor) -> Tensor:
    return _spread(_selected(value, known, alive), known, alive) if _living(known, alive) else value


def renormalised_by(groups: Groups, alive: Tensor) -> tuple[str, ...]:
    """The operators that are taken over fewer units now, each with its line."""
    tracing = groups.tracing
    names = {name for name, over in tracing.renormalised.items() if not bool(alive[over].all())}
    nodes = [node for node in tracing.graph.graph.nodes if node.name in names]
    return tuple(dict.fromkeys(f"{operator_name(node)} at {users_line(node) or node.name}" for node in nodes))


def first_difference(
    groups: Groups, pruned: nn.Module, alive: Tensor, expected: Mapping[str, Any], inputs: Sequence[Tensor]
) -> Node | None:
    """The first node of the narrower graph whose value, with the weights of `pruned`, is another one."""
    captured = groups.tracing.graph
    recorder = _Recorder(
        GraphModule(captured, resized(groups.tracing, alive)[0]), dict(named_tensors(pruned))
    )
    with contextlib.suppress(RuntimeError), torch.no_grad():  # what it raises, the node that is missing tells
        recorder.run(*inputs)
    nodes: list[Node] = list(captured.graph.nodes)
    for node in nodes:
        known, wanted = groups.tracing.values.get(node.name), expected.get(node.name)
        if node.op == "call_function" and isinstance(known, Tracked) and isinstance(wanted, Tensor):
            found = recorder.results.get(node.name)
            if found is None or error_of(_selected(wanted, known, alive), found) > tolerance([wanted]):
                return node
    return None


def place_of(node: Node) -> str:
    """The module, the operator and the line of the user's code."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    module = stack[-1][0] if stack else ""
    named = f'"{module}" ({operator_name(node)})' if module else f"{operator_name(node)} ({node.name})"
    return f"{named} at {line}" if (line := users_line(node)) else named
