"""What NVIDIA's own files and tools say about a Jetson, as text: release, power mode, clocks.

Pure functions from text to values; `jetson.py` finds the text. Every one takes whatever it is given: a line
that another release prints differently is skipped, never an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Dict, Mapping, Optional, Tuple

JETPACKS: Mapping[str, str] = {
    "32.4.4": "4.4.1",
    "32.5.0": "4.5",
    "32.5.1": "4.5.1",
    "32.6.1": "4.6",
    "32.7.1": "4.6.1",
    "32.7.2": "4.6.2",
    "32.7.3": "4.6.3",
    "32.7.4": "4.6.4",
    "35.1.0": "5.0.2",
    "35.2.1": "5.1",
    "35.3.1": "5.1.1",
    "35.4.1": "5.1.2",
    "35.5.0": "5.1.3",
    "35.6.0": "5.1.4",
    "35.6.4": "5.1.6",
    "36.2.0": "6.0 DP",
    "36.3.0": "6.0",
    "36.4.0": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5.0": "6.2.2",
    "38.2.0": "7.0",
    "38.2.1": "7.0",
    "38.2.2": "7.0",
    "38.4.0": "7.1",
    "39.0.0": "7.2 EA",
    "39.2.0": "7.2",
    "39.2.1": "7.2.1",
}
"""L4T release to JetPack: jetson_stats' table, meta-tegra's recipes, and a board's own listing for 39.2.1."""

_MAJORS = {"32": "4", "34": "5", "35": "5", "36": "6", "38": "7", "39": "7"}


@dataclass(frozen=True)
class Soc:
    """A system on chip by the name that `compatible` in the device tree gives it."""

    name: str
    compute_capability: str


SOCS = (
    Soc("tegra210", "5.3"),
    Soc("tegra186", "6.2"),
    Soc("tegra194", "7.2"),
    Soc("tegra234", "8.7"),
    Soc("tegra264", "11.0"),
)


@dataclass(frozen=True)
class PowerMode:
    """Modes are numbered differently on every board, so both are kept; what is not told is None."""

    name: Optional[str]
    id: Optional[int]

    def __str__(self) -> str:
        return (self.name or "?") + ("" if self.id is None else f" (mode {self.id})")


@dataclass(frozen=True)
class Clock:
    """A clock's limits as they were requested, and what it runs at; 0 where that is not told."""

    min_hz: int
    max_hz: int
    now_hz: int

    @property
    def locked(self) -> bool:
        """Whether it was told to keep one frequency, as `jetson_clocks` does."""
        return 0 < self.min_hz == self.max_hz


def l4t_release(text: str) -> Optional[str]:
    """The release in /etc/nv_tegra_release, as in `36.4.4`."""
    found = re.search(r"R([0-9]{1,4}) \(release\), REVISION: ([0-9]{1,4})(?:\.([0-9]{1,4}))?", text)
    return f"{found.group(1)}.{found.group(2)}.{found.group(3) or 0}" if found else None


def l4t_package(text: str) -> Optional[str]:
    """The release by the package nvidia-l4t-core in /var/lib/dpkg/status, where that file is missing."""
    found = re.search(r"^Package: nvidia-l4t-core\n(?:.+\n)*?Version: ([0-9]+\.[0-9]+\.[0-9]+)", text, re.M)
    return found.group(1) if found else None


def jetpack_of(l4t: Optional[str]) -> Tuple[Optional[str], str]:
    """The JetPack of a release, and a warning where it had to be guessed (empty if not)."""
    if l4t is None:
        return None, "The L4T release is not told: its JetPack is not known."
    if l4t in JETPACKS:
        return JETPACKS[l4t], ""
    major = _MAJORS.get(l4t.split(".")[0])
    if major is None:
        return None, f"L4T {l4t} and its JetPack are not known to this version of deadweight."
    told = f"L4T {l4t} is not known to this version of deadweight; it is taken for a JetPack {major}."
    return f"{major}.x", told


def soc_of(compatible: str) -> Optional[Soc]:
    """The system on chip that the device tree's `compatible` names (entries are separated by NUL)."""
    names = {entry.rpartition(",")[2] for entry in compatible.split("\0")}
    return next((soc for soc in SOCS if soc.name in names), None)


def power_mode(text: str) -> Optional[PowerMode]:
    """The answer of `nvpmodel -q`: a name, and on the next line its number, which some releases leave out."""
    found = re.search(r"^NV Power Mode: *(\S+)[^\S\n]*(?:\n[^\S\n]*([0-9]{1,4})\b)?", text, re.M)
    if found is None:
        return None
    return PowerMode(found.group(1), None if found.group(2) is None else int(found.group(2)))


def stored_mode(status: str) -> Optional[int]:
    """The mode's number that nvpmodel keeps in /var/lib/nvpmodel/status: `pmode:0001`."""
    found = re.search(r"pmode:([0-9]{1,6})", status)
    return int(found.group(1)) if found else None


def mode_names(conf: str) -> Dict[int, str]:
    """Number and name of every mode in /etc/nvpmodel.conf."""
    found = re.findall(r"^< *POWER_MODEL +ID=([0-9]{1,4}) +NAME=(\S+) *>", conf, re.M)
    return {int(number): name for number, name in found}


def shown_clocks(text: str) -> Dict[str, Clock]:
    """The answer of `jetson_clocks --show` (as root): cpu0…, gpu, emc, and accelerators, in hertz."""
    found: Dict[str, Clock] = {}
    for line in text.splitlines():
        name = re.match(r"\s*([A-Za-z][A-Za-z0-9_]*):?\s", line)
        figures = dict(re.findall(r"\b(Min|Max|Current)Freq=([0-9]{1,15})\b", line))
        if name is not None and len(figures) == 3:
            key = name.group(1).lower()
            unit = 1000 if key.startswith("cpu") else 1  # CPU clocks are printed in kHz
            low, high, now = (int(figures[which]) * unit for which in ("Min", "Max", "Current"))
            found[key] = Clock(low, high, now)
    return found
