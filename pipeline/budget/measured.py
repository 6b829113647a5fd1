"""Measures a table of segments: lays it out, says how long it will take, and goes on where it was stopped.

What is timed together is relative to the whole network, since a machine's speed differs between two minutes.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from ...export.onnx_graph.graph import save
from ...targets.errors import ModelError, RecipeError
from ...targets.progress import Progress, silent
from ...targets.timing.measurement import Measurement, Protocol
from .boards import FILES, ratios_of, shared
from .grids import Layout, Makers, Network, empty_file
from .table import DENSE, EMPTY, SegmentTable, load_table
from .timer import QUICK, Conditions, Together, check_valid, seconds_of

CHUNK = 30
"""Files that are timed together, beside the dense network, by which chunks are made comparable."""
REPEATED, TURNS = 16, 3
"""Entries that are timed twice, for their noise; and how often widths are added between others."""
_DEPENDS = ("If", "Loop", "Scan", "NonZero", "NonMaxSuppression", "Unique", "Compress")
"""Operators whose time depends on what the network is given."""


def table_of(
    network: Network,
    together: Together | Mapping[str, Together],
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
        together: times files on the target; or several boards of one kind by name, which share the timings.
        path: the table's file, written after every few seconds of measuring.
        networks: how many networks of random widths are timed for the fit.
        twice: how many more are timed twice and held out of the fit.
        begun: gets the plan, how many timings and how long, before they begin; and which boards were lost.

    Raises:
        RecipeError: the file is the table of another network, or was measured under other conditions; or
            boards are not in the same state.
        ModelError: the network's time depends on its input.
        MeasurementError: a board was throttled meanwhile, or boards are unlike.
    """
    dense = network.file_at(network.dense)
    if found := sorted({node.op_type for node in dense.graph.node} & set(_DEPENDS)):
        raise ModelError(
            f"The network has {', '.join(found)}: its time depends on what it is given.",
            "Cut the file before these operators; they are usually its last ones.",
        )
    clocks = dict(together) if isinstance(together, Mapping) else {"": together}
    protocol, started = replace(QUICK, runtime=runtime), time.monotonic()
    trial: Makers = {
        EMPTY: empty_file,
        **{f"trial {at}": partial(network.file_at, network.dense) for at in range(4)},
    }
    _, tried = next(_timed(trial, dense, dict([*clocks.items()][:1]), protocol))
    each_s = (time.monotonic() - started) / (len(trial) + 1)
    layout, old = Layout.of(network), load_table(path) if path.exists() else None
    if old is not None:
        layout.adopt(old)
    entries = layout.make(progress)
    table = layout.table(Conditions.of(tried[DENSE]), asdict(tried[DENSE].protocol))
    if old is not None:
        table = _continued(table, old, path)

    def timed(kind: str, makers: Makers) -> None:
        nonlocal table
        wanted = {key: maker for key, maker in makers.items() if key not in getattr(table, kind)}
        first = table.seconds.get(DENSE)
        for board, new in seconds_in_chunks(wanted, dense, clocks, protocol, first=first, lost=begun):
            table = replace(table, seconds={**table.seconds, DENSE: new.pop(DENSE)})
            more: dict[str, Any] = {kind: {**getattr(table, kind), **new}}
            if table.boards:
                here = {**table.timed_on.get(kind, {}), **dict.fromkeys(new, board)}
                more["timed_on"] = {**table.timed_on, kind: here}
            table = replace(table, **more)
            table.save(path)
            progress(len(makers.keys() & getattr(table, kind).keys()), len(makers), f"table: {kind}")

    def whole_networks() -> tuple[Makers, Makers]:
        drawn = [network.dense, *replace(network, levels=table.levels).drawn(networks + twice, seed)]
        files = {table.network_key(widths): partial(network.file_at, widths) for widths in drawn}
        return files, dict([*files.items()][len(files) - len(drawn) * twice // (networks + twice) :])

    files, held = whole_networks()
    count = 0 if table.turns else max(0, min(REPEATED, len(entries)) - len(table.repeated))
    repeated = {key: entries[key] for key in random.Random(2).sample(sorted(entries), count)}
    of_each = (("seconds", entries), ("repeated", repeated), ("networks", files), ("again", held))
    if missing := sum(len(makers.keys() - getattr(table, kind).keys()) for kind, makers in of_each):
        minutes = max(1, round(missing * each_s / len(clocks) / 60))
        finer = ", and more where the time bends" if network.finer and table.turns < TURNS else ""
        again = f", {len(held)} of them twice" if held else ""
        begun(
            f"{missing} timings are left, of {len(entries)} segments and {len(files)} whole networks"
            f"{again}{finer}: about {minutes} min"
        )
        some = {key: entries[key] for key in random.Random(3).sample(sorted(entries), len(entries))[:FILES]}
        if len(clocks) > 1:
            boards = ratios_of(clocks, lambda clock: next(_timed(some, dense, {"": clock}, protocol))[1])
            table = replace(table, boards=tuple(boards))
    timed("seconds", entries)
    timed("repeated", repeated)
    while table.turns < TURNS:
        probes = layout.probes(table.turns)
        timed("seconds", layout.make(progress, probes) if probes else {})
        found = layout.bent(table, probes)
        layout.refine(found)
        entries = layout.make(progress)
        fine = layout.table(table.conditions, table.protocol)
        turns = table.turns + 1 if found else TURNS
        table = replace(
            table, choices=fine.choices, segments=fine.segments, weights=fine.weights, turns=turns
        )
        timed("seconds", entries)
        table.save(path)
    files, held = whole_networks()
    timed("networks", files)
    timed("again", held)
    return table


def _continued(table: SegmentTable, old: SegmentTable, path: Path) -> SegmentTable:
    """The table with what an earlier call measured; a RecipeError if that was another network or machine."""
    check_same(old, table.conditions, path)
    if old.network != table.network or old.levels != table.levels:
        raise RecipeError(
            f"{path} is the table of another network, or of other widths of it.",
            "Give another file by --out, or delete it.",
        )
    return replace(old, conditions=table.conditions, protocol=table.protocol)


def check_same(table: SegmentTable, here: Conditions, path: Path) -> None:
    """Refuses a table that was measured under other conditions than those here."""
    if differences := table.conditions.differences(here):
        raise RecipeError(
            f"{path} was measured under other conditions: {'; '.join(differences)}.",
            "Set the machine as it was then, or make a new table: deadweight table, with another --out.",
        )


def seconds_in_chunks(
    makers: Makers,
    dense: onnx.ModelProto,
    clocks: dict[str, Together],
    protocol: Protocol,
    *,
    first: float | None = None,
    lost: Callable[[str], None] = lambda said: None,
) -> Iterator[tuple[str, dict[str, float]]]:
    """Seconds of files and of the dense network, some at a time, all as if timed with the first; and by whom.

    Args:
        clocks: boards by name; one that is lost leaves them, and `lost` gets a sentence.
        first: the dense network's time in an earlier call, to which all are brought.
    """
    for board, measured in _timed(makers, dense, clocks, protocol, lost):
        check_valid(measured)
        found = {key: seconds_of(one) for key, one in measured.items()}
        first = first or found[DENSE]
        yield board, {key: seconds * first / found[DENSE] for key, seconds in found.items()}


def _timed(
    makers: Makers,
    dense: onnx.ModelProto,
    clocks: dict[str, Together],
    protocol: Protocol,
    lost: Callable[[str], None] = lambda said: None,
) -> Iterator[tuple[str, Mapping[str, Measurement]]]:
    """Measurements of files, some at a time, in random order, beside the dense network; and by whom."""
    order = random.Random(1).sample(sorted(makers), len(makers))
    size = min(CHUNK, -(-len(order) // len(clocks))) or 1
    parts = [order[start : start + size] for start in range(0, len(order), size)]

    def timed(clock: Together, part: Sequence[str]) -> Mapping[str, Measurement]:
        with tempfile.TemporaryDirectory() as place:
            paths = {DENSE: Path(place) / "dense.onnx"}
            save(dense, paths[DENSE])
            for at, key in enumerate(part):
                paths[key] = Path(place) / f"{at}.onnx"
                save(makers[key](), paths[key])
            return clock(paths, protocol)

    if len(clocks) > 1:
        yield from shared(parts, clocks, timed, lost)
        return
    for name, clock in clocks.items():
        for part in parts:
            yield name, timed(clock, part)
