"""The trial of a plan on a network: narrow tensors, the resized graph, the expected outputs, and whether the
user's module and the graph compute them.

Whether a cut is right does not depend on values, but values can hide that it is wrong: an input of zeros, a
layer scale of 1e-6, a gate that starts closed. So tensors of little spread are replaced by random values. The
user's class is tried with its own values too, which is what `verify` does.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from ...export.opened import tensors_of
from .calls import Tracked
from .capture import first_samples, operator_name
from .compare import Computation, Precision, compared, or_nothing, run, run_graph
from .contexts import first_line
from .groups import Groups
from .inputs import BATCH, Inputs, axes_of, inputs_of, is_image, tried, with_tensors
from .narrow import (
    config_widths,
    cut_tensors,
    guessed_attributes,
    holding,
    limits,
    masks,
    named_tensors,
    narrowed,
    read_attributes,
    set_attributes,
    unread_widths,
    without_each,
)
from .plan import Attributes, Plan, both, record, together
from .resize import Change, resized
from .survivors import MismatchError, Recorder, Survivors, mismatch, renormalised_by


class Trial:
    """A plan and its results on a network; each is computed once, on demand."""

    def __init__(self, model: nn.Module, plan: Plan, groups: Groups) -> None:
        self.model, self.plan, self.groups = model, plan, groups

    def of(self, plan: Plan) -> Trial:
        """A trial of another plan for the same network, with the same values."""
        other = Trial(self.model, plan, self.groups)
        other.lively = self.lively
        return other

    @functools.cached_property
    def alive(self) -> Tensor:
        """bool[identities]."""
        return self.groups.tracing.alive(self.plan.removed)

    @functools.cached_property
    def tensors(self) -> dict[str, Tensor]:
        return cut_tensors(named_tensors(self.model), self.plan.cut)

    @functools.cached_property
    def lively(self) -> dict[str, Tensor]:
        """Random values, at full width, for the parameters whose own values would hide a mistake."""
        generator = torch.Generator().manual_seed(0)
        found = {id(one): _lively(one, generator) for one in self.model.parameters()}
        named = ((name, found.get(id(one))) for name, one in named_tensors(self.model))
        return {name: value for name, value in named if value is not None}

    def tried(self) -> dict[str, Tensor]:
        """The lively values, cut; made on each call, to save memory."""
        return cut_tensors(self.lively.items(), self.plan.cut)

    @functools.cached_property
    def resized(self) -> tuple[Graph, tuple[Change, ...]]:
        """The graph for these tensors, and its changes."""
        return resized(self.groups.tracing, self.alive)

    @functools.cached_property
    def inputs(self) -> Inputs:
        """One sample if that is enough: another batch size than the captured one."""
        example, graph = self.groups.example, self.groups.tracing.graph.graph
        whole = any(map(self._narrows_batch, graph.nodes))
        given = inputs_of(self.model, example) if whole else first_samples(self.model, example, graph)
        return with_tensors(given, map(_varied, tensors_of(given), graph.find_nodes(op="placeholder")))

    def _narrows_batch(self, node: Node) -> bool:
        """Whether a narrowed axis also includes the batch, as in (batch x heads, tokens, features)."""
        known, shape = self.groups.tracing.values.get(node.name), getattr(node.meta.get("val"), "shape", ())
        axes = known.axes if isinstance(known, Tracked) else ()
        return any(
            isinstance(size, torch.SymInt) and vector is not None and not bool(self.alive[vector].all())
            for size, vector in zip(shape, axes, strict=False)  # some nodes have facts but no value
        )

    @functools.cached_property
    def expected(self) -> Computation:
        """The expected outputs: the original's, with removed units at zero."""
        return self._outputs(self.lively)

    @functools.cached_property
    def own(self) -> Computation:
        """The same with the network's own values."""
        return self._outputs({}) if self.lively else self.expected

    def _survivors(self, values: dict[str, Tensor]) -> Survivors:
        return Survivors(self.groups.tracing, self.alive, self.resized[0], values)

    def _outputs(self, values: dict[str, Tensor]) -> Computation:
        return functools.cache(functools.partial(run_graph, self._survivors(values), self.inputs))

    def module(self) -> tuple[nn.Module | None, str]:
        """The user's class if it is right, possibly with attributes set; else what is wrong with it."""
        known, *others = guessed_attributes(self.model, self.resized[1])
        # Those that forward does not read are set too where that is right.
        unread = unread_widths(self.model, self.groups.tracing, self.alive)
        guesses: list[Attributes] = [known, *others]
        problem, seen = "", list[Attributes]()
        every = [*((guess, both(unread, guess)) for guess in guesses), *zip(guesses, guesses, strict=True)]
        for guess, settled in every:
            if settled in seen:
                continue
            seen.append(settled)
            small, problem = self._narrowed(settled)
            if small is not None and (wrong := self._elsewhere(small, settled, images=guess != known)):
                small, problem = None, wrong
                every += [(one, one) for one in without_each(settled)]  # one of them is another number
            if small is not None:
                reason = self.plan.reason or "its forward code follows the widths"
                config = config_widths(self.model, small)
                if config:
                    set_attributes(small, {"": config})
                    if self._problem(small, self.own):  # its forward reads them for something else
                        small = narrowed(self.model, self.tensors, settled)
                    else:
                        settled = both({"": config}, settled)
                if config is None:
                    reason += "; its config cannot describe these widths: write it with save_pruned()"
                if settled != known:
                    reason += f", with changed attributes: {_listed(settled, known)}"
                done = dataclasses.replace(self.plan, form="module", reason=reason, attributes=settled)
                return record(small, done, of=self.model), ""
        return None, problem

    def _narrowed(self, attributes: Attributes) -> tuple[nn.Module | None, str]:
        """The user's class with these attributes, if it is right with lively values and with its own."""
        small = narrowed(self.model, self.tensors, attributes)
        if self.lively:
            with holding(self.tensors, self.tried()):
                problem = self._problem(small, self.expected)
            if problem:
                return None, problem
        problem = self._problem(small, self.own)
        return None if problem else small, problem

    def _elsewhere(self, small: nn.Module, attributes: Attributes, *, images: bool) -> str:
        """What is wrong at other sizes that the original takes: an attribute may be right by chance at one.

        Args:
            images: also tries other heights and widths.
        """
        inputs, graph = inputs_of(self.model, self.groups.example), self.groups
        axes = axes_of(tensors_of(inputs))
        axes = {name: places for name, places in axes.items() if images or not is_image(name)}
        attributes = read_attributes(self.model, attributes)
        if not any(attributes.values()) or {*axes} <= {BATCH}:
            return ""
        exact = not renormalised_by(graph, self.alive)
        values = masks(self.model, self.plan.cut) if exact else {}

        def wide(given: Inputs, precision: Precision) -> list[Any]:
            with holding(dict(named_tensors(self.model)), values):
                return run(self.model, given, precision)

        def outcome(tensors: list[Tensor]) -> str:
            given = with_tensors(inputs, tensors)
            expected = functools.cache(or_nothing(functools.partial(wide, given)))
            found = functools.cache(or_nothing(functools.partial(run, small, given)))
            if not (wanted := expected(Precision.OWN)):
                return ""
            shapes = [
                [getattr(one, "shape", None) for one in some] for some in (wanted, found(Precision.OWN))
            ]
            alike = compared(expected, found).same if exact else shapes[0] == shapes[1]
            return "same" if alike else "wrong"

        said = tried(
            tensors_of(inputs), axes, outcome, one_sample=graph.batch is None, beyond=limits(attributes)
        )
        wrong = [name for name, one in said.items() if one == "wrong"]
        return f"its forward is wrong at another {' and '.join(wrong)}" if wrong else ""

    @functools.cached_property
    def graph_problem(self) -> MismatchError | None:
        """What is wrong with the graph of the narrower network, if anything is."""
        tried = self.tensors | self.tried()
        narrow = Recorder(self.groups.tracing.graph, self.resized[0], tried)
        found = or_nothing(functools.partial(run_graph, narrow, self.inputs))
        outcome = compared(self.expected, found)
        reference = self._survivors(self.lively)
        return None if outcome.same else mismatch(reference, tried, self.inputs, outcome.error)

    def _problem(self, small: nn.Module, expected: Computation) -> str:
        expected(Precision.OWN)  # an error in it is not the narrow network's
        try:
            outcome = compared(expected, functools.partial(run, small, self.inputs))
        except Exception as failure:  # the user's code, run with unexpected widths
            return f"its forward fails with the new widths: {first_line(failure)}"
        wrong = f"its forward runs with the new widths, but outputs are wrong by {outcome.error:.1e}"
        return "" if outcome.same else wrong


def _lively(parameter: Tensor, generator: torch.Generator) -> nn.Parameter | None:
    """Random values with the spread of a usual weight; None if the parameter itself has it.

    Weights of 0.02 leave an attention uniform, whatever its scale. Scaled up, trained ones may
    saturate the functions behind, which hides as much.
    """
    if not parameter.is_floating_point() or parameter.numel() == 0:
        return None
    wanted = (parameter[0].numel() if parameter.dim() > 1 else 4) ** -0.5
    value = parameter.detach()
    sample = value.reshape(-1)[:: max(1, value.numel() // 1024)].double()
    if float(sample.std(correction=0)) >= 0.5 * wanted:
        return None
    drawn = float(sample.mean()) + wanted * torch.randn(value.shape, generator=generator)
    return nn.Parameter(drawn.to(parameter), parameter.requires_grad)


def _varied(value: Tensor, node: Node) -> Tensor:
    """The input, or random values if it is constant."""
    if value.numel() < 2 or value.is_complex() or not bool((value == value.reshape(-1)[0]).all()):
        return value
    generator = torch.Generator().manual_seed(0)
    if value.is_floating_point():
        return torch.randn(value.shape, generator=generator).to(value)
    tables = [user.args[0] for user in node.users if operator_name(user) == "embedding"]
    rows = [one.meta["val"].shape[0] for one in tables if isinstance(one, Node)]
    return torch.randint(0, min(rows), value.shape, generator=generator).to(value) if rows else value


def _listed(attributes: Attributes, but: Attributes) -> str:
    new = {
        path: [name for name in values if name not in but.get(path, {})]
        for path, values in attributes.items()
    }
    return together(sorted(f"{path}.{name}".strip(".") for path, names in new.items() for name in names))
