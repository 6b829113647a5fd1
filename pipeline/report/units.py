"""Formats numbers for a reader: three significant digits, a unit, a true minus sign."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
ENGINE = "on the board"
"""The column for the score of an engine that a board built and ran."""
MISSING = "\N{EN DASH}"
_GAP = "\N{NO-BREAK SPACE}"  # a figure and its unit stay on one line


def significant(value: float, digits: int = 3) -> str:
    """`value` with that many significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):  # the sum of what a file claims can overflow
        return "0" if value == 0 else str(value)
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])  # after rounding: 9.999 counts as 10.0
    sign = MINUS if value < 0 else ""
    if exponent < -5:
        return f"{sign}{abs(value):.{digits}g}"
    return f"{sign}{abs(value):,.{max(digits - 1 - exponent, 0)}f}"


def count(value: float) -> str:
    """4,096 in full; 1.33 M, 292 k, 1.81 G from 10,000 on."""
    for scale, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale and abs(value) >= 10_000:
            return f"{significant(value / scale)}{_GAP}{name}"
    return f"{value:,.0f}".replace("-", MINUS)


def size(bytes_: float) -> str:
    """Decimal units, as for disks: 5.34 MB."""
    for scale, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(bytes_) >= scale:
            return f"{significant(bytes_ / scale)}{_GAP}{name}"
    return f"{bytes_:.0f}{_GAP}B"


def time_unit(seconds: Iterable[float]) -> tuple[float, str]:
    """The best unit for a column of times: its scale in seconds, and its name."""
    smallest = min((abs(value) for value in seconds if value), default=1.0)
    if smallest < 1e-5:
        return 1e-6, "\N{MICRO SIGN}s"
    return (1e-3, "ms") if smallest < 1 else (1.0, "s")


def duration(seconds: float) -> str:
    """A single time: 0.118 ms, 12.4 s, 3 min 20 s."""
    if 120 <= seconds < math.inf:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes}{_GAP}min {rest}{_GAP}s" if rest else f"{minutes}{_GAP}min"
    scale, name = time_unit([seconds])
    return f"{significant(seconds / scale)}{_GAP}{name}"


def ratio(value: float) -> str:
    return f"{significant(value)}{TIMES}"


def interval(low: float | None, high: float | None) -> str:
    return "no interval" if low is None or high is None else f"{ratio(low)} to {ratio(high)}"


def percent(share: float, digits: int = 1) -> str:
    """0.783 as 78.3 %."""
    return f"{share * 100:.{digits}f}{_GAP}%".replace("-", MINUS)


def signed(value: float, digits: int) -> str:
    """The value with its sign, also if positive; a value that rounds to zero has none."""
    text = f"{value:+.{digits}f}".replace("-", MINUS)
    return text[1:] if float(text[1:]) == 0 else text


@dataclass(frozen=True)
class ScoreScale:
    """The format of scores: a share between 0 and 1 in percent and points, any other unchanged."""

    name: str
    higher_is_better: bool
    share: bool

    @classmethod
    def of(cls, name: str, *, higher_is_better: bool, scores: Iterable[float | None]) -> ScoreScale:
        """A higher-is-better score whose values are all between 0 and 1 is read as a share."""
        known = [score for score in scores if score is not None]
        return cls(name, higher_is_better, higher_is_better and all(0 <= score <= 1 for score in known))

    @property
    def factor(self) -> float:
        """The factor from a change to points, or to the score's own unit."""
        return 100.0 if self.share else 1.0

    def text(self, score: float) -> str:
        """88.70 %, or 0.4132."""
        return percent(score, 2) if self.share else significant(score, 4)

    def change(self, change: float, *, sign: bool = True) -> str:
        """-0.21 points, or +0.0132."""
        if self.share:
            value = change * 100
            return f"{signed(value, 2) if sign else f'{abs(value):.2f}'}{_GAP}points"
        text = significant(abs(change))
        return text if not sign or not change else (MINUS if change < 0 else "+") + text

    def loss(self, change: float) -> float:
        """How much worse, in the score's unit; negative if the new score is better."""
        return -change if self.higher_is_better else change


def by_name(name: str, value: object) -> str:
    """Formats a value whose name ends in its unit, as in `latency_s`, `memory_bytes`, `power_w`."""
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(by_name(name, item) for item in value) or "none"
    if not isinstance(value, (int, float)):
        return str(value)
    if name.endswith("_s") or name == "seconds":
        return duration(value)
    if name.endswith("_bytes"):
        return size(value)
    if name.endswith("_hz"):
        return f"{count(value)}Hz" if value >= 10_000 else f"{value:.4g}{_GAP}Hz"
    for ending, unit in (("_w", "W"), ("_c", "\N{DEGREE SIGN}C"), ("_j", "J")):
        if name.endswith(ending):
            return f"{value:.4g}{_GAP}{unit}".replace("-", MINUS)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}".replace("-", MINUS)


def spoken(name: str) -> str:
    """`score_drop` as "score drop"; a unit at the end is dropped, because the value shows it."""
    for ending in ("_s", "_bytes", "_w", "_c", "_hz", "_j"):
        name = name.removesuffix(ending)
    return name.replace("_", " ").strip()


def moment(created: str) -> str:
    """An ISO time as 2026-01-31 09:41 UTC; any other text unchanged."""
    try:
        when = datetime.fromisoformat(created)
    except ValueError:
        return created
    if when.tzinfo is None:
        return f"{when:%Y-%m-%d %H:%M}"
    return f"{when.astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC"


def settings_text(settings: Mapping[str, Any]) -> str:
    """`mean 0.05, std 0.1`; settings without a value are left out."""
    given = {key: value for key, value in settings.items() if value not in (None, "", [], (), {})}
    return ", ".join(f"{spoken(key)} {by_name(key, value)}" for key, value in given.items())


def capital(text: str) -> str:
    """With a large first letter, unless the first word has its own, as in mIoU."""
    return text[:1].upper() + text[1:] if text.partition(" ")[0].islower() else text
