"""The commands that run one stage alone, by the same code as in a recipe: prune, and quantize."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from ..targets.errors import RecipeError
from ..terminal.options import Data, Settings, TargetName
from ..terminal.progress import point_to, watching
from ..terminal.stage_tables import cut_facts, int8_facts, widths_table
from ..terminal.tables import bar, out, show_lint

METHODS = ("minmax", "percentile", "entropy", "mse", "best")


def prune(
    what: Annotated[
        str,
        typer.Argument(
            metavar="FILE.py:NAME|RECIPE.toml", help="A workload, or a recipe with a stage prune."
        ),
    ],
    ratio: Annotated[
        float | None, typer.Option(min=0, max=1, help="The share of each group's neurons to remove.")
    ] = None,
    parameters: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Instead, the share of the network's parameters to remove."),
    ] = None,
    mean: Annotated[
        float | None, typer.Option(help="Instead, with --std: remove neurons whose mean ...")
    ] = None,
    std: Annotated[
        float | None, typer.Option(help="... and standard deviation are both at or below these.")
    ] = None,
    criterion: Annotated[
        str | None, typer.Option(help="What orders the neurons; default: activation. Or FILE.function.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="A checkpoint: .safetensors, or .pt of tensors alone.")
    ] = None,
    key: Annotated[str, typer.Option(help="Where a .pt file keeps its state dict, e.g. model.")] = "",
    target: TargetName = None,
    settings: Settings = None,
    data: Data = None,
    to: Annotated[
        Path | None, typer.Option("--out", help="A folder for the files; default: runs/NAME-pruned.")
    ] = None,
) -> None:
    """Prune a network, by a recipe's own stage, and say what the cut alone costs; nothing is tuned.

    Exit code: 0 pruned, 1 nothing could be removed by these settings; nothing is written then.
    """
    from ..pipeline.runs.cache import locked
    from ..pipeline.runs.prune_command import AFTER, BEFORE, in_python, prune_alone, pruning, up_to_pruning
    from ..pipeline.runs.start import prepared

    point_to(data)
    chosen = {"ratio": ratio, "parameters": parameters, "mean": mean, "std": std, "criterion": criterion}
    wanted = {name: value for name, value in chosen.items() if value is not None}
    targeted = [f"target={json.dumps(target)}"] if target else []
    recipe = pruning(what, wanted, [*(settings or []), *targeted], weights=weights, key=key)
    name = Path(what).stem if recipe.path.suffix == ".toml" else recipe.workload.rpartition(":")[2].lower()
    folder = to or Path("runs") / f"{name}-pruned"
    with contextlib.ExitStack() as held:
        watcher = held.enter_context(watching(goes_on=recipe.path.suffix == ".toml"))
        if recipe.path.suffix == ".toml":  # what a run of the recipe has made is not made again
            directory = Path("runs") / recipe.path.stem
        else:
            directory = Path(held.enter_context(tempfile.TemporaryDirectory()))
        held.enter_context(locked(directory))
        work, stage = up_to_pruning(recipe, *prepared(recipe, directory, watcher))
        cut = prune_alone(work, stage, folder)
    if weights is None and recipe.path.suffix != ".toml":
        out.print("The network is what build_model() returns: give its --weights if it is not trained there.")
    out.print(widths_table(cut))
    if cut.before is None or cut.after is None:
        out.print("Nothing was removed by these settings, so nothing was written: raise them.")
        raise typer.Exit(1)
    out.print(cut_facts(cut, score_name=work.workload.score_name))
    out.print(f"The networks: {folder / BEFORE}, {folder / AFTER}", soft_wrap=True, markup=False)
    where, lines = in_python(recipe, folder)
    out.print(f"In Python, {where}:", soft_wrap=True, markup=False)
    for line in lines:
        out.print(f"  {line}", soft_wrap=True, markup=False)
    ask = f"deadweight compare {folder / BEFORE} {folder / AFTER}"
    out.print(f"Whether it is faster was not measured: {ask}", soft_wrap=True, markup=False)


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
    from ..export.int8 import to_int8
    from ..export.onnx_graph.graph import load
    from ..export.quantization.int8_widths import off_step
    from ..export.quantization.samples import open_samples
    from ..targets.target import load_target

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
    words = off_step(load(model), made.quantized.in_int8, board)
    out.print(int8_facts(made, model=model, samples=samples, target=board, words=words))
    if made.lint is not None:
        show_lint(made.lint)
    if made.path is None:
        out.print("Nothing was written.")
        raise typer.Exit(1)
    out.print(f"The network: {made.path}", soft_wrap=True, markup=False)
    ask = f"deadweight compare {model} {made.path}"
    if board.runtime.builds:
        ask = f"deadweight build {made.path} --target {target} --on USER@HOST"
    out.print("Its score was not taken, for samples have no labels: a recipe holds INT8 to a budget of it.")
    out.print(f"Whether it is faster was not measured: {ask}", soft_wrap=True, markup=False)
