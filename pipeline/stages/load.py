"""The stage "load": the user's own trained weights.

Weights are data, but a pickle can run code. So a checkpoint is opened as safetensors or with torch's
weights-only reader, and any other file is refused before it is executed.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...targets.errors import ArtifactError
from ..stage import beside
from ..training.checkpoint import fill
from ..training.predict import validation_score
from ..work import Work
from ..workload import built_model


@dataclass(frozen=True)
class Load:
    """Loads a checkpoint into `build_model()`; the result is the network "original".

    Attributes:
        path: a .safetensors file, or a .pt/.pth file with only tensors, relative to the recipe.
        key: the name of the state dict in a .pt file, e.g. "model"; "" if the file is the state dict.
    """

    path: str
    key: str = ""

    def reads(self) -> list[Path]:
        """The checkpoint; its content enters the cache key."""
        return [Path(self.path)]

    def __call__(self, work: Work) -> Work:
        model = built_model(work.workload)
        path = beside(Path(self.path), work.folder)
        cure = "Give the checkpoint of build_model(), or the key of its state dict."
        fill(model, read_weights(path, self.key), path, cure)
        score = validation_score(work.workload, model)
        words = [f"{self.path}: validation {work.workload.score_name} {score:.4f}"]
        if path.resolve() != (work.folder / self.path).resolve():
            words.append("it is in the working directory: version 0.4 will look in the recipe's folder alone")
        return work.with_model("original", model).logged("load", self, *words)


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
    except Exception as error:  # torch does not wrap the errors of a damaged pickle
        raise ArtifactError(
            f"{path} is damaged or not a checkpoint: {str(error).partition(chr(10))[0].rstrip('.')[:200]}.",
            "Give the trained weights: a .safetensors file, or the .pt file of a state dict.",
        ) from error
    held = value.get(key) if key and isinstance(value, Mapping) else value
    if not isinstance(held, Mapping) or not all(isinstance(one, Tensor) for one in held.values()):
        found = (
            sorted(one for one in value if isinstance(one, str))[:8]
            if isinstance(value, Mapping)
            else type(value).__name__
        )
        raise ArtifactError(
            f"{path} has no state dict{f' under {key!r}' if key else ''}, but {found}.",
            'Name its key, e.g. key = "model".',
        )
    most = max(path.stat().st_size, 1 << 26)  # a small view may repeat values
    for name, one in held.items():
        if one.layout is not torch.strided or one.nbytes > most:
            what = f"{path}: {name!r} is sparse, or larger than the whole file."
            raise ArtifactError(what, "Save plain tensors, each with its own values.")
    return dict(held)


def _tensors_alone(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(2)
    if start[:1] != b"\x80" and start != b"PK":
        raise ValueError("it is neither a file of torch.save nor a pickle")
    parts = zipfile.ZipFile(path).infolist() if start == b"PK" else []
    if sum(one.file_size for one in parts) > path.stat().st_size:
        raise ValueError("it would unpack to more than its own size, which no file of torch.save does")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on the pickle protocol; unsafe files are refused below
        return torch.load(path, map_location="cpu", weights_only=True)
