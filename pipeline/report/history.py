"""history.html: measurements over time, from the lines that the gate adds to its history.

One curve for each model name on each machine, because times of different machines are not comparable. A point
is the median of one measurement with its interval; its colour is its verdict, if there is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from ...targets.artifact import write_text
from ...targets.errors import MISFITS, ArtifactError, reported
from ...targets.gate import history
from .document import Cell, Figure, Head, Part, Section, Table, document, figure
from .plots import Point, legend, outcome_colour, over_time_figure, series, text
from .units import duration, interval, moment, ratio

Line = Mapping[str, Any]


def write_measurements(path: Path) -> Path:
    """Makes history.html beside a history's JSONL, or in the directory that holds history.jsonl.

    Raises:
        ArtifactError: there is no history, it is empty, or it is broken.
    """
    path = Path(path) / "history.jsonl" if Path(path).is_dir() else Path(path)
    if not (lines := history.read(path)):
        raise ArtifactError(
            f"The history {path} has no measurements yet.",
            "Run deadweight gate with --history FILE, or set history under [gate] in deadweight.toml.",
        )
    place = path.parent / "history.html"
    what = f"The history {path} has a line of another form"
    with reported(ArtifactError, what, "Delete that line.", *MISFITS, TemplateError):
        html = page(lines)
    write_text(place, html)
    return place


def page(lines: Sequence[Line]) -> str:
    note = "Measurements differ by more than their intervals: only interleaved timing gives a verdict."
    parts: list[Part] = [Head("History", f"{len(lines)} measurements, oldest first")]
    for machine in dict.fromkeys(map(_machine, lines)):
        own = [line for line in lines if _machine(line) == machine]
        names = list(dict.fromkeys(str(line["name"]) for line in own))
        parts.append(Section(machine, [legend(names), _drawn(own, names), _table(own)], note))
    return document("History", parts)


def _machine(line: Line) -> str:
    machine = line["machine"]
    return f"{machine.get('cpu', 'a machine')}, {machine.get('cores', '?')} cores"


def _drawn(lines: Sequence[Line], names: Sequence[str]) -> Figure:
    curves: dict[str, list[Point]] = {name: [] for name in names}
    for line in lines:
        name, verdict, latency = str(line["name"]), line["verdict"], line["latency_s"]
        hover = [f"{name} {str(line['commit'])[:12]}: {duration(latency['p50'])}", moment(line["at"])]
        hover += [verdict.get("sentence") or verdict["outcome"]] if verdict else []
        colour = outcome_colour(verdict["outcome"]) if verdict else series(names.index(name))
        ends = (latency["p50"], latency["low"], latency["high"])
        curves[name].append(Point(line["at"], *ends, "<br>".join(map(text, hover)), colour))
    return over_time_figure(curves, f"Latency of {', '.join(names)} over {len(lines)} measurements.")


def _table(lines: Sequence[Line]) -> Table:
    rows = []
    for line in lines:
        verdict, latency = line["verdict"], line["latency_s"]
        judged: Cell | str = ""
        if verdict:
            bounds = interval(verdict["low"] or None, verdict["high"])
            judged = Cell("", small=[f"{ratio(verdict['ratio'])}, {bounds}"], outcome=verdict["outcome"])
        cells = [
            moment(line["at"]),
            str(line["commit"])[:12],
            line["name"],
            figure(latency["p50"], duration, f"{duration(latency['low'])} to {duration(latency['high'])}"),
            figure(line["events"], str, f"{line['marked']} marked" if line.get("marked") else ""),
            judged,
        ]
        rows.append(cells)
    head = ["At", "Commit", "Model", "Latency p50", "Events", "Verdict"]
    return Table("Measurements", head, {"": rows}, left=3)
