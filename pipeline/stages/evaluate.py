"""The stage "evaluate", the last one of every run: test score and size of each network.

Only this stage evaluates the test split, once; all choices before it used the validation split. It scores the
shipped form: the ONNX file if there is one, else the module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...export.onnx_graph.counts import count
from ...targets.artifact import write_json
from ...targets.runtimes.open import open_session
from ..training.predict import score_of, session_predict, torch_predict
from ..work import Variant, Work
from ..workload import example_batch, split_batches


@dataclass(frozen=True)
class Evaluate:
    """Writes "scores": per network the score, samples scored, parameters, multiply-adds and file bytes."""

    split: str = "test"

    def __call__(self, work: Work) -> Work:
        scores = {}
        for index, variant in enumerate(work.variants):
            work.progress(index, len(work.variants), f"score {variant.name}")
            scores[variant.name] = _facts(work, variant, self.split)
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
