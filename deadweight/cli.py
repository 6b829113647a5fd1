"""The commands. Nothing heavy is imported before the command that needs it runs.

Exit codes: 0 proven or done, 1 slower or a budget broken, 2 bad input, 3 cannot tell, 130 Ctrl-C.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from . import __version__
from .commands import boards, engine_report, engines, gate, packing, release, stages, timing
from .targets.errors import RecipeError
from .terminal.on_board import On
from .terminal.options import Data, Out, Settings, TargetName
from .terminal.progress import point_to, watching
from .terminal.tables import out

app = typer.Typer(
    help="Remove the neurons that are dead weight, and prove that what is left is faster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit


@app.command()
def run(
    recipe: Path,
    settings: Settings = None,
    out_dir: Out = None,
    target: TargetName = None,
    data: Data = None,
    on: On = None,
) -> None:
    """Run a recipe from training to the report; a killed run goes on where it was left.

    Exit code: 0 proven faster within all budgets, 1 slower or a budget broken, 3 cannot tell.
    """
    from .pipeline.recipe import read_recipe
    from .pipeline.report.terminal import summary_table, verdict_line
    from .pipeline.runs.run import run as run_recipe
    from .pipeline.runs.summary import exit_code

    point_to(data)
    directory = out_dir or Path("runs") / recipe.stem
    with watching() as watcher:
        chosen = [*_with_target(settings, target), *([f"profile.on={json.dumps(on)}"] if on else [])]
        report = run_recipe(read_recipe(recipe, chosen), directory, watcher)
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
    from .pipeline.runs.run import run_sweep

    point_to(data)
    read = read_recipe(recipe, _with_target(settings, target))
    chosen = SweepSettings(over=parse_over(over), score_drop=score_drop) if over else read.sweep
    if chosen is None:
        raise RecipeError(
            f"{recipe} has no [sweep], and no --over was given.", "Give e.g. --over prune.mean=0.02,0.1,0.5."
        )
    directory = out_dir or Path("runs") / recipe.stem
    with watching() as watcher:
        swept = run_sweep(read, chosen, directory, watcher)
    out.print(sweep_table(swept.sweep, score_name=swept.score_name, higher_is_better=swept.higher_is_better))
    for sentence in swept.sweep.get("words", []):
        out.print(sentence, soft_wrap=True, markup=False)
    for reason in swept.refused:
        out.print(f"Refused: {reason}", soft_wrap=True, markup=False)
    if not swept.chosen:
        out.print(f"No setting keeps the score within {chosen.score_drop}.")
    out.print(f"Table and plot: {directory / 'sweep.html'}, sweep.csv, sweep.json", soft_wrap=True)


@app.command()
def report(
    directory: Path,
    history: Annotated[
        bool, typer.Option("--history", help="The plot of a gate's history.jsonl, or of a folder with one.")
    ] = False,
) -> None:
    """Build report.html anew from a run's report.json; or history.html from a gate's history."""
    if history:
        from .pipeline.report.history import write_measurements

        out.print(f"The history: {write_measurements(directory)}", soft_wrap=True)
        return
    from .pipeline.report.write import write_report

    out.print(f"The report: {write_report(directory)}", soft_wrap=True)


for _command in (
    stages.prune,
    stages.quantize,
    timing.profile,
    timing.compare,
    gate.gate,
    engines.lint,
    engines.build,
    engine_report.engine,
    engine_report.memory,
    boards.targets,
    boards.doctor,
    packing.pack,
    packing.unpack,
    boards.bundle,
    release.verify,
    release.delta,
    release.install,
    release.rollback,
):
    app.command()(_command)


def _with_target(settings: list[str] | None, target: str | None) -> list[str]:
    return [*(settings or []), *([f"target={json.dumps(target)}"] if target else [])]
