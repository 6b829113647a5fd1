"""The report's plots, as plotly figures in plain data, each with a sentence for screen readers.

Colours are names of the page's CSS variables, as in `var(--kept)`; the page inserts the colours when it
draws, and again when the screen changes between light and dark. So all colours are defined once. The user's
text is escaped: plotly reads markup in labels.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .document import Figure, Legend
from .schema import Layer, Row, UnitLists, Width
from .units import TIMES, duration, interval, ratio, time_unit
from .words import OUTCOMES, label

MOST_BINS = 40
LAYERS_SHOWN = 20
Trace = dict[str, Any]
Layout = dict[str, Any]
Times = tuple[str, str, Sequence[float | None]]
"""Bars of one colour: their name, the colour, and seconds in the order of the labels."""

# Networks in the order of the table; grey for the original, the reference of the others.
_SERIES = ("var(--dim)", "var(--series-2)", "var(--kept)", "var(--removed)", "var(--series-5)")


def widths_figure(widths: Sequence[Width]) -> Figure:
    names = [text(width["group"]) for width in widths]
    before, after = [width["before"] for width in widths], [width["after"] for width in widths]
    pairs = list(zip(after, before, strict=True))
    hover = [f"{name}: {b:,} to {a:,} units" for name, (a, b) in zip(names, pairs, strict=True)]
    track = bars(names, before, name="before", colour="var(--track)", hover=hover)
    track["text"] = [f"{a:,} / {b:,}" for a, b in pairs]
    track |= {"textposition": "outside", "textfont": {"color": "var(--ink)"}, "cliponaxis": False}
    left = bars(names, after, name="after", colour="var(--kept)", hover=hover) | {"width": 0.36}
    frame = layout(x="units", grid="x") | {"barmode": "overlay", "bargap": 0.35}
    # Space for the label to the right of the longest bar.
    frame["xaxis"]["range"] = [0, max([1, *before]) * 1.5]
    frame["yaxis"] |= {"autorange": "reversed", "type": "category"}
    gone = sum(before) - sum(after)
    alt = f"Units of {len(widths)} groups before and after: {gone:,} of {sum(before):,} are removed."
    return Figure([track, left], frame, 70 + (40 if len(widths) <= 12 else 26) * len(widths), alt)


def histogram_figure(units: UnitLists, figure: str, *, name: str, threshold: float | None = None) -> Figure:
    """The histogram of `figure` ("mean" or "std") over a group's units, with the removed ones apart.

    `threshold` is drawn if the recipe has one.
    """
    values = np.asarray(units["mean"] if figure == "mean" else units["std"], dtype=np.float64)
    removed = np.asarray(units["removed"], dtype=bool)
    bins = min(MOST_BINS, max(8, 2 * math.isqrt(values.size)))
    edges = np.histogram_bin_edges(values, bins=bins) if values.size else np.linspace(0.0, 1.0, bins + 1)
    step = float(edges[1] - edges[0])
    traces = []
    for which, mask in (("removed", removed), ("kept", ~removed)):
        counts = [int(count) for count in np.histogram(values[mask], bins=edges)[0]]
        centres = [short(low + step / 2) for low in edges[:-1]]
        ranges = [f"{low:.3g} to {low + step:.3g}" for low in edges[:-1]]
        hover = [f"{count:,} {which}<br>{span}" for count, span in zip(counts, ranges, strict=True)]
        drawn = bars(centres, counts, name=which, colour=f"var(--{which})", hover=hover, upright=True)
        traces.append({**drawn, "width": short(step * 0.92)})
    what = "mean activation" if figure == "mean" else "standard deviation of the activation"
    frame = layout(x=what, y="units", grid="y") | {"barmode": "stack"}
    if threshold is not None:
        frame["shapes"] = [line(x=threshold)]
    units_of = f"Histogram of the {what} of the {values.size:,} units of {name}"
    alt = f"{units_of}; {int(removed.sum()):,} of them are removed, shown in another colour."
    return Figure(traces, frame, 230, alt)


def thresholds(settings: Mapping[str, Any]) -> dict[str, float]:
    """The pruning thresholds among a stage's settings, by the name of the statistic."""
    given = {key: settings.get(key) for key in ("mean", "std")}
    return {key: float(value) for key, value in given.items() if isinstance(value, (int, float))}


def speedup_figure(rows: Sequence[Row]) -> Figure | None:
    if not (judged := [(label(row["name"]), row["speedup"]) for row in rows if row["speedup"]]):
        return None
    traces = []
    for name, speedup in judged:
        value, low, high = speedup["ratio"], speedup["low"], speedup["high"]
        colour = outcome_colour(speedup["outcome"])
        hover = f"{text(name)}: {ratio(value)}, {interval(low, high)}"
        point = points([value], [text(name)], name=text(name), colour=colour, size=9, hover=[hover])
        if low is not None and high is not None:
            arms = {"type": "data", "symmetric": False, "array": [high - value], "arrayminus": [value - low]}
            point["error_x"] = {**arms, "color": colour, "thickness": 2, "width": 5}
        point |= {"mode": "markers+text", "text": [ratio(value)], "textposition": "top center"}
        traces.append({**point, "textfont": {"color": "var(--ink)"}})
    ends = [end for _, s in judged for end in (s["low"], s["ratio"], s["high"]) if end is not None]
    frame = layout(x="speed-up over the original", grid="x")
    frame["xaxis"] |= {"range": span([*ends, 1.0]), "ticksuffix": TIMES}
    frame["yaxis"] |= {"autorange": "reversed", "type": "category"}
    frame["shapes"] = [line(x=1.0)]
    ratios = [f"{name} {ratio(s['ratio'])} ({interval(s['low'], s['high'])})" for name, s in judged]
    alt = f"Speed-up with its interval: {'; '.join(ratios)}."
    caption = "Speed-up with its interval; the dotted line is the original."
    return Figure(traces, frame, 70 + 46 * len(judged), alt, caption)


def networks_of(layers: Sequence[Layer], rows: Sequence[Row]) -> list[str]:
    return [row["name"] for row in rows if any(row["name"] in layer["latency_s"] for layer in layers)]


def layers_figure(layers: Sequence[Layer], rows: Sequence[Row]) -> Figure | None:
    if not (networks := networks_of(layers, rows)):
        return None
    by_time = sorted(layers, key=lambda layer: -max([0.0, *(v or 0.0 for v in layer["latency_s"].values())]))
    slowest, rest = by_time[:LAYERS_SHOWN], by_time[LAYERS_SHOWN:]
    shown = [layer for layer in layers if layer in slowest]
    names = [layer["name"] for layer in shown] + ([f"{len(rest)} other layers"] if rest else [])
    bars_of: list[Times] = []
    for at, network in enumerate(networks):
        times = [layer["latency_s"].get(network) for layer in shown]
        if rest:
            times.append(sum(layer["latency_s"].get(network) or 0.0 for layer in rest))
        bars_of.append((label(network), series(at), times))
    alt = f"Time of {len(layers)} layers in {len(networks)} networks; the slowest is {slowest[0]['name']}."
    return times_figure(names, bars_of, alt, row=14 + 12 * len(networks))


def times_figure(
    labels: Sequence[str], several: Sequence[Times], alt: str, *, row: int, stacked: bool = False
) -> Figure:
    """Horizontal bars of times, of `row` pixels for each label; the labels are different from each other."""
    scale, unit = time_unit([max((time or 0.0 for *_, times in several for time in times), default=0.0)])
    names, traces = [text(one) for one in labels], []
    for which, colour, times in several:
        written = ["not there" if time is None else duration(time) for time in times]
        hover = [f"{name}, {text(which)}: {time}" for name, time in zip(names, written, strict=True)]
        values = [None if time is None else short(time / scale) for time in times]
        traces.append(bars(names, values, name=text(which), colour=colour, hover=hover))
    frame = layout(x=unit, grid="x") | {"barmode": "stack" if stacked else "group", "bargap": 0.25}
    frame["yaxis"] |= {"autorange": "reversed", "type": "category"}
    frame["yaxis"] |= {"categoryorder": "array", "categoryarray": names}
    return Figure(traces, frame, 70 + row * len(names), alt)


@dataclass(frozen=True)
class Point:
    """A median latency and its interval, in seconds; `hover` is markup, `colour` that of the point."""

    when: str
    p50: float
    low: float
    high: float
    hover: str
    colour: str


def over_time_figure(curves: Mapping[str, Sequence[Point]], alt: str) -> Figure:
    scale, unit = time_unit(one.p50 for curve in curves.values() for one in curve)
    traces = []
    for at, (name, curve) in enumerate(curves.items()):
        when, middle = [one.when for one in curve], [one.p50 / scale for one in curve]
        hover = [one.hover for one in curve]
        trace = points(when, middle, name=text(name), colour=series(at), size=9, hover=hover)
        trace["marker"]["color"] = [one.colour for one in curve]
        ends = {"array": [(one.high - one.p50) / scale for one in curve]}
        ends["arrayminus"] = [(one.p50 - one.low) / scale for one in curve]
        trace["error_y"] = {"type": "data", "symmetric": False, "color": series(at), **ends}
        traces.append({**trace, "mode": "lines+markers", "line": {"color": series(at), "width": 1.5}})
    frame = layout(y=f"latency p50, {unit}")
    frame["yaxis"]["rangemode"] = "tozero"
    return Figure(traces, frame, 360, alt)


def layout(*, x: str = "", y: str = "", grid: str = "xy") -> Layout:
    """The frame of a plot: `x` and `y` are the titles of the axes, `grid` names those with grid lines."""

    def axis(title: str, letter: str) -> Layout:
        found: Layout = {"showgrid": letter in grid, "gridcolor": "var(--line)", "zeroline": False}
        found |= {"automargin": True, "fixedrange": True, "ticklen": 4, "tickcolor": "var(--clear)"}
        return {**found, "title": {"text": title, "standoff": 10}} if title else found

    ink = {"color": "var(--ink)"}
    return {
        "paper_bgcolor": "var(--clear)",
        "plot_bgcolor": "var(--clear)",
        "font": {"color": "var(--muted)", "size": 12},
        "hoverlabel": {"bgcolor": "var(--paper)", "bordercolor": "var(--dim)", "font": ink},
        "margin": {"l": 12, "r": 24, "t": 12, "b": 12},
        "showlegend": False,
        "dragmode": False,
        "xaxis": axis(x, "x"),
        "yaxis": axis(y, "y"),
    }


def points(
    x: Sequence[Any], y: Sequence[Any], *, name: str, colour: str, size: int, hover: Sequence[str]
) -> Trace:
    marker = {"color": colour, "size": size, "opacity": 1}
    trace: Trace = {"type": "scatter", "mode": "markers", "x": list(x), "y": list(y), "name": name}
    return trace | {"marker": marker, "hovertext": list(hover), "hoverinfo": "text", "cliponaxis": False}


def line(*, x: float | None = None, y: float | None = None) -> Layout:
    across = {"x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper"}
    if x is None:
        across = {"y0": y, "y1": y, "x0": 0, "x1": 1, "xref": "paper"}
    return {"type": "line", "line": {"color": "var(--muted)", "width": 1, "dash": "dot"}, **across}


def span(values: Sequence[float], least: float | None = None) -> list[float]:
    """The range of an axis: the values plus a twelfth on either side, but not below `least`."""
    low, high = min(values), max(values)
    room = (high - low or abs(high) or 1.0) / 12
    return [short(low - room if least is None else max(least, low - room)), short(high + room)]


def legend(names: Sequence[str]) -> Legend:
    """The colours of networks in the order of the table."""
    return Legend([(series(at), name) for at, name in enumerate(names)])


def series(at: int) -> str:
    return _SERIES[at % len(_SERIES)]


def outcome_colour(outcome: str) -> str:
    return f"var(--{outcome.replace('_', '-')})" if outcome in OUTCOMES else "var(--dim)"


def text(value: object) -> str:
    """The user's text, escaped for a label."""
    return html.escape(str(value), quote=False)


def short(value: float) -> float:
    """The value with five digits: enough for a plot, and a small page."""
    return float(f"{value:.5g}")


def bars(
    names: Sequence[Any],
    values: Sequence[float | None],
    *,
    name: str,
    colour: str,
    hover: Sequence[str],
    upright: bool = False,
) -> Trace:
    x, y = (names, values) if upright else (values, names)
    trace: Trace = {"type": "bar", "orientation": "v" if upright else "h", "x": list(x), "y": list(y)}
    trace |= {"name": name, "marker": {"color": colour}}
    return trace | {"hovertext": list(hover), "hoverinfo": "text"}
