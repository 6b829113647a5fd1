"""The report in a terminal: the verdict in one line, and the table of networks."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from .document import SIGNS
from .schema import Report, Row, Speedup, Sweep
from .units import ENGINE, MINUS, MISSING, ScoreScale, count, duration, interval, percent, ratio, size
from .words import budget_sentence, how_sure, label, scale_of

_STYLES = {"faster": "green", "slower": "red", "equal": "blue", "cannot_tell": "yellow"}


def verdict_line(report: Report) -> Text:
    """The verdict, its interval, and the budgets that were broken or not measured."""
    verdict = report["verdict"]
    style = _STYLES[verdict["outcome"]]
    line = Text()
    line.append(f"{SIGNS[verdict['outcome']]} {verdict['sentence']}", style=f"bold {style}")
    line.append(f"\n  {how_sure(verdict)}")
    for budget in report.get("budgets", []):
        if not budget["met"]:
            sentence = budget_sentence(budget, scale_of(report))
            line.append(f"\n  Budget, {sentence}", style="red" if budget["met"] is False else "yellow")
    return line


def summary_table(report: Report) -> Table:
    """One row per network, the controls below a line.

    A row has two lines (below: the change of the score, that of the parameters, p99, the interval of
    the speed-up), so that every figure fits in 80 columns.
    """
    scale = scale_of(report)
    table = Table(box=None, pad_edge=False, header_style="dim")
    first, controls = report["rows"][0], report.get("controls", [])
    every = [*report["rows"], *controls]
    table.add_column(
        "Network", min_width=max(len(word) for row in every for word in label(row["name"]).split())
    )
    # Columns without any value are left out.
    left_out = {ENGINE} if not any("engine_score" in row for row in every) else set()
    left_out |= {"memory"} if all(row["memory_bytes"] is None for row in every) else set()
    heads = [scale.name, ENGINE, "parameters", "file", "p50, p99", "memory", "speed-up"]
    for head in heads:
        if head not in left_out:
            table.add_column(head, justify="right", min_width=7, no_wrap=head != ENGINE)
    for row in every:
        name, *cells = _cells(row, first, scale)
        shown = [cell for head, cell in zip(heads, cells, strict=True) if head not in left_out]
        style = "dim" if row in controls else ""
        table.add_row(name, *shown, end_section=row is report["rows"][-1], style=style)
    return table


def sweep_table(sweep: Sweep, scale: ScoreScale) -> Table:
    """One row per setting, smaller networks first, the chosen one marked."""
    rows = sorted(sweep["rows"], key=lambda row: row["parameters"])
    table = Table(box=None, pad_edge=False, header_style="dim", title=f"On the {rows[0]['split']} split")
    for name in sweep["settings"]:
        table.add_column(name.replace(".", ".\n", 1), no_wrap=True)  # on two lines, so that all columns fit
    for head in (scale.name, "before\ntuning", "parameters", "file", "speed-up"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        judged = _judged(row["speedup"]) if row["speedup"] else Text(MISSING)
        change = "" if row["score_change"] is None else scale.change(row["score_change"])
        cells = [
            *(str(row["settings"][name]) for name in sweep["settings"]),
            MISSING if row["score"] is None else f"{scale.text(row['score'])}\n{change}",
            MISSING if row["raw_score"] is None else scale.text(row["raw_score"]),
            f"{count(row['parameters'])}\n{percent(row['parameters_removed'])} removed",
            MISSING if row["file_bytes"] is None else size(row["file_bytes"]),
        ]
        if row["chosen"]:
            cells[0] += "\nchosen"
        table.add_row(*cells, judged, style="bold" if row["chosen"] else "")
    return table


def _cells(row: Row, first: Row, scale: ScoreScale) -> list[Text]:
    latency, speedup = row["latency_s"], row["speedup"]
    other = row is not first
    change = share = ""
    if other and row["score"] is not None and first["score"] is not None:
        change = scale.change(row["score"] - first["score"]).removesuffix("points").strip()
    if other and row["parameters"] is not None and first["parameters"]:
        gone = 1 - row["parameters"] / first["parameters"]
        share = f"{MINUS if gone >= 0 else '+'}{percent(abs(gone))}"
    times = [duration(latency["p50"]), duration(latency["p99"])] if latency else [MISSING, ""]
    judged = Text(MISSING if other else "")
    if speedup:
        judged = _judged(speedup).append(f"\n{interval(speedup['low'], speedup['high'])}", style="dim")
    sent = row.get("ota_bytes")
    engine, engine_first = row.get("engine_score"), first.get("engine_score")
    there = MISSING if engine is None else scale.text(engine)
    there_change = ""
    if other and engine is not None and engine_first is not None:
        there_change = scale.change(engine - engine_first).removesuffix("points").strip()
    return [
        Text(label(row["name"])),
        _two(MISSING if row["score"] is None else scale.text(row["score"]), change),
        _two(there, there_change),
        _two(MISSING if row["parameters"] is None else count(row["parameters"]), share),
        _two(
            MISSING if row["file_bytes"] is None else size(row["file_bytes"]),
            "" if sent is None else f"{size(sent)} sent",
        ),
        _two(*times),
        Text(MISSING if row["memory_bytes"] is None else size(row["memory_bytes"])),
        judged,
    ]


def _judged(speedup: Speedup) -> Text:
    sign, value = SIGNS[speedup["outcome"]], ratio(speedup["ratio"])
    return Text.assemble((f"{sign} {value}", _STYLES[speedup["outcome"]]))


def _two(above: str, below: str) -> Text:
    return Text.assemble(above, (f"\n{below}", "dim")) if below else Text(above)
