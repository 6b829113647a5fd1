"""The power sensor of a machine, read while a model runs: rails, RAPL, or a program that prints watts.

What a rail says is the work of its chip: a mean over some milliseconds, in steps of its resolution. How often
a new value came, and in what steps, is found in the readings (timing/soak_summary.py), since no driver says.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, List, Optional, Sequence, Tuple

from . import jetson

_FIRST_LINE_S = 3.0


@dataclass(frozen=True)
class Sensor:
    """A source of watts or, where it `counts`, of joules since some moment. None: it cannot be read now."""

    name: str
    read: Callable[[], Optional[float]]
    counts: bool = False
    close: Callable[[], object] = lambda: None


def open_sensor(root: Path = Path("/"), *, processor: str = "cpu") -> Tuple[Optional[Sensor], str]:
    """The sensor for a model on this processor, `cpu` or `gpu`; or None, and why there is none with the cure.

    A Jetson's rails supply both; elsewhere RAPL is the CPU's, and a card has its own.
    """
    if jetson.is_jetson(root):
        found = _rails(root) or _tegrastats(root)
        return found, "" if found else "the board has no power rails that can be read: try it as root"
    if processor == "gpu":
        found = _card(root)
        return found, "" if found else "nvidia-smi gives no power of this card"
    zones = [
        zone
        for zone in sorted(root.glob("sys/class/powercap/*rapl:[0-9]*"))
        if jetson.text_of(zone / "name").startswith("package")
    ]
    if not zones:
        return None, "this machine has no power sensor (RAPL)"
    found = _rapl(zones)
    files = " ".join(str(zone / "energy_uj") for zone in zones)
    return found, "" if found else f"RAPL cannot be read: sudo chmod a+r {files}"


def _rails(root: Path) -> Optional[Sensor]:
    files = jetson.rail_files(root)
    now = {name: watts for name, each in files.items() if (watts := jetson.rail_w(*each)) is not None}
    names, what = jetson.supplying(now)
    if not names:
        return None

    def read() -> Optional[float]:
        total = 0.0
        for name in names:
            watts = jetson.rail_w(*files[name])
            if watts is None:
                return None
            total += watts
        return total

    return Sensor(f"{what}, by sysfs", read)


def _rapl(zones: Sequence[Path]) -> Optional[Sensor]:
    """The counters of all packages, which begin again at their range."""
    last: List[int] = []
    total = [0.0]

    def read() -> Optional[float]:
        found = [jetson.number_of(zone / "energy_uj") for zone in zones]
        now = [count for count in found if count is not None]
        if len(now) < len(zones):
            return None
        for zone, before, after in zip(zones, last, now):
            wrap = 0 if after >= before else jetson.number_of(zone / "max_energy_range_uj") or 0
            total[0] += (after - before + wrap) / 1e6
        last[:] = now
        return total[0]

    return None if read() is None else Sensor("RAPL, package", read, counts=True)


def _tegrastats(root: Path) -> Optional[Sensor]:
    def watts(line: str) -> Optional[float]:
        rails = re.findall(r"\b((?:VDD|VIN|POM)\w*) (\d+)(?:mW)?/", line)
        total = jetson.total_power_w({name: int(milliwatts) / 1000 for name, milliwatts in rails})
        return None if total is None else total[0]

    return _printed([str(root / "usr/bin/tegrastats"), "--interval", "100"], watts, "tegrastats")


def _card(root: Path) -> Optional[Sensor]:
    def watts(line: str) -> Optional[float]:
        return float(line) if re.fullmatch(r"\s*\d+(\.\d+)?\s*", line) else None

    program = shutil.which("nvidia-smi") if root == Path("/") else None
    options = ["--query-gpu=power.draw", "--format=csv,noheader,nounits", "--id=0", "--loop-ms=100"]
    return _printed([program or str(root / "usr/bin/nvidia-smi"), *options], watts, "nvidia-smi")


def _printed(command: Sequence[str], watts: Callable[[str], Optional[float]], name: str) -> Optional[Sensor]:
    """The last line that a program printed, which runs until it is closed."""
    if not os.access(command[0], os.X_OK):
        return None
    null = subprocess.DEVNULL
    process = subprocess.Popen(
        command, stdin=null, stdout=subprocess.PIPE, stderr=null, encoding="utf-8", errors="replace"
    )
    latest: List[float] = []
    lines = process.stdout
    assert lines is not None

    def listen() -> None:
        for line in lines:
            value = watts(line)
            if value is not None:
                latest[:] = [value]

    thread = threading.Thread(target=listen, daemon=True)

    def close() -> None:
        process.kill()
        process.wait()
        thread.join()
        lines.close()

    thread.start()
    until = time.monotonic() + _FIRST_LINE_S
    while not latest and thread.is_alive() and time.monotonic() < until:
        time.sleep(0.01)
    if not latest:
        close()
        return None
    return Sensor(name, lambda: latest[0] if thread.is_alive() else None, close=close)
