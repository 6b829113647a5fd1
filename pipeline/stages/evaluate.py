"""The stage "evaluate", the last one of every run: test score and size of each network.

Only this stage evaluates the test split, once; all choices before it used the validation split. It scores the
shipped form: the ONNX file if there is one, else the module. Where a board ran engines, each engine is scored
there too, by the same score: INT8 and FP16 may change it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...export.onnx_graph.counts import count
from ...targets.artifact import read_json, write_json
from ...targets.remote.board import infer_on
from ...targets.remote.on_board import Ready, ready_on
from ...targets.remote.ssh import Transport, connected
from ...targets.runtimes.infer import load_arrays
from ...targets.runtimes.open import open_session
from ...targets.timing.inputs import inputs_mark
from ..training.predict import score_of, session_predict, torch_predict
from ..work import Variant, Work
from ..workload import Array, Batch, example_batch, split_batches
from .profile import how_on

_GROUP_BYTES = 64 << 20
"""Inputs that are sent to a board at once."""


@dataclass(frozen=True)
class Evaluate:
    """Writes "scores": per network the score, samples scored, parameters, multiply-adds and file bytes."""

    split: str = "test"

    def __call__(self, work: Work) -> Work:
        scores = {}
        for index, variant in enumerate(work.variants):
            work.progress(index, len(work.variants), f"score {variant.name}")
            scores[variant.name] = _facts(work, variant, self.split)
        for name, score in engine_scores(work, self.split).items():
            scores[name]["engine_score"] = score
        work.progress(len(work.variants), len(work.variants), "score")
        path = work.directory / "scores.json"
        samples = sum(len(next(iter(batch.values()))) for batch in split_batches(work.workload, self.split))
        write_json(path, {"split": self.split, "samples": samples, "scores": scores})
        return work.with_artifact(f"scores_{self.split}", path).logged("evaluate", self)


def _facts(work: Work, variant: Variant, split: str) -> dict[str, Any]:
    if "onnx" not in variant.files:
        model = work.model(variant)
        predict = torch_predict(model, example_batch(work.workload))
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return {"score": score_of(work.workload, predict, split), "parameters": parameters}
    path = variant.path("onnx")
    session = open_session(path, runtime=work.target.here)
    score = score_of(work.workload, session_predict(session), split)
    session.close()
    sizes = {name: tuple(value.shape) for name, value in example_batch(work.workload).items()}
    counts = count(path, sizes=sizes)
    return {"score": score, **{name: getattr(counts, name) for name in ("parameters", "macs", "file_bytes")}}


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
    with connected(made["on"]) as board, tempfile.TemporaryDirectory() as folder:
        how = how_on(work, runtime=made["runtime"], precision=made["precision"])
        ready = ready_on(board, paths, how, progress=work.progress)
        for index, name in enumerate(paths):
            work.progress(index, len(paths), f"score the engine of {name}")
            there = _There(board, ready, name, list(example_batch(work.workload)), Path(folder) / name)
            batches = there.sent(split_batches(work.workload, split))
            scores[name] = score_of(work.workload, there.predict, split, batches=batches)
    return scores


class _There:
    """`predict` by a model on a board; the inputs of many batches are sent at once, before they are asked."""

    def __init__(
        self, board: Transport, ready: Ready, name: str, inputs: Sequence[str], folder: Path
    ) -> None:
        self._board, self._ready, self._name, self._inputs, self._folder = board, ready, name, inputs, folder
        self._known: dict[str, dict[str, Array]] = {}
        self._calls = 0
        folder.mkdir()

    def predict(self, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        """The outputs for a batch; one that was not sent before, as the score changed it, is sent now."""
        mark = inputs_mark({name: arrays[name] for name in self._inputs})
        if mark not in self._known:
            self._run([{name: np.asarray(arrays[name]) for name in self._inputs}])
        return self._known[mark]

    def sent(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, after their inputs were sent and run, in groups."""
        group: list[Batch] = []
        arrays: list[dict[str, Array]] = []
        for batch in batches:
            group.append(batch)
            arrays.append({name: batch[name].numpy() for name in self._inputs})
            if sum(array.nbytes for each in arrays for array in each.values()) > _GROUP_BYTES:
                self._run(arrays)
                yield from group
                group, arrays = [], []
        self._run(arrays)
        yield from group

    def _run(self, batches: Sequence[Mapping[str, Array]]) -> None:
        """Keeps the outputs of these batches, and forgets earlier ones."""
        self._known.clear()
        shapes = [[batch[name].shape[1:] for name in self._inputs] for batch in batches]
        if len(batches) > 1 and any(each != shapes[0] for each in shapes):
            parts = [[batch] for batch in batches]
        else:
            parts = [list(batches)] if batches else []
        files = []
        for part in parts:
            self._calls += 1
            files.append(self._folder / str(self._calls) / "inputs.npz")
            files[-1].parent.mkdir()
            joined = {name: np.concatenate([batch[name] for batch in part]) for name in self._inputs}
            np.savez(files[-1], **joined)  # type: ignore[arg-type]  # names of inputs
        for file, part in zip(files, parts, strict=True):
            [answer] = infer_on(self._board, self._ready, self._name, [file], file.parent / "outputs")
            outputs, start = load_arrays(answer), 0
            for batch in part:
                stop = start + len(batch[self._inputs[0]])
                self._known[inputs_mark(batch)] = {name: v[start:stop] for name, v in outputs.items()}
                start = stop
