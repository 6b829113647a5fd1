"""The clock: any number of models timed together, so that what disturbs one disturbs all.

Measured on shared machines, five things make a latency lie, and each has its answer here:
    the machine drifts for seconds at a time      models take turns every few milliseconds, in random order
    a turn begins with the other's data in cache  each turn begins with runs that are not timed: the first
                                                  run after another model took up to 4x as long
    the same file loaded twice differs by 1-6 %   every event loads all models anew, heap padding at random
    iterations are not independent                the event is what counts as one observation
    another process takes the core                one thread's CPU time is kept beside its wall time
Nothing is dropped: an event during which the machine changed is marked, and its samples stay.
"""

from __future__ import annotations

import gc
import math
import random
import uuid
from pathlib import Path
from time import perf_counter, perf_counter_ns, thread_time_ns
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ..errors import MeasurementError, ModelError
from ..machine.probe import changes, conditions, snapshot
from ..onnx_file import files_of, model_sha256
from ..progress import Counted
from ..runtimes.open import open_session
from ..runtimes.runtime import known_runtimes
from ..runtimes.session import Session
from .block_plan import Block, Plan, check_clock, clock_source, planned
from .inputs import fed, with_inputs
from .measurement import Mark, Measurement, Protocol

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Protocol", "time_together"]

Opener = Callable[..., Session]
"""`open_session`, or what takes the same arguments: a path, and by name runtime and threads."""

_DEFAULT = Protocol()
_WARM_RUNS = 2
_WARM_BLOCKS = 10
_TRIAL_ROUNDS = 5
_ON_THE_CORE = ("torch", "numpy")
"""What `opened` may run on this thread that is no `Runtime`."""


_Event = Dict[str, Tuple[List[List[int]], List[int]]]
"""For each model, by round: the wall time of each sample, and the CPU time of the block, in ns."""


def time_together(
    models: Mapping[str, Path],
    *,
    protocol: Protocol = _DEFAULT,
    inputs: Optional[Mapping[str, NDArray[Any]]] = None,
    progress: Optional[Counted] = None,
    looks: Sequence[int] = (),
    decided: Optional[Callable[[Mapping[str, Measurement]], bool]] = None,
    opened: Opener = open_session,
) -> Dict[str, Measurement]:
    """Times models by turns in this process and returns one Measurement for each, paired by event.

    `inputs` are fed to every model, all samples at once; without them each gets random ones by the
    protocol's seed. After each
    number of events in `looks`, `decided` is asked whether these are enough: see `sequential`, which counts
    what looking often costs. The protocol's time cap may end it earlier as well. `opened` makes a session of
    a file and is told the protocol's runtime and threads: what is timed need not be inference.

    Raises:
        ModelError: a model cannot be opened or run, or the inputs do not fit it.
        MeasurementError: there is nothing to time, the machine has no clock for it, or a model changed while
            it was timed.
    """
    if not models:
        raise MeasurementError("There are no models to time.", "Give one model file or more.")
    check_clock(*clock_source())
    paths = {name: Path(path) for name, path in models.items()}
    protocol = with_inputs(protocol, inputs)
    run_id = uuid.uuid4().hex
    # Order and padding are drawn afresh each time (the id is the seed, so that they can be drawn again).
    dice = random.Random(run_id)
    told = conditions()
    hashes = {name: _sha256(path) for name, path in paths.items()}
    sizes = {name: sum(each.stat().st_size for each in files_of(path)) for name, path in paths.items()}
    plan: Optional[Plan] = None
    events: List[_Event] = []
    marks: List[Mark] = []
    evidences: Dict[str, str] = {}
    shapes: Dict[str, List[str]] = {}
    told["inputs"] = shapes
    started = perf_counter()

    def so_far() -> Dict[str, Measurement]:
        assert plan is not None  # there is one event at least
        counts_cpu = protocol.threads == 1 and _on_the_core(protocol)
        return {
            name: Measurement(
                name=name,
                model_sha256=hashes[name],
                file_bytes=sizes[name],
                run_id=run_id,
                wall_ns=np.array([event[name][0] for event in events], dtype=np.int64),
                cpu_ns=np.array([event[name][1] for event in events], dtype=np.int64) if counts_cpu else None,
                runs=plan.blocks[name].runs,
                protocol=protocol,
                conditions=told,
                evidence=evidences[name],
                marks=tuple(marks),
            )
            for name in paths
        }

    for index in range(protocol.events):
        event, what, plan = _event(
            paths,
            plan,
            inputs=inputs,
            protocol=protocol,
            dice=dice,
            evidences=evidences,
            shapes=shapes,
            opened=opened,
        )
        events.append(event)
        marks += [Mark(index, happened) for happened in what]
        if progress is not None:
            progress(index + 1, protocol.events)
        if decided is not None and index + 1 in looks and decided(so_far()):
            break
        if 0 < protocol.cap_s <= perf_counter() - started:
            break
    for name, path in paths.items():
        if _sha256(path) != hashes[name]:
            raise MeasurementError(
                f"{path} changed while it was timed.", "Measure again when nothing writes to it."
            )
    told["state_after"] = conditions()["state"]
    return so_far()


def _event(
    paths: Mapping[str, Path],
    plan: Optional[Plan],
    *,
    inputs: Optional[Mapping[str, NDArray[Any]]],
    protocol: Protocol,
    dice: random.Random,
    evidences: Dict[str, str],
    shapes: Dict[str, List[str]],
    opened: Opener,
) -> Tuple[_Event, Tuple[str, ...], Plan]:
    """Loads all models, times them, lets go of them; returns the samples and what happened meanwhile.

    What each session says its times are goes into `evidences`, what it was fed into `shapes`.
    """
    gc.collect()  # the sessions of the event before, so that no more than one set is in memory
    sessions, padding = _opened(paths, protocol, dice, opened)
    try:
        calls = {}
        for name, session in sessions.items():
            evidences[name] = session.evidence
            arrays = fed(session, inputs, batch=protocol.batch, seed=protocol.seed)
            if inputs is None:
                _check_batch(paths[name], arrays, protocol.batch)
            shapes[name] = [f"{array.dtype}{list(array.shape)}" for array in arrays.values()]
            calls[name] = session.prepare(arrays)
        for name in dice.sample(sorted(calls), len(calls)):
            _warm(calls[name])
        if plan is None:
            plan = planned(_trial(calls, protocol, dice), protocol)
        counted = protocol.threads if _on_the_core(protocol) else 0
        event, what = _taken(calls, plan, dice, threads=counted)
        return event, what, plan
    finally:
        for session in sessions.values():
            session.close()
        del padding


def _on_the_core(protocol: Protocol) -> bool:
    """Whether the thread that is timed does the work; one that waits for a GPU leaves the core idle."""
    own = {one.name for one in known_runtimes(variants=True) if one.processor == "cpu"}
    return protocol.runtime in own or protocol.runtime in _ON_THE_CORE


def _check_batch(path: Path, arrays: Mapping[str, NDArray[Any]], batch: int) -> None:
    """A fixed batch would be timed as if it were the one asked for, beside a model that takes any."""
    if batch > 1 and arrays and not any(array.shape[:1] == (batch,) for array in arrays.values()):
        told = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        raise ModelError(
            f"{path.name} cannot be timed with {batch} samples at once: its inputs are fixed to {told}.",
            "Export it with its batch left open, or leave --batch away.",
        )


def _opened(
    paths: Mapping[str, Path], protocol: Protocol, dice: random.Random, opened: Opener
) -> Tuple[Dict[str, Session], List[NDArray[Any]]]:
    """All models in random order, with gaps of random size in the heap between them."""
    sessions: Dict[str, Session] = {}
    padding: List[NDArray[Any]] = []
    try:
        for name in dice.sample(sorted(paths), len(paths)):
            padding += [np.ones(dice.randrange(1, 4000) * 64, np.uint8) for _ in range(dice.randrange(1, 6))]
            sessions[name] = opened(paths[name], runtime=protocol.runtime, threads=protocol.threads)
    except BaseException:
        for session in sessions.values():
            session.close()
        raise
    return sessions, padding


def _warm(call: Callable[[], object]) -> None:
    """Runs until the best of a few runs is no longer better than the best before."""
    best = math.inf
    for _ in range(_WARM_BLOCKS):
        now = min(_run_ns(call) for _ in range(_WARM_RUNS))
        if now > 0.98 * best:
            return
        best = min(best, now)


def _trial(
    calls: Mapping[str, Callable[[], object]], protocol: Protocol, dice: random.Random
) -> Dict[str, int]:
    """The best time of one run of each model, in ns, over a few short turns."""
    best = dict.fromkeys(calls, 1 << 62)
    for _ in range(_TRIAL_ROUNDS):
        for name in dice.sample(sorted(calls), len(calls)):
            end = perf_counter_ns() + 1e9 * protocol.settle_s
            while True:
                best[name] = max(min(best[name], _run_ns(calls[name])), 1)
                if perf_counter_ns() >= end:
                    break
    return best


def _run_ns(call: Callable[[], object]) -> int:
    start = perf_counter_ns()
    call()
    return perf_counter_ns() - start


def _taken(
    calls: Mapping[str, Callable[[], object]], plan: Plan, dice: random.Random, *, threads: int
) -> Tuple[_Event, Tuple[str, ...]]:
    """Takes one event's samples, each round in a new order."""
    event: _Event = {name: ([], []) for name in calls}
    names = sorted(calls)
    collecting, before = gc.isenabled(), snapshot()
    gc.disable()  # a collection would land on one model's time
    try:
        for _ in range(plan.rounds):
            for name in dice.sample(names, len(names)):
                wall_ns, cpu_ns = _timed(calls[name], plan.blocks[name])
                event[name][0].append(wall_ns)
                event[name][1].append(cpu_ns)
    except Exception as error:
        raise ModelError(
            f"A model stopped while it was timed: {error}", "Check that it runs with these inputs on its own."
        ) from error
    finally:
        if collecting:
            gc.enable()
    runs = plan.rounds * sum(block.all_runs for block in plan.blocks.values())
    return event, changes(before, snapshot(), runs=runs, threads=threads)


def _timed(call: Callable[[], object], block: Block) -> Tuple[List[int], int]:
    """One block: wall time of each sample, and the thread's CPU time of all of them, in ns."""
    for _ in range(block.settling):
        call()
    once = range(block.runs)
    stamps = [0] * (block.samples + 1)
    cpu_ns = thread_time_ns()
    stamps[0] = perf_counter_ns()
    for sample in range(1, block.samples + 1):
        for _ in once:
            call()
        stamps[sample] = perf_counter_ns()
    cpu_ns = thread_time_ns() - cpu_ns
    return [stamps[sample + 1] - stamps[sample] for sample in range(block.samples)], cpu_ns


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise ModelError(f"There is no model at {path}.", "Check the path.")
    return model_sha256(path)
