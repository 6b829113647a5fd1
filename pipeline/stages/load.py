"""The stage "load": the user's own trained weights.

Weights are data, but a pickle can run code. So a checkpoint is opened as safetensors or with torch's
weights-only reader, and any other file is refused before it is executed.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...targets.errors import ArtifactError, ModelError
from ..training.predict import validation_score
from ..work import Work
from ..workload import built_model


@dataclass(frozen=True)
class Load:
    """Loads a checkpoint into `build_model()`; the result is the network "original".

    Attributes:
        path: a .safetensors file, or a .pt/.pth file with only tensors, relative to the working directory.
        key: the name of the state dict in a .pt file, e.g. "model"; "" if the file is the state dict.
    """

    path: str
    key: str = ""

    def reads(self) -> list[Path]:
        """The checkpoint; its content enters the cache key."""
        return [Path(self.path)]

    def __call__(self, work: Work) -> Work:
        model = built_model(work.workload)
        weights = read_weights(Path(self.path), self.key)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise ModelError(
                f"{self.path} does not fit build_model(): {' '.join(str(error).split())[:300]}",
                "Give the checkpoint of this network, or the key of its state dict.",
            ) from error
        score = validation_score(work.workload, model)
        words = f"{self.path}: validation {work.workload.score_name} {score:.4f}"
        return work.with_model("original", model.eval()).logged("load", self, words)


def read_weights(path: Path, key: str = "") -> dict[str, Tensor]:
    """The tensors of a checkpoint, by name; an ArtifactError if it is missing, damaged or has more."""
    if not path.is_file():
        raise ArtifactError(f"The checkpoint {path} does not exist.", "Check the path in the recipe.")
    if path.suffix == ".onnx":
        raise ArtifactError(
            f"{path} is an ONNX file, but pruning needs the PyTorch network.",
            "Give the checkpoint that it was exported from: a .safetensors file, or the .pt of a state dict.",
        )
    try:
        value: Any = load_file(path) if path.suffix == ".safetensors" else _tensors_alone(path)
    except pickle.UnpicklingError as error:
        raise ArtifactError(
            f"{path} is a pickle with more than tensors; opening it could run foreign code.",
            "Save only the weights: safetensors.torch.save_file(model.state_dict(), 'model.safetensors').",
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        detail = "" if isinstance(error, KeyError) else f": {error}"  # its first byte is not a pickle's
        raise ArtifactError(
            f"{path} is damaged or not a checkpoint{detail}.",
            "Give the trained weights: a .safetensors file, or the .pt file of a state dict.",
        ) from error
    if key:
        value = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        found = sorted(map(str, value))[:8] if isinstance(value, Mapping) else type(value).__name__
        raise ArtifactError(
            f"{path} has no state dict{f' under {key!r}' if key else ''}, but {found}.",
            'Name its key, e.g. key = "model".',
        )
    return dict(value)


def _tensors_alone(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on the pickle protocol; unsafe files are refused below
        return torch.load(path, map_location="cpu", weights_only=True)
