"""Functions that time models: compare two, profile one, or check one with the gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..targets.engines.record import check_comparable, engine_facts, read_record
from ..targets.errors import RecipeError
from ..targets.progress import Counted, Progress, silent
from ..targets.remote.board import compare_on, layers_on, time_on
from ..targets.remote.on_board import ready_on, runtime_there
from ..targets.remote.ssh import connected
from ..targets.runtimes.open import open_session, run_as, runtime_of, shared_runtime
from ..targets.runtimes.runtime import Runtime, is_engine, runtime_named
from ..targets.target import load_target
from ..targets.timing.clock import time_together
from ..targets.timing.inputs import fed, given_inputs
from ..targets.timing.judge import exit_code, judge
from ..targets.timing.layer_reasons import explained
from ..targets.timing.layers import judge_layers
from ..targets.timing.measurement import CALM, Measurement, Protocol, timed_by
from ..targets.timing.memory import Memory, engine_memory, measure_memory
from ..targets.timing.ort_layers import LAYER_PROTOCOL
from ..targets.timing.sequential import compare_until_decided, sequential_protocol
from .on_board import how_there
from .results import Comparison, Layers, Profile

if TYPE_CHECKING:
    from ..targets.runtimes.session import Arrays, EngineSession


def compare(
    baseline: Path | str,
    candidate: Path | str,
    *,
    events: int | None = None,
    cap_s: float | None = None,
    event_s: float = 0.05,
    threads: int = 1,
    batch: int = 1,
    margin: float = 0.02,
    inputs: Path | str | None = None,
    layers: bool = False,
    on: str | None = None,
    target: str | None = None,
    runtime: str | None = None,
    precision: str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Time two models interleaved in one process, and judge them.

    >>> import deadweight
    >>> found = deadweight.compare("original.onnx", "pruned.onnx", cap_s=20)
    >>> found.outcome, found.exit_code, found.meaning
    ('faster', 0, 'good')
    >>> found.judgement.ratio > found.judgement.low > 1
    True

    Args:
        events: the exact number of fresh loads of each; None loads until the answer is known or `cap_s`
            seconds are over, with an error of 1 % over all interim looks together.
        cap_s: time limit in seconds, and again for the layers; None for 60, or for none with `events`. A
            model that runs on is stopped; without a limit, after about a minute in one event.
        event_s: seconds that each model runs in one event.
        margin: a change that does not matter, as a share.
        inputs: an NPZ file of arrays by the inputs' names; None for random ones.
        layers: whether every layer is judged too (ONNX Runtime only).
        on: USER@HOST, to time them on a board. Where it has TensorRT, both are built there and the engines
            are timed; engines must have been built there.
        target: a board, for its runtime and, in the layers' reasons, its widths; x86-cpu for this machine.
        runtime: another one than the file's or the board's best, e.g. "onnxruntime", or how engines run:
            "tensorrt+graph", see docs/engines.md.
        precision: with `on`, of both engines' float parts: fp32, fp16 (the default) or best.

    Raises:
        DeadweightError: a model cannot be timed, or the board cannot be reached.
    """
    models = {"baseline": Path(baseline), "candidate": Path(candidate)}
    if events is not None:
        protocol = Protocol(events=events, event_s=event_s, threads=threads, batch=batch, cap_s=cap_s or 0.0)
    else:
        cap = 60.0 if cap_s is None else cap_s
        protocol = replace(sequential_protocol(cap_s=cap, threads=threads, batch=batch), event_s=event_s)
    how = how_there(on, target=target, runtime=runtime, precision=precision)
    if on is None:
        runs = run_as(shared_runtime(models.values(), board_runtime(target)), runtime)
        alike = check_comparable(models.values()) if runs.builds else ""
        protocol = replace(protocol, runtime=runs.name, precision=alike)
        if layers:
            refuse_layers(runs)
    file, shown = optional_path(inputs), progress or silent
    measured: Mapping[str, Measurement]
    remarks: tuple[str, ...] = ()
    if on is not None:
        with connected(on, shown) as there:
            if layers:
                refuse_layers(runtime_there(there, how)[0])
            ready = ready_on(there, models, how, batch=batch, inputs=file)
            timed, judgement = compare_on(
                there,
                ready,
                protocol=protocol,
                margin=margin,
                until_decided=events is None,
                inputs=file,
            )
        measured, remarks = timed.measurements, ready.remarks
    elif events is not None:
        measured = time_together(
            models, protocol=protocol, inputs=given_inputs(file), progress=labelled(shown, "compare")
        )
        judgement = judge(measured["baseline"], measured["candidate"], margin=margin)
    else:
        found = compare_until_decided(
            *models.values(),
            protocol=protocol,
            margin=margin,
            inputs=given_inputs(file),
            progress=labelled(shown, "compare"),
        )
        measured, judgement = found.measured, found.judgement
    measured = measured if on is not None else _with_engines(measured, models)
    verdict = f"{judgement.sentence()}; {timed_by(measured)}"
    code = exit_code(judgement.outcome)
    result = Comparison(verdict, code, models, dict(measured), judgement, remarks=remarks)
    if not layers:
        return result
    one = measured["baseline"].protocol
    timed_layers = time_layers(models, one, inputs=file, on=on, target=target, progress=progress)
    return replace(result, layers=timed_layers)


def time_layers(
    models: Mapping[str, Path],
    whole: Protocol,
    *,
    inputs: Path | None = None,
    on: str | None = None,
    target: str | None = None,
    progress: Progress | None = None,
) -> Layers:
    """The layers of one model, or of "baseline" and "candidate", judged; a board's times may be invalid.

    `whole`: the protocol of the whole models' times, for threads, batch, runtime and time limit.
    """
    shown = progress or silent
    threads, batch, runtime = whole.threads, whole.batch, whole.runtime
    protocol = replace(LAYER_PROTOCOL, threads=threads, batch=batch, runtime=runtime, cap_s=whole.cap_s)
    if on is not None:
        how = how_there(on, target=target, runtime=runtime)
        with connected(on, shown) as there:
            refuse_layers(runtime_there(there, how)[0])
            ready = ready_on(there, models, how, batch=batch, inputs=inputs)
            timed, void = layers_on(there, ready, protocol=protocol, inputs=inputs)
        if void:
            return Layers(f"cannot tell: {'; '.join(void)}", 3, (), {}, len(models) > 1, void)
    else:
        runs = runtime_named(runtime)
        assert runs.time_layers is not None  # the callers ask refuse_layers
        timed = runs.time_layers(
            models, protocol=protocol, inputs=given_inputs(inputs), progress=labelled(shown, "layers")
        )
    pair = len(timed) > 1
    first, second = list(timed.values()) if pair else [*timed.values()] * 2
    advised = target or ("x86-cpu" if on is None and pair else "")
    judged = explained(
        judge_layers(first, second), first, second, target=load_target(advised) if advised else None
    )
    named = {one.name for one in judged}
    only = {
        name: tuple(layer for layer in side if layer not in named and layer not in other)
        for name, side, other in (("baseline", first, second), ("candidate", second, first))
    }
    kinds = [one.outcome for one in judged] if pair else []
    verdict = ", ".join(f"{kinds.count(kind)} {kind.replace('_', ' ')}" for kind in dict.fromkeys(kinds))
    only = {name: own for name, own in only.items() if own}
    return Layers(verdict or f"{len(judged)} layers", 0, tuple(judged), only, pair)


def profile(
    model: Path | str,
    *,
    events: int = 24,
    cap_s: float | None = None,
    event_s: float = 0.05,
    threads: int = 1,
    batch: int = 1,
    inputs: Path | str | None = None,
    layers: bool = False,
    on: str | None = None,
    target: str | None = None,
    runtime: str | None = None,
    precision: str | None = None,
    progress: Progress | None = None,
) -> Profile:
    """Measure one model: latency percentiles with their interval, and memory.

    >>> import deadweight
    >>> found = deadweight.profile("pruned.onnx", events=6)
    >>> found.measured.latency_s(50).low <= found.measured.latency_s(50).value
    True
    >>> found.memory.resident_bytes > 0
    True

    Args: as `compare`; `events` are fresh loads of the model, at most as many as fit into `cap_s`.

    Raises:
        DeadweightError: it cannot be timed, or the board cannot be reached.
    """
    path, file, shown = Path(model), optional_path(inputs), progress or silent
    measured: Mapping[str, Measurement]
    cap = cap_s or 0.0
    protocol = Protocol(events=events, event_s=event_s, threads=threads, batch=batch, cap_s=cap)
    memory: Memory | None = None
    parts: tuple[tuple[str, int | None, str], ...] = ()
    remarks: tuple[str, ...] = ()
    how = how_there(on, target=target, runtime=runtime, precision=precision)
    if on is not None:
        with connected(on, shown) as there:
            if layers:
                refuse_layers(runtime_there(there, how)[0])
            ready = ready_on(there, {path.name: path}, how, batch=batch, inputs=file)
            timed = time_on(there, ready, protocol=protocol, inputs=file, memory=True)
        measured, remarks = timed.measurements, ready.remarks
        parts = timed.engine_memory.get(path.name, ())
        memory = timed.memory.get(path.name)
    else:
        runs = run_as(runtime_of(path, board_runtime(target)), runtime)
        if layers:
            refuse_layers(runs)
        alike = check_comparable([path]) if runs.builds else ""
        protocol = replace(protocol, runtime=runs.name, precision=alike)
        measured = time_together(
            {path.name: path},
            protocol=protocol,
            inputs=given_inputs(file),
            progress=labelled(shown, "profile"),
        )
        if runs.builds:
            parts = engine_memory(path, protocol, given_inputs(file))
        else:
            shown(0, 1, "memory")
            memory = measure_memory(path, runtime=runs, threads=threads, batch=batch, inputs=file)
    measured = measured if on is not None else _with_engines(measured, {path.name: path})
    figures = measured[path.name]
    middle = figures.latency_s(50)
    interval = f"{1e3 * middle.low:.4g} to {1e3 * middle.high:.4g} ms"
    verdict = f"{1e3 * middle.value:.4g} ms (95 % interval {interval}), {timed_by(measured)}"
    void = figures.void
    verdict = f"cannot tell: {'; '.join(void)}; {CALM}" if void else verdict
    result = Profile(verdict, 3 if void else 0, path, figures, memory, parts, file, remarks=remarks)
    if not layers:
        return result
    named, one = {path.name: path}, figures.protocol
    timed_layers = time_layers(named, one, inputs=file, on=on, target=target, progress=progress)
    return replace(result, layers=timed_layers)


@contextmanager
def opened_engine(
    plan: Path, protocol: Protocol, inputs: Arrays | None
) -> Iterator[tuple[EngineSession, Arrays]]:
    """An opened engine, and the inputs that it was timed with."""
    with closing(cast("EngineSession", open_session(plan, runtime=protocol.runtime))) as session:
        yield session, fed(session, inputs, batch=protocol.batch, seed=protocol.seed)


def _with_engines(measured: Mapping[str, Measurement], models: Mapping[str, Path]) -> dict[str, Measurement]:
    """Measurements made here, each engine's with what its record says of it."""
    facts = {
        name: engine_facts(read_record(path)) if is_engine(path) else {} for name, path in models.items()
    }
    return {
        name: replace(one, conditions={**one.conditions, "engine": facts[name]}) if facts[name] else one
        for name, one in measured.items()
    }


def refuse_layers_on(on: str, *, target: str | None = None, runtime: str | None = None) -> None:
    """As `refuse_layers`, for the runtime of a board."""
    with connected(on) as there:
        refuse_layers(runtime_there(there, how_there(on, target=target, runtime=runtime))[0])


def refuse_layers(runtime: Runtime) -> None:
    """Refuses to judge layers if the runtime does not time them fairly."""
    if runtime.time_layers is None and not runtime.builds:
        raise RecipeError(f"{runtime.title} does not time layers.", "Omit --layers.")
    if runtime.time_layers is None:
        raise RecipeError(
            "The layers of engines are not judged, nor timed from elsewhere: TensorRT's profiler distorts "
            "their times.",
            "Omit --layers, or time the layers of the CPU: --runtime onnxruntime. To see those of an engine, "
            "in a shell on the machine that built it: deadweight profile FILE.plan --layers; then "
            "deadweight engine A.plan.layers.json B.plan.layers.json shows two side by side.",
        )


def labelled(progress: Progress, what: str) -> Counted:
    return lambda done, total: progress(done, total, what)


def board_runtime(target: str | None) -> Runtime | None:
    """The runtime of the board that the caller named; None without one."""
    return None if target is None else load_target(target).runtime


def optional_path(given: Path | str | None) -> Path | None:
    return None if given is None else Path(given)
