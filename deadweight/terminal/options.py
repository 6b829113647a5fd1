"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Replace a setting, e.g. prune.mean=0.1; may be repeated.")
]
Out = Annotated[
    Path | None, typer.Option("--out", help="The run's directory; default: runs/ and the recipe's name.")
]
TargetName = Annotated[str | None, typer.Option("--target", help="A board's name, see `deadweight targets`.")]
Inputs = Annotated[
    Path | None,
    typer.Option(
        "--inputs",
        metavar="FILE.npz",
        help="What the model is fed: arrays by its inputs' names, all samples at once. Default: random.",
    ),
]
Data = Annotated[str | None, typer.Option("--data", help="Where the example's data is.")]
On = Annotated[
    str | None, typer.Option("--on", metavar="USER@HOST", help="A board, by its name in ssh; or local.")
]
