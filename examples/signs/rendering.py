"""Images of signs and plates as a camera in a moving car sees them, from integer arithmetic alone.

The same seed gives the same bytes with every Python, numpy and processor: random numbers come from a counter,
and nothing is rounded but by integer division. The difficulty, 0 to 10, scales how far the sign is turned and
tilted, how small it is, how fast the car moves, and how much dirt, haze, night and noise there is.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from faces import CLASSES, FACE, GLYPHS, Pixels, face, plate
from numpy.typing import NDArray

SIDE = 32
DIFFICULTY = 5
"""The setting at which networks are compared, chosen before any of them was pruned."""

_FINE = FACE // SIDE  # samples of a pixel along each axis
_DOWN, _RIGHT = np.mgrid[0:FACE, 0:FACE].astype(np.int32) - FACE // 2
_WHEN = np.tile(np.array([[0, 5, 7], [4, 8, 2], [6, 1, 3]], np.int32) - 4, (SIDE, SIDE))
"""When each of a pixel's samples is taken, in eighths of the time that the shutter is open."""
_LETTERS = [name for name in GLYPHS if name.isalpha() and len(name) == 1]
Integers = NDArray[np.int64]


class Draws:
    """Random integers by a counter (splitmix64, Steele et al. 2014); a library's generator may change."""

    def __init__(self, seed: int, sample: int) -> None:
        self._at = (seed << 44) + (sample << 20)  # a sample takes fewer than 2^20

    def some(self, low: int, high: int, *shape: int) -> Integers:
        """int64[shape] between `low` and `high`, both included."""
        count = math.prod(shape)
        mixed = np.arange(self._at, self._at + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        self._at += count
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(31)
        return (low + (mixed % np.uint64(high - low + 1)).astype(np.int64)).reshape(shape)

    def one(self, low: int, high: int) -> int:
        """One integer between `low` and `high`, both included."""
        return int(self.some(low, high, 1)[0])


@functools.cache
def signs(count: int, seed: int, difficulty: int = DIFFICULTY) -> tuple[Pixels, Integers]:
    """Images (count, 3, 32, 32) and classes (count,), each class as often as the others."""
    classes = np.arange(count) % len(CLASSES)
    images = np.empty((count, 3, SIDE, SIDE), np.uint8)
    for sample, label in enumerate(classes):
        images[sample] = _image(int(label), Draws(seed, sample), difficulty).transpose(2, 0, 1)
    return images, classes


def _image(label: int, draws: Draws, difficulty: int) -> Integers:
    """int64[32, 32, 3]: one sign before a background, seen through the camera."""
    seen = _placed(_face(label, draws), _background(draws), draws, difficulty)
    for _ in range(draws.one(0, difficulty // 2)):
        _soil(seen, draws, difficulty)
    seen += (200 - seen) * draws.one(0, 10 * difficulty) // 256  # haze
    if draws.one(1, 100) <= 3 * difficulty:  # night
        seen = seen * draws.one(50, 100) // 256
    noise = draws.some(-2 * difficulty, 2 * difficulty, 2, SIDE, SIDE, 3).sum(0)
    return np.asarray(np.clip(seen + noise, 0, 255))


def _face(label: int, draws: Draws) -> Pixels:
    shape, text = CLASSES[label]
    if shape != "plate":
        return _fixed(label)
    letters = [_LETTERS[at] for at in draws.some(0, len(_LETTERS) - 1, 2)]
    return plate(f"{''.join(letters)}{draws.one(0, 9)}{text}", yellow=draws.one(0, 1) == 1)


@functools.cache
def _fixed(label: int) -> Pixels:
    return face(*CLASSES[label])


def _background(draws: Draws) -> Integers:
    """int64[32, 32, 3]: smooth colours, with boxes for houses and posts."""
    across = np.clip(SIDE - 1 - abs(3 * np.arange(SIDE)[:, None] - (SIDE - 1) * np.arange(4)), 0, None)
    grid = draws.some(30, 220, 1, 4, 4) + draws.some(-25, 25, 3, 4, 4)
    made = (across @ grid @ across.T // (SIDE - 1) ** 2).transpose(1, 2, 0)
    for _ in range(3):
        x, y, width, height = draws.some(0, SIDE - 4, 4).tolist()
        made[y : y + height // 2 + 2, x : x + width // 2 + 2] = draws.some(20, 230, 3)
    return np.asarray(made)


def _placed(sign: Pixels, background: Integers, draws: Draws, difficulty: int) -> Integers:
    """The sign turned, tilted and moving before the background: the mean of each pixel's samples."""
    turn, shear = draws.some(-70 * difficulty, 70 * difficulty, 2).tolist()
    tilt_x, tilt_y = draws.some(-3 * difficulty, 3 * difficulty, 2).tolist()
    shift_x, shift_y = draws.some(-difficulty, difficulty, 2).tolist()
    speed_x, speed_y = draws.some(-2 * difficulty, 2 * difficulty, 2).tolist()
    size = draws.one(4200, 4200 + 300 * difficulty)  # of the image in the sign's pixels, times 4096 / 96
    narrow = size + draws.one(0, 150 * difficulty)
    x = _RIGHT - shift_x - speed_x * _WHEN // 8
    y = _DOWN - shift_y - speed_y * _WHEN // 8
    depth = 4096 + tilt_x * x + tilt_y * y
    column = FACE // 2 + (narrow * x + turn * y) // depth
    row = FACE // 2 + (size * y + (shear - turn) * x) // depth
    inside = (column >= 0) & (column < FACE) & (row >= 0) & (row < FACE)
    taken = sign.reshape(-1, 4)[
        np.where(inside, row * FACE + column, 0)
    ]  # the first pixel is beside the sign
    fine = range(_FINE)
    total = np.add.reduce([taken[i::_FINE, j::_FINE] for i in fine for j in fine], dtype=np.int64)
    return np.asarray((total[..., :3] + background * (_FINE**2 - total[..., 3:])) // _FINE**2)


def _soil(seen: Integers, draws: Draws, difficulty: int) -> None:
    """A speck of dirt on the camera."""
    x, y = draws.some(0, SIDE - 1, 2)
    radius = draws.one(1, 1 + difficulty // 2)
    down, right = np.mgrid[0:SIDE, 0:SIDE]
    where = (right - x) ** 2 + (down - y) ** 2 <= radius**2
    seen[where] += (np.array([70, 60, 50]) - seen[where]) * draws.one(120, 240) // 256
