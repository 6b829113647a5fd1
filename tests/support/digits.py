"""A workload that trains in a second: scikit-learn's digits and a small MLP, for tests of whole runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

PIXELS, LABELS = load_digits(return_X_y=True)
X = torch.tensor(PIXELS / 16, dtype=torch.float32)
Y = torch.tensor(LABELS)
PARTS = {
    "train": slice(0, 1000),
    "validation": slice(1000, 1400),
    "calibration": slice(0, 200),
    "test": slice(1400, None),
}


class Digits:
    score_name = "accuracy"
    higher_is_better = True

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 10))

    def example_inputs(self) -> dict[str, Tensor]:
        return {"pixels": X[:2]}

    def batches(self, split: str, *, seed: int = 0) -> Iterator[dict[str, Tensor]]:
        x, y = X[PARTS[split]], Y[PARTS[split]]
        order = torch.arange(len(y))
        if split == "train":
            order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        for start in range(0, len(order), 64):
            index = order[start : start + 64]
            yield {"pixels": x[index], "label": y[index]}

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(outputs, batch["label"])

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=3e-3)

    def score(self, predict: Any, batches: Iterable[Mapping[str, Tensor]]) -> float:
        right = total = 0
        for batch in batches:
            found = predict({"pixels": batch["pixels"].numpy()})["output"].argmax(1)
            right += int(np.sum(found == batch["label"].numpy()))
            total += len(found)
        return right / total

    def fingerprint(self) -> str:
        return hashlib.sha256(X.numpy().tobytes()).hexdigest()
