"""How far each tensor's values reach, measured over calibration data in bounded memory.

The model runs in ONNX Runtime a few samples at a time, each node as written, with the tensors to measure as
its outputs. Of those nothing is kept but their extremes, and for some methods histograms; every second sample
apart, so that one pass also says whether the samples were enough (adequacy.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from ...targets.artifact import read_json, write_json
from ...targets.errors import ArtifactError, ModelError, WorkloadError
from ..onnx_graph.float_input import load_float
from ..onnx_graph.graph import float_inputs, not_float32
from ..onnx_graph.kernels import single_rows
from ..onnx_graph.run import pieces, samples_at_once, samples_in, streamer
from .adequacy import Adequacy, Seen, of_samples
from .histogram import BINS, METHODS, Histogram, Method, threshold
from .matmul_add import summed_in_float
from .placement import DIALECTS, Placement, nothing_to_quantize, place


@dataclass(frozen=True)
class Range:
    """The lowest and highest value that a tensor is to represent."""

    low: float
    high: float


@dataclass(frozen=True)
class Ranges:
    """The range of each tensor by name, how they were found, from how many samples, how settled they are."""

    method: str
    samples: int
    tensors: Mapping[str, Range]
    adequacy: Mapping[str, Adequacy] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        tensors = {name: [found.low, found.high] for name, found in self.tensors.items()}
        adequacy = {name: [found.moved, found.carriers] for name, found in self.adequacy.items()}
        return {
            "schema": 1,
            "method": self.method,
            "samples": self.samples,
            "tensors": tensors,
            "adequacy": adequacy,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Ranges:
        try:
            tensors = {name: Range(float(low), float(high)) for name, (low, high) in value["tensors"].items()}
            adequacy = {
                name: Adequacy(None if moved is None else float(moved), int(carriers))
                for name, (moved, carriers) in value.get("adequacy", {}).items()
            }
            return cls(str(value["method"]), int(value["samples"]), tensors, adequacy)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"These are no calibrated ranges: {error!r}.", "Calibrate again.") from error

    def save(self, path: Path) -> None:
        """Writes JSON; equal ranges are equal bytes."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Ranges:
        return cls.from_json(read_json(path))


def calibrate(
    path: Path,
    batches: Iterable[Mapping[str, Any]],
    *,
    method: Method = "minmax",
    progress: Callable[[int], None] | None = None,
) -> Ranges:
    """Measures every tensor that either dialect of `to_qdq` rounds; see `calibrate_by`."""
    return calibrate_by((method,), path, batches, progress=progress)[method]


def calibrate_by(
    methods: Sequence[Method],
    path: Path,
    batches: Iterable[Mapping[str, Any]],
    *,
    progress: Callable[[int], None] | None = None,
) -> dict[Method, Ranges]:
    """The ranges that each of several methods finds, all from one pass over the data.

    Args:
        batches: arrays or tensors by input name, batch axis first; further names (labels) are ignored.
        progress: called with the number of samples done after each batch.

    Raises:
        WorkloadError: there are no batches, one lacks an input, or the data are constant.
        ModelError: the model is quantized already, or a tensor holds NaN or infinity.
    """
    for method in methods:
        if method not in METHODS:
            raise ModelError(
                f"There is no calibration method {method!r}.", f"Choose one of {', '.join(METHODS)}."
            )
    model = load_float(path)
    tensors = tensors_to_measure(model)
    if not tensors:
        raise nothing_to_quantize(path, _placed(model)[0].left_float)
    seen = {name: Seen(bins=0 if set(methods) <= {"minmax"} else BINS) for name in tensors}
    divisible = of_samples(model, tensors)
    stream = streamer(model, tensors, optimize=False)
    samples = 0
    for feeds in pieces(model, batches, samples_at_once(model, tensors)):
        for name, values in stream(feeds):
            try:
                seen[name].add(values, samples_in(feeds), by_sample=name in divisible)
            except FloatingPointError as error:
                last = samples + samples_in(feeds) - 1
                raise ModelError(
                    f"The tensor {name!r} holds {error}, in one of the samples {samples} to {last}.",
                    "Check the calibration data for NaN and for its scale; if it is sound, the network "
                    "diverged in training: load an earlier checkpoint.",
                ) from error
        samples += samples_in(feeds)
        if progress is not None:
            progress(samples)
    if samples == 0:
        raise WorkloadError(
            "There is no calibration data.", 'Let batches("calibration") yield at least one batch.'
        )
    measured = {name: seen[name].whole() for name in tensors}
    _check_varied(model, measured, samples)
    return {method: _ranges(method, samples, seen, measured) for method in methods}


def tensors_to_measure(model: onnx.ModelProto) -> list[str]:
    """The tensors that either dialect rounds, in the order of the graph: one calibration serves both."""
    return list(dict.fromkeys(name for placed in _placed(model) for name in placed.tensors))


def _placed(model: onnx.ModelProto) -> list[Placement]:
    rows, others, summed = single_rows(model), not_float32(model), summed_in_float(model)
    return [
        place(model.graph, dialect, single_rows=rows, not_float=others, summed_in_float=summed)
        for dialect in DIALECTS
    ]


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


def _check_varied(model: onnx.ModelProto, measured: Mapping[str, Histogram], samples: int) -> None:
    inputs = [name for name in float_inputs(model) if name in measured]
    if inputs and all(measured[name].low == measured[name].high for name in inputs):
        raise WorkloadError(
            f"The calibration data are constant: {inputs[0]!r} is {measured[inputs[0]].low:g} "
            f"in all of {samples} samples.",
            "Give real samples, prepared exactly as for inference.",
        )
