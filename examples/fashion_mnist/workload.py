"""Two networks on Fashion-MNIST: an over-parameterised MLP and a small residual CNN.

A recipe names one of them, e.g. workload = "workload.py:Mlp". Everything that `deadweight.Workload` needs
is in `FashionMnist`; the two classes add their network, and nothing of deadweight is inherited.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from data import load
from torch import Tensor, nn

BATCH = 128
VALIDATION = 1 / 6  # the last sixth of the training set; the test set is used once, at the end


class Batches:
    """Batches of one split, made when they are needed, in an order that depends only on the seed."""

    def __init__(self, images: Tensor, labels: Tensor, *, size: int, order: Tensor | None = None) -> None:
        self.images, self.labels, self.size = images, labels, size
        self.order = torch.arange(len(labels)) if order is None else order

    def __len__(self) -> int:
        return -(-len(self.order) // self.size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(self.order), self.size):
            index = self.order[start : start + self.size]
            yield {"image": self.images[index], "label": self.labels[index]}


class FashionMnist:
    """Data, loss and score; subclasses add `build_model`."""

    score_name = "accuracy"
    higher_is_better = True
    learning_rate = 1e-3

    def __init__(self) -> None:
        self.parts = {part: tuple(map(torch.from_numpy, load(part))) for part in ("train", "t10k")}

    def example_inputs(self) -> dict[str, Tensor]:
        return {"image": self.parts["train"][0][:2]}

    def batches(self, split: str, *, seed: int = 0) -> Batches:
        images, labels = self.parts["t10k" if split == "test" else "train"]
        if split == "test":
            return Batches(images, labels, size=500)
        cut = round(len(labels) * (1 - VALIDATION))
        if split == "validation":
            return Batches(images[cut:], labels[cut:], size=500)
        if split == "calibration":
            return Batches(images[:cut][:2048], labels[:cut][:2048], size=256)
        if split != "train":
            raise ValueError(f"there is no split {split!r}")
        order = torch.randperm(cut, generator=torch.Generator().manual_seed(seed))
        return Batches(images, labels, size=BATCH, order=order)

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(outputs, batch["label"])

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=self.learning_rate, weight_decay=1e-2)

    def score(self, predict: Any, batches: Iterable[Mapping[str, Tensor]]) -> float:
        right = total = 0
        for batch in batches:
            scores = predict({"image": batch["image"].numpy()})["output"]
            right += int((np.argmax(scores, axis=1) == batch["label"].numpy()).sum())
            total += len(batch["label"])
        return right / total

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for images, labels in self.parts.values():
            digest.update(images.numpy().tobytes())
            digest.update(labels.numpy().tobytes())
        return digest.hexdigest()


class LargeMlp(nn.Module):
    """784-1024-512-10 with ReLU: 1.3 million parameters, far more than the task needs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 1024)
        self.fc2 = nn.Linear(1024, 512)
        self.head = nn.Linear(512, 10)

    def forward(self, image: Tensor) -> Tensor:
        hidden = F.relu(self.fc2(F.relu(self.fc1(image.flatten(1)))))
        scores: Tensor = self.head(hidden)
        return scores


class Mlp(FashionMnist):
    """The over-parameterised MLP."""

    def build_model(self) -> nn.Module:
        return LargeMlp()


class Residual(nn.Module):
    """Two 3 x 3 convolutions with batch norm around a shortcut (He et al. 2016)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class ResidualNet(nn.Module):
    """A stem, three residual blocks of 32, 64 and 128 channels, average pooling and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.block1 = Residual(32, 32, 1)
        self.block2 = Residual(32, 64, 2)
        self.block3 = Residual(64, 128, 2)
        self.head = nn.Linear(128, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(image)))
        x = self.block3(self.block2(self.block1(x)))
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


class Cnn(FashionMnist):
    """The residual network, 0.3 million parameters."""

    def build_model(self) -> nn.Module:
        return ResidualNet()
