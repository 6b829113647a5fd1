"""A plan tried out on a network: its narrow tensors, the graph for them, what they must compute, and whether
the user's own module and the graph do.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph

from .capture import inputs_of
from .compare import relative_error, run, tolerance
from .groups import Groups
from .narrow import cut_tensors, known_attributes, matching_attributes, narrowed
from .plan import Attributes, Plan, plan_of, record
from .resize import Change, resized
from .survivors import Recorder, Survivors
from .verify import MismatchError, mismatch


class Trial:
    """A plan, and what it makes of a network; each part is worked out when it is asked for, once."""

    def __init__(self, model: nn.Module, plan: Plan, groups: Groups) -> None:
        self.model, self.plan, self.groups = model, plan, groups

    @functools.cached_property
    def alive(self) -> Tensor:
        """bool[identities]."""
        return self.groups.tracing.alive(self.plan.removed)

    @functools.cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers, narrowed."""
        return cut_tensors(self.model, self.plan.cut)

    @functools.cached_property
    def resized(self) -> tuple[Graph, tuple[Change, ...]]:
        """The graph for these tensors, and what changed in it."""
        return resized(self.groups.tracing, self.alive)

    @functools.cached_property
    def inputs(self) -> tuple[Tensor, ...]:
        """One sample where that is enough: another batch than the one that was captured."""
        inputs = inputs_of(self.groups.example)
        whole = self.groups.batch is not None or self.groups.tracing.batch_among_units
        return inputs if whole else tuple(value[:1] if value.dim() else value for value in inputs)

    @functools.cached_property
    def expected(self) -> list[Any]:
        """What the narrower network must return: the original's outputs, with what is removed at zero."""
        with torch.no_grad():
            return list(Survivors(self.groups.tracing, self.alive, self.resized[0]).run(*self.inputs))

    def module(self) -> tuple[nn.Module | None, str]:
        """The user's class where it is right, if need be with attributes set; else what is wrong with it."""
        _, changes = self.resized
        known, repaired = known_attributes(self.model, changes), matching_attributes(self.model, changes)
        problem = ""
        for attributes in [known] if repaired == known else [known, repaired]:
            small = narrowed(self.model, self.tensors, attributes)
            if not (problem := self._problem(small)):
                reason = self.plan.reason or "its forward code follows the widths"
                if attributes is repaired:
                    reason += f", with attributes set anew: {_listed(attributes, known)}"
                done = dataclasses.replace(
                    self.plan,
                    form="module",
                    reason=reason,
                    attributes=attributes,
                    earlier=earlier_plans(self.model),
                )
                return record(small, done), ""
        return None, problem

    @functools.cached_property
    def graph_problem(self) -> MismatchError | None:
        """What is wrong with the graph of the narrower network, if anything is."""
        graph, _ = self.resized
        try:
            with torch.no_grad():
                found = list(Recorder(self.groups.tracing.graph, graph, self.tensors).run(*self.inputs))
        except Exception:  # a size that was not derived anew; the layer is named below
            found = []
        error = relative_error(self.expected, found)
        if error <= tolerance(self.expected):
            return None
        return mismatch(self.groups.tracing, self.alive, graph, self.tensors, self.inputs, error)

    def _problem(self, small: nn.Module) -> str:
        try:
            found = run(small, self.inputs)
        except Exception as error:  # the user's code, run with widths it was not written for
            first = next(iter(str(error).splitlines()), type(error).__name__)
            return f"its forward fails with the new widths: {first}"
        if (wrong := relative_error(self.expected, found)) > tolerance(self.expected):
            return f"its forward runs with the new widths, but its outputs are off by {wrong:.1e}"
        return ""


def earlier_plans(model: nn.Module) -> tuple[Plan, ...]:
    """The plans that a network has been through, oldest first."""
    before = plan_of(model)
    return (*before.earlier, dataclasses.replace(before, earlier=())) if before else ()


def _listed(attributes: Attributes, but: Attributes) -> str:
    names = [
        (path, name)
        for path, values in attributes.items()
        for name in values
        if name not in but.get(path, {})
    ]
    return ", ".join(sorted(".".join(part for part in named if part) for named in names))
