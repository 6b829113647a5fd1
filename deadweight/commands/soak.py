"""The command soak: models over minutes and hours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from .. import api
from ..targets.engines.plugins import give_plugins
from ..terminal.options import BoardPrecision, BoardRuntime, Inputs, On, Plugins, TargetName
from ..terminal.printer import out
from ..terminal.show import show
from ..terminal.tables import bar


def soak(
    model: Annotated[Path, Argument(help="The model: ONNX, or an engine.")],
    other: Annotated[Path | None, Argument(help="A candidate, in alternating periods.")] = None,
    minutes: Annotated[float, Option(help="Of all power modes together.")] = 30.0,
    period: Annotated[float, Option(help="Seconds in which one model runs.")] = 5.0,
    rate: Annotated[
        float | None, Option(help="Frames per second, as of a camera; default: flat out.")
    ] = None,
    streams: Annotated[int, Option(help="Processes that run the model at once.")] = 1,
    threads: Annotated[int, Option(help="Threads of the runtime.")] = 1,
    batch: Annotated[int, Option(help="Batch size, if the model's is dynamic.")] = 1,
    inputs: Inputs = None,
    steps: Annotated[
        Path | None, Option(metavar="FILE.py", help="Your frame, preprocess and postprocess, timed too.")
    ] = None,
    beside: Annotated[
        str | None, Option(metavar="FILE", help="A neighbour in half of the periods: a model, cpu or memory.")
    ] = None,
    beside_rate: Annotated[float | None, Option(help="Its runs per second; default: flat out.")] = None,
    beside_runtime: Annotated[str | None, Option(help="Its runtime, if another.")] = None,
    power_modes: Annotated[str, Option(metavar="A,B", help="Power modes in turn, e.g. 15W,25W,MAXN.")] = "",
    allow_power_mode: Annotated[
        bool, Option("--allow-power-mode", help="Let it set power modes; the present one is set back.")
    ] = False,
    on: On = None,
    target: TargetName = None,
    runtime: BoardRuntime = None,
    precision: BoardPrecision = None,
    plugin: Plugins = None,
    to: Annotated[Path, Option("--out", help="Every period as JSON; the page is beside it.")] = Path(
        "soak.json"
    ),
) -> None:
    """Run models for minutes to hours: tails, energy, heat, throttling, memory, missed frames.

    The same command resumes it after a reboot or a broken connection.

    Exit code: 0 good, 1 slower, or memory grows, 3 cannot tell.
    """
    from ..targets.artifact import write_json

    give_plugins(plugin or ())
    with bar(goes_on=True) as shown:
        found = api.soak(
            model,
            other,
            minutes=minutes,
            period_s=period,
            rate_hz=rate,
            streams=streams,
            threads=threads,
            batch=batch,
            inputs=inputs,
            steps=steps,
            beside=beside,
            beside_rate_hz=beside_rate,
            beside_runtime=beside_runtime,
            power_modes=[name for name in power_modes.split(",") if name],
            allow_power_mode=allow_power_mode,
            on=on,
            target=target,
            runtime=runtime,
            precision=precision,
            progress=shown,
        )
    write_json(to, found.to_json())  # first: showing may fail after hours
    show(found)
    out.say(f"Every period: {to}")
    try:
        from ..pipeline.report.soak_page import write_soak
    except ImportError:  # a CI job has no jinja2
        out.say("The page needs jinja2 and plotly, which the extra [workstation] has.")
    else:
        names = {name: path.name for name, path in found.models.items()}
        page = to.with_suffix(".html")
        out.say(f"The page: {write_soak(page, found.verdict, names, found.soak, found.summary)}")
    raise typer.Exit(found.exit_code)
