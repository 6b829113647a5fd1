"""Two networks that read traffic signs and number plates: a residual one and a depthwise one.

40 classes, many of which differ in a single digit. `rendering.py` draws the images; every split has a seed of
its own, so none shares an image with another. `Quick` is the residual network at an eighth of the work.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import faces
import numpy as np
import rendering
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH = 128


class Batches:
    """Batches of one split, normalised when they are needed, in an order that depends only on the seed."""

    def __init__(self, images: Tensor, classes: Tensor, order: Tensor) -> None:
        self.images, self.classes, self.order = images, classes, order

    def __len__(self) -> int:
        return -(-len(self.order) // BATCH)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for index in torch.split(self.order, BATCH):
            yield {"image": (self.images[index].float() - 128) / 64, "class": self.classes[index]}


class Residual(nn.Module):
    """Two 3 x 3 convolutions with batch norm around a shortcut (He et al. 2016)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class Separable(nn.Sequential):
    """A depthwise and a pointwise convolution, each with batch norm (Howard et al. 2017, "MobileNets")."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=False),
            nn.BatchNorm2d(before),
            nn.ReLU(),
            nn.Conv2d(before, after, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        )


class SignNet(nn.Module):
    """A stem, blocks of either kind that halve the resolution, average pooling and a linear layer."""

    def __init__(self, block: type[Residual] | type[Separable], stem: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(), block(stem, stem, 1)
        )
        self.blocks = nn.Sequential(*(block(*pair, 2) for pair in itertools.pairwise((stem, *widths))))
        self.head = nn.Linear(widths[-1], len(faces.CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.head(self.blocks(self.stem(image)).mean((2, 3)))
        return scores


class Signs:
    """Data, loss and score; subclasses add `build_model`."""

    score_name = "accuracy"
    higher_is_better = True
    counts: Mapping[str, int] = {"train": 12000, "validation": 2000, "calibration": 512, "test": 3000}
    difficulty = rendering.DIFFICULTY

    def example_inputs(self) -> dict[str, Tensor]:
        return {"image": torch.zeros(2, 3, rendering.SIDE, rendering.SIDE)}

    def batches(self, split: str, *, seed: int = 0) -> Batches:
        count, own_seed = self.counts[split], list(self.counts).index(split)
        images, classes = map(torch.from_numpy, rendering.signs(count, own_seed, self.difficulty))
        order = torch.arange(count)
        if split == "train":
            order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        return Batches(images, classes, order)

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(outputs, batch["class"])

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)

    def score(self, predict: Any, batches: Iterable[Mapping[str, Tensor]]) -> float:
        right = [
            np.argmax(predict({"image": batch["image"].numpy()})["output"], 1) == batch["class"].numpy()
            for batch in batches
        ]
        return float(np.concatenate(right).mean())

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{dict(self.counts)} {self.difficulty}".encode())
        for module in (faces, rendering):
            digest.update(Path(str(module.__file__)).read_bytes())
        return digest.hexdigest()


class ResidualSigns(Signs):
    """A residual network of 1.1 million parameters."""

    def build_model(self) -> nn.Module:
        return SignNet(Residual, 24, (48, 112, 256))


class DepthwiseSigns(Signs):
    """A depthwise network of 0.12 million parameters."""

    def build_model(self) -> nn.Module:
        return SignNet(Separable, 48, (96, 192, 384))


class Quick(Signs):
    """A small residual network, few images, easy ones: to see the stages work."""

    counts: Mapping[str, int] = {"train": 3000, "validation": 400, "calibration": 128, "test": 800}
    difficulty = 2

    def build_model(self) -> nn.Module:
        return SignNet(Residual, 24, (48, 96))
