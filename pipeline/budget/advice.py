"""What a table says of a network that nobody need prune: free widths, cliffs, layers that do not pay.

A width is free up to the next cliff: the widest that takes no longer than the noise of the times can tell.
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass

import numpy as np

from ...export.onnx_graph.resize import Widths
from .latency import Latency
from .solve import OutOfReachError, Solved, Sum, solve
from .table import SegmentTable


@dataclass(frozen=True)
class Curve:
    """The network's time over the width of one group, the others as they are.

    Attributes:
        points: widths, ascending, with seconds of the network.
        free: the most units for the same time; `cliff` is the next width beyond, None if there is none.
        saved_s: what the least width saves; `pays` says whether that is more than noise.
    """

    group: str
    width: int
    points: tuple[tuple[int, float], ...]
    free: int
    cliff: tuple[int, float] | None
    saved_s: float
    pays: bool


def curves(latency: Latency, widths: Widths) -> list[Curve]:
    """One curve for each group."""
    table, found = latency.table, list[Curve]()
    now_s = latency.linear(widths)
    noise_s = float(np.median(table.noise())) * now_s
    for name, own in table.levels.items():
        points = tuple((width, latency.linear({**widths, name: width})) for width in own)
        wider = [(width, seconds) for width, seconds in points if width > widths[name]]
        free = widths[name]
        for width, seconds in wider:
            if seconds > now_s + noise_s:
                break
            free = width
        cliff = next((point for point in wider if point[0] > free), None)
        saved_s = max(0.0, now_s - points[0][1])
        found.append(Curve(name, widths[name], points, free, cliff, saved_s, saved_s > noise_s))
    return found


def steps(table: SegmentTable) -> dict[str, int]:
    """By group, the step in which its segments' time goes up; 1 where the widths of the table show none.

    Over a width the time is a staircase; of those with steps of a power of two the one that fits best counts.
    """
    found = {}
    for name, own in table.levels.items():
        mean = np.zeros(len(own))
        for at, one in enumerate(table.segments):
            if name in one.groups:
                place = one.groups.index(name)
                for level, width in enumerate(own):
                    others = [grid if each != place else (width,) for each, grid in enumerate(one.grid)]
                    mean[level] += np.mean([table.part(at, widths) for widths in itertools.product(*others)])
        finest = min((b - a for a, b in itertools.pairwise(own)), default=1)
        left: dict[int, float] = {}
        for step in (1, 2, 4, 8, 16, 32, 64, 128):
            stairs = np.ceil(np.array(own) / step)
            if len(set(stairs.tolist())) > 2:
                design = np.c_[np.ones(len(own)), stairs]
                left[step] = float(
                    ((design @ np.linalg.lstsq(design, mean, rcond=None)[0] - mean) ** 2).sum()
                )
        best = min(left, key=left.__getitem__, default=1)
        found[name] = best if best >= finest else 1
    return found


def front(
    latency: Latency, damage: Sum, *, count: int = 16, most_s: float | None = None
) -> list[tuple[float, Solved]]:
    """Plans of the least damage, from the fastest to the whole network: the time of each, predicted."""
    table, seconds = latency.table, latency.sum()
    least = solve(table.levels, seconds, time_limit_s=10)
    most = seconds.at(table.dense) if most_s is None else most_s
    found: list[tuple[float, Solved]] = []
    for limit in np.linspace(least.value * 1.001, most, count):
        with contextlib.suppress(OutOfReachError):
            plan = solve(table.levels, damage, [(seconds, float(limit))], time_limit_s=10)
            if not found or plan.value < found[-1][1].value:
                found.append((float(latency.predicted([plan.widths])[0]), plan))
    return found


def sentences(latency: Latency, widths: Widths) -> list[str]:
    """What the table says of a network, the most useful first."""
    found = curves(latency, widths)
    table, noise = latency.table, float(np.median(latency.table.noise()))
    now_s = float(latency.predicted([widths])[0])
    said = [
        f"{one.group} is {one.width} wide and may be {one.free} in the same time"
        + (
            f"; at {one.cliff[0]} it takes {_ms(one.cliff[1] - latency.linear(widths))} more"
            if one.cliff
            else ""
        )
        for one in found
        if one.free > one.width
    ]
    if idle := [one.group for one in found if not one.pays]:
        said.append(f"narrowing these alone saves no more than the noise of {noise:.1%}: {', '.join(idle)}")
    best = sorted((one for one in found if one.pays), key=lambda one: -one.saved_s)[:3]
    for one in best:
        least = one.points[0][0]
        said.append(
            f"{one.group} at {least} instead of {one.width} saves {_ms(one.saved_s)}, "
            f"{one.saved_s / now_s:.0%}"
        )
    found_steps = {name: step for name, step in steps(table).items() if step > 1}
    if found_steps:
        said.append("steps of the time: " + ", ".join(f"{name} {step}" for name, step in found_steps.items()))
    if table.damage:
        said += _next_costs(latency, widths)
    return said


def _next_costs(latency: Latency, widths: Widths) -> list[str]:
    """What the next tenth of the time costs, by the plan of least damage."""
    damage, seconds = latency.table.damages(), latency.sum()
    now_s, lost = seconds.at(widths), damage.at(widths)
    said: list[str] = []
    for share in (0.9, 0.8, 0.6):
        try:
            plan = solve(latency.table.levels, damage, [(seconds, now_s * share)], time_limit_s=10)
        except OutOfReachError:
            break
        saved = now_s - seconds.at(plan.widths)
        said.append(
            f"{_ms(saved)} less ({saved / now_s:.0%}) costs {plan.value - lost:+.4g} of the validation loss, "
            f"not tuned: {(plan.value - lost) / (saved * 1e3):.3g} for each millisecond"
        )
    return [*dict.fromkeys(said)] or ["no plan is faster by a tenth"]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
