"""The faces of the signs and plates, drawn with strokes in integer arithmetic, so that no font is needed.

A face is a square of FACE pixels: red, green, blue, and 1 where the sign is; all are 0 beside it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

FACE = 96
Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

RED, WHITE, BLACK, GREY, YELLOW = (
    (190, 30, 40),
    (235, 235, 235),
    (20, 20, 20),
    (110, 110, 110),
    (240, 200, 60),
)
GLYPHS = {  # lines through points (column 0 to 4, row 0 to 6), parted by bars
    "0": "10 30 41 45 36 16 05 01 10",
    "1": "01 20 26",
    "2": "01 10 30 41 42 06 46",
    "3": "00 40 22 32 43 45 36 16 05",
    "4": "36 30 04 44",
    "5": "40 00 03 32 43 45 36 16 05",
    "6": "40 10 03 05 16 36 45 44 33 13 04",
    "7": "00 40 16",
    "8": "13 02 01 10 30 41 42 33 13 04 05 16 36 45 44 33",
    "9": "06 36 43 41 30 10 01 02 13 33 42",
    "A": "06 20 46|14 34",
    "B": "00 06 36 45 44 33 03|00 30 41 42 33",
    "E": "40 00 06 46|03 33",
    "H": "00 06|40 46|03 43",
    "K": "00 06|40 03 46",
    "T": "00 40|20 26",
    "bend left": "36 33 00",
    "bend right": "16 13 40",
    "double bend left": "36 34 12 10",
    "double bend right": "16 14 32 30",
    "crossing": "20 26|03 43",
    "junction": "26 22|02 42",
}
_NUMBERS = ("20", "30", "40", "50", "60", "70", "80", "90", "100", "110", "120", "130")
CLASSES = (
    *(("limit", number) for number in _NUMBERS),
    *(("end", number) for number in _NUMBERS),
    *(("warning", name) for name in GLYPHS if len(name) > 1),
    *(("plate", digit) for digit in "0123456789"),
)
"""The shape of a sign and what is on it; of a plate the last digit, the others are drawn at random."""

_DOWN, _RIGHT = np.mgrid[0:FACE, 0:FACE] * 2 + 1  # the centres of pixels, in half pixels


def face(shape: str, text: str) -> Pixels:
    """uint8[FACE, FACE, 4]: one sign."""
    made = np.zeros((FACE, FACE, 4), np.uint8)
    _SHAPES[shape](made, text)
    return made


def plate(characters: str, *, yellow: bool = False) -> Pixels:
    """uint8[FACE, FACE, 4]: a plate with two lines of two characters."""
    made = np.zeros((FACE, FACE, 4), np.uint8)
    _paint(made, _box(6, 8), BLACK)
    _paint(made, _box(9, 11), YELLOW if yellow else WHITE)
    _write(made, characters[:2], width=23, height=26, middle=30)
    _write(made, characters[2:], width=23, height=26, middle=66)
    return made


def _limit(made: Pixels, text: str) -> None:
    _paint(made, _disc(46), RED)
    _paint(made, _disc(37), WHITE)
    _write_number(made, text, BLACK)


def _end(made: Pixels, text: str) -> None:
    _paint(made, _disc(46), GREY)
    _paint(made, _disc(43), WHITE)
    _write_number(made, text, GREY)
    for shift in (-8, 0, 8):
        _paint(made, _disc(43) & _line(72 + shift, 16 + shift, 24 + shift, 80 + shift, 1), BLACK)


def _warning(made: Pixels, text: str) -> None:
    for inset, colour in ((0, RED), (10, WHITE)):  # a triangle: 2 down for 1 aside
        aside = abs(_RIGHT - FACE) * 2
        _paint(made, (aside + 6 + 4 * inset <= _DOWN) & (2 * FACE - 12 - 2 * inset >= _DOWN), colour)
    _write(made, [text], width=22, height=30, middle=62)


def _plate(made: Pixels, text: str) -> None:
    made[:] = plate(f"AB1{text}")


_SHAPES: dict[str, Callable[[Pixels, str], None]] = {
    "limit": _limit,
    "end": _end,
    "warning": _warning,
    "plate": _plate,
}


def _write_number(made: Pixels, text: str, colour: tuple[int, int, int]) -> None:
    _write(made, text, width=20 if len(text) == 2 else 13, height=32, middle=FACE // 2, colour=colour)


def _write(
    made: Pixels,
    glyphs: Sequence[str],
    *,
    width: int,
    height: int,
    middle: int,
    colour: tuple[int, int, int] = BLACK,
) -> None:
    """Writes glyphs of this size beside each other, centred across, around the row `middle`."""
    gap = 9 if len(glyphs) < 3 else 7
    left = (FACE - len(glyphs) * (width + gap) + gap) // 2
    for at, glyph in enumerate(glyphs):
        _paint(made, _glyph(glyph, left + at * (width + gap), middle - height // 2, width, height), colour)


@functools.cache
def _glyph(name: str, left: int, top: int, width: int, height: int) -> Mask:
    drawn = np.zeros((FACE, FACE), bool)
    for line in GLYPHS[name].split("|"):
        points = [(left + int(p[0]) * width // 4, top + int(p[1]) * height // 6) for p in line.split()]
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            drawn |= _line(x0, y0, x1, y1, 3)
    return drawn


def _line(x0: int, y0: int, x1: int, y1: int, radius: int) -> Mask:
    """The pixels within `radius` of the line between two points."""
    right, down, across, along = _RIGHT - 2 * x0, _DOWN - 2 * y0, 2 * (x1 - x0), 2 * (y1 - y0)
    length = across**2 + along**2  # squared
    share = np.clip(right * across + down * along, 0, length)  # of the nearest point, times the length
    away = (right * length - share * across) ** 2 + (down * length - share * along) ** 2
    return np.asarray(away <= (2 * radius * length) ** 2)


def _disc(radius: int) -> Mask:
    return np.asarray((2 * radius) ** 2 >= (_RIGHT - FACE) ** 2 + (_DOWN - FACE) ** 2)


def _box(aside: int, above: int) -> Mask:
    """All but so many pixels at the sides, above and below."""
    inner = np.zeros((FACE, FACE), bool)
    inner[above:-above, aside:-aside] = True
    return inner


def _paint(made: Pixels, where: Mask, colour: tuple[int, int, int]) -> None:
    made[where] = (*colour, 1)
