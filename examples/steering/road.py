"""A road and what a camera in the car sees of it, and how the car moves: many cars at once, in numpy.

Right is positive: curvature in 1/m, the car's offset from the middle of its lane in m, its heading from the
road's direction in rad, the steering angle of the front wheels in degrees. The ground is flat; the road ahead
is integrated from its curvature, for small angles.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROWS, COLUMNS = 32, 64
Floats = NDArray[np.floating[Any]]

LANE = 1.75  # m from the middle of a lane to its edge
AHEAD = 60  # m of road that are seen
WHEELBASE, UNDERSTEER = 2.7, 0.003  # m, and the angle in rad that a curve takes for each m/s^2 aside
STEP_S = 0.1
ASIDE, GUST = 7.0, 0.6  # m/s^2 that the driver allows in a curve; m/s by which wind moves the car
_HORIZON, _FOCAL, _HEIGHT = 9, 36.0, 1.4  # row, pixels, m of the camera
_LAG_S = 0.15  # of the steering
_DISTANCE = (
    _HEIGHT * _FOCAL / (np.arange(_HORIZON + 1, ROWS) + 0.5 - _HORIZON)
)  # of each row below the horizon
_ASIDE = (np.arange(COLUMNS) + 0.5 - COLUMNS / 2) * _DISTANCE[:, None] / _FOCAL


@dataclass(frozen=True, eq=False)
class Roads:
    """Roads, one for each car.

    Attributes:
        curvature: (n, length), one value a metre.
        seeds: (n,), of textures, shadows, light and other cars.
    """

    curvature: Floats
    seeds: NDArray[np.int64]

    def ahead(self, place: Floats, metres: int = AHEAD) -> Floats:
        """(n, metres): the curvature from each car on."""
        at = place.astype(int)[:, None] + np.arange(metres)
        return np.take_along_axis(self.curvature, np.minimum(at, self.curvature.shape[1] - 1), 1)


@dataclass(frozen=True, eq=False)
class Cars:
    """Cars, (n,) each: place along the road in m, offset, heading, speed in m/s, angle of the wheels."""

    place: Floats
    offset: Floats
    heading: Floats
    speed: Floats
    angle: Floats


def made_roads(count: int, length: int, seed: int) -> Roads:
    """Straights and curves of 30 to 120 m, down to a radius of 45 m, with transitions of 20 m."""
    random = np.random.default_rng(seed)
    curvature = np.zeros((count, length + 140), np.float32)
    for own in curvature:
        place = 0
        while place < len(own):
            metres = int(random.integers(30, 120))
            own[place : place + metres] = random.choice([0, 1, -1, 1, -1]) * random.uniform(0.002, 0.022)
            place += metres
    total = np.cumsum(curvature, 1)
    smooth = (total[:, 20:] - total[:, :-20]) / 20
    return Roads(smooth.astype(np.float32), random.integers(0, 2**31, count))


def middle(roads: Roads, cars: Cars) -> Floats:
    """(n, AHEAD): how far to the right of the car's axis the lane's middle is, at each metre ahead."""
    bend = np.cumsum(np.cumsum(roads.ahead(cars.place), 1), 1)
    return np.asarray(bend - cars.offset[:, None] - cars.heading[:, None] * np.arange(AHEAD), np.float32)


def wanted_angle(roads: Roads, cars: Cars) -> Floats:
    """(n,): the steering that leads to the lane's middle (pure pursuit, Coulter 1992), up to 15 degrees.

    The faster the car, the farther the point it aims at, and the more it has to steer for the same curve: the
    image alone does not say how much.
    """
    aim = np.clip(3 + 0.6 * cars.speed, 6, AHEAD - 1).astype(int)
    aside = np.take_along_axis(middle(roads, cars), aim[:, None], 1)[:, 0]
    angle = (WHEELBASE + UNDERSTEER * cars.speed**2) * 2 * aside / aim**2
    return np.asarray(np.clip(np.degrees(angle), -15, 15), np.float32)


def moved(roads: Roads, cars: Cars, steering: Floats) -> Cars:
    """The cars a step later, when they are steered so; their speed follows the curve ahead."""
    angle = cars.angle + (steering - cars.angle) * (STEP_S / _LAG_S)
    turn = np.radians(angle) / (WHEELBASE + UNDERSTEER * cars.speed**2)
    sharpest = np.abs(roads.ahead(cars.place, 40)).max(1)
    allowed = np.clip(np.sqrt(ASIDE / np.maximum(sharpest, 1e-4)), 8, 25)
    gust = GUST * (2 * _hashed(roads.seeds, 6, np.floor(cars.place / 30)) - 1)
    return Cars(
        cars.place + cars.speed * STEP_S,
        cars.offset + (cars.speed * cars.heading + gust) * STEP_S,
        cars.heading + cars.speed * (turn - roads.ahead(cars.place, 1)[:, 0]) * STEP_S,
        cars.speed + np.clip(allowed - cars.speed, -4 * STEP_S, 2 * STEP_S),
        angle,
    )


def put_back(cars: Cars, where: NDArray[np.bool_]) -> Cars:
    """These cars in the middle of their lane again, straight."""
    straight = {name: np.where(where, 0.0, getattr(cars, name)) for name in ("offset", "heading", "angle")}
    return replace(cars, **straight)


def seen(roads: Roads, cars: Cars) -> NDArray[np.uint8]:
    """uint8[n, 3, ROWS, COLUMNS]: the camera's image of each car."""
    count = len(cars.place)
    light = 0.55 + 0.45 * _hashed(roads.seeds, 1)[:, None, None, None]
    images = np.empty((count, 3, ROWS, COLUMNS), np.float32)
    images[:] = np.array([150, 180, 220], np.float32)[:, None, None]  # sky
    images[:, :, _HORIZON + 1 :] = _ground(roads, cars)
    _other_cars(images, roads, cars)
    noise = np.random.default_rng(int(cars.place.sum() * 1000) & 0xFFFFFFFF).normal(0, 5, images.shape)
    return np.clip(images * light + noise, 0, 255).astype(np.uint8)


def _ground(roads: Roads, cars: Cars) -> Floats:
    """(n, 3, rows below the horizon, COLUMNS): grass, asphalt, lines and the shadows of trees."""
    centre = middle(roads, cars)[:, np.minimum(_DISTANCE, AHEAD - 1).astype(int)]
    aside = _ASIDE - centre[..., None]  # of the middle of the own lane; the other one is at the left
    along = (cars.place[:, None] + _DISTANCE)[..., None]
    seeds = roads.seeds[:, None, None]
    grain = 30 * _hashed(seeds, np.floor(along * 2), np.floor(aside * 2))
    on_road = (aside > -3 * LANE) & (aside < LANE)
    red, green, blue = (np.where(on_road, 90.0, grass) + grain for grass in (70, 110, 50))
    thick = np.maximum(0.12, 0.35 * _DISTANCE / _FOCAL)[:, None]
    dashed = (np.abs(aside + LANE) < thick) & (along % 12 < 6)
    edge = (np.abs(aside - LANE) < thick) | (np.abs(aside + 3 * LANE) < thick)
    worn = _hashed(seeds, np.floor(along / 25), 7) < 0.25  # stretches where the edge line is worn off
    line = dashed | (edge & ~worn)
    shaded = _hashed(seeds, np.floor(along / 4), np.floor(aside / 3)) < 0.3 * _hashed(seeds, 3)
    colours = np.stack([np.where(line, 230.0, colour) for colour in (red, green, blue)], 1)
    return np.asarray(colours * np.where(shaded, 0.45, 1.0)[:, None], np.float32)


def _other_cars(images: Floats, roads: Roads, cars: Cars) -> None:
    """Draws oncoming cars, which hide lines: one in every stretch of 70 m, on three roads out of five."""
    centre = middle(roads, cars)
    for at in np.flatnonzero(_hashed(roads.seeds, 4) < 0.6):
        distance = int(70 - (cars.place[at] * 2) % 70)  # it comes as fast as the car goes
        if 5 <= distance < AHEAD:
            scale = _FOCAL / distance
            x = COLUMNS / 2 + (centre[at, distance] - 2 * LANE) * scale
            bottom = _HORIZON + _HEIGHT * scale
            rows = slice(max(0, round(bottom - 1.5 * scale)), max(0, round(bottom)))
            columns = slice(max(0, round(x - 0.9 * scale)), max(0, round(x + 0.9 * scale)))
            colour = 220 * _hashed(roads.seeds[at : at + 1], 5, np.arange(3))
            images[at, :, rows, columns] = colour[:, None, None]


def _hashed(*keys: NDArray[np.generic] | np.generic | int) -> Floats:
    """Numbers from 0 to 1 that depend on whole numbers alone."""
    mixed = np.zeros((), np.int64)
    for key in keys:
        mixed = (mixed ^ np.asarray(key).astype(np.int64)) * 0x5851F42D4C957F2D
        mixed = mixed ^ (mixed >> 29)
    return np.asarray(((mixed >> 20) & 0xFFFF) / 65535.0, np.float32)
