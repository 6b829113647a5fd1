"""What this machine can tell about itself: the conditions of a measurement.

Standard library only. Every path is taken below `root`, so that another machine's /proc and /sys can be read
from a copy. What a machine does not tell is left out. A Jetson tells more: its part is in `jetson.py`.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple

from . import disturbances, jetson
from .jetson import BoardState
from .jetson import text_of as _text

_ROOT = Path("/")
_CORES = "sys/devices/system/cpu/cpu[0-9]*/"
_BOARD = "board: "  # how marks begin that void a measurement


@dataclass(frozen=True)
class Snapshot:
    """Counters and clocks at one moment; two of them tell what happened in between."""

    wall_s: float
    cpu_s: float
    """CPU time of the calling thread."""
    minor_faults: int
    major_faults: int
    swapped_pages: int
    stolen_s: float
    """Time that the host took from this virtual machine, all cores together."""
    throttled: int
    clocks_hz: Tuple[int, ...]
    """Current clock of each core; empty where it cannot be read."""
    board: Optional[BoardState] = None
    """On a Jetson: power mode, clocks, counters."""


def conditions(root: Path = _ROOT) -> Dict[str, Any]:
    """Machine, software and state, as plain values for JSON. Two figures compare only on one `machine`.

    On a Jetson `machine` and `state` each have a `board`.
    """
    found: Dict[str, Any] = {
        "machine": {
            "cpu": cpu_name(root),
            "architecture": platform.machine(),
            "cores": os.cpu_count() or 1,
            "memory_bytes": memory_bytes(root),
            "kernel": platform.release(),
        },
        "software": {"python": platform.python_version(), **versions("numpy", "onnxruntime", "tensorrt")},
        "state": {
            "load": [round(load, 2) for load in os.getloadavg()],
            "governors": sorted({_text(path) for path in root.glob(_CORES + "cpufreq/scaling_governor")}),
            "clocks_hz": list(_clocks_hz(root)),
            "cores_allowed": cores_allowed(),
            "throttled": _throttled(root),
        },
    }
    if jetson.is_jetson(root):
        found["machine"]["board"] = _plain(asdict(jetson.read_board(root)))
        state = jetson.to_json(jetson.read_state(root, tools=True))
        monitor = jetson.tegrastats_line(root)
        if monitor is not None:
            state["tegrastats"] = _plain(asdict(monitor))
        found["state"]["board"] = state
    return found


def voided(told: Mapping[str, Any], marks: Iterable[str] = ()) -> Tuple[str, ...]:
    """Why times are void that were taken between `told["state"]` and `told["state_after"]`; empty if not.

    `told` is the conditions of a measurement, `marks` what its events were marked with: a power mode may have
    changed and changed back. On a Jetson a changed mode or clock limit, throttling and over-current void a
    measurement. Other machines' events are marked, one by one, and void nothing.
    """
    found = [mark[len(_BOARD) :] for mark in marks if mark.startswith(_BOARD)]
    found += disturbances.disturbances(*_board_states(told))
    return tuple(dict.fromkeys(found))


def not_known(told: Mapping[str, Any]) -> Tuple[str, ...]:
    """What of a board could not be read after times were taken: a change of it would not be seen."""
    return disturbances.unread(*_board_states(told))


def evidence(root: Path = _ROOT) -> str:
    """`emulated` where this process runs on a foreign processor, else `measured`."""
    machine = platform.machine()
    cpuinfo = _text(root / "proc/cpuinfo")
    foreign = machine not in ("x86_64", "i686", "AMD64") and "vendor_id" in cpuinfo
    # A handler for a processor's programs is only registered where the processor is not the machine's own.
    handled = (root / "proc/sys/fs/binfmt_misc" / f"qemu-{machine}").exists()
    # QEMU's own processor is also what KVM shows where nobody chose one; there the machine's own runs it.
    clocks = _text(root / "sys/devices/system/clocksource/clocksource0/available_clocksource").split()
    software = "QEMU TCG CPU" in cpuinfo or ("QEMU Virtual CPU" in cpuinfo and "kvm-clock" not in clocks)
    return "emulated" if foreign or handled or software else "measured"


def snapshot(root: Path = _ROOT) -> Snapshot:
    """The state now. Faults are counted for the calling thread where the system can."""
    used = resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF))
    swaps = re.findall(r"^pswp(?:in|out) (\d+)", _text(root / "proc/vmstat"), re.MULTILINE)
    ticks = _text(root / "proc/stat").split("\n", 1)[0].split()
    stolen = int(ticks[8]) if len(ticks) > 8 else 0
    return Snapshot(
        wall_s=time.perf_counter(),
        cpu_s=time.thread_time(),
        minor_faults=used.ru_minflt,
        major_faults=used.ru_majflt,
        swapped_pages=sum(map(int, swaps)),
        stolen_s=stolen / os.sysconf("SC_CLK_TCK"),
        throttled=_throttled(root),
        clocks_hz=_clocks_hz(root),
        board=jetson.read_state(root) if jetson.is_jetson(root) else None,
    )


def changes(before: Snapshot, after: Snapshot, *, runs: int, threads: int = 1) -> Tuple[str, ...]:
    """What happened between two snapshots that a timing of `runs` runs in between should be marked with."""
    wall_s = after.wall_s - before.wall_s
    found: List[str] = []
    if after.board is None and after.throttled > before.throttled:
        found.append(f"throttled {after.throttled - before.throttled} times")
    for was, now in zip(before.clocks_hz, after.clocks_hz):
        if was and abs(now - was) > 0.01 * was:
            found.append(f"a core's clock went from {was / 1e6:.0f} to {now / 1e6:.0f} MHz")
            break
    if after.swapped_pages > before.swapped_pages:
        found.append(f"{after.swapped_pages - before.swapped_pages} pages were swapped")
    if after.major_faults > before.major_faults:
        found.append(f"{after.major_faults - before.major_faults} pages were read from disk")
    if after.minor_faults - before.minor_faults > 50 * runs:
        found.append(f"{(after.minor_faults - before.minor_faults) / runs:.0f} page faults a run")
    if after.stolen_s - before.stolen_s > 0.02 * wall_s + 0.01:  # one tick of the counter is 0.01 s
        found.append(f"the host took {100 * (after.stolen_s - before.stolen_s) / wall_s:.0f} % of a core")
    if before.board is not None and after.board is not None:
        found += [_BOARD + each for each in disturbances.disturbances(before.board, after.board)]
    share = (after.cpu_s - before.cpu_s) / wall_s
    if threads == 1 and share < 0.8:
        found.append(f"other work left {100 * share:.0f} % of a core")
    return tuple(found)


def cpu_name(root: Path = _ROOT) -> str:
    """The processor's name, as its maker or the board gives it."""
    found = re.search(r"^model name\s*:\s*(.+)$", _text(root / "proc/cpuinfo"), re.MULTILINE)
    board = _text(root / "proc/device-tree/model").strip("\0")
    return found.group(1).strip() if found else board or platform.processor() or platform.machine()


def memory_bytes(root: Path = _ROOT) -> Optional[int]:
    """All memory that the system can use; None where it cannot be told."""
    found = re.search(r"^MemTotal:\s*(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def cores_allowed() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions(*names: str) -> Dict[str, str]:
    """Versions of those of the named distributions that are installed; nothing is imported."""
    found: Dict[str, str] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _clocks_hz(root: Path) -> Tuple[int, ...]:
    # What the hardware runs at, where it can be read: what was asked of it can differ under throttling.
    for name in ("cpuinfo_cur_freq", "scaling_cur_freq"):
        read = [_text(path) for path in sorted(root.glob(_CORES + "cpufreq/" + name))]
        if read and all(value.isdigit() for value in read):
            return tuple(int(value) * 1000 for value in read)
    return ()


def _board_states(told: Mapping[str, Any]) -> Tuple[BoardState, BoardState]:
    """The board before and after a measurement; one that tells nothing where it was not asked."""
    states = [told.get(which, {}).get("board") for which in ("state", "state_after")]
    before, after = (BoardState() if None in states else jetson.from_json(state) for state in states)
    return before, after


def _throttled(root: Path) -> int:
    names = (_CORES + "thermal_throttle/*_throttle_count", "sys/class/hwmon/hwmon*/oc*_event_cnt")
    read = [_text(path) for name in names for path in root.glob(name)]
    return sum(int(value) for value in read if value.isdigit())


def _plain(value: Any) -> Any:
    """Tuples as lists, so that what is told equals what is read back from JSON."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value
