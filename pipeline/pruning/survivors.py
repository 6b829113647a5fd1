"""The reference for surgery: runs the original graph at full width, with removed elements at zero where read.

A reduction over units (a norm, a mean) is applied to the living ones, as in the narrower network. Every other
operator runs unchanged, at full width, so the reference shares no code with surgery.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.node import map_arg

from ...targets.errors import ModelError
from .calls import Tracked
from .capture import operator_name, users_line
from .compare import TOLERANCE, Precision, compared, error_of, run, run_graph, tolerance
from .groups import Groups, Tracing
from .inputs import Example, inputs_of
from .narrow import named_tensors
from .plan import owner_of


class MismatchError(ModelError):
    """The pruned network computes something else; `node` is the first that differs, if it is known."""

    def __init__(self, what: str, cure: str, node: Node | None = None) -> None:
        super().__init__(what, cure)
        self.node = node


class Recorder(Interpreter):
    """Runs a graph with given tensors.

    Args:
        captured: the network of the graph, for constants that are not in `tensors`.

    Attributes:
        keep: whether `results` stores the result of each node.
    """

    def __init__(self, captured: GraphModule, graph: Graph, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(captured, graph=graph)
        self.tensors, self.keep = tensors, False
        self.results: dict[str, Any] = {}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.tensors[target] if target in self.tensors else super().get_attr(target, args, kwargs)

    def run_node(self, n: Node) -> Any:
        result = self.computed(n)
        if self.keep:
            self.results[n.name] = result
        return result

    def computed(self, node: Node) -> Any:
        """What the node returns; torch's `run_node` also notes each for its own tools, which takes longer."""
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        return getattr(self, node.op)(node.target, args, kwargs)


class Survivors(Recorder):
    """The original's graph with removed elements at zero, and norms and means over those that live.

    Args:
        twins: the graph of the narrower network, whose constants hold for what lives.
        tensors: parameters to run with instead of the network's own.
    """

    def __init__(
        self, tracing: Tracing, alive: Tensor, twins: Graph, tensors: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__(tracing.graph, tracing.graph.graph, tensors or {})
        self.tracing, self.alive, self.narrow = tracing, alive, twins
        self.twins = {node.name: node for node in twins.nodes}
        self.nodes = {node.name: node for node in tracing.graph.graph.nodes}

    def computed(self, node: Node) -> Any:
        notes = self.tracing.notes
        over, masked = notes.renormalised.get(node.name), notes.masked.get(node.name, ())
        if over is not None and not bool(self.alive[over].all()):
            return self._of_survivors(node)
        if masked:
            result = _call(node, lambda x: self._as(_zeroed, x) if x.name in masked else self.env[x])
            source = node.all_input_nodes[0] if operator_name(node) == "embedding_renorm_" else None
            while source:  # written in place: it is read from the weight itself
                self.env[source] = result
                source = next(iter(source.all_input_nodes), None)
            return result
        return super().computed(node)

    def _of_survivors(self, node: Node) -> Any:
        """The operator on what lives, with the constants of the narrower network."""
        result = _call(self.twins[node.name], lambda x: self._as(_selected, x))
        known = self.tracing.values.get(node.name)
        if isinstance(known, Tracked):
            return _spread(result, known, self.alive)
        return [_spread(one, of_one, self.alive) for one, of_one in zip(result, known or (), strict=True)]

    def _as(self, change: Callable[[Tensor, Tracked, Tensor], Tensor], operand: Node) -> Any:
        value, known = self.env[self.nodes[operand.name]], self.tracing.values.get(operand.name)
        return change(value, known, self.alive) if isinstance(known, Tracked) else value


def renormalised_by(groups: Groups, alive: Tensor) -> tuple[str, ...]:
    """The reductions that are now over fewer units, each with its line."""
    tracing = groups.tracing
    names = {name for name, over in tracing.notes.renormalised.items() if not bool(alive[over].all())}
    nodes = [node for node in tracing.graph.graph.nodes if node.name in names]
    return tuple(dict.fromkeys(f"{operator_name(node)} at {users_line(node) or node.name}" for node in nodes))


def first_difference(expected: Survivors, found: Mapping[str, Any]) -> Node | None:
    """The first node whose value differs in the narrower graph, or is missing.

    Double precision has the tolerance of single here: rounding may have been amplified before the mistake.
    """
    least = TOLERANCE[torch.float32]
    nodes: list[Node] = list(expected.tracing.graph.graph.nodes)
    for node in nodes:
        known, wanted = expected.tracing.values.get(node.name), expected.results.get(node.name)
        if node.op == "call_function" and isinstance(known, Tracked) and isinstance(wanted, Tensor):
            value, living = found.get(node.name), _selected(wanted, known, expected.alive)
            if value is None or error_of(living, value) > max(least, tolerance([wanted])):
                return node
    return None


def mismatch(
    reference: Survivors, tensors: Mapping[str, Tensor], inputs: Example, error: float
) -> MismatchError:
    """The error that names the first layer of the narrower network whose values are not the reference's.

    Args:
        tensors: of the narrower network.
        error: the relative error of its outputs.
    """
    recorder = Recorder(reference.tracing.graph, reference.narrow, tensors)
    reference.keep = recorder.keep = True
    with contextlib.suppress(RuntimeError):  # the missing node shows the error
        run_graph(reference, inputs, Precision.DOUBLE)
        run_graph(recorder, inputs, Precision.DOUBLE)
    node = first_difference(reference, recorder.results)
    where = f"The first layer that differs is {place_of(node)}." if node else _ALL_AGREE
    return MismatchError(
        f"The pruned network does not compute the same as the original without the removed units: "
        f"outputs differ by {error:.1e}. {where}",
        "Nothing was saved. Please report this network; until then leave that layer out of the pruning.",
        node,
    )


_ALL_AGREE = "All layers agree with its graph: the forward code of the pruned module contains an old width."


def check_values(model: nn.Module, groups: Groups) -> None:
    """Checks that a network has the values with which it was traced.

    Raises:
        ModelError: it has not; the message names the first parameter that differs.
    """
    for name, tensor in named_tensors(model):
        with contextlib.suppress(AttributeError):
            traced = operator.attrgetter(name)(groups.tracing.graph)
            if traced is not tensor and not torch.equal(traced.to(tensor), tensor):
                raise ModelError(
                    f'This network is not the one that was traced: "{name}" has other values.',
                    "Trace the network with the weights to keep, and apply the plan with that trace.",
                )


def check_traced(model: nn.Module, groups: Groups) -> None:
    """Checks that a network has the values with which it was traced, and computes what its graph does.

    Raises:
        ModelError: it has not, or does not.
    """
    check_values(model, groups)
    captured, inputs = Interpreter(groups.tracing.graph), inputs_of(model, groups.example)
    if not compared(partial(run, model, inputs), partial(run_graph, captured, inputs)).same:
        raise ModelError(
            "The original and its captured graph give different outputs: its forward depends on more than"
            " its inputs and parameters (random numbers, the time, a stored state).",
            "Make its eval mode a function of its inputs: seed it, or remove that part.",
        )


def place_of(node: Node) -> str:
    """The module, the operator and the line of the user's code."""
    module = owner_of(node)
    named = f'"{module}" ({operator_name(node)})' if module else f"{operator_name(node)} ({node.name})"
    return f"{named} at {line}" if (line := users_line(node)) else named


def _call(node: Node, read: Callable[[Node], Any]) -> Any:
    assert callable(node.target)
    return node.target(*map_arg(node.args, read), **map_arg(node.kwargs, read))


def _narrowed(known: Tracked, alive: Tensor) -> list[tuple[int, Tensor]]:
    """The axes with removed elements, with bool[size] of the living ones."""
    vectors = [(axis, alive[vector]) for axis, vector in enumerate(known.axes) if vector is not None]
    return [(axis, keep) for axis, keep in vectors if not bool(keep.all())]


def _selected(value: Tensor, known: Tracked, alive: Tensor) -> Tensor:
    for axis, keep in _narrowed(known, alive):
        value = value.index_select(axis, keep.nonzero().reshape(-1).to(value.device))
    return value


def _spread(value: Tensor, known: Tracked, alive: Tensor) -> Tensor:
    """The inverse of `_selected`, with zeros for removed elements."""
    for axis, keep in _narrowed(known, alive):
        shape = (*value.shape[:axis], known.shape[axis], *value.shape[axis + 1 :])
        value = value.new_zeros(shape).index_copy(axis, keep.nonzero().reshape(-1).to(value.device), value)
    return value


def _zeroed(value: Tensor, known: Tracked, alive: Tensor) -> Tensor:
    for axis, keep in _narrowed(known, alive):
        value = value.index_fill(axis, (~keep).nonzero().reshape(-1).to(value.device), 0)
    return value
