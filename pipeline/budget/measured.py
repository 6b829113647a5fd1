"""Measures a table of segments: lays it out, says how long it will take, and goes on where it was stopped.

What is timed together is relative to the whole network, since a machine's speed differs between two minutes.
"""

from __future__ import annotations

import itertools
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ...export.onnx_graph.graph import OnnxModel, save
from ...export.onnx_graph.resize import Widths
from ...export.onnx_graph.segments import segments
from ...targets.errors import ModelError, RecipeError
from ...targets.progress import Progress, silent
from ...targets.timing.measurement import Measurement, Protocol
from .solve import Levels
from .table import DENSE, EMPTY, SegmentTable, TimedSegment, key_of, load_table
from .timer import QUICK, Conditions, Together, check_valid, seconds_of

FileAt = Callable[[Widths], onnx.ModelProto]
"""The network's file at these widths of its groups."""
Makers = Mapping[str, Callable[[], onnx.ModelProto]]
CHUNK = 30
"""Files that are timed together, beside the dense network, by which chunks are made comparable."""
MOST_TIMED, MOST_COMBINATIONS = 256, 4096
"""Widths of a segment's groups together: that are timed, and that a plan may choose from."""
_DEPENDS = ("If", "Loop", "Scan", "NonZero", "NonMaxSuppression", "Unique", "Compress")
"""Operators whose time depends on what the network is given."""


@dataclass(frozen=True, eq=False)
class Network:
    """A network whose file can be made at other widths: its groups with these, and its own widths."""

    file_at: FileAt
    levels: Levels
    dense: Widths

    def drawn(self, count: int, seed: int) -> list[dict[str, int]]:
        """Networks of random widths, each another; fewer where there are not so many."""
        rng, found = random.Random(seed), dict[str, dict[str, int]]()
        for _ in range(20 * count):
            widths = {name: rng.choice(own) for name, own in self.levels.items()}
            if len(found) < count and widths != self.dense:
                found[key_of([*widths.values()])] = widths
        return [*found.values()]


def table_of(
    network: Network,
    together: Together,
    path: Path,
    *,
    runtime: str,
    networks: int = 60,
    twice: int = 0,
    seed: int = 0,
    begun: Callable[[str], None] = lambda plan: None,
    progress: Progress = silent,
) -> SegmentTable:
    """The table of a network; what `path` has of it is not measured again.

    Args:
        together: times files on the target.
        path: the table's file, written after every few seconds of measuring.
        networks: how many networks of random widths are timed for the fit.
        twice: how many more are timed twice and held out of the fit.
        begun: gets the plan, how many timings and how long, before they begin.

    Raises:
        RecipeError: the file is the table of another network, or was measured under other conditions.
        ModelError: the network's time depends on its input.
        MeasurementError: the board was throttled meanwhile.
    """
    dense = network.file_at(network.dense)
    if found := sorted({node.op_type for node in dense.graph.node} & set(_DEPENDS)):
        raise ModelError(
            f"The network has {', '.join(found)}: its time depends on what it is given.",
            "Cut the file before these operators; they are usually its last ones.",
        )
    protocol, started = replace(QUICK, runtime=runtime), time.monotonic()
    trial: Makers = {
        EMPTY: empty_file,
        **{f"trial {at}": partial(network.file_at, network.dense) for at in range(4)},
    }
    tried = next(_timed(trial, dense, together, protocol))
    each_s = (time.monotonic() - started) / (len(trial) + 1)
    table, models = _laid_out(network, Conditions.of(tried[DENSE]), asdict(tried[DENSE].protocol), progress)
    if path.exists():
        table = _continued(table, load_table(path), path)
    drawn = [network.dense, *replace(network, levels=table.levels).drawn(networks + twice, seed)]
    files = {table.network_key(widths): partial(network.file_at, widths) for widths in drawn}
    held = dict([*files.items()][len(files) - len(drawn) * twice // (networks + twice) :])
    jobs: list[tuple[str, Makers]] = [
        ("seconds", {key: partial(models.__getitem__, key) for key in models}),
        ("networks", files),
        ("again", held),
    ]
    missing = sum(len(makers.keys() - getattr(table, kind).keys()) for kind, makers in jobs)
    if missing:
        begun(
            f"{missing} timings are left, of {len(models)} segments and {len(files)} whole networks, "
            f"{len(held)} of them twice: about {max(1, round(missing * each_s / 60))} min"
        )
    for kind, makers in jobs:
        wanted = {key: maker for key, maker in makers.items() if key not in getattr(table, kind)}
        for new in seconds_in_chunks(wanted, dense, together, protocol, first=table.seconds.get(DENSE)):
            table = replace(table, seconds={**table.seconds, DENSE: new.pop(DENSE)})
            more: dict[str, Any] = {kind: {**getattr(table, kind), **new}}
            table = replace(table, **more)
            table.save(path)
            progress(len(getattr(table, kind)), len(makers), f"table: {kind}")
    return table


def _continued(table: SegmentTable, old: SegmentTable, path: Path) -> SegmentTable:
    """The table with what an earlier call measured; a RecipeError if that was another network or machine."""
    check_same(old, table.conditions, path)
    if old.network != table.network or old.levels != table.levels:
        raise RecipeError(
            f"{path} is the table of another network, or of other widths of it.",
            "Give another file by --out, or delete it.",
        )
    known = {key: value for key, value in old.seconds.items() if key in {*table.weights, DENSE}}
    return replace(table, seconds=known, networks=old.networks, again=old.again, damage=old.damage)


def check_same(table: SegmentTable, here: Conditions, path: Path) -> None:
    """Refuses a table that was measured under other conditions than those here."""
    if differences := table.conditions.differences(here):
        raise RecipeError(
            f"{path} was measured under other conditions: {'; '.join(differences)}.",
            "Set the machine as it was then, or make a new table: deadweight table, with another --out.",
        )


def _laid_out(
    network: Network, conditions: Conditions, protocol: Mapping[str, object], progress: Progress
) -> tuple[SegmentTable, dict[str, onnx.ModelProto]]:
    """The table without times, and the files of its entries, by key."""
    whole = _segments(network.file_at(network.dense))
    changed: dict[str, list[str]] = {name: [] for name in whole}
    for group, own in network.levels.items():
        for width in {own[0], own[-1]} - {network.dense[group]}:
            other = _segments(network.file_at({**network.dense, group: width}))
            for name in {**whole, **other}:
                differs = whole.get(name, _ABSENT)[0] != other.get(name, _ABSENT)[0]
                if differs and group not in changed.setdefault(name, []):
                    changed[name].append(group)
    levels = network.levels
    for most in range(max(map(len, levels.values()), default=0), 1, -1):
        levels = {name: thinned(own, most, network.dense[name]) for name, own in levels.items()}
        if all(math.prod(len(levels[g]) for g in own) <= MOST_COMBINATIONS for own in changed.values()):
            break
    grids = {name: [*_grid([levels[group] for group in own])] for name, own in changed.items()}
    keys: dict[str, dict[str, str]] = {name: {} for name in changed}
    models: dict[str, onnx.ModelProto] = {EMPTY: empty_file()}
    rng = random.Random(0)
    for at, (name, groups) in enumerate(changed.items()):
        progress(at, len(changed), "table: files of segments")
        for combination in itertools.product(*grids[name]):
            if key_of(combination) in keys[name]:
                continue
            # The other groups' widths are drawn, so that one file serves many segments.
            drawn = {group: rng.choice(own) for group, own in levels.items()}
            widths = {**drawn, **dict(zip(groups, combination, strict=True))}
            made = _segments(network.file_at(widths))
            for each, its in changed.items():
                here = [widths[group] for group in its]
                if all(width in grid for width, grid in zip(here, grids[each], strict=True)):
                    key, model = made.get(each, _ABSENT)
                    keys[each].setdefault(key_of(here), key)
                    if model is not None:
                        models.setdefault(key, model)
    laid = [TimedSegment(name, tuple(own), tuple(grids[name]), keys[name]) for name, own in changed.items()]
    weights = {key: sum(len(t.raw_data) for t in m.graph.initializer) for key, m in models.items()}
    digest = sha256(repr([(name, key) for name, (key, _) in whole.items()]).encode()).hexdigest()
    choices = tuple(levels.items())
    return SegmentTable(digest, conditions, protocol, choices, network.dense, tuple(laid), weights), models


def _grid(levels: Sequence[Sequence[int]]) -> Iterable[tuple[int, ...]]:
    """The widths to be timed of each of a segment's groups: all, or fewer where they are too many."""
    most = max(map(len, levels), default=0)
    while most > 2 and math.prod(min(len(own), most) for own in levels) > MOST_TIMED:
        most -= 1
    return (thinned(own, most, own[-1]) for own in levels)


def thinned(levels: Sequence[int], most: int, kept: int) -> tuple[int, ...]:
    """At most so many of some widths, evenly spaced, and one that stays."""
    at = np.linspace(0, len(levels) - 1, min(most, len(levels))).round().astype(int)
    return tuple(sorted({*(levels[place] for place in at.tolist()), kept}))


def seconds_in_chunks(
    makers: Makers,
    dense: onnx.ModelProto,
    together: Together,
    protocol: Protocol,
    *,
    first: float | None = None,
) -> Iterator[dict[str, float]]:
    """Seconds of files and of the dense network, some at a time, all as if timed with the first.

    Args:
        first: the dense network's time in an earlier call, to which all are brought.
    """
    for measured in _timed(makers, dense, together, protocol):
        check_valid(measured)
        found = {key: seconds_of(one) for key, one in measured.items()}
        first = first or found[DENSE]
        yield {key: seconds * first / found[DENSE] for key, seconds in found.items()}


def _timed(
    makers: Makers, dense: onnx.ModelProto, together: Together, protocol: Protocol
) -> Iterator[Mapping[str, Measurement]]:
    """Measurements of files, some at a time, in random order, beside the dense network."""
    order = random.Random(1).sample(sorted(makers), len(makers))
    for start in range(0, len(order), CHUNK):
        with tempfile.TemporaryDirectory() as place:
            paths = {DENSE: Path(place) / "dense.onnx"}
            save(dense, paths[DENSE])
            for at, key in enumerate(order[start : start + CHUNK]):
                paths[key] = Path(place) / f"{at}.onnx"
                save(makers[key](), paths[key])
            yield together(paths, protocol)


_ABSENT: tuple[str, onnx.ModelProto | None] = ("", None)


def _segments(model: onnx.ModelProto) -> dict[str, tuple[str, onnx.ModelProto | None]]:
    return {one.name: (one.key(), one.model) for one in segments(OnnxModel(model, Path()))}


def empty_file() -> onnx.ModelProto:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        EMPTY,
        [value("x", onnx.TensorProto.FLOAT, [1, 8])],
        [value("y", onnx.TensorProto.FLOAT, [1, 8])],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
