"""history.html: measurements over time, from the lines that the gate adds to its history.

One curve for each model name on each machine, since times of different machines are no series. A point is
the median of a session with its interval; its colour is the verdict that was passed on it, where one was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...targets.artifact import write_text
from ...targets.errors import ArtifactError
from ...targets.gate import history
from .document import document, escape, legend, plot, section
from .plots import Figure, layout, outcome_colour, points, series, text
from .tables import figure, outcome, simple_table
from .units import MISSING, duration, interval, moment, ratio, time_unit

Line = Mapping[str, Any]


def write_measurements(path: Path) -> Path:
    """Makes history.html beside a history's JSONL, or in the directory that holds history.jsonl.

    Raises:
        ArtifactError: there is no history, it holds nothing, or it is broken.
    """
    path = Path(path)
    if path.is_dir():
        path /= "history.jsonl"
    lines = history.read(path)
    if not lines:
        raise ArtifactError(
            f"The history {path} holds no measurements yet.",
            "Run deadweight gate with --history FILE, or set history under [gate] in deadweight.toml.",
        )
    place = path.parent / "history.html"
    write_text(place, page(lines))
    return place


def page(lines: Sequence[Line]) -> str:
    """The page as text; `lines` oldest first."""
    machines = list(dict.fromkeys(_machine(line) for line in lines))
    parts = [f'<header><h1>History</h1><p class="run">{len(lines)} measurements, oldest first</p></header>']
    for machine in machines:
        own = [line for line in lines if _machine(line) == machine]
        names = _names(own)
        colours = legend([(series(at), name) for at, name in enumerate(names)])
        note = "Sessions differ by more than their intervals: a verdict comes from timing side by side."
        parts.append(section(machine, colours, plot(_drawn(own, names)), _table(own), note=note))
    return document("History", parts)


def _names(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(str(line["name"]) for line in lines))


def _machine(line: Line) -> str:
    machine = line["machine"]
    return f"{machine.get('cpu', 'a machine')}, {machine.get('cores', '?')} cores"


def _drawn(lines: Sequence[Line], names: Sequence[str]) -> Figure:
    scale, unit = time_unit(line["latency_s"]["p50"] for line in lines)
    traces = []
    for at, name in enumerate(names):
        own = [line for line in lines if line["name"] == name]
        middle = [line["latency_s"]["p50"] / scale for line in own]
        hover = [
            f"{text(name)} {text(str(line['commit'])[:12])}: {duration(line['latency_s']['p50'])}<br>"
            f"{text(moment(line['at']))}{'<br>' + text(_verdict(line)) if line['verdict'] else ''}"
            for line in own
        ]
        when = [line["at"] for line in own]
        trace = points(when, middle, name=text(name), colour=series(at), size=9, hover=hover)
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [
                line["latency_s"]["high"] / scale - here for line, here in zip(own, middle, strict=True)
            ],
            "arrayminus": [
                here - line["latency_s"]["low"] / scale for line, here in zip(own, middle, strict=True)
            ],
        }
        trace["line"] = {"color": series(at), "width": 1}
        trace["marker"]["color"] = [
            outcome_colour(line["verdict"]["outcome"]) if line["verdict"] else series(at) for line in own
        ]
        traces.append({**trace, "mode": "lines+markers"})
    frame = layout(y=f"latency p50, {unit}")
    frame["yaxis"]["rangemode"] = "tozero"
    return Figure(traces, frame, 360, f"Latency of {', '.join(names)} over {len(lines)} measurements.")


def _verdict(line: Line) -> str:
    return str(line["verdict"].get("sentence") or line["verdict"]["outcome"])


def _table(lines: Sequence[Line]) -> str:
    rows = []
    for line in lines:
        verdict, latency = line["verdict"], line["latency_s"]
        judged = MISSING
        if verdict:
            judged = outcome(verdict["outcome"]) + f'<span class="small">{escape(_bounds(verdict))}</span>'
        unit = f"{duration(latency['low'])} to {duration(latency['high'])}"
        marked = f"{line['marked']} marked" if line.get("marked") else ""
        rows.append(
            [
                escape(moment(line["at"])),
                escape(str(line["commit"])[:12]) or MISSING,
                escape(line["name"]),
                figure(latency["p50"], duration(latency["p50"]), escape(unit)),
                figure(line["events"], f"{line['events']}", escape(marked)),
                judged,
            ]
        )
    return simple_table(["At", "Commit", "Model", "Latency p50", "Events", "Verdict"], rows, "Measurements")


def _bounds(verdict: Mapping[str, Any]) -> str:
    return f"{ratio(verdict['ratio'])}, {interval(verdict['low'] or None, verdict['high'])}"
