"""Interleaved latency measurement of any number of models, in a child process or by a runtime's own program.

Five effects make a latency wrong on a shared machine (all measured); each has its remedy:
    the machine drifts for seconds at a time      models are interleaved every few ms, in random order
    a block begins with the other model's cache   each block begins with untimed runs: the first run
                                                  after another model took up to 4x as long
    the same file loaded twice differs by 1-6 %   every event loads all models again, with random heap padding
    iterations are not independent                one event is one observation
    another process takes the core                one thread's CPU time is recorded beside its wall time
No sample is dropped: an event during which the machine changed is marked, and its samples stay.

A runtime with `time_process` is a program that times models itself: an event is one new process for each
model, in random order. Processes differ in their number of samples: of each, as many count as the shortest
has.
"""

from __future__ import annotations

import contextlib
import gc
import math
import random
import uuid
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter_ns, thread_time_ns
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ..errors import DeadweightError, MeasurementError, ModelError
from ..machine.child import at_work
from ..machine.probe import changes, conditions, snapshot
from ..onnx_file import files_of, model_sha256
from ..progress import Counted
from ..runtimes.open import open_session
from ..runtimes.runtime import known_runtimes
from ..runtimes.session import ProcessTimes, Session
from .block_plan import Block, Plan, ns_of, planned
from .events import take_events
from .inputs import check_batch, fed, with_inputs
from .measurement import Mark, Measurement, Protocol

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Protocol", "time_together"]

Opener = Callable[..., Session]
"""`open_session`, or a function with its arguments: a path, and the keywords runtime and threads."""

_DEFAULT = Protocol()
_WARM_RUNS = 2
_WARM_BLOCKS = 10
_TRIAL_ROUNDS = 5
_LEAST_PROCESSES = 12
"""Events before the time limit ends a timing by processes, which start slowly: enough for an interval."""
_ON_THE_CORE = ("torch", "numpy")
"""Names of what `opened` may run in the timed thread, besides a `Runtime`."""


_Times = Dict[str, Tuple[List[List[int]], List[int]]]
"""For each model, by round: the wall time of each sample, and the CPU time of the block, in ns."""


@dataclass(frozen=True)
class _Event:
    """The times of one event, how the machine changed meanwhile, and each model's evidence and inputs."""

    times: _Times
    marks: Tuple[str, ...]
    evidences: Dict[str, str]
    shapes: Dict[str, List[str]]
    remark: str = ""
    """What a program's times contain."""


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
    """Times models interleaved and returns one Measurement for each, paired by event.

    Every model gets `inputs`, all samples at once; without them, random ones from the protocol's seed. After
    each number of events in `looks`, `decided` says whether these are enough; `sequential` accounts for the
    error of repeated looks. The protocol's time cap may end the timing earlier. `opened` makes a session from
    a file, with the protocol's runtime and threads, so that more than inference can be timed. What it opens,
    and engines, run in this process; other models in a child process.

    Raises:
        ModelError: a model cannot be opened or run, the inputs do not fit it, or it crashed its process.
        MeasurementError: there is nothing to time, a model changed while it was timed, or the first event did
            not end within the time cap.
    """
    if not models:
        raise MeasurementError("There are no models to time.", "Give one model file or more.")
    own = next((one for one in known_runtimes(variants=True) if one.name == protocol.runtime), None)
    time_process = None if own is None or opened is not open_session else own.time_process
    paths = {name: Path(path) for name, path in models.items()}
    protocol = with_inputs(protocol, inputs)
    # Order and padding differ in each run; the id is the seed, so that they can be reproduced.
    run_id = uuid.uuid4().hex
    facts = conditions()
    hashes = {name: _sha256(path) for name, path in paths.items()}
    sizes = {name: sum(each.stat().st_size for each in files_of(path)) for name, path in paths.items()}
    plan: Optional[Plan] = None
    events: List[_Event] = []
    marks: List[Mark] = []

    def so_far() -> Dict[str, Measurement]:
        counts_cpu = time_process is None and protocol.threads == 1 and _on_the_core(protocol)
        return {
            name: Measurement(
                name=name,
                model_sha256=hashes[name],
                file_bytes=sizes[name],
                run_id=run_id,
                wall_ns=_samples(event.times[name][0] for event in events),
                cpu_ns=np.array([one.times[name][1] for one in events], np.int64) if counts_cpu else None,
                runs=1 if plan is None else plan.blocks[name].runs,
                protocol=protocol,
                conditions=facts,
                evidence=events[-1].evidences[name],
                marks=tuple(marks),
            )
            for name in paths
        }

    job: Callable[[Optional[Plan], str], Tuple[_Event, Plan]]
    if time_process is None:
        runtime = own or protocol.runtime  # as an object it is known in another process too
        job = partial(_event, paths, inputs=inputs, protocol=protocol, runtime=runtime, opened=opened)
    else:
        job = partial(_processes, paths, inputs=inputs, protocol=protocol, time_process=time_process)
    taken = take_events(
        job,
        models=paths.values(),
        protocol=protocol,
        seed=run_id,
        # An engine is code, which no process holds back.
        apart=time_process is None and opened is open_session and not (own is not None and own.builds),
        limited=_on_the_core(protocol),
        kept=own is None or not own.source,  # a user's own may change
        least=1 if time_process is None else _LEAST_PROCESSES,
    )
    with contextlib.closing(taken):
        for index, (event, its_plan) in enumerate(taken):
            events.append(event)
            plan = its_plan
            facts["inputs"] = event.shapes
            facts.update({"times": event.remark} if event.remark else {})
            marks += [Mark(index, happened) for happened in event.marks]
            if progress is not None:
                progress(index + 1, protocol.events)
            if decided is not None and index + 1 in looks and decided(so_far()):
                break
    for name, path in paths.items():
        if _sha256(path) != hashes[name]:
            raise MeasurementError(
                f"{path} changed while it was timed.", "Measure again while no program writes to it."
            )
    facts["state_after"] = conditions()["state"]
    return so_far()


def _samples(rounds: Iterable[List[List[int]]]) -> NDArray[np.int64]:
    """int64[events, rounds, samples] of one model, with as many samples as the shortest round has."""
    events = list(rounds)
    count = min(len(block) for event in events for block in event)
    return np.array([[block[:count] for block in event] for event in events], dtype=np.int64)


def _processes(
    paths: Mapping[str, Path],
    plan: Optional[Plan],
    seed: str,
    *,
    inputs: Optional[Mapping[str, NDArray[Any]]],
    protocol: Protocol,
    time_process: Callable[..., ProcessTimes],
) -> Tuple[_Event, Plan]:
    """One event of a program, of one process for each model."""
    before = snapshot()
    timed = {
        name: time_process(paths[name], protocol=protocol, inputs=inputs)
        for name in random.Random(seed).sample(sorted(paths), len(paths))
    }
    runs = sum(one.wall_ns.size for one in timed.values())
    event = _Event(
        {name: ([one.wall_ns.tolist()], []) for name, one in timed.items()},
        # Threads 0: this process only waits, so its own share of a core says nothing.
        changes(before, snapshot(), runs=runs, threads=0),
        {name: one.evidence for name, one in timed.items()},
        {name: list(one.inputs) for name, one in timed.items()},
        next(iter(timed.values())).remark,
    )
    return event, Plan({name: Block(0, 1, 1) for name in paths}, 1)


def _event(
    paths: Mapping[str, Path],
    plan: Optional[Plan],
    seed: str,
    *,
    inputs: Optional[Mapping[str, NDArray[Any]]],
    protocol: Protocol,
    runtime: object,
    opened: Opener,
) -> Tuple[_Event, Plan]:
    """Loads all models, times them, closes them."""
    gc.collect()  # frees the previous event's sessions, so that only one set is in memory
    rng = random.Random(seed)
    with contextlib.ExitStack() as stack:
        sessions: Dict[str, Session] = {}
        padding: List[NDArray[Any]] = []  # gaps of random size in the heap
        for name in rng.sample(sorted(paths), len(paths)):
            padding += [np.ones(rng.randrange(1, 4000) * 64, np.uint8) for _ in range(rng.randrange(1, 6))]
            at_work(paths[name].name)
            session = opened(paths[name], runtime=runtime, threads=protocol.threads)
            sessions[name] = stack.enter_context(contextlib.closing(session))
        calls, shapes = {}, {}
        for name, session in sessions.items():
            arrays = fed(session, inputs, batch=protocol.batch, seed=protocol.seed)
            if inputs is None:
                check_batch(paths[name], arrays, protocol.batch)
            at_work(paths[name].name)
            shapes[name] = [f"{array.dtype}{list(array.shape)}" for array in arrays.values()]
            calls[name] = session.prepare(arrays)
        counted = protocol.threads if _on_the_core(protocol) else 0
        try:
            for name in rng.sample(sorted(calls), len(calls)):
                at_work(paths[name].name)
                _warm(calls[name])
            at_work(*(path.name for path in paths.values()))
            if plan is None:
                plan = planned(_trial_ns(calls, protocol, rng), protocol)
            times, marks = _time_event(calls, plan, rng, threads=counted)
        except DeadweightError:
            raise
        except Exception as error:  # of the runtime
            raise ModelError(
                f"A model stopped while it was timed: {error}", "Check that it runs alone with these inputs."
            ) from error
        evidences = {name: session.evidence for name, session in sessions.items()}
        return _Event(times, marks, evidences, shapes), plan


def _on_the_core(protocol: Protocol) -> bool:
    """Whether the timed thread computes; one that waits for a GPU leaves the core idle."""
    own = {one.name for one in known_runtimes(variants=True) if one.processor == "cpu"}
    return protocol.runtime in own or protocol.runtime in _ON_THE_CORE


def _warm(call: Callable[[], object]) -> None:
    """Runs a model until the best time of a few runs no longer improves."""
    best = math.inf
    for _ in range(_WARM_BLOCKS):
        now = min(ns_of(call) for _ in range(_WARM_RUNS))
        if now > 0.98 * best:
            return
        best = min(best, now)


def _trial_ns(
    calls: Mapping[str, Callable[[], object]], protocol: Protocol, rng: random.Random
) -> Dict[str, int]:
    """The best time of one run of each model, in ns, over a few short blocks."""
    best = dict.fromkeys(calls, 1 << 62)
    for _ in range(_TRIAL_ROUNDS):
        for name in rng.sample(sorted(calls), len(calls)):
            end = perf_counter_ns() + 1e9 * protocol.settle_s
            while True:
                best[name] = max(min(best[name], ns_of(calls[name])), 1)
                if perf_counter_ns() >= end:
                    break
    return best


def _time_event(
    calls: Mapping[str, Callable[[], object]], plan: Plan, rng: random.Random, *, threads: int
) -> Tuple[_Times, Tuple[str, ...]]:
    """Takes one event's samples, with a new random order in each round."""
    times: _Times = {name: ([], []) for name in calls}
    names = sorted(calls)
    collecting, before = gc.isenabled(), snapshot()
    gc.disable()  # a collection would be counted in one model's time
    try:
        for _ in range(plan.rounds):
            for name in rng.sample(names, len(names)):
                wall_ns, cpu_ns = _time_block(calls[name], plan.blocks[name])
                times[name][0].append(wall_ns)
                times[name][1].append(cpu_ns)
    finally:
        if collecting:
            gc.enable()
    runs = plan.rounds * sum(block.all_runs for block in plan.blocks.values())
    return times, changes(before, snapshot(), runs=runs, threads=threads)


def _time_block(call: Callable[[], object], block: Block) -> Tuple[List[int], int]:
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
