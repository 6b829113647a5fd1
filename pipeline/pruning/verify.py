"""The proof of surgery: the pruned network computes what the original computes without the removed units.

First the plain statement: zero the removed indices in the original's parameters, run both, compare. Where
that does not hold, something is taken *over* the units (a layer norm, a mean over channels), and fewer of
them are legitimately another function: then the original's graph is run with every removed element zeroed and
those operators applied to the survivors alone. The pruned network must agree with that, and the report says
that the function changed, and where.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Node

from ...targets.errors import ModelError
from .capture import Example, inputs_of
from .compare import relative_error, run, tolerance
from .groups import Groups
from .plan import Cut, Plan, fingerprint, plan_of
from .survivors import Survivors, first_difference, place_of, renormalised_by
from .trace import trace


class MismatchError(ModelError):
    """The pruned network computes something else; `node` is the first that differs, if it can be told."""

    def __init__(self, what: str, cure: str, node: Node | None) -> None:
        super().__init__(what, cure)
        self.node = node


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
        ModelError: they differ (a MismatchError, which names the first layer that does), or the plan is for
            another network.
    """
    groups = given if isinstance(given, Groups) else trace(original, given)
    done = plan_of(pruned)
    plan = done if done and done.original == plan.original else plan
    if plan.original != fingerprint(original):
        raise ModelError(
            "The plan was not made for this original.", "Verify against the network that was pruned."
        )
    return verify_on(inputs_of(groups.example), original, pruned, plan, groups)


def verify_on(
    inputs: Sequence[Tensor], original: nn.Module, pruned: nn.Module, plan: Plan, groups: Groups
) -> Verification:
    """`verify` on inputs of any batch size that the trace allows."""
    try:
        found = run(pruned, inputs)
    except Exception:  # a size that was not derived anew; the layer is named below
        found = []
    masked_error = relative_error(run(_masked(original, plan.cut), inputs), found)
    if masked_error <= tolerance(found):
        return Verification(masked_error)
    alive = groups.tracing.alive(plan.removed)
    reference = Survivors(groups.tracing, alive)
    with torch.no_grad():
        error = relative_error(reference.run(*inputs), found)
    if error <= tolerance(found):
        changed = renormalised_by(groups, alive) or ("an operator that turns zero into something else",)
        return Verification(error, changed)
    node = first_difference(groups, pruned, alive, reference.results, inputs)
    where = f"The first layer that differs is {place_of(node)}." if node else _ALL_AGREE
    raise MismatchError(
        f"The pruned network does not compute what the original does without the removed units: "
        f"outputs differ by {error:.1e} (against zeroed parameters: {masked_error:.1e}). {where}",
        "Nothing was saved. Please report this network; until then leave that layer out of the pruning.",
        node,
    )


_ALL_AGREE = "All layers agree with its graph: the forward code of the pruned module holds an old width."


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
