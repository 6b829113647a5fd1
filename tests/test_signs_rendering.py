"""The data of the signs example: equal bytes with every Python and numpy, and classes that differ."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from faces import CLASSES, face, plate
from rendering import DIFFICULTY, SIDE, Draws, signs


def test_the_same_seed_draws_the_same_bytes_everywhere() -> None:
    images, _ = signs(80, 3)
    # The same with Python 3.10 to 3.13 and numpy 2.2 to 2.5.
    known = "b3caee3c85ac21ed4d34163a30b9a47345db61c7116e91826e11a9b589e5a462"
    assert hashlib.sha256(images.tobytes()).hexdigest() == known
    assert not np.array_equal(images, signs(80, 4)[0])


def test_each_class_comes_equally_often_and_every_face_is_another() -> None:
    images, classes = signs(80, 3)
    assert images.shape == (80, 3, SIDE, SIDE)
    assert np.bincount(classes).tolist() == [2] * len(CLASSES)
    assert len({face(*one).tobytes() for one in CLASSES}) == len(CLASSES)


def test_a_plate_is_of_the_class_of_its_last_digit_whatever_else_is_on_it() -> None:
    assert np.array_equal(face("plate", "7"), plate("AB17"))
    assert not np.array_equal(plate("AB17"), plate("AB71"))


def test_without_difficulty_an_image_shows_the_face_itself() -> None:
    image = signs(1, 5, 0)[0][0].transpose(1, 2, 0).astype(int)
    small = face(*CLASSES[0])[1::3, 1::3].astype(int)
    inside = small[4:-4, 4:-4, 3] == 1
    apart = np.abs(image[4:-4, 4:-4] - small[4:-4, 4:-4, :3]).max(2)
    assert np.median(apart[inside]) < 30


def test_a_harder_setting_is_farther_from_the_face() -> None:
    clear = signs(40, 6, 0)[0].astype(int)
    apart = [np.abs(signs(40, 6, level)[0] - clear).mean() for level in (3, DIFFICULTY, 9)]
    assert apart == sorted(apart)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 9), (7, 7)])
def test_draws_are_between_their_bounds_and_reach_them(low: int, high: int) -> None:
    drawn = Draws(1, 2).some(low, high, 40, 50)
    assert drawn.shape == (40, 50)
    assert (drawn.min(), drawn.max()) == (low, high)
    assert abs(drawn.mean() - (low + high) / 2) < 0.1 * max(1, high - low)
