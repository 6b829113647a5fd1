"""Loads of a soak: models that run in processes of their own for a period, at a rate or flat out.

A process keeps its session open from period to period, as a deployed program does. One that runs several
models opens each again before its period, since a file loaded twice differs by some per cent (`clock.py`).
Of short runs every second, fourth, ... is kept, so that a period has at most `MOST` samples; all are counted.
"""

from __future__ import annotations

import gc
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic, perf_counter_ns, thread_time_ns
from typing import TYPE_CHECKING, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, TypeVar

import numpy as np

from ..errors import WorkloadError, module_in, users_code
from ..machine.child import Child, patience_s
from ..machine.jetson import proc_bytes
from ..runtimes.open import open_session
from ..runtimes.runtime import DEFAULT, Runtime, runtime_named
from .inputs import fed, given_inputs

if TYPE_CHECKING:
    from ..runtimes.session import Session

T = TypeVar("T")
MOST = 1024
_WARM_S = 0.2
_GRACE_S = 60.0


@dataclass(frozen=True)
class Load:
    """A model and how it runs."""

    model: str
    """Its path, or one of `BUILT_IN`."""
    runtime: str = DEFAULT
    threads: int = 1
    batch: int = 1
    rate_hz: float = 0.0
    """Frames in a second, as of a camera; 0: flat out."""
    inputs: str = ""
    """An NPZ file in place of random inputs."""
    steps: str = ""
    """A user's Python file with `preprocess`, `postprocess` and `frame`, see `docs/soak.md`."""

    @property
    def name(self) -> str:
        """For people."""
        return Path(self.model).name

    @property
    def limited(self) -> bool:
        """Whether its process has a limit of memory; the driver of a GPU reserves far more than it uses."""
        return self.model in BUILT_IN or runtime_named(self.runtime).processor == "cpu"


@dataclass(frozen=True)
class Ran:
    """What a load did in one period."""

    wall_ns: Tuple[int, ...]
    """The time of each kept run, in order."""
    frames: int
    """All runs; at a rate, all frames that were due."""
    missed: int
    """Frames that were not done when the next one was due."""
    seconds: float
    cpu_s: float = 0.0
    """CPU time of the thread, of one run; 0 where it is meaningless (a GPU, more threads)."""
    memory_bytes: Optional[int] = None
    """Anonymous memory of the process at the end."""
    parts_s: Mapping[str, float] = field(default_factory=dict)
    """Median time of preprocess, model and postprocess, where there are such steps."""
    inputs: Tuple[str, ...] = ()
    evidence: str = "measured"


def _spin() -> Callable[[], object]:
    square = np.ones((192, 192), np.float32)
    return lambda: square @ square


def _copy() -> Callable[[], object]:
    source = np.ones(1 << 24, np.float32)  # 64 MB, more than a cache
    to = np.empty_like(source)
    return lambda: np.copyto(to, source)


BUILT_IN: Mapping[str, Callable[[], Callable[[], object]]] = {"cpu": _spin, "memory": _copy}
"""Loads that need no file: multiplications of one thread, and copies of 64 MB."""


@dataclass(frozen=True)
class _Opened:
    call: Callable[[], object]
    close: Callable[[], object]
    inputs: Tuple[str, ...] = ()
    evidence: str = "measured"
    parts: Mapping[str, List[int]] = field(default_factory=dict)


_open: Dict[Load, _Opened] = {}
"""In a child process: what is open there."""
_kept = np.empty(2 * MOST, np.int64)


def open_load(load: Load, runtime: Optional[Runtime], *, anew: bool) -> None:
    """Opens a load in this process and warms it; `anew`: again, with another layout of the heap.

    `runtime` is None for a built-in load.
    """
    if load in _open and not anew:
        return
    if load in _open:
        _open.pop(load).close()
    gc.collect()
    padding = [np.ones(random.randrange(1, 4000) * 64, np.uint8) for _ in range(5)] if anew else []
    _open[load] = _opened(load, runtime)
    del padding
    until = monotonic() + _WARM_S
    _open[load].call()
    while monotonic() < until:
        _open[load].call()


def _opened(load: Load, runtime: Optional[Runtime]) -> _Opened:
    if runtime is None:
        return _Opened(BUILT_IN[load.model](), lambda: None)
    session = open_session(load.model, runtime=runtime, threads=load.threads)
    if load.steps:
        return _with_steps(load, session)
    arrays = fed(session, given_inputs(Path(load.inputs) if load.inputs else None), batch=load.batch)
    shapes = tuple(f"{array.dtype}{list(array.shape)}" for array in arrays.values())
    return _Opened(session.prepare(arrays), session.close, shapes, session.evidence)


def _with_steps(load: Load, session: Session) -> _Opened:
    """A run is the user's preprocess, the model with copies in and out, and the user's postprocess."""
    parts: Dict[str, List[int]] = {"preprocess": [], "model": [], "postprocess": []}
    with users_code(f"{load.steps} was imported"):
        module = module_in(Path(load.steps))
        before = getattr(module, "preprocess", lambda frame: frame)
        after = getattr(module, "postprocess", lambda outputs: outputs)
        if not hasattr(module, "frame"):
            raise WorkloadError(f"{load.steps} has no frame().", "Let it return what the camera gives.")
        frame = module.frame()

    def call() -> None:
        with users_code(f"{load.steps} ran"):
            stamps = [perf_counter_ns()]
            arrays = before(frame)
            stamps.append(perf_counter_ns())
            outputs = session.run(arrays)
            stamps.append(perf_counter_ns())
            after(outputs)
            stamps.append(perf_counter_ns())
        for times, start, end in zip(parts.values(), stamps, stamps[1:]):
            if len(times) < MOST:
                times.append(end - start)

    given = f"{getattr(frame, 'dtype', type(frame).__name__)}{list(np.shape(frame))}"
    return _Opened(call, session.close, (given,), session.evidence, parts)


def run_load(load: Load, seconds: float) -> Ran:
    """Runs an open load for a period."""
    opened = _open[load]
    for times in opened.parts.values():
        times.clear()
    gc.collect()
    gc.disable()  # a collection would be counted in one run's time
    cpu_ns = thread_time_ns()
    try:
        count, runs, frames, missed, taken_s = _timed(opened.call, load.rate_hz, seconds)
    finally:
        cpu_ns = thread_time_ns() - cpu_ns
        gc.enable()
    return Ran(
        tuple(_kept[:count].tolist()),
        frames,
        missed,
        taken_s,
        cpu_ns / 1e9 / runs if load.limited and load.threads == 1 else 0.0,
        proc_bytes(Path("/proc/self/status"), "RssAnon"),
        {name: float(np.median(times)) / 1e9 for name, times in opened.parts.items() if times},
        opened.inputs,
        opened.evidence,
    )


def _timed(call: Callable[[], object], rate_hz: float, seconds: float) -> Tuple[int, int, int, int, float]:
    """How many times are kept, runs, frames that were due, missed ones; and the period in seconds."""
    kept, count, every, runs, missed = _kept, 0, 1, 0, 0
    begun = now = due = perf_counter_ns()
    end, frame_ns = begun + round(1e9 * seconds), round(1e9 / rate_hz) if rate_hz else 0
    frames = 0
    while now < end and due < end:
        if frame_ns:
            if now < due:
                time.sleep((due - now) / 1e9)
            frames += 1
            due += frame_ns
        start = perf_counter_ns()
        call()
        now = perf_counter_ns()
        if runs % every == 0:
            kept[count] = now - start
            count += 1
            if count == kept.size:
                count, every = MOST, 2 * every
                kept[:MOST] = kept[::2]
        runs += 1
        if frame_ns and now > due:
            late = (now - due) // frame_ns  # whole frames that passed meanwhile: a camera drops them
            missed, frames, due = missed + 1 + late, frames + late, due + late * frame_ns
    return count, runs, frames or runs, missed, (max(now, min(due, end)) - begun) / 1e9


class Processes:
    """The processes of a soak: in each of `streams` any of the models runs, and the neighbour has its own."""

    def __init__(self, loads: Mapping[str, Load], *, neighbour: str, streams: int, tick_s: float) -> None:
        self._loads, self._tick_s = loads, tick_s
        self._models = [name for name in loads if name != neighbour]
        shared = [Child() for _ in range(streams)]
        self._children = dict.fromkeys(self._models, shared)
        if neighbour in loads:
            self._children[neighbour] = [Child()]

    def ready(self, names: Sequence[str]) -> None:
        """To be called before a period: opens what is to run; where there are several models, again."""
        for name in names:
            load, anew = self._loads[name], name in self._models and len(self._models) > 1
            # As an object, a user's own runtime is known in another process too.
            runtime = None if load.model in BUILT_IN else runtime_named(load.runtime)
            within_s = _GRACE_S + (0.0 if runtime is None else patience_s(Path(load.model)))
            job = partial(open_load, load, runtime, anew=anew)
            self._at_once({name: job}, within_s=within_s, tick=lambda: None)

    def run(
        self, names: Sequence[str], seconds: float, tick: Callable[[], object]
    ) -> Dict[str, Tuple[Ran, ...]]:
        """What each load did in its processes, all at once; without loads it only waits."""
        until = monotonic() + seconds
        while not names and monotonic() < until:
            tick()
            time.sleep(self._tick_s)
        jobs = {name: partial(run_load, self._loads[name], seconds) for name in names}
        return self._at_once(jobs, within_s=seconds + _GRACE_S, tick=tick)

    def close(self) -> None:
        """Ends the processes."""
        for children in self._children.values():
            for child in children:
                child.close()

    def _at_once(
        self, jobs: Mapping[str, Callable[[], T]], *, within_s: float, tick: Callable[[], object]
    ) -> Dict[str, Tuple[T, ...]]:
        pairs = [(name, child) for name in jobs for child in self._children[name]]
        with ThreadPoolExecutor(max(len(pairs), 1)) as pool:
            running = [
                pool.submit(
                    child.run,
                    jobs[name],
                    what=self._loads[name].name,
                    within_s=within_s,
                    cure="It may never end, or one run of it takes longer than a minute.",
                    limited=self._loads[name].limited,
                )
                for name, child in pairs
            ]
            try:
                while not all(one.done() for one in running):
                    tick()
                    time.sleep(self._tick_s)
            except BaseException:  # as Ctrl-C: the threads must not wait for the end of the period
                self.close()
                raise
        done: Dict[str, Tuple[T, ...]] = dict.fromkeys(jobs, ())
        for (name, _), one in zip(pairs, running):
            done[name] += (one.result(),)
        return done
