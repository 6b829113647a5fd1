"""Budgets in the report: the plans that were found, predicted and measured, and the cliffs of each width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ...targets.artifact import write_text
from .document import (
    Cell,
    Facts,
    Figure,
    Group,
    Head,
    Legend,
    More,
    Part,
    Section,
    Table,
    Words,
    document,
    figure,
)
from .plots import Trace, layout, line, points, short, span, text
from .schema import Search, TriedPlan, WidthCurve
from .units import ScoreScale, duration, percent, significant, time_unit

OPEN = 6
_PLANS = [
    ("var(--kept)", "predicted, the best of all plans"),
    ("var(--dim)", "tried: measured, with what it takes at most (99 %)"),
    ("var(--removed)", "chosen"),
]


def search_section(search: Search | None, scale: ScoreScale) -> Section | None:
    """The plans of the stage budget."""
    if search is None:
        return None
    parts: list[Part | None] = [Legend(_PLANS), _front(search), _predictions(search), _plans(search, scale)]
    parts += [Words(search["said"]), *curve_parts(search["curves"])]
    note = (
        f"The budget is {duration(search['limit_s'])}; the whole network takes "
        f"{duration(search['whole_s'])}. "
        "Damage is the rise of the loss on the validation split, summed over groups that were narrowed alone."
    )
    return Section("The budget", parts, note)


def table_page(*, name: str, verdict: str, curves: Sequence[WidthCurve], figures: Mapping[str, str]) -> str:
    """The page of a table of segment times."""
    note = (
        "The network's predicted time over the width of one group, the others as they are. A step up is a "
        "cliff; the last width before it is free."
    )
    known = Section("How well it predicts", [Facts([*figures.items()])])
    return document(name, [Head(verdict, name), known, Section("Cliffs", curve_parts(curves), note)])


def write_table_page(
    path: Path, *, name: str, verdict: str, curves: Sequence[WidthCurve], figures: Mapping[str, str]
) -> None:
    """Writes the page of a table."""
    write_text(path, table_page(name=name, verdict=verdict, curves=curves, figures=figures))


def curve_parts(curves: Sequence[WidthCurve]) -> list[Part | None]:
    """A table of all groups, and a plot of each."""
    pairs = []
    for at in range(0, len(curves), 2):
        two = curves[at : at + 2]
        heading = " and ".join(one["group"] for one in two)
        pairs.append(Group(heading, [*map(_curve, two)], pair=True))
    more = More(f"{len(curves) - OPEN} more groups", pairs[OPEN // 2 :]) if len(curves) > OPEN else None
    return [_curves_table(curves), *pairs[: OPEN // 2], more]


def _front(search: Search) -> Figure:
    scale, unit = time_unit([search["limit_s"]])
    near = [pair for pair in search["front"] if pair[0] >= search["limit_s"] / 2]
    best = [(short(seconds / scale), damage) for seconds, damage in near]
    hover = [f"{x} {unit} predicted: damage {significant(y)}" for x, y in best]
    x, y = [x for x, _ in best], [y for _, y in best]
    front = points(x, y, name="predicted", colour="var(--kept)", size=7, hover=hover)
    front |= {"mode": "lines+markers", "line": {"color": "var(--kept)", "width": 1.5}}
    traces: list[Trace] = [front] if best else []
    for colour, size, chosen in (("var(--dim)", 9, False), ("var(--removed)", 13, True)):
        some = [one for one in search["tried"] if one["chosen"] is chosen]
        x, y = [short(one["seconds"] / scale) for one in some], [one["damage"] for one in some]
        trace = points(x, y, name="tried", colour=colour, size=size, hover=[*map(_hover, some)])
        ends = [short((one["high_s"] - one["seconds"]) / scale) for one in some]
        arms = {"type": "data", "symmetric": False, "array": ends, "arrayminus": [0.0] * len(ends)}
        traces.append(trace | {"error_x": {**arms, "color": colour, "thickness": 1.5, "width": 4}})
    frame = layout(x=f"time, {unit}", y="damage")
    limit = short(search["limit_s"] / scale)
    every = [x for x, _ in best] + [short(one["high_s"] / scale) for one in search["tried"]]
    frame["xaxis"]["range"] = span([*every, limit])
    frame["shapes"] = [line(x=limit)]
    kept = sum(one["kept"] for one in search["tried"])
    alt = f"Damage against time: of {len(search['tried'])} plans {kept} keep the budget of {limit} {unit}."
    return Figure(
        traces,
        frame,
        380,
        alt,
        "The dotted line is the budget. Plans that are twice as fast as it are left out.",
    )


def _predictions(search: Search) -> Figure | None:
    if not search["tried"]:
        return None
    scale, unit = time_unit([search["limit_s"]])
    x = [short(one["seconds"] / scale) for one in search["tried"]]
    y = [short(one["predicted_s"] / scale) for one in search["tried"]]
    hover = [*map(_hover, search["tried"])]
    trace = points(x, y, name="plans", colour="var(--kept)", size=8, hover=hover)
    up = [short(value * (search["factor"] - 1)) for value in y]
    down = [short(value * (1 - 1 / search["factor"])) for value in y]
    arms = {"type": "data", "symmetric": False, "array": up, "arrayminus": down}
    trace["error_y"] = {**arms, "color": "var(--kept)", "thickness": 1, "width": 3}
    ends = span([*x, *y])
    equal = points(ends, ends, name="equal", colour="var(--muted)", size=1, hover=["", ""])
    equal |= {
        "mode": "lines",
        "line": {"color": "var(--muted)", "width": 1, "dash": "dot"},
        "hoverinfo": "skip",
    }
    frame = layout(x=f"measured, {unit}", y=f"predicted, {unit}")
    frame["xaxis"]["range"] = ends
    return Figure([equal, trace], frame, 320, f"Predicted against measured time of {len(x)} plans.")


def _hover(one: TriedPlan) -> str:
    widths = ", ".join(f"{text(name)} {width}" for name, width in one["widths"].items())
    times = f"{duration(one['seconds'])}, at most {duration(one['high_s'])}"
    return f"{times}; predicted {duration(one['predicted_s'])}<br>{widths}"


def _plans(search: Search, scale: ScoreScale) -> Table:
    ordered = sorted(search["tried"], key=lambda one: (not one["chosen"], not one["kept"], -one["seconds"]))
    rows = []
    for one in ordered:
        first = "chosen" if one["chosen"] else "keeps it" if one["kept"] else "not proven"
        cells: list[Cell | str] = [
            first,
            figure(one["seconds"], duration, f"at most {duration(one['high_s'])}"),
            figure(one["predicted_s"], duration),
            figure(one["damage"], significant),
            figure(one["score"], scale.text),
            ", ".join(f"{name} {width}" for name, width in one["widths"].items()),
        ]
        rows.append(cells)
    head = ["Plan", "Measured", "Predicted", "Damage", "Score, not tuned", "Widths"]
    return Table("Plans that were tried", head, {"": rows}, wrap=5, chosen=1)


def _curves_table(curves: Sequence[WidthCurve]) -> Table:
    rows = []
    for one in curves:
        now = dict(one["points"]).get(one["width"], one["points"][-1][1])
        cliff = one["cliff"]
        cells: list[Cell | str] = [
            one["group"],
            str(one["width"]),
            str(one["free"]) if one["free"] > one["width"] else "",
            Cell(str(cliff[0]), small=[f"+{duration(cliff[1] - now)}"]) if cliff else "",
            figure(one["saved_s"], duration, percent(one["saved_s"] / now)),
            "yes" if one["pays"] else "no",
        ]
        rows.append(cells)
    head = ["Group", "Width", "Free up to", "Next cliff", "Least width saves", "Pays"]
    return Table("Widths", head, {"": rows})


def _curve(one: WidthCurve) -> Figure:
    scale, unit = time_unit([seconds for _, seconds in one["points"]])
    x = [width for width, _ in one["points"]]
    y = [short(seconds / scale) for _, seconds in one["points"]]
    hover = [f"{width} units: {value} {unit}" for width, value in zip(x, y, strict=True)]
    trace = points(x, y, name=text(one["group"]), colour="var(--kept)", size=6, hover=hover)
    trace["marker"]["color"] = ["var(--removed)" if width == one["width"] else "var(--kept)" for width in x]
    trace |= {"mode": "lines+markers", "line": {"color": "var(--kept)", "width": 1.5}}
    frame = layout(x=f"units of {text(one['group'])}", y=f"network, {unit}")
    alt = f"Time over the width of {one['group']}: {y[0]} {unit} at {x[0]}, {y[-1]} {unit} at {x[-1]}."
    return Figure([trace], frame, 230, alt)
