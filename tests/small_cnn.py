"""A residual network with batch norm on scikit-learn's digits; in a file that a new process can import."""

from __future__ import annotations

from collections.abc import Iterator

import nets
from small import Digits
from torch import Tensor, nn


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
