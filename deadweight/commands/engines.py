"""The commands about TensorRT: `lint`, `build`, the layers of an engine, and the memory need of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from .. import api
from ..targets.board_file import with_jetpack
from ..targets.errors import ArtifactError, RecipeError
from ..targets.plain import plain
from ..terminal.options import JetPack, On, Precision, TargetName
from ..terminal.printer import out
from ..terminal.show import show
from ..terminal.tables import bar, explain, listing, milliseconds

if TYPE_CHECKING:
    from ..targets.engines.compare import Comparison
    from ..targets.engines.content import Engine
    from ..targets.runtimes.session import Arrays
    from ..targets.timing.measurement import Protocol

_ROWS = 12
Exported = Annotated[Path | None, Option(help="trtexec --exportProfile, or an IProfiler's times.")]
Runs = Annotated[Path | None, Option(help="trtexec --exportTimes.")]
Onnx = Annotated[Path | None, Option(help="The ONNX file it was built from, to name its modules.")]


def engine(
    layers: Annotated[Path, Argument(help="The inspector's JSON: trtexec --exportLayerInfo.")],
    against: Annotated[Path | None, Argument(help="The same of another engine, to compare.")] = None,
    profile: Exported = None,
    times: Runs = None,
    onnx: Onnx = None,
    against_profile: Exported = None,
    against_times: Runs = None,
    against_onnx: Onnx = None,
    to: Annotated[Path | None, Option("--out", help="Output file of the page, as HTML.")] = None,
    as_json: Annotated[bool, Option("--json", help="Print all facts as JSON.")] = False,
) -> None:
    """Show the time of an engine layer by layer, or of two engines side by side.

    Reads TensorRT's own exports, 8.x to 11; TensorRT is not needed. Nothing is judged: each figure was
    measured once.
    """
    from ..targets.engines.compare import compare_engines

    first = _read(layers, profile, times, onnx)
    second = None if against is None else _read(against, against_profile, against_times, against_onnx)
    compared = None if second is None else compare_engines(first, second)
    if as_json:
        typer.echo(json.dumps([each.to_json() for each in (first, second) if each is not None], indent=1))
    elif compared is not None:
        _show_pairs(compared)
    else:
        _show_layers(first)
    if to is not None:
        from ..pipeline.report.engine_page import comparison_page, engine_page
        from ..targets.artifact import write_text

        write_text(to, engine_page(first) if compared is None else comparison_page(compared))
        out.say(f"The page: {to}")


def memory(
    model: Path,
    batch: Annotated[int, Option(min=1, help="Batch size, if the model's is dynamic.")] = 1,
    shape: Annotated[
        list[str] | None, Option(help="An input's whole shape: images=1x3x640x640; repeatable.")
    ] = None,
    target: TargetName = None,
    jetpack: JetPack = None,
    free_bytes: Annotated[
        int | None, Option(min=1, help="The board's MemAvailable; default: its usable memory.")
    ] = None,
    base_bytes: Annotated[
        int | None,
        Option(min=0, help="What TensorRT and CUDA take there before a model is loaded; see doctor."),
    ] = None,
    on: On = None,
    precision: Precision = "fp16",
    as_json: Annotated[bool, Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Estimate the memory a model needs, at least and at most; with --target or --on, if it fits.

    Exit code: 0 fits (or no board was named), 1 does not fit, 3 cannot tell.
    """
    found = api.memory(
        model,
        batch=batch,
        shapes=dict(map(_named_shape, shape or ())),
        target=with_jetpack(target, jetpack),
        free_bytes=free_bytes,
        base_bytes=base_bytes,
        on=on,
        precision=precision,
    )
    if as_json:
        typer.echo(json.dumps(plain({"footprint": found.footprint, "fit": found.fit}), indent=1))
    else:
        show(found)
    raise typer.Exit(found.exit_code)


def _named_shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.rpartition("=")
    try:
        shape = tuple(int(size) for size in sizes.split("x"))
    except ValueError:
        shape = ()
    if not name or not shape:
        raise RecipeError(
            f"--shape {text} is not a name and a shape.", "Give e.g. --shape images=1x3x640x640."
        )
    return name, shape


def _read(layers: Path, profile: Path | None, times: Path | None, onnx: Path | None) -> Engine:
    from ..targets.engines.content import modules_in, read_engine
    from ..targets.onnx_file import read_nodes
    from ..targets.runtimes.runtime import is_engine

    if layers.suffix == ".onnx":
        raise ArtifactError(
            f"{layers} is an ONNX file, and this command reads the layers of an engine, as JSON.",
            f"Build it on the board (deadweight build {layers} --on USER@HOST), and there: trtexec "
            "--loadEngine=FILE.plan --exportLayerInfo=layers.json --profilingVerbosity=detailed.",
        )
    if is_engine(layers.name):
        raise ArtifactError(
            f"{layers} is an engine, and this command reads the JSON that TensorRT's inspector writes.",
            f"Write it on the machine that built the engine: deadweight profile {layers} --layers.",
        )
    modules = None if onnx is None else modules_in(read_nodes(onnx))
    return read_engine(layers, profile=profile, times=times, modules=modules)


def _show_layers(shown: Engine) -> None:
    table = listing("layer", "does", "precision", numbers=["time"])
    for layer in sorted(shown.layers, key=lambda layer: -(layer.latency_s or 0.0))[:_ROWS]:
        time = "" if layer.latency_s is None else milliseconds(layer.latency_s)
        name = ", ".join(layer.modules) if layer.modules else layer.name
        table.add_row(name, layer.kind, layer.precision, time)
    out.print(table)
    _counts(shown)


def _show_pairs(compared: Comparison) -> None:
    before, after = compared.before, compared.after
    table = listing("layers", numbers=(before.name, after.name, "ratio"))
    pairs = sorted(compared.pairs, key=lambda pair: -max(pair.before_s or 0.0, pair.after_s or 0.0))
    for pair in pairs[:_ROWS]:
        times = ["" if time is None else milliseconds(time) for time in (pair.before_s, pair.after_s)]
        table.add_row(pair.name, *times, "" if pair.speedup is None else f"{pair.speedup:.2f}")
    out.print(table)
    for each in (before, after):
        _counts(each)
    for remark in compared.remarks:
        out.say(remark)


def _counts(shown: Engine) -> None:
    counts = {kind: len(shown.of_kind(kind)) for kind in ("conversion", "reorder", "quantize", "view")}
    words = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    total = milliseconds(shown.layer_sum_s) if shown.layer_sum_s else "not timed"
    line = f"{shown.name}: {len(shown.layers)} layers, {total} in all; {words}"
    out.say(f"{line}; {len(shown.fallbacks())} fallbacks")
    for remark in shown.remarks:
        out.say(f"  {remark}")


def show_engine_layers(plan: Path, protocol: Protocol, inputs: Arrays | None = None) -> None:
    """Prints each layer's time by TensorRT's profiler; writes the files for `deadweight engine`."""
    from ..api.latency import opened_engine
    from ..targets.artifact import write_json, write_text

    layers, times = Path(f"{plan}.layers.json"), Path(f"{plan}.times.json")
    with opened_engine(plan, protocol, inputs) as (session, arrays):
        taken = session.layer_times(arrays)
        write_text(layers, session.inspect())
    write_json(times, {name: [1e3 * time for time in each] for name, each in taken.items()})
    engine(layers, profile=times)
    out.say(f"For deadweight engine: {layers} --profile {times}")


if TYPE_CHECKING:
    from ..targets.engines.build_settings import Profile


def lint(
    model: Path,
    target: TargetName = None,
    jetpack: JetPack = None,
    tensorrt: Annotated[
        str | None, Option(help="TensorRT's version, e.g. 8.5 or 10.3; default: the board's own.")
    ] = None,
    max_gpu_fallbacks: Annotated[
        int | None, Option(min=0, help="How many nodes may fall back from DLA to the GPU.")
    ] = None,
    dla: Annotated[bool, Option("--dla", help="The file is for the board's DLA.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print the findings as JSON.")] = False,
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
    to: Annotated[Path | None, Option("--out", help="The plan; default: beside the model.")] = None,
    on: Annotated[
        str | None, Option(metavar="USER@HOST", help="Build there, and copy the plan here.")
    ] = None,
    batch: Annotated[str, Option(help="Smallest, usual and largest batch, e.g. 1,8,16.")] = "1,1,1",
    shapes: Annotated[
        list[str] | None, Option(help="An input's three shapes: NAME=1x16,8x16,16x16; repeatable.")
    ] = None,
    workspace_bytes: Annotated[int | None, Option(min=1, help="Scratch memory of a layer.")] = None,
    optimization_level: Annotated[int | None, Option(min=0, max=5, help="How long to search.")] = None,
    precision: Precision = "fp16",
    sparse: Annotated[bool, Option("--sparse", help="Use kernels for 2:4 sparse weights.")] = False,
    dla_core: Annotated[int | None, Option(min=0, help="Build for this DLA core.")] = None,
    max_gpu_fallbacks: Annotated[
        int | None, Option(min=0, help="How many layers may fall back from DLA to the GPU.")
    ] = None,
    calibration_cache: Annotated[
        Path | None, Option(help="DLA before TensorRT 11.4.1: a float file's INT8 ranges.")
    ] = None,
    standalone: Annotated[bool, Option("--standalone", help="A loadable for cuDLA, wholly on DLA.")] = False,
    plugin: Annotated[
        list[Path] | None, Option(help="A plugin library; with --on, its path there; repeatable.")
    ] = None,
    hide_layers: Annotated[
        bool, Option("--hide-layers", help="Leave the names of layers out of the plan.")
    ] = False,
    version_compatible: Annotated[
        bool, Option("--version-compatible", help="For other programs: deadweight cannot open it.")
    ] = False,
    hardware_compatibility: Annotated[
        str, Option(help="For cards, not a Jetson: a level, e.g. ampere_plus.")
    ] = "",
    compute_capability: Annotated[str, Option(help="TensorRT-RTX: the GPU, e.g. 8.9.")] = "",
    flavour: Annotated[
        str, Option(help="tensorrt, or tensorrt_rtx for RTX GPUs (never a Jetson Orin).")
    ] = "tensorrt",
    timing_cache: Annotated[Path | None, Option(help="Folder for cached kernel timings.")] = None,
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
