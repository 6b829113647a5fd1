"""The commands that time: one model, or two against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import bar, judgement_line, measurement_table, memory_line, out


def profile(
    model: Path,
    events: Annotated[int, typer.Option(help="Fresh loads of the model.")] = 24,
    event_s: Annotated[float, typer.Option(help="Seconds of running within one event.")] = 0.05,
    threads: Annotated[int, typer.Option(help="Threads of the runtime.")] = 1,
    batch: Annotated[int, typer.Option(help="Samples at once, where the model leaves it open.")] = 1,
    to: Annotated[Path | None, typer.Option("--out", help="Where the measurement goes, as JSON.")] = None,
) -> None:
    """Measure one model: latency percentiles with their interval, memory, and the conditions."""
    from .targets import measurement
    from .targets.clock import time_together
    from .targets.measurement import Protocol
    from .targets.memory import measure_memory

    protocol = Protocol(events=events, event_s=event_s, threads=threads, batch=batch)
    with bar() as shown:
        measured = time_together(
            {model.name: model}, protocol=protocol, progress=lambda done, total: shown(done, total, "profile")
        )
        shown(0, 1, "memory")
        memory = measure_memory(model, threads=threads, batch=batch)
    figures = measured[model.name]
    out.print(measurement_table(measured))
    out.print(memory_line(memory))
    machine = figures.conditions["machine"]
    out.print(f"{figures.evidence} on {machine['cpu']}, {threads} thread(s), batch {batch}", markup=False)
    for mark in figures.marks:
        out.print(f"  event {mark.event}: {mark.what}", markup=False)
    if to is not None:
        measurement.save(measured, to)
        out.print(f"The measurement: {to}", soft_wrap=True)


def compare(
    baseline: Path,
    candidate: Path,
    events: Annotated[int, typer.Option(help="Fresh loads of both models.")] = 24,
    event_s: Annotated[float, typer.Option(help="Seconds of running each within one event.")] = 0.05,
    threads: Annotated[int, typer.Option(help="Threads of the runtime.")] = 1,
    batch: Annotated[int, typer.Option(help="Samples at once, where the models leave it open.")] = 1,
    margin: Annotated[float, typer.Option(help="The change that does not matter, as a share.")] = 0.02,
    to: Annotated[
        Path | None, typer.Option("--out", help="Where measurements and judgement go, as JSON.")
    ] = None,
) -> None:
    """Compare two models by turns in one process, and say how sure the answer is.

    Exit code: 0 faster or equal, 1 slower, 3 cannot tell.
    """
    from .targets.artifact import write_json
    from .targets.clock import time_together
    from .targets.judge import judge
    from .targets.measurement import Protocol

    names = ("baseline", "candidate")
    protocol = Protocol(events=events, event_s=event_s, threads=threads, batch=batch)
    with bar() as shown:
        measured = time_together(
            dict(zip(names, (baseline, candidate), strict=True)),
            protocol=protocol,
            progress=lambda done, total: shown(done, total, "compare"),
        )
    judgement = judge(measured["baseline"], measured["candidate"], margin=margin)
    out.print(measurement_table(measured))
    out.print(judgement_line(judgement), soft_wrap=True)
    if to is not None:
        value = {name: figures.to_json() for name, figures in measured.items()}
        write_json(to, {**value, "judgement": judgement.to_json()})
    raise typer.Exit({"faster": 0, "equal": 0, "slower": 1}.get(judgement.outcome, 3))
