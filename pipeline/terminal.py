"""The report in a terminal: the verdict in one line, and the table of networks."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from .schema import Report, Row
from .tables import SIGNS
from .units import MISSING, count, duration, percent, ratio, size
from .words import budget_words, how_sure, label, scale_of

_STYLES = {"faster": "green", "slower": "red", "equal": "blue", "cannot_tell": "yellow"}


def verdict_line(report: Report) -> Text:
    """The verdict, how sure it is, and the budgets that were broken or not measured."""
    verdict = report["verdict"]
    style = _STYLES[verdict["outcome"]]
    line = Text()
    line.append(f"{SIGNS[verdict['outcome']]} {verdict['sentence']}", style=f"bold {style}")
    line.append(f"\n  {how_sure(verdict)}")
    for budget in report.get("budgets", []):
        if not budget["met"]:
            told = budget_words(budget, scale_of(report))
            line.append(f"\n  Budget, {told}", style="red" if budget["met"] is False else "yellow")
    return line


def summary_table(report: Report) -> Table:
    """One row a network, the controls below a line; it folds no figure, whatever the terminal's width."""
    scale = scale_of(report)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("Network")
    for head in (
        scale.name,
        "change",
        "parameters",
        "file",
        "p50",
        "p99",
        "memory",
        "speed-up",
        "interval",
        "",
    ):
        table.add_column(head, justify="right", no_wrap=True)
    first = report["rows"][0]
    for at, row in enumerate(report["rows"]):
        last = at == len(report["rows"]) - 1
        table.add_row(*_cells(row, first, report), end_section=last)
    for row in report.get("controls", []):
        table.add_row(*_cells(row, first, report), style="dim")
    return table


def _cells(row: Row, first: Row, report: Report) -> list[Text]:
    scale, latency, speedup = scale_of(report), row["latency_s"], row["speedup"]
    change = ""
    if row is not first and row["score"] is not None and first["score"] is not None:
        change = scale.change(row["score"] - first["score"]).removesuffix("points").strip()
    parameters = MISSING if row["parameters"] is None else count(row["parameters"])
    if row is not first and row["parameters"] is not None and first["parameters"]:
        parameters += f" ({percent(row['parameters'] / first['parameters'])})"
    cells = [
        label(row["name"]),
        MISSING if row["score"] is None else scale.text(row["score"]),
        change,
        parameters,
        MISSING if row["file_bytes"] is None else size(row["file_bytes"]),
        duration(latency["p50"]) if latency else MISSING,
        duration(latency["p99"]) if latency else MISSING,
        MISSING if row["memory_bytes"] is None else size(row["memory_bytes"]),
        ratio(speedup["ratio"]) if speedup else "",
        f"{ratio(speedup['low'])} to {ratio(speedup['high'])}" if speedup else "",
    ]
    judged = Text(SIGNS[speedup["outcome"]], style=_STYLES[speedup["outcome"]]) if speedup else Text()
    return [*(Text(cell) for cell in cells), judged]
