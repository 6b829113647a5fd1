"""The commands about TensorRT: `lint` and `build`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import api
from ..targets.board_file import with_jetpack
from ..targets.errors import RecipeError
from ..terminal.options import JetPack, Precision, TargetName
from ..terminal.show import show
from ..terminal.tables import bar, explain

if TYPE_CHECKING:
    from ..targets.engines.build_settings import Profile


def lint(
    model: Path,
    target: TargetName = None,
    jetpack: JetPack = None,
    tensorrt: Annotated[
        str | None, typer.Option(help="TensorRT's version, e.g. 8.5 or 10.3; default: the board's own.")
    ] = None,
    max_gpu_fallbacks: Annotated[
        int | None, typer.Option(min=0, help="How many nodes may fall back from DLA to the GPU.")
    ] = None,
    dla: Annotated[bool, typer.Option("--dla", help="The file is for the board's DLA.")] = False,
    ask_parser: Annotated[
        bool, typer.Option("--ask-parser", help="Ask NVIDIA's own parser, too: TensorRT's or TensorRT-RTX's.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Find what TensorRT will refuse in an ONNX file, or run slowly; TensorRT is not needed.

    Exit code: 0 nothing is refused, 1 an error or a broken budget.
    """
    found = api.lint(
        model,
        target=with_jetpack(target, jetpack),
        tensorrt=tensorrt,
        max_gpu_fallbacks=max_gpu_fallbacks,
        dla=dla,
        ask_parser=ask_parser,
    )
    if as_json:
        typer.echo(json.dumps(found.report.to_json(), indent=2))
    else:
        show(found)
    raise typer.Exit(found.exit_code)


def build(
    model: Path,
    target: TargetName = None,
    jetpack: JetPack = None,
    to: Annotated[Path | None, typer.Option("--out", help="The plan; default: beside the model.")] = None,
    on: Annotated[
        str | None, typer.Option(metavar="USER@HOST", help="Build there, and copy the plan here.")
    ] = None,
    batch: Annotated[str, typer.Option(help="Smallest, usual and largest batch, e.g. 1,8,16.")] = "1,1,1",
    shapes: Annotated[
        list[str] | None, typer.Option(help="An input's three shapes: NAME=1x16,8x16,16x16; repeatable.")
    ] = None,
    workspace_bytes: Annotated[int | None, typer.Option(min=1, help="Scratch memory of a layer.")] = None,
    optimization_level: Annotated[int | None, typer.Option(min=0, max=5, help="How long to search.")] = None,
    precision: Precision = "fp16",
    sparse: Annotated[bool, typer.Option("--sparse", help="Use kernels for 2:4 sparse weights.")] = False,
    dla_core: Annotated[int | None, typer.Option(min=0, help="Build for this DLA core.")] = None,
    max_gpu_fallbacks: Annotated[
        int | None, typer.Option(min=0, help="How many layers may fall back from DLA to the GPU.")
    ] = None,
    calibration_cache: Annotated[
        Path | None, typer.Option(help="DLA before TensorRT 11.4.1: a float file's INT8 ranges.")
    ] = None,
    standalone: Annotated[
        bool, typer.Option("--standalone", help="A loadable for cuDLA, wholly on DLA.")
    ] = False,
    plugin: Annotated[
        list[Path] | None, typer.Option(help="A plugin library; with --on, its path there; repeatable.")
    ] = None,
    hide_layers: Annotated[
        bool, typer.Option("--hide-layers", help="Leave the names of layers out of the plan.")
    ] = False,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="For other programs: deadweight cannot open it.")
    ] = False,
    hardware_compatibility: Annotated[
        str, typer.Option(help="For cards, not a Jetson: a level, e.g. ampere_plus.")
    ] = "",
    compute_capability: Annotated[str, typer.Option(help="TensorRT-RTX: the GPU, e.g. 8.9.")] = "",
    flavour: Annotated[
        str, typer.Option(help="tensorrt, or tensorrt_rtx for RTX GPUs (never a Jetson Orin).")
    ] = "tensorrt",
    timing_cache: Annotated[Path | None, typer.Option(help="Folder for cached kernel timings.")] = None,
) -> None:
    """Build an engine from an ONNX file, on the machine that will run it.

    Exit code: 0 built, 1 more layers than the budget fall back from DLA, 2 TensorRT refuses the file.
    """
    from ..targets.engines.build_settings import BuildSettings
    from ..targets.engines.dla import FallbackError

    settings = BuildSettings(
        flavour=flavour,
        batch=_three(batch),
        shapes=dict(_shapes(text) for text in shapes or ()),
        workspace_bytes=workspace_bytes,
        optimization_level=optimization_level,
        precision=precision,
        sparse=sparse,
        dla_core=dla_core,
        max_gpu_fallbacks=max_gpu_fallbacks,
        calibration_cache=str(calibration_cache or ""),
        standalone=standalone,
        plugins=tuple(map(str, plugin or ())),
        hide_layers=hide_layers,
        version_compatible=version_compatible,
        hardware_compatibility=hardware_compatibility,
        compute_capability=compute_capability,
    )
    try:
        with bar() as shown:
            made = api.build(
                model,
                target=with_jetpack(target, jetpack),
                out=to,
                settings=settings,
                timing_cache=timing_cache,
                on=on,
                progress=shown,
            )
    except FallbackError as error:
        explain(error.what, error.cure)
        raise typer.Exit(1) from error
    show(made)


def _three(text: str) -> tuple[int, int, int]:
    try:
        low, usual, high = (int(size) for size in text.split(","))
    except ValueError as error:
        raise RecipeError(
            f"--batch {text} is not three numbers.", "Give smallest, usual and largest, e.g. --batch 1,8,16."
        ) from error
    return low, usual, high


def _shapes(text: str) -> tuple[str, Profile]:
    name, _, shapes = text.rpartition("=")
    try:
        low, usual, high = (tuple(int(size) for size in shape.split("x")) for shape in shapes.split(","))
        if not name:
            raise ValueError(text)
    except ValueError as error:
        cure = "Give smallest, usual and largest, e.g. --shapes image=1x3x32x32,8x3x32x32,16x3x32x32."
        raise RecipeError(f"--shapes {text} is not a name and three shapes.", cure) from error
    return name, (low, usual, high)
