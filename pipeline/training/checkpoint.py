"""Checkpoint of a training: tensors and JSON in one safetensors file, without pickle.

It is replaced atomically after every epoch, so a killed training loses at most the current epoch. It has the
current network, the best network, the optimizer and the scores so far.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from ...targets.artifact import json_of, writing
from ...targets.errors import ArtifactError


@dataclass(frozen=True)
class Reached:
    """The progress of a training.

    Attributes:
        scores: on the validation split, after each epoch.
        kept: the epoch whose network is returned, from 0.
        best: that network's tensors.
        seed: shuffles the epochs.
    """

    scores: tuple[float, ...]
    kept: int
    best: Mapping[str, Tensor]
    seed: int


def save(path: Path, model: nn.Module, optimizer: Any, progress: Reached) -> None:
    """Writes all that a training needs to resume, atomically."""
    state = optimizer.state_dict()
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in progress.best.items()}
    plain: dict[str, dict[str, Any]] = {}
    for index, slots in state["state"].items():
        for name, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    facts: dict[str, Any] = {"scores": list(progress.scores), "kept": progress.kept, "seed": progress.seed}
    facts |= {"plain": plain, "groups": state["param_groups"]}
    write_tensors(path, tensors, {"training": json.dumps(facts, sort_keys=True)})


def load(path: Path, model: nn.Module, optimizer: Any) -> Reached:
    """Restores network and optimizer; returns the progress. An ArtifactError if the file is damaged."""
    facts, tensors = _read(path)
    state: dict[int, dict[str, Any]] = {int(index): dict(slots) for index, slots in facts["plain"].items()}
    for name, value in _with_prefix(tensors, "optimizer/").items():
        index, _, slot = name.partition("/")
        state.setdefault(int(index), {})[slot] = value
    try:
        optimizer.load_state_dict({"state": state, "param_groups": facts["groups"]})
        model.load_state_dict(_with_prefix(tensors, "model/"))
    except (RuntimeError, ValueError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error
    return _progress(facts, tensors)


def reached(path: Path) -> Reached:
    """The progress of a training, with its best network so far; an ArtifactError if it is damaged."""
    return _progress(*_read(path))


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file atomically; equal tensors give equal bytes."""
    # The format refuses tied weights, which share memory: each name gets its own copy.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())}
    with writing(path) as beside:
        beside.write_bytes(save_tensors(plain, dict(metadata) if metadata else None))


def _progress(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Reached:
    return Reached(tuple(facts["scores"]), facts["kept"], _with_prefix(tensors, "best/"), facts["seed"])


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            facts = json_of(file.metadata()["training"])
            return facts, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, str(error)) from error


def _with_prefix(tensors: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    return {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}


def _damaged(path: Path, why: str) -> ArtifactError:
    return ArtifactError(
        f"The checkpoint {path} is damaged: {why}.", f"Delete it (rm {path}): the training starts again."
    )
