"""A PilotNet (Bojarski et al. 2016) that steers by a camera image and the car's speed.

Trained on single images with the steering of a driver who knows the road (`road.wanted_angle`). The score is
the mean absolute error in degrees; `drive.py` lets the networks of a run drive.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import road
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

BATCH = 64
PART = 500  # images that are drawn at once
MIDDLE, SPREAD = 110, 60  # of pixels


def inputs_of(roads: road.Roads, cars: road.Cars) -> dict[str, NDArray[np.float32]]:
    """What a network reads: "image" (n, 3, 32, 64) and "speed" (n, 1), both around 0."""
    image = (road.seen(roads, cars).astype(np.float32) - MIDDLE) / SPREAD
    return {"image": image.astype(np.float32), "speed": _speed(cars)}


def _speed(cars: road.Cars) -> NDArray[np.float32]:
    return ((cars.speed - 15) / 6)[:, None].astype(np.float32)


@functools.cache
def moments(count: int, seed: int) -> dict[str, Tensor]:
    """Cars off the middle and not straight, so that a network learns how to return, with the right "angle".

    The "image" is as the camera has it, uint8.
    """
    parts = [_moments(min(PART, count - start), seed * 1_000_000 + start) for start in range(0, count, PART)]
    return {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}


def _moments(count: int, seed: int) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(seed)
    roads = road.made_roads(count, road.AHEAD + 40, seed)
    place, offset, heading, speed = (
        random.uniform(low, high, count).astype(np.float32)
        for low, high in ((0, 40), (-1.3, 1.3), (-0.12, 0.12), (8, 25))
    )
    cars = road.Cars(place, offset, heading, speed, np.zeros(count, np.float32))
    angle = road.wanted_angle(roads, cars)[:, None]
    return {"image": road.seen(roads, cars), "speed": _speed(cars), "angle": angle}


class PilotNet(nn.Module):
    """Five convolutions and four linear layers; the speed joins after the first of these."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, kernel, stride in ((3, 24, 5, 2), (24, 36, 5, 2), (36, 48, 5, 2), (48, 64, 3, 1)):
            layers += [nn.Conv2d(before, after, kernel, stride, kernel // 2), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.Conv2d(64, 64, 3, 1, 1), nn.ReLU())
        self.place = nn.Linear(64 * 4 * 8, 100)
        self.angle = nn.Sequential(
            nn.Linear(101, 50), nn.ReLU(), nn.Linear(50, 10), nn.ReLU(), nn.Linear(10, 1)
        )

    def forward(self, image: Tensor, speed: Tensor) -> Tensor:
        place = F.relu(self.place(self.features(image).flatten(1)))
        angle: Tensor = self.angle(torch.cat([place, speed], 1))
        return angle


class Steering:
    """Data, loss and score."""

    score_name = "mean absolute error, degrees"
    higher_is_better = False
    counts: Mapping[str, int] = {"train": 12000, "validation": 2000, "calibration": 512, "test": 2000}

    def build_model(self) -> nn.Module:
        return PilotNet()

    def example_inputs(self) -> dict[str, Tensor]:
        return {"image": torch.zeros(2, 3, road.ROWS, road.COLUMNS), "speed": torch.zeros(2, 1)}

    def batches(self, split: str, *, seed: int = 0) -> Iterator[dict[str, Tensor]]:
        count = self.counts[split]
        tensors = moments(count, list(self.counts).index(split))
        order = torch.arange(count)
        if split == "train":
            order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        for index in torch.split(order, BATCH):
            rows = {name: tensor[index] for name, tensor in tensors.items()}
            yield {**rows, "image": (rows["image"].float() - MIDDLE) / SPREAD}

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return F.smooth_l1_loss(outputs, batch["angle"])

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-3)

    def score(self, predict: Any, batches: Iterable[Mapping[str, Tensor]]) -> float:
        errors = []
        for batch in batches:
            given = {name: batch[name].numpy() for name in ("image", "speed")}
            errors.append(np.abs(predict(given)["output"] - batch["angle"].numpy()))
        return float(np.concatenate(errors).mean())

    def fingerprint(self) -> str:
        source = Path(str(road.__file__)).read_bytes()
        return hashlib.sha256(source + f"{dict(self.counts)}".encode()).hexdigest()


class Quick(Steering):
    """Few images: to see the stages work."""

    counts: Mapping[str, int] = {"train": 3000, "validation": 400, "calibration": 128, "test": 400}
