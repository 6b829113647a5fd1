"""Parsers for the text of NVIDIA's files and tools on a Jetson: release, power mode, clocks.

Pure functions from text to values; `jetson.py` reads the text. They accept any text: a line that another
release prints differently is skipped, never an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Dict, Mapping, Optional, Tuple

_RELEASES = (
    "32.4.4=4.4.1, 32.5.0=4.5, 32.5.1=4.5.1, 32.6.1=4.6, 32.7.1=4.6.1, 32.7.2=4.6.2, 32.7.3=4.6.3, "
    "32.7.4=4.6.4, "
    "35.1.0=5.0.2, 35.2.1=5.1, 35.3.1=5.1.1, 35.4.1=5.1.2, 35.5.0=5.1.3, 35.6.0=5.1.4, 35.6.1=5.1.5, "
    "35.6.2=5.1.5, 35.6.3=5.1.5, 35.6.4=5.1.6, "
    "36.2.0=6.0 DP, 36.3.0=6.0, 36.4.0=6.1, 36.4.2=6.1, 36.4.3=6.2, 36.4.4=6.2.1, 36.4.7=6.2.1, "
    "36.5.0=6.2.2, "
    "38.2.0=7.0, 38.2.1=7.0, 38.2.2=7.0, 38.4.0=7.1, "
    "39.0.0=7.2 EA, 39.2.0=7.2, 39.2.1=7.2.1"
)
JETPACKS: Mapping[str, str] = {
    release: jetpack for release, _, jetpack in (pair.partition("=") for pair in _RELEASES.split(", "))
}
"""L4T release to JetPack: jetson_stats' table, meta-tegra's recipes, and a board's listing for 39.2.1."""

_MAJORS = {"32": "4", "34": "5", "35": "5", "36": "6", "38": "7", "39": "7"}

GPUS = {"tegra210": "5.3", "tegra186": "6.2", "tegra194": "7.2", "tegra234": "8.7", "tegra264": "11.0"}
"""Compute capability by system on chip, as the device tree's `compatible` names it."""
_DRIVE = ("p3663", "p3710", "p3960", "e3550")
"""DRIVE's boards, as `compatible` names them: Orin, Orin, Thor, Xavier."""


@dataclass(frozen=True)
class PowerMode:
    """A power mode. Each board numbers modes differently, so it has name and number; None if unknown."""

    name: Optional[str]
    id: Optional[int]

    def __str__(self) -> str:
        return (self.name or "?") + ("" if self.id is None else f" (mode {self.id})")


@dataclass(frozen=True)
class Clock:
    """A clock's requested limits and its current frequency; 0 where unknown."""

    min_hz: int
    max_hz: int
    now_hz: int

    @property
    def locked(self) -> bool:
        """Whether it is locked to one frequency, as by `jetson_clocks`."""
        return 0 < self.min_hz == self.max_hz


def l4t_release(text: str) -> Optional[str]:
    """The release in /etc/nv_tegra_release, as in `36.4.4`."""
    match = re.search(r"R([0-9]{1,4}) \(release\), REVISION: ([0-9]{1,4})(?:\.([0-9]{1,4}))?", text)
    return f"{match.group(1)}.{match.group(2)}.{match.group(3) or 0}" if match else None


def l4t_package(text: str) -> Optional[str]:
    """The release from the package nvidia-l4t-core in /var/lib/dpkg/status."""
    match = re.search(r"^Package: nvidia-l4t-core\n(?:.+\n)*?Version: ([0-9]+\.[0-9]+\.[0-9]+)", text, re.M)
    return match.group(1) if match else None


def jetpack_of(l4t: Optional[str]) -> Tuple[Optional[str], str]:
    """The JetPack of a release, and a warning where it is a guess (else empty)."""
    if l4t is None:
        return None, "The L4T release is unknown, so its JetPack is too."
    if l4t in JETPACKS:
        return JETPACKS[l4t], ""
    major = _MAJORS.get(l4t.split(".")[0])
    if major is None:
        return None, f"This version of deadweight does not know L4T {l4t} and its JetPack."
    return f"{major}.x", f"This version of deadweight does not know L4T {l4t}; it assumes JetPack {major}."


def driveos_release(compatible: str, rootfs: str) -> Optional[str]:
    """A DRIVE board's release, as in `DriveOS 7.0.3.0`, from /etc/nvidia/version-ubuntu-rootfs.txt.

    Without a number where only the device tree says that it is a DRIVE board; None for other boards.
    """
    match = re.match(r"\s*([0-9]+(?:\.[0-9]+)+)", rootfs)
    known = any(f",{name}" in compatible for name in _DRIVE)
    return f"DriveOS {match.group(1)}" if match else "DriveOS" if known else None


def capability_of(soc: Optional[str], cuda: Optional[str], release: Optional[str]) -> Optional[str]:
    """The compute capability of a chip: CUDA 13.0, on DRIVE with 7.0.5, renamed Thor's from 10.1 to 11.0."""
    old = (cuda or "").startswith("12.") or re.match(r"DriveOS 7\.0\.[0-4]\b", release or "")
    return None if soc is None else "10.1" if GPUS[soc] == "11.0" and old else GPUS[soc]


def soc_of(compatible: str) -> Optional[str]:
    """The system on chip that the device tree's `compatible` names (entries are separated by NUL)."""
    names = {entry.rpartition(",")[2] for entry in compatible.split("\0")}
    return next((soc for soc in GPUS if soc in names), None)


def power_mode(text: str) -> Optional[PowerMode]:
    """The output of `nvpmodel -q`: a name, and on the next line its number, which some releases omit."""
    match = re.search(r"^NV Power Mode: *(\S+)[^\S\n]*(?:\n[^\S\n]*([0-9]{1,4})\b)?", text, re.M)
    if match is None:
        return None
    return PowerMode(match.group(1), None if match.group(2) is None else int(match.group(2)))


def stored_mode(status: str) -> Optional[int]:
    """The mode's number that nvpmodel stores in /var/lib/nvpmodel/status: `pmode:0001`."""
    match = re.search(r"pmode:([0-9]{1,6})", status)
    return int(match.group(1)) if match else None


def mode_names(conf: str) -> Dict[int, str]:
    """Number and name of every mode in /etc/nvpmodel.conf."""
    modes = re.findall(r"^< *POWER_MODEL +ID=([0-9]{1,4}) +NAME=(\S+) *>", conf, re.M)
    return {int(number): name for number, name in modes}


def shown_clocks(text: str) -> Dict[str, Clock]:
    """The output of `jetson_clocks --show` (as root): cpu0…, gpu, emc, and accelerators, in hertz."""
    clocks: Dict[str, Clock] = {}
    for line in text.splitlines():
        name = re.match(r"\s*([A-Za-z][A-Za-z0-9_]*):?\s", line)
        figures = dict(re.findall(r"\b(Min|Max|Current)Freq=([0-9]{1,15})\b", line))
        if name is not None and len(figures) == 3:
            key = name.group(1).lower()
            unit = 1000 if key.startswith("cpu") else 1  # CPU clocks are printed in kHz
            low, high, now = (int(figures[which]) * unit for which in ("Min", "Max", "Current"))
            clocks[key] = Clock(low, high, now)
    return clocks
