"""The data of the detector example: bright shapes on noise, drawn by a seed, with their boxes.

Nothing is downloaded and nothing is stored: the same seed gives the same scenes on every machine. Shapes
overlap, are weak against the noise and are cut off at the border, so that the task is not trivial.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SIZE = 64
SHAPES = ("rectangle", "ellipse", "cross")
MOST = 4  # largest number of shapes in a scene

Array = NDArray[np.float32]


def scenes(count: int, seed: int) -> tuple[Array, Array, NDArray[np.int64]]:
    """Images (count, 1, 64, 64), boxes (count, 4, 4) as x0, y0, x1, y1 in pixels, classes (count, 4).

    A scene holds one to four shapes; the rest of its boxes are zero and of class -1.
    """
    random = np.random.default_rng(seed)
    images = random.normal(0, 0.25, (count, 1, SIZE, SIZE)).astype(np.float32)
    boxes = np.zeros((count, MOST, 4), np.float32)
    classes = np.full((count, MOST), -1, np.int64)
    for image, own_boxes, own_classes in zip(images, boxes, classes, strict=True):
        for place in range(random.integers(1, MOST + 1)):
            kind = int(random.integers(len(SHAPES)))
            width, height = random.uniform(10, 28, 2)
            x, y = random.uniform(6, SIZE - 6, 2)
            box = np.clip([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 0, SIZE)
            if any(_overlap(box, other) > 0.3 for other in own_boxes[:place]):
                continue
            image[0][_mask(kind, x, y, width, height)] += random.uniform(0.5, 1.5)
            own_boxes[place], own_classes[place] = box, kind
    return images, boxes, classes


def _mask(kind: int, x: float, y: float, width: float, height: float) -> NDArray[np.bool_]:
    down, right = np.mgrid[0:SIZE, 0:SIZE] + 0.5
    u, v = (right - x) / (width / 2), (down - y) / (height / 2)
    inside = (np.abs(u) <= 1) & (np.abs(v) <= 1)
    if SHAPES[kind] == "ellipse":
        inside &= u**2 + v**2 <= 1
    if SHAPES[kind] == "cross":
        inside &= (np.abs(u) <= 0.35) | (np.abs(v) <= 0.35)
    return np.asarray(inside)


def _overlap(a: Array, b: Array) -> float:
    """Intersection over union of two boxes."""
    return float(overlaps(a[None], b[None])[0, 0])


def overlaps(a: Array, b: Array) -> Array:
    """Intersection over union of every box of `a` (n, 4) with every box of `b` (m, 4): (n, m)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=2)
    whole = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (a, b)]
    return np.asarray(common / np.maximum(whole[0][:, None] + whole[1][None] - common, 1e-9), np.float32)
