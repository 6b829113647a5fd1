"""The proof of surgery: the pruned network computes the same as the original without the removed units.

First the plain check: zero the removed indices in the original's parameters, run both, compare. If they
differ, there is a reduction *over* the units (a layer norm, a mean over channels); the reference is then
the original's graph with the living alone (`survivors`), and the report says what changed, and where. That
graph exists in eval mode only, and for the sizes that it takes. The wide proof compares with the same
references: gradients, training mode, other sizes of the inputs, and copies by pickle and by `save_pruned`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Interpreter
from torch.nn.modules.batchnorm import _BatchNorm

from ...export.opened import leaves_of, tensors_of, unwrapped
from ...targets.errors import DeadweightError, ModelError
from .bypass import difference
from .capture import first_samples, operator_name
from .compare import (
    Comparison,
    Computation,
    Precision,
    compared,
    exactly,
    or_nothing,
    relative_error,
    run,
    run_graph,
    tolerance,
)
from .contexts import Undropped, first_line, in_mode, seeded, uncollected
from .graphnet import GraphNet
from .groups import Groups
from .inputs import BATCH, UNKNOWN, Example, Inputs, axes_of, inputs_of, tried, with_tensors
from .narrow import holding, limits, named_tensors, read_attributes, without
from .plan import Plan, fingerprint, plan_of
from .resize import resized
from .saved import reloaded, repickled
from .surgery import tried_out
from .survivors import MismatchError, Survivors, check_traced, mismatch
from .trace import trace
from .trial import Trial

_GRADIENTS = 10.0
"""Gradients may differ by this many times the tolerance of outputs: they are of twice as many sums."""

_SURE = 1e-6
"""Gradients that differ by less in double precision have nothing random: they are rounded to single once."""


@dataclass(frozen=True)
class Verification:
    """The result of a check that succeeded; `str()` says it in words.

    Attributes:
        max_relative_error: the largest difference of any output, relative to that output's largest value.
        function_changed_by: reductions that are now over fewer units, each with its line; empty if the
            pruned network is exactly the original with the removed units at zero.
        rounding: the same in the network's own precision, where that is above the tolerance: then
            `max_relative_error` is that in double precision.
        gradient_error: the largest difference of the gradients of one module's parameters, relative to their
            largest value; None if they were not compared.
        also: what else was tried, in words.
    """

    max_relative_error: float
    function_changed_by: tuple[str, ...] = ()
    rounding: float = 0.0
    gradient_error: float | None = None
    also: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = f"outputs equal to {_short(self.max_relative_error)}"
        if self.rounding:
            head += f" in double precision (rounding makes it {_short(self.rounding)} in its own)"
        if self.gradient_error is not None:
            head += f", gradients to {_short(self.gradient_error)}"
        return "; ".join([head, *self.also])


@uncollected()
def verify(
    original: nn.Module, pruned: nn.Module, plan: Plan, given: Groups | Example, *, wide: bool = False
) -> Verification:
    """Compares the two on the example, in eval mode; neither is changed.

    Args:
        plan: the plan by which `pruned` was made from `original`; one recorded in `pruned` has priority.
        given: the trace of `original`, or the example inputs.
        wide: also compares gradients, in training mode where that is not random; other sizes of every axis
            of the inputs that the original takes, batch included; and the network after pickle and after
            `save_pruned`. It costs about as much as `apply`. The result says each in words.

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
    proof = Proof(original, pruned, plan, groups)
    if not wide:
        return proof.outputs
    found = proof.wide()
    return dataclasses.replace(found, also=(*found.also, proof.saved()))


@uncollected()
def proven(model: nn.Module, plan: Plan, groups: Groups) -> tuple[nn.Module, Verification]:
    """What `apply` makes, with its wide proof; the graph form if the user's class is right only without it.

    Raises:
        ModelError: see `apply` and `verify`.
    """
    model, form = unwrapped(model), ""
    while True:
        small, trial = tried_out(model, plan, groups, form=form)
        try:
            return small, Proof(model, small, plan_of(small) or plan, groups, trial).wide()
        except MismatchError:
            if isinstance(small, GraphNet):
                raise
            form = "graph"


def _verify_depth(original: nn.Module, shallow: nn.Module, plan: Plan, example: Example) -> Verification:
    """Compares with the original in which each dropped block returns its input, or only its shortcut."""
    outcome = difference(original, shallow, plan.dropped, example)
    if outcome.same:
        return Verification(outcome.error, rounding=outcome.rounding)
    raise MismatchError(
        f"The network without {', '.join(plan.dropped)} does not compute the same as the original in which "
        f"these return their input or shortcut: outputs differ by {outcome.error:.1e}.",
        "Nothing was saved. Do not drop these blocks, or verify before fine-tuning.",
    )


class Proof:
    """The comparisons of one cut; each raises a MismatchError if the networks differ.

    Args:
        plan: the plan by which `pruned` was made from `original`.
        groups: the trace of `original`.
        trial: that in which `apply` compared the outputs of `pruned`, if it is what that has made.
    """

    def __init__(
        self, original: nn.Module, pruned: nn.Module, plan: Plan, groups: Groups, trial: Trial | None = None
    ) -> None:
        self.original, self.pruned, self.plan, self.groups = original, pruned, plan, groups
        self.trial, graph = trial or Trial(original, plan, groups), groups.tracing.graph.graph
        vars(self.trial).pop("lively", None)  # as large as the network
        self.inputs = inputs_of(original, groups.example)
        # What both take and is quickest to learn from. A batch norm needs several samples: in training, and
        # torch 2.13's gradient of one sample is wrong where what follows permutes it.
        self.several = any("batch_norm" in operator_name(node) for node in graph.nodes)
        self.least = self.inputs if self.several else self.trial.inputs
        self.found: Computation = cache(partial(run, pruned, self.least))

    @functools.cached_property
    def survivors(self) -> Survivors:
        """The second reference, on the original's own tensors."""
        return self.trial.survivors(self.trial.named)

    @functools.cached_property
    def open(self) -> Survivors:
        """The same from the graph with all axes open, if the graph form has it."""
        tracing = self.groups.captures.get((False, True))
        try:
            if tracing:
                alive = tracing.living(self.plan.cut)
                return Survivors(tracing, alive, resized(tracing, alive)[0], self.trial.named)
        except ModelError:  # it couples other units
            pass
        return self.survivors

    @functools.cached_property
    def outputs(self) -> Verification:
        """The outputs in eval mode: on the example, or as `apply` compared them."""
        if not isinstance(self.pruned, GraphNet) and self.trial.found is not None:
            outcome, changed = self.trial.found
            return Verification(outcome.error, changed, outcome.rounding)
        found = cache(or_nothing(partial(run, self.pruned, self.inputs)))
        outcome, changed = self.trial.difference(self.trial.references(self.inputs), found)
        if outcome.same:
            return Verification(outcome.error, changed, outcome.rounding)
        check_traced(self.original, self.groups)
        raise mismatch(self.survivors, dict(named_tensors(self.pruned)), self.inputs, outcome.error)

    def wide(self) -> Verification:
        """All comparisons of this class."""
        sizes = self.sizes()  # first: it finds the smallest inputs
        error, words = self.gradients()
        also = (*([words] if words else []), *sizes, self.pickled())
        return dataclasses.replace(self.outputs, gradient_error=error, also=also)

    def gradients(self) -> tuple[float | None, str]:
        """The difference of the gradients at the survivors, and in words in which mode, or why there is none.

        A fixed linear function of all outputs is differentiated, at the smallest inputs that both took so
        far. Dropout is left out; other random numbers are the same for both.
        """
        exact, problem = not self.outputs.function_changed_by, ""
        functions = self.groups.tracing.graph.meta["own_backward"]
        if functions and not exact:
            return None, f"gradients not compared: no graph has the backward of {functions}"
        call = self.original if exact else self._survived

        @cache
        def reference(training: bool) -> Computation:
            return cache(partial(self._learned, self.original, call, training, masked=exact))

        for training in (True, False):
            expected = reference(training and exact)
            found = cache(partial(self._learned, self.pruned, self.pruned, training))
            compare = partial(compared, expected, times=_GRADIENTS, most=math.inf, fill=math.inf)
            try:
                expected(Precision.OWN)
                alike = exact or not training or self._alike(compare, found)
                why = "" if alike else self._other_in_training()
            except Exception as error:  # the user's code may raise anything in training
                why = first_line(error)
            if why:
                problem = problem or f"training mode not compared: {why}"
                continue
            try:
                outcome = compare(found)
            except ModelError as error:
                return None, error.what[0].lower() + error.what[1:].rstrip(".")
            except Exception:  # what its original can, it must
                outcome = Comparison(math.inf, False)
            # Random numbers look like amplified rounding.
            sure = outcome.same and (not outcome.rounding or outcome.error <= _SURE)
            if training and not sure and self._random():
                problem = "training mode not compared: it is random"
            elif outcome.same:
                return outcome.error, problem or "training mode too"
            else:
                mode = "training" if training else "eval"
                raise self._wrong(f"in its gradients, in {mode} mode", outcome.error)
        return None, problem

    def _survived(self, *args: Any, **named: Any) -> Any:
        return self.survivors.run(*tensors_of(Inputs(args, named)))

    def _alike(self, compare: Callable[..., Comparison], found: Computation) -> bool:
        """Whether the user's code computes in training what it should in eval: so does the original then."""
        own = not self.several and not isinstance(self.pruned, GraphNet)
        return own and compare(or_nothing(found), careful=False).same

    def _other_in_training(self) -> str:
        """Why the original computes something else in training; "" if it does not."""
        with in_mode(self.original, training=True):
            norms = [one for one in self.original.modules() if isinstance(one, _BatchNorm)]
            other = any(one.training for one in norms)
        own = partial(self._learned, self.original, self.original, grad=False)
        if not other and compared(partial(own, False), partial(own, True)).same:
            return ""
        random = not other and self._random(grad=False)
        return "it is random" if random else "it is another function than in eval mode"

    def _random(self, *, grad: bool = True) -> bool:
        own = partial(self._learned, self.original, self.original, True, grad=grad)
        return not compared(own, partial(own, seed=1), times=_GRADIENTS).same

    def _learned(
        self,
        model: nn.Module,
        call: Any,
        training: bool,
        precision: Precision,
        *,
        seed: int = 0,
        grad: bool = True,
        masked: bool = False,
    ) -> list[Any]:
        """All outputs, and for each module a tensor of its parameters' gradients, at the survivors."""
        owned = dict(model.named_parameters(remove_duplicate=False))
        names = [name for name, one in self.original.named_parameters() if one.requires_grad]
        names = [name for name in names if name in owned]
        own = [*owned.values(), *tensors_of(self.least)]
        held = holding(self.trial.named, self.trial.masks if masked else {})
        with held, in_mode(model, training=training), seeded(seed, own), Undropped():
            with exactly(own, model.buffers(), precision, grad=grad):
                outputs = leaves_of(call(*self.least.args, **self.least.named))
                probes = [_probe(one) for one in tensors_of(outputs) if one.requires_grad]
            wanted = [owned[name] for name in names if owned[name].requires_grad] if probes else []
            found = torch.autograd.grad(probes, wanted, allow_unused=True) if wanted else ()
        by = {id(one): gradient for one, gradient in zip(wanted, found, strict=True)}
        modules: dict[str, list[Tensor]] = {}
        for name in names if grad else ():
            gradient = by.get(id(owned[name]))
            gradient = torch.zeros_like(owned[name]) if gradient is None else gradient
            if model is not self.pruned and name in self.plan.cut:
                gradient = without(gradient, self.plan.cut[name])
            modules.setdefault(name.rpartition(".")[0], []).append(gradient.reshape(-1))
        plain = [one.detach() if isinstance(one, Tensor) else one for one in outputs]
        return [*plain, *(torch.cat(some) if some[1:] else some[0] for some in modules.values())]

    def sizes(self) -> tuple[str, ...]:
        """Which other sizes of the inputs both networks take, and compute the same for, in words."""
        tensors, batch = tensors_of(self.inputs), self.groups.batch
        axes = axes_of(tensors)
        at = partial(with_tensors, self.inputs)
        outcomes = tried(
            tensors,
            axes,
            lambda others: self._at(at(others)),
            one_sample=batch is None,
            several=self.several,
            beyond=limits(read_attributes(self.original, self.plan.attributes)),
        )
        size = {name: tensors[places[0][0]].shape[places[0][1]] for name, places in axes.items()}
        by = {said: [name for name in outcomes if outcomes[name] == said] for said in outcomes.values()}
        same = [name for name in by.get("same", ()) if name != BATCH]
        words = [f"takes any {' and '.join(same)}"] if same else []
        words += ["batch open"] if BATCH in by.get("same", ()) else []
        for said in (_FIXED, UNKNOWN, ""):
            listed = ", ".join(re.sub(r"(?<!\d) = ", " ", f"{one} = {size[one]}") for one in by.get(said, ()))
            words += [f"{said or 'fixed in the original'}: {listed}"] if listed else []
        return tuple(words)

    def _at(self, inputs: Inputs) -> str:
        """Whether the two compute the same for inputs of another size; "" if the original takes none."""
        exact = not self.outputs.function_changed_by
        wide = self.trial.masked if exact else partial(run, self.original)
        expected = cache(or_nothing(partial(wide, inputs)))
        survivors = cache(or_nothing(lambda precision: run_graph(self.open, inputs, precision)))
        samples = [[one.shape[1:] for one in tensors_of(given)] for given in (inputs, self.inputs)]
        if not exact and self.groups.batch is None and samples[0] == samples[1] and survivors(Precision.OWN):
            exact, expected = True, survivors  # the graph is that of any batch
        found = cache(or_nothing(partial(run, self.pruned, inputs)))
        if not expected(Precision.OWN):
            return ""
        if not found(Precision.OWN):  # a ModelError of the graph form, or a size in the user's code
            return _FIXED
        if not exact:
            captured = cache(or_nothing(partial(run_graph, Interpreter(self.open.module), inputs)))
            outcome = compared(expected, captured)
            if outcome.same and survivors(Precision.OWN):
                expected = survivors
            elif outcome.same or not (isinstance(self.pruned, GraphNet) and captured(Precision.OWN)):
                return UNKNOWN  # else the graph form is as wrong there as the graph
        outcome = compared(expected, found)
        if outcome.same:
            few = self.several and any(len(one) < 2 for one in tensors_of(inputs) if one.dim())
            if not few and _elements(inputs) <= _elements(self.least):
                graph = self.groups.tracing.graph.graph
                self.least = first_samples(self.original, inputs, graph, 2)
                whole = _elements(self.least) == _elements(inputs)
                self.found = found if whole else cache(partial(run, self.pruned, self.least))
            return "same"
        shapes = ", ".join(str(tuple(one.shape)) for one in tensors_of(inputs))
        raise self._wrong(f"at another size of its inputs, {shapes}", outcome.error)

    def pickled(self) -> str:
        """A round trip through pickle, in words."""
        try:
            again = repickled(self.pruned)
        except Exception as error:  # the user's classes may raise anything
            try:
                repickled(self.original)
            except Exception:
                return "cannot be pickled, as the original"
            return f"cannot be pickled: {first_line(error)}"
        if off := self._difference(again):
            raise self._wrong("after a round trip through pickle", off)
        return "can be pickled"

    def saved(self) -> str:
        """A round trip through `save_pruned`, in words; the original stands for its constructor."""
        if plan_of(self.original) is not None:
            return "not saved: the original was pruned before, and its constructor is not known"
        try:
            again = reloaded(self.original, self.pruned, self.plan, self.groups)
        except DeadweightError as refusal:
            return f"cannot be saved: {refusal.what}"
        missing = self._difference(again) > tolerance(self.found(Precision.OWN))
        return "cannot be saved: some state is not in its state dict" if missing else "can be saved"

    def _difference(self, copy: nn.Module) -> float:
        return relative_error(self.found(Precision.OWN), run(copy, self.least))

    def _wrong(self, where: str, error: float) -> MismatchError:
        return MismatchError(
            "The pruned network does not compute the same as the original without the removed units "
            f"{where}: they differ by {error:.1e}.",
            "Nothing was saved. Please report this network"
            + ("." if isinstance(self.pruned, GraphNet) else '; until then call apply(..., form="graph").'),
        )


_FIXED = "fixed"


def _elements(inputs: Inputs) -> int:
    return sum(one.numel() for one in tensors_of(inputs))


def _short(value: float) -> str:
    """'3e-7'."""
    return f"{value:.0e}".replace("e-0", "e-") if value else "the last bit"


def _probe(output: Tensor) -> Tensor:
    """A fixed linear function of an output, whose gradient shows every element."""
    flat = (torch.view_as_real(output) if output.is_complex() else output).reshape(-1)
    factors = torch.arange(len(flat), device=flat.device, dtype=torch.float64).cos()
    return (flat * factors.to(flat)).sum()
