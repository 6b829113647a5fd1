"""Functions on ONNX files: lint, memory need, INT8 quantization, and building an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

from ..targets.artifact import unfinished
from ..targets.engines.build import build_engine, builder_here
from ..targets.engines.build_settings import BuildSettings, needs_half
from ..targets.errors import RecipeError
from ..targets.machine.child import child, patience_s
from ..targets.memory_fit import Base, Footprint, base_of, fit
from ..targets.onnx_file import read_nodes
from ..targets.progress import Progress, silent
from ..targets.remote.board import build_on
from ..targets.remote.on_board import facts_of, version_there
from ..targets.remote.ssh import connected
from ..targets.runtimes.runtime import DEFAULT, is_engine, runtime_named
from ..targets.target import Target, load_target, target_of, target_on
from .on_board import half_writer
from .results import Built, Linted, MemoryNeed, Quantized


def lint(
    model: Path | str,
    *,
    target: str | None = None,
    tensorrt: str | None = None,
    max_gpu_fallbacks: int | None = None,
    dla: bool = False,
) -> Linted:
    """Find what TensorRT will refuse in an ONNX file, or run slowly. TensorRT is not needed.

    >>> import deadweight
    >>> found = deadweight.lint("original.onnx", target="orin-nano-8gb")
    >>> found.exit_code, found.report.counts["error"]
    (0, 0)

    Args:
        target: a board's name or its .toml file.
        tensorrt: another version than the board's own, e.g. "8.5".
        max_gpu_fallbacks: how many nodes may fall back from DLA to the GPU.
        dla: whether the file is for the board's DLA: what a build for DLA refuses is an error then.

    Raises:
        DeadweightError: the file is damaged, or there is no such target or version.
    """
    from ..export.lint.check import lint as check

    board = None if target is None else load_target(target)
    found = check(
        Path(model),
        target=board,
        tensorrt=tensorrt,
        max_gpu_fallbacks=max_gpu_fallbacks,
        dla=dla,
    )
    says = "refuses this file" if found.counts["error"] else "should accept this file"
    return Linted(f"{found.platform.name} {says}", 0 if found.passed else 1, found)


def memory(
    model: Path | str,
    *,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] = {},
    target: str | None = None,
    free_bytes: int | None = None,
    base_bytes: int | None = None,
    on: str | None = None,
    precision: str = "fp16",
) -> MemoryNeed:
    """Estimate the memory a model needs, at least and at most; with a target or a board, if it fits.

    >>> import deadweight
    >>> found = deadweight.memory("original.onnx", target="x86-cpu", free_bytes=8_000_000_000)
    >>> found.footprint.low_bytes < found.footprint.high_bytes
    True

    Args:
        batch: batch size, if the model's is dynamic.
        shapes: whole shapes of inputs by name, for other dynamic axes.
        free_bytes: the board's MemAvailable; None for what `on` reports, or all that its system can use.
        base_bytes: the runtime's own memory there; None for what the board measured, or an estimate.
        on: USER@HOST, a board to be asked for these figures.
        precision: with which engines are built: fp32, fp16 or best. ONNX files run as they are.

    Raises:
        DeadweightError: the file is damaged, there is no such target, or the board cannot be reached.
    """
    from ..export.memory.footprint import footprint

    there: dict[str, Any] = {}
    if on is not None:
        with connected(on) as named:
            there = facts_of(named)
    if there:
        board: Target | None = target_on(target, there) if target else target_of(there, name=on or "")
    else:
        board = None if target is None else load_target(target)
    runtime = runtime_named(DEFAULT) if board is None else board.runtime
    settings = BuildSettings(precision=precision)
    halves = runtime.builds and settings.precision != "fp32"
    need = footprint(Path(model), batch=batch, shapes=shapes, runtime=runtime, halves=halves)
    answer = None
    if board is not None:
        known = board.certain("usable_memory_bytes") or board.certain("memory_bytes")
        room = free_bytes or there.get("free_bytes") or known
        version = board.certain(runtime.library)
        base = base_of(None if version is None else str(version))
        if base_bytes is not None:
            base = Base(base_bytes, base_bytes, "as given", "high")
        elif runtime.builds and there.get("base"):
            base = Base(**there["base"])
        if isinstance(room, int):
            answer = fit(need, free_bytes=room, base=base)
    most = "most not known" if need.high_bytes is None else f"{need.high_bytes:,} at most"
    verdict = f"{need.low_bytes:,} bytes at least, {most}"
    if board is None:
        return MemoryNeed(verdict, 0, need, None, False)
    if answer is None:
        unknown = f"Whether it fits is not known: how much memory {board.name} has is not. Give --free-bytes."
        return MemoryNeed(verdict, 3, need, None, False, unknown)
    code = {"fits": 0, "does_not_fit": 1}.get(answer.outcome, 3)
    verdict = f"{answer.outcome.replace('_', ' ')}: {verdict}"
    return MemoryNeed(verdict, code, need, answer, free_bytes is not None or "free_bytes" in there)


def build(
    model: Path | str,
    *,
    target: str | None = None,
    out: Path | str | None = None,
    settings: BuildSettings | None = None,
    timing_cache: Path | str | None = None,
    on: str | None = None,
    progress: Progress | None = None,
) -> Built:
    """Build a TensorRT engine from an ONNX file, on the machine that will run it.

    >>> import deadweight
    >>> try:
    ...     answer = deadweight.build("pruned.onnx", out="pruned.plan").verdict
    ... except deadweight.DeadweightError as error:  # no TensorRT here
    ...     answer = error.cure
    >>> "--on USER@HOST" in answer or "pruned.plan" in answer
    True

    Args:
        target: the board; its facts are compared with the machine's.
        out: the plan; None for a file beside the model. Its record and log are written beside it.
        settings: batch, shapes, DLA and so on, see `deadweight.targets.engines.build_settings`. Where that
            TensorRT has no flag for their precision, the file is cast first, to a file beside the plan.
        timing_cache: a folder for cached kernel timings.
        on: USER@HOST: build there, and copy the plan here.

    Raises:
        DeadweightError: TensorRT is missing, or refuses the file or a setting.
    """
    path, chosen = Path(model), settings or BuildSettings()
    plan = Path(out) if out is not None else path.with_suffix(".plan")
    if not chosen.standalone and not is_engine(plan.name):
        raise RecipeError(f"--out {plan} is no name of an engine.", "Give one that ends in .plan or .engine.")
    if plan.exists() and path.exists() and plan.samefile(path):
        raise RecipeError(f"--out {plan} is the model itself.", "Give the plan another name.")
    need = _memory_need(path, chosen.batch[2], chosen.precision)
    record: Mapping[str, Any]
    half = plan.with_name(f"{plan.stem}.fp16.onnx")
    before = half.exists()
    try:
        if on is None:
            kept = None if timing_cache is None else Path(timing_cache)
            board = None if target is None else load_target(target)
            path = _in_half(path, half, chosen, builder_here(chosen.flavour)[1]) if path.is_file() else path
            built = build_engine(path, plan, settings=chosen, target=board, timing_folder=kept, need=need)
            record = built.record
        else:
            with connected(on, progress or silent) as there:
                facts = facts_of(there)
                named = None if target is None else target_on(target, facts).to_json()
                path = _in_half(path, half, chosen, version_there(facts))
                record = build_on(there, path, plan, settings=asdict(chosen), target=named, need=need)
    except BaseException:
        if not before:  # without its plan the cast file is half of a result
            half.unlink(missing_ok=True)
        raise
    made = record["tensorrt"]
    verdict = f"{plan}: {record['plan']['bytes']:,} bytes by {made['flavour']} {made['version']}"
    return Built(verdict, 0, plan, dict(record))


def quantize(
    model: Path | str,
    data: Path | str,
    *,
    target: str = "x86-cpu",
    method: str = "minmax",
    skip: Sequence[str] = (),
    weight_bits: int = 8,
    half: bool = False,
    cache_batch: int | None = None,
    out: Path | str | None = None,
    progress: Progress | None = None,
) -> Quantized:
    """Quantize a float ONNX file to INT8 with calibration samples.

    >>> import deadweight
    >>> made = deadweight.quantize("original.onnx", "samples.npz")
    >>> made.exit_code, len(made.made.quantized.in_int8)
    (0, 3)

    Args:
        data: samples, prepared as for inference: .npz files of arrays by the inputs' names, or .npy.
        method: the calibration of ranges: minmax, percentile, entropy, mse, or best (of these four).
        skip: layers that stay in float.
        weight_bits: 2 to 8; 7 are for x86 processors without VNNI, see `to_qdq`.
        half: FP16 for operators in float, for TensorRT 10 and later.
        cache_batch: the batch of a float file and its calibration cache, which are written too, for DLA
            before TensorRT 11.4.1 and for other programs; None without.
        out: a folder for the files; None for one beside the model.

    Raises:
        DeadweightError: the samples do not fit the model, or INT8 breaks its outputs.
    """
    from ..export.int8 import to_int8
    from ..export.lint.widths import off_step
    from ..export.onnx_graph.graph import load
    from ..export.quantization.histogram import METHODS
    from ..export.quantization.samples import open_samples

    known = (*METHODS, "best")
    if method not in known:
        raise RecipeError(f"There is no calibration method {method!r}.", f"Choose one of {', '.join(known)}.")
    path, board, shown = Path(model), load_target(target), progress or silent
    shown(0, 1, "read")
    folder = Path(out) if out is not None else path.with_suffix(".int8")
    job = partial(
        to_int8,
        path,
        open_samples(path, Path(data)),
        folder,
        target=board,
        method=cast(Any, method),
        skip=skip,
        weight_bits=weight_bits,
        half=half,
        cache_batch=cache_batch,
    )
    with unfinished(folder), child() as process:
        made = process.run(
            job,
            what=path.name,
            within_s=patience_s(path),
            cure="It may never end. If it is only slow, give it smaller inputs, or more of the machine.",
            progress=shown,
        )
    words = tuple(off_step(load(path), made.quantized.in_int8, board))
    kept, total = len(made.quantized.in_int8), len(made.quantized.in_int8) + len(made.quantized.left_float)
    noise = max((one.noise for one in made.hop.outputs.values()), default=0.0) if made.hop else 0.0
    verdict = f"{kept} of {total} weighted layers in INT8, noise {noise:.2%} of the outputs"
    verdict += f": {made.verdict}" if made.verdict else ""
    if made.path is None:
        verdict = f"TensorRT of {board.name} would refuse the INT8 file; nothing was written"
    return Quantized(verdict, int(made.path is None), path, board, made, made.samples, words)


def _in_half(model: Path, half: Path, settings: BuildSettings, version: str) -> Path:
    """The file to build from: cast to FP16, as `half`, where no flag of that TensorRT does it."""
    write = half_writer()
    if not version or write is None or not needs_half(read_nodes(model), settings, version=version):
        return model
    write(model, half)
    return half


def _memory_need(model: Path, batch: int, precision: str) -> Footprint | None:
    """The model's memory need, if onnx is installed to read it from the file; a board has no onnx."""
    if not model.is_file():
        return None
    try:
        from ..export.memory.footprint import footprint
    except ImportError:
        return None
    return footprint(model, batch=batch, runtime="tensorrt", halves=precision != "fp32")
