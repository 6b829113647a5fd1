"""Terminal output: progress with the remaining time, results as tables, errors with their cure.

Progress and errors go to stderr, results to stdout, so that results can be piped.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..targets.timing.judge import Judgement
from ..targets.timing.measurement import Measurement
from ..targets.timing.memory import Memory

if TYPE_CHECKING:
    from ..export.lint.check import Report
    from ..export.lint.finding import Finding
    from ..targets.gate.check import Gated
    from ..targets.timing.layers import LayerJudgement

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

COLOURS = {"faster": "green", "slower": "red", "equal": "cyan", "cannot_tell": "yellow"}
SEVERITY_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


def explain(what: str, cure: str) -> None:
    """Prints an error and its cure."""
    err.print(f"[bold red]Error:[/] {escape(what)}\n[bold]What to do:[/] {escape(cure)}", soft_wrap=True)


class Bar:
    """A progress bar that follows (done, total, what) and disappears when its part is done."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None
        self._last = (0, 0)

    def __call__(self, done: int, total: int, what: str) -> None:
        """Shows the progress of `what`; another total, or a step back, starts a new bar."""
        if self._task is None or total != self._last[1] or done < self._last[0]:
            self.clear()
            self._task = self._progress.add_task(escape(what), total=total, completed=done)
        self._last = (done, total)
        self._progress.update(self._task, completed=done, description=escape(what))

    def clear(self) -> None:
        """Removes the bar."""
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None


@contextlib.contextmanager
def bar(*, goes_on: bool = False) -> Iterator[Bar]:
    """A bar during a `with` block; nothing if stderr is not a terminal.

    `goes_on`: the same command resumes after a Ctrl-C.
    """
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %")),
        *(TimeElapsedColumn(), TextColumn("elapsed,"), TimeRemainingColumn(), TextColumn("left")),
    )
    try:
        with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
            yield Bar(progress)
    except KeyboardInterrupt:
        left = "a run resumes" if goes_on else "it starts again"
        explain("Stopped.", f"Run the same command again; {left}.")
        raise


def stage_line(name: str, seconds: float | None, words: Iterable[str]) -> Table:
    """A finished stage: its name, its time (None: from the cache), and its messages."""
    line = Table.grid(padding=(0, 2))
    line.add_column(width=12)
    line.add_column(width=8, justify="right")
    line.add_column(ratio=1)
    line.add_row(f"  {name}", "kept" if seconds is None else f"{seconds:.1f} s", escape("; ".join(words)))
    return line


def milliseconds(seconds: float) -> str:
    """A time as milliseconds, with three significant digits or more."""
    value = seconds * 1e3
    return f"{value:.1f} ms" if value >= 100 else f"{value:.2f} ms" if value >= 1 else f"{value:.4f} ms"


def megabytes(count: int) -> str:
    """Bytes as megabytes (10^6)."""
    return f"{count / 1e6:.2f} MB"


def measurement_table(measured: Mapping[str, Measurement]) -> Table:
    """Latency percentiles by model, each with its interval."""
    table = Table(header_style="bold")
    table.add_column("model", overflow="fold")
    for heading in ("p50, 95 % interval", "p95", "p99", "n", "file"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, figures in measured.items():
        middle = figures.latency_s(50)
        table.add_row(
            escape(name),
            f"{milliseconds(middle.value)}\n{milliseconds(middle.low)} to {milliseconds(middle.high)}",
            milliseconds(figures.latency_s(95).value),
            milliseconds(figures.latency_s(99).value),
            f"{figures.wall_ns.size:,}",
            megabytes(figures.file_bytes),
        )
    return table


def memory_line(memory: Memory) -> str:
    """A model's memory, in one line."""
    return (
        f"memory: {megabytes(memory.resident_bytes)} resident, "
        f"{megabytes(memory.load_peak_bytes)} at the peak of loading, "
        f"{megabytes(memory.extra_session_bytes)} for each extra session"
    )


def judgement_line(judgement: Judgement) -> str:
    """A judgement in one coloured sentence, with its remarks below."""
    first = f"[bold {COLOURS[judgement.outcome]}]{escape(judgement.sentence())}[/]"
    return "\n".join([first, *(f"  {escape(remark)}" for remark in judgement.remarks)])


def layers_table(judged: Sequence[LayerJudgement], *, judging: bool) -> Table:
    """One row per layer: both times, and the answer with its interval; or the times of one. `*`: pruned."""
    table = Table(header_style="bold")
    table.add_column("layer", overflow="fold", ratio=1)
    headings = ("base, µs", "cand., µs", "speed-up, interval", "answer") if judging else ("µs",)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for one in judged:
        cells = [f"{escape(one.name)} [dim]{one.kind}[/]", f"{1e6 * one.baseline_s:.1f}"]
        if judging:
            high = f"{one.high:.2f}" if math.isfinite(one.high) else "?"
            cells += [f"{1e6 * one.candidate_s:.1f}", f"{one.ratio:.2f}, {one.low:.2f} to {high}"]
            sign = "*" if one.pruned else " "
            cells.append(f"[{COLOURS[one.outcome]}]{one.outcome.replace('_', ' ')}[/]{sign}")
        table.add_row(*cells)
    return table


def gate_table(gated: Gated) -> Table:
    """One row per budget: the answer, the measured value, and the limit."""
    from ..targets.gate.report import limit_text

    colours = {"pass": "green", "fail": "bold red", "cannot_tell": "yellow"}
    table = Table(header_style="bold", title=f"compared with the accepted model, {gated.against}")
    for heading in ("budget", "answer", "measured", "limit"):
        table.add_column(heading, overflow="fold")
    for one in gated.checks:
        answer = f"[{colours[one.outcome]}]{one.outcome.replace('_', ' ')}[/]"
        table.add_row(one.name, answer, escape(one.sentence), limit_text(one))
    return table


def lint_lines(report: Report) -> list[RenderableType]:
    """The findings of lint, equal ones together, and the conclusion for the board."""
    together: dict[tuple[int, str, str], list[Finding]] = {}
    for finding in report.findings:
        together.setdefault((finding.rule, finding.severity, finding.cure), []).append(finding)
    table = Table("rule", "severity", header_style="bold", show_lines=True)
    for heading in ("node", "what", "cure"):
        table.add_column(heading, overflow="fold")
    for (rule, severity, cure), same in together.items():
        sign = f"[{SEVERITY_COLOURS[severity]}]{severity}[/]"
        node = escape(same[0].node) + (f"\nand {len(same) - 1} more" if len(same) > 1 else "")
        what = same[0].what[:1].upper() + same[0].what[1:]
        table.add_row(str(rule), sign, node, escape(what), escape(cure))
    shown: list[RenderableType] = [table] if together else []
    shown += [Text(sentence) for sentence in report.words]
    for check in report.budgets:
        kept = "kept" if check.met else "[red]broken[/]"
        shown.append(f"{check.name}: {check.value} of at most {check.limit}, {kept}")
    counts = [f"{count} {name}{'s' if count > 1 else ''}" for name, count in report.counts.items() if count]
    platform = report.platform.name + (f" on {report.platform.board.name}" if report.platform.board else "")
    says = "[red]refuses this file[/]" if report.counts["error"] else "[green]should accept this file[/]"
    return [*shown, f"[bold]{escape(platform)} {says}[/]: {', '.join(counts) or 'nothing found'}."]
