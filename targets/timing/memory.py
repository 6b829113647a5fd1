"""Memory measurement of a model, in a separate process.

Four values: the file size; the peak while loading (the runtime holds the weights twice while it packs them);
the resident memory after some runs; and what a second session of the same file adds, since each has its own
weights. A tiny session is opened first, so that the runtime's own pages are not charged to the model.
Resident memory counts private dirty pages: shared pages and clean pages of the file cost nothing more. Freed
heap is returned to the system first; otherwise a small model would show twice its weights.
"""

from __future__ import annotations

import base64
import ctypes
import os
import tempfile
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median_high
from typing import TYPE_CHECKING, Optional, Tuple, Union

from ..errors import MeasurementError
from ..machine.child import child
from ..machine.jetson import proc_bytes
from ..runtimes.runtime import DEFAULT, Runtime, runtime_named

if TYPE_CHECKING:
    from ..runtimes.session import Arrays, Session
    from ..runtimes.trt_memory import Part
    from .measurement import Protocol

# `y = x + x` on one float, opset 13: enough to initialize the runtime.
_TINY = "CAg6NQoOCgF4CgF4EgF5IgNBZGQSAXRaDwoBeBIKCggIARIECgIIAWIPCgF5EgoKCAgBEgQKAggBQgQKABAN"
_RUNS = 5
_PROCESSES = 3


@dataclass(frozen=True)
class Memory:
    """Memory of one model in bytes. Peak and resident exclude the runtime's own memory."""

    file_bytes: int
    load_peak_bytes: int
    resident_bytes: int
    """After a few runs: weights, and the arena for activations."""
    extra_session_bytes: int = 0
    """What a second session of the same file adds after as many runs."""
    remarks: Tuple[str, ...] = ()
    """Limits of the measurement on this machine."""


def measure_memory(
    path: Union[str, Path],
    *,
    runtime: Union[str, Runtime] = DEFAULT,
    threads: int = 1,
    batch: int = 1,
    inputs: Optional[Path] = None,
    timeout_s: float = 600.0,
    root: Path = Path("/"),
) -> Memory:
    """Loads and runs a model in new processes and reads their memory.

    Resident memory, the median of three processes, repeats to about 1 % (a few pages). The load peak is the
    highest of the three; on a loaded machine it differed by one weight tensor between measurements. `inputs`
    is an NPZ file of the model's inputs, in place of random ones. `timeout_s` is for each process, and `root`
    contains `proc`, as in `probe`.

    Raises:
        ModelError, TargetError: as `open_session`.
        MeasurementError: this system does not report memory, or the process was killed (out of memory).
    """
    runs = runtime_named(runtime) if isinstance(runtime, str) else runtime
    job = partial(
        _measure,
        Path(path),
        runtime=runs,
        threads=threads,
        batch=batch,
        inputs=inputs,
        proc=root / "proc/self",
    )
    measured = []
    for _ in range(_PROCESSES):
        with child() as process:
            what, cure = f"Measuring the memory of {path}", "Increase timeout_s."
            limited = runs.processor == "cpu"
            measured.append(process.run(job, what=what, within_s=timeout_s, cure=cure, limited=limited))
    return replace(
        measured[0],
        load_peak_bytes=max(memory.load_peak_bytes for memory in measured),
        resident_bytes=median_high(memory.resident_bytes for memory in measured),
        extra_session_bytes=median_high(memory.extra_session_bytes for memory in measured),
    )


def engine_memory(path: Path, protocol: Protocol, inputs: Optional[Arrays] = None) -> Tuple[Part, ...]:
    """An engine's memory after a run, in parts; may be empty.

    The resident memory of the process has not what a GPU holds.
    """
    from ..runtimes.open import open_session
    from .inputs import fed

    with closing(open_session(path, runtime=protocol.runtime, threads=protocol.threads)) as session:
        session.run(fed(session, inputs, batch=protocol.batch, seed=protocol.seed))
        report = getattr(session, "memory", None)
        return () if report is None else report()


def _measure(
    path: Path, *, runtime: Runtime, threads: int, batch: int, inputs: Optional[Path], proc: Path
) -> Memory:
    from ..onnx_file import files_of
    from ..runtimes.open import open_session
    from ..runtimes.session import random_inputs
    from .inputs import given_inputs

    arrays, remarks = given_inputs(inputs), []
    with tempfile.TemporaryDirectory() as folder:
        tiny = Path(folder) / "tiny.onnx"
        tiny.write_bytes(base64.b64decode(_TINY))
        first = open_session(tiny, runtime=runtime, threads=threads)
        first.run(random_inputs(first.inputs))
    _trim_heap()
    resettable = _reset_peak(proc)
    resident_before, peak_before = _status(proc, "VmRSS"), _status(proc, "VmHWM")
    dirty_before, exact = _private_bytes(proc)
    session = open_session(path, runtime=runtime, threads=threads)
    peak = _status(proc, "VmHWM")
    if not resettable:
        remarks.append(
            "the peak could not be reset on this system: a load peak below "
            f"{(peak_before - resident_before) / 1e6:.0f} MB is not measured"
        )
    if not exact:
        remarks.append("private pages are not known on this system: resident memory includes shared pages")
    resident = _after_runs(session, arrays, batch, proc) - dirty_before
    again = open_session(path, runtime=runtime, threads=threads)
    extra = _after_runs(again, arrays, batch, proc) - dirty_before - resident
    session.close()
    again.close()
    return Memory(
        file_bytes=sum(each.stat().st_size for each in files_of(path)),
        load_peak_bytes=max(peak - resident_before, 0),
        resident_bytes=max(resident, 0),
        extra_session_bytes=max(extra, 0),
        remarks=tuple(remarks),
    )


def _after_runs(session: Session, inputs: Optional[Arrays], batch: int, proc: Path) -> int:
    """Private bytes of the process after a few runs of the session."""
    from .inputs import fed

    call = session.prepare(fed(session, inputs, batch=batch))
    for _ in range(_RUNS):
        call()
    _trim_heap()
    return _private_bytes(proc)[0]


def _trim_heap() -> None:
    """Returns freed heap to the system, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _reset_peak(proc: Path) -> bool:
    """Resets the process's peak (VmHWM) to its present size."""
    try:
        with os.fdopen(os.open(str(proc / "clear_refs"), os.O_WRONLY), "wb", buffering=0) as file:
            file.write(b"5")
    except OSError:
        return False
    return True


def _private_bytes(proc: Path) -> Tuple[int, bool]:
    """Bytes in private dirty pages and True; where unknown, the resident size and False."""
    dirty = proc_bytes(proc / "smaps_rollup", "Private_Dirty")
    return (_status(proc, "VmRSS"), False) if dirty is None else (dirty, True)


def _status(proc: Path, key: str) -> int:
    size = proc_bytes(proc / "status", key)
    if size is None:
        raise MeasurementError(
            f"Memory can be measured on Linux only: /proc/self/status here has no {key}.",
            "Measure on the board.",
        )
    return size
