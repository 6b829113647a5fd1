"""Terminal output of a soak: a row for each load, then what happened to the machine."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from .tables import judgement_line, listing, milliseconds

if TYPE_CHECKING:
    from ..api.results import Soak
    from ..targets.timing.tail import TailBound


def soak_lines(result: Soak) -> list[RenderableType]:
    """The printed lines, from top to bottom."""
    record, summary = result.soak, result.summary
    names = {name: path.name for name, path in result.models.items()}
    modes = any(row.mode for row in summary.rows)
    rated = any(load.rate_hz for load in record.plan.loads.values())
    heads = ("p50", "p99\nat most", "p99.9\nat most", "per s", *(("missed",) if rated else ()))
    table = listing("model", numbers=heads)
    table.columns[0].min_width = 20
    shown: list[RenderableType] = [table]
    for row in summary.rows:
        words = [names[row.name], f"beside {names[row.beside]}" if row.beside else ""]
        words += [row.mode] if modes else []
        low, high = (milliseconds(one).removesuffix(" ms") for one in (row.latency.low, row.latency.high))
        missed = f"{row.missed:,} of {row.frames:,}" if record.plan.loads[row.name].rate_hz else ""
        table.add_row(
            "\n".join(filter(None, words)),
            f"{milliseconds(row.latency.value)}\n{low} to {high}",
            _bound(row.p99),
            _bound(row.p999),
            f"{row.per_s:.4g}",
            *((missed,) if rated else ()),
        )
        head = " ".join(filter(None, words))
        if row.energy is not None and not record.no_sensor:
            shown.append(Text(f"{head}: {row.energy.sentence()}"))
        if row.parts_s:
            parts = ", ".join(f"{part} {milliseconds(time)}" for part, time in row.parts_s.items())
            shown.append(Text(f"{head}: {parts}"))
        if record.plan.loads[row.name].rate_hz:
            most = f"at most {100 * row.missed_high:.2g} % of frames are missed (97.5 % confidence)"
            shown.append(Text(f"{head}: {most}"))
    if summary.rows:
        shown.append(Text("Below each p50: its 95 % interval."))
    shown.append(Text(f"Power by {record.sensor}." if record.sensor else f"No energy: {record.no_sensor}."))
    for (mode, name, beside), cost in summary.costs.items():
        where = f" in {mode}" if mode else ""
        shown.append(Text(f"{names[name]} beside {names[beside]}{where}, against alone: {cost.sentence()}"))
    shown.append(Text(f"{summary.memory.sentence()}."))
    for zone, (first, most_c, last) in summary.temperatures_c.items():
        shown.append(Text(f"{zone}: {first:.1f} °C at first, {most_c:.1f} at most, {last:.1f} at the end"))
    events = sorted((*summary.slowed, *summary.notes))
    shown += [Text(f"after {at:.0f} s: {what}") for at, what in events[:20]]
    shown += [Text(f"and {len(events) - 20} more, in the file")] if len(events) > 20 else []
    shown += [] if summary.slowed else [Text("Nothing slowed the machine.")]
    for mode, judgement in summary.judgements.items():
        shown += [Text(f"In {mode}:")] if mode else []
        shown.append(judgement_line(judgement))
    return shown


def _bound(tail: TailBound) -> str:
    return milliseconds(tail.bound_s) if math.isfinite(tail.bound_s) else f"needs {tail.needed:,}"
