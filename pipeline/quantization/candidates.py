"""INT8 candidates, compared by validation score, output noise and time on this machine.

Every way to quantize a network gives a candidate. One replaces another only if it is better by both measures:
the validation score is not worse, and the outputs are nearer to the float network's. The score alone would
choose by chance on a few samples; the outputs alone would follow differences that the score ignores.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...export.onnx_graph.graph import OnnxModel, load, save
from ...export.onnx_graph.run import Opened
from ...export.parity.compare import noise_between
from ...export.quantization.calibrate import Ranges, Watched, calibrate_by
from ...export.quantization.histogram import METHODS, Method
from ...export.quantization.to_qdq import Quantized, to_qdq
from ...targets.artifact import read_json
from ...targets.runtimes.open import open_session
from ...targets.timing.clock import time_together
from ...targets.timing.judge import Judgement, judge
from ...targets.timing.measurement import Protocol
from ..training.predict import score_of, session_predict
from ..work import Work
from ..workload import inputs_of, lost

NEAR = 4  # batches of the validation split on which outputs are compared
EVENTS = 6  # the fewest that give a 95 % interval


@dataclass(frozen=True)
class Candidate:
    """An INT8 network with its score and noise.

    Attributes:
        source: the float network that was quantized.
        path: the scored file.
        skip: weighted operators that stay in float.
        score: on the validation split.
        noise: of its outputs there, as a share of the float network's values.
    """

    source: OnnxModel
    ranges: Ranges
    quantized: Quantized
    path: Path
    skip: tuple[str, ...]
    score: float
    noise: float


@dataclass(frozen=True)
class Trials:
    """The data that all candidates of a run share.

    Attributes:
        original: the file of the network in float, and `float_score` its score on the validation split.
        network: the same as an opened model.
        folder: for the candidates' files.
    """

    work: Work
    original: Path
    network: Opened
    float_score: float
    dialect: str
    folder: Path
    weight_bits: int = 8
    in_float: tuple[str, ...] = ()
    """Layers that an earlier stage chose to leave in float."""

    @classmethod
    def of(cls, work: Work, *, weight_bits: int = 8) -> Trials:
        """Trials of the newest network of a run in float, in the dialect of its target."""
        newest = work.latest()  # a network that was quantized before has no weights beside its file
        original = (newest if "onnx" in newest.files else work.latest("onnx")).path("onnx")
        network, dialect = Opened.of(load(original)), work.target.runtime.dialect
        score, folder = validated(work, original), work.directory / "trials"
        held = work.artifacts.get("precision")
        chosen = read_json(held.checked())["float"] if held else ()
        present = {node.name for node in network.model.graph.node}  # a dropped block's layers are not
        left = tuple(name for name in chosen if name in present)
        return cls(work, original, network, score, dialect, folder, weight_bits, left)

    def drop(self, before: float, after: float) -> float:
        """How much worse the second score is."""
        return lost(self.work.workload, before, after)

    def helps(self, new: Candidate, old: Candidate) -> bool:
        """Whether the new candidate replaces the old one."""
        lost = max(self.drop(self.float_score, old.score), 0.0)
        return self.drop(self.float_score, new.score) <= lost and new.noise < old.noise

    def make(self, name: str, source: OnnxModel, ranges: Ranges, skip: Sequence[str] = ()) -> Candidate:
        """Quantizes and scores; operators in `skip` stay in float."""
        quantized = to_qdq(
            source, ranges, dialect=self.dialect, skip=sorted(skip), weight_bits=self.weight_bits
        )
        return self.judged(name, quantized, source, ranges, skip)

    def judged(
        self, name: str, quantized: Quantized, source: OnnxModel, ranges: Ranges, skip: Sequence[str] = ()
    ) -> Candidate:
        """Writes and scores a quantized network."""
        path = self.folder / f"{name}.onnx"
        save(quantized.model.proto, path)
        near = itertools.islice(inputs_of(self.work.workload, "validation"), NEAR)
        noise = noise_between(self.network, Opened.of(quantized.model), near)
        score = validated(self.work, path)
        return Candidate(source, ranges, quantized, path, tuple(skip), score, noise)

    def calibrated(self, source: OnnxModel, methods: Sequence[Method]) -> dict[Method, Ranges]:
        """Ranges from the calibration split, by method."""
        return calibrate_by(methods, Watched.of(source), inputs_of(self.work.workload, "calibration"))


def validated(work: Work, path: Path) -> float:
    with closing(open_session(path, runtime=work.target.scored_here)) as session:
        return score_of(work.workload, session_predict(session), "validation")


def first(trials: Trials, method: Method | Literal["best"]) -> Candidate:
    """The unchanged network, quantized by one method or by the best of all."""
    methods: tuple[Method, ...] = METHODS if method == "best" else (method,)
    network = trials.network.model
    best = None
    for name, ranges in trials.calibrated(network, methods).items():
        made = trials.make(name, network, ranges, trials.in_float)
        best = made if best is None or trials.helps(made, best) else best
    assert best is not None  # there is at least one method
    return best


def timed(trials: Trials, baseline: Path, candidate: Path) -> Judgement:
    """A short interleaved timing of two files on this machine."""
    protocol = Protocol(events=EVENTS, seed=trials.work.seed, runtime=trials.work.target.here.name)
    measured = time_together({"baseline": baseline, "candidate": candidate}, protocol=protocol)
    return judge(measured["baseline"], measured["candidate"])
