"""Workloads on scikit-learn's digits beside the plain one; in a file that a new process can import."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from support import block_nets, nets
from support.digits import Digits


class Images(Digits):
    """The digits as images of three equal channels."""

    def build_model(self) -> nn.Module:
        model = nets.ResidualCnn(12)
        model.fc = nn.Linear(24, 10)
        return model

    def example_inputs(self) -> dict[str, Tensor]:
        return {"image": _image(super().example_inputs()["pixels"])}

    def batches(self, split: str, *, seed: int = 0) -> Iterator[dict[str, Tensor]]:
        for batch in super().batches(split, seed=seed):
            yield {"image": _image(batch["pixels"]), "label": batch["label"]}

    def score(self, predict: object, batches: object) -> float:
        right = total = 0
        for batch in batches:  # type: ignore[attr-defined]
            found = predict({"image": batch["image"].numpy()})["output"].argmax(1)  # type: ignore[operator]
            right += int((found == batch["label"].numpy()).sum())
            total += len(found)
        return right / total


def _image(pixels: Tensor) -> Tensor:
    return pixels.reshape(-1, 1, 8, 8).expand(-1, 3, -1, -1).contiguous()


class Deep(Images):
    """Four blocks, of which the second adds nothing: its last scale is zero."""

    def build_model(self) -> nn.Module:
        model = block_nets.Stages()
        idle = model.layer1[1]
        assert isinstance(idle, block_nets.Basic)
        with torch.no_grad():
            for parameter in (idle.bn2.weight, idle.bn2.bias):
                parameter.zero_()
        return model


class Diverging(Digits):
    calls = 0

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        self.calls += 1
        return super().loss(outputs, batch) * (float("nan") if self.calls == 4 else 1.0)


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
