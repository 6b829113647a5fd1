"""The command line. Heavy modules are imported only by the command that needs them.

Exit codes: 0 proven or done, 1 slower or a budget broken, 2 bad input, 3 cannot tell, 130 Ctrl-C.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from . import __version__, api
from .commands import boards, budget, engines, gate, packing, release, setup, soak, stages, timing
from .targets.errors import RecipeError
from .terminal.options import BoardPrecision, BoardRuntime, Data, JetPack, On, Out, Settings, TargetName
from .terminal.printer import out
from .terminal.show import show
from .terminal.tables import point_to, watching

app = typer.Typer(
    help="Remove the neurons that are dead weight, and prove that the smaller network is faster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, Option("--version", help="Print the version.")] = False) -> None:
    if version:
        out.say(__version__)
        raise typer.Exit


@app.command()
def run(
    recipe: Path,
    settings: Settings = None,
    out_dir: Out = None,
    target: TargetName = None,
    jetpack: JetPack = None,
    data: Data = None,
    on: On = None,
    runtime: BoardRuntime = None,
    precision: BoardPrecision = None,
    even_so: Annotated[
        bool, Option("--even-so", help="Run all stages although a budget is known to be out of reach.")
    ] = False,
) -> None:
    """Run a recipe from training to the report; a killed run resumes.

    Exit code: 0 proven faster within all budgets, 1 slower or a budget broken, 3 cannot tell.
    """
    point_to(data)
    chosen = [*(settings or ()), *([f'jetpack="{jetpack}"'] if jetpack else [])]
    with watching() as watcher:
        done = api.run(
            recipe,
            settings=chosen,
            out=out_dir,
            target=target,
            on=on,
            runtime=runtime,
            precision=precision,
            even_so=even_so,
            watcher=watcher,
        )
    show(done)
    raise typer.Exit(done.exit_code)


@app.command()
def sweep(
    recipe: Path,
    address: Annotated[
        str,
        Argument(metavar="[ADDRESS]", help="With --ray: HOST:PORT of a cluster; else this machine's."),
    ] = "",
    ray: Annotated[bool, Option("--ray", help="Run the trials on a Ray cluster: docs/scale.md.")] = False,
    over: Annotated[
        list[str] | None, Option("--over", help="Values to try, e.g. prune.mean=0.02,0.1,0.5; repeatable.")
    ] = None,
    score_drop: Annotated[float, Option(help="How much worse the chosen network may score.")] = 0.005,
    settings: Settings = None,
    out_dir: Out = None,
    target: TargetName = None,
    data: Data = None,
) -> None:
    """Try many settings on the validation split: a table, a plot, and the smallest network within the drop.

    Without --over, the values of the recipe's own table `sweep` are tried.
    """
    from .pipeline.recipe import parse_over

    point_to(data)
    if address and not ray:
        raise RecipeError(f'"{address}" is one argument too many.', f"For a cluster: --ray {address}.")
    with watching() as watcher:
        found = api.sweep(
            recipe,
            over=parse_over(over or ()),
            ray=(address or "auto") if ray else None,
            score_drop=score_drop,
            settings=settings or (),
            out=out_dir,
            target=target,
            watcher=watcher,
        )
    show(found)


@app.command()
def report(
    directory: Path,
    history: Annotated[
        bool, Option("--history", help="The plot of a gate's history.jsonl, or of a folder with one.")
    ] = False,
) -> None:
    """Build report.html again from a run's report.json; or history.html from a gate's history."""
    if history:
        from .pipeline.report.history import write_measurements

        out.say(f"The history: {write_measurements(directory)}")
        return
    from .pipeline.report.page import write_report

    out.say(f"The report: {write_report(directory)}")


for _command in (
    *(setup.init, setup.check, stages.prune, stages.quantize, budget.table, budget.advise),
    *(timing.profile, timing.compare, soak.soak, gate.gate, engines.lint, engines.build, engines.engine),
    *(engines.memory, boards.targets, boards.doctor, packing.pack, packing.unpack, boards.bundle),
    *(release.verify, release.delta, release.handover, release.camera, release.install, release.rollback),
):
    app.command()(_command)
