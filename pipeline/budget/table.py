"""The table of segment times: every segment of a network at the widths of its groups, and whole networks.

Layers timed alone and summed are far off: each alone pays for a call and for the layout of its input, and has
the cache for itself. So the segments only order; `latency` fits one weight a segment to whole networks. Equal
segments are timed once, whatever their names. A table is one JSON file, complete or not: `measured` goes on
where it stopped.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...export.onnx_graph.graph import OnnxModel
from ...export.onnx_graph.resize import Widths
from ...export.onnx_graph.segments import segments
from ...targets.artifact import read_json, write_json
from ...targets.errors import ArtifactError, RecipeError
from ...targets.plain import from_plain, plain
from ...targets.target import Target
from .solve import Levels, Sum, Term
from .timer import Conditions

Times = np.ndarray[Any, np.dtype[np.float64]]
SCHEMA = 1
EMPTY, DENSE = "empty", "dense"
"""Entries of `seconds` that are no segments: a call that computes nothing, and the whole network."""
_CURE = "It was edited or damaged: make it again by `deadweight table`."


@dataclass(frozen=True)
class TimedSegment:
    """A segment: the groups whose widths change it, and the key of its entry by their widths, as in "8/16".

    `grid` has the widths of each of these groups at which it is timed; between them it is interpolated. The
    key is empty where the segment is not there.
    """

    name: str
    groups: tuple[str, ...]
    grid: tuple[tuple[int, ...], ...]
    keys: Mapping[str, str]


@dataclass(frozen=True)
class BoardRatio:
    """A board of several against the first, by the same files on both (A/A).

    Attributes:
        ratio: of the whole network's times.
        apart: how far single layers are off that, at most, as a share; `noise` is what the noise explains.
    """

    name: str
    ratio: float
    apart: float
    noise: float


@dataclass(frozen=True, eq=False)
class SegmentTable:
    """Times of segments and of whole networks.

    Attributes:
        network: a hash of the network's operators and sizes.
        conditions: what the times hold for; `protocol` is how they were measured.
        choices: each group with the widths it may have, ascending.
        dense: the widths of the network itself, by group.
        seconds: by key of a segment; "empty" is a call that computes nothing.
        weights: by key, the bytes of the segment's constants.
        networks: seconds of networks, by their widths in the order of the groups.
        again: the same for those that are timed twice: they are held out of the fit.
        repeated: by key, the second times of some segments.
        turns: how often widths between others were tried, see `grids`.
        damage: by group and width, the rise of the validation loss, where it is known.
        boards: where several made it, each but the first; times are as if the first had timed all.
        timed_on: the board of each time then, by the names of the fields above and the keys there.
    """

    network: str
    conditions: Conditions
    protocol: Mapping[str, Any]
    choices: tuple[tuple[str, tuple[int, ...]], ...]
    dense: Mapping[str, int]
    segments: tuple[TimedSegment, ...]
    weights: Mapping[str, int]
    seconds: Mapping[str, float] = field(default_factory=dict)
    networks: Mapping[str, float] = field(default_factory=dict)
    again: Mapping[str, float] = field(default_factory=dict)
    damage: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    repeated: Mapping[str, float] = field(default_factory=dict)
    turns: int = 0
    boards: tuple[BoardRatio, ...] = ()
    timed_on: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def levels(self) -> Levels:
        return dict(self.choices)

    def part(self, at: int, widths: Sequence[int]) -> float:
        """Seconds of a segment at the widths of its groups, without a call's own time or the noise."""
        return self._between(at, widths, self._parts[at])

    @functools.cached_property
    def _parts(self) -> list[dict[str, float]]:
        """By segment and widths, its seconds, smooth: a plan of least time would choose the noise."""
        found, empty = list[dict[str, float]](), self.seconds[EMPTY]
        for one in self.segments:
            times = {key: self.seconds[entry] for key, entry in one.keys.items() if entry}
            if len(times) == len(one.keys) and len(one.grid) > 1:
                shape, by_key = [len(own) for own in one.grid], [*map(key_of, itertools.product(*one.grid))]
                some = np.array([times[key] for key in by_key]).reshape(shape)
                times = dict(zip(by_key, smooth(some, self.entry_noise).ravel().tolist(), strict=True))
            found.append({key: max(seconds - empty, 0.0) for key, seconds in times.items()})
        return found

    @property
    def entry_noise(self) -> float:
        """The standard deviation of a segment's time, as a share, by those timed twice; 0 without them."""
        ratio = np.log([second / self.seconds[key] for key, second in self.repeated.items()] or [1.0])
        return float(1.4826 * np.median(np.abs(ratio - np.median(ratio))) / math.sqrt(2))

    def _between(self, at: int, widths: Sequence[int], values: Mapping[str, float]) -> float:
        corners = [_corners(grid, width) for grid, width in zip(self.segments[at].grid, widths, strict=True)]
        return sum(
            math.prod(share for _, share in corner) * values.get(key_of([width for width, _ in corner]), 0.0)
            for corner in itertools.product(*corners)
        )

    def parts(self, widths: Widths) -> np.ndarray[Any, np.dtype[np.float64]]:
        """float64[segments]: seconds of each segment of a network, without a call's own time."""
        of_each = enumerate(one.groups for one in self.segments)
        return np.array([self.part(at, [widths[name] for name in own]) for at, own in of_each])

    def file_bytes(self) -> Sum:
        """The bytes of the constants in the file."""
        terms = []
        for at, one in enumerate(self.segments):
            own = {key: float(self.weights[entry]) for key, entry in one.keys.items() if entry}
            terms.append(Term(one.groups, {w: self._between(at, w, own) for w in self.combinations(at)}))
        return Sum("file_bytes", terms)

    def telling(self, widths: Widths) -> dict[str, int]:
        """The widths that say which network it is: those inside of a dropped block do not."""
        seen = {name for name, own in self.levels.items() if own[0] == 0}
        for one in self.segments:
            ends = [
                _corners(grid, widths[name])[0][0] for name, grid in zip(one.groups, one.grid, strict=True)
            ]
            seen |= {*one.groups} if one.keys[key_of(ends)] else set()
        return {name: width for name, width in widths.items() if name in seen}

    def combinations(self, at: int) -> list[tuple[int, ...]]:
        """All widths of a segment's groups."""
        levels = self.levels
        return [*itertools.product(*(levels[name] for name in self.segments[at].groups))]

    def damages(self) -> Sum:
        """The sum of the groups' damage; a RecipeError where it is not known."""
        if set(self.damage) != set(self.levels):
            raise RecipeError(
                "The table has no damage: it was made from the network alone.",
                "The stage budget measures it; its run has a table with both.",
            )
        return Sum(
            "damage",
            [
                Term((name,), {(int(width),): value for width, value in own.items()})
                for name, own in self.damage.items()
            ],
        )

    def drawn(self, key: str) -> dict[str, int]:
        """The widths behind a key of `networks`."""
        return dict(zip(self.levels, map(int, key.split("/")), strict=True))

    def network_key(self, widths: Widths) -> str:
        return key_of([widths[name] for name in self.levels])

    def noise(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """float64[networks timed twice]: the relative difference of both times."""
        pairs = np.array([(self.networks[key], second) for key, second in self.again.items()]).reshape(-1, 2)
        ratio = pairs[:, 1] / pairs[:, 0]
        return np.asarray(np.abs(ratio / np.median(ratio) - 1)) if len(ratio) else np.zeros(1)

    def widths_of(self, model: OnnxModel) -> dict[str, int]:
        """The widths of a file that is the table's network, whole or narrower.

        Raises:
            RecipeError: it is another network, or has widths that the table has not.
        """
        own, found = dict(self.dense), dict[str, int]()
        held = {one.name: one.key() for one in segments(model)}
        for one in self.segments:
            at = [widths for widths, key in one.keys.items() if key == held.get(one.name, "")]
            if not at:
                why = (
                    f"its segment {one.name} has other sizes" if one.name in held else f"it has no {one.name}"
                )
                raise RecipeError(
                    f"{model.path} is not the network of the table: {why}.",
                    f"Make its own table: deadweight table {model.path}.",
                )
            fitting = [
                dict(zip(one.groups, map(int, widths.split("/")), strict=True)) for widths in at if widths
            ]
            agreeing = [each for each in fitting if all(found.get(n, w) == w for n, w in each.items())]
            found |= (agreeing or fitting or [{}])[0]
        return own | found

    def save(self, path: Path) -> None:
        """Writes the table, whole or not at all."""
        write_json(path, plain(self))


def load_table(path: Path) -> SegmentTable:
    """Reads a table.

    Raises:
        ArtifactError: it is missing, damaged or of another version.
    """
    value = read_json(path, _CURE)
    if value.get("schema") != SCHEMA:
        raise ArtifactError(
            f"{path} has the schema {value.get('schema')!r}; this version reads {SCHEMA}.", _CURE
        )
    table = from_plain(SegmentTable, value, str(path), cure=_CURE)
    levels, known = table.levels, set(table.weights)
    good = set(table.dense) == set(levels) and all(
        own and [*own] == sorted(set(own)) for own in levels.values()
    )
    good = good and all(w in levels[name] for name, w in table.dense.items())
    for one in table.segments:
        good = good and set(one.groups) <= set(levels) and len(one.grid) == len(one.groups)
        good = good and all(set(grid) <= set(levels[n]) for n, grid in zip(one.groups, one.grid, strict=True))
        good = good and {*map(key_of, itertools.product(*one.grid))} == set(one.keys)
        good = good and known >= set(one.keys.values()) - {""}
    for times in (table.seconds, table.repeated, table.networks, table.again):
        good = good and all(0 < value < 1e6 for value in times.values())
    for key in table.networks if good else ():
        drawn = key.split("/")
        good = good and len(drawn) == len(levels)
        good = good and all(w in map(str, own) for w, own in zip(drawn, levels.values(), strict=True))
    if not good or not set(table.again) <= set(table.networks):
        raise ArtifactError(f"{path} is no table of segments: its parts do not fit each other.", _CURE)
    return table


def smooth(times: Times, noise: float) -> Times:
    """Times over the widths of two or more groups, without what the noise explains.

    Their logarithm is a sum of one part for each group, and of a remainder, whose singular values stay where
    they are above the largest of pure noise (Gavish and Donoho 2014).

    Args:
        times: float64, one axis for each group.
        noise: the standard deviation of each, as a share.
    """
    logs = np.log(times).reshape(len(times), -1)
    apart = logs.mean(1, keepdims=True) + logs.mean(0, keepdims=True) - logs.mean()
    left, sizes, right = np.linalg.svd(logs - apart, full_matrices=False)
    sizes[sizes <= noise * sum(map(math.sqrt, logs.shape))] = 0.0
    return np.asarray(np.exp(apart + (left * sizes) @ right).reshape(times.shape))


def key_of(widths: Sequence[int]) -> str:
    """Widths as the key of an entry."""
    return "/".join(map(str, widths))


def levels_of(size: int, kinds: Sequence[str], target: Target, *, octave: int = 4) -> tuple[int, ...]:
    """The widths that a group may have, down to a sixteenth: so many to an octave, in steps of the target."""
    rules, found = [target.align(kind) for kind in kinds], set()
    for down, part in itertools.product(range(4), range(octave + 1, 2 * octave + 1)):
        keep = max(1, round(size * part / (2 * octave) / 2**down))
        steps = [rule.step_for(keep) for rule in rules]
        found.add(min(size, max([keep, *(-(-keep // step) * step for step in steps)])))
    return tuple(sorted(found))


def wider(size: int, kinds: Sequence[str], target: Target) -> tuple[int, ...]:
    """Widths above that of the network at which its layers may take no longer: the next whole steps."""
    step = max(1, *(target.align(kind).step for kind in kinds))
    return tuple(sorted({-(-size // whole) * whole for whole in (step, 2 * step, 4 * step)} - {size}))


def _corners(grid: Sequence[int], width: int) -> list[tuple[int, float]]:
    """The timed widths around a width, with their shares; beyond the grid its end."""
    at = int(np.searchsorted(grid, width))
    if at == len(grid) or grid[at] == width or at == 0:
        return [(grid[min(at, len(grid) - 1)], 1.0)]
    share = (width - grid[at - 1]) / (grid[at] - grid[at - 1])
    return [(grid[at - 1], 1 - share), (grid[at], share)]
