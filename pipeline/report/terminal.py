"""The report in a terminal: the verdict in one line, and the page's tables, as far as there is room."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from . import document, tables
from .document import SIGNS, Cell
from .schema import Report, Sweep
from .units import MISSING, ScoreScale
from .words import budget_sentence, headline, how_sure, scale_of

_STYLES = {"faster": "green", "slower": "red", "equal": "blue", "cannot_tell": "yellow"}


def verdict_line(report: Report) -> Text:
    """The verdict, its interval, and the budgets that were broken or not measured."""
    verdict = report["verdict"]
    style = _STYLES[verdict["outcome"]]
    line = Text()
    line.append(f"{SIGNS[verdict['outcome']]} {headline(report)}", style=f"bold {style}")
    line.append(f"\n  {how_sure(verdict)}")
    for budget in report.get("budgets", []):
        if not budget["met"]:
            sentence = budget_sentence(budget, scale_of(report))
            line.append(f"\n  Budget, {sentence}", style="red" if budget["met"] is False else "yellow")
    return line


def summary_table(report: Report) -> Table:
    """One row per network, the controls dim; every figure fits in 80 columns."""
    return _drawn(tables.networks_table(report, scale_of(report)))


def sweep_table(sweep: Sweep, scale: ScoreScale) -> Table:
    """One row per setting, the chosen one first, then smaller networks first."""
    return _drawn(tables.sweep_table(sweep, scale))


def _drawn(table: document.Table) -> Table:
    drawn = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    shown = [at for at, head in enumerate(table.head) if head not in table.more]
    every = [row for rows in table.groups.values() for row in rows]
    for at in shown:
        head = "\n".join(table.head[at].replace(".", ". ").rsplit(" ", 1))  # so that all columns fit
        if at < table.left:
            words = [word for row in every for word in _written(row[at]).plain.split()]
            drawn.add_column(head, min_width=max(map(len, words)))
        else:
            drawn.add_column(head, justify="right", no_wrap=True)
    for title, rows in table.groups.items():
        drawn.add_section()
        for number, row in enumerate(rows):
            style = "dim" if title else "bold" if number < table.chosen else ""
            drawn.add_row(*(_written(row[at]) for at in shown), style=style)
    return drawn


def _written(cell: Cell | str) -> Text:
    if isinstance(cell, str):
        return Text(cell or MISSING)
    figure = f"{SIGNS[cell.outcome]} {cell.text}" if cell.outcome else cell.text
    small = [f"\n{line.removesuffix('points').strip()}" for line in cell.small if line]
    return Text.assemble((figure, _STYLES.get(cell.outcome, "")), ("".join(small), "dim"))
