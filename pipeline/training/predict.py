"""`predict` for a module, an ONNX file and an engine: named arrays in, named arrays out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ...export.opened import outputs_of
from ...targets.errors import ModelError, WorkloadError, users_code
from ...targets.runtimes.infer import run_all
from ..workload import Array, Batch, Predict, Workload, example_batch, split_batches

if TYPE_CHECKING:
    from ...targets.runtimes.session import Session


def torch_predict(model: nn.Module, names: Iterable[str]) -> Predict:
    """A `predict` over a module; `names` are the inputs in the order of `forward`'s parameters."""
    order = list(names)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    model.eval()

    def predict(arrays: Mapping[str, Array]) -> dict[str, Array]:
        with torch.inference_mode():
            outputs = model(*(torch.as_tensor(arrays[name]).to(device) for name in order))
        return {name: value.cpu().numpy() for name, value in outputs_of(outputs).items()}

    return predict


def validation_score(workload: Workload, model: nn.Module) -> float:
    """A module's score on the validation split, see `score_of`."""
    return score_of(workload, torch_predict(model, example_batch(workload)), "validation")


def session_predict(session: Session) -> Predict:
    """A `predict` over an opened model; a batch is split and padded if the model's batch is fixed."""
    names, fixed = [one.name for one in session.inputs], session.inputs[0].shape[0]

    def predict(arrays: Mapping[str, Array]) -> dict[str, Array]:
        given = {name: np.asarray(arrays[name]) for name in names}
        return run_all(session, given) if isinstance(fixed, int) and fixed > 0 else session.run(given)

    return predict


def score_of(
    workload: Workload, predict: Predict, split: str, *, batches: Iterable[Batch] | None = None
) -> float:
    """The workload's score on a split, or on these `batches` of it.

    Raises:
        ModelError: an output has NaN or infinity.
        WorkloadError: the score is not a finite number, the split is empty, or the user's code fails.
    """

    def finite(arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        outputs = predict(arrays)
        for name, value in outputs.items():
            if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
                raise ModelError(
                    f'The network\'s output "{name}" has NaN or infinity on the "{split}" split.',
                    "Look for a diverged training, a division by zero or a missing epsilon before pruning.",
                )
        return outputs

    with users_code(f'score() ran on "{split}"'):
        score = float(workload.score(finite, split_batches(workload, split) if batches is None else batches))
    if not np.isfinite(score):
        raise WorkloadError(f'score() returned {score} on "{split}".', "Let it return a finite number.")
    return score


PARTS = 20
_MOST_BYTES = 1 << 31


def left_out(workload: Workload, predict: Predict, split: str) -> list[float]:
    """The scores without each of 20 equal parts of the samples; sample n is in part n modulo 20.

    Two networks' differences of these give the sampling error of any smooth score, the samples being the same
    (the delete-a-group jackknife; Efron and Tibshirani 1993, chapter 11). Empty where there are fewer than
    two samples in a part, more than 2 GB of them, or where the score needs all of them.

    Raises:
        ModelError, WorkloadError: as `score_of`.
    """
    names, held, size, count = [*example_batch(workload)], [], 0, 0
    for batch in split_batches(workload, split):
        outputs = predict({name: batch[name].numpy() for name in names})
        rows = len(batch[names[0]])
        held.append((batch, outputs, (torch.arange(rows) + count) % PARTS))
        count += rows
        size += sum(one.nbytes for one in (*batch.values(), *outputs.values()) if hasattr(one, "nbytes"))
        if size > _MOST_BYTES:
            return []
    scores = []
    for part in range(PARTS if count >= 2 * PARTS else 0):
        known: dict[int, Mapping[str, Array]] = {}

        def rest(part: int = part, known: dict[int, Mapping[str, Array]] = known) -> Iterator[Batch]:
            for batch, outputs, parts in held:
                kept = parts != part
                if kept.any():
                    some = {name: _some(value, kept) for name, value in batch.items()}
                    answers = {name: _some(value, kept) for name, value in outputs.items()}
                    known[some[names[0]].data_ptr()] = answers
                    yield some

        def again(
            arrays: Mapping[str, Array], known: dict[int, Mapping[str, Array]] = known
        ) -> Mapping[str, Array]:
            found = known.get(np.asarray(arrays[names[0]]).__array_interface__["data"][0])
            return predict(arrays) if found is None else found

        try:
            scores.append(score_of(workload, again, split, batches=rest()))
        except WorkloadError:
            return []
    return scores


def _some(value: Any, kept: Tensor) -> Any:
    """The kept samples of one value of a batch; what has no row for each sample is unchanged."""
    if not hasattr(value, "__len__") or len(value) != len(kept):
        return value
    if isinstance(value, (Tensor, np.ndarray)):
        return value[kept if isinstance(value, Tensor) else kept.numpy()]
    return [one for one, stays in zip(value, kept, strict=True) if stays]
