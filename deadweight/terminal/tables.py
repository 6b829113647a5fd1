"""Terminal output: progress with the remaining time, results as tables, errors with their cure.

Progress and errors go to stderr, results to stdout, so that results can be piped.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..targets.timing.judge import Judgement
from ..targets.timing.measurement import Measurement
from ..targets.timing.memory import Memory
from ..targets.visible import visible
from .printer import err

if TYPE_CHECKING:
    from ..export.lint.check import Report
    from ..export.lint.network import Finding
    from ..pipeline.budget.advice import Curve
    from ..targets.gate.check import Gated
    from ..targets.timing.layers import LayerJudgement

COLOURS = {"faster": "green", "slower": "red", "equal": "cyan", "cannot_tell": "yellow"}
SEVERITY_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


def explain(what: str, cure: str) -> None:
    """Prints an error and its cure."""
    err.say(("Error:", "bold red"), f" {what}\n", ("What to do:", "bold"), f" {cure}")


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
            self._task = self._progress.add_task(visible(what), total=total, completed=done)
        self._last = (done, total)
        self._progress.update(self._task, completed=done, description=visible(what))

    def clear(self) -> None:
        """Removes the bar."""
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None


class Lines:
    """Progress for a log: a line every half minute, also while a step says nothing."""

    EVERY_S = 30.0

    def __init__(self) -> None:
        self._state: tuple[float, int, int, str] | None = None

    def __call__(self, done: int, total: int, what: str) -> None:
        """Stores the progress of `what`."""
        started = self._state[0] if self._state else time.monotonic()
        self._state = (started, done, total, what)

    def clear(self) -> None:
        """The part is done."""
        self._state = None

    def tell(self, ended: threading.Event) -> None:
        """Writes the lines until the end, in a thread of its own."""
        while not ended.wait(self.EVERY_S):
            if self._state:
                started, done, total, what = self._state
                share = f"{done / total:.0%}, " if done and total > 1 else ""
                err.say(f"  {what}: {share}{time.monotonic() - started:.0f} s")


@contextlib.contextmanager
def _logged() -> Iterator[Lines]:
    lines, ended = Lines(), threading.Event()
    threading.Thread(target=lines.tell, args=(ended,), daemon=True).start()
    try:
        yield lines
    finally:
        ended.set()


@contextlib.contextmanager
def bar(*, goes_on: bool = False) -> Iterator[Bar | Lines]:
    """A bar during a `with` block; lines if stderr is not a terminal.

    `goes_on`: the same command resumes after a Ctrl-C.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        *(BarColumn(), TextColumn("{task.percentage:>3.0f} %")),
        *(TimeElapsedColumn(), TextColumn("elapsed,"), TimeRemainingColumn(), TextColumn("left")),
    )
    try:
        if err.is_terminal:
            with Progress(*columns, console=err, transient=True) as progress:
                yield Bar(progress)
        else:
            with _logged() as lines:
                yield lines
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
    line.add_row(f"  {name}", "kept" if seconds is None else f"{seconds:.1f} s", "; ".join(words))
    return line


def milliseconds(seconds: float) -> str:
    """A time as milliseconds, with three significant digits or more."""
    value = seconds * 1e3
    return f"{value:.1f} ms" if value >= 100 else f"{value:.2f} ms" if value >= 1 else f"{value:.4f} ms"


def megabytes(count: int) -> str:
    """Bytes as megabytes (10^6)."""
    return f"{count / 1e6:.2f} MB"


def listing(*text: str, numbers: Iterable[str] = (), title: str | None = None) -> Table:
    """A table with headings: columns of text fold where it is narrow, columns of numbers never do."""
    table = Table(header_style="bold", title=title)
    for heading in text:
        table.add_column(heading, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def measurement_table(measured: Mapping[str, Measurement]) -> Table:
    """Latency percentiles by model, each with its interval."""
    table = listing("model", numbers=("p50, 95 % interval", "p95", "p99", "n", "file"))
    for name, figures in measured.items():
        middle = figures.latency_s(50)
        table.add_row(
            name,
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


def judgement_line(judgement: Judgement) -> Text:
    """A judgement in one coloured sentence, with its remarks below."""
    below = "".join(f"\n  {remark}" for remark in judgement.remarks)
    return Text.assemble((judgement.sentence(), f"bold {COLOURS[judgement.outcome]}"), below)


def curves_table(curves: Sequence[Curve]) -> Table:
    """One row per group: its width, the widest for the same time, the next cliff, what narrowing saves."""
    table = listing("group", numbers=("width", "free up to", "next cliff", "least width saves"))
    for one in curves:
        now = dict(one.points).get(one.width, one.points[-1][1])
        cliff = f"{one.cliff[0]}: +{milliseconds(one.cliff[1] - now)}" if one.cliff else ""
        saved = f"{one.points[0][0]}: {milliseconds(one.saved_s)}" if one.pays else "no more than noise"
        table.add_row(one.group, str(one.width), str(one.free) if one.free > one.width else "", cliff, saved)
    return table


def layers_table(judged: Sequence[LayerJudgement], *, judging: bool) -> Table:
    """One row per layer: both times, and the answer with its interval; or the times of one. `*`: pruned."""
    headings = ("base, µs", "cand., µs", "speed-up, interval", "answer") if judging else ("µs",)
    table = listing("layer", numbers=headings)
    for one in judged:
        name = Text.assemble(one.name, (f" {one.kind}", "dim"))
        cells: list[RenderableType] = [name, f"{1e6 * one.baseline_s:.1f}"]
        if judging:
            high = f"{one.high:.2f}" if math.isfinite(one.high) else "?"
            cells += [f"{1e6 * one.candidate_s:.1f}", f"{one.ratio:.2f}, {one.low:.2f} to {high}"]
            sign = "*" if one.pruned else " "
            cells.append(Text.assemble((one.outcome.replace("_", " "), COLOURS[one.outcome]), sign))
        table.add_row(*cells)
    return table


def gate_table(gated: Gated) -> Table:
    """One row per budget: the answer, the measured value, and the limit."""
    from ..targets.gate.report import limit_text

    colours = {"pass": "green", "fail": "bold red", "cannot_tell": "yellow"}
    title = f"compared with the accepted model, {gated.against}"
    table = listing("budget", "answer", "measured", "limit", title=title)
    for one in gated.checks:
        answer = Text(one.outcome.replace("_", " "), style=colours[one.outcome])
        table.add_row(one.name, answer, one.sentence, limit_text(one))
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
        sign = Text(severity, style=SEVERITY_COLOURS[severity])
        node = same[0].node + (f"\nand {len(same) - 1} more" if len(same) > 1 else "")
        what = same[0].what[:1].upper() + same[0].what[1:]
        table.add_row(str(rule), sign, node, what, cure)
    shown: list[RenderableType] = [table] if together else []
    shown += [Text(sentence) for sentence in report.words]
    for check in report.budgets:
        kept = ("kept", "") if check.met else ("broken", "red")
        shown.append(Text.assemble(f"{check.name}: {check.value} of at most {check.limit}, ", kept))
    counts = [f"{count} {name}{'s' if count > 1 else ''}" for name, count in report.counts.items() if count]
    platform = report.platform.name + (f" on {report.platform.board.name}" if report.platform.board else "")
    refused = report.counts["error"]
    says = ("refuses this file", "bold red") if refused else ("should accept this file", "bold green")
    found = f": {', '.join(counts) or 'nothing found'}."
    return [*shown, Text.assemble((f"{platform} ", "bold"), says, found)]


if TYPE_CHECKING:
    from ..pipeline.runs.cache import Finished, Watcher


@contextlib.contextmanager
def watching(*, goes_on: bool = True) -> Iterator[Watcher]:
    """A line on stderr for every stage, and a bar while it runs; `goes_on`: finished stages are kept."""
    from ..pipeline.runs.cache import Watcher

    with bar(goes_on=goes_on) as shown:

        def ended(finished: Finished) -> None:
            shown.clear()
            err.print(
                stage_line(finished.name, None if finished.cached else finished.seconds, finished.words)
            )

        yield Watcher(started=lambda name: shown(0, 1, name), progress=shown, ended=ended)


def point_to(data: str | None) -> None:
    """Sets the examples' data directory; a user's own workload need not read it."""
    if data is not None:
        if "://" in data:
            from ..pipeline.runs.store import fetched

            os.environ["DEADWEIGHT_DATA_URL"], data = data, str(fetched(data))
        os.environ["DEADWEIGHT_DATA"] = data
