"""The networks of timm: "timm:mobilenetv3_small_100?classes=10"."""

# The package is the user's own install.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import timm
from torch import nn

from .assembled import Network
from .data import Picture


def network(
    name: str, folder: Path, /, *, classes: int = 1000, channels: int = 3, pretrained: bool = False
) -> Network:
    """The network of a name that `timm.list_models()` has, and images as it expects them.

    Args:
        pretrained: with timm's own weights, which are downloaded.
    """
    build = functools.partial(_built, name, classes, channels, pretrained)
    known: Any = timm.get_pretrained_cfg(name)
    if known is None:
        return Network(build, "classification")  # timm names similar ones when it is built
    return Network(build, "classification", Picture(known.input_size[-1], known.mean, known.std))


def _built(name: str, classes: int, channels: int, pretrained: bool) -> nn.Module:
    made: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=classes, in_chans=channels)
    return made
