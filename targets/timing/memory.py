"""What a model costs in memory, measured in a process of its own.

Four figures: the file; the peak while it is loaded (the runtime holds weights twice while it rearranges
them); what stays after some runs; and what a second session of the same file adds, which is not nothing, as
each holds its own weights. A first, tiny session is opened before anything is counted, so that the
runtime's own pages are not charged to the model. Private dirty pages are counted for what stays: pages that
other processes share, and clean pages of the file, cost nothing more. Freed heap is given back before it is
counted: a small model would otherwise show twice its weights, a large one would not.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Tuple, Union

from ..errors import ArtifactError, DeadweightError, MeasurementError, ModelError, TargetError
from ..runtimes.runtime import DEFAULT, Runtime, own_runtime, runtime_named

if TYPE_CHECKING:
    from ..runtimes.session import Arrays, Session

# `y = x + x` on one float, opset 13: enough to make the runtime set itself up.
_TINY = "CAg6NQoOCgF4CgF4EgF5IgNBZGQSAXRaDwoBeBIKCggIARIECgIIAWIPCgF5EgoKCAgBEgQKAggBQgQKABAN"
_ROOT = Path("/")
_RUNS = 5
_PROCESSES = 3
_MARK = "deadweight-memory "


@dataclass(frozen=True)
class Memory:
    """Bytes that one model costs. Peak and resident are above what the runtime alone takes."""

    file_bytes: int
    load_peak_bytes: int
    resident_bytes: int
    """After the model was run a few times: weights, and the arena for what flows between layers."""
    extra_session_bytes: int = 0
    """What another session of the same file adds, run as often as the first."""
    remarks: Tuple[str, ...] = ()
    """What is coarser than usual on this machine, in words."""

    def to_json(self) -> Dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "remarks": list(self.remarks)}


def measure_memory(
    path: Union[str, Path],
    *,
    runtime: Union[str, Runtime] = DEFAULT,
    threads: int = 1,
    batch: int = 1,
    inputs: Optional[Path] = None,
    timeout_s: float = 600.0,
    root: Path = _ROOT,
) -> Memory:
    """Loads and runs a model in fresh processes and reads what it cost.

    Resident memory, the median of three processes, repeats to about 1 % (a few pages). The peak of loading is
    the highest of the three; under load it was seen to differ by one weight tensor from one measurement to
    the next. `inputs` is an NPZ file of what the model is run on, in place of random numbers. `timeout_s` is
    for each process, and `root` is where `proc` is found, as in `probe`.

    Raises:
        ModelError, TargetError: as `open_session`.
        MeasurementError: this system tells nothing about memory, or the process was killed (no memory left).
    """
    runs = runtime_named(runtime) if isinstance(runtime, str) else runtime
    named = runs.source or runs.name
    told = {"path": str(path), "runtime": named, "threads": threads, "batch": batch, "root": str(root)}
    job = json.dumps({**told, "inputs": None if inputs is None else str(inputs)})
    taken = [_in_fresh_process(job, path=path, timeout_s=timeout_s) for _ in range(_PROCESSES)]
    return replace(
        taken[0],
        load_peak_bytes=max(memory.load_peak_bytes for memory in taken),
        resident_bytes=_median([memory.resident_bytes for memory in taken]),
        extra_session_bytes=_median([memory.extra_session_bytes for memory in taken]),
    )


def _median(values: List[int]) -> int:
    return sorted(values)[len(values) // 2]


def _in_fresh_process(job: str, *, path: Union[str, Path], timeout_s: float) -> Memory:
    # The child finds the package where this process found it, also inside a zip file. The folder that it is
    # started in, which -c puts first, is left out: a user's own random.py or json.py may lie there.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    code = f"import sys; sys.path = list(filter(None, sys.path)); from {__name__} import _child; _child()"
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(
            command,
            input=job,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MeasurementError(
            f"Measuring the memory of {path} took more than {timeout_s:.0f} s.",
            "Give it more time with timeout_s.",
        ) from error
    told = [line[len(_MARK) :] for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if not told:
        raise MeasurementError(
            f"The process that measured the memory of {path} ended with {done.returncode}: "
            f"{done.stderr.strip()[-300:]}",
            "A process that was killed (-9) has most likely run out of memory: free some.",
        )
    answer = json.loads(told[-1])
    if "error" in answer:
        kinds = {kind.__name__: kind for kind in (ModelError, TargetError, MeasurementError, ArtifactError)}
        raise kinds[answer["error"]](answer["what"], answer["cure"])
    return Memory(**{**answer, "remarks": tuple(answer["remarks"])})


def _child() -> None:
    """The fresh process: a job on stdin, the answer on stdout."""
    try:
        answer = asdict(_measured(json.load(sys.stdin)))
    except DeadweightError as error:
        answer = {"error": type(error).__name__, "what": error.what, "cure": error.cure}
    print(_MARK + json.dumps(answer), flush=True)


def _measured(job: Mapping[str, Any]) -> Memory:
    from ..onnx_file import files_of
    from ..runtimes.open import open_session
    from ..runtimes.session import random_inputs
    from .inputs import given_inputs

    path = Path(job["path"])
    inputs = given_inputs(Path(job["inputs"]) if job["inputs"] else None)
    proc = Path(job["root"]) / "proc/self"
    remarks = []
    with tempfile.TemporaryDirectory() as folder:
        tiny = Path(folder) / "tiny.onnx"
        tiny.write_bytes(base64.b64decode(_TINY))
        # The user's own code, if any, is named by the process that asks, which loaded it too.
        named = str(job["runtime"])
        runtime = own_runtime(named) if ":" in named else runtime_named(named)
        first = open_session(tiny, runtime=runtime, threads=job["threads"])
        first.run(random_inputs(first.inputs))
    _give_back()
    resettable = _reset_peak(proc)
    resident_before, peak_before = _status(proc, "VmRSS"), _status(proc, "VmHWM")
    dirty_before, exact = _private_bytes(proc)
    session = open_session(path, runtime=runtime, threads=job["threads"])
    peak = _status(proc, "VmHWM")
    if not resettable:
        remarks.append(
            "the peak could not be reset on this system: a load that needs less than "
            f"{(peak_before - resident_before) / 1e6:.0f} MB is not seen"
        )
    if not exact:
        remarks.append("private pages are not told on this system: resident memory includes shared pages")
    resident = _after_runs(session, inputs, job["batch"], proc) - dirty_before
    again = open_session(path, runtime=runtime, threads=job["threads"])
    extra = _after_runs(again, inputs, job["batch"], proc) - dirty_before - resident
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
    """Private bytes of the process once the session was run a few times."""
    from .inputs import fed

    call = session.prepare(fed(session, inputs, batch=batch))
    for _ in range(_RUNS):
        call()
    _give_back()
    return _private_bytes(proc)[0]


def _give_back() -> None:
    """Returns freed heap to the system, where the C library can: it belongs to no model."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _reset_peak(proc: Path) -> bool:
    """Sets the process's peak (VmHWM) back to its present size."""
    try:
        handle = os.open(str(proc / "clear_refs"), os.O_WRONLY)
    except OSError:
        return False
    try:
        os.write(handle, b"5")
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _private_bytes(proc: Path) -> Tuple[int, bool]:
    """Bytes in pages that this process alone has written to; else its resident size, and False."""
    try:
        rollup = (proc / "smaps_rollup").read_text()
    except OSError:
        return _status(proc, "VmRSS"), False
    found = re.search(r"^Private_Dirty:\s*(\d+) kB", rollup, re.MULTILINE)
    return (int(found.group(1)) * 1024, True) if found else (_status(proc, "VmRSS"), False)


def _status(proc: Path, key: str) -> int:
    try:
        status = (proc / "status").read_text()
    except OSError as error:
        raise MeasurementError(
            "Memory can be measured on Linux only: there is no /proc/self/status here.",
            "Measure on the board.",
        ) from error
    found = re.search(rf"^{key}:\s*(\d+) kB", status, re.MULTILINE)
    if found is None:
        raise MeasurementError(
            f"This system does not tell {key} in /proc/self/status.", "Measure on the board."
        )
    return int(found.group(1)) * 1024
