"""Protection against downgrade, replay and expired releases.

A signature proves who made a bundle, not that it is the newest: an old release with a known fault is signed
too. So every bundle has a number that only rises, and the board stores the highest accepted one beside the
installed bundles, in a file that only its owner can write. It is written before the new release is in use: if
power fails in between, the old one still runs, and no older one is accepted any more.

A board without a battery has no reliable clock. A release signed after its clock proves that the clock is
behind, and the answer says so. No time is stored: a higher number is later, whatever the stamps say, so a
release that was stamped by a clock that was ahead cannot make the ones after it expire.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Optional

from ..artifact import sync_directory
from ..errors import MISFITS, RefusedError, reported
from .manifest import Manifest

STATE = "accepted.json"
_SCHEMA = 1


@dataclass(frozen=True)
class Accepted:
    """The highest release that a board accepted: its number and its manifest's hash."""

    release: int
    sha256: str


def read_accepted(home: Path) -> Optional[Accepted]:
    """Reads the highest accepted release; None on a board without one.

    Raises:
        RefusedError: the file is damaged or others can write it, so the highest release is unknown.
    """
    path = home / STATE
    try:
        handle = os.open(str(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RefusedError(f"{path} cannot be read: {error.strerror}.", _cure(path)) from error
    with os.fdopen(handle, "rb") as file:
        state = os.fstat(handle)
        if state.st_uid not in (0, os.geteuid()) or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise RefusedError(
                f"{path} has the highest accepted release, but users other than its owner can change it.",
                f"chmod 600 {path}, as root or as its owner; then check that its number is right.",
            )
        data = file.read(1 << 16)
    with reported(RefusedError, f"{path} is damaged", _cure(path), *MISFITS, RecursionError):
        values = json.loads(data.decode("utf-8"))
        if values.pop("schema") != _SCHEMA:
            raise ValueError("another schema")
        values.pop("made_at", None)  # until 0.2.0 also the latest signed time
        accepted = Accepted(**values)
        if not isinstance(accepted.release, int) or not isinstance(accepted.sha256, str):
            raise ValueError("values of other types")
    return accepted


def write_accepted(home: Path, accepted: Accepted) -> None:
    """Stores it, whole or not at all, readable and writable only by its owner."""
    beside = home / f".{STATE}.part"
    with contextlib.suppress(FileNotFoundError):
        beside.unlink()
    handle = os.open(str(beside), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump({"schema": _SCHEMA, **vars(accepted)}, file)
        file.flush()
        os.fsync(handle)
    beside.replace(home / STATE)
    sync_directory(home)


def refuse_older(manifest: Manifest, sha256: str, accepted: Optional[Accepted]) -> None:
    """Refuses a downgrade: a release must be newer than the accepted one, or exactly that one."""
    release, name = manifest.release, manifest.name
    if accepted is None or release > accepted.release:
        return
    if release < accepted.release:
        raise RefusedError(
            f"This is release {release} of {name}, but release {accepted.release} was accepted here before: "
            "an older one is refused.",
            f"To go back to the previous one: deadweight rollback {name}. Otherwise make a new bundle "
            "with a higher --release.",
        )
    if sha256 != accepted.sha256:
        raise RefusedError(
            f"Another bundle was accepted as release {release} of {name} "
            f"({accepted.sha256[:16]}, not {sha256[:16]}).",
            "Make the bundle again with a higher --release: no number can be used twice.",
        )


def check_expiry(manifest: Manifest, *, now_s: Optional[float] = None) -> str:
    """Refuses an expired release; returns a warning about a wrong clock, or "".

    `now_s` are seconds since 1970, by default this machine's clock.
    """
    now_s = time.time() if now_s is None else now_s
    made_s, expires = _seconds(manifest.made_at), manifest.expires
    if expires is not None and now_s > _seconds(expires):
        release = f"Release {manifest.release} of {manifest.name}"
        raise RefusedError(
            f"{release} expired at {expires}; it is {_iso(now_s)} now.",
            "Get a newer release, or set the clock if it is wrong (timedatectl).",
        )
    if now_s >= made_s - 24 * 3600:  # a workstation's clock may be ahead by a little
        return ""
    warning = (
        f"The clock of this machine is behind, or that of the workstation was ahead: it is {_iso(now_s)} "
        f"here, and this release was made at {_iso(made_s)}."
    )
    if expires is None:
        return warning
    return f"{warning} Whether this release has expired ({expires}) is unknown here: set the clock."


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="minutes")


def _cure(path: Path) -> str:
    return (
        f"Find out who changed it. If the disk is at fault, delete it (rm {path}): then the number of the "
        "installed release counts."
    )
