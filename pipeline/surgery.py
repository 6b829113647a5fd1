"""Surgery: a copy of the network without the removed units, in one of two forms.

The reference is the *graph*: the exported graph with every size derived anew. What users prefer is the
*module*: their own class, its parameters and attributes narrowed. The forward code of a module may hold old
widths, and may run all the same and be wrong; so it is handed out only when it agrees with the graph. If it
does not, the groups whose widths its code holds are left whole and it is tried once more; if too little is
removed then, the user gets the graph.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from ..targets.errors import DeadweightError, ModelError
from .capture import Example, capture
from .graphnet import GraphNet
from .groups import Groups, planned
from .narrow import cut_tensors, known_attributes, matching_attributes, named_tensors, narrowed
from .plan import Attributes, Cut, fingerprint, plan_of, record
from .plan import Plan as Plan
from .resize import resized
from .trace import trace, trace_graph
from .verify import disagreement

SPARED = 1.3
"""The module form may keep this many times the parameters of the graph form; beyond, the graph is better."""


def apply(
    model: nn.Module,
    plan: Plan,
    groups: Groups | None = None,
    example: Example | None = None,
    *,
    form: str = "",
) -> nn.Module:
    """A smaller copy of `model`, which itself stays as it is.

    `plan_of(small)` is the plan that was carried out: it says which form the copy has and why, and may remove
    less than was asked where the module's own code holds a width.

    Args:
        groups, example: the trace from which the plan was made, or else the example to trace it again.
        form: "module" or "graph" for that form and no other; "" for the module where it is right.

    Raises:
        ModelError: the plan is for another network, or the form cannot be had.
    """
    if groups is None:
        if example is None:
            raise ModelError("Surgery needs a trace or an example.", "Call apply(model, plan, groups).")
        groups = trace(model, example)
    _check_fits(model, plan, groups)
    reference = graph_form(model, plan.cut, groups)
    problem = "it was asked for" if form == "graph" else "it was pruned in that form before"
    if form != "graph" and not isinstance(model, GraphNet):
        small, problem = _module_form(model, plan, groups, reference)
        if small is None and (spared := _spared(plan, groups)):
            eased = graph_form(model, spared.cut, groups)
            if form == "module" or _size(eased) <= SPARED * _size(reference):
                small, _ = _module_form(model, spared, groups, eased)
        if small is not None:
            return small
        if form == "module":
            raise ModelError(
                f"The network's own class cannot follow this plan: {problem}", 'Leave out form="module".'
            )
    plan = dataclasses.replace(plan, form="graph", reason=problem, earlier=_earlier(model))
    return record(reference, plan)


def graph_form(model: nn.Module, cut: Cut, groups: Groups) -> GraphNet:
    """The exported graphs, for inference and for training, with this cut."""
    tensors = cut_tensors(model, cut)
    transient = frozenset(name for name, _ in named_tensors(model)) - model.state_dict().keys()
    captured = {False: groups.graph}
    graphs = {False: resized(groups.graph.graph, groups.tracing, living(groups, cut))[0]}
    problem = ""
    try:
        training = trace_graph(model, capture(model, groups.example, training=True), groups.example)
        graphs[True] = resized(training.graph.graph, training.tracing, living(training, cut))[0]
        captured[True] = training.graph
    except DeadweightError as error:
        problem = error.what
    for graph in captured.values():
        for name, tensor in _constants(graph, tensors):
            tensors[name], transient = tensor, transient | {name}
    net = GraphNet(tensors, transient, captured, graphs, problem)
    return net.train(model.training)


def replay(model: nn.Module, plan: Plan, example: Example) -> nn.Module:
    """A fresh instance of the original, cut as the plan and the earlier ones in it say. Values are its own.

    Raises:
        ModelError: a plan is for another network.
    """
    for step in (*plan.earlier, plan):
        if fingerprint(model) != step.original:
            raise _other_network()
        if step.form == "module":
            model = record(narrowed(model, step.cut, step.attributes), step)
        else:
            model = record(graph_form(model, step.cut, trace(model, example)), step)
    return model


def living(groups: Groups, cut: Cut) -> Tensor:
    """bool[identities]: who lives when exactly these indices of the parameters are cut.

    Raises:
        ModelError: no choice of units makes this cut.
    """
    tracing = groups.tracing
    wanted = torch.ones(len(tracing.solution.of), dtype=torch.bool)
    for (name, axis), vector in tracing.slots.items():
        wanted[vector[list(cut.get(name, {}).get(axis, ()))]] = False
    of, free = tracing.solution.of, tracing.solution.free
    spoiled = torch.zeros_like(wanted)  # units that reach an index which is to stay
    for vector in tracing.slots.values():
        for _, units in tracing.solution.units(of[vector]):
            spoiled[units[(units >= 0) & wanted[vector]]] = True
    touched = torch.zeros_like(wanted)
    for vector in tracing.slots.values():
        for _, units in tracing.solution.units(of[vector]):
            touched[units[(units >= 0) & ~wanted[vector]]] = True
    alive = tracing.solution.alive((free & touched & ~spoiled).nonzero().reshape(-1))
    slots = list(tracing.slots.values())
    if any(not torch.equal(alive[vector], wanted[vector]) for vector in slots):
        raise ModelError(
            "What is to be removed does not fit this graph of the network: other units hang together in it.",
            "Its forward differs between training and inference; prune fewer groups, or make it the same.",
        )
    return alive


def _module_form(
    model: nn.Module, plan: Plan, groups: Groups, reference: nn.Module
) -> tuple[nn.Module | None, str]:
    """The user's class where it agrees with the graph, if need be with attributes set; else the problem."""
    _, changes = resized(groups.graph.graph, groups.tracing, living(groups, plan.cut))
    known = known_attributes(model, changes)
    repaired = matching_attributes(model, changes)
    problem = ""
    for attributes in [known] if repaired == known else [known, repaired]:
        small = narrowed(model, plan.cut, attributes)
        if not (problem := disagreement(small, reference, groups)):
            return record(small, _as_module(plan, model, attributes, repairs=attributes is repaired)), ""
    return None, problem


def _as_module(plan: Plan, model: nn.Module, attributes: Attributes, *, repairs: bool) -> Plan:
    reason = plan.reason or "its forward code follows the widths"
    if repairs:
        named = ", ".join(
            sorted(f"{path}.{name}".strip(".") for path, values in attributes.items() for name in values)
        )
        reason += f", with attributes set anew: {named}"
    return dataclasses.replace(
        plan, form="module", reason=reason, attributes=attributes, earlier=_earlier(model)
    )


def _spared(plan: Plan, groups: Groups) -> Plan | None:
    """The plan without the groups whose widths stand in the module's code; None if nothing is left of it."""
    stiff = []
    for name, units in plan.removed.items():
        _, changes = resized(groups.graph.graph, groups.tracing, groups.tracing.alive({name: units}))
        if any(change.argument not in ("groups", "num_groups", "normalized_shape") for change in changes):
            stiff.append(name)
    rest = {name: units for name, units in plan.removed.items() if name not in stiff}
    if not stiff or not rest:
        return None
    reason = f"its forward code holds the widths of {', '.join(stiff)}, which were left whole"
    return dataclasses.replace(planned(groups, rest), reason=reason)


def _constants(graph: torch.fx.GraphModule, tensors: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Tensors of the graph that the module does not own: constants of its code."""
    found = []
    for node in graph.graph.nodes:
        if node.op == "get_attr" and str(node.target) not in tensors:
            value: Any = graph
            for step in str(node.target).split("."):
                value = getattr(value, step)
            if isinstance(value, Tensor):
                found.append((str(node.target), value.detach().clone()))
    return found


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _earlier(model: nn.Module) -> tuple[Plan, ...]:
    before = plan_of(model)
    return (*before.earlier, dataclasses.replace(before, earlier=())) if before else ()


def _check_fits(model: nn.Module, plan: Plan, groups: Groups) -> None:
    if not plan.original == fingerprint(model) == groups.fingerprint:
        raise _other_network()


def _other_network() -> ModelError:
    return ModelError(
        "The plan was made for another network: names, shapes or types of its parameters differ.",
        "Make a plan for this one (trace, then choose), or give the network that the plan was made for.",
    )
