"""The workload and the recipe of the sweeps here: scikit-learn's digits and an MLP, a second of training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

RECIPE = """
workload = "small.py:Digits"
seed = {seed}
[[stages]]
stage = "train"
epochs = 12
[[stages]]
stage = "statistics"
[[stages]]
stage = "prune"
ratio = 0.5
align = false
[[stages]]
stage = "finetune"
epochs = {epochs}
"""
_PIXELS, _LABELS = load_digits(return_X_y=True)
X, Y = torch.tensor(_PIXELS / 16, dtype=torch.float32), torch.tensor(_LABELS)
ORDER = torch.randperm(len(Y), generator=torch.Generator().manual_seed(0))
PARTS = {
    "train": ORDER[:1000],
    "calibration": ORDER[:200],
    "validation": ORDER[1000:1400],
    "test": ORDER[1400:],
}


class Digits:
    score_name = "accuracy"
    higher_is_better = True

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 10))

    def example_inputs(self) -> dict[str, Tensor]:
        return {"pixels": X[:2]}

    def batches(self, split: str, *, seed: int = 0) -> Iterator[dict[str, Tensor]]:
        order = PARTS[split]
        if split == "train":
            order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))]
        for index in torch.split(order, 64):
            yield {"pixels": X[index], "label": Y[index]}

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(outputs, batch["label"])

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=3e-3)

    def score(self, predict: Any, batches: Iterable[Mapping[str, Tensor]]) -> float:
        right = total = 0
        for batch in batches:
            found = predict({"pixels": batch["pixels"].numpy()})["output"].argmax(1)
            right += int((found == batch["label"].numpy()).sum())
            total += len(found)
        return right / total

    def fingerprint(self) -> str:
        return hashlib.sha256(X.numpy().tobytes()).hexdigest()
