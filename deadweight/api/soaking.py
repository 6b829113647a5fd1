"""The function `soak`: how models behave over minutes and hours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..targets.errors import RecipeError
from ..targets.paths import CACHE, stored
from ..targets.progress import Progress, silent
from ..targets.remote.board import soak_on
from ..targets.remote.on_board import HowThere, ready_on
from ..targets.remote.received_files import measuring
from ..targets.remote.ssh import connected
from ..targets.runtimes.open import run_as, runtime_of, shared_runtime
from ..targets.runtimes.runtime import Runtime
from ..targets.timing.judge import exit_code
from ..targets.timing.loads import BUILT_IN, Load
from ..targets.timing.soak import soak as soak_here
from ..targets.timing.soak_record import NEIGHBOUR, SoakPlan
from ..targets.timing.soak_record import Soak as SoakRecord
from ..targets.timing.soak_summary import Energy, Summary, energies, summarized
from .latency import board_runtime, labelled
from .on_board import how_there
from .results import Soak


def soak(
    model: Path | str,
    other: Path | str | None = None,
    *,
    minutes: float = 30.0,
    period_s: float = 5.0,
    rate_hz: float | None = None,
    streams: int = 1,
    threads: int = 1,
    batch: int = 1,
    inputs: Path | str | None = None,
    steps: Path | str | None = None,
    beside: Path | str | None = None,
    beside_rate_hz: float | None = None,
    beside_runtime: str | None = None,
    power_modes: Sequence[str] = (),
    allow_power_mode: bool = False,
    on: str | None = None,
    target: str | None = None,
    runtime: str | None = None,
    precision: str | None = None,
    progress: Progress | None = None,
) -> Soak:
    """Run one model, or two in alternating periods, for minutes to hours, and record what happens.

    >>> import deadweight
    >>> found = deadweight.soak("original.onnx", "pruned.onnx", minutes=0.5, period_s=1)
    >>> found.exit_code, found.summary.memory.grows
    (0, False)

    Args:
        other: the candidate; it is judged against `model`.
        minutes: of all power modes together; a soak that was interrupted is resumed by the same call.
        period_s: seconds in which one of them runs; energy needs periods that the sensor can follow.
        rate_hz: frames per second, as of a camera: missed ones are counted. None: flat out.
        streams: processes that run a model at once.
        steps: a Python file of yours with `frame`, `preprocess` and `postprocess`, timed with the model.
        beside: a model, or "cpu" or "memory", that runs beside them in half of the periods.
        power_modes: names of nvpmodel, in turn; needs `allow_power_mode`. The present one is set back.
        on, target, runtime, precision, threads, batch, inputs: as `compare`.

    Raises:
        DeadweightError: a model cannot be run, or the board cannot be reached.
    """
    if power_modes and not allow_power_mode:
        raise RecipeError(
            "--power-modes changes the power mode of the board.",
            "Allow it: --allow-power-mode. It is set back.",
        )
    models = {"baseline": Path(model), **({} if other is None else {"candidate": Path(other)})}
    own = "" if beside is None else str(beside)
    done = _done(
        models,
        Load("", threads=threads, batch=batch, rate_hz=rate_hz or 0.0, steps=str(steps or "")),
        SoakPlan({}, minutes=minutes, period_s=period_s, streams=streams, power_modes=tuple(power_modes)),
        inputs=None if inputs is None else Path(inputs),
        beside=Load(own, rate_hz=beside_rate_hz or 0.0) if own else None,
        how=partial(how_there, on, target=target, precision=precision),
        runtimes=(runtime, beside_runtime),
        board=board_runtime(target),
        on=on,
        progress=progress or silent,
    )
    summary = summarized(done)
    names = {**models, **({NEIGHBOUR: Path(own)} if own else {})}
    return Soak(*_verdict(summary), names, done, summary)


def energy(
    model: Path,
    *,
    threads: int = 1,
    batch: int = 1,
    inputs: Path | None = None,
    on: str | None = None,
    target: str | None = None,
    runtime: str | None = None,
    precision: str | None = None,
    progress: Progress | None = None,
) -> Energy:
    """The energy of an inference, from a minute beside idle periods; at once where there is no sensor."""
    done = _done(
        {"candidate": model},
        Load("", threads=threads, batch=batch),
        SoakPlan({}, minutes=1.0, period_s=2.0, energy_only=True),
        inputs=inputs,
        beside=None,
        how=partial(how_there, on, target=target, precision=precision),
        runtimes=(runtime, None),
        board=board_runtime(target),
        on=on,
        progress=progress or silent,
    )
    return energies(done)["candidate"]


def _done(
    models: Mapping[str, Path],
    load: Load,
    plan: SoakPlan,
    *,
    inputs: Path | None,
    beside: Load | None,
    how: Callable[..., HowThere],
    runtimes: tuple[str | None, str | None],
    board: Runtime | None,
    on: str | None,
    progress: Progress,
) -> SoakRecord:
    """Runs a plan of these models, each as `load`, and a neighbour, here or on a board."""
    files = [inputs, Path(load.steps) if load.steps else None]
    with ExitStack() as stack:
        there = None if on is None else stack.enter_context(connected(on, progress))
        if there is None:
            runs = run_as(shared_runtime(models.values(), board), runtimes[0])
            paths, places = [str(path) for path in models.values()], [str(each or "") for each in files]
        else:
            ready = ready_on(there, models, how(runtime=runtimes[0]), batch=load.batch, inputs=inputs)
            runs, paths = ready.runtime, list(ready.there.values())
            places = [there.put([each])[0] if each else "" for each in files]
        made = replace(load, runtime=runs.name, inputs=places[0], steps=places[1])
        loads = {name: replace(made, model=path) for name, path in zip(models, paths, strict=True)}
        if beside is not None and beside.model not in BUILT_IN:
            path = Path(beside.model)
            if there is None:
                beside = replace(beside, runtime=run_as(runtime_of(path), runtimes[1]).name)
            else:
                ready = ready_on(there, {NEIGHBOUR: path}, how(runtime=runtimes[1]))
                beside = replace(beside, model=ready.there[NEIGHBOUR], runtime=ready.runtime.name)
        plan = replace(plan, loads={**loads, **({NEIGHBOUR: beside} if beside else {})})
        if there is not None:
            return soak_on(there, plan)
        stack.enter_context(measuring())
        return soak_here(plan, folder=stored(CACHE, "soaks"), progress=labelled(progress, "soak"))


def _verdict(summary: Summary) -> tuple[str, int]:
    judged = list(summary.judgements.values())
    found = [one.sentence() for one in judged] or [f"p50 {1e3 * summary.rows[0].latency.value:.4g} ms"]
    found.append(summary.memory.sentence())
    found.append(f"slowed {len(summary.slowed)} times" if summary.slowed else "never slowed")
    codes = [exit_code(one.outcome) for one in judged]
    code = 1 if 1 in codes or summary.memory.grows else max(codes, default=0)
    return "; ".join(found), code
