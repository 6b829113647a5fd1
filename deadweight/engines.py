"""The commands about files that TensorRT will read: what it refuses, and the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .console import show_lint
from .options import TargetName


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
