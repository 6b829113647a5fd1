"""The commands on tables of segment times: table measures one, advise reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from .. import api
from ..terminal.options import BoardPrecision, BoardRuntime, On, TargetName
from ..terminal.printer import err
from ..terminal.show import show
from ..terminal.tables import bar


def table(
    what: Annotated[str, Argument(metavar="MODEL.onnx|FILE.py:NAME", help="A network, or a workload.")],
    target: TargetName = None,
    on: Annotated[
        list[str] | None,
        Option("--on", metavar="USER@HOST", help="A board, by its ssh name; several share the work."),
    ] = None,
    runtime: BoardRuntime = None,
    precision: BoardPrecision = None,
    networks: Annotated[int, Option(min=16, help="Whole networks of random widths for the fit.")] = 60,
    held_out: Annotated[int, Option(min=0, help="More, to be forecast, and timed twice for the noise.")] = 20,
    to: Annotated[
        Path | None, Option("--out", help="The table's file, and a page beside it. Default: NAME.table.json.")
    ] = None,
) -> None:
    """Measure how a network's time follows the widths of its layers: what `advise` and the stage budget read.

    Only times are measured: no data, no weights. Stopped, the same command goes on where it was.
    Several boards of one kind (--on, repeated) first time the same files: unlike ones are refused.

    Exit code: 0 measured, 3 the times are emulated or simulated.
    """
    with bar(goes_on=True) as shown:
        made = api.table(
            what,
            target=target,
            on=on,
            runtime=runtime,
            precision=precision,
            networks=networks,
            held_out=held_out,
            out=to,
            begun=err.say,
            progress=shown,
        )
    show(made)
    raise typer.Exit(made.exit_code)


def advise(
    model: Annotated[Path, Argument(metavar="MODEL.onnx", help="The network of the table, whole or cut.")],
    table: Annotated[Path, Option("--table", help="The file that `table` or the stage budget wrote.")],
    on: On = None,
) -> None:
    """Say which widths are free, which layers do not pay, and what the next millisecond costs.

    Exit code: 0 answered, 3 the table's times are emulated or simulated.
    """
    made = api.advise(model, table=table, on=on)
    show(made)
    raise typer.Exit(made.exit_code)
