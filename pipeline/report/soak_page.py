"""The page of a soak: latency, power, temperatures, clocks and memory over time, and what happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...targets.artifact import write_text
from ...targets.timing.soak_record import Period, Soak
from ...targets.timing.soak_summary import Row, Summary
from ...targets.timing.tail import TailBound
from .document import Cell, Figure, Head, Legend, Section, Table, Words, document, figure
from .plots import Trace, layout, line, points, series, short, text
from .units import duration, moment, percent

Curve = tuple[str, Sequence[tuple[float, float]]]
"""A name and its points: minutes since the soak began, and a value."""


def write_soak(path: Path, verdict: str, names: Mapping[str, str], soak: Soak, summary: Summary) -> Path:
    """Writes the page; `names` are those of the models for a reader."""
    write_text(path, page(verdict, names, soak, summary))
    return path


def page(verdict: str, names: Mapping[str, str], soak: Soak, summary: Summary) -> str:
    """The page as text."""
    outcomes = {one.outcome for one in summary.judgements.values()}
    head = Head(
        verdict,
        f"Soak of {', '.join(names.values())}, {moment(soak.started)}",
        outcome="".join(outcomes) if len(outcomes) == 1 else "",
    )
    titles = {(row.mode, row.name, row.beside): _title(row, names) for row in summary.rows}
    latency: list[Curve] = []
    for (mode, name, beside), title in titles.items():
        own = [one for one in soak.periods if one.mode == mode and set(one.models) == {name, beside} - {""}]
        times = [(one, np.concatenate([ran.wall_ns for ran in one.ran[name]]) / 1e6) for one in own]
        latency.append((f"{title}, p50", [(_minute(one), float(np.median(ms))) for one, ms in times]))
        latency.append((f"{title}, p99", [(_minute(one), float(np.percentile(ms, 99))) for one, ms in times]))
    kinds: dict[tuple[str, ...], str] = {(): "idle"}
    kinds |= {(name,): label for name, label in names.items()}
    power: list[Curve] = [
        (title, [(_minute(p), p.power_w) for p in soak.periods if p.power_w is not None and p.models == kind])
        for kind, title in kinds.items()
    ]
    memory: Curve = (
        "memory",
        [
            (_minute(one), sum(ran.memory_bytes or 0 for ran in one.ran[one.models[0]]) / 1e6)
            for one in soak.periods
            if one.models and one.ran[one.models[0]][0].memory_bytes
        ],
    )
    events = sorted((*summary.slowed, *summary.notes))
    slowed = [at / 60 for at, _ in summary.slowed]
    sections = [
        Section("Latency over time", _drawn(latency, "ms", slowed), "Each point is one period."),
        Section("At a glance", [_table(summary.rows, titles), Words(_sentences(soak, summary, titles))]),
        Section("The tail over time", [_windows(summary.rows, titles)], "An upper bound for each stretch."),
        Section("Power", _drawn([one for one in power if one[1]], "W", slowed)),
        Section("Temperatures", _drawn(_states(soak.periods, "temperatures_c", 1.0), "°C", slowed)),
        Section("Clocks, lowest of a period", _drawn(_states(soak.periods, "clocks_hz", 1e6), "MHz", slowed)),
        Section("Memory", [*_drawn([memory], "MB", slowed), Words([f"{summary.memory.sentence()}."], False)]),
        Section("Events", [Words([f"after {duration(at)}: {what}" for at, what in events])]),
    ]
    return document(f"Soak of {', '.join(names.values())}", [head, *sections])


def _sentences(soak: Soak, summary: Summary, titles: Mapping[tuple[str, str, str], str]) -> list[str]:
    """Verdicts, and where energy or the user's steps are known, these."""
    found = [f"{mode or 'candidate'}: {one.sentence()}" for mode, one in summary.judgements.items()]
    for (mode, name, beside), cost in summary.costs.items():
        found.append(f"{titles[mode, name, beside]}, against alone: {cost.sentence()}")
    for row in summary.rows:
        title = titles[row.mode, row.name, row.beside]
        found += [f"{title}: {row.energy.sentence()}"] if row.energy and not soak.no_sensor else []
        parts = ", ".join(f"{part} {duration(time)}" for part, time in row.parts_s.items())
        found += [f"{title}: {parts}"] if parts else []
    return [*found, f"Power by {soak.sensor}." if soak.sensor else f"No energy: {soak.no_sensor}."]


def _title(row: Row, names: Mapping[str, str]) -> str:
    beside = f" beside {names[row.beside]}" if row.beside else ""
    return f"{names[row.name]}{beside}{f' in {row.mode}' if row.mode else ''}"


def _minute(one: Period) -> float:
    return short(one.at_s / 60)


def _states(periods: Sequence[Period], which: str, unit: float) -> list[Curve]:
    """A curve for each zone or clock that was seen."""
    names = dict.fromkeys(name for one in periods for name in getattr(one, which))
    return [
        (name, [(_minute(p), getattr(p, which)[name] / unit) for p in periods if name in getattr(p, which)])
        for name in names
    ]


def _drawn(curves: Sequence[Curve], unit: str, slowed: Sequence[float]) -> list[Figure | Legend | None]:
    """A plot of curves over minutes, with a line where the machine was slowed; nothing without points."""
    curves = [one for one in curves if one[1]]
    if not curves:
        return []
    traces: list[Trace] = []
    for at, (name, values) in enumerate(curves):
        hover = [f"{text(name)}: {value:.4g} {unit}<br>{minute:.1f} min" for minute, value in values]
        x, y = [minute for minute, _ in values], [short(value) for _, value in values]
        drawn = points(x, y, name=text(name), colour=series(at), size=5, hover=hover)
        dash = ("solid", "dot", "dash")[at // 5 % 3]
        traces.append(
            {**drawn, "mode": "lines+markers", "line": {"color": series(at), "width": 1.2, "dash": dash}}
        )
    frame = layout(x="minutes", y=unit)
    frame["shapes"] = [line(x=minute) for minute in slowed[:50]]
    alt = f"{', '.join(name for name, _ in curves)} over {curves[0][1][-1][0]:.3g} minutes, in {unit}."
    key = [(series(at), name) for at, (name, _) in enumerate(curves)]
    return [Legend(key), Figure(traces, frame, 320, alt)]


def _table(rows: Sequence[Row], titles: Mapping[tuple[str, str, str], str]) -> Table:
    cells: list[list[Cell | str]] = []
    for row in rows:
        ends = f"{duration(row.latency.low)} to {duration(row.latency.high)}"
        found = row.energy.j if row.energy else None
        spread = f"{1e3 * found.low:.4g} to {1e3 * found.high:.4g} mJ" if found else ""
        cells.append(
            [
                titles[row.mode, row.name, row.beside],
                figure(row.latency.value, duration, ends),
                _bound(row.p99),
                _bound(row.p999),
                f"{row.per_s:.4g}",
                figure(row.missed / row.frames, percent, f"{row.missed:,} of {row.frames:,}"),
                figure(found.value, lambda j: f"{1e3 * j:.4g} mJ", spread) if found else "",
            ]
        )
    head = ["Model", "Latency p50", "p99 at most", "p99.9 at most", "Per second", "Missed", "Energy"]
    return Table("Loads", head, {"": cells}, cards=True)


def _windows(rows: Sequence[Row], titles: Mapping[tuple[str, str, str], str]) -> Table:
    groups = {
        titles[row.mode, row.name, row.beside]: [
            [f"{one.at_s / 60:.1f} min", figure(one.p50_s, duration), _bound(one.p99), _bound(one.p999)]
            for one in row.windows
        ]
        for row in rows
    }
    return Table("Tails", ["From", "p50", "p99 at most", "p99.9 at most"], groups)


def _bound(tail: TailBound) -> Cell | str:
    found = np.isfinite(tail.bound_s)
    return figure(tail.bound_s, duration) if found else Cell("", small=[f"{tail.needed:,} samples needed"])
