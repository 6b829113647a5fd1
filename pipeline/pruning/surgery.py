"""Surgery: makes a copy of the network without the removed units, in one of two forms.

The reference is the *graph*: the exported graph with every size derived again. Users prefer the *module*:
their own class, with narrowed parameters and attributes. A module's forward code may contain old widths, and
may run but be wrong; so it is returned only if it computes the same as the masked original. If it does not,
groups whose widths its code contains are not pruned; if that removes too little, the user gets the graph. A
group that cannot be removed from the graph is not pruned either.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from ...export.opened import unwrapped
from ...targets.errors import ModelError
from .bypass import shallower
from .capture import capture, first_samples, users_line
from .compare import compared, or_nothing, run, run_graph
from .contexts import configs_with_cache, uncollected
from .graphnet import GraphNet, Program, call_layers
from .groups import Groups, planned
from .inputs import Example
from .narrow import WIDTH_ARGUMENTS, cut_tensors, known_attributes, named_tensors, narrowed
from .plan import Cut, fingerprint, parameters_left, record, together
from .plan import Plan as Plan
from .rebuild import other_network, rebuilt
from .resize import Change, resized
from .survivors import Recorder, check_traced, check_values
from .takes import follow
from .trace import trace, tracing_of
from .trial import Trial

SPARED = 1.25
"""The module form may have up to this many times the parameters of the graph form; beyond, use the graph."""


@uncollected()
def apply(
    model: nn.Module,
    plan: Plan,
    groups: Groups | None = None,
    example: Example | None = None,
    *,
    form: str = "",
) -> nn.Module:
    """A smaller copy of `model`, which is not changed; of a wrapped one, the network within.

    `plan_of(small)` is the plan that was applied: it says which form the copy has and why, and may remove
    less than asked if the module's own code contains a width.

    Args:
        groups, example: the trace from which the plan was made, or else the example to trace it again.
        form: "module" or "graph" for only that form; "" for the module if it is right, else the graph.

    Raises:
        ModelError: the plan is for another network, or the form is not possible.
    """
    model = unwrapped(model)
    if plan.dropped:
        return _shallower(model, plan, form)
    return tried_out(model, plan, groups, example, form)[0]


def tried_out(
    model: nn.Module, plan: Plan, groups: Groups | None, example: Example | None = None, form: str = ""
) -> tuple[nn.Module, Trial]:
    """The same, with the trial that found it right."""
    if groups is None:
        if example is None:
            raise ModelError("Surgery needs a trace or an example.", "Call apply(model, plan, groups).")
        groups = trace(model, example)
    _check_fits(model, plan, groups)
    trial, small, problem = _feasible(Trial(model, plan, groups), form)
    if small is not None:
        return small, trial
    if form == "module":
        cure = 'Leave out form="module".'
        raise ModelError(f"The network's own class cannot follow this plan: {problem}.", cure)
    fixed = f"batch fixed at {groups.batch}" if groups.batch else ""
    uncached = "without its cache (use_cache=False)" if configs_with_cache(model.modules()) else ""
    reason = "; ".join(part for part in (trial.plan.reason, problem, fixed, uncached) if part)
    plan = dataclasses.replace(trial.plan, form="graph", reason=reason)
    return record(graph_form(model, plan.cut, groups, trial.tensors), plan, of=model), trial


def _shallower(model: nn.Module, plan: Plan, form: str) -> nn.Module:
    if plan.original != fingerprint(model):
        raise other_network()
    if form == "graph" or isinstance(model, GraphNet):
        raise ModelError(
            "Blocks can be dropped from the network's own class, but not from its graph form.",
            'Drop blocks first, without form="graph"; a cut of neurons afterwards may have that form.',
        )
    reason = plan.reason or "a small module replaces each block"
    done = dataclasses.replace(plan, form="module", reason=reason)
    return record(shallower(model, plan.dropped), done, of=model)


def _feasible(trial: Trial, form: str) -> tuple[Trial, nn.Module | None, str]:
    """The part of a plan that can be applied, with the user's class if it can follow, or else why not."""
    if form == "graph" or isinstance(trial.model, GraphNet):
        problem = "it was asked for" if form == "graph" else "it was pruned in that form before"
        return _without_unsound(trial), None, problem
    small, problem = trial.module()
    if small is None:
        asked, trial = trial, _without_unsound(trial)
        if trial is not asked:
            small, problem = trial.module()
    if small is None:
        trial, small = _module_form(trial, limit=math.inf if form == "module" else SPARED)
    return trial, small, problem


def graph_form(
    model: nn.Module, cut: Cut, groups: Groups, tensors: dict[str, Tensor] | None = None
) -> GraphNet:
    """The exported graphs with this cut, for inference and, if there is one, for training.

    All axes of the inputs are open that the network leaves open, if the graph then computes the same as the
    proven one, which has only its batch open.
    """
    tensors = tensors or cut_tensors(named_tensors(model), cut)
    graph, _ = resized(groups.tracing, groups.tracing.living(cut))
    inputs = first_samples(model, groups.example, graph)
    proven = partial(run_graph, Recorder(groups.tracing.graph, graph, tensors), inputs)
    net = _graph_net(model, groups, cut, tensors, every=True)
    if compared(proven, or_nothing(partial(run, net, inputs))).same:
        return net
    return _graph_net(model, groups, cut, tensors, every=False)


def _graph_net(
    model: nn.Module, groups: Groups, cut: Cut, tensors: dict[str, Tensor], *, every: bool
) -> GraphNet:
    transient = frozenset(tensors) - model.state_dict().keys()
    captured, graphs, problem = dict[bool, GraphModule](), dict[bool, Graph](), ""
    whole, attributes = set[str](), dict[str, dict[str, Any]]()
    for training in (False, True):
        try:
            captured[training], graph, changes = _resized(model, groups, cut, training, every=every)
        except ModelError as error:
            problem = error.what
            continue
        attributes |= known_attributes(model, changes)
        whole |= call_layers(graph, changes, model)
        graphs[training] = graph
    constants = _constants(captured, graphs, tensors)
    tensors, transient = tensors | constants, transient | constants.keys()
    precision = {name: kind for graph in graphs.values() for name, kind in follow(graph, tensors).items()}
    structures = {mode: one.meta["structure"] for mode, one in captured.items()}
    takes = {mode: one.meta["takes"] for mode, one in captured.items()}
    small = narrowed(model, tensors, attributes)
    program = Program(graphs, structures, takes, precision, problem)
    layers = {name: small.get_submodule(name) for name in whole}
    return GraphNet(program, tensors, transient, layers).train(model.training)


def _resized(
    model: nn.Module, groups: Groups, cut: Cut, training: bool, *, every: bool
) -> tuple[GraphModule, Graph, Sequence[Change]]:
    """A graph as captured and for the living units, with every axis open if that is possible.

    Raises:
        ModelError: it cannot be captured, it couples other units, or it has backward passes of its own.
    """
    tracing = None if every else groups.tracing.learner if training else groups.tracing
    try:
        if tracing is None:
            if (training, every) not in groups.captures:
                captured = capture(model, groups.example, training=training, every=every)
                groups.captures[training, every] = tracing_of(model, captured)
            tracing = groups.captures[training, every]
        if training and (functions := tracing.graph.meta["own_backward"]):
            cure = "Leave it out of the groups to prune, or train before pruning."
            raise ModelError(f"its forward uses {functions}, whose backward a graph does not have.", cure)
        return tracing.graph, *resized(tracing, tracing.living(cut))
    except ModelError:
        if every:
            return _resized(model, groups, cut, training, every=False)
        raise


@uncollected()
def replay(model: nn.Module, plan: Plan, given: Groups | Example) -> nn.Module:
    """A new instance of the original, cut by the plan and the earlier ones in it. Values are its own.

    Args:
        given: the trace of `model`, or the example inputs.

    Raises:
        ModelError: a plan is for another network.
    """

    def cut(model: nn.Module, step: Plan) -> nn.Module:
        return graph_form(model, step.cut, given if isinstance(given, Groups) else trace(model, given))

    return rebuilt(model, plan, cut)


def _without_unsound(trial: Trial) -> Trial:
    """The same without the groups whose removal makes the graph wrong.

    Raises:
        MismatchError: leaving out groups does not make it right.
        ModelError: the network has other values than when it was traced.
    """
    check_values(trial.model, trial.groups)
    while error := trial.graph_problem:
        check_traced(trial.model, trial.groups)
        touching = _touching([error.node] if error.node else [], trial.plan, trial.groups)
        if not touching:
            raise error
        line = users_line(error.node) if error.node else ""
        trial = trial.of(_without(trial.plan, trial.groups, touching, line))
    return trial


def _module_form(trial: Trial, *, limit: float) -> tuple[Trial, nn.Module | None]:
    """The part of the plan that the user's class can follow, with that; or the plan, if it is too little.

    Groups whose widths the code contains are not pruned: those of one kind, or all; the smallest network that
    is right is returned.

    Args:
        limit: the largest number of parameters, as a multiple of those of the full plan.
    """
    model, plan, groups = trial.model, trial.plan, trial.groups
    held = [change.node for change in trial.resized[1] if change.argument not in WIDTH_ARGUMENTS]
    stiff: dict[str, list[str]] = {}
    for name in _touching(held, plan, groups):
        stiff.setdefault(groups[name].kind, []).append(name)
    every = [name for names in stiff.values() for name in names]
    choices = [names for names in (*stiff.values(), every) if names and len(names) < len(plan.removed)]
    attempts = [_without(plan, groups, names) for names in choices]
    most = limit * parameters_left(model, plan)
    for attempt in sorted(attempts, key=lambda one: parameters_left(model, one)):
        if parameters_left(model, attempt) <= most:
            part = trial.of(attempt)
            small, _ = part.module()
            if small is not None:
                return part, small
    return trial, None


def _without(plan: Plan, groups: Groups, names: Sequence[str], wrong_at: str = "") -> Plan:
    """The plan without some groups, and the reason: the code contains their widths, or the cut is wrong."""
    rest = {name: units for name, units in plan.removed.items() if name not in names}
    reason = f"the widths of {together(names)} were not pruned, because "
    reason += f"the cut is wrong at {wrong_at}" if wrong_at else "its forward code contains them"
    reason = "; ".join(part for part in (plan.reason, reason) if part)
    return dataclasses.replace(planned(groups, rest), reason=reason)


def _touching(nodes: Sequence[Node], plan: Plan, groups: Groups) -> list[str]:
    """The groups of the plan that have units in the operands or results of these nodes."""
    tracing = groups.tracing
    names = {one.name for node in nodes for one in (node, *node.all_input_nodes)}
    tracked = pytree.tree_leaves([value for name, value in tracing.values.items() if name in names])
    vectors = [vector for one in tracked for vector in one.axes if vector is not None]
    identities = torch.cat(vectors) if vectors else torch.empty(0, dtype=torch.long)
    reached = torch.zeros(len(tracing.solution.of), dtype=torch.bool)
    for _, units in tracing.solution.units(tracing.solution.of[identities]):
        reached[units[units >= 0]] = True
    left = plan.removed.items()
    return [name for name, units in left if bool(reached[tracing.units[name][list(units)]].any())]


def _constants(
    captured: Mapping[bool, GraphModule], graphs: Mapping[bool, Graph], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Tensors of the graphs that are not in the module, constants of its code, by names of their own."""
    found: dict[str, Tensor] = {}
    for training, graph in graphs.items():
        for node in graph.find_nodes(op="get_attr"):
            if (name := str(node.target)) not in tensors:
                value = operator.attrgetter(name)(captured[training])
                if not isinstance(value, Tensor):
                    cure = "Prune fewer groups, so that the network keeps its own class."
                    raise ModelError(f"The graph form cannot hold the branches of {users_line(node)}.", cure)
                value = value.detach().clone()
                other = found.setdefault(name, value)
                if other.dtype != value.dtype or not torch.equal(other, value):
                    node.target = f"{name}_training"
                    found[node.target] = value
    return found


def _check_fits(model: nn.Module, plan: Plan, groups: Groups) -> None:
    if any(parameter.is_meta for parameter in model.parameters()):
        cure = "Build it on another device, or call model.to_empty(device='cpu') and load its weights."
        raise ModelError("The network is on the meta device: without values no cut can be proven.", cure)
    if not plan.original == fingerprint(model) == groups.fingerprint:
        raise other_network()
    sizes = {group.name: group.size for group in groups}
    for name, units in plan.removed.items():
        if not 0 <= min(units, default=0) <= max(units, default=0) < sizes.get(name, 0):
            raise other_network()
    if planned(groups, plan.removed).cut != plan.cut:
        raise other_network()
