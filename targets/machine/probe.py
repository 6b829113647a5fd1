"""The conditions of a measurement: facts and state of this machine.

Standard library only. Every path is below `root`, so that another machine's /proc and /sys can be read from a
copy. What cannot be read is left out. A Jetson has more facts: see `jetson.py`. A disturbance voids
the times measured in between. A tool that does not answer in time is not one: `jetson_clocks --show` takes
seconds on a busy board.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import time
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple

from ..plain import from_plain, plain
from . import jetson
from .jetson import BoardState
from .jetson import text_of as _text
from .nvidia_tools import Clock, PowerMode

_CORES = "sys/devices/system/cpu/cpu[0-9]*/"
_BOARD = "board: "  # prefix of marks that void a measurement


@dataclass(frozen=True)
class Snapshot:
    """Counters and clocks at one moment; two of them show what happened in between."""

    wall_s: float
    cpu_s: float
    """CPU time of the calling thread."""
    minor_faults: int
    major_faults: int
    swapped_pages: int
    stolen_s: float
    """CPU time that the host took from this virtual machine, on all cores."""
    throttled: int
    clocks_hz: Tuple[int, ...]
    """Current clock of each core; empty where it cannot be read."""
    board: Optional[BoardState] = None
    """On a Jetson: power mode, clocks, counters."""


def conditions(root: Path = Path("/")) -> Dict[str, Any]:
    """Machine, software and state, as plain values for JSON. Comparable only on an equal `machine`.

    On a Jetson `machine` and `state` each have a `board`.
    """
    facts: Dict[str, Any] = {
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
            "throttled": sum(jetson.counters(root).values()),
        },
    }
    if jetson.is_jetson(root):
        facts["machine"]["board"] = plain(jetson.read_board(root))
        state, monitor = jetson.read_state(root, tools=True), jetson.tegrastats_line(root)
        power = jetson.total_power_w(state.rails_w)
        facts["state"]["board"] = {
            **plain(state),
            "power": None if power is None else {"total_w": round(power[0], 3), "is": power[1]},
            **({"tegrastats": monitor} if monitor else {}),
        }
    return facts


def voided(facts: Mapping[str, Any], marks: Iterable[str] = ()) -> Tuple[str, ...]:
    """Why the times measured between `facts["state"]` and `facts["state_after"]` are void; empty if not.

    `facts` are the conditions of a measurement, `marks` those of its events: a power mode may have changed
    and changed back. On a Jetson a changed mode or clock limit, throttling and over-current void it. On other
    machines events are only marked.
    """
    reasons = [mark[len(_BOARD) :] for mark in marks if mark.startswith(_BOARD)]
    reasons += disturbances(*_board_states(facts))
    return tuple(dict.fromkeys(reasons))


def not_known(facts: Mapping[str, Any]) -> Tuple[str, ...]:
    """What could not be read of a board after the timing: a change of it is not detected."""
    return unread(*_board_states(facts))


def evidence(root: Path = Path("/")) -> str:
    """`emulated` where this process runs on an emulated processor, else `measured`."""
    machine = platform.machine()
    cpuinfo = _text(root / "proc/cpuinfo")
    foreign = machine not in ("x86_64", "i686", "AMD64") and "vendor_id" in cpuinfo
    # A binfmt handler for a processor is registered only on a machine with another processor.
    handled = (root / "proc/sys/fs/binfmt_misc" / f"qemu-{machine}").exists()
    # KVM shows QEMU's processor too unless one is chosen; then the real processor runs the code.
    clocks = _text(root / "sys/devices/system/clocksource/clocksource0/available_clocksource").split()
    software = "QEMU TCG CPU" in cpuinfo or ("QEMU Virtual CPU" in cpuinfo and "kvm-clock" not in clocks)
    return "emulated" if foreign or handled or software else "measured"


def snapshot(root: Path = Path("/")) -> Snapshot:
    """The current state. Page faults are those of the calling thread where the system counts them."""
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
        throttled=sum(jetson.counters(root).values()),
        clocks_hz=_clocks_hz(root),
        board=jetson.read_state(root) if jetson.is_jetson(root) else None,
    )


def changes(before: Snapshot, after: Snapshot, *, runs: int, threads: int = 1) -> Tuple[str, ...]:
    """The marks for a timing of `runs` runs between two snapshots."""
    wall_s = after.wall_s - before.wall_s
    marks: List[str] = []
    if after.board is None and after.throttled > before.throttled:
        marks.append(f"throttled {after.throttled - before.throttled} times")
    for was, now in zip(before.clocks_hz, after.clocks_hz):
        if was and abs(now - was) > 0.01 * was:
            marks.append(f"a core's clock went from {was / 1e6:.0f} to {now / 1e6:.0f} MHz")
            break
    if after.swapped_pages > before.swapped_pages:
        marks.append(f"{after.swapped_pages - before.swapped_pages} pages were swapped")
    if after.major_faults > before.major_faults:
        marks.append(f"{after.major_faults - before.major_faults} pages were read from disk")
    if after.minor_faults - before.minor_faults > 50 * runs:
        marks.append(f"{(after.minor_faults - before.minor_faults) / runs:.0f} page faults per run")
    if after.stolen_s - before.stolen_s > 0.02 * wall_s + 0.01:  # one tick of the counter is 0.01 s
        marks.append(f"the host took {100 * (after.stolen_s - before.stolen_s) / wall_s:.0f} % of a core")
    if before.board is not None and after.board is not None:
        marks += [_BOARD + each for each in disturbances(before.board, after.board)]
    share = (after.cpu_s - before.cpu_s) / wall_s
    if threads == 1 and share < 0.8:
        marks.append(f"other programs left {100 * share:.0f} % of a core")
    return tuple(marks)


def disturbances(before: BoardState, after: BoardState) -> Tuple[str, ...]:
    """Changes of the board that void the times measured meanwhile, each a clause.

    A floating clock is not a disturbance, its limits are part of the power mode; a locked clock with another
    frequency is. Only a CPU's clock can disappear, with a core that is switched off, while those of the other
    cores remain: any other missing clock could not be read, see `unread`.
    """
    clauses: List[str] = []
    if _differ(before.power_mode, after.power_mode):
        clauses.append(f"the power mode went from {before.power_mode} to {after.power_mode}")
    for name in sorted(set(before.clocks) & set(after.clocks)):
        was, now = before.clocks[name], after.clocks[name]
        if (was.min_hz, was.max_hz) != (now.min_hz, now.max_hz):
            clauses.append(f"the limits of the {name} clock went from {_range(was)} to {_range(now)}")
        elif now.locked and now.now_hz and abs(now.now_hz - now.max_hz) > 0.01 * now.max_hz:
            clauses.append(
                f"the {name} clock ran at {now.now_hz / 1e6:.0f} MHz though it is locked to "
                f"{now.max_hz / 1e6:.0f} MHz"
            )
    if any(name.startswith("cpu") for name in after.clocks):
        gone = sorted(set(before.clocks) - set(after.clocks))
        clauses += [f"{name} was switched off" for name in gone if name.startswith("cpu")]
    for name, count in after.counters.items():
        if count > before.counters.get(name, count):
            clauses.append(f"{count - before.counters[name]} {name} events slowed the board")
    for name in sorted(set(before.throttling) | set(after.throttling)):
        clauses.append(f"the board was throttled ({name})")
    return tuple(clauses)


def unread(before: BoardState, after: BoardState) -> Tuple[str, ...]:
    """What could be read before but not after, so that a change of it is not detected; each a clause."""
    gone = set(before.clocks) - set(after.clocks)
    if any(name.startswith("cpu") for name in after.clocks):
        gone = {name for name in gone if not name.startswith("cpu")}
    clauses = [f"the {name} clock could not be read at the end" for name in sorted(gone)]
    if before.power_mode is not None and after.power_mode is None:
        clauses.append("the power mode could not be read at the end")
    return tuple(clauses)


def _differ(one: Optional[PowerMode], other: Optional[PowerMode]) -> bool:
    if one is None or other is None:
        return False
    pairs = ((one.name, other.name), (one.id, other.id))
    return any(was is not None and now is not None and was != now for was, now in pairs)


def _range(clock: Clock) -> str:
    return f"{clock.min_hz / 1e6:.0f}-{clock.max_hz / 1e6:.0f} MHz"


def cpu_name(root: Path = Path("/")) -> str:
    """The processor's name, from the CPU or the board."""
    match = re.search(r"^model name\s*:\s*(.+)$", _text(root / "proc/cpuinfo"), re.MULTILINE)
    board = _text(root / "proc/device-tree/model").strip("\0")
    return match.group(1).strip() if match else board or platform.processor() or platform.machine()


def saturates_int8(root: Path = Path("/")) -> bool:
    """Whether ONNX Runtime's products of uint8 and int8 saturate: x86 without VNNI adds two in 16 bits.

    https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """
    flags = re.search(r"^flags\s*:(.*)$", _text(root / "proc/cpuinfo"), re.MULTILINE)
    return flags is not None and "avx2" in flags.group(1).split() and "vnni" not in flags.group(1)


def memory_bytes(root: Path = Path("/")) -> Optional[int]:
    """Total memory of the system; None where unknown."""
    return jetson.proc_bytes(root / "proc/meminfo", "MemTotal")


def cores_allowed() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions(*names: str) -> Dict[str, str]:
    """Versions of the installed ones of these distributions; nothing is imported."""
    installed: Dict[str, str] = {}
    for name in names:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def _clocks_hz(root: Path) -> Tuple[int, ...]:
    # The hardware's frequency where it can be read: under throttling it differs from the requested one.
    for name in ("cpuinfo_cur_freq", "scaling_cur_freq"):
        read = [_text(path) for path in sorted(root.glob(_CORES + "cpufreq/" + name))]
        if read and all(value.isdigit() for value in read):
            return tuple(int(value) * 1000 for value in read)
    return ()


def _board_states(facts: Mapping[str, Any]) -> Tuple[BoardState, BoardState]:
    """The board before and after a measurement; empty states where it was not read."""
    states = [facts.get(which, {}).get("board") for which in ("state", "state_after")]
    names = [one.name for one in fields(BoardState)]
    known = [{} if None in states else {name: state[name] for name in names} for state in states]
    before, after = (from_plain(BoardState, each, "The board's state") for each in known)
    return before, after
