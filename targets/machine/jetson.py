"""A Jetson, read from its files: what it is, and its state.

All paths are below `root`, tools too (`root/usr/sbin/nvpmodel`), so that a directory can stand for a board.
In a container most tools are missing, and without root some files are: what cannot be read is left out. Files
are tried before tools, since the process of a tool would disturb a measurement.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterable, List, Mapping, Optional, Tuple

from . import nvidia_tools
from .nvidia_tools import Clock, PowerMode

_CPU = "sys/devices/system/cpu/cpu[0-9]*/cpufreq"
_GPU = ("gpu-gpc-0", "*.gpu", "*.ga10b", "*.gv11b", "*.gp10b", "*.gm20b", "57000000.gpu")
_EMC = "sys/kernel/debug/bpmp/debug/clk/emc"
_EVENTS, _THROTTLE = "sys/class/hwmon/hwmon*/oc[0-9]_event_cnt", "thermal_throttle/*_throttle_count"
_OVER_CURRENT = {"oc1": "under-voltage", "oc2": "average over-current", "oc3": "over-current"}
_LIMITS_A_CLOCK = r"(cpufreq|devfreq|thermal-[a-z]*freq)-.*|.*-throttle-alert"
"""Cooling devices that lower a clock, on Orin at 99 °C. Others do not: fans, user-space and NVMe devices, and
`hot-surface-alert`, a notification at 70 °C."""
_TOOL_S = 10.0
_TOTAL_RAILS = ("VDD_IN", "VIN", "POM_5V_IN")
"""Rails that supply the whole board."""
_BELOW_OTHERS = ("VDDQ_VDD2_1V8AO",)  # supplied by VIN_SYS_5V0, which is measured too


@dataclass(frozen=True)
class Board:
    """A board. Compute capability is that of its GPU; CPU and GPU share `memory_bytes`."""

    model: str
    compatible: Tuple[str, ...]
    soc: Optional[str]
    compute_capability: Optional[str]
    l4t: Optional[str]
    jetpack: Optional[str]
    """On DRIVE its release, as in `DriveOS 7.0.3.0`."""
    tensorrt: Optional[str]
    cuda: Optional[str]
    unified_memory: bool = True
    warnings: Tuple[str, ...] = ()

    @property
    def is_drive(self) -> bool:
        """Whether it is a DRIVE board, which has neither JetPack nor nvpmodel."""
        return (self.jetpack or "").startswith("DriveOS")


@dataclass(frozen=True)
class BoardState:
    """The state of a board at one moment."""

    power_mode: Optional[PowerMode] = None
    clocks: Mapping[str, Clock] = field(default_factory=dict)
    """gpu, emc, and cpu0…"""
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    """Events since boot: under-voltage, over-current."""
    throttling: Tuple[str, ...] = ()
    """Cooling devices that limit a clock now."""
    rails_w: Mapping[str, float] = field(default_factory=dict)


def is_jetson(root: Path) -> bool:
    """Whether this is a Jetson, also from inside a container."""
    return (root / "etc/nv_tegra_release").exists() or nvidia_tools.soc_of(_compatible(root)) is not None


def read_board(root: Path) -> Board:
    """Reads what the board is."""
    compatible = _compatible(root)
    soc = nvidia_tools.soc_of(compatible)
    l4t = nvidia_tools.l4t_release(text_of(root / "etc/nv_tegra_release"))
    l4t = l4t or nvidia_tools.l4t_package(text_of(root / "var/lib/dpkg/status"))
    cuda = _cuda(root)
    driveos = nvidia_tools.driveos_release(compatible, text_of(root / "etc/nvidia/version-ubuntu-rootfs.txt"))
    jetpack, warning = (driveos, "") if driveos else nvidia_tools.jetpack_of(l4t)
    unknown = "" if soc else f"This version of deadweight does not know the chip: {compatible!r}."
    return Board(
        model=text_of(root / "proc/device-tree/model").strip("\0") or "unnamed board",
        compatible=tuple(entry for entry in compatible.split("\0") if entry),
        soc=soc,
        compute_capability=nvidia_tools.capability_of(soc, cuda, driveos),
        l4t=l4t,
        jetpack=jetpack,
        tensorrt=_tensorrt(root),
        cuda=cuda,
        warnings=tuple(each for each in (warning, unknown) if each),
    )


def read_state(root: Path, *, tools: bool = False) -> BoardState:
    """Reads the board's state from files; with `tools`, from tools too where a file is missing."""
    clocks = _clocks(root)
    if tools and "emc" not in clocks:
        clocks = {**nvidia_tools.shown_clocks(tool(root, "usr/bin/jetson_clocks", "--show")), **clocks}
    return BoardState(
        power_mode=_power_mode(root, tools=tools),
        clocks=clocks,
        temperatures_c=_temperatures(root),
        counters=counters(root),
        throttling=tuple(name for name in cooling(root) if re.fullmatch(_LIMITS_A_CLOCK, name)),
        rails_w=_rails(root),
    )


def tegrastats_line(root: Path, *, timeout_s: float = 3.0) -> str:
    """One line of the board's monitor, as it is printed; "" where it prints nothing in time."""
    program = root / "usr/bin/tegrastats"
    if not os.access(str(program), os.X_OK):
        return ""
    # It never ends; `timeout` ends it with its children.
    command = ["timeout", str(timeout_s), "sh", "-c", '"$0" --interval 100 | head -n 1', str(program)]
    done = _finished(command, timeout_s + 5)
    return "" if done is None else done.stdout.strip()


def tool(root: Path, program: str, *arguments: str) -> str:
    """The output of a tool of the board, or "" where it is missing or fails (many need root)."""
    done = _finished([str(root / program), *arguments], _TOOL_S)
    return done.stdout if done is not None and done.returncode == 0 else ""


def _finished(command: List[str], timeout_s: float) -> Optional[subprocess.CompletedProcess[str]]:
    """A program that ran; None where it does not start or does not end in time."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def text_of(path: Path) -> str:
    """A file's text, stripped; "" where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except (OSError, ValueError):
        return ""


def number_of(path: Path) -> Optional[int]:
    """A file's integer, or None."""
    text = text_of(path)
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None


def proc_bytes(path: Path, key: str) -> Optional[int]:
    """The bytes of a line `KEY: 12 kB` in a file of /proc; None where they cannot be read."""
    found = re.search(rf"^{key}:\s*(\d+) kB", text_of(path), re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def _compatible(root: Path) -> str:
    return text_of(root / "proc/device-tree/compatible").rstrip("\0")


def _tensorrt(root: Path) -> Optional[str]:
    # From the library's file name, which is right in a container too, and without a package manager.
    names = [path.name for path in root.glob("usr/lib/*-linux-gnu/libnvinfer.so.*")]
    versions = [name.partition(".so.")[2] for name in names if name.count(".") >= 4]
    return max(versions, key=lambda each: [int(part) for part in re.findall(r"[0-9]+", each)], default=None)


def _cuda(root: Path) -> Optional[str]:
    text = text_of(root / "usr/local/cuda/version.json")
    match = re.search(r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([0-9.]+)"', text)
    match = match or re.search(r"CUDA Version ([0-9.]+)", text_of(root / "usr/local/cuda/version.txt"))
    return match.group(1) if match else None


def _power_mode(root: Path, *, tools: bool) -> Optional[PowerMode]:
    number = nvidia_tools.stored_mode(text_of(root / "var/lib/nvpmodel/status"))
    if number is not None:
        return PowerMode(nvidia_tools.mode_names(text_of(root / "etc/nvpmodel.conf")).get(number), number)
    return nvidia_tools.power_mode(tool(root, "usr/sbin/nvpmodel", "-q")) if tools else None


def _clocks(root: Path) -> Dict[str, Clock]:
    clocks: Dict[str, Clock] = {}
    for folder in sorted(root.glob(_CPU)):
        low, high = number_of(folder / "scaling_min_freq"), number_of(folder / "scaling_max_freq")
        now = number_of(folder / "cpuinfo_cur_freq") or number_of(folder / "scaling_cur_freq")
        if low is not None and high is not None:
            clocks[folder.parent.name] = Clock(low * 1000, high * 1000, (now or 0) * 1000)
    devices = root / "sys/class/devfreq"
    for name, patterns in (("gpu", _GPU), ("emc", ("bwmgr", "*emc*"))):
        for folder in [place for pattern in patterns for place in sorted(devices.glob(pattern))][:1]:
            figures = [number_of(folder / which) for which in ("min_freq", "max_freq", "cur_freq")]
            if figures[0] is not None and figures[1] is not None:
                clocks[name] = Clock(figures[0], figures[1], figures[2] or 0)
    rate = number_of(root / _EMC / "rate")
    if "emc" not in clocks and rate is not None:
        locked = number_of(root / _EMC / "mrq_rate_locked") == 1
        low = rate if locked else number_of(root / _EMC / "min_rate") or 0
        high = rate if locked else number_of(root / _EMC / "max_rate") or 0
        clocks["emc"] = Clock(low, high, rate)
    return clocks


def _temperatures(root: Path) -> Dict[str, float]:
    """By zone. A zone whose unit is off reads 0, -256 or nothing, and is left out."""
    celsius: Dict[str, float] = {}
    for folder in sorted(root.glob("sys/class/thermal/thermal_zone[0-9]*")):
        name, value = text_of(folder / "type"), number_of(folder / "temp")
        if name and value is not None and value > -100_000 and value != 0:
            celsius[name] = value / 1000
    return celsius


def counters(root: Path) -> Dict[str, int]:
    """Events since boot that slowed the machine, by kind; of a PC, its CPU's thermal throttling."""
    files = [(path, _OVER_CURRENT.get(path.name[:3], path.name[:3])) for path in sorted(root.glob(_EVENTS))]
    files += [(path, "throttling") for path in root.glob("sys/devices/system/cpu/cpu[0-9]*/" + _THROTTLE)]
    counts: Dict[str, int] = {}
    for path, event in files:
        count = number_of(path)
        if count is not None:
            counts[event] = counts.get(event, 0) + count
    return counts


def cooling(root: Path) -> Tuple[str, ...]:
    """The cooling devices that are active now."""
    folders = sorted(root.glob("sys/class/thermal/cooling_device[0-9]*"))
    return tuple(text_of(each / "type") for each in folders if (number_of(each / "cur_state") or 0) > 0)


def supplying(rails: Iterable[str]) -> Tuple[Tuple[str, ...], str]:
    """The rails whose power together is the board's, and its source: a rail's name, or `sum of rails`."""
    known = tuple(rails)
    for name in _TOTAL_RAILS:
        if name in known:
            return (name,), name
    return tuple(name for name in known if name not in _BELOW_OTHERS), "sum of rails"


def total_power_w(rails_w: Mapping[str, float]) -> Optional[Tuple[float, str]]:
    """The board's power in watts, and its source."""
    names, source = supplying(rails_w)
    return (sum(rails_w[name] for name in names), source) if names else None


def rail_files(root: Path) -> Dict[str, Tuple[Tuple[Path, ...], float]]:
    """By power rail: the files whose product is its power, and the watts of one unit of it.

    INA3221 has mV and mA, its successors (INA226, INA238) have microwatts; JetPack 4's driver has milliwatts.
    """
    rails: Dict[str, Tuple[Tuple[Path, ...], float]] = {}
    for monitor in sorted(root.glob("sys/class/hwmon/hwmon[0-9]*")):
        if not re.match(r"ina\d", text_of(monitor / "name")):
            continue
        for power in sorted(monitor.glob("power[0-9]_input")):
            label = text_of(monitor / f"power{power.name[5]}_label") or text_of(monitor / "label") or "VIN"
            rails[label] = (power,), 1e-6
        for label_file in sorted(monitor.glob("in[0-9]_label")):
            pair = tuple(monitor / f"{what}{label_file.name[2]}_input" for what in ("in", "curr"))
            if all(map(Path.exists, pair)):  # in7 is a sum and has no current
                rails[text_of(label_file)] = pair, 1e-6
    for label_file in sorted(root.glob("sys/bus/i2c/drivers/ina3221x/*/iio*device*/rail_name_[0-9]")):
        power = label_file.parent / f"in_power{label_file.name[-1]}_input"
        rails[text_of(label_file)] = (power,), 1e-3
    rails.pop("NC", None)
    return rails


def rail_w(files: Tuple[Path, ...], unit_w: float) -> Optional[float]:
    """The power of a rail now, in watts; None where a file of it cannot be read."""
    watts = unit_w
    for number in map(number_of, files):
        if number is None:
            return None
        watts *= number
    return watts


def _rails(root: Path) -> Dict[str, float]:
    read = {name: rail_w(*each) for name, each in rail_files(root).items()}
    return {name: watts for name, watts in read.items() if watts is not None}
