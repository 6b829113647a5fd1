"""Calibration: the range of each tensor over calibration data, in bounded memory.

The model runs unfused in ONNX Runtime, a few samples at a time, with the measured tensors as outputs. Only
their extremes are stored, and for some methods histograms, separately for every second sample, so that one
pass also shows whether the samples were enough (adequacy.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnx import TensorProto

from ...targets.errors import ModelError, WorkloadError
from ..onnx_graph.float_input import as_float
from ..onnx_graph.graph import OnnxModel, given_inputs
from ..onnx_graph.run import PIECE, WHOLE, Stream, pieces, samples_in, streamer
from .adequacy import Adequacy, Seen, of_samples
from .histogram import BINS, METHODS, Histogram, Method, threshold
from .placement import DIALECTS, nothing_to_quantize, place

FLOAT = TensorProto.FLOAT
PIECE_BYTES = 1 << 27  # of the tensors that are measured together


@dataclass(frozen=True)
class Range:
    """The lowest and highest value that a quantized tensor represents."""

    low: float
    high: float


@dataclass(frozen=True)
class Ranges:
    """The range of each tensor by name, with method, number of samples and adequacy."""

    method: str
    samples: int
    tensors: Mapping[str, Range]
    adequacy: Mapping[str, Adequacy] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        tensors = {name: [one.low, one.high] for name, one in self.tensors.items()}
        adequacy = {name: [one.moved, one.carriers] for name, one in self.adequacy.items()}
        found = {"tensors": tensors, "adequacy": adequacy}
        return {"schema": 1, "method": self.method, "samples": self.samples, **found}


@dataclass(frozen=True)
class Watched:
    """A float model in a session that also returns the tensors that either dialect of `to_qdq` rounds.

    Nodes run unfused. One session serves the calibration and comparisons with the float outputs.

    Attributes:
        tensors: in the order of the graph.
        at_once: the maximum number of samples in a run.
    """

    model: OnnxModel
    tensors: tuple[str, ...]
    stream: Stream
    at_once: int

    @classmethod
    def of(cls, model: OnnxModel, *, every: bool = False, by_row: bool = True) -> Watched:
        """Opens a model.

        Args:
            by_row: whether the first axis of its inputs is that of the samples; else each batch is one.
            every: whether to measure every float tensor, not only those that a dialect rounds.

        Raises:
            ModelError: it is quantized already, has nothing to quantize, or ONNX Runtime refuses it.
        """
        model = as_float(model)
        tensors = tensors_to_measure(model)
        if every:
            floats = (v for v in given_inputs(model.graph) if v.type.tensor_type.elem_type == FLOAT)
            tensors = tuple(dict.fromkeys((*(value.name for value in floats), *model.float_names())))
        stream = streamer(model.proto, tensors, optimize=False)
        at_once = samples_at_once(model, tensors) if by_row else WHOLE
        return cls(model, tensors, stream, at_once)


def samples_at_once(model: OnnxModel, tensors: Sequence[str]) -> int:
    """The number of samples per run that bounds the size of `tensors`: from 1 to `PIECE`."""
    shapes = [model.types[name].shape.dim for name in tensors if name in model.types]
    bytes_each = sum(4 * math.prod(axis.dim_value or 1 for axis in shape[1:]) for shape in shapes)
    return max(1, min(PIECE, int(PIECE_BYTES // max(bytes_each, 1))))


def calibrate(
    model: OnnxModel,
    batches: Iterable[Mapping[str, Any]],
    *,
    method: Method = "minmax",
    progress: Callable[[int], None] | None = None,
) -> Ranges:
    """Measures every tensor that either dialect of `to_qdq` rounds; see `Watched.of` and `calibrate_by`."""
    return calibrate_by((method,), Watched.of(model), batches, progress=progress)[method]


def calibrate_by(
    methods: Sequence[Method],
    watched: Watched,
    batches: Iterable[Mapping[str, Any]],
    *,
    progress: Callable[[int], None] | None = None,
) -> dict[Method, Ranges]:
    """The ranges by each of several methods, from one pass over the data.

    Args:
        batches: arrays or tensors by input name, batch axis first; other names (labels) are ignored.
        progress: called with the number of samples done after each batch.

    Raises:
        WorkloadError: there are no batches, one lacks an input, or the data are constant.
        ModelError: a tensor has NaN or infinity.
    """
    for method in methods:
        if method not in METHODS:
            raise ModelError(
                f"There is no calibration method {method!r}.", f"Choose one of {', '.join(METHODS)}."
            )
    model, tensors = watched.model, watched.tensors
    seen = {name: Seen(bins=0 if set(methods) <= {"minmax"} else BINS) for name in tensors}
    divisible = frozenset() if watched.at_once == WHOLE else of_samples(model, tensors)
    samples = 0
    for feeds in pieces(model.proto, batches, watched.at_once):
        count = samples_in(feeds, watched.at_once)
        for name, values in watched.stream(feeds, tensors):
            try:
                seen[name].add(values, count, by_sample=name in divisible)
            except FloatingPointError as error:
                last = samples + count - 1
                raise ModelError(
                    f"The tensor {name!r} has {error}, in one of the samples {samples} to {last}.",
                    "Check the calibration data for NaN and its scale; if it is right, the network "
                    "diverged in training: load an earlier checkpoint.",
                ) from error
        samples += count
        if progress is not None:
            progress(samples)
    if samples == 0:
        raise WorkloadError(
            "There is no calibration data.", 'Let batches("calibration") yield at least one batch.'
        )
    measured = {name: seen[name].whole() for name in tensors}
    given = given_inputs(model.graph)
    floats = [v.name for v in given if v.type.tensor_type.elem_type == FLOAT]
    inputs = [name for name in floats if name in measured]
    if inputs and all(measured[name].low == measured[name].high for name in inputs):
        raise WorkloadError(
            f"The calibration data are constant: {inputs[0]!r} is {measured[inputs[0]].low:g} "
            f"in all of {samples} samples.",
            "Give real samples, prepared exactly as for inference.",
        )
    return {method: _ranges(method, samples, seen, measured) for method in methods}


def tensors_to_measure(model: OnnxModel) -> tuple[str, ...]:
    """The tensors that either dialect rounds, in the graph's order; a ModelError if there are none."""
    both = [place(model, dialect) for dialect in DIALECTS]
    tensors = tuple(dict.fromkeys(name for placed in both for name in placed.tensors))
    if not tensors:
        raise nothing_to_quantize(model.path, both[0].left_float)
    return tensors


def _ranges(
    method: Method, samples: int, seen: Mapping[str, Seen], measured: Mapping[str, Histogram]
) -> Ranges:
    ranges = {name: _range(whole, method) for name, whole in measured.items()}
    adequacy = {name: _adequacy(seen[name], found, method) for name, found in ranges.items()}
    return Ranges(method, samples, ranges, adequacy)


def _range(seen: Histogram, method: Method) -> Range:
    if method == "minmax":
        return Range(seen.low, seen.high)
    bound = threshold(seen, method)
    return Range(max(seen.low, -bound), min(seen.high, bound))


def _adequacy(seen: Seen, found: Range, method: Method) -> Adequacy:
    parts = [] if method == "minmax" else [half for half in seen.halves if half.low <= half.high]
    halves = [_range(half, method) for half in parts]
    return seen.adequacy((found.low, found.high), [(half.low, half.high) for half in halves])
