"""Halves an Ultralytics network, which Ultralytics then trains, validates, runs, fuses and exports.

    pip install ultralytics   (and deadweight, from a checkout)
    python prune_yolo.py

It draws its own data and downloads nothing. With weights of your own, begin at `YOLO("own.pt")`.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel

import deadweight

SHAPES = ("disc", "box", "bar")
PIXELS = 64


def draw(folder: Path, counts: dict[str, int]) -> Path:
    """Images of one shape on noise, with labels, as Ultralytics reads them; returns their YAML file."""
    random = np.random.default_rng(0)
    for split, count in counts.items():
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image = Image.fromarray(random.integers(0, 90, (PIXELS, PIXELS, 3), dtype=np.uint8))
            shape = int(random.integers(len(SHAPES)))
            half = np.array([(11, 11), (11, 11), (18, 6)][shape])
            middle = random.integers(half, PIXELS - half)
            corners = [*map(int, middle - half), *map(int, middle + half)]
            paint = ImageDraw.Draw(image)
            (paint.ellipse if shape == 0 else paint.rectangle)(corners, fill=(250, 250, 60 * shape))
            image.save(folder / "images" / split / f"{number:03}.png")
            label = " ".join(map(str, (shape, *middle / PIXELS, *2 * half / PIXELS)))
            (folder / "labels" / split / f"{number:03}.txt").write_text(label + "\n")
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(SHAPES))
    about = folder / "shapes.yaml"
    about.write_text(f"path: {folder.resolve()}\ntrain: images/train\nval: images/val\nnames:\n{names}")
    return about


def halved(model: nn.Module) -> nn.Module:
    """Half of the channels of each group, those with the largest weights, proven on one example."""
    model = model.float().eval()
    groups = deadweight.trace(model, (torch.rand(2, 3, PIXELS, PIXELS),))
    scores = {group.name: magnitudes(model, group) for group in groups}
    plan = deadweight.choose(groups, scores, ratio=0.5)
    small = deadweight.apply(model, plan, groups)
    print(deadweight.verify(model, small, plan, groups))
    return small


def magnitudes(model: nn.Module, group: Any) -> torch.Tensor:
    """The sum of squares of each unit's own weights."""
    total = torch.zeros(group.size)
    for one in group.slices:
        if one.role == "producer":
            weight = model.get_parameter(one.parameter).detach().movedim(one.axis, 0).flatten(1)
            own = one.units >= 0
            total.index_add_(0, one.units[own], weight.square().sum(1)[own])
    return total


def training(small: nn.Module) -> type[DetectionTrainer]:
    """A trainer of this network: Ultralytics would build a new one of full size from the YAML file."""

    class Trainer(DetectionTrainer):  # type: ignore[misc, unused-ignore]
        def get_model(self, cfg: object = None, weights: object = None, verbose: bool = True) -> nn.Module:
            return small.requires_grad_()

    return Trainer


def main() -> None:
    """Runs all steps in a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/yolo"))
    parser.add_argument("--epochs", type=int, default=2)
    given = parser.parse_args()
    folder = given.folder.resolve()
    data = draw(folder / "data", {"train": 48, "val": 16})
    settings = {"imgsz": PIXELS, "device": "cpu", "project": str(folder), "exist_ok": True, "verbose": False}

    yolo = YOLO("yolo11n.yaml", verbose=False)
    yolo.model = DetectionModel("yolo11n.yaml", nc=len(SHAPES), verbose=False)
    yolo.save(folder / "own.pt")

    yolo = YOLO(folder / "own.pt")
    whole = sum(one.numel() for one in yolo.model.parameters())
    yolo.model = halved(yolo.model)
    yolo.save(folder / "pruned.pt")  # the plan is in it: deadweight.plan_of(YOLO("pruned.pt").model)

    yolo = YOLO(folder / "pruned.pt")
    yolo.train(
        trainer=training(yolo.model),
        data=str(data),
        epochs=given.epochs,
        batch=16,
        workers=0,
        plots=False,
        **settings,
    )
    best = YOLO(yolo.trainer.best)
    left = sum(one.numel() for one in best.model.parameters())
    print(f"parameters: {whole} -> {left}")
    found = best.val(data=str(data), workers=0, plots=False, **settings)
    print(f"mAP50 after {given.epochs} epochs: {found.box.map50:.3f}")
    boxes = best.predict(str(folder / "data/images/val/000.png"), **settings)[0].boxes
    print(f"boxes in one image: {len(boxes)}")
    written = best.export(format="onnx", imgsz=PIXELS, device="cpu", simplify=False)
    print(f"exported: {Path(written).name}")


if __name__ == "__main__":
    main()
