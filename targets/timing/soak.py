"""The soak: models run for minutes to hours, while power, temperatures, clocks and memory are recorded.

    period   some seconds in which one model runs, alone or beside a neighbour; or none does, for idle power
    round    one period of each kind, in random order: drift of the machine cancels within a round
    mode     all rounds of one power mode; without --power-modes there is one, as it is

Each finished round is logged, so that a soak that was interrupted (a reboot, a broken connection) is resumed
by the same command. `soak_summary.py` computes what the periods mean.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import time
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple

from ..artifact import utc_now
from ..errors import MeasurementError
from ..machine import jetson
from ..machine.power_modes import power_mode_ids, power_mode_kept
from ..machine.rails import open_sensor
from ..progress import Counted
from ..runtimes.runtime import runtime_named
from .loads import BUILT_IN, Processes
from .soak_record import NEIGHBOUR, Log, Period, Soak, SoakPlan
from .watch import Watch

_TICK_S = 0.05
_SETTLE_S = 5.0
"""Between power modes."""


def soak(
    plan: SoakPlan,
    *,
    folder: Path,
    root: Path = Path("/"),
    clocks: Callable[[], Tuple[float, float]] = lambda: (time.monotonic(), time.time()),
    processes: Callable[..., Any] = Processes,
    progress: Optional[Counted] = None,
) -> Soak:
    """Runs a plan, or what is left of it; `folder` has the log, which is removed at the end.

    `processes` makes what runs the loads, and calls `tick` meanwhile. `clocks` are a steady one and the
    calendar's, in seconds.

    Raises:
        MeasurementError: the machine is throttled already, or a model does not keep the rate.
        TargetError: a power mode cannot be set. The one of before is set back in any case.
        ModelError: a load cannot be opened, or its process ended.
    """
    ids = power_mode_ids(root, plan.power_modes)
    processors = []
    for load in plan.loads.values():
        if load.model in BUILT_IN:
            continue
        runtime = runtime_named(load.runtime)
        processors.append(runtime.processor)
        if runtime.time_process is not None:
            raise MeasurementError(
                f"{runtime.title} starts a process for each timing, so it cannot run {load.name} for long.",
                "Use TensorRT's Python package on the board: deadweight doctor --on says how to get it.",
            )
    if hot := jetson.read_state(root).throttling:
        raise MeasurementError(
            f"The machine is throttled before the soak begins: {', '.join(hot)}.",
            "Let it cool down first, so that the onset can be seen.",
        )
    sensor, no_sensor = open_sensor(root, processor="gpu" if "gpu" in processors else "cpu")
    if sensor is None and plan.energy_only:
        return Soak(plan, (), {}, utc_now(), "", no_sensor)
    with contextlib.ExitStack() as stack:
        stack.callback(sensor.close if sensor else lambda: None)
        log = Log(plan, folder, root, clocks=clocks)
        watch = Watch(root, sensor, clocks, shift_s=log.shift_s, remark=log.remark)
        set_mode = stack.enter_context(power_mode_kept(root, log.mode_before)) if ids else None
        running = processes(plan.loads, neighbour=NEIGHBOUR, streams=plan.streams, tick_s=_TICK_S)
        stack.callback(running.close)
        modes, total_s = plan.power_modes or ("",), 60 * plan.minutes
        for mode in modes:
            if set_mode is not None and log.spent_s(mode) < total_s / len(modes):
                set_mode(ids[mode])
                running.run((), _SETTLE_S, watch.tick)
                watch.forget()
            while log.spent_s(mode) < total_s / len(modes):
                log.add(list(_round(plan, log.rounds, mode, running, watch, idle=sensor is not None)))
                _check_rate(plan, log.periods)
                if progress is not None:
                    progress(min(round(sum(map(log.spent_s, modes))), round(total_s)), round(total_s))
    shutil.rmtree(str(log.path.parent))
    name = "" if sensor is None else sensor.name
    return Soak(plan, tuple(log.periods), log.conditions, log.started, name, no_sensor)


def _round(
    plan: SoakPlan, number: int, mode: str, running: Any, watch: Watch, *, idle: bool
) -> Iterator[Period]:
    """One period of each kind: idle, each load alone, each model beside the neighbour."""
    kinds: List[Tuple[str, ...]] = [(name,) for name in plan.loads] + ([()] if idle else [])
    if NEIGHBOUR in plan.loads:
        kinds += [(name, NEIGHBOUR) for name in plan.loads if name != NEIGHBOUR]
    for kind in random.Random(f"{plan.seed} {number}").sample(kinds, len(kinds)):
        running.ready(kind)
        begun = watch.start()
        ran = running.run(kind, plan.period_s, watch.tick)
        yield Period(round=number, mode=mode, models=kind, at_s=begun, ran=ran, **watch.seen())


def _check_rate(plan: SoakPlan, periods: Sequence[Period]) -> None:
    """Refuses a rate at which one run alone takes longer than a frame, by the median of the first round."""
    for one in periods:
        if one.round or len(one.models) != 1:
            continue
        load, ran = plan.loads[one.models[0]], one.ran[one.models[0]]
        took_s = max(sorted(each.wall_ns)[len(each.wall_ns) // 2] for each in ran) / 1e9
        if took_s * load.rate_hz > 1:
            raise MeasurementError(
                f"{load.name} does not keep {load.rate_hz:g} Hz: a run takes {1e3 * took_s:.3g} ms, a frame "
                f"{1e3 / load.rate_hz:.3g} ms.",
                f"Give a rate below {1 / took_s:.3g} Hz, or omit the rate.",
            )
