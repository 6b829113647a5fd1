"""What the commands do where a board is named with --on: the same answers, from over there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..targets.progress import Progress
from ..targets.remote.ssh import Transport, connected
from ..targets.timing.judge import Judgement
from ..targets.timing.measurement import Measurement, Protocol
from ..targets.timing.memory import Memory
from .tables import bar, out

if TYPE_CHECKING:
    from ..targets.timing.layer_profile import Layers

On = Annotated[
    str | None, typer.Option("--on", metavar="USER@HOST", help="A board, by its name in ssh; or local.")
]


@contextmanager
def board(on: str) -> Iterator[tuple[Transport, Progress]]:
    """The board, and a bar that follows what happens there."""
    with bar() as shown:
        shown(0, 1, f"connecting to {on}")
        with connected(on) as there:
            yield there, shown


def layered(on: str, models: dict[str, Path], protocol: Protocol, inputs: Path | None) -> tuple[Layers, bool]:
    """The layers of models, timed by turns on the board, and whether the board kept still."""
    from ..targets.remote.board import layers_on

    with board(on) as (there, shown):
        layers, void = layers_on(there, models, protocol=protocol, inputs=inputs, progress=shown)
    _tell_void(void)
    return layers, not void


def profiled(
    on: str, model: Path, protocol: Protocol, inputs: Path | None
) -> tuple[dict[str, Measurement], Memory]:
    """One model's times and memory on the board."""
    from ..targets.remote.board import time_on

    with board(on) as (there, shown):
        timed = time_on(
            there, {model.name: model}, protocol=protocol, inputs=inputs, memory=True, progress=shown
        )
    told = timed.memory[model.name]
    _tell_void(timed.void)
    return dict(timed.measurements), Memory(**{**told, "remarks": tuple(told["remarks"])})


def compared(
    on: str,
    baseline: Path,
    candidate: Path,
    protocol: Protocol,
    *,
    margin: float,
    until_decided: bool,
    inputs: Path | None,
) -> tuple[dict[str, Measurement], Judgement, bool]:
    """Two models' times, taken by turns on the board, its judgement, and whether the board kept still."""
    from ..targets.remote.board import compare_on

    with board(on) as (there, shown):
        timed, judgement = compare_on(
            there,
            baseline,
            candidate,
            protocol=protocol,
            margin=margin,
            until_decided=until_decided,
            inputs=inputs,
            progress=shown,
        )
    _tell_void(timed.void)
    return dict(timed.measurements), judgement, not timed.void


def _tell_void(reasons: tuple[str, ...]) -> None:
    for reason in reasons:
        out.print(f"Void: {reason}.", markup=False, soft_wrap=True)
