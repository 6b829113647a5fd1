"""The function `soak`: how models behave over minutes and hours."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from ..targets.errors import RecipeError
from ..targets.paths import CACHE, stored
from ..targets.progress import Progress, silent
from ..targets.remote.board import soak_on
from ..targets.remote.on_board import ready_on
from ..targets.remote.ssh import connected
from ..targets.runtimes.open import run_as, runtime_of, shared_runtime
from ..targets.timing.judge import exit_code
from ..targets.timing.loads import BUILT_IN, Load
from ..targets.timing.soak import soak as soak_here
from ..targets.timing.soak_record import NEIGHBOUR, SoakPlan
from ..targets.timing.soak_summary import Summary, summarized
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
    own = beside is not None and str(beside) in BUILT_IN
    files = [None if each is None else Path(each) for each in (inputs, steps)]
    load = partial(Load, threads=threads, batch=batch, rate_hz=rate_hz or 0.0)
    plan = partial(
        SoakPlan, minutes=minutes, period_s=period_s, streams=streams, power_modes=tuple(power_modes)
    )
    shown = progress or silent
    with ExitStack() as stack:
        there = None if on is None else stack.enter_context(connected(on, shown))
        if there is None:
            runs = run_as(shared_runtime(models.values(), board_runtime(target)), runtime)
            paths, places = [str(path) for path in models.values()], [str(each or "") for each in files]
        else:
            how = how_there(on, target=target, runtime=runtime, precision=precision)
            ready = ready_on(there, models, how, batch=batch, inputs=files[0])
            runs, paths = ready.runtime, list(ready.there.values())
            places = [there.put([each])[0] if each else "" for each in files]
        loads = {
            name: load(path, runs.name, inputs=places[0], steps=places[1])
            for name, path in zip(models, paths, strict=True)
        }
        if beside is not None:
            place, runs_beside = str(beside), run_as(runtime_of(beside), beside_runtime) if not own else runs
            if there is not None and not own:
                other_how = how_there(on, target=target, runtime=beside_runtime, precision=precision)
                ready = ready_on(there, {NEIGHBOUR: Path(beside)}, other_how, batch=1)
                place, runs_beside = ready.there[NEIGHBOUR], ready.runtime
            loads[NEIGHBOUR] = Load(place, runs_beside.name, rate_hz=beside_rate_hz or 0.0)
        if there is None:
            folder = stored(CACHE, "soaks")
            done = soak_here(plan(loads), folder=folder, progress=labelled(shown, "soak"))
        else:
            done = soak_on(there, plan(loads))
    summary = summarized(done)
    names = {**models, **({} if beside is None else {NEIGHBOUR: Path(beside)})}
    return Soak(*_verdict(summary), names, done, summary)


def _verdict(summary: Summary) -> tuple[str, int]:
    judged = list(summary.judgements.values())
    found = [one.sentence() for one in judged] or [f"p50 {1e3 * summary.rows[0].latency.value:.4g} ms"]
    found.append(summary.memory.sentence())
    found.append(f"slowed {len(summary.slowed)} times" if summary.slowed else "never slowed")
    codes = [exit_code(one.outcome) for one in judged]
    code = 1 if 1 in codes or summary.memory.grows else max(codes, default=0)
    return "; ".join(found), code
