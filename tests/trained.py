"""The digits' network after a second of training: quantization needs scores that mean something."""

from __future__ import annotations

import torch
from small import Digits
from torch import nn


def trained(workload: Digits, epochs: int = 6) -> nn.Module:
    torch.manual_seed(0)
    model = workload.build_model()
    optimizer = workload.optimizer(model)
    for epoch in range(epochs):
        for batch in workload.batches("train", seed=epoch):
            optimizer.zero_grad()
            workload.loss(model(batch["pixels"]), batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model
