"""Which segments of a network are timed at which widths, and their files; finer where the time bends.

Between two timed widths a table interpolates. A cliff between them is found by timing one width more: where
that is off the line by more than the noise, it is timed at all widths of the segment's other groups too, and
a plan may choose it.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx

from ...export.onnx_graph.graph import OnnxModel
from ...export.onnx_graph.resize import Widths
from ...export.onnx_graph.segments import segments
from ...targets.progress import Progress
from .solve import Levels
from .table import EMPTY, SegmentTable, TimedSegment, key_of
from .timer import Conditions

FileAt = Callable[[Widths], onnx.ModelProto]
"""The network's file at these widths of its groups."""
Makers = Mapping[str, Callable[[], onnx.ModelProto]]
Grid = tuple[tuple[int, ...], ...]
MOST_TIMED, MOST_COMBINATIONS = 256, 4096
"""Widths of a segment's groups together: that are timed, and that a plan may choose from."""
FEW, MOST_ENTRIES, MOST_CHOICES = 8, 1024, 8192
"""Widths of a group that are timed, or to choose from, however many segments there are; combinations in all
segments, up to which there are more."""
_CLEAR, _LEAST = 4.0, 0.02
"""How far off the line a time bends: in standard deviations of its noise, and at least, as a share."""


@dataclass(frozen=True, eq=False)
class Network:
    """A network whose file can be made at other widths: its groups with these, and its own widths.

    `finer` has more widths of some groups, of which a table takes those between which the time bends.
    """

    file_at: FileAt
    levels: Levels
    dense: Widths
    finer: Levels = field(default_factory=dict)

    def drawn(self, count: int, seed: int) -> list[dict[str, int]]:
        """Networks of random widths, each another; fewer where there are not so many."""
        rng, found = random.Random(seed), dict[str, dict[str, int]]()
        for _ in range(20 * count):
            widths = {name: rng.choice(own) for name, own in self.levels.items()}
            if len(found) < count and widths != self.dense:
                found[key_of([*widths.values()])] = widths
        return [*found.values()]


@dataclass(frozen=True)
class Probe:
    """A width of one of a segment's groups, between two timed ones; its others are at their widest."""

    segment: str
    place: int
    low: int
    width: int
    high: int


@dataclass(eq=False)
class Layout:
    """The segments with the groups that change each, and the widths at which each is timed.

    Attributes:
        absent: by segment, the places of its groups without which, at the width 0, it is not there.
        levels: the widths that a plan may choose from.
        first: the grids at the beginning; `grids` those now.
        keys: by segment, the keys of its entries by widths; `models` the files by key.
    """

    network: Network
    digest: str
    groups: Mapping[str, tuple[str, ...]]
    absent: Mapping[str, set[int]]
    levels: dict[str, tuple[int, ...]]
    first: Mapping[str, Grid]
    grids: dict[str, Grid]
    keys: dict[str, dict[str, str]]
    models: dict[str, onnx.ModelProto]
    random: random.Random = field(default_factory=partial(random.Random, 0))

    @classmethod
    def of(cls, network: Network) -> Layout:
        """The layout of a network, without files yet."""
        whole = _segments(network.file_at(network.dense))
        changed: dict[str, list[str]] = {name: [] for name in whole}
        absent: dict[str, set[int]] = {name: set() for name in whole}
        for group, own in network.levels.items():
            for width in {own[0], own[-1]} - {network.dense[group]}:
                other = _segments(network.file_at({**network.dense, group: width}))
                for name in {**whole, **other}:
                    differs = whole.get(name, _ABSENT)[0] != other.get(name, _ABSENT)[0]
                    if differs and group not in changed.setdefault(name, []):
                        changed[name].append(group)
                        if width == 0 and name not in other:
                            absent.setdefault(name, set()).add(len(changed[name]) - 1)
        levels = dict(network.levels)
        for most in range(max(map(len, levels.values()), default=0), 1, -1):
            levels = {name: thinned(own, most, network.dense[name]) for name, own in network.levels.items()}
            counts = [_count(levels, own) for own in changed.values()]
            if max(counts, default=0) <= MOST_COMBINATIONS and (most <= FEW or sum(counts) <= MOST_CHOICES):
                break
        grids = dict[str, Grid]()
        for most in range(max(map(len, levels.values()), default=0), 0, -1):
            grids = {
                name: tuple(_grid([levels[group] for group in own], most)) for name, own in changed.items()
            }
            if most <= FEW or sum(math.prod(map(len, own)) for own in grids.values()) <= MOST_ENTRIES:
                break
        digest = sha256(repr([(name, key) for name, (key, _) in whole.items()]).encode()).hexdigest()
        groups = {name: tuple(own) for name, own in changed.items()}
        keys: dict[str, dict[str, str]] = {name: {} for name in grids}
        models = {EMPTY: empty_file()}
        return cls(network, digest, groups, absent, levels, grids, dict(grids), keys, models)

    def adopt(self, table: SegmentTable) -> None:
        """Takes the finer widths of an earlier table of the same network."""
        grids = {one.name: one.grid for one in table.segments}
        fits = (
            table.network == self.digest and {*grids} == {*self.grids} and {*table.levels} == {*self.levels}
        )
        for name, own in table.levels.items() if fits else ():
            fits = fits and {*self.levels[name]} <= {*own} <= {*self.levels[name], *self._finer(name)}
        if fits:
            self.levels, self.grids = dict(table.levels), grids

    def make(self, progress: Progress, probes: Sequence[Probe] = ()) -> Makers:
        """The files of all entries, or of these probes, by key."""
        wanted = [(one.segment, self._at(one, one.width)) for one in probes] or [
            (name, widths) for name, grid in self.grids.items() for widths in itertools.product(*grid)
        ]
        for at, (name, widths) in enumerate(wanted):
            if key_of(widths) in self.keys[name]:
                continue
            if any(width == 0 and place in self.absent[name] for place, width in enumerate(widths)):
                self.keys[name][key_of(widths)] = ""
                continue
            progress(at, len(wanted), "table: files of segments")
            # The other groups' widths are drawn, so that one file serves many segments; blocks stay.
            drawn = {
                group: self.random.choice(thinned(own, FEW, own[-1])) if own[0] else own[-1]
                for group, own in self.levels.items()
            }
            drawn |= dict(zip(self.groups[name], widths, strict=True))
            made = _segments(self.network.file_at(drawn))
            for each, own in self.groups.items():
                here = [drawn[group] for group in own]
                if each == name or all(w in grid for w, grid in zip(here, self.grids[each], strict=True)):
                    key, model = made.get(each, _ABSENT)
                    self.keys[each].setdefault(key_of(here), key)
                    if model is not None:
                        self.models.setdefault(key, model)
        found = {self.keys[name][key_of(widths)] for name, widths in wanted} - {""}
        return {key: partial(self.models.__getitem__, key) for key in {*found, *(() if probes else (EMPTY,))}}

    def table(self, conditions: Conditions, protocol: Mapping[str, object]) -> SegmentTable:
        """The table without times."""
        laid = [
            TimedSegment(
                name,
                own,
                self.grids[name],
                {key_of(w): self.keys[name][key_of(w)] for w in itertools.product(*self.grids[name])},
            )
            for name, own in self.groups.items()
        ]
        weights = {k: sum(len(t.raw_data) for t in m.graph.initializer) for k, m in self.models.items()}
        choices = tuple(self.levels.items())
        return SegmentTable(
            self.digest, conditions, protocol, choices, self.network.dense, tuple(laid), weights
        )

    def probes(self, turn: int) -> list[Probe]:
        """A width for each gap between timed ones; after the first turn, of what was found to bend."""
        found = list[Probe]()
        for name, grid in self.grids.items():
            for place, own in enumerate(grid):
                if turn and own == self.first[name][place]:
                    continue
                more = self._finer(self.groups[name][place])
                for at, (low, high) in enumerate(itertools.pairwise(own)):
                    if between := [width for width in more if low < width < high]:
                        # A staircase is off most behind its step, a curve in the middle.
                        width = between[(at + turn) % 2 * (len(between) // 2)]
                        found.append(Probe(name, place, low, width, high))
        return found

    def bent(self, table: SegmentTable, probes: Sequence[Probe]) -> list[Probe]:
        """The probes that are off the line between their neighbours by more than the noise."""
        found, clear = list[Probe](), max(_CLEAR * table.entry_noise, _LEAST)
        for one in probes:
            keys = [self.keys[one.segment][key_of(self._at(one, w))] for w in (one.low, one.width, one.high)]
            if all(keys):
                low, here, high = (table.seconds[key] for key in keys)
                share = (one.width - one.low) / (one.high - one.low)
                if abs(here - (1 - share) * low - share * high) > clear * here:
                    found.append(one)
        return found

    def refine(self, probes: Sequence[Probe]) -> None:
        """Adds the widths of probes, as far as the solver can choose from them all."""
        for one in probes:
            group, grid = self.groups[one.segment][one.place], list(self.grids[one.segment])
            grid[one.place] = tuple(sorted({*grid[one.place], one.width}))
            levels = {**self.levels, group: tuple(sorted({*self.levels[group], one.width}))}
            few = all(_count(levels, own) <= MOST_COMBINATIONS for own in self.groups.values())
            if few and math.prod(map(len, grid)) <= MOST_TIMED:
                self.levels, self.grids[one.segment] = levels, tuple(grid)

    def _finer(self, group: str) -> list[int]:
        return sorted({*self.levels[group], *self.network.finer.get(group, ())})

    def _at(self, one: Probe, width: int) -> tuple[int, ...]:
        grid = self.grids[one.segment]
        return tuple(width if place == one.place else own[-1] for place, own in enumerate(grid))


def thinned(levels: Sequence[int], most: int, kept: int) -> tuple[int, ...]:
    """At most so many of some widths, evenly spaced, and one that stays."""
    at = np.linspace(0, len(levels) - 1, min(most, len(levels))).round().astype(int)
    return tuple(sorted({*(levels[place] for place in at.tolist()), kept}))


def empty_file() -> onnx.ModelProto:
    """A file that computes nothing."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        EMPTY,
        [value("x", onnx.TensorProto.FLOAT, [1, 8])],
        [value("y", onnx.TensorProto.FLOAT, [1, 8])],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def _grid(levels: Sequence[Sequence[int]], most: int) -> Iterable[tuple[int, ...]]:
    """The widths to be timed of each of a segment's groups: so many, or fewer where they are too many."""
    while most > 2 and math.prod(min(len(own), most) for own in levels) > MOST_TIMED:
        most -= 1
    return (thinned(own, most, own[-1]) for own in levels)


def _count(levels: Levels, groups: Sequence[str]) -> int:
    return math.prod(len(levels[name]) for name in groups)


_ABSENT: tuple[str, onnx.ModelProto | None] = ("", None)


def _segments(model: onnx.ModelProto) -> dict[str, tuple[str, onnx.ModelProto | None]]:
    return {one.name: (one.key(), one.model) for one in segments(OnnxModel(model, Path()))}
