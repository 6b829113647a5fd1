"""The trial of a plan on a network: narrow tensors, the resized graph, the expected outputs, and whether the
user's module and the graph compute them.

Whether a cut is right does not depend on values, but values can hide that it is wrong: an input of zeros, a
layer scale of 1e-6, a gate that starts closed. So tensors of little spread are replaced by random values. The
user's class is tried with its own values too, which is what `verify` does.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from ...export.opened import tensors_of
from .calls import Tracked
from .capture import first_samples, operator_name
from .compare import Comparison, Computation, Precision, compared, or_nothing, run, run_graph
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

References = tuple[Computation, ...]


class Trial:
    """A plan and its results on a network; each is computed once, on demand.

    Attributes:
        found: the difference of the outputs of the last module that was tried, and what was renormalised.
    """

    def __init__(self, model: nn.Module, plan: Plan, groups: Groups) -> None:
        self.model, self.plan, self.groups = model, plan, groups
        self.found: tuple[Comparison, tuple[str, ...]] | None = None

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
    def changed(self) -> tuple[str, ...]:
        """The reductions that are now over fewer units: there the masked original computes something else."""
        return renormalised_by(self.groups, self.alive)

    @functools.cached_property
    def named(self) -> dict[str, Tensor]:
        return dict(named_tensors(self.model))

    @functools.cached_property
    def masks(self) -> dict[str, Tensor]:
        return masks(self.named, self.plan.cut)

    def masked(self, inputs: Inputs, precision: Precision) -> list[Any]:
        """The outputs of the original with removed units at zero."""
        with holding(self.named, self.masks):
            return run(self.model, inputs, precision)

    def survivors(self, values: Mapping[str, Tensor]) -> Survivors:
        """The second reference, with other values for some parameters."""
        return Survivors(self.groups.tracing, self.alive, self.resized[0], values)

    @functools.cached_property
    def expected(self) -> References:
        """The references with lively values."""
        return self.references(self.inputs, self.lively)

    @functools.cached_property
    def own(self) -> References:
        """The same with the network's own values."""
        return self.references(self.inputs) if self.lively else self.expected

    def references(self, inputs: Inputs, values: Mapping[str, Tensor] = {}) -> References:
        """The expected outputs: the masked original's, and the survivors' if that is another function."""

        def masked(precision: Precision) -> list[Any]:
            if not values:
                return self.masked(inputs, precision)
            with holding(self.named, {**values, **masks({**self.named, **values}, self.plan.cut)}):
                return run(self.model, inputs, precision)

        def survived(precision: Precision) -> list[Any]:
            return run_graph(self.survivors(values or self.named), inputs, precision)

        return tuple(map(functools.cache, (survived,) if self.changed else (masked, survived)))

    def difference(
        self, references: References, found: Computation, *, careful: bool = True
    ) -> tuple[Comparison, tuple[str, ...]]:
        """How far outputs are from the reference that fits them, and what that one renormalised."""
        outcome, changed = compared(references[0], found, careful=careful), self.changed
        for expected in references[1:] if not outcome.same else ():
            outcome = compared(expected, found, careful=careful)
            changed = ("an operator that maps zero to another value",)
        return outcome, changed

    def module(self) -> tuple[nn.Module | None, str]:
        """The user's class if it is right, possibly with attributes set; else what is wrong with it.

        What only rounding could excuse is looked at closely where no other guess is right, nor the graph.
        """
        known, *others = guessed_attributes(self.model, self.resized[1])
        # Those that forward does not read are set too where that is right.
        unread = unread_widths(self.model, self.groups.tracing, self.alive)
        guesses: list[Attributes] = [known, *others]
        every = [*((guess, both(unread, guess)) for guess in guesses), *zip(guesses, guesses, strict=True)]
        problem = ""
        for careful in (False, True):
            seen, unsure = list[Attributes](), list[tuple[Attributes, Attributes]]()
            for guess, settled in every:
                if settled in seen:
                    continue
                seen.append(settled)
                small, problem = self._narrowed(settled, careful=careful)
                if small is None and self.found is not None:
                    unsure.append((guess, settled))
                if small is not None and (wrong := self._elsewhere(small, settled, images=guess != known)):
                    small, problem = None, wrong
                    every += [(one, one) for one in without_each(settled)]  # one of them is another number
                if small is not None:
                    return self._described(small, settled, known, careful=careful), ""
            every = unsure
            if not every or (self.graph_difference.same and not self.graph_difference.rounding):
                break  # the graph of the same computation is not rounded as much
        return None, problem

    def _described(
        self, small: nn.Module, settled: Attributes, known: Attributes, *, careful: bool
    ) -> nn.Module:
        """The network with its plan and, where they describe it, the sizes of its configuration."""
        reason = self.plan.reason or "its forward code follows the widths"
        config = config_widths(self.model, small)
        if config:
            set_attributes(small, {"": config})
            if self._problem(small, self.own, careful=careful):  # its forward reads them for something else
                small = narrowed(self.model, self.tensors, settled)
            else:
                settled = both({"": config}, settled)
        if config is None:
            reason += "; its config cannot describe these widths: write it with save_pruned()"
        if settled != known:
            reason += f", with changed attributes: {_listed(settled, known)}"
        done = dataclasses.replace(self.plan, form="module", reason=reason, attributes=settled)
        return record(small, done, of=self.model)

    def _narrowed(self, settled: Attributes, *, careful: bool) -> tuple[nn.Module | None, str]:
        """The user's class with these attributes, if it is right with lively values and with its own."""
        small = narrowed(self.model, self.tensors, settled)
        problem = ""
        if self.lively:
            with holding(self.tensors, self.tried()):
                problem = self._problem(small, self.expected, careful=careful)
        problem = problem or self._problem(small, self.own, careful=careful)
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
        exact = not self.changed
        wide = self.masked if exact else functools.partial(run, self.model)
        samples = [one.shape[1:] for one in tensors_of(inputs)]

        def outcome(tensors: list[Tensor]) -> str:
            if [one.shape[1:] for one in tensors] == samples:
                return "same"  # no attribute is a batch
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
        outcome, values = self.graph_difference, self.tensors | self.tried()
        reference = self.survivors(self.lively)
        return None if outcome.same else mismatch(reference, values, self.inputs, outcome.error)

    @functools.cached_property
    def graph_difference(self) -> Comparison:
        narrow = Recorder(self.groups.tracing.graph, self.resized[0], self.tensors | self.tried())
        found = or_nothing(functools.partial(run_graph, narrow, self.inputs))
        return compared(self.expected[-1], found)

    def _problem(self, small: nn.Module, references: References, *, careful: bool) -> str:
        """What is wrong with its outputs; their difference is in `found`."""
        found = functools.cache(functools.partial(run, small, self.inputs))
        self.found = None
        try:
            found(Precision.OWN)
        except Exception as failure:  # the user's code, run with unexpected widths
            return f"its forward fails with the new widths: {first_line(failure)}"
        outcome, changed = self.difference(references, found, careful=careful)
        self.found = outcome, changed
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
    # A vector is added or multiplied element by element: a twentieth shows which, far above the tolerance.
    if float(sample.std(correction=0)) >= (0.5 * wanted if parameter.dim() > 1 else 0.05):
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
