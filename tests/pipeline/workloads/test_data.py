"""Images in folders; they need Pillow, which is the user's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from deadweight.pipeline.workloads.data import Picture, read_data, side_of_images
from deadweight.targets.errors import WorkloadError

PLAIN = Picture(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def draw(path: Path, shade: int, mode: str = "RGB") -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is the user's own")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.new(mode, (16, 16), shade if mode == "L" else (shade, 0, 0)).save(path)


def test_the_folders_of_images_are_their_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for kind, shade in (("dark", 10), ("light", 200)):
            for number in range(4):
                draw(tmp_path / split / kind / f"{number}.png", shade)
    data = read_data(tmp_path, PLAIN, 3)
    batch = next(iter(data.batches("validation")))
    assert batch["image"].shape == (3, 3, 8, 8)
    for split in ("train", "validation", "test", "calibration"):
        for batch in data.batches(split):
            assert torch.equal(batch["image"][:, 0, 0, 0] > 0.5, batch["label"] == 1)
    mark = data.fingerprint()
    draw(tmp_path / "train" / "dark" / "9.png", 10)
    assert read_data(tmp_path, PLAIN, 3).fingerprint() != mark


def test_masks_and_boxes_are_beside_the_images(tmp_path: Path) -> None:
    for number in range(8):
        for place in ("pixels", "boxes"):
            draw(tmp_path / place / "images" / f"{number}.png", 100)
        draw(tmp_path / "pixels" / "masks" / f"{number}.png", number, "L")
        (tmp_path / "boxes" / "labels").mkdir(exist_ok=True)
        (tmp_path / "boxes" / "labels" / f"{number}.txt").write_text("2 0.5 0.5 0.5 0.25\n" * (number % 3))
    batch = next(iter(read_data(tmp_path / "pixels", PLAIN, 8).batches("calibration")))
    assert batch["label"].shape[1:] == (8, 8)
    found = read_data(tmp_path / "boxes", PLAIN, 8).batches("calibration")
    label = next(iter(found))["label"]
    assert label.shape[1:] == (2, 5)
    assert torch.tensor([2.0, 2.0, 3.0, 6.0, 5.0]).equal(label[label[:, 0, 0] >= 0][0, 0])
    assert -1.0 in label[:, 1, 0]


@pytest.mark.parametrize("content", ["empty", "short", "uneven", "damaged"])
def test_data_that_cannot_be_used_are_named(tmp_path: Path, content: str) -> None:
    place = tmp_path / "data.npz"
    if content == "empty":
        place = tmp_path
    elif content == "damaged":
        place.write_bytes(b"PK no archive")
    else:
        np.savez(place, x=np.ones((3 if content == "short" else 30, 2)), label=np.ones(3, np.int64))
    with pytest.raises(WorkloadError, match=r"data|folder"):
        read_data(place, PLAIN, 4)


def test_the_side_that_init_proposes_is_that_of_the_images(tmp_path: Path) -> None:
    draw(tmp_path / "dark" / "0.png", 1)  # 16 pixels
    assert side_of_images(tmp_path, 224) == 32
    image = pytest.importorskip("PIL.Image", reason="Pillow is the user's own")
    image.new("RGB", (70, 300)).save(tmp_path / "dark" / "1.png")
    assert side_of_images(tmp_path, 640) == 320
    assert side_of_images(tmp_path, 224) == 224
    (tmp_path / "dark" / "2.png").write_text("no image")
    with pytest.raises(WorkloadError, match=r"2\.png cannot be read"):
        side_of_images(tmp_path, 224)


def test_a_folder_without_images_proposes_no_side(tmp_path: Path) -> None:
    (tmp_path / "train.npz").write_bytes(b"")
    assert side_of_images(tmp_path, 224) == 0
