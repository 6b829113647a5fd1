"""The score of a detector in numpy: from raw outputs to boxes, and from boxes to mAP.

It runs on named arrays, so the same code scores the PyTorch module, the ONNX file and an engine on a board.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scenes import SHAPES, overlaps

STRIDE = 4  # pixels a cell of the output
REACH = 16.0  # the size of a box whose predicted logarithm is zero
Array = NDArray[np.float32]
Detections = tuple[Array, Array, NDArray[np.int64]]
"""Of one image boxes (n, 4), confidences (n,) and classes (n,)."""


def decoded(output: Array, *, least: float = 0.05, most: int = 30) -> list[Detections]:
    """The detections in a batch of raw outputs, after non-maximum suppression.

    Args:
        output: (batch, 4 + classes, rows, columns): per cell the offset of the centre in cells, the
            logarithms of the size, and a score per class.
        least: the confidence below which nothing is a detection.
        most: number of cells per image that are used, the most confident ones.
    """
    found = []
    for one in np.asarray(output, np.float32):
        scores = 1 / (1 + np.exp(-one[4:]))
        flat = scores.reshape(-1)
        best = np.argsort(-flat, kind="stable")[:most]
        best = best[flat[best] >= least]
        classes, rows, columns = np.unravel_index(best, scores.shape)
        shift = one[:4, rows, columns]
        centre = np.stack([columns + 0.5 + shift[0], rows + 0.5 + shift[1]], 1) * STRIDE
        half = np.exp(np.clip(shift[2:4].T, -4, 4)) * REACH / 2
        boxes = np.concatenate([centre - half, centre + half], 1)
        kept = _suppressed(boxes, classes)
        found.append((boxes[kept], flat[best][kept], classes[kept].astype(np.int64)))
    return found


def _suppressed(boxes: Array, classes: NDArray[np.int64], limit: float = 0.5) -> list[int]:
    """The boxes, most confident first, without those that overlap a better box of their class too much."""
    kept: list[int] = []
    apart = overlaps(boxes, boxes) if len(boxes) else np.zeros((0, 0), np.float32)
    for at in range(len(boxes)):
        if all(apart[at, other] <= limit or classes[at] != classes[other] for other in kept):
            kept.append(at)
    return kept


def mean_average_precision(
    detections: Sequence[Detections],
    boxes: Sequence[Array],
    classes: Sequence[NDArray[np.int64]],
    *,
    overlap: float = 0.5,
) -> float:
    """mAP at one overlap: the mean over classes of the area under precision against recall, 0 to 1."""
    areas = []
    for kind in range(len(SHAPES)):
        hits: list[tuple[float, bool]] = []
        total = 0
        for detected, true_boxes, true_classes in zip(detections, boxes, classes, strict=True):
            own, confidences, kinds = detected
            truth = true_boxes[true_classes == kind]
            total += len(truth)
            mine = kinds == kind
            apart = overlaps(own[mine], truth)
            taken: set[int] = set()
            for row, confidence in zip(apart, confidences[mine], strict=True):
                free = [at for at in range(len(truth)) if at not in taken and row[at] >= overlap]
                if free:
                    taken.add(max(free, key=lambda at: float(row[at])))
                hits.append((float(confidence), bool(free)))
        areas.append(_area(hits, total))
    return float(np.mean(areas))


def _area(hits: Sequence[tuple[float, bool]], total: int) -> float:
    """The area under the precision envelope, over recall."""
    right = np.array([hit for _, hit in sorted(hits, key=lambda one: -one[0])], dtype=float)
    if not total or not len(right):
        return 0.0
    recall = np.cumsum(right) / total
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))
