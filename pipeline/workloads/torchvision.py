"""The networks of torchvision: "torchvision:resnet18?classes=10"."""

# The package is the user's own install.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

import functools
from pathlib import Path

import torchvision
from torch import nn

from .assembled import Network


def network(name: str, folder: Path, /, *, classes: int = 1000, weights: str = "") -> Network:
    """The network of a name that `torchvision.models.list_models()` has.

    Args:
        weights: the name of torchvision's own, e.g. "DEFAULT"; they are downloaded.
    """
    task = (
        "segmentation"
        if "segmentation" in torchvision.models.get_model_builder(name).__module__
        else "classification"
    )
    return Network(functools.partial(_built, name, classes, weights), task)


def _built(name: str, classes: int, weights: str) -> nn.Module:
    extra = {"weights": weights} if weights else {"weights": None, "num_classes": classes}
    made: nn.Module = torchvision.models.get_model(name, **extra)
    return made
