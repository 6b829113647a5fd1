"""A small detector, to show that a workload need not be a classifier.

YOLO's building blocks: C2f (split, a chain of convolutions, concatenation of all parts), a pyramid that is
upsampled and joined, one head for boxes and classes. The network returns raw maps; decoding and non-maximum
suppression belong to `score`: they are neither exported nor timed, and one score judges every runtime.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from average_precision import REACH, STRIDE, decoded, mean_average_precision
from scenes import MOST, SHAPES, SIZE, scenes
from torch import Tensor, nn

COUNTS = {"train": 1200, "validation": 200, "calibration": 128, "test": 300}
BATCH = 32


class Conv(nn.Module):
    """Convolution, batch norm, and ReLU, where YOLO has SiLU: few runtimes have an INT8 kernel for SiLU."""

    def __init__(self, before: int, after: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = F.relu(self.norm(self.conv(x)))
        return out


class C2f(nn.Module):
    """Half of the channels go through a chain of residual convolutions; all outputs are joined."""

    def __init__(self, before: int, after: int, links: int) -> None:
        super().__init__()
        self.split = Conv(before, after, 1)
        self.chain = nn.ModuleList(
            nn.Sequential(Conv(after // 2, after // 2), Conv(after // 2, after // 2)) for _ in range(links)
        )
        self.join = Conv(after // 2 * (2 + links), after, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.split(x).chunk(2, 1))
        for link in self.chain:
            parts.append(parts[-1] + link(parts[-1]))
        out: Tensor = self.join(torch.cat(parts, 1))
        return out


class SmallDetector(nn.Module):
    """Two levels, joined at a stride of 4; for each cell a box and a score per class."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv(1, 16, 3, 2)
        self.down1 = Conv(16, 32, 3, 2)
        self.block1 = C2f(32, 32, 1)
        self.down2 = Conv(32, 48, 3, 2)
        self.block2 = C2f(48, 48, 2)
        self.joined = C2f(80, 32, 1)
        self.head = nn.Sequential(Conv(32, 32), nn.Conv2d(32, 4 + len(SHAPES), 1))
        with torch.no_grad():
            last = self.head[1].bias
            assert isinstance(last, Tensor)
            last[4:] = -4.0  # almost every cell is empty (Lin et al. 2017, "Focal Loss")

    def forward(self, image: Tensor) -> Tensor:
        fine = self.block1(self.down1(self.stem(image)))
        coarse = self.block2(self.down2(fine))
        both = torch.cat([F.interpolate(coarse, scale_factor=2.0), fine], 1)
        out: Tensor = self.head(self.joined(both))
        return out


class Detector:
    """Scenes, the loss of an anchor-free detector, and mAP at an overlap of one half."""

    score_name = "mAP"
    higher_is_better = True

    def __init__(self) -> None:
        self.parts = {
            split: tuple(map(torch.from_numpy, scenes(count, seed)))
            for seed, (split, count) in enumerate(COUNTS.items())
        }

    def build_model(self) -> nn.Module:
        return SmallDetector()

    def example_inputs(self) -> dict[str, Tensor]:
        return {"image": self.parts["train"][0][:2]}

    def batches(self, split: str, *, seed: int = 0) -> Iterator[dict[str, Tensor]]:
        images, boxes, classes = self.parts[split]
        order = torch.arange(len(images))
        if split == "train":
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        for index in torch.split(order, BATCH):
            yield {"image": images[index], "boxes": boxes[index], "classes": classes[index]}

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Focal loss on the classes of every cell, L1 on the boxes of the cells with a centre."""
        boxes, classes = batch["boxes"], batch["classes"]
        count, _, rows, columns = outputs.shape
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2 / STRIDE
        size = torch.log((boxes[..., 2:] - boxes[..., :2]).clamp_min(1.0) / REACH)
        cell = centre.floor().clamp(0, columns - 1).long()
        image, place = (classes >= 0).nonzero(as_tuple=True)
        column, row = cell[image, place].unbind(1)
        target = torch.zeros(count, len(SHAPES), rows, columns, device=outputs.device)
        target[image, classes[image, place], row, column] = 1.0
        found = outputs[:, 4:]
        plain = F.binary_cross_entropy_with_logits(found, target, reduction="none")
        right = torch.exp(-plain)  # the predicted probability of the true class
        focal = ((1 - right) ** 2 * plain).sum() / max(1, len(image))
        wanted = torch.cat([centre - cell - 0.5, size], 2)[image, place]
        apart = F.l1_loss(outputs[image, :4, row, column], wanted, reduction="sum")
        return focal + apart / max(1, len(image))

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-3)

    def score(self, predict: Any, batches: Iterable[Mapping[str, Tensor]]) -> float:
        detections, boxes, classes = [], [], []
        for batch in batches:
            detections += decoded(predict({"image": batch["image"].numpy()})["output"])
            boxes += list(batch["boxes"].numpy())
            classes += list(batch["classes"].numpy())
        return mean_average_precision(detections, boxes, classes)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{SIZE} {MOST}".encode())
        for part in self.parts.values():
            for tensor in part:
                digest.update(np.ascontiguousarray(tensor.numpy()).tobytes())
        return digest.hexdigest()
