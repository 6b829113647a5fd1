"""What a soak runs and sees, as values, and its log: a line for each finished round."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from ..artifact import json_of, utc_now
from ..errors import ArtifactError, DeadweightError, MeasurementError, reported
from ..machine import jetson
from ..machine.probe import conditions
from ..onnx_file import model_sha256
from ..plain import from_plain, plain
from .loads import BUILT_IN, Load, Ran

NEIGHBOUR = "beside"
"""The name of the neighbour's load; the models are `baseline` and `candidate`."""


@dataclass(frozen=True)
class SoakPlan:
    """What is run, and for how long."""

    loads: Mapping[str, Load]
    minutes: float = 30.0
    period_s: float = 5.0
    streams: int = 1
    """Processes that run a model at once."""
    power_modes: Tuple[str, ...] = ()
    seed: int = 0
    """Of the order of periods."""
    energy_only: bool = False
    """Whether it ends at once where there is no sensor."""

    def __post_init__(self) -> None:
        if not (0 < self.minutes < 1e5 and 0.1 <= self.period_s <= 3600 and 1 <= self.streams <= 64):
            raise MeasurementError(
                f"A soak of {self.minutes:g} minutes, in periods of {self.period_s:g} s, of {self.streams} "
                "streams is not possible.",
                "Give minutes above 0, a period of 0.1 to 3600 s, and 1 to 64 streams.",
            )
        for load in self.loads.values():
            if not 0 <= load.rate_hz < 1e6:
                raise MeasurementError(
                    f"{load.rate_hz:g} Hz is not a rate.", "Give frames per second: --rate 30."
                )


@dataclass(frozen=True)
class Period:
    """What was seen in one period. Times are seconds since the soak began."""

    round: int
    mode: str
    models: Tuple[str, ...]
    """The loads that ran; none: idle."""
    at_s: float
    seconds: float
    ran: Mapping[str, Tuple[Ran, ...]] = field(default_factory=dict)
    power_w: Optional[float] = None
    """Mean, without the first part of the period."""
    readings: int = 0
    """New values of the sensor in that time."""
    step_w: Optional[float] = None
    """The smallest difference of two of them."""
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    """The highest of each zone."""
    clocks_hz: Mapping[str, int] = field(default_factory=dict)
    """The lowest of each."""
    slowed: Tuple[Tuple[float, str], ...] = ()
    """When, and what began to slow the machine: throttling, over-current, changed limits of a clock."""
    notes: Tuple[Tuple[float, str], ...] = ()
    """Further events: a gap, a clock that was set, the end of throttling."""


@dataclass(frozen=True)
class Soak:
    """All periods, and what was known at the start."""

    plan: SoakPlan
    periods: Tuple[Period, ...]
    conditions: Mapping[str, Any]
    started: str
    sensor: str
    """Empty where there is none."""
    no_sensor: str
    """Why there is none."""


class Log:
    """The rounds so far of one plan.

    `shift_s` makes the soak's time of the steady clock's; `remark` says of what it was resumed.
    """

    def __init__(
        self, plan: SoakPlan, folder: Path, root: Path, *, clocks: Callable[[], Tuple[float, float]]
    ) -> None:
        self._clocks = clocks
        self._boot = jetson.text_of(root / "proc/sys/kernel/random/boot_id")
        asked = plain(plan)
        for load in asked["loads"].values():
            if load["model"] not in BUILT_IN:
                load["model"] = model_sha256(Path(load["model"]))
        key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        self.path = folder / key[:16] / "rounds.jsonl"
        self.periods: List[Period] = []
        first, last = self._read()
        steady, calendar = clocks()
        self.shift_s, self.remark = -steady, ""
        if first is None:
            mode = jetson.read_state(root, tools=True).power_mode if plan.power_modes else None
            before = None if mode is None else mode.id
            first = {"started": utc_now(), "conditions": conditions(root), "mode_before": before}
            with self._writable():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.write_text(json.dumps(first) + "\n", encoding="utf-8")
        elif last is not None:
            gap_s = max(calendar - last["calendar_s"], 0.0)
            self.shift_s += self.periods[-1].at_s + self.periods[-1].seconds + gap_s
            why = (
                "the soak was interrupted" if last["boot"] == self._boot else "the machine was started again"
            )
            self.remark = f"a gap of {gap_s:.0f} s: {why}"
        self.started: str = first["started"]
        self.conditions: Mapping[str, Any] = first["conditions"]
        self.mode_before: Optional[int] = first["mode_before"]

    @property
    def rounds(self) -> int:
        """How many are finished."""
        return self.periods[-1].round + 1 if self.periods else 0

    def spent_s(self, mode: str) -> float:
        """The time of the finished rounds in a power mode."""
        return sum(one.seconds for one in self.periods if one.mode == mode)

    def add(self, periods: Sequence[Period]) -> None:
        """Appends a finished round."""
        self.periods += periods
        line = {"boot": self._boot, "calendar_s": self._clocks()[1], "periods": plain(list(periods))}
        with self._writable(), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _writable(self) -> Any:
        return reported(ArtifactError, f"{self.path} cannot be written", "Free some space, and run it again.")

    def _read(self) -> Tuple[Optional[Dict[str, Any]], Optional[Dict[str, Any]]]:
        """The first line and the last; None where there is none, or it is of another version."""
        try:
            texts = self.path.read_text(encoding="utf-8").split("\n")[:-1]  # a cut line has no end
            first, *lines = map(json_of, texts)
            for line in lines:
                self.periods += [from_plain(Period, one, str(self.path)) for one in line["periods"]]
            known = {key: first[key] for key in ("started", "conditions", "mode_before")}
            last = {key: lines[-1][key] for key in ("calendar_s", "boot")} if lines else None
            return known, last
        except (OSError, ValueError, KeyError, TypeError, DeadweightError):
            self.periods = []
            return None, None
