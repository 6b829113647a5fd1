"""Files of tensors, without pickle; above all the checkpoint of a training, which has JSON beside them.

`opened` reads every safetensors file of ours, and `fill` puts weights into a network. A checkpoint is
replaced atomically after every epoch, so a killed training loses at most the current epoch. It has the
current network, the best network, the optimizer and the scores so far.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from ...targets.artifact import json_of, writing
from ...targets.errors import ArtifactError, ModelError


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
    with opened(path, "the training starts again", "training") as (tensors, facts):
        state: dict[int, dict[str, Any]] = {int(at): dict(slots) for at, slots in facts["plain"].items()}
        for name, value in _with_prefix(tensors, "optimizer/").items():
            index, _, slot = name.partition("/")
            state.setdefault(int(index), {})[slot] = value
        optimizer.load_state_dict({"state": state, "param_groups": facts["groups"]})
        model.load_state_dict(_with_prefix(tensors, "model/"))
    return reached(path)


def reached(path: Path) -> Reached:
    """The progress of a training, with its best network so far; an ArtifactError if it is damaged."""
    with opened(path, "the training starts again", "training") as (tensors, facts):
        best = _with_prefix(tensors, "best/")
        return Reached(tuple(map(float, facts["scores"])), int(facts["kept"]), best, int(facts["seed"]))


@contextlib.contextmanager
def opened(path: Path, then: str, entry: str = "") -> Iterator[tuple[dict[str, Tensor], Any]]:
    """The tensors and the JSON of a safetensors file of ours; what breaks in the block is an ArtifactError.

    Args:
        then: what happens once the file is deleted, for the message.
        entry: the metadata's entry that has the JSON.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            yield tensors, json_of((file.metadata() or {})[entry]) if entry else None
    except Exception as error:  # a file of another kind can break anything
        why = str(error).partition("\n")[0].rstrip(".")
        what = f"{path} is damaged, missing or of another kind: {why}."
        raise ArtifactError(what, f"Delete it (rm {path}): {then}.") from error


def tensors_in(path: Path) -> dict[str, Tensor]:
    """All tensors of a file of ours, by name; an ArtifactError if it is damaged."""
    with opened(path, "the stage that wrote it runs again") as (tensors, _):
        return tensors


def fill(model: nn.Module, weights: Mapping[str, Tensor], path: Path, cure: str) -> nn.Module:
    """The network with these weights, in eval mode; a ModelError says shortly what does not fit."""
    kinds = {
        name: (weights[name].dtype, own.dtype) for name, own in model.state_dict().items() if name in weights
    }
    wrong = [
        f"{name} is {a}, not {b}"
        for name, (a, b) in kinds.items()
        if a.is_floating_point != b.is_floating_point
    ]
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        wrong = [line.strip().rstrip(".") for line in str(error).splitlines()[1:]]
    if wrong:
        short = "; ".join(line[:150] for line in wrong[:3])
        raise ModelError(f"{path} does not fit the network: {short}{' …' * (len(wrong) > 3)}.", cure)
    return model.eval()


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file atomically; equal tensors give equal bytes."""
    # The format refuses tied weights, which share memory: each name gets its own copy.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())}
    with writing(path) as beside:
        beside.write_bytes(save_tensors(plain, dict(metadata) if metadata else None))


def _with_prefix(tensors: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    return {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}
