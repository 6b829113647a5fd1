"""The networks of transformers: "transformers:FOLDER", a folder that `save_pretrained` wrote, or a config."""

# The package is the user's own install.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from ...targets.errors import WorkloadError
from .assembled import Network

_TASKS = {
    "ForCausalLM": "language",
    "LMHeadModel": "language",
    "Classification": "classification",
    "ForSemanticSegmentation": "segmentation",
}
"""The task by what the class is called."""


def network(name: str, folder: Path, /, *, weights: bool = True) -> Network:
    """The network of a folder with a config.json, and weights if there are any.

    Args:
        weights: whether to load them; the network is initialized anew without.

    Raises:
        WorkloadError: the folder has no config, or names no class.
    """
    place = folder / name
    if not (place / "config.json").is_file():
        cure = "Give a folder that save_pretrained wrote."
        raise WorkloadError(f"{place} has no config.json.", cure)
    config: Any = transformers.AutoConfig.from_pretrained(place)
    kind = getattr(transformers, (config.architectures or [""])[0], None)
    if kind is None:
        cure = 'Name the class in config.json, e.g. "architectures": ["BertForSequenceClassification"].'
        raise WorkloadError(f"{place} has the architectures {config.architectures}.", cure)
    has = weights and any(place.glob("*.safetensors"))
    task = next((task for ends, task in _TASKS.items() if ends in kind.__name__), "")
    return Network(functools.partial(_built, kind, place, has), task, code=(place / "config.json",))


def _built(kind: Any, place: Path, weights: bool) -> nn.Module:
    transformers.utils.logging.disable_progress_bar()
    if weights:
        made: nn.Module = kind.from_pretrained(place, dtype=torch.float32)
    else:
        made = kind(transformers.AutoConfig.from_pretrained(place))
    return made.train()
