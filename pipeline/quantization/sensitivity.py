"""Sensitivity of layers to INT8, and the return of the most sensitive ones to float.

Each layer is quantized alone, all others stay in float. One pass over part of the validation split measures
the signal-to-quantization-noise ratio of the outputs (SQNR, in decibels) and the lost score. Layers are
sorted by SQNR: the score of a single layer depends on the chance of a few samples.
"""

from __future__ import annotations

import functools
import itertools
import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ...export.onnx_graph.graph import save
from ...export.parity.compare import Tally
from ...export.quantization.to_qdq import to_qdq
from ...targets.errors import users_code
from ...targets.runtimes.open import open_session
from ..training.predict import session_predict
from ..workload import Array, split_batches
from .candidates import Candidate, Trials, timed

BATCHES = 8  # of the validation split


@dataclass(frozen=True)
class Layer:
    """The cost of INT8 in one layer alone: `sqnr_db` of the worst output, and `score_drop`."""

    name: str
    sqnr_db: float
    score_drop: float


@dataclass(frozen=True)
class Return:
    """A layer that was returned to float.

    Attributes:
        score: on the validation split, with this layer and all returned before it in float.
        time: of the network, relative to the one before this return: (value, low, high), measured
            interleaved on this machine; None where this machine is not the target.
    """

    layer: Layer
    score: float
    time: tuple[float, float, float] | None


def sensitivity(trials: Trials, candidate: Candidate) -> tuple[Layer, ...]:
    """All INT8 layers of a candidate, the most sensitive first."""
    names = candidate.quantized.in_int8
    float_outputs: list[Mapping[str, Array]] = []
    whole = _score(trials, trials.original, float_outputs.append)
    layers = []
    with tempfile.TemporaryDirectory() as directory:
        for place, name in enumerate(names):
            trials.work.progress(place, len(names), f"quantize: sensitivity of {name}")
            path = Path(directory) / "one.onnx"
            others = [*candidate.skip, *(other for other in names if other != name)]
            made = to_qdq(candidate.source, candidate.ranges, dialect=trials.dialect, skip=others)
            save(made.model.proto, path)
            tallies: dict[str, Tally] = defaultdict(Tally)
            score = _score(trials, path, functools.partial(_add, iter(float_outputs), tallies))
            layers.append(Layer(name, _sqnr_db(tallies.values()), trials.drop(whole, score)))
    return tuple(sorted(layers, key=lambda layer: layer.sqnr_db))


def _add(
    expected: Iterator[Mapping[str, Array]], tallies: dict[str, Tally], outputs: Mapping[str, Array]
) -> None:
    for name, value in next(expected).items():
        if value.shape == outputs[name].shape:  # else the number of rows depends on the data
            tallies[name].add(value, outputs[name], len(value) if value.ndim else 1)


def _sqnr_db(tallies: Iterable[Tally]) -> float:
    """Of the worst output, in decibels."""
    worst = max((tally.difference().noise for tally in tallies), default=0.0)
    return -20 * math.log10(worst) if worst else math.inf


def _score(trials: Trials, path: Path, look: Callable[[Mapping[str, Array]], None]) -> float:
    workload = trials.work.workload

    def seen(arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        outputs = predict(arrays)
        look(outputs)
        return outputs

    with closing(open_session(path, runtime=trials.work.target.scored_here)) as session:
        predict = session_predict(session)
        with users_code('score() ran on "validation"'):
            some = itertools.islice(split_batches(workload, "validation"), BATCHES)
            return float(workload.score(seen, some))


def returned(
    trials: Trials, candidate: Candidate, layers: tuple[Layer, ...], *, score_drop: float
) -> tuple[Candidate | None, tuple[Return, ...]]:
    """Returns the most sensitive layers to float, one by one, until the score is within its budget.

    Returns:
        The first candidate within the budget, or None if even the last INT8 layer breaks it; and the
        returns with their costs.
    """
    returns: list[Return] = []
    for layer in layers[:-1]:
        if trials.drop(trials.float_score, candidate.score) <= score_drop:
            break
        trials.work.progress(len(returns), len(layers), f"quantize: {layer.name} back to float")
        skip = (*candidate.skip, layer.name)
        new = trials.make(f"returned{len(returns)}", candidate.source, candidate.ranges, skip)
        time = None
        if not trials.work.target.runtime.builds:
            faster = timed(trials, candidate.path, new.path)
            time = (1 / faster.ratio, 1 / faster.high, 1 / faster.low if faster.low else math.inf)
        returns.append(Return(layer, new.score, time))
        candidate = new
    within = trials.drop(trials.float_score, candidate.score) <= score_drop
    return (candidate if within else None), tuple(returns)


def sensitivity_sentence(layers: tuple[Layer, ...], *, most: int = 5) -> str:
    """A sentence with the most sensitive layers."""
    shown = [f"{one.name} ({one.sqnr_db:.1f} dB, {one.score_drop:+.4f})" for one in layers[:most]]
    more = f", and {len(layers) - most} more" if len(layers) > most else ""
    return (
        f"each layer alone in INT8, worst first (signal-to-noise ratio, lost score): {', '.join(shown)}{more}"
    )


def offer_sentence(returns: Sequence[Return]) -> str:
    """A sentence on what all returns cost together, and on the other way: training."""
    layers = "1 layer" if len(returns) == 1 else f"{len(returns)} layers"
    times = [found.time[0] for found in returns if found.time is not None]
    cost = (
        f"the network takes {math.prod(times):.3f}x as long" if times else "its time is for the board to say"
    )
    return f"{layers} in float: {cost}; the stage qat would keep all in INT8, for its epochs of training"


def return_sentence(found: Return, before: float) -> str:
    cost = "its time must be measured on the board"
    if found.time is not None:
        value, low, high = found.time
        cost = f"the network takes {value:.3f}x as long ({low:.3f} to {high:.3f})"
    return f"{found.layer.name} back to float: validation {before:.4f} -> {found.score:.4f}, {cost}"
