"""The commands that run one stage alone, by the same code as in a recipe: prune, and quantize."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from .console import bar, out, show_lint
from .stages_console import int8_facts
from .targets.errors import RecipeError

METHODS = ("minmax", "percentile", "entropy", "mse", "best")


def quantize(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="A float network, from any exporter.")],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER|FILE", help="Samples: .npz files of arrays by the inputs' names, or .npy."
        ),
    ] = None,
    target: Annotated[str, typer.Option(help="For which board; see `deadweight targets`.")] = "x86-cpu",
    method: Annotated[
        str, typer.Option(help=f"How ranges follow from values: {', '.join(METHODS)} (of these four).")
    ] = "minmax",
    skip: Annotated[
        list[str] | None, typer.Option(metavar="LAYER", help="Leave it in float; may be repeated.")
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="FP16 for what stays in float, for TensorRT 10 and later.")
    ] = False,
    to: Annotated[
        Path | None, typer.Option("--out", help="A folder for the files; default: beside the model.")
    ] = None,
) -> None:
    """Quantize an ONNX file to INT8 by your own calibration samples, and say what that changed.

    Exit code: 0 written, 1 TensorRT of the target would refuse it; nothing is written then.
    """
    from .export.int8 import to_int8
    from .export.samples import open_samples
    from .pipeline.off_step import off_step
    from .targets.target import load_target

    if data is None:
        raise RecipeError(
            "INT8 needs samples to calibrate on, and none were given.",
            "Give --data, a folder of .npz files with some hundred real samples, prepared exactly as for "
            "inference, as arrays by the inputs' names. Random numbers would give ranges that fit nothing.",
        )
    if method not in METHODS:
        raise RecipeError(
            f"There is no calibration method {method!r}.", f"Choose one of {', '.join(METHODS)}."
        )
    board = load_target(target)
    folder = to or model.with_suffix(".int8")
    with bar() as shown:
        shown(0, 1, "read")
        samples = open_samples(model, data)
        made = to_int8(
            model,
            samples,
            folder,
            target=board,
            method=cast(Any, method),
            skip=skip or (),
            half=half,
            progress=shown,
        )
    words = off_step(model, made.quantized.in_int8, board) if board.runtime != "tensorrt" else ()
    out.print(int8_facts(made, model=model, samples=samples, target=board, words=words))
    if made.lint is not None:
        show_lint(made.lint)
    if made.path is None:
        out.print("Nothing was written.")
        raise typer.Exit(1)
    out.print(f"The network: {made.path}", soft_wrap=True, markup=False)
    ask = f"deadweight compare {model} {made.path}"
    if board.runtime == "tensorrt":
        ask = f"deadweight build {made.path} --target {target} --on USER@HOST"
    out.print("Its score was not taken, for samples have no labels: a recipe holds INT8 to a budget of it.")
    out.print(f"Whether it is faster was not measured: {ask}", soft_wrap=True, markup=False)
