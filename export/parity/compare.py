"""The comparison of each hop from the module to the INT8 file, on real data.

A hop has a class. "exact" is bit for bit; "float" allows another order of additions, 1e-5 of the largest
value; "lossy" is rounding to INT8, which is judged by its noise. A hop beyond its class is an error, which
names the first tensor that differs: the layer to check.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from torch import nn

from ...targets.errors import ModelError, WorkloadError
from ..onnx_graph.external_data import for_inference
from ..onnx_graph.float_input import with_initializers
from ..onnx_graph.graph import Array, OnnxModel
from ..onnx_graph.run import Opened, Run, pieces, runner, samples_in
from ..onnx_graph.run_module import first_layer_that_differs, predicting
from .roundings import first_bad_rounding

Kind = Literal["exact", "float", "lossy"]
# The largest error as a share of the largest value; for "lossy" the noise as a share of the signal, both
# root mean square. INT8 that keeps accuracy has 0.01 to 0.1; at 0.5 a layer is broken.
LIMITS: Mapping[Kind, float] = {"exact": 0.0, "float": 1e-5, "lossy": 0.5}

SELECTING = ("NonMaxSuppression", "NonZero", "Unique", "Compress")
SIZES = ("Shape", "Size")  # they depend only on a size


@dataclass(frozen=True)
class Difference:
    """How two versions of one output differ.

    Attributes:
        largest, mean: absolute error, in the output's unit.
        relative_largest: the largest error as a share of the largest value.
        relative_mean: the mean error as a share of the mean size.
        noise: root mean square of the error as a share of that of the values.
    """

    largest: float
    mean: float
    relative_largest: float
    relative_mean: float
    noise: float

    def beyond(self, kind: Kind) -> bool:
        """Whether this exceeds the limit of a class."""
        # In this form NaN counts as beyond.
        return not (self.noise if kind == "lossy" else self.relative_largest) <= LIMITS[kind]


@dataclass(frozen=True)
class Hop:
    """One hop: its name, its class, how each output differs, and the samples whose label flips.

    `flips` are sample indices, counted over all batches, at which the argmax of the first output changed; it
    is empty where that output is not a table of [samples, classes]. `selected` are outputs by which a lossy
    hop cannot be judged, with the operator that selects their rows (`selected_outputs`). `labels` is the
    output of `flips`; "" where the first one is not such a table.
    """

    name: str
    kind: Kind
    samples: int
    outputs: Mapping[str, Difference]
    flips: tuple[int, ...]
    selected: Mapping[str, str] = field(default_factory=dict)
    labels: str = ""


def compare_module(
    module: nn.Module, model: OnnxModel, batches: Iterable[Mapping[str, Any]], *, name: str = "torch -> onnx"
) -> Hop:
    """Compares a module, in eval mode, with the model it was exported to; the class is "float".

    Raises:
        ModelError: the outputs differ more, or are not finite; it names the first layer that differs.
        WorkloadError: there are no batches.
    """
    with predicting(module, model) as run:
        return _compare(
            (run, runner(model.proto)),
            pieces(model.proto, batches),
            name,
            "float",
            lambda feeds: first_layer_that_differs(module, model, feeds, LIMITS["float"]),
        )


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
        rounded_from: the float model whose weights were rounded, if that is not `before` but the result of
            bias correction or AdaRound.

    Raises:
        ModelError: the hop is beyond its class; the first tensor that differs is named.
        WorkloadError: there are no batches.
    """
    first, second = before.model, after.model
    feeds = pieces(first.proto, batches, before.at_once)
    selected: dict[str, str] = {}
    if kind == "lossy":
        some = list(itertools.islice(feeds, 1))
        # Weights that are not initializers would not be checked.
        bad = first_bad_rounding(with_initializers(rounded_from or first), second, some[0]) if some else None
        if bad is not None:
            raise ModelError(
                f"The hop {name} is broken: {bad}", "Quantize again, with the ranges of this file."
            )
        selected = selected_outputs(first, some[0]) if some else {}
        feeds = itertools.chain(some, feeds)
    return _compare(
        (before.run, after.run),
        feeds,
        name,
        kind,
        lambda worst: first_tensor_that_differs(first, second, worst, kind),
        selected,
    )


def noise_between(before: Opened, after: Opened, batches: Iterable[Mapping[str, Any]]) -> float:
    """The noise of the output that changed most: RMS of the error as a share of the values.

    Raises:
        WorkloadError: there are no batches, or they do not fit.
        ModelError: all outputs are data-dependent selections.
    """
    first = before.model
    tallies: dict[str, Tally] = {}
    selected: dict[str, str] | None = None
    for piece in pieces(first.proto, batches, before.at_once):
        selected = selected_outputs(first, piece) if selected is None else selected
        changed = after.run(piece)
        for name, value in before.run(piece).items():
            if name not in selected:
                tallies.setdefault(name, Tally()).add(value, changed[name])
    if selected and not tallies:
        raise ModelError(
            f"Every output of {first.path} is selected by {next(iter(selected.values()))}: its length "
            "depends on the data, so its values cannot be compared.",
            "Make the input of the selection an output too, or select outside the network.",
        )
    if not tallies:
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
        if one[name].shape != two[name].shape or Tally().add(one[name], two[name]).difference().beyond(kind):
            node = before.index.producer[name]
            return f"{name!r}, made by {node.op_type} {node.name!r}"
    return "none inside; node by node the graphs agree, so the runtime's optimizations differ"


def selected_outputs(model: OnnxModel, feeds: Mapping[str, Array]) -> dict[str, str]:
    """The selecting operator by data-dependent output, whose number of rows depends on the data.

    After rounding the selected boxes may have another order or number, so the values cannot be compared. What
    a network computes before the selection is compared if it is an output too. After such an operator the
    shape may be fixed again, as after a scatter: that output is not selected.

    Args:
        feeds: inputs, of which only the shapes matter.
    """
    behind: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type in SELECTING:
            found: str | None = node.op_type
        elif node.op_type in SIZES:
            continue
        else:
            found = next((behind[name] for name in node.input if name in behind), None)
        behind |= dict.fromkeys(node.output, found) if found else {}
    if not any(value.name in behind for value in model.graph.output):
        return {}
    fixed = for_inference(model.proto)
    del fixed.graph.value_info[:]
    for value in fixed.graph.input:
        if value.name in feeds:
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            for size in feeds[value.name].shape:
                shape.dim.add().dim_value = size
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph.output
    open_ = [value.name for value in inferred if not _is_known(value.type.tensor_type)]
    return {name: behind[name] for name in open_ if name in behind}


def _is_known(kind: onnx.TypeProto.Tensor) -> bool:
    return kind.HasField("shape") and all(axis.HasField("dim_value") for axis in kind.shape.dim)


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
        self.sums = np.zeros(4)  # |error|, |value|, error², value²

    def add(self, before: Array, after: Array) -> Tally:
        value, error = values_and_errors(before, after)
        self.numbers += value.size
        # numpy's maximum propagates NaN, Python's max does not.
        self.largest = float(np.maximum(self.largest, error.max(initial=0.0)))
        self.largest_value = float(np.maximum(self.largest_value, np.abs(value).max(initial=0.0)))
        self.sums += [error.sum(), np.abs(value).sum(), np.square(error).sum(), np.square(value).sum()]
        return self

    def difference(self) -> Difference:
        error, size, squared_error, squared_size = (float(number) for number in self.sums)
        return Difference(
            self.largest,
            error / max(self.numbers, 1),
            _share(self.largest, self.largest_value),
            _share(error, size),
            _share(squared_error, squared_size) ** 0.5,
        )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else (0.0 if part == 0.0 else float("inf"))


def _compare(
    runs: tuple[Run, Run],
    feeds: Iterator[dict[str, Array]],
    hop: str,
    kind: Kind,
    locate: Callable[[Mapping[str, Array]], str],
    selected: Mapping[str, str] | None = None,
) -> Hop:
    unjudged = selected or {}
    tallies: dict[str, Tally] = {}
    flips: list[int] = []
    samples, labels = 0, ""
    worst: tuple[float, dict[str, Array]] = (-1.0, {})
    judged: set[str] = set()
    for piece in feeds:
        before, after = (run(piece) for run in runs)
        # Labels and masks have no noise: class 900 instead of class 1 is one sample, and may be right.
        judged |= {name for name, value in before.items() if kind != "lossy" or value.dtype.kind == "f"}
        for name, value in before.items():
            if name in unjudged and name in after:
                continue
            _check_comparable(hop, name, value, after.get(name))
            tallies.setdefault(name, Tally()).add(value, after[name])
            _, error = values_and_errors(value, after[name])
            largest = float(np.nan_to_num(error, nan=np.inf).max(initial=0.0))
            if largest > worst[0]:
                worst = (largest, piece)
        leading = next(iter(before))
        if leading not in unjudged and before[leading].ndim == 2 and before[leading].shape[1] > 1:
            labels = leading
            changed = before[leading].argmax(axis=1) != after[leading].argmax(axis=1)
            flips += [samples + int(place) for place in np.flatnonzero(changed)]
        samples += samples_in(piece)
    if samples == 0:
        raise WorkloadError(f"There are no samples to compare the hop {hop} on.", "Give at least one batch.")
    outputs = {name: tally.difference() for name, tally in tallies.items()}
    for name, found in outputs.items():
        if name in judged and found.beyond(kind):
            measure = f"error {found.relative_largest:.3g}"
            cure = "Check that layer, or replace its operator by simpler ones."
            if kind == "lossy":
                measure = f"noise {found.noise:.3g}"
                cure = "Keep that layer in float with skip, or calibrate on more data."
            raise ModelError(
                f"The hop {hop} changed the output {name!r} beyond its class ({kind}): {measure} of the "
                f"values, allowed is {LIMITS[kind]:g}. The first tensor that differs: {locate(worst[1])}.",
                cure,
            )
    return Hop(hop, kind, samples, outputs, tuple(flips), dict(unjudged), labels)


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
