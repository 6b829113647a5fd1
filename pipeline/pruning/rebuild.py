"""The steps of a plan, taken again on a fresh instance of the original: what loads a pruned network.

The plan holds what was cut, so nothing of how a cut is found is needed, unless the network has graph form.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ...targets.errors import ModelError
from .bypass import shallower
from .factors import relaid
from .narrow import cut_tensors, narrowed
from .plan import Plan, fingerprint, record


def rebuilt(model: nn.Module, plan: Plan, graph_form: Callable[[nn.Module, Plan], nn.Module]) -> nn.Module:
    """The original, cut as the plan and the earlier ones in it say; `graph_form` takes steps of that form.

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
            small = narrowed(model, cut_tensors(model, step.cut), step.attributes)
        else:
            small = graph_form(model, step)
        model = record(small, step)
    return model


def other_network() -> ModelError:
    """A plan and a network that do not belong together."""
    return ModelError(
        "The plan was made for another network: its parameters differ in name, shape or type, or they hang"
        " together in another way.",
        "Make a plan for this one (trace, then choose), or give the network that the plan was made for.",
    )
