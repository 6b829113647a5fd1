"""The comparison of each hop from the module to the INT8 file, on real data.

A hop has a class. "exact" is bit for bit; "float" allows another order of additions: 1e-5 of the largest
value, or ten times what the module's own roundings amount to, as in a deep network; "lossy" is rounding to
INT8, judged by the noise of the median sample: a wild sample never decides alone. What lies behind a decision
is judged ahead of it (decisions.py). A hop beyond its class is an error, which names the first tensor that
differs: the layer to check.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from torch import nn

from ...targets.errors import ModelError, NoiseError, WorkloadError
from ..onnx_graph.float_input import with_initializers
from ..onnx_graph.graph import Array, OnnxModel, number_outputs
from ..onnx_graph.run import PIECE, Opened, Run, pieces, runner, samples_in
from ..onnx_graph.run_module import first_layer_that_differs, predicting
from .decisions import Judged, agreement, before_saturation, judged_by
from .roundings import first_bad_rounding

Kind = Literal["exact", "float", "lossy"]
# The largest error as a share of the largest value; for "lossy" the noise as a share of the signal, both
# root mean square. INT8 that keeps accuracy has 0.01 to 0.1; at 0.3 a layer is broken.
LIMITS: Mapping[Kind, float] = {"exact": 0.0, "float": 1e-5, "lossy": 0.3}
GOOD = 0.1  # noise that rarely costs accuracy
AMPLIFIED = 10.0  # times the rounding of the module itself: its float32 against its float64
FAINT = 0.1  # share of the median sample's size below which a sample has no scale of its own


@dataclass(frozen=True)
class Difference:
    """How two versions of one output differ.

    Attributes:
        largest, mean: absolute error, in the output's unit.
        relative_largest: the largest error as a share of the largest value.
        relative_mean: the mean error as a share of the mean size.
        noise: root mean square of the error as a share of that of the values, of the median sample.
        worst, worst_sample: the same of the sample that has the most, and its index over all batches.
    """

    largest: float
    mean: float
    relative_largest: float
    relative_mean: float
    noise: float
    worst: float
    worst_sample: int

    def beyond(self, kind: Kind) -> bool:
        """Whether this exceeds the limit of a class."""
        # In this form NaN counts as beyond.
        return not (self.noise if kind == "lossy" else self.relative_largest) <= LIMITS[kind]


@dataclass(frozen=True)
class Hop:
    """One hop: its name, its class, how each output differs, and the samples whose label flips.

    `flips` are sample indices, counted over all batches, at which the argmax of the first output changed; it
    is empty where that output is not a table of [samples, classes]. `outputs` are the continuous tensors that
    were judged; `decided` are the outputs behind a decision, with the operator that decides, and `agree` the
    share of their decisions that are the same, where it is known. `labels` is the output of `flips`; "" where
    the first one is not such a table.
    """

    name: str
    kind: Kind
    samples: int
    outputs: Mapping[str, Difference]
    flips: tuple[int, ...]
    decided: Mapping[str, str] = field(default_factory=dict)
    agree: Mapping[str, float] = field(default_factory=dict)
    labels: str = ""


def compare_module(
    module: nn.Module,
    model: OnnxModel,
    batches: Iterable[Mapping[str, Any]],
    *,
    name: str = "torch -> onnx",
    kind: Kind = "float",
) -> Hop:
    """Compares a module, in eval mode, with the model it was exported to.

    Raises:
        ModelError: the outputs differ more, or are not finite; it names the first layer that differs.
        WorkloadError: there are no batches.
    """
    with predicting(module, model) as run:
        return _compare(
            (run, runner(model.proto)),
            pieces(model.proto, batches),
            name,
            kind,
            lambda feeds: first_layer_that_differs(module, model, feeds, LIMITS[kind]),
            lambda feeds: _own_rounding(module, model, feeds) if kind == "float" else {},
        )


def _own_rounding(module: nn.Module, model: OnnxModel, feeds: Mapping[str, Array]) -> dict[str, float]:
    """By output, the largest error of the module in float32 as a share of its largest value in float64.

    Empty for a module that has no copy, or does not run in float64.
    """
    wide = {name: one.astype(np.float64) if one.dtype == np.float32 else one for name, one in feeds.items()}
    try:
        double = copy.deepcopy(module).double()
        with predicting(module, model) as run, predicting(double, model) as exact:
            before, after = exact(wide), run(feeds)
    except Exception:  # whatever the user's code raises
        return {}
    return {
        name: Tally().add(value, after[name], 1).difference().relative_largest
        for name, value in before.items()
    }


def compare(
    before: Opened,
    after: Opened,
    batches: Iterable[Mapping[str, Any]],
    *,
    kind: Kind,
    name: str,
    rounded_from: OnnxModel | None = None,
) -> Hop:
    """Compares two models with the same inputs and outputs.

    In a "lossy" hop each stored weight and each rounding is also checked alone (roundings.py): a wrong scale
    in one layer can be hidden by the noise of the outputs.

    Args:
        rounded_from: the float model that was rounded, if that is not `before`: one with folded batch norms.

    Raises:
        ModelError: the hop is beyond its class, NoiseError if it is lossy; the first tensor that differs is
            named.
        WorkloadError: there are no batches.
    """
    first, second = before.model, after.model
    feeds = pieces(first.proto, batches, before.at_once)
    some = list(itertools.islice(feeds, 1))
    if some and kind == "lossy":
        # Weights that are not initializers would not be checked.
        bad = first_bad_rounding(with_initializers(rounded_from or first), second, some[0])
        if bad is not None:
            raise ModelError(
                f"The hop {name} is broken: {bad}",
                "Quantize again, with the ranges of this file. An extreme sample widens them: leave it "
                'out, or use the method "best".',
            )
    judged, runs = _judged(before, after, some)
    return _compare(
        runs,
        itertools.chain(some, feeds),
        name,
        kind,
        lambda worst: first_tensor_that_differs(first, second, worst, kind),
        judged=judged,
        at_once=before.at_once,
    )


def _judged(
    before: Opened, after: Opened, some: Sequence[Mapping[str, Array]]
) -> tuple[Judged | None, tuple[Run, Run]]:
    """By what two models are judged, and how both are run; None for all outputs, as they are."""
    judged = judged_by(before.model)
    own = number_outputs(before.model.graph)
    saturated = before_saturation(before.model, before.run(some[0])) if some else {}
    known = {*after.model.float_names(), *own}
    tensors = tuple(
        dict.fromkeys(saturated[name] if saturated.get(name) in known else name for name in judged.tensors)
    )
    tensors = tuple(name for name in tensors if name in known)
    if set(tensors) == set(own):
        return None, (before.run, after.run)
    wanted = tuple(dict.fromkeys((*own, *tensors)))
    runs = before.returning(wanted).run, after.returning(wanted).run
    return Judged(tensors, judged.decided), runs


def noise_between(before: Opened, after: Opened, batches: Iterable[Mapping[str, Any]]) -> float:
    """The noise of the median sample in the output that changed most: RMS of error as a share of the values.

    Raises:
        WorkloadError: there are no batches, or they do not fit.
        ModelError: nothing continuous is ahead of its decisions.
    """
    feeds = pieces(before.model.proto, batches, before.at_once)
    some = list(itertools.islice(feeds, 1))
    judged, runs = _judged(before, after, some)
    tallies: dict[str, Tally] = {}
    for piece in itertools.chain(some, feeds):
        was, now = (run(piece) for run in runs)
        for name in was if judged is None else judged.tensors:
            tallies.setdefault(name, Tally()).add(was[name], now[name], samples_in(piece, before.at_once))
    if not tallies:
        if some:
            raise ModelError(
                f"{before.model.path} has no continuous tensor by which it can be judged.",
                "Make the input of its decisions an output too, or decide outside the network.",
            )
        raise WorkloadError("There are no samples to compare on.", "Give at least one batch.")
    return max(tally.difference().noise for tally in tallies.values())


def first_tensor_that_differs(
    before: OnnxModel, after: OnnxModel, feeds: Mapping[str, Array], kind: Kind
) -> str:
    """The first tensor, in the order of `before`, whose values differ beyond `kind`, with its node.

    Both graphs run node by node without optimization, so that the runtime's fusions have no effect.
    """
    known = set(after.float_names())
    shared = [name for name in before.float_names() if name in known]
    one, two = (runner(model.proto, shared, optimize=False)(feeds) for model in (before, after))
    for name in shared:
        same = one[name].shape == two[name].shape
        if not same or Tally().add(one[name], two[name], 1).difference().beyond(kind):
            node = before.index.producer[name]
            return f"{name!r}, made by {node.op_type} {node.name!r}"
    return "none inside; node by node the graphs agree, so the runtime's optimizations differ"


def values_and_errors(before: Array, after: Array) -> tuple[Array, Array]:
    """The values of `before` and how far `after` is from each, in float64.

    Equal infinities, as in masked scores, are not an error and count as values of 0; any other infinity is an
    infinite error.
    """
    value, other = before.astype(np.float64), after.astype(np.float64)
    with np.errstate(invalid="ignore"):
        error = np.where(value == other, 0.0, np.abs(other - value))
    return np.where(np.isinf(value), 0.0, value), error


class Tally:
    """Sums of the values of an output and of their errors, over several runs."""

    def __init__(self) -> None:
        self.numbers = 0
        self.largest = self.largest_value = 0.0
        self.sums = np.zeros(2)  # |error|, |value|
        self.squares: list[Array] = []  # mean squares of error and value, by sample
        self.starts: list[int] = [0]  # the number of samples before each of them, and after all

    def add(self, before: Array, after: Array, samples: int) -> Tally:
        """Adds the values of some samples, before and after; as one sample if no axis is theirs."""
        value, error = values_and_errors(before, after)
        rows = samples if value.ndim and len(value) == samples and value.size else 1
        if value.size:
            each = [np.square(one).reshape(rows, -1).mean(axis=1) for one in (error, value)]
            self.squares.append(np.stack(each))
            steps = range(1, rows + 1) if rows == samples else (samples,)
            self.starts += [self.starts[-1] + step for step in steps]
        self.numbers += value.size
        # numpy's maximum propagates NaN, Python's max does not.
        self.largest = float(np.maximum(self.largest, error.max(initial=0.0)))
        self.largest_value = float(np.maximum(self.largest_value, np.abs(value).max(initial=0.0)))
        self.sums += [error.sum(), np.abs(value).sum()]
        return self

    def difference(self) -> Difference:
        error, size = (float(number) for number in self.sums)
        noises = self._noises()
        worst = int(noises.argmax()) if noises.size else 0
        return Difference(
            self.largest,
            error / max(self.numbers, 1),
            _share(self.largest, self.largest_value),
            _share(error, size),
            float(np.median(noises)) if noises.size else 0.0,
            float(noises[worst]) if noises.size else 0.0,
            self.starts[worst],
        )

    def _noises(self) -> Array:
        """The noise of each sample; a faint one is compared with a share of the median sample's size."""
        if not self.squares:
            return np.zeros(0)
        error, size = np.concatenate(self.squares, axis=1)
        size = np.maximum(size, FAINT**2 * np.median(size))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.nan_to_num(np.where(error == 0, 0.0, np.sqrt(error / size)), nan=np.inf, posinf=np.inf)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else (0.0 if part == 0.0 else float("inf"))


def _compare(
    runs: tuple[Run, Run],
    feeds: Iterator[dict[str, Array]],
    hop: str,
    kind: Kind,
    locate: Callable[[Mapping[str, Array]], str],
    own_rounding: Callable[[Mapping[str, Array]], Mapping[str, float]] = lambda feeds: {},
    judged: Judged | None = None,
    at_once: int = PIECE,
) -> Hop:
    tallies: dict[str, Tally] = {}
    flips: list[int] = []
    samples, labels = 0, ""
    worst: tuple[float, dict[str, Array]] = (-1.0, {})
    bound: set[str] = set()
    agreed: dict[str, list[float]] = {}
    for piece in feeds:
        before, after = (run(piece) for run in runs)
        count = samples_in(piece, at_once)
        for name in judged.decided if judged else ():
            if (share := agreement(before[name], after[name])) is not None:
                agreed.setdefault(name, []).append(share)
        for name, value in before.items():
            if judged and name not in judged.tensors:
                continue
            # Labels and masks have no noise: class 900 instead of class 1 is one sample, and may be right.
            bound |= {name} if kind != "lossy" or value.dtype.kind == "f" else set()
            _check_comparable(hop, name, value, after.get(name))
            tallies.setdefault(name, Tally()).add(value, after[name], count)
            _, error = values_and_errors(value, after[name])
            largest = float(np.nan_to_num(error, nan=np.inf).max(initial=0.0))
            if largest > worst[0]:
                worst = (largest, piece)
        leading = next(iter(before), "")
        table = leading and before[leading].ndim == 2 and len(before[leading]) == count
        if table and before[leading].shape[1] > 1 and not (judged and leading in judged.decided):
            labels = leading
            changed = before[leading].argmax(axis=1) != after[leading].argmax(axis=1)
            flips += [samples + int(place) for place in np.flatnonzero(changed)]
        samples += count
    if samples == 0:
        raise WorkloadError(f"There are no samples to compare the hop {hop} on.", "Give at least one batch.")
    outputs = {name: tally.difference() for name, tally in tallies.items()}
    for name, found in outputs.items():
        if name in bound and found.beyond(kind):
            if found.relative_largest <= AMPLIFIED * own_rounding(worst[1]).get(name, 0.0):
                continue
            measure = f"error {found.relative_largest:.3g}"
            cure = "Check that layer, or replace its operator by simpler ones."
            if kind == "lossy":
                measure = f"it is broken, the median sample's noise is {found.noise:.3g}"
                cure = "Keep that layer in float with skip, or calibrate on more data."
            kind_of = NoiseError if kind == "lossy" else ModelError
            raise kind_of(
                f"The hop {hop} changed the output {name!r} beyond its class ({kind}): {measure} of the "
                f"values, allowed is {LIMITS[kind]:g}. The first tensor that differs: {locate(worst[1])}.",
                cure,
            )
    decided = dict(judged.decided) if judged else {}
    agree = {name: float(np.mean(shares)) for name, shares in agreed.items()}
    return Hop(hop, kind, samples, outputs, tuple(flips), decided, agree, labels)


def _check_comparable(hop: str, name: str, before: Array, after: Array | None) -> None:
    if after is None or before.shape != after.shape:
        shapes = [] if after is None else [list(value.shape) for value in (after, before)]
        found = f"has the shape {shapes[0]}, not {shapes[1]}" if shapes else "is missing"
        raise ModelError(f"After the hop {hop} the output {name!r} {found}.", "Export the network again.")
    nan = before.dtype.kind == "f" and bool(np.isnan(before).any())
    if nan or (before.size and not np.isfinite(before).any()):
        raise ModelError(
            f"Before the hop {hop} the output {name!r} has {'NaN' if nan else 'only infinite values'}.",
            "The network itself computes it: check its weights and the data.",
        )
