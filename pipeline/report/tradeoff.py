"""The trade-off plot of a sweep: change of score against parameters kept, for each setting.

A few settings that ruin the network would compress all others into a line at the top. They are drawn at the
lower edge and marked, and the table has their figures.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from .document import Figure
from .plots import Trace, layout, line, points, short, span, text
from .schema import Sweep, SweepRow
from .units import ScoreScale, by_name, count, interval, percent, ratio, spoken


def pareto(pairs: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the Pareto-optimal pairs (less is better in both numbers), in order of the first."""
    front: list[int] = []
    for at in sorted(range(len(pairs)), key=lambda index: pairs[index]):
        if not front or pairs[at][1] < pairs[front[-1]][1]:
            front.append(at)
    return front


def tradeoff_figure(sweep: Sweep, scale: ScoreScale) -> Figure | None:
    """Change of score against parameters kept: a point per setting, the Pareto front as a line.

    None if nothing was scored. Up is always better, for an error as for an accuracy.
    """
    if not (rows := [row for row in sweep["rows"] if row["score_change"] is not None]):
        return None
    losses = [scale.loss(row["score_change"] or 0.0) * scale.factor for row in rows]
    kept = [short((1 - row["parameters_removed"]) * 100) for row in rows]
    edge = edge_of(rows, losses, scale)
    up = -1.0 if scale.higher_is_better else 1.0
    drawn = [short(up * min(loss, edge)) for loss in losses]
    beyond = [at for at, loss in enumerate(losses) if loss > edge]
    chosen = [at for at, row in enumerate(rows) if row["chosen"]]
    front = [at for at in pareto(list(zip(kept, losses, strict=True))) if at not in beyond]
    rest = [at for at in range(len(rows)) if at not in {*front, *beyond, *chosen}]
    hover = [_hover(row, scale) for row in rows]
    spreads = [row.get("score_spread") for row in rows]
    bars = [short((spread or 0.0) * scale.factor) for spread in spreads] if any(spreads) else []

    def those(indices: Sequence[int], name: str, colour: str, size: int) -> Trace:
        x, y = ([column[at] for at in indices] for column in (kept, drawn))
        trace = points(x, y, name=name, colour=colour, size=size, hover=[hover[at] for at in indices])
        if bars:  # one standard deviation over the seeds
            trace["error_y"] = {"array": [bars[at] for at in indices], "thickness": 1, "color": colour}
        return trace

    dominated = those(rest, "dominated", "var(--dim)", 8)
    off = those(beyond, "loses more than is shown", "var(--dim)", 9)
    off["marker"] |= {"symbol": "triangle-down"}
    best = those(front, "Pareto front", "var(--kept)", 9)
    best |= {"mode": "lines+markers", "line": {"color": "var(--kept)", "width": 1.5}}
    taken = those(chosen, "chosen", "var(--removed)", 14)
    taken["marker"] |= {"line": {"color": "var(--paper)", "width": 2}}

    unit = ", points" if scale.share else "" if scale.higher_is_better else " (less is better)"
    frame = layout(x="parameters kept, %", y=f"{text(scale.name)} change{unit}")
    frame["xaxis"]["range"] = span(kept, least=0.0)
    # Up is better: the axis of an error is reversed.
    frame["yaxis"]["range"] = span([*drawn, 0.0])[:: 1 if scale.higher_is_better else -1]
    frame["shapes"] = [line(y=0.0)]
    alt = f"{len(rows)} settings: change of {scale.name} against the share of parameters kept."
    if chosen:
        alt += f" Chosen: {html.unescape(hover[chosen[0]].replace('<br>', ', '))}."
    traces = [trace for trace in (dominated, off, best, taken) if trace["x"]]
    caption = _beyond(len(beyond), edge, scale) if beyond else ""
    return Figure(traces, frame, 400, alt, caption)


def edge_of(rows: Sequence[SweepRow], losses: Sequence[float], scale: ScoreScale) -> float:
    """The loss beyond which settings are drawn at the edge: 2 points, or more to show the chosen one.

    All are drawn at their place if there are no outliers, or if too few would be left.
    """
    chosen = [loss for row, loss in zip(rows, losses, strict=True) if row["chosen"]]
    limit = max([2.0 if scale.share else 0.0, *(4 * loss for loss in chosen)])
    inside = sum(loss <= limit for loss in losses)
    return limit if limit > 0 and inside >= 3 and max(losses) > 1.5 * limit else max(losses)


def _beyond(off: int, edge: float, scale: ScoreScale) -> str:
    """How many settings are drawn at the edge, for the caption."""
    settings = "1 setting loses" if off == 1 else f"{off} settings lose"
    limit = scale.change(edge / scale.factor, sign=False)
    return f"{settings} more than {limit}: shown as triangles at the lower edge."


def _hover(row: SweepRow, scale: ScoreScale) -> str:
    lines = [f"{text(spoken(key))} {text(by_name(key, value))}" for key, value in row["settings"].items()]
    if row["score"] is not None and row["score_change"] is not None:
        std = row.get("score_spread")
        over = "" if std is None else f", ± {scale.change(std, sign=False)} over {row.get('seeds')} seeds"
        change = scale.change(row["score_change"])
        lines.append(f"{text(scale.name)} {scale.text(row['score'])} ({change}{over})")
    lines.append(f"parameters {count(row['parameters'])} ({percent(1 - row['parameters_removed'])} kept)")
    if row["speedup"]:
        ends = interval(row["speedup"]["low"], row["speedup"]["high"])
        lines.append(f"speed-up {ratio(row['speedup']['ratio'])} ({ends})")
    return "<br>".join(lines)
