"""The networks of Ultralytics: "ultralytics:own.yaml", or the .pt file of a trained one.

The module in training mode returns maps, for its own loss; in eval mode boxes and probabilities, which the
task `detection` scores: no test of overlaps and no threshold is part of the network.
"""

# The package is the user's own install.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER

from ..workload import Batch
from .assembled import Network
from .data import LABEL, Picture


def network(name: str, folder: Path, /, *, classes: int = 0) -> Network:
    """The detector of a YAML file, or of a .pt file with weights; both may be names that Ultralytics knows.

    Args:
        classes: replaces the number in the YAML file; 0 keeps it.
    """
    place = folder / name
    build = functools.partial(_built, str(place) if place.exists() else name, classes)
    return Network(build, "detection", Picture(640, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), _Loss(build))


def _built(name: str, classes: int) -> nn.Module:
    LOGGER.setLevel(logging.ERROR)
    if classes:
        made: Any = DetectionModel(name, nc=classes, verbose=False)
    else:
        made = YOLO(name, task="detect", verbose=False).model
    made.args = get_cfg()  # the weights of its loss
    head = made.model[-1]
    head.export = True  # in eval mode the boxes alone, without the maps
    head.dynamic = True  # its grid is made anew in each pass, not kept for a shape with the batch in it
    if head.end2end:
        head.end2end = False  # all places, not the 300 best
    network: nn.Module = made.float().requires_grad_(True)
    return network


class _Loss:
    """The network's own loss; it reads strides and classes, which pruning does not change."""

    def __init__(self, build: Any) -> None:
        self.build = build

    @functools.cached_property
    def criterion(self) -> Any:
        model: Any = self.build()
        return model.init_criterion()

    def __call__(self, outputs: Any, batch: Batch) -> Tensor:
        label = batch[LABEL]
        image = next(iter(batch.values()))
        which, place = (label[..., 0] >= 0).nonzero(as_tuple=True)
        chosen = label[which, place]
        sides = torch.tensor([image.shape[-1], image.shape[-2]] * 2, device=label.device)
        corners = chosen[:, 1:] / sides
        middle, size = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
        given = {"batch_idx": which.float(), "cls": chosen[:, :1], "bboxes": torch.cat([middle, size], 1)}
        parts, _ = self.criterion(outputs, given)
        loss: Tensor = parts.sum() / len(image)
        return loss
