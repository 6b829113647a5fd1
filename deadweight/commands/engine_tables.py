"""What a terminal shows of an engine that was built."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from ..targets.errors import RecipeError
from ..terminal.tables import megabytes, out

if TYPE_CHECKING:
    from ..targets.runtimes.runtime import Runtime
    from ..targets.runtimes.session import Arrays
    from ..targets.runtimes.trt import TrtSession
    from ..targets.timing.measurement import Protocol

SHOWN = 5


def show_build(record: Mapping[str, Any], plan: Path) -> None:
    """The plan, for what it is, and what of the log a reader should know."""
    built, findings, device = record["tensorrt"], record["findings"], record["device"]
    gpu = "a GPU that could not be asked" if device is None else f"SM {device['compute_capability']}"
    typed = "strongly typed" if built["strongly_typed"] else f"flags {', '.join(record['flags']) or 'none'}"
    out.print(
        f"[bold]{escape(str(plan))}[/]: {megabytes(record['plan']['bytes'])}, {built['flavour']} "
        f"{built['version']} for {gpu}, {typed}, built in {record['build_s']:.1f} s",
        soft_wrap=True,
    )
    if record["evidence"] != "measured":
        out.print(f"[red]{record['evidence']}[/]: this engine proves nothing about speed.")
    for name, size in findings["bytes"].items():
        out.print(f"  {name.replace('_', ' ')}: {megabytes(size)}")
    out.print(f"  reformats: {findings['reformats']}, fallbacks from DLA: {len(findings['fallbacks'])}")
    if findings["skipped_tactics"]:
        out.print(f"  {findings['skipped_tactics']} kernels were not tried for want of memory")
    if findings.get("sparse_layers") is not None:
        out.print(
            f"  2:4: {findings['sparse_layers']} layers have the pattern, {findings['sparse_kernels'] or 0} "
            "use a kernel for it; for the others a dense one is faster",
            soft_wrap=True,
        )
    for kind in ("errors", "warnings"):
        for text in findings[kind][:SHOWN]:
            out.print(f"  {kind[:-1]}: {' '.join(text.split())[:300]}", markup=False, soft_wrap=True)
        if len(findings[kind]) > SHOWN:
            out.print(f"  and {len(findings[kind]) - SHOWN} {kind} more, in the log")
    if record.get("fit"):
        out.print(f"  memory: {record['fit']['outcome'].replace('_', ' ')}", soft_wrap=True)
    cache = record["timing_cache"]
    out.print(f"  kernel timings: {'used again' if cache['used'] else 'taken anew'}")
    out.print(f"The record: {plan}.json, the log: {plan}.log", markup=False, soft_wrap=True)


def refuse_layers(runtime: Runtime) -> None:
    """Layers are judged where the runtime times them fairly; those of two engines are shown side by side.

    Raises:
        RecipeError: it does not.
    """
    if runtime.time_layers is None and not runtime.builds:
        raise RecipeError(f"{runtime.title} does not time layers.", "Leave --layers away.")
    if runtime.time_layers is None:
        raise RecipeError(
            "The layers of two engines cannot be judged: TensorRT's profiler is no fair clock.",
            "Leave --layers away. To see them side by side: deadweight profile --layers for each, then "
            "deadweight engine A.plan.layers.json B.plan.layers.json.",
        )


def show_engine_layers(plan: Path, protocol: Protocol, inputs: Arrays | None = None) -> None:
    """Each layer's time by TensorRT's profiler; what `deadweight engine` reads is written beside the plan."""
    from ..targets.artifact import write_json, write_text
    from .engine_report import engine

    layers, times = Path(f"{plan}.layers.json"), Path(f"{plan}.times.json")
    with _opened(plan, protocol, inputs) as (session, arrays):
        taken = session.layer_times(arrays)
        write_text(layers, session.inspect())
    write_json(times, {name: [1e3 * time for time in each] for name, each in taken.items()})
    engine(layers, profile=times)
    out.print(f"For deadweight engine: {layers} --profile {times}", markup=False, soft_wrap=True)


def show_engine_memory(plan: Path, protocol: Protocol, inputs: Arrays | None = None) -> None:
    """The parts of an engine's memory after one run, each with how it was got."""
    with _opened(plan, protocol, inputs) as (session, arrays):
        session.run(arrays)
        parts = session.memory().parts
    for part in parts:
        size = "not known" if part.bytes is None else megabytes(part.bytes)
        out.print(f"memory, {part.name}: {size} ({part.how})", markup=False, soft_wrap=True)


@contextlib.contextmanager
def _opened(plan: Path, protocol: Protocol, inputs: Arrays | None) -> Iterator[tuple[TrtSession, Arrays]]:
    """The engine, and the inputs that it was timed with."""
    from ..targets.runtimes.trt_open import open_trt
    from ..targets.timing.inputs import fed

    session = open_trt(plan, flavour=protocol.runtime.partition("+")[0])
    try:
        yield session, fed(session, inputs, batch=protocol.batch, seed=protocol.seed)
    finally:
        session.close()
