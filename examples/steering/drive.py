"""Lets the networks of a run drive: the error of single images is not the behaviour of the car.

    python examples/steering/drive.py RUN [--roads 20] [--picture FILE.png]

Each network drives the same roads for a minute each. A car is in its lane while all of it is between the
lines; one that is more than 2.5 m off is put back into the middle. The picture has a row for each network:
what the camera saw a second before a car first left its lane.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import road
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from png import tiled, write_png
from steering import MIDDLE, SPREAD, Steering, inputs_of

from deadweight.pipeline.training.predict import session_predict
from deadweight.pipeline.workload import Predict
from deadweight.targets.runtimes.open import open_session

MINUTE = round(60 / road.STEP_S)
IN_LANE = road.LANE - 0.9  # m from the middle, for half a car's width
FAR_OFF = 2.5
SEED = 10_000_000  # of roads that no split has


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


def drive(driver: Predict, *, count: int, steps: int = MINUTE) -> Drive:
    """Drives so many roads at once; the driver's "output" is the steering of each car, (n, 1), in degrees."""
    roads = road.made_roads(count, 25 * steps // 10 + 100, SEED)
    still = np.zeros(count, np.float32)
    cars = road.Cars(still, still, still, np.full(count, 12, np.float32), still)
    offsets, images = [], []
    for _ in range(steps):
        inputs = inputs_of(roads, cars)
        images.append((inputs["image"] * SPREAD + MIDDLE).astype(np.uint8))
        cars = road.moved(roads, cars, driver(inputs)["output"][:, 0])
        offsets.append(cars.offset)
        cars = road.put_back(cars, np.abs(cars.offset) > FAR_OFF)
    away = np.abs(np.array(offsets)) > IN_LANE
    left = away & ~np.concatenate([np.zeros((1, count), bool), away[:-1]])
    first = [(int(own.argmax()), car) for car, own in enumerate(left.T) if own.any()]
    before = round(1 / road.STEP_S)
    failures = [images[max(0, step - before)][car] for step, car in first]
    return Drive(np.array(offsets), int(left.sum()), failures)


def main() -> None:
    """Prints the table and writes the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--roads", type=int, default=20)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    workload, tiles = Steering(), []
    print("| network | error on single images | in lane | departures |\n| --- | --- | --- | --- |")
    for path in sorted((given.run / "networks").glob("*.onnx"), key=lambda path: path.stat().st_mtime):
        driver = session_predict(open_session(path))
        error = workload.score(driver, workload.batches("test"))
        found = drive(driver, count=given.roads)
        print(f"| {path.stem} | {error:.2f} degrees | {found.in_lane:.1%} | {found.departures} |", flush=True)
        row = [one.transpose(1, 2, 0).repeat(3, 0).repeat(3, 1) for one in found.failures[:6]]
        tiles += row + [np.full((3 * road.ROWS, 3 * road.COLUMNS, 3), 255, np.uint8)] * (6 - len(row))
    if given.picture and tiles:
        write_png(given.picture, tiled(tiles, columns=6))


if __name__ == "__main__":
    main()
