"""Lets the networks of a run drive: the error of single images is not the behaviour of the car.

    python examples/steering/drive.py RUN [--roads 20] [--picture FILE.png]

Each network, and the driver whom they imitate, drives the same roads for a minute each, in gusts of wind.
A car is in its lane while all of it is between the lines; one that is more than 2.5 m off is put back
into the middle. The picture has a row for each driver: what the camera saw a second before a car first
left its lane.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import road
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from png import tiled, write_png
from steering import Steering, inputs_of

from deadweight.pipeline.training.predict import session_predict
from deadweight.pipeline.workload import Predict
from deadweight.targets.runtimes.open import open_session

MINUTE = round(60 / road.STEP_S)
IN_LANE = road.LANE - 0.9  # m from the middle, for half a car's width
FAR_OFF = 2.5
SEED = 10_000_000  # of roads that no split has
Driver = Callable[[road.Roads, road.Cars], road.Floats]
"""Gives the steering of each car, in degrees."""


@dataclass(frozen=True, eq=False)
class Drive:
    """What became of the cars.

    Attributes:
        offsets: (steps, n), m from the middle of the lane.
        departures: how often a car left its lane.
        failures: uint8[3, 32, 64] each, a second before a car first left its lane.
    """

    offsets: road.Floats
    departures: int
    failures: list[NDArray[np.uint8]]

    @property
    def in_lane(self) -> float:
        """The share of the time."""
        return float((np.abs(self.offsets) <= IN_LANE).mean())


def drive(driver: Driver, *, count: int, steps: int = MINUTE) -> Drive:
    """Drives so many roads at once."""
    roads = road.made_roads(count, 25 * steps // 10 + 100, SEED)
    still = np.zeros(count, np.float32)
    passed = [road.Cars(still, still, still, np.full(count, 12, np.float32), still)]
    offsets = []
    for _ in range(steps):
        cars = road.moved(roads, passed[-1], driver(roads, passed[-1]))
        offsets.append(cars.offset)
        passed.append(road.put_back(cars, np.abs(cars.offset) > FAR_OFF))
    away = np.abs(np.array(offsets)) > IN_LANE
    left = away & ~np.concatenate([np.zeros((1, count), bool), away[:-1]])
    first = [(int(own.argmax()), car) for car, own in enumerate(left.T) if own.any()]
    before = round(1 / road.STEP_S)
    failures = [road.seen(roads, passed[max(0, step - before)])[car] for step, car in first]
    return Drive(np.array(offsets), int(left.sum()), failures)


def driver_of(predict: Predict) -> Driver:
    """A network at the wheel."""
    return lambda roads, cars: predict(inputs_of(roads, cars))["output"][:, 0]


def main() -> None:
    """Prints the table and writes the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--roads", type=int, default=20)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    paths = sorted((given.run / "networks").glob("*.onnx"), key=lambda path: path.stat().st_mtime)
    networks = {path.stem: session_predict(open_session(path)) for path in paths}
    drivers = {"who knows the road": road.wanted_angle, **{n: driver_of(p) for n, p in networks.items()}}
    workload, tiles = Steering(), []
    print("| driver | error on single images | from the middle | in lane | departures |")
    print("| --- | --- | --- | --- | --- |")
    for name, driver in drivers.items():
        found = drive(driver, count=given.roads)
        error = workload.score(networks[name], workload.batches("test")) if name in networks else 0.0
        middle_m = float(np.abs(found.offsets).mean())
        cells = (f"{error:.2f} degrees", f"{middle_m:.2f} m", f"{found.in_lane:.1%}", str(found.departures))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        row = [one.transpose(1, 2, 0).repeat(3, 0).repeat(3, 1) for one in found.failures[:6]]
        white = np.full((3 * road.ROWS, 3 * road.COLUMNS, 3), 255, np.uint8)
        tiles += row + [white] * (6 - len(row))
    if given.picture:
        write_png(given.picture, tiled(tiles, columns=6))


if __name__ == "__main__":
    main()
