"""The proof of surgery: the pruned network computes the same as the original without the removed units.

First the plain check: zero the removed indices in the original's parameters, run both, compare. If they
differ, there is a reduction *over* the units (a layer norm, a mean over channels); the reference is
then the original's graph with the living alone (`survivors`), and the report says what changed, and where.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.fx import Graph, Interpreter, Node

from ...targets.errors import ModelError
from .bypass import difference
from .compare import Precision, compared, or_nothing, run, run_graph
from .groups import Groups, Tracing
from .inputs import Example
from .narrow import copied_module, named_tensors
from .plan import Cut, Plan, fingerprint, plan_of
from .resize import resized
from .survivors import Recorder, Survivors, first_difference, place_of, renormalised_by
from .trace import trace
from .wrappers import unwrapped


class MismatchError(ModelError):
    """The pruned network computes something else; `node` is the first that differs, if it is known."""

    def __init__(self, what: str, cure: str, node: Node | None) -> None:
        super().__init__(what, cure)
        self.node = node


@dataclass(frozen=True)
class Verification:
    """The result of a check that succeeded.

    Attributes:
        max_relative_error: the largest difference of any output, relative to that output's largest value.
        rounding: the same in the network's own precision, where that is above the tolerance: then
            `max_relative_error` is that in double precision.
        function_changed_by: reductions that are now over fewer units, each with its line; empty if the
            pruned network is exactly the original with the removed units at zero.
    """

    max_relative_error: float
    function_changed_by: tuple[str, ...] = ()
    rounding: float = 0.0


def verify(original: nn.Module, pruned: nn.Module, plan: Plan, given: Groups | Example) -> Verification:
    """Compares the two on the example, in eval mode; neither is changed.

    Args:
        plan: the plan by which `pruned` was made from `original`; one recorded in `pruned` has priority.
        given: the trace of `original`, or the example inputs.

    Raises:
        ModelError: they differ (a MismatchError, which names the first layer that does), or the plan is for
            another network.
    """
    original, pruned = unwrapped(original), unwrapped(pruned)
    done = plan_of(pruned)
    plan = done if done and done.original == plan.original else plan
    if plan.original != fingerprint(original):
        cure = "Verify against the network that was pruned."
        raise ModelError("The plan was not made for this original.", cure)
    if plan.dropped:
        return _verify_depth(original, pruned, plan, given.example if isinstance(given, Groups) else given)
    groups = given if isinstance(given, Groups) else trace(original, given)
    return verify_on(groups.example, original, pruned, plan, groups)


def _verify_depth(original: nn.Module, shallow: nn.Module, plan: Plan, example: Example) -> Verification:
    """Compares with the original in which each dropped block returns its input, or only its shortcut."""
    outcome = difference(original, shallow, plan.dropped, example)
    if outcome.same:
        return Verification(outcome.error, rounding=outcome.rounding)
    raise MismatchError(
        f"The network without {', '.join(plan.dropped)} does not compute the same as the original in which "
        f"these return their input or shortcut: outputs differ by {outcome.error:.1e}.",
        "Nothing was saved. Do not drop these blocks, or verify before fine-tuning.",
        None,
    )


def verify_on(
    inputs: Example, original: nn.Module, pruned: nn.Module, plan: Plan, groups: Groups
) -> Verification:
    """`verify` on inputs of any batch size that the trace allows."""
    alive = groups.tracing.alive(plan.removed)
    found = cache(or_nothing(partial(run, pruned, inputs)))
    outcome = compared(partial(run, _masked(original, plan.cut), inputs), found)
    if outcome.same:
        return Verification(outcome.error, rounding=outcome.rounding)
    graph, _ = resized(groups.tracing, alive)
    captured, reference = Interpreter(groups.tracing.graph), Survivors(groups.tracing, alive, graph)
    outcome = compared(partial(run_graph, reference, inputs), found)
    deterministic = compared(partial(run, original, inputs), partial(run_graph, captured, inputs))
    if not deterministic.same:
        check_traced(original, groups)
        raise ModelError(
            "The original and its captured graph give different outputs: its forward depends on more than"
            " its inputs and parameters (random numbers, the time, a stored state).",
            "Make its eval mode a function of its inputs: seed it, or remove that part.",
        )
    if outcome.same:
        changed = renormalised_by(groups, alive) or ("an operator that maps zero to another value",)
        return Verification(outcome.error, changed, outcome.rounding)
    raise mismatch(groups.tracing, alive, graph, dict(named_tensors(pruned)), inputs, outcome.error)


def check_traced(model: nn.Module, groups: Groups) -> None:
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


def mismatch(
    tracing: Tracing,
    alive: Tensor,
    graph: Graph,
    tensors: Mapping[str, Tensor],
    inputs: Example,
    error: float,
    *,
    wide: Mapping[str, Tensor] | None = None,
) -> MismatchError:
    """The error that names the first layer of the narrower network whose values are not the reference's.

    Args:
        graph, tensors: of the narrower network.
        wide: replacement values for parameters of the original.
        error: the relative error of its outputs.
    """
    reference = Survivors(tracing, alive, graph, wide, keep=True)
    recorder = Recorder(tracing.graph, graph, tensors, keep=True)
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


def _masked(model: nn.Module, cut: Cut) -> nn.Module:
    """The original with the removed indices at zero. Buffers stay: a variance of zero would be wrong."""
    masks: dict[int, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in cut and id(parameter) not in masks:
            value = parameter.detach().clone()
            for axis, indices in cut[name].items():
                value.index_fill_(axis, torch.tensor(indices, device=value.device), 0)
            masks[id(parameter)] = nn.Parameter(value, parameter.requires_grad)
    # Unmasked tensors are shared with the original: nothing here writes to them.
    shared = {id(tensor): tensor for _, tensor in named_tensors(model)}
    return copied_module(model, shared | masks)
