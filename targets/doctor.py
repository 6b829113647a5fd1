"""The doctor: checks what works on this machine, and gives the command that fixes the rest.

Standard library only: it runs first, on machines where nothing else is installed yet. A Jetson is checked for
a board's needs, any other machine for those of a workstation or a CI job.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from dataclasses import dataclass, replace
from importlib import util
from pathlib import Path
from typing import List, Tuple

from .engines.machine import kept_base, measure_base
from .machine import jetson, nvidia_tools
from .machine.board_facts import find_trtexec
from .machine.jetson import Board, BoardState, text_of
from .machine.probe import conditions, evidence, memory_bytes, saturates_int8, versions
from .paths import CACHE, SIGNERS
from .runtimes.runtime import built_in_runtimes, runtime_named

_CHECKOUT = 'In a checkout of deadweight: pip install ".[workstation]"'
_DEVICES = ("dev/nvmap", "dev/nvhost*", "dev/dri/renderD*", "dev/nvgpu/*/*")
"""Of a Jetson's GPU; those that exist must be open to the user."""


@dataclass(frozen=True)
class Check:
    """One line of `doctor`: `cure` is the command that fixes it, or advice; empty if nothing is wrong."""

    name: str
    found: str
    works: bool
    needed_for: str
    cure: str = ""


_SATURATES = Check(
    "INT8",
    "no VNNI: sums saturate in ONNX Runtime",
    True,
    "accuracy of INT8 on this CPU",
    "For x86-cpu quantize with weight_bits = 7 (--weight-bits 7). Scores for TensorRT are exact here.",
)


def doctor(root: Path = Path("/"), folder: Path = CACHE) -> Tuple[Check, ...]:
    """Checks this machine; `folder` is the agent's, for what is measured once."""
    board = jetson.read_board(root) if jetson.is_jetson(root) else None
    info = conditions(root)
    load, cores = info["state"]["load"][0], info["state"]["cores_allowed"]
    advice = "" if load < 0.5 * cores else "Stop other programs: one run can then detect smaller changes."
    # On a board pip may build for minutes, or the system's Python may refuse it.
    numpy = "sudo apt install python3-numpy" if board else "pip install numpy"
    checks = [_python(), _library("numpy", "running and timing models", numpy)]
    checks += _board_checks(root, board, folder) if board else _workstation_checks(root, folder)
    checks += [
        _cpu_clock(),
        _memory_peak(root),
        Check("load", f"{load:.1f} on {cores} cores", True, "narrow intervals", advice),
        _program("ssh-keygen", "verify, install", "sudo apt install openssh-client"),
        _space(root),
    ]
    if evidence(root) == "emulated":
        cure = "Measure on the board itself: no time measured here enters a verdict."
        found = f"{info['machine']['architecture']}, emulated"
        checks.append(Check("processor", found, False, "a verdict on speed", cure))
    return tuple(checks)


def next_step(checks: Tuple[Check, ...]) -> str:
    """The next step as one sentence."""
    missing = [check for check in checks if not check.works]
    first = next((check for check in missing if check.cure), None)
    if first is not None:
        count = "One thing does" if len(missing) == 1 else f"{len(missing)} things do"
        return f"{count} not work yet. Begin with {first.name}: {first.cure}"
    names = {check.name for check in checks}
    if names & {"board", "runtime memory"}:
        return (
            f"This {'board' if 'board' in names else 'machine'} is ready. From your workstation: "
            "deadweight compare BASE.onnx CANDIDATE.onnx --on USER@HOST builds both here in FP16 and times "
            "the engines on the GPU."
        )
    return "This machine is ready. For a network of your own: deadweight init"


def _workstation_checks(root: Path, folder: Path) -> List[Check]:
    builders = (
        [one for one in built_in_runtimes() if one.builds and one.installed] if root == Path("/") else []
    )
    engines = [Check(one.name, one.version or "installed", True, "engines") for one in builders]
    return [
        *engines,
        *([_base_memory(root, folder)] if engines else []),
        _library("onnxruntime", "profile, compare, gate", "pip install onnxruntime", imported=True),
        *([_SATURATES] if saturates_int8(root) else []),
        _library("torch", "run, prune, sweep", _CHECKOUT),
        _library("onnx", "export, quantize, lint", _CHECKOUT),
        _program("ssh", "boards, by --on USER@HOST", "sudo apt install openssh-client"),
    ]


def _board_checks(root: Path, board: Board, folder: Path) -> List[Check]:
    state = jetson.read_state(root, tools=True)
    release = f"JetPack {board.jetpack or '?'} (L4T {board.l4t or '?'})"
    release = board.jetpack or release if board.is_drive else release
    silicon = f"{board.soc or 'unknown chip'}, compute capability {board.compute_capability or '?'}"
    memory = memory_bytes(root)
    checks = [
        Check("board", f"{board.model}, {release}, {silicon}", True, "all", " ".join(board.warnings)),
        *([Check("memory", f"{memory / 1e9:.1f} GB, CPU and GPU share it", True, "all")] if memory else []),
        _tensorrt(root, board),
        _cuda_way(root, board),
        *_devices(root),
        _base_memory(root, folder),
        _mode(root, state, board),
        _clocks(state, board),
        _slowed(state),
    ]
    # The PMIC of older boards always reads 50 or 100 degrees.
    zones = {zone: value for zone, value in state.temperatures_c.items() if not zone.startswith("PMIC")}
    if zones:
        name, hottest = max(zones.items(), key=lambda item: item[1])
        cool = hottest < 85
        cure = "" if cool else "Let it cool down, or check that its fan runs and nothing covers it."
        surface = (
            "; its surface is hot, which slows nothing" if "hot-surface-alert" in jetson.cooling(root) else ""
        )
        found = f"{hottest:.0f} °C at most ({name}){surface}"
        checks.append(Check("temperature", found, cool, "steady clocks", cure))
    power = jetson.total_power_w(state.rails_w)
    if power is not None:
        checks.append(Check("power", f"{power[0]:.1f} W now ({power[1]})", True, "energy figures"))
    signers = (root / SIGNERS).exists()
    cure = f"To accept signed bundles: sudo install -D -m 644 allowed_signers /{SIGNERS}"
    found = "known" if signers else "none yet"
    checks.append(Check("signers", found, True, "verify, install", "" if signers else cure))
    ort = _library("onnxruntime", "ONNX files on the CPU", "pip install onnxruntime", imported=True)
    if util.find_spec("onnxruntime") is None:
        ort = replace(ort, works=True, found="not installed, and optional", cure=f"{ort.cure}, if wanted")
    return [*checks, ort]


def _python() -> Check:
    fits = sys.version_info >= (3, 8)
    return Check("python", platform.python_version(), fits, "all", "" if fits else "Install Python 3.8+.")


def _library(name: str, needed_for: str, cure: str, *, imported: bool = False) -> Check:
    try:
        if imported:
            __import__(name)
        elif util.find_spec(name) is None:
            raise ImportError("not installed")
    except Exception as error:  # a library built for another numpy may raise anything
        if util.find_spec(name) is None:
            return Check(name, "not installed", False, needed_for, cure)
        return Check(name, f"does not import: {error}", False, needed_for, _numpy_cure(error) or cure)
    return Check(name, versions(name).get(name, "installed"), True, needed_for)


def _numpy_cure(error: Exception) -> str:
    """The cure where a library was built for another numpy, so that it does not import; else ""."""
    words, installed = str(error), versions("numpy").get("numpy", "")
    if not installed or not any(sign in words for sign in ("numpy", "NumPy", "_ARRAY_API", "ABI version")):
        return ""
    fits = "--upgrade numpy" if int(installed.split(".")[0]) < 2 else "'numpy<2'"
    return f"It was built for another numpy than {installed}: pip install {fits}"


def _program(name: str, needed_for: str, cure: str) -> Check:
    place = shutil.which(name)
    return Check(name, place or "not installed", place is not None, needed_for, "" if place else cure)


def _tensorrt(root: Path, board: Board) -> Check:
    bindings = util.find_spec("tensorrt") is not None
    package = "python3-libnvinfer" if board.tensorrt else "nvidia-jetpack"
    cure = "Install its DriveOS's TensorRT packages." if board.is_drive else f"sudo apt install {package}"
    if board.tensorrt is None and not bindings:
        return Check("tensorrt", "not installed", False, "engines", cure)
    found = board.tensorrt or versions("tensorrt").get("tensorrt", "installed")
    if runtime_named("tensorrt").installed:
        return Check("tensorrt", found, True, "engines")
    missing = "Python's bindings do not import" if bindings else "Python has no bindings"
    if find_trtexec(root):
        by = f"{found}, by trtexec: it builds, runs, and times the GPU alone"
        return Check("tensorrt", f"{by}; {missing}", True, "engines", cure)
    return Check("tensorrt", f"{found}, but {missing}, and there is no trtexec", False, "engines", cure)


def _cuda_way(root: Path, board: Board) -> Check:
    version = board.cuda or "unknown version"
    if any(True for _ in root.glob("usr/local/cuda*/lib64/libcudart.so*")):
        return Check("cuda", f"{version}, by libcudart", True, "engines")
    if util.find_spec("pycuda") is not None:
        return Check("cuda", f"{version}, by pycuda", True, "engines")
    package = "-".join((board.cuda or "12.6").split(".")[:2])
    cure = f"sudo apt install cuda-cudart-{package} (the version of its JetPack)"
    cure = "Install the CUDA packages of its DriveOS." if board.is_drive else cure
    return Check("cuda", f"{version}, no library that can call it", False, "engines", cure)


def _devices(root: Path) -> List[Check]:
    """Whether this user may open the GPU's devices; nothing where there are none."""
    found = [path for pattern in _DEVICES for path in sorted(root.glob(pattern)) if not path.is_dir()]
    closed = [path for path in found if not os.access(str(path), os.R_OK | os.W_OK)]
    if not closed:
        return [Check("gpu devices", f"{len(found)} can be opened", True, "engines")] if found else []
    groups = sorted({path.stat().st_gid for path in closed})
    options = " ".join(f"--group-add {group}" for group in groups)
    cure = f"sudo usermod -aG video,render $USER, and log in again; in a container: docker run {options}"
    names = ", ".join(str(path.relative_to(root)) for path in closed[:3])
    return [Check("gpu devices", f"/{names} cannot be opened by this user", False, "engines", cure)]


def _base_memory(root: Path, folder: Path) -> Check:
    """What TensorRT and CUDA take before a model is loaded; measured on the board itself, and kept."""
    kept = measure_base(folder) if root == Path("/") else kept_base(folder)
    found = "not measured; `memory` then estimates it"
    if kept:
        parts = (f"{kept[f'{what}_bytes'] / 1e6:.0f} MB {what}" for what in ("running", "building"))
        found = f"{', '.join(parts)}, before a model"
    return Check("runtime memory", found, True, "whether a model fits")


def _mode(root: Path, state: BoardState, board: Board) -> Check:
    mode = state.power_mode
    if mode is None and board.is_drive:
        found = "DRIVE has none; its clocks are set by the flashed profile"
        return Check("power mode", found, True, "comparable results")
    if mode is None:
        cure = "sudo nvpmodel -q prints it; in a container, mount /var/lib/nvpmodel and /etc/nvpmodel.conf."
        return Check("power mode", "cannot be read", False, "comparable results", cure)
    names = nvidia_tools.mode_names(text_of(root / "etc/nvpmodel.conf"))
    fastest = next((number for number, name in sorted(names.items()) if name.startswith("MAXN")), None)
    fast = (mode.name or "").startswith("MAXN") or fastest is None
    cure = "" if fast else f"The fastest mode is {names[fastest or 0]}: sudo nvpmodel -m {fastest}"
    return Check("power mode", str(mode), True, "comparable results", cure)


def _clocks(state: BoardState, board: Board) -> Check:
    if not state.clocks:
        cure = "As root, jetson_clocks --show prints them; in a container, mount /sys."
        cure = "In a container, mount /sys." if board.is_drive else cure
        return Check("clocks", "cannot be read", True, "steady timing", cure)
    parts = [
        f"{name} {f'{clock.now_hz / 1e6:.0f} MHz' if clock.now_hz else 'asleep'}"
        for name, clock in state.clocks.items()
        if not name.startswith("cpu")
    ]
    cpus = [clock for name, clock in state.clocks.items() if name.startswith("cpu")]
    if cpus:
        parts.append(f"{len(cpus)} cores at up to {max(clock.now_hz for clock in cpus) / 1e6:.0f} MHz")
    locked = all(clock.locked for clock in state.clocks.values())
    cure = "" if locked else "They change with the load. For steady times lock them: sudo jetson_clocks"
    cure = "" if board.is_drive else cure
    found = f"{', '.join(parts)}; {'locked' if locked else 'not locked'}"
    return Check("clocks", found, True, "steady timing", cure)


def _slowed(state: BoardState) -> Check:
    events = [f"{count} of {name}" for name, count in state.counters.items() if count]
    parts = [f"throttled now ({', '.join(state.throttling)})"] if state.throttling else []
    parts += [f"events since boot: {', '.join(events)}"] if events else []
    if not parts:
        found = "none" if state.counters else "none seen; this board counts no over-current events"
        return Check("throttling", found, True, "a verdict on speed")
    cure = "Let it cool down, or check its fan." if state.throttling else ""
    if events:
        cure += (
            " Check the power supply and its cable, or choose a smaller power mode; "
            "a restart clears the count."
        )
    return Check("throttling", "; ".join(parts), not state.throttling, "a verdict on speed", cure.strip())


def _cpu_clock() -> Check:
    resolution_s = time.get_clock_info("thread_time").resolution
    fine = resolution_s <= 1e-6
    cure = "" if fine else "Times are from the wall clock here: measure on a quiet machine."
    return Check("cpu clock", f"{resolution_s * 1e9:.0f} ns", fine, "steady timing on a busy machine", cure)


def _memory_peak(root: Path) -> Check:
    found = os.access(str(root / "proc/self/clear_refs"), os.W_OK)
    advice = "Peaks are then those of the whole process, which is coarser for small models."
    state = "can be reset" if found else "cannot be reset"
    return Check("memory peak", state, True, "peak memory", "" if found else advice)


def _space(root: Path) -> Check:
    free = shutil.disk_usage(str(Path.home() if root == Path("/") else root)).free
    enough = free > 500_000_000
    cure = "" if enough else "Free some space: engines and their temporary files need it."
    return Check("space", f"{free / 1e9:.1f} GB free", enough, "models and engines", cure)
