"""One line of `tegrastats`, the board's own monitor, read token by token.

The line differs with every release: units come and go, engines change names, a second and a third figure
appeared behind temperatures and rails, and without root whole tokens are missing. So each token is read on
its own, wherever it stands; what is not known is kept as it is, and nothing here ever fails.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

_N = r"([0-9]{1,12})"
_R = r"(-?[0-9]{1,9}(?:\.[0-9]{1,6})?)"
_NAME = r"([A-Za-z][A-Za-z0-9_]*)"

_GRAMMAR = tuple(
    (kind, re.compile(pattern + r"(?!\S)", re.ASCII))
    for kind, pattern in (
        ("time", r"([0-9]{2}-[0-9]{2}-[0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2})"),
        ("memory", rf"(RAM|SWAP) {_N}/{_N}([kMG]B)"),
        ("free_blocks", rf"\((lfb) {_N}x{_N}([kMG]B)\)"),
        ("cached", rf"\((cached) {_N}([kMG]B)\)"),
        ("cores", r"(CPU) \[((?:off|[0-9]{1,3}%@[0-9]{1,6})(?:,(?:off|[0-9]{1,3}%@[0-9]{1,6}))*)\]"),
        ("housekeeping", r"(MTS) fg ([0-9]{1,3})% bg ([0-9]{1,3})%"),
        ("temperature", rf"{_NAME}@{_R}C(?:/{_R}C)?"),
        ("rail", rf"{_NAME} {_N}(?:mW)?/{_N}(?:mW)?(?:/{_N}(?:mW)?)?"),
        (
            "engine",
            rf"{_NAME} (?:(off)|(?:([0-9]{{1,3}})%)?@([0-9]{{1,6}}|\[[0-9]{{1,6}}(?:,[0-9]{{1,6}})*\])"
            r"|([0-9]{1,3})%|([0-9]{1,6}))",
        ),
    )
)

TOTAL_RAILS = ("VDD_IN", "VIN", "POM_5V_IN")
"""Rails that feed the whole board. Where there is none, the rails can only be summed."""
_BELOW_OTHERS = ("VDDQ_VDD2_1V8AO",)  # fed by VIN_SYS_5V0, which is measured too


@dataclass(frozen=True)
class Reading:
    """One token: its kind, its name and its figures as printed; None for one that is not there."""

    kind: str
    name: str
    values: Tuple[Optional[str], ...] = ()


@dataclass(frozen=True)
class Engine:
    """A clocked unit: its load in percent and its clocks, as far as they are told. Off: no clocks."""

    load_percent: Optional[float]
    clocks_hz: Tuple[int, ...]


@dataclass(frozen=True)
class Tegrastats:
    """A line, in its own order. Of a name that comes twice, the first one counts."""

    readings: Tuple[Reading, ...]
    unknown: Tuple[str, ...]
    """Words that no known token is made of."""

    @property
    def cores(self) -> Tuple[Optional[Engine], ...]:
        """Every core; None for one that is off."""
        found: List[Optional[Engine]] = []
        for core in str(self._values("cores", "CPU")[0] or "").split(",") if self._has("CPU") else ():
            load, at, clock = core.partition("%@")
            found.append(Engine(float(load), (int(clock) * 1_000_000,)) if at else None)
        return tuple(found)

    @property
    def engines(self) -> Dict[str, Engine]:
        """Memory (EMC), GPU (GR3D), codecs and accelerators, named without the ending `_FREQ`."""
        found: Dict[str, Engine] = {}
        for reading in self.readings:
            if reading.kind == "engine":
                _, load_at, clocks, load, clock = reading.values
                hertz = [int(each) * 1_000_000 for each in re.findall(r"[0-9]+", clocks or clock or "")]
                told = load_at or load
                name = reading.name[:-5] if reading.name.endswith("_FREQ") else reading.name
                found.setdefault(name, Engine(float(told) if told else None, tuple(hertz)))
        return found

    @property
    def temperatures_c(self) -> Dict[str, Optional[float]]:
        """By zone, in degrees Celsius; None for a unit that is switched off, which prints -256."""
        found: Dict[str, Optional[float]] = {}
        for reading in self.readings:
            if reading.kind == "temperature":
                value = float(reading.values[0] or -256)
                found.setdefault(reading.name, value if value > -100 else None)
        return found

    @property
    def rails_w(self) -> Dict[str, float]:
        """Present power by rail, in watts. `NC` is a channel that is not connected and is left out."""
        found: Dict[str, float] = {}
        for reading in self.readings:
            if reading.kind == "rail" and reading.name != "NC":
                found.setdefault(reading.name, int(reading.values[0] or 0) / 1000)
        return found

    def _has(self, name: str) -> bool:
        return any(reading.name == name for reading in self.readings)

    def _values(self, kind: str, name: str) -> Tuple[Optional[str], ...]:
        found = (each.values for each in self.readings if (each.kind, each.name) == (kind, name))
        return next(found, (None,))


def parse_tegrastats(line: str) -> Tegrastats:
    """Reads one line. Never raises: a token that is not understood ends up in `unknown`."""
    readings: List[Reading] = []
    unknown: List[str] = []
    place = 0
    for word in re.finditer(r"\S+", line, re.ASCII):
        if word.start() < place:  # a part of the token before
            continue
        for kind, pattern in _GRAMMAR:
            found = pattern.match(line, word.start())
            if found is not None:
                name, *values = found.groups()
                readings.append(Reading(kind, name, tuple(values)))
                place = found.end()
                break
        else:
            unknown.append(word.group())
    return Tegrastats(tuple(readings), tuple(unknown))


def total_power_w(rails_w: Dict[str, float]) -> Optional[Tuple[float, str]]:
    """What the board draws, in watts, and what that figure is: a rail's name, or `sum of rails`."""
    for name in TOTAL_RAILS:
        if name in rails_w:
            return rails_w[name], name
    parts = [power for name, power in rails_w.items() if name not in _BELOW_OTHERS]
    return (sum(parts), "sum of rails") if parts else None
