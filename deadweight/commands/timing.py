"""The commands that time: one model, or two against each other. The gate has a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..terminal.on_board import On, compared, layered, profiled
from ..terminal.options import Inputs, TargetName
from ..terminal.tables import bar, judgement_line, layers_table, measurement_table, memory_line, out
from .engine_tables import refuse_layers, show_engine_layers, show_engine_memory

if TYPE_CHECKING:
    from ..targets.runtimes.runtime import Runtime
    from ..targets.target import Target

Threads = Annotated[int, typer.Option(help="Threads of the runtime.")]
Batch = Annotated[int, typer.Option(help="Samples at once, where the model leaves it open.")]


def profile(
    model: Path,
    events: Annotated[int, typer.Option(help="Fresh loads of the model.")] = 24,
    event_s: Annotated[float, typer.Option(help="Seconds of running within one event.")] = 0.05,
    threads: Threads = 1,
    batch: Batch = 1,
    inputs: Inputs = None,
    layers: Annotated[bool, typer.Option("--layers", help="The time of every layer as well.")] = False,
    on: On = None,
    target: TargetName = None,
    to: Annotated[Path | None, typer.Option("--out", help="Where the measurement goes, as JSON.")] = None,
) -> None:
    """Measure one model: latency percentiles with their interval, memory, and the conditions."""
    from ..targets.machine.probe import not_known
    from ..targets.runtimes.open import runtime_of
    from ..targets.target import load_target
    from ..targets.timing import measurement
    from ..targets.timing.clock import time_together
    from ..targets.timing.inputs import given_inputs
    from ..targets.timing.measurement import Protocol
    from ..targets.timing.memory import Memory, measure_memory
    from ..targets.timing.tail import tail_of

    runtime = runtime_of(model, None if target is None else load_target(target).runtime)
    protocol = Protocol(events=events, event_s=event_s, threads=threads, batch=batch, runtime=runtime.name)
    if layers and not runtime.builds:
        refuse_layers(runtime)
    arrays = given_inputs(inputs)
    memory: Memory | None = None
    if on is not None:
        measured, memory = profiled(on, model, protocol, inputs)
    else:
        with bar() as shown:
            measured = time_together(
                {model.name: model},
                protocol=protocol,
                inputs=arrays,
                progress=lambda done, total: shown(done, total, "profile"),
            )
            if not runtime.builds:
                shown(0, 1, "memory")
                memory = measure_memory(model, runtime=runtime, threads=threads, batch=batch, inputs=inputs)
    if to is not None:  # at once: what is shown of it below may fail, and the time is spent
        measurement.save(measured, to)
    figures = measured[model.name]
    out.print(measurement_table(measured))
    for percent in (99, 99.9):
        out.print(tail_of(figures, percent).sentence(), markup=False, soft_wrap=True)
    if figures.runs > 1:
        out.print(f"Each sample is the mean of {figures.runs} runs: the tail of single runs is longer.")
    if memory is None:
        show_engine_memory(model, protocol, arrays)
    else:
        out.print(memory_line(memory), soft_wrap=True)
    machine = figures.conditions["machine"]
    words = f"{threads} thread(s), batch {figures.protocol.batch}"
    words += "" if inputs is None else f", inputs of {inputs.name}"
    out.print(f"{figures.evidence} on {machine['cpu']}, {words}", markup=False)
    for clause in not_known(figures.conditions):
        out.print(f"Not known: {clause}.", markup=False)
    if marked := measurement.marked_words(figures):
        out.print(f"{marked}. Stop other work and measure again.", markup=False)
    if to is not None:
        out.print(f"The measurement: {to}", soft_wrap=True, markup=False)
    if layers and runtime.builds:
        show_engine_layers(model, protocol, arrays)
    elif layers:
        _print_layers({model.name: model}, runtime, threads=threads, batch=batch, inputs=inputs, on=on)


def compare(
    baseline: Path,
    candidate: Path,
    events: Annotated[
        int | None, typer.Option(help="Exactly so many fresh loads, instead of until it can be told.")
    ] = None,
    cap_s: Annotated[float, typer.Option(help="Seconds after which it stops drawing.")] = 60.0,
    event_s: Annotated[float, typer.Option(help="Seconds of running each within one event.")] = 0.05,
    threads: Threads = 1,
    batch: Batch = 1,
    margin: Annotated[float, typer.Option(help="The change that does not matter, as a share.")] = 0.02,
    inputs: Inputs = None,
    layers: Annotated[bool, typer.Option("--layers", help="Judge every layer as well.")] = False,
    on: On = None,
    target: Annotated[
        str | None, typer.Option(help="A board, for its runtime and, in reasons, its widths; here: x86-cpu.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--out", help="Where measurements and judgement go, as JSON.")
    ] = None,
) -> None:
    """Compare two models by turns in one process, and say how sure the answer is.

    Draws fresh loads until the answer can be told, or the time is up; the 1 % of error is over all looks.

    Exit code: 0 faster or equal, 1 slower, 3 cannot tell.
    """
    from dataclasses import replace

    from ..targets.artifact import write_json
    from ..targets.runtimes.open import shared_runtime
    from ..targets.target import load_target
    from ..targets.timing.clock import time_together
    from ..targets.timing.inputs import given_inputs
    from ..targets.timing.judge import exit_code, judge
    from ..targets.timing.measurement import Protocol
    from ..targets.timing.sequential import compare_until_decided, sequential_protocol

    widths_of = target or ("x86-cpu" if on is None else "")
    advised = load_target(widths_of) if widths_of else None
    if events is not None:
        protocol = Protocol(events=events, event_s=event_s, threads=threads, batch=batch)
    else:
        protocol = replace(sequential_protocol(cap_s=cap_s, threads=threads, batch=batch), event_s=event_s)
    runtime = shared_runtime([baseline, candidate], None if advised is None else advised.runtime)
    protocol = replace(protocol, runtime=runtime.name)
    if layers:
        refuse_layers(runtime)
    arrays = given_inputs(inputs)
    models = {"baseline": baseline, "candidate": candidate}
    still = True
    if on is not None:
        measured, judgement, still = compared(
            on,
            baseline,
            candidate,
            protocol,
            margin=margin,
            until_decided=events is None,
            inputs=inputs,
        )
    else:
        with bar() as shown:

            def progress(done: int, total: int) -> None:
                shown(done, total, "compare")

            if events is not None:
                measured = time_together(models, protocol=protocol, inputs=arrays, progress=progress)
                judgement = judge(measured["baseline"], measured["candidate"], margin=margin)
            else:
                found = compare_until_decided(
                    baseline,
                    candidate,
                    protocol=protocol,
                    margin=margin,
                    inputs=arrays,
                    progress=progress,
                )
                measured, judgement = dict(found.measured), found.judgement
    for role, path in models.items():
        out.print(f"{role:<9} {path}", soft_wrap=True, markup=False)
    out.print(measurement_table(measured))
    out.print(judgement_line(judgement), soft_wrap=True)
    value = {name: figures.to_json() for name, figures in measured.items()}
    told: dict[str, object] = {**value, "judgement": judgement.to_json()}
    if to is not None:  # before the layers, which may not be there to be told apart
        write_json(to, told)
        out.print(f"The comparison: {to}", soft_wrap=True, markup=False)
    if layers:
        told["layers"] = _print_layers(
            models, runtime, threads=threads, batch=batch, inputs=inputs, target=advised, on=on
        )
        if to is not None:
            write_json(to, told)
    outcome = judgement.outcome if still else "cannot_tell"
    raise typer.Exit(exit_code(outcome))


def _print_layers(
    models: dict[str, Path],
    runtime: Runtime,
    *,
    threads: int,
    batch: int,
    inputs: Path | None,
    target: Target | None = None,
    on: str | None = None,
) -> list[dict[str, object]]:
    """Profiles one model, or two that are judged; prints the table, returns it as plain values.

    What a board disturbed is told, and not judged.
    """
    from dataclasses import replace

    from ..targets.timing.inputs import given_inputs
    from ..targets.timing.layer_reasons import explained
    from ..targets.timing.layers import judge_layers
    from ..targets.timing.ort_layers import LAYER_PROTOCOL

    protocol = replace(LAYER_PROTOCOL, threads=threads, batch=batch, runtime=runtime.name)
    if on is not None:
        timed, still = layered(on, models, protocol, inputs)
        if not still:
            return []
    else:
        with bar() as shown:
            assert runtime.time_layers is not None  # refuse_layers was asked
            timed = runtime.time_layers(
                models,
                protocol=protocol,
                inputs=given_inputs(inputs),
                progress=lambda done, total: shown(done, total, "layers"),
            )
    sides = list(timed.values())
    if len(sides) == 1:
        sides *= 2
    judged = explained(judge_layers(*sides), sides[0], sides[1], target=target)
    out.print(layers_table(judged, judging=len(timed) > 1))
    if len(timed) > 1:
        out.print(
            "Intervals hold for all layers at once; * marks layers that have fewer weights.", markup=False
        )
        for name, side, other in (("baseline", *sides), ("candidate", *reversed(sides))):
            alone = [
                layer for layer in side if layer not in {one.name for one in judged} and layer not in other
            ]
            if alone:
                out.print(f"Only in the {name}: {', '.join(alone)}", markup=False, soft_wrap=True)
    for one in judged:
        if one.reason:
            out.print(f"  {one.name}: {one.reason}", markup=False, soft_wrap=True)
    return [one.to_json() for one in judged]
