"""The proof of surgery: the pruned network computes what the original computes without the removed units.

First the plain statement: zero the removed indices in the original's parameters, run both, compare. Where
that does not hold, something is taken *over* the units (a layer norm, a mean over channels), and fewer of
them are legitimately another function: then the original's graph is run with every removed element zeroed and
those operators applied to the survivors alone. The pruned network must agree with that, and the report says
that the function changed, and where.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from ..targets.errors import ModelError
from .capture import Example, in_mode, inputs_of, operator_name, users_line
from .groups import Groups, Tracing
from .narrow import named_tensors
from .plan import Cut, Plan, fingerprint, plan_of
from .resize import resized
from .rules import Tracked

TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""How far two outputs that are the same up to the order of sums may differ, relative to the largest value."""


@dataclass(frozen=True)
class Verification:
    """The outcome of a check that succeeded.

    Attributes:
        max_relative_error: the largest difference of any output, relative to that output's largest value.
        function_changed_by: operators that are taken over fewer units now, each with its line; empty where
            the pruned network is exactly the original with the removed units at zero.
    """

    max_relative_error: float
    function_changed_by: tuple[str, ...] = ()


def verify(original: nn.Module, pruned: nn.Module, plan: Plan, given: Groups | Example) -> Verification:
    """Compares the two on the example, in eval mode; neither is changed.

    Args:
        plan: that by which `pruned` was made from `original`; a plan recorded in `pruned` goes before it.
        given: the trace of `original`, or the example inputs.

    Raises:
        ModelError: they differ; names the first layer that does.
    """
    from .trace import trace  # not at the top: trace is only needed without a trace at hand

    groups = given if isinstance(given, Groups) else trace(original, given)
    done = plan_of(pruned)
    plan = done if done and done.original == plan.original else plan
    if plan.original != fingerprint(original):
        raise ModelError(
            "The plan was not made for this original.", "Verify against the network that was pruned."
        )
    inputs = list(inputs_of(groups.example))
    found = run(pruned, inputs)
    error = relative_error(run(_masked(original, plan.cut), inputs), found)
    if error <= tolerance(found):
        return Verification(error)
    return _verify_survivors(groups, pruned, plan, inputs, found, error)


def run(model: nn.Module, inputs: list[Any]) -> list[Any]:
    """All outputs of a module in eval mode, flat."""
    with in_mode(model, training=False), torch.no_grad():
        return list(pytree.tree_leaves(model(*inputs)))


def relative_error(expected: list[Any], found: list[Any]) -> float:
    """The largest difference, relative to the largest value of that output; infinite where shapes differ."""
    if len(expected) != len(found):
        return float("inf")
    return max((_error(one, other) for one, other in zip(expected, found, strict=True)), default=0.0)


def tolerance(outputs: list[Any]) -> float:
    """What rounding may do to outputs of these types."""
    kinds = [TOLERANCE.get(value.dtype, 0.0) for value in outputs if isinstance(value, Tensor)]
    return max(kinds, default=0.0)


def disagreement(small: nn.Module, reference: nn.Module, groups: Groups) -> str:
    """How `small` differs from `reference`, on the example and on a batch twice its size; '' if not."""
    inputs = list(inputs_of(groups.example))
    batches = [inputs] if groups.batch else [inputs, [torch.cat([value, value]) for value in inputs]]
    for batch in batches:
        expected = run(reference, batch)
        try:
            found = run(small, batch)
        except Exception as error:  # the user's code, run with widths it was not written for
            return f"its forward fails with the new widths: {str(error).splitlines()[0]}"
        if (wrong := relative_error(expected, found)) > tolerance(expected):
            return f"its forward runs with the new widths, but its outputs are off by {wrong:.1e}"
    return ""


def _error(expected: Any, found: Any) -> float:
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor):
        return 0.0 if expected == found else float("inf")
    if expected.shape != found.shape:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    if not expected.is_floating_point():
        return 0.0 if torch.equal(expected, found) else float("inf")
    difference = (expected.double() - found.double()).abs().max()
    largest = expected.double().abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    error = float(difference / largest) if float(difference) > 0 else 0.0
    return error if error == error and bool(difference.isfinite()) else float("inf")


def _masked(model: nn.Module, cut: Cut) -> nn.Module:
    """The original with the removed indices at zero. Buffers stay: a variance of zero would be a lie."""
    masked = copy.deepcopy(model)
    parameters = dict(masked.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, axes in cut.items():
            for axis, indices in axes.items() if name in parameters else ():
                at = torch.tensor(indices, device=parameters[name].device)
                parameters[name].index_fill_(axis, at, 0)
    return masked


def _verify_survivors(
    groups: Groups, pruned: nn.Module, plan: Plan, inputs: list[Any], found: list[Any], masked_error: float
) -> Verification:
    alive = groups.tracing.alive(plan.removed)
    reference = _Survivors(groups.graph, groups.tracing, alive)
    with torch.no_grad():
        expected = list(pytree.tree_leaves(reference.run(*inputs)))
    error = relative_error(expected, found)
    changed = _changed(groups, alive)
    if error <= tolerance(found):
        if not changed:
            changed = ("an operator that does not keep zeros at zero",)
        return Verification(error, changed)
    first = _first_difference(groups, pruned, alive, reference.results, inputs)
    raise ModelError(
        f"The pruned network does not compute what the original does without the removed units: "
        f"outputs differ by {error:.1e} (zeroed parameters: {masked_error:.1e}). {first}",
        "Nothing was saved. Please report this network; until then leave that layer out of the pruning.",
    )


class _Survivors(Interpreter):
    """The original's graph with removed elements at zero, and norms and means over those that live."""

    def __init__(self, graph: GraphModule, tracing: Tracing, alive: Tensor) -> None:
        super().__init__(graph, garbage_collect_values=False)
        twins = resized(graph.graph, tracing, alive)[0]
        self.twins = {
            node.name: twin for node, twin in zip(graph.graph.nodes, _without_new(twins, graph), strict=True)
        }
        self.tracing, self.alive = tracing, alive
        self.results: dict[str, Any] = {}

    def run_node(self, node: Node) -> Any:
        over = self.tracing.renormalised.get(node.name)
        fewer = over is not None and not bool(self.alive[over].all())
        result = self._of_survivors(node) if fewer else super().run_node(node)
        known = self.tracing.values.get(node.name)
        if isinstance(known, Tracked) and isinstance(result, Tensor):
            result = _spread(result, known, self.alive) if fewer else _zeroed(result, known, self.alive)
        self.results[node.name] = result
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

    def run_node(self, node: Node) -> Any:
        self.results[node.name] = super().run_node(node)
        return self.results[node.name]


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


def _changed(groups: Groups, alive: Tensor) -> tuple[str, ...]:
    tracing = groups.tracing
    names = {name for name, over in tracing.renormalised.items() if not bool(alive[over].all())}
    nodes = [node for node in groups.graph.graph.nodes if node.name in names]
    return tuple(dict.fromkeys(f"{operator_name(node)} at {users_line(node) or node.name}" for node in nodes))


def _first_difference(
    groups: Groups, pruned: nn.Module, alive: Tensor, expected: dict[str, Any], inputs: list[Any]
) -> str:
    graph = GraphModule(groups.graph, resized(groups.graph.graph, groups.tracing, alive)[0])
    recorder = _Recorder(graph, dict(named_tensors(pruned)))
    try:
        with torch.no_grad():
            recorder.run(*inputs)
        failure = ""
    except RuntimeError as error:
        failure = f" ({str(error).splitlines()[0]})"
    for node in groups.graph.graph.nodes:
        known, wanted = groups.tracing.values.get(node.name), expected.get(node.name)
        if not isinstance(known, Tracked) or not isinstance(wanted, Tensor):
            continue
        found = recorder.results.get(node.name)
        if found is None or _error(_selected(wanted, known, alive), found) > tolerance([wanted]):
            return f"The first layer that differs is {_place(node)}{failure}."
    return "All layers agree with its graph: the forward code of the pruned module holds an old width."


def _place(node: Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    module = stack[-1][0] if stack else ""
    named = f'"{module}" ({operator_name(node)})' if module else f"{operator_name(node)} ({node.name})"
    return f"{named} at {line}" if (line := users_line(node)) else named
