"""The commands that run one stage alone, with the code of a recipe: prune and quantize."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from .. import api
from ..targets.board_file import with_jetpack
from ..targets.errors import RecipeError
from ..terminal.options import Data, JetPack, Settings, TargetName
from ..terminal.show import show
from ..terminal.tables import bar, point_to, watching

METHODS = ("minmax", "percentile", "entropy", "mse", "best")


def prune(
    what: Annotated[
        str, Argument(metavar="FILE.py:NAME|RECIPE.toml", help="A workload, or a recipe with a stage prune.")
    ],
    ratio: Annotated[
        float | None, Option(min=0, max=1, help="The share of each group's neurons to remove.")
    ] = None,
    parameters: Annotated[
        float | None, Option(min=0, max=1, help="Instead, the share of the network's parameters to remove.")
    ] = None,
    mean: Annotated[float | None, Option(help="Instead, with --std: remove neurons whose mean ...")] = None,
    std: Annotated[
        float | None, Option(help="... and standard deviation are both at or below these.")
    ] = None,
    criterion: Annotated[
        str | None, Option(help="Ranks the neurons; default: activation. Or FILE.function.")
    ] = None,
    weights: Annotated[
        Path | None, Option(help="A checkpoint: .safetensors, or .pt with only tensors.")
    ] = None,
    key: Annotated[str, Option(help="The key of the state dict in a .pt file, e.g. model.")] = "",
    target: TargetName = None,
    settings: Settings = None,
    data: Data = None,
    to: Annotated[
        Path | None, Option("--out", help="A folder for the files; default: runs/NAME-pruned.")
    ] = None,
) -> None:
    """Prune a network with the stage of a recipe, and report the cost of the cut, without fine-tuning.

    Exit code: 0 pruned, 1 nothing could be removed by these settings; nothing is written then.
    """
    point_to(data)
    with watching(goes_on=what.endswith(".toml")) as watcher:
        made = api.prune(
            what,
            ratio=ratio,
            parameters=parameters,
            mean=mean,
            std=std,
            criterion=criterion,
            weights=weights,
            key=key,
            target=target,
            settings=settings or (),
            out=to,
            watcher=watcher,
        )
    show(made)
    raise typer.Exit(made.exit_code)


def quantize(
    model: Annotated[Path, Argument(metavar="MODEL.onnx", help="A float network, from any exporter.")],
    data: Annotated[
        Path | None,
        Option(metavar="FOLDER|FILE", help="Samples: .npz files of arrays by the inputs' names, or .npy."),
    ] = None,
    target: Annotated[str, Option(help="The board; see `deadweight targets`.")] = "x86-cpu",
    jetpack: JetPack = None,
    method: Annotated[
        str, Option(help=f"Calibration of ranges: {', '.join(METHODS)} (of these four).")
    ] = "minmax",
    skip: Annotated[
        list[str] | None, Option(metavar="LAYER", help="A layer that stays in float; repeatable.")
    ] = None,
    weight_bits: Annotated[
        int, Option(min=2, max=8, help="7 for x86 without VNNI, where sums of 8-bit weights saturate.")
    ] = 8,
    half: Annotated[
        bool, Option("--half", help="FP16 for operators in float, for TensorRT 10 and later.")
    ] = False,
    calibration_cache: Annotated[
        bool,
        Option(
            "--calibration-cache",
            help="Write TensorRT's calibration.cache and its float.onnx, too: for DLA, DeepStream, trtexec.",
        ),
    ] = False,
    batch: Annotated[int, Option(min=1, help="The batch of float.onnx: DLA needs a fixed one.")] = 1,
    to: Annotated[
        Path | None, Option("--out", help="A folder for the files; default: beside the model.")
    ] = None,
) -> None:
    """Quantize an ONNX file to INT8 with your own calibration samples, and report what changed.

    Exit code: 0 written, 1 TensorRT of the target would refuse it; nothing is written then.
    """
    if data is None:
        raise RecipeError(
            "INT8 needs calibration samples, and none were given.",
            "Give --data, a folder of .npz files with a few hundred real samples, prepared exactly as for "
            "inference, as arrays by the inputs' names. Random numbers would give wrong ranges.",
        )
    with bar() as shown:
        made = api.quantize(
            model,
            data,
            target=with_jetpack(target, jetpack) or target,
            method=method,
            skip=skip or (),
            weight_bits=weight_bits,
            half=half,
            cache_batch=batch if calibration_cache else None,
            out=to,
            progress=shown,
        )
    show(made)
    raise typer.Exit(made.exit_code)
