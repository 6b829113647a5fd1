"""The commands. Nothing heavy is imported before the command that needs it runs.

Exit codes: 0 proven or done, 1 slower or a budget broken, 2 bad input, 3 cannot tell, 130 Ctrl-C.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from . import __version__
from .console import bar, err, judgement_line, measurement_table, memory_line, out, show_lint, stage_line
from .targets.errors import RecipeError

if TYPE_CHECKING:
    from .pipeline.run import Watcher
    from .pipeline.store import Finished

app = typer.Typer(
    help="Remove the neurons that are dead weight, and prove that what is left is faster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Replace a setting, e.g. prune.mean=0.1; may be repeated.")
]
Out = Annotated[
    Path | None, typer.Option("--out", help="The run's directory; default: runs/ and the recipe's name.")
]
TargetName = Annotated[str | None, typer.Option("--target", help="A board's name, see `deadweight targets`.")]
Data = Annotated[str | None, typer.Option("--data", help="Where the example's data lies.")]


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit


@app.command()
def run(
    recipe: Path, settings: Settings = None, out_dir: Out = None, target: TargetName = None, data: Data = None
) -> None:
    """Run a recipe from training to the report; a killed run goes on where it was left.

    Exit code: 0 proven faster within all budgets, 1 slower or a budget broken, 3 cannot tell.
    """
    from .pipeline.recipe import read_recipe
    from .pipeline.report.terminal import summary_table, verdict_line
    from .pipeline.run import run as run_recipe
    from .pipeline.summary import exit_code

    _point_to(data)
    directory = out_dir or Path("runs") / recipe.stem
    with _watching() as watcher:
        report = run_recipe(read_recipe(recipe, _with_target(settings, target)), directory, watcher)
    out.print(summary_table(report))
    for sentence in report.get("words", []):
        out.print(sentence)
    out.print(verdict_line(report))
    out.print(f"The networks: {directory / 'networks'}", soft_wrap=True)
    out.print(f"The report: {directory / 'report.html'}", soft_wrap=True)
    raise typer.Exit(exit_code(report))


@app.command()
def sweep(
    recipe: Path,
    over: Annotated[
        list[str] | None,
        typer.Option("--over", help="Values to try, e.g. prune.mean=0.02,0.1,0.5; may be repeated."),
    ] = None,
    score_drop: Annotated[float, typer.Option(help="How much worse the chosen network may score.")] = 0.005,
    settings: Settings = None,
    out_dir: Out = None,
    target: TargetName = None,
    data: Data = None,
) -> None:
    """Try many settings on the validation split: a table, a plot, and the smallest network that holds.

    Without --over the recipe's own [sweep] is run.
    """
    from .pipeline.recipe import SweepSettings, parse_over, read_recipe
    from .pipeline.report.terminal import sweep_table
    from .pipeline.run import run_sweep

    _point_to(data)
    read = read_recipe(recipe, _with_target(settings, target))
    chosen = SweepSettings(over=parse_over(over), score_drop=score_drop) if over else read.sweep
    if chosen is None:
        raise RecipeError(
            f"{recipe} has no [sweep], and no --over was given.", "Give e.g. --over prune.mean=0.02,0.1,0.5."
        )
    directory = out_dir or Path("runs") / recipe.stem
    with _watching() as watcher:
        swept = run_sweep(read, chosen, directory, watcher)
    out.print(sweep_table(swept.sweep, score_name=swept.score_name, higher_is_better=swept.higher_is_better))
    for reason in swept.refused:
        out.print(f"Refused: {reason}", soft_wrap=True, markup=False)
    if not swept.chosen:
        out.print(f"No setting keeps the score within {chosen.score_drop}.")
    out.print(f"Table and plot: {directory / 'sweep.html'}, sweep.csv, sweep.json", soft_wrap=True)


@app.command()
def profile(
    model: Path,
    events: Annotated[int, typer.Option(help="Fresh loads of the model.")] = 24,
    event_s: Annotated[float, typer.Option(help="Seconds of running within one event.")] = 0.05,
    threads: Annotated[int, typer.Option(help="Threads of the runtime.")] = 1,
    batch: Annotated[int, typer.Option(help="Samples at once, where the model leaves it open.")] = 1,
    to: Annotated[Path | None, typer.Option("--out", help="Where the measurement goes, as JSON.")] = None,
) -> None:
    """Measure one model: latency percentiles with their interval, memory, and the conditions."""
    from .targets import measurement
    from .targets.clock import time_together
    from .targets.measurement import Protocol
    from .targets.memory import measure_memory

    protocol = Protocol(events=events, event_s=event_s, threads=threads, batch=batch)
    with bar() as shown:
        measured = time_together(
            {model.name: model}, protocol=protocol, progress=lambda done, total: shown(done, total, "profile")
        )
        shown(0, 1, "memory")
        memory = measure_memory(model, threads=threads, batch=batch)
    figures = measured[model.name]
    out.print(measurement_table(measured))
    out.print(memory_line(memory))
    machine = figures.conditions["machine"]
    out.print(f"{figures.evidence} on {machine['cpu']}, {threads} thread(s), batch {batch}", markup=False)
    for mark in figures.marks:
        out.print(f"  event {mark.event}: {mark.what}", markup=False)
    if to is not None:
        measurement.save(measured, to)
        out.print(f"The measurement: {to}", soft_wrap=True)


@app.command()
def compare(
    baseline: Path,
    candidate: Path,
    events: Annotated[int, typer.Option(help="Fresh loads of both models.")] = 24,
    event_s: Annotated[float, typer.Option(help="Seconds of running each within one event.")] = 0.05,
    threads: Annotated[int, typer.Option(help="Threads of the runtime.")] = 1,
    batch: Annotated[int, typer.Option(help="Samples at once, where the models leave it open.")] = 1,
    margin: Annotated[float, typer.Option(help="The change that does not matter, as a share.")] = 0.02,
    to: Annotated[
        Path | None, typer.Option("--out", help="Where measurements and judgement go, as JSON.")
    ] = None,
) -> None:
    """Compare two models by turns in one process, and say how sure the answer is.

    Exit code: 0 faster or equal, 1 slower, 3 cannot tell.
    """
    from .targets.artifact import write_json
    from .targets.clock import time_together
    from .targets.judge import judge
    from .targets.measurement import Protocol

    names = ("baseline", "candidate")
    protocol = Protocol(events=events, event_s=event_s, threads=threads, batch=batch)
    with bar() as shown:
        measured = time_together(
            dict(zip(names, (baseline, candidate), strict=True)),
            protocol=protocol,
            progress=lambda done, total: shown(done, total, "compare"),
        )
    judgement = judge(measured["baseline"], measured["candidate"], margin=margin)
    out.print(measurement_table(measured))
    out.print(judgement_line(judgement), soft_wrap=True)
    if to is not None:
        value = {name: figures.to_json() for name, figures in measured.items()}
        write_json(to, {**value, "judgement": judgement.to_json()})
    raise typer.Exit({"faster": 0, "equal": 0, "slower": 1}.get(judgement.outcome, 3))


@app.command()
def lint(
    model: Path,
    target: TargetName = None,
    tensorrt: Annotated[
        str | None, typer.Option(help="TensorRT's version, e.g. 8.5 or 10.3; default: the board's own.")
    ] = None,
    max_gpu_fallbacks: Annotated[
        int | None, typer.Option(min=0, help="How many nodes DLA may hand back to the GPU.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Say what TensorRT will refuse in an ONNX file, or run slowly; TensorRT is not needed.

    Exit code: 0 nothing is refused, 1 an error or a broken budget.
    """
    from .export.lint.run import lint as examine
    from .targets.target import load_target

    found = examine(
        model,
        target=None if target is None else load_target(target),
        tensorrt=tensorrt,
        max_gpu_fallbacks=max_gpu_fallbacks,
    )
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        show_lint(found)
    raise typer.Exit(0 if found.passed else 1)


@app.command()
def targets(
    name: Annotated[str | None, typer.Argument(help="A board's name, or its .toml file.")] = None,
) -> None:
    """List the boards that are known, or one board's facts with their sources."""
    from .targets.target import load_target, target_names

    if name is None:
        table = Table("target", "board", "runtime", "precisions", header_style="bold")
        for each in map(load_target, target_names()):
            table.add_row(each.name, each.title, each.runtime, ", ".join(each.precisions))
        out.print(table)
        return
    target = load_target(name)
    out.print(f"[bold]{escape(target.title)}[/]: {target.runtime}, {', '.join(target.precisions)}")
    table = Table("fact", "value", "certainty", "source", header_style="bold")
    for kind, rule in target.alignment.items():
        table.add_row(f"width of {kind}", f"multiple of {rule.step}", rule.certainty, escape(rule.source))
    for key, fact in target.facts.items():
        table.add_row(key, escape(str(fact.value)), fact.certainty, escape(fact.source))
    out.print(table)


@app.command()
def doctor() -> None:
    """Say what works on this machine, and the line that mends what does not.

    Exit code: 1 if something is missing.
    """
    from .targets.probe import doctor as examine

    checks = examine()
    table = Table("", "what", "found", "needed for", header_style="bold")
    for check in checks:
        sign = "[green]works[/]" if check.works else "[red]missing[/]"
        table.add_row(sign, check.name, escape(check.found), escape(check.needed_for))
    out.print(table)
    for check in checks:
        if check.cure:
            out.print(f"{check.name}: {check.cure}", markup=False, soft_wrap=True)
    raise typer.Exit(0 if all(check.works for check in checks) else 1)


@app.command()
def report(directory: Path) -> None:
    """Build report.html anew from a run's report.json."""
    from .pipeline.report.write import write_report

    out.print(f"The report: {write_report(directory)}", soft_wrap=True)


@contextlib.contextmanager
def _watching() -> Iterator[Watcher]:
    """A line on stderr for every stage, and a bar while it runs."""
    from .pipeline.run import Watcher

    with bar() as shown:

        def ended(finished: Finished) -> None:
            shown.clear()
            err.print(
                stage_line(finished.name, None if finished.cached else finished.seconds, finished.words)
            )

        yield Watcher(started=lambda name: shown(0, 1, name), progress=shown, ended=ended)


def _with_target(settings: list[str] | None, target: str | None) -> list[str]:
    return [*(settings or []), *([f"target={json.dumps(target)}"] if target else [])]


def _point_to(data: str | None) -> None:
    # The workload is the user's own file and reads its data as it likes; the examples look here.
    if data is not None:
        os.environ["DEADWEIGHT_DATA"] = data
