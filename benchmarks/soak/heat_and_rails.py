"""A Jetson in a folder: heat, clocks, rails and memory by simple physics, so that the truth is known.

The GPU draws `active_w` at its full clock. Heat flows from the chip to the air; above `hot_c` a cooling
device lowers the clock, below `cool_c` it stops. The rail's chip shows a new value every `update_s`, with
noise, in steps of its resolution. The idle power drifts, as with the temperature of a room.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deadweight.targets.timing.loads import Load, Ran

STEP_W = 0.04
"""40 microvolts over 5 milliohms, at 5 V."""
_GPU = "sys/class/devfreq/17000000.gpu"
_FULL_HZ, _LOW_HZ = 918_000_000, 612_000_000


@dataclass
class Simulated:
    """The board; `processes` and `clocks` are for `soak`."""

    root: Path
    seed: int = 0
    latency_s: float = 0.004
    idle_w: float = 5.0
    active_w: float = 6.0
    drift_w: float = 0.6
    noise_w: float = 0.15
    update_s: float = 0.1
    hot_c: float = 1000.0
    cool_c: float = 80.0
    leak_bytes_per_h: float = 0.0
    memory_noise_bytes: float = 30_000.0
    memory_again: float = 0.5
    """How much of it is still there a round later."""
    tick_s: float = 0.1
    died_after_s: float = math.inf
    """An exception then, as of a machine that was switched off."""
    time_s: float = 5000.0
    set_by_s: float = 0.0
    """How far the calendar's clock was set."""
    slowed_at: list[float] = field(default_factory=list)
    """The truth: seconds since the start at which a throttling began."""
    temperature_c: float = 40.0

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.begun = self.time_s
        self._due, self._slow, self._wander = 0.0, False, 0.0
        self._files: dict[str, int] = {}
        files = {
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.4, GCID: 1, BOARD: generic",
            "proc/device-tree/model": "A simulated Jetson",
            "proc/sys/kernel/random/boot_id": "first",
            "sys/class/hwmon/hwmon1/name": "ina3221",
            "sys/class/hwmon/hwmon1/in1_label": "VDD_IN",
            "sys/class/hwmon/hwmon1/in1_input": "5000",
            "sys/class/thermal/thermal_zone0/type": "gpu-thermal",
            "sys/class/thermal/cooling_device0/type": "devfreq-17000000.gpu",
            f"{_GPU}/min_freq": "306000000",
        }
        for name, text in files.items():
            self._put(name, text)
        self._show(busy=False)

    @property
    def energy_j(self) -> float:
        """The truth: of one inference, beyond idle, at any clock."""
        return self.active_w * self.latency_s

    def clocks(self) -> tuple[float, float]:
        """A steady clock and the calendar's."""
        return self.time_s, 1.7e9 + self.time_s + self.set_by_s

    def processes(self, loads: Mapping[str, Load], **settings: Any) -> Simulated:
        """Itself: it runs the loads."""
        self._loads = loads
        return self

    def ready(self, names: Sequence[str]) -> None:
        """Nothing is opened here."""

    def close(self) -> None:
        """Closes the board's files, which `run` opens again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def run(
        self, names: Sequence[str], seconds: float, tick: Callable[[], object]
    ) -> dict[str, tuple[Ran, ...]]:
        """Time passes in steps; each load gets its runs, all equally slow."""
        start, runs = self.time_s, 0.0
        while self.time_s < start + seconds - 1e-9:
            speed = _LOW_HZ / _FULL_HZ if self._slow else 1.0
            self._pass_time(self.active_w * speed * bool(names))
            runs += self.tick_s * speed / self.latency_s
            tick()
            if self.time_s - self.begun > self.died_after_s:
                raise OSError("the power was cut")
        speed = _LOW_HZ / _FULL_HZ if self._slow else 1.0
        return {name: (self._ran(self._loads[name], runs, speed, seconds),) for name in names}

    def _ran(self, load: Load, runs: float, speed: float, seconds: float) -> Ran:
        times = self.latency_s / speed * np.exp(0.05 * self.random.standard_normal(64))
        frames, missed = round(runs), 0
        if load.rate_hz:
            frames = round(seconds * load.rate_hz)
            missed = round(frames * float((times > 1 / load.rate_hz).mean()))
        hours = (self.time_s - self.begun) / 3600
        noise = self.memory_noise_bytes * float(self.random.standard_normal())
        self._wander = self.memory_again * self._wander + noise
        filling = 20e6 * (1 - math.exp(-hours * 3600 / 60))
        memory = round(200e6 + filling + self.leak_bytes_per_h * hours + self._wander)
        kept = tuple(int(1e9 * time) for time in times)
        return Ran(kept, frames, missed, seconds, memory_bytes=memory)

    def _pass_time(self, active_w: float) -> None:
        self.time_s += self.tick_s
        since = self.time_s - self.begun
        idle_w = self.idle_w + self.drift_w * math.sin(since / 400)
        self.temperature_c += self.tick_s / 60 * (25 + 6.0 * (idle_w + active_w) - self.temperature_c)
        if not self._slow and self.temperature_c > self.hot_c:
            self._slow = True
            self.slowed_at.append(since)
        elif self._slow and self.temperature_c < self.cool_c:
            self._slow = False
        self._show(busy=active_w > 0)
        if self.time_s >= self._due:
            self._due = self.time_s + self.update_s - 1e-6
            watts = idle_w + active_w + self.noise_w * float(self.random.standard_normal())
            self._put(
                "sys/class/hwmon/hwmon1/curr1_input", str(round(watts / STEP_W) * round(1000 * STEP_W / 5))
            )

    def _show(self, *, busy: bool) -> None:
        if self._due == 0.0:
            self._put("sys/class/hwmon/hwmon1/curr1_input", str(round(1000 * self.idle_w / 5)))
        self._put("sys/class/thermal/thermal_zone0/temp", str(round(1000 * self.temperature_c)))
        self._put("sys/class/thermal/cooling_device0/cur_state", str(int(self._slow)))
        high = _LOW_HZ if self._slow else _FULL_HZ
        self._put(f"{_GPU}/max_freq", str(high))
        self._put(f"{_GPU}/cur_freq", str(high if busy else 306_000_000))

    def _put(self, name: str, text: str) -> None:
        """Writes in place: to truncate a file costs milliseconds on some disks."""
        if name not in self._files:
            place = self.root / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, "utf-8")
            self._files[name] = os.open(place, os.O_WRONLY)
        os.pwrite(self._files[name], text.encode().ljust(12), 0)
