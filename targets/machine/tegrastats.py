"""A parser for one line of `tegrastats`, the board's monitor.

The line differs between releases: units and engine names change, temperatures and rails got a second and a
third value, and without root tokens are missing. So each token is read alone, at any position; an unknown
token is stored as it is, and nothing here raises.
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
"""Rails that supply the whole board. Without one, the rails are added."""
_BELOW_OTHERS = ("VDDQ_VDD2_1V8AO",)  # supplied by VIN_SYS_5V0, which is measured too


@dataclass(frozen=True)
class Reading:
    """One token: its kind, its name and its values as printed; None for a missing value."""

    kind: str
    name: str
    values: Tuple[Optional[str], ...] = ()


@dataclass(frozen=True)
class Tegrastats:
    """The tokens of a line, in order."""

    readings: Tuple[Reading, ...]
    unknown: Tuple[str, ...]
    """Words that are not part of a known token."""


def parse_tegrastats(line: str) -> Tegrastats:
    """Reads one line. Never raises: an unknown token goes into `unknown`."""
    readings: List[Reading] = []
    unknown: List[str] = []
    end = 0
    for word in re.finditer(r"\S+", line, re.ASCII):
        if word.start() < end:  # a part of the token before
            continue
        for kind, pattern in _GRAMMAR:
            match = pattern.match(line, word.start())
            if match is not None:
                name, *values = match.groups()
                readings.append(Reading(kind, name, tuple(values)))
                end = match.end()
                break
        else:
            unknown.append(word.group())
    return Tegrastats(tuple(readings), tuple(unknown))


def total_power_w(rails_w: Dict[str, float]) -> Optional[Tuple[float, str]]:
    """The board's power in watts, and its source: a rail's name, or `sum of rails`."""
    for name in TOTAL_RAILS:
        if name in rails_w:
            return rails_w[name], name
    parts = [power for name, power in rails_w.items() if name not in _BELOW_OTHERS]
    return (sum(parts), "sum of rails") if parts else None
