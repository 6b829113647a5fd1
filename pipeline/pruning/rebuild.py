"""Rebuilds a pruned network: applies the steps of a plan to a new instance of the original.

The plan has the cut, so tracing is not needed, unless the network is in the graph form.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ...targets.errors import ModelError
from .bypass import shallower
from .factors import relaid
from .narrow import cut_tensors, named_tensors, narrowed
from .plan import Plan, fingerprint, record


def rebuilt(model: nn.Module, plan: Plan, graph_form: Callable[[nn.Module, Plan], nn.Module]) -> nn.Module:
    """The original, cut by the plan and the earlier ones in it; `graph_form` applies steps of that form.

    Raises:
        ModelError: a plan is for another network.
    """
    for step in (*plan.earlier, plan):
        if fingerprint(model) != step.original:
            raise other_network()
        if step.dropped:
            small = shallower(model, step.dropped)
        elif step.form == "layers":
            small = relaid(model, step)
        elif step.form == "module":
            small = narrowed(model, cut_tensors(named_tensors(model), step.cut), step.attributes)
        else:
            small = graph_form(model, step)
        model = record(small, step)
    return model


def other_network() -> ModelError:
    """A plan and a network that do not belong together."""
    return ModelError(
        "The plan was made for another network: its parameters differ in name, shape or type, or they are "
        "coupled in another way.",
        "Make a plan for this one (trace, then choose), or give the network that the plan was made for.",
    )
