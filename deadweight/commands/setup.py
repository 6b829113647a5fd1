"""The commands for the first minutes: init and check."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from .. import api
from ..targets.errors import RecipeError
from ..terminal.options import Data, Settings
from ..terminal.printer import err, out
from ..terminal.show import show
from ..terminal.tables import point_to

_MODEL = "The network: file.py:function, or timm:NAME, torchvision:NAME, transformers:FOLDER, ..."
_DATA = "Its data: file.py:function that returns the loaders, a folder of images, or an .npz file."
_SIZE = "The side of images in pixels; 0: theirs, at most the network's own."
_TASK = "classification, regression, segmentation, detection or language."


def init(
    model: Annotated[str, Option(help=_MODEL)] = "",
    data: Annotated[str, Option(help=_DATA)] = "",
    task: Annotated[str, Option(help=_TASK)] = "",
    target: Annotated[str, Option(help="The board; see `deadweight targets`.")] = "x86-cpu",
    size: Annotated[int, Option(min=0, help=_SIZE)] = 0,
    epochs: Annotated[int, Option(min=0, help="Of training; 0 for a network that comes trained.")] = 10,
    to: Annotated[
        Path, Option("--out", help="The folder for both files; paths are relative to it.")
    ] = Path(),
) -> None:
    """Write a workload.py and a recipe.toml for your network; asks for what is not given.

    Nothing is overwritten. Try the result with `deadweight check recipe.toml`.
    """
    from ..pipeline.workloads.named import network_of

    model = model or _asked("--model", _MODEL)
    network = network_of(model, to)
    task = task or network.task or _asked("--task", _TASK)
    data = data or ("" if network.loaders else _asked("--data", _DATA))
    for path in api.init(model, data, task, target=target, size=size, epochs=epochs, out=to):
        out.say(f"Written: {path}")
    out.say(f"Next: deadweight check {shlex.quote(str(to / 'recipe.toml'))}")


def _asked(flag: str, what: str) -> str:
    if not sys.stdin.isatty():
        raise RecipeError(f"{flag} is missing.", what)
    return str(typer.prompt(what, err=True))


def check(
    what: Annotated[str, Argument(metavar="RECIPE.toml|FILE.py:NAME", help="A recipe, or a workload.")],
    settings: Settings = None,
    data: Data = None,
) -> None:
    """Try a recipe, or a workload, in seconds: every mistake with its file, line and cure.

    The stages run on at most two batches of each split; only timings and searches are left out. Exit code:
    0 no mistake found, 2 mistakes.
    """
    point_to(data)
    found = api.check(what, settings=settings or (), seen=lambda one: err.say(f"  {one.step} ..."))
    show(found)
    raise typer.Exit(found.exit_code)
