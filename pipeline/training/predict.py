"""`predict` for a module, an ONNX file and an engine: named arrays in, named arrays out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

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
