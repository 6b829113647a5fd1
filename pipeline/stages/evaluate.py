"""The stage "evaluate", the last one of every run: test score and size of each network.

Only this stage evaluates the test split, once; all choices before it used the validation split. It scores the
shipped form: the ONNX file if there is one, else the module. Where a board ran engines, each engine is scored
there too, by the same score: INT8 and FP16 may change it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...export.onnx_graph.counts import count
from ...targets.artifact import read_json, write_json
from ...targets.remote.board import predict_on
from ...targets.remote.on_board import ready_on
from ...targets.remote.ssh import connected
from ...targets.runtimes.open import open_session
from ...targets.timing.inputs import inputs_mark
from ..training.predict import left_out, score_of, session_predict, torch_predict
from ..work import Variant, Work
from ..workload import Array, Batch, Predict, example_batch, split_batches
from .profile import how_on

_GROUP_BYTES = 64 << 20
"""Inputs that are sent to a board at once."""


@dataclass(frozen=True)
class Evaluate:
    """Writes "scores": per network the score, samples scored, parameters, multiply-adds and file bytes."""

    split: Literal["train", "validation", "calibration", "test"] = "test"

    def __call__(self, work: Work) -> Work:
        scores, apart = {}, any(variant.role == "control" for variant in work.variants)
        for index, variant in enumerate(work.variants):
            work.progress(index, len(work.variants), f"score {variant.name}")
            scores[variant.name] = _facts(work, variant, self.split, apart=apart)
        for name, score in engine_scores(work, self.split).items():
            scores[name]["engine_score"] = score
        work.progress(len(work.variants), len(work.variants), "score")
        path = work.directory / "scores.json"
        samples = sum(len(next(iter(batch.values()))) for batch in split_batches(work.workload, self.split))
        write_json(path, {"split": self.split, "samples": samples, "scores": scores})
        return work.with_artifact(f"scores_{self.split}", path).logged("evaluate", self)


def _facts(work: Work, variant: Variant, split: str, *, apart: bool) -> dict[str, Any]:
    """The figures of a network; with `apart` also the scores without parts of the samples."""
    if "onnx" not in variant.files:
        model = work.model(variant)
        predict = torch_predict(model, example_batch(work.workload))
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return {**_scores(work, predict, split, apart=apart), "parameters": parameters}
    path = variant.path("onnx")
    session = open_session(path, runtime=work.target.scored_here)
    scores = _scores(work, session_predict(session), split, apart=apart)
    session.close()
    sizes = {name: tuple(value.shape) for name, value in example_batch(work.workload).items()}
    counts = count(path, sizes=sizes)
    return {**scores, **{name: getattr(counts, name) for name in ("parameters", "macs", "file_bytes")}}


def _scores(work: Work, predict: Predict, split: str, *, apart: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"score": score_of(work.workload, predict, split)}
    if apart and (scores := left_out(work.workload, predict, split)):
        found["left_out"] = scores
    return found


def engine_scores(work: Work, split: str) -> dict[str, float]:
    """The score of each engine that the stage "profile" timed, on its board; empty without engines.

    Raises:
        TargetError: the board cannot be reached any more.
        ModelError, WorkloadError: as `score_of`.
    """
    if "engines" not in work.artifacts:
        return {}
    made = read_json(work.artifacts["engines"].checked())
    paths = {one.name: one.path("onnx") for one in work.variants if one.name in made["engines"]}
    scores = {}
    with connected(made["on"], work.progress) as board:
        how = how_on(work, runtime=made["runtime"], precision=made["precision"])
        ready = ready_on(board, paths, how, scores=True)
        for index, name in enumerate(paths):
            work.progress(index, len(paths), f"score the engine of {name}")
            there = SentAhead(predict_on(board, ready, name), list(example_batch(work.workload)))
            batches = there.sent(split_batches(work.workload, split))
            scores[name] = score_of(work.workload, there.predict, split, batches=batches)
    return scores


class SentAhead:
    """`predict` by a model on a board; the inputs of many batches are sent at once, before they are asked."""

    def __init__(self, run: Predict, inputs: Sequence[str]) -> None:
        self._run, self._inputs = run, inputs
        self._known: dict[str, Mapping[str, Array]] = {}

    def predict(self, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        """The outputs for a batch; one that was not sent before, as the score changed it, is sent now."""
        given = {name: np.asarray(arrays[name]) for name in self._inputs}
        known = self._known.get(inputs_mark(given))
        return self._run(given) if known is None else known

    def sent(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, after their inputs were sent and run, in groups of equal shapes."""
        group: list[Batch] = []
        arrays: list[dict[str, Array]] = []
        for batch in batches:
            given = {name: batch[name].numpy() for name in self._inputs}
            size = sum(array.nbytes for each in arrays for array in each.values())
            if arrays and (size > _GROUP_BYTES or _shapes(given) != _shapes(arrays[0])):
                yield from self._group(group, arrays)
                group, arrays = [], []
            group.append(batch)
            arrays.append(given)
        if group:
            yield from self._group(group, arrays)

    def _group(self, group: Sequence[Batch], arrays: Sequence[Mapping[str, Array]]) -> Iterator[Batch]:
        outputs = self._run({name: np.concatenate([each[name] for each in arrays]) for name in self._inputs})
        self._known.clear()
        start = 0
        for each in arrays:
            stop = start + len(each[self._inputs[0]])
            self._known[inputs_mark(each)] = {name: value[start:stop] for name, value in outputs.items()}
            start = stop
        yield from group


def _shapes(arrays: Mapping[str, Array]) -> list[tuple[int, ...]]:
    return [array.shape[1:] for array in arrays.values()]
