from __future__ import annotations

import numpy as np
import pytest
import torch

from deadweight.pipeline.workloads import tasks


def test_the_root_mean_square_is_over_all_batches() -> None:
    pairs = [(np.array([[1.0], [3.0]]), np.array([0.0, 3.0])), (np.array([[2.0]]), np.array([0.0]))]
    assert tasks.regression.score(pairs) == pytest.approx(((1 + 0 + 4) / 3) ** 0.5)


def test_the_overlap_leaves_out_pixels_without_a_class_and_classes_that_do_not_occur() -> None:
    output = np.zeros((1, 3, 1, 4))
    output[0, 0, 0, :2] = output[0, 1, 0, 2:] = 1
    label = np.array([[[0, 1, 1, 255]]])
    assert tasks.segmentation.score([(output, label)]) == pytest.approx((1 / 2 + 1 / 2) / 2)


def test_an_even_guess_costs_the_logarithm_of_the_vocabulary() -> None:
    output, label = np.zeros((2, 5, 7), np.float32), np.zeros((2, 5), np.int64)
    label[0, 3:] = tasks.NO_TOKEN
    assert tasks.language.score([(output, label)]) == pytest.approx(np.log(7), rel=1e-6)
    assert tasks.language.loss is not None
    loss = tasks.language.loss(torch.from_numpy(output), torch.from_numpy(label))
    assert loss.item() == pytest.approx(np.log(7), rel=1e-6)


def boxes(*rows: tuple[float, ...]) -> np.ndarray:
    """Places with a box (x, y, width, height) and two probabilities."""
    return np.array(rows, np.float32).T[None]


LABEL = np.array([[[0, 0, 0, 10, 10], [1, 20, 20, 30, 30], [-1, -1, -1, -1, -1]]], np.float32)


@pytest.mark.parametrize(
    ("found", "score"),
    [
        (boxes((5, 5, 10, 10, 0.9, 0), (25, 25, 10, 10, 0, 0.8)), 1.0),
        (
            boxes((5, 5, 10, 10, 0.9, 0), (5, 5, 10, 10, 0.8, 0)),
            0.5,
        ),  # the double is dropped, one class is missed
        (
            boxes((5, 5, 10, 10, 0.5, 0), (40, 40, 9, 9, 0.9, 0), (25, 25, 10, 10, 0, 0.8)),
            0.75,
        ),  # a wrong one first
        (boxes((60, 60, 4, 4, 0.9, 0)), 0.0),
    ],
)
def test_the_precision_of_boxes_is_averaged_over_classes(found: np.ndarray, score: float) -> None:
    assert tasks.detection.score([(found, LABEL)]) == pytest.approx(score)
