"""The networks of Lightning: "lightning:module.py:Net", with the module's own optimizer and data."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...targets.errors import users_code
from .assembled import Network
from .named import named_object

_OF = {"train": "train_dataloader", "validation": "val_dataloader", "test": "test_dataloader"}


def network(name: str, folder: Path, /) -> Network:
    """The LightningModule of "file.py:Class", made without arguments.

    Its optimizer is that of `configure_optimizers()`; schedulers are left out: the stages have their own.
    Its data are those of `train_dataloader()`, `val_dataloader()` and `test_dataloader()`, unless others are
    given.
    """
    kind = named_object(name, folder)
    home = folder / name.rpartition(":")[0]
    build = functools.partial(_built, kind)
    own = functools.partial(_loaders, kind)
    return Network(build, optimizer=_optimizer, loaders=own, code=(home.resolve(),))


def _built(kind: Any) -> nn.Module:
    made: nn.Module = kind() if isinstance(kind, type) else kind
    return made


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    own: Any = model
    with users_code("configure_optimizers() was called"):
        made = own.configure_optimizers()
        made = made["optimizer"] if isinstance(made, dict) else made
        while isinstance(made, (list, tuple)):
            made = made[0]
    found: torch.optim.Optimizer = made
    return found


def _loaders(kind: Any) -> Mapping[str, Any]:
    module: Any = _built(kind)
    with users_code("the module's dataloaders were made"):
        if hasattr(module, "prepare_data"):
            module.prepare_data()
            module.setup("fit")
        return {split: getattr(module, method)() for split, method in _OF.items() if _defines(kind, method)}


def _defines(kind: Any, method: str) -> bool:
    """Whether the class has the method itself; Lightning's own only raises."""
    return not getattr(kind, method).__module__.startswith(("lightning", "pytorch_lightning"))
