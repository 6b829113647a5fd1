"""What happens to a machine while a load runs: power, temperatures, clocks and throttling, from samples."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from ..machine import jetson
from ..machine.probe import disturbances
from ..machine.rails import Sensor

_STATE_S = 1.0
_SETTLING = 0.2
"""The share of a period whose power is left out: a rail's chip reports a mean of the time before."""
_JUMP_S = 1.0


class Watch:
    """The state of the machine in the present period, from the samples that `tick` takes.

    `remark` is the first note.
    """

    def __init__(
        self,
        root: Path,
        sensor: Optional[Sensor],
        clocks: Callable[[], Tuple[float, float]],
        *,
        shift_s: float,
        remark: str = "",
    ) -> None:
        self._root, self._sensor, self._clocks, self._shift_s = root, sensor, clocks, shift_s
        steady, calendar = clocks()
        self._offset_s = calendar - steady
        self._state_due = 0.0
        self._remark = ""
        self.forget()
        self.start()
        self._remark = remark

    def _now(self) -> float:
        return self._clocks()[0] + self._shift_s

    def forget(self) -> None:
        """Changes since the last sample are our own."""
        self._before: Optional[jetson.BoardState] = None
        self._lasting: Set[str] = set()

    def start(self) -> float:
        """Begins a period and returns its time."""
        self._power: List[Tuple[float, float]] = []
        self._temperatures: Dict[str, float] = {}
        self._clocks_hz: Dict[str, int] = {}
        self._begun = self._now()
        self._slowed: List[Tuple[float, str]] = []
        self._notes: List[Tuple[float, str]] = [(self._begun, self._remark)] if self._remark else []
        self._remark = ""
        return self._begun

    def tick(self) -> None:
        """Takes a sample: the power each time, the state once a second."""
        at = self._now()
        reading = None if self._sensor is None else self._sensor.read()
        if reading is not None:
            self._power.append((at, reading))
        if at < self._state_due:
            return
        self._state_due = at + _STATE_S
        state = jetson.read_state(self._root)
        for zone, celsius in state.temperatures_c.items():
            self._temperatures[zone] = max(celsius, self._temperatures.get(zone, celsius))
        for name, clock in state.clocks.items():
            if clock.now_hz:
                self._clocks_hz[name] = min(clock.now_hz, self._clocks_hz.get(name, clock.now_hz))
        clauses = () if self._before is None else disturbances(self._before, state)
        kinds = {re.sub(r"\d+", "", clause): clause for clause in clauses}
        self._slowed += [(at, clause) for kind, clause in kinds.items() if kind not in self._lasting]
        if self._lasting and not kinds:
            self._notes.append((at, "the board recovered"))
        self._before, self._lasting = state, set(kinds)

    def seen(self) -> Dict[str, Any]:
        """Ends the period: the fields of a `Period` that the samples give."""
        steady, calendar = self._clocks()
        ended, offset_s = steady + self._shift_s, calendar - steady
        if abs(offset_s - self._offset_s) > _JUMP_S:
            self._notes.append((ended, f"the calendar's clock was set by {offset_s - self._offset_s:+.0f} s"))
            self._offset_s = offset_s
        settled = self._begun + _SETTLING * (ended - self._begun)
        power = [one for one in self._power if one[0] >= settled]
        steps = [abs(after - before) for (_, before), (_, after) in zip(power, power[1:]) if after != before]
        mean: Optional[float] = None
        if self._sensor is None or len(power) < 2:
            pass
        elif self._sensor.counts:
            mean = (power[-1][1] - power[0][1]) / (power[-1][0] - power[0][0])
        else:
            mean = sum(watts for _, watts in power) / len(power)
        return {
            "seconds": ended - self._begun,
            "power_w": mean,
            "readings": len(steps),
            "step_w": min(steps, default=None) if self._sensor and not self._sensor.counts else None,
            "temperatures_c": self._temperatures,
            "clocks_hz": self._clocks_hz,
            "slowed": tuple(self._slowed),
            "notes": tuple(self._notes),
        }
