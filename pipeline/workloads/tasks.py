"""The tasks: each gives the loss and the score of a network's first output and a batch's label.

A task is a value of this module, named by its name. For another loss or score, give functions of your
own to `deadweight.workload`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..workload import Array

Pairs = Iterable[tuple[Array, Array]]
"""By batch, the first output and the label."""


@dataclass(frozen=True)
class Task:
    """A loss and a score.

    Attributes:
        loss: of the first output and the label; None where only the network itself has one.
        score: over all batches.
        shapes: what output and label must be, for messages.
    """

    loss: Callable[[Tensor, Tensor], Tensor] | None
    score: Callable[[Pairs], float]
    score_name: str
    higher_is_better: bool
    shapes: str


def task_names() -> list[str]:
    """The tasks of this module."""
    return [name for name, value in globals().items() if isinstance(value, Task)]


def _accuracy(pairs: Pairs) -> float:
    right = [output.argmax(1) == label for output, label in pairs]
    return float(np.concatenate(right).mean())


def _squared_error(output: Tensor, label: Tensor) -> Tensor:
    return F.mse_loss(output, label.to(output.dtype).reshape(output.shape))


def _root_mean_square(pairs: Pairs) -> float:
    squares = [np.square(output - label.reshape(output.shape)).ravel() for output, label in pairs]
    return float(np.sqrt(np.concatenate(squares).mean()))


IGNORED = 255
"""The class of pixels that do not count."""


def _per_pixel(output: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(output, label.long(), ignore_index=IGNORED)


def _mean_overlap(pairs: Pairs) -> float:
    """Intersection over union by class over all pixels, averaged over the classes that occur."""
    both = either = np.zeros(0)
    for output, label in pairs:
        found, counts = output.argmax(1), label != IGNORED
        classes = range(output.shape[1])
        hits = [((found == one) & (label == one) & counts).sum() for one in classes]
        any_of = [(((found == one) | (label == one)) & counts).sum() for one in classes]
        both, either = (both + hits, either + any_of) if len(both) else (np.array(hits), np.array(any_of))
    return float((both[either > 0] / either[either > 0]).mean())


NO_TOKEN = -100


def _next_token(output: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(output[:, :-1].flatten(0, 1), label[:, 1:].flatten(), ignore_index=NO_TOKEN)


def _nats(pairs: Pairs) -> float:
    """The mean cross entropy of the next token, in nats."""
    total = count = 0.0
    for output, label in pairs:
        tokens = int((label[:, 1:] != NO_TOKEN).sum())
        total += tokens * float(_next_token(torch.from_numpy(output), torch.from_numpy(label)))
        count += tokens
    return total / count


OVERLAP = 0.5
_MOST = 100  # detections of one image that count


def _average_precision(pairs: Pairs) -> float:
    """Mean average precision at an overlap of one half, over the classes that occur (Everingham et al. 2010).

    Outputs are [samples, 4 + classes, places]: a box (x, y, width, height) in pixels and a probability for
    each class. Labels are [samples, boxes, 5]: the class (-1 for none) and two corners in pixels.
    """
    found: dict[int, list[tuple[float, bool]]] = {}
    wanted: dict[int, int] = {}
    for output, label in pairs:
        for places, boxes in zip(output, label, strict=True):
            best, kind = places[4:].max(0), places[4:].argmax(0)
            corners = np.concatenate([places[:2] - places[2:4] / 2, places[:2] + places[2:4] / 2]).T
            for one in {*kind[best > 0.01].tolist(), *boxes[boxes[:, 0] >= 0, 0].astype(int).tolist()}:
                truth = boxes[boxes[:, 0] == one, 1:]
                wanted[one] = wanted.get(one, 0) + len(truth)
                mine = np.flatnonzero((kind == one) & (best > 0.01))
                mine = mine[np.argsort(-best[mine], kind="stable")]
                kept = _without_doubles(corners[mine])
                found.setdefault(one, []).extend(
                    zip(best[mine][kept].tolist(), _matched(corners[mine][kept], truth), strict=True)
                )
    scores = [_area(found[one], count) for one, count in wanted.items() if count]
    return float(np.mean(scores)) if scores else 0.0


def _without_doubles(boxes: Array) -> list[int]:
    """Non-maximum suppression of boxes in the order of their probability."""
    kept: list[int] = []
    for at in range(len(boxes)):
        if len(kept) == _MOST:
            break
        if not len(kept) or _overlap(boxes[at], boxes[kept]).max() < 0.7:
            kept.append(at)
    return kept


def _matched(boxes: Array, truth: Array) -> list[bool]:
    """Which boxes, in the order of their probability, are the first to match a true one."""
    free, right = np.ones(len(truth), dtype=bool), []
    for box in boxes:
        shares = np.where(free, _overlap(box, truth), 0.0) if len(truth) else np.zeros(1)
        right.append(bool(shares.max() >= OVERLAP))
        if right[-1]:
            free[shares.argmax()] = False
    return right


def _overlap(box: Array, others: Array) -> Array:
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    both = sides.clip(0).prod(1)
    areas = (others[:, 2:] - others[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    shares: Array = both / np.maximum(areas - both, 1e-9)
    return shares


def _area(found: Sequence[tuple[float, bool]], count: int) -> float:
    """The area under the curve of precision over recall, each precision the best at that recall or above."""
    hits = np.cumsum([right for _, right in sorted(found, key=lambda one: -one[0])])
    precision = hits / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(hits, prepend=0) * best).sum() / count)


classification = Task(
    F.cross_entropy, _accuracy, "accuracy", True, "an output [samples, classes] and int64 labels [samples]"
)
regression = Task(_squared_error, _root_mean_square, "RMSE", False, "an output and labels of as many numbers")
segmentation = Task(
    *(_per_pixel, _mean_overlap, "mIoU", True),
    "an output [samples, classes, height, width] and labels [samples, height, width], 255 for no class",
)
language = Task(
    *(_next_token, _nats, "nats per token", False),
    "an output [samples, tokens, vocabulary] and labels [samples, tokens], -100 for no token",
)
detection = Task(
    *(None, _average_precision, "mAP50", True),
    "an output [samples, 4 + classes, places] and labels [samples, boxes, 5]",
)
