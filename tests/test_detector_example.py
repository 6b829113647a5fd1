"""The detector example: its data, its loss, its score, and its network under the knife."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from average_precision import REACH, STRIDE, decoded, mean_average_precision
from detector import Detector, SmallDetector
from scenes import SHAPES, SIZE, overlaps, scenes

from deadweight.pipeline.stages.finetune import Finetune
from deadweight.pipeline.stages.prune import Prune
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.training.predict import score_of, torch_predict
from deadweight.pipeline.work import Work
from deadweight.targets.target import load_target


@pytest.fixture(scope="module")
def workload() -> Detector:
    made = Detector()
    made.parts = {split: tuple(part[:64] for part in parts) for split, parts in made.parts.items()}
    return made


def perfect(boxes: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The raw output of a network that knows everything."""
    cells = SIZE // STRIDE
    output = np.full((len(boxes), 4 + len(SHAPES), cells, cells), -10.0, np.float32)
    for one, own, kinds in zip(output, boxes, classes, strict=True):
        for box, kind in zip(own[kinds >= 0], kinds[kinds >= 0], strict=True):
            centre = (box[:2] + box[2:]) / 2 / STRIDE
            column, row = np.clip(centre.astype(int), 0, cells - 1)
            one[:2, row, column] = centre - (column + 0.5, row + 0.5)
            one[2:4, row, column] = np.log((box[2:] - box[:2]) / REACH)
            one[4 + kind, row, column] = 10.0
    return output


def test_the_same_seed_draws_the_same_scenes() -> None:
    (images, boxes, classes), again = scenes(5, 3), scenes(5, 3)
    assert np.array_equal(images, again[0])
    assert np.array_equal(boxes, again[1])
    assert np.array_equal(classes, again[2])
    assert not np.array_equal(images, scenes(5, 4)[0])


def test_boxes_lie_in_the_image_around_something_bright() -> None:
    images, boxes, classes = scenes(40, 0)
    for image, own, kinds in zip(images, boxes, classes, strict=True):
        for x0, y0, x1, y1 in own[kinds >= 0]:
            assert 0 <= x0 < x1 <= SIZE
            assert 0 <= y0 < y1 <= SIZE
            assert image[0, int(y0) : int(y1) + 1, int(x0) : int(x1) + 1].max() > 0.5


def test_overlap_is_intersection_over_union() -> None:
    boxes = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [4, 4, 5, 5]], np.float32)
    assert overlaps(boxes, boxes)[0] == pytest.approx([1.0, 1 / 3, 0.0])


def test_a_network_that_knows_everything_has_nearly_full_marks_and_one_that_knows_nothing_none() -> None:
    _, boxes, classes = scenes(60, 1)
    assert mean_average_precision(decoded(perfect(boxes, classes)), list(boxes), list(classes)) > 0.97
    shifted = mean_average_precision(decoded(perfect(boxes, classes)), list(boxes + 30), list(classes))
    assert shifted < 0.1


def test_false_alarms_that_are_more_confident_cost_precision() -> None:
    boxes = np.array([[[10, 10, 20, 20]]], np.float32)
    right = (boxes[0], np.array([0.5], np.float32), np.array([0]))
    both = (
        np.concatenate([boxes[0], boxes[0] + 30]),
        np.array([0.5, 0.9], np.float32),
        np.array([0, 0]),
    )
    truth = [boxes[0]], [np.array([0])]
    whole = mean_average_precision([right], *truth)
    assert whole == pytest.approx(1 / 3)  # the two other classes have nothing to find
    assert mean_average_precision([both], *truth) == pytest.approx(whole / 2)


def test_the_loss_is_lowest_where_the_network_is_right(workload: Detector) -> None:
    batch = next(workload.batches("validation"))
    right = torch.from_numpy(perfect(batch["boxes"].numpy(), batch["classes"].numpy()))
    assert float(workload.loss(right, batch)) < 0.3
    assert float(workload.loss(torch.zeros_like(right), batch)) > 1.0


def test_the_detector_is_pruned_in_its_own_class_and_tuned(workload: Detector, tmp_path: Path) -> None:
    torch.manual_seed(0)
    work = Work(workload, load_target("x86-cpu"), tmp_path / "start", networks=NetworkFiles()).with_model(
        "original", SmallDetector()
    )
    work = dataclasses.replace(work, directory=tmp_path / "prune")
    work = Prune(parameters=0.5, criterion="weight_l2", align=False)(work)
    work = Finetune(epochs=1)(dataclasses.replace(work, directory=tmp_path / "tuned"))
    plan = work.plan(work.latest())
    assert plan is not None
    assert plan.form == "module"
    assert any("join" in name for name in plan.removed)
    score = score_of(workload, torch_predict(work.model(), ["image"]), "validation")
    assert 0 <= score <= 1
