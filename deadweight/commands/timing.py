"""The commands that time models: profile and compare. The gate has its own file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from .. import api
from ..targets.engines.plugins import give_plugins
from ..terminal.options import (
    BoardPrecision,
    BoardRuntime,
    Buffers,
    CudaGraph,
    Inputs,
    On,
    Place,
    Plugins,
    Sync,
    TargetName,
    Wait,
    run_by,
)
from ..terminal.printer import out
from ..terminal.show import show
from ..terminal.tables import bar
from .engines import show_engine_layers

Threads = Annotated[int, Option(help="Threads of the runtime.")]
Cap = Annotated[
    float | None, Option(help="Time limit in seconds; 60, but none for an exact number of loads.")
]
Batch = Annotated[int, Option(help="Batch size, if the model's is dynamic.")]


def profile(
    model: Annotated[Path, Argument(help="The model: ONNX, or an engine.")],
    events: Annotated[int, Option(help="Fresh loads of the model.")] = 24,
    cap_s: Cap = None,
    event_s: Annotated[float, Option(help="Seconds that the model runs in one event.")] = 0.05,
    threads: Threads = 1,
    batch: Batch = 1,
    inputs: Inputs = None,
    layers: Annotated[bool, Option("--layers", help="The time of every layer as well.")] = False,
    on: On = None,
    target: TargetName = None,
    runtime: BoardRuntime = None,
    precision: BoardPrecision = None,
    plugin: Plugins = None,
    cuda_graph: CudaGraph = False,
    buffers: Buffers = Place.device,
    sync: Sync = Wait.spin,
    to: Annotated[Path | None, Option("--out", help="Output file of the measurement, as JSON.")] = None,
) -> None:
    """Measure one model: latency percentiles with their interval, memory, and the conditions."""
    from ..api.latency import board_runtime, refuse_layers, refuse_layers_on, time_layers
    from ..targets.runtimes.open import runtime_of
    from ..targets.timing import measurement
    from ..targets.timing.inputs import given_inputs

    give_plugins(plugin or ())
    runtime = run_by(runtime, cuda_graph=cuda_graph, buffers=buffers, sync=sync)
    runs = runtime_of(model, board_runtime(target)) if on is None else None
    if layers and runs is not None and not runs.builds:
        refuse_layers(runs)
    if layers and on is not None:
        refuse_layers_on(on, target=target, runtime=runtime)
    with bar() as shown:
        found = api.profile(
            model,
            events=events,
            cap_s=cap_s,
            event_s=event_s,
            threads=threads,
            batch=batch,
            inputs=inputs,
            on=on,
            target=target,
            runtime=runtime,
            precision=precision,
            progress=shown,
        )
    if to is not None:  # first: showing may fail after a long measurement
        measurement.save({model.name: found.measured}, to)
    show(found)
    if to is not None:
        out.say(f"The measurement: {to}")
    if layers and runs is not None and runs.builds:
        show_engine_layers(model, found.measured.protocol, given_inputs(inputs))
    elif layers:
        with bar() as shown:
            one = found.measured.protocol
            timed = time_layers({model.name: model}, one, inputs=inputs, on=on, target=target, progress=shown)
        show(timed)


def compare(
    baseline: Annotated[Path, Argument(help="The model to compare with: ONNX, or an engine.")],
    candidate: Annotated[Path, Argument(help="The model that may be faster, of the same kind.")],
    events: Annotated[
        int | None, Option(help="Exact number of fresh loads, instead of until the answer is known.")
    ] = None,
    cap_s: Cap = None,
    event_s: Annotated[float, Option(help="Seconds that each model runs in one event.")] = 0.05,
    threads: Threads = 1,
    batch: Batch = 1,
    margin: Annotated[float, Option(help="A change that does not matter, as a share.")] = 0.02,
    inputs: Inputs = None,
    layers: Annotated[bool, Option("--layers", help="Judge every layer as well.")] = False,
    on: On = None,
    target: Annotated[
        str | None, Option(help="A board's name, see `deadweight targets`; without --on: x86-cpu.")
    ] = None,
    runtime: BoardRuntime = None,
    precision: BoardPrecision = None,
    plugin: Plugins = None,
    cuda_graph: CudaGraph = False,
    buffers: Buffers = Place.device,
    sync: Sync = Wait.spin,
    to: Annotated[
        Path | None, Option("--out", help="Output file of measurements and judgement, as JSON.")
    ] = None,
) -> None:
    """Compare two models, timed interleaved in one process, and say how sure the answer is.

    Loads both again until the answer is known, or the time is up. At most 1 % of its answers are wrong.

    Exit code: 0 faster or equal, 1 slower, 3 cannot tell.
    """
    from dataclasses import replace

    from ..api.latency import board_runtime, refuse_layers, refuse_layers_on, time_layers
    from ..targets.artifact import write_json
    from ..targets.runtimes.open import shared_runtime

    give_plugins(plugin or ())
    runtime = run_by(runtime, cuda_graph=cuda_graph, buffers=buffers, sync=sync)
    if layers and on is None:
        refuse_layers(shared_runtime([baseline, candidate], board_runtime(target)))
    elif layers and on is not None:
        refuse_layers_on(on, target=target, runtime=runtime)
    with bar() as shown:
        found = api.compare(
            baseline,
            candidate,
            events=events,
            cap_s=cap_s,
            event_s=event_s,
            threads=threads,
            batch=batch,
            margin=margin,
            inputs=inputs,
            on=on,
            target=target,
            runtime=runtime,
            precision=precision,
            progress=shown,
        )
    show(found)
    if to is not None:  # before the layers: timing those may fail
        write_json(to, found.to_json())
        out.say(f"The comparison: {to}")
    if layers:
        with bar() as shown:
            one = found.measured["baseline"].protocol
            timed = time_layers(found.models, one, inputs=inputs, on=on, target=target, progress=shown)
        show(timed)
        if to is not None:
            write_json(to, replace(found, layers=timed).to_json())
    raise typer.Exit(found.exit_code)
