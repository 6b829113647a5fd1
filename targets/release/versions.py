"""Which releases a board takes: never an older one than it had, none twice under one number, none expired.

A signature says who made a bundle, not that it is the newest: an old release with a known fault is signed as
well. So every bundle has a number that only rises, and the board keeps the highest that it accepted beside
the installed bundles, in a file that only its owner can write. It is written before the new release is in
use: if power is lost in between, the old one still runs, and nothing older is taken any more.

A board without a battery does not know the time. What was signed later than its clock says proves that the
clock is behind; expiry is then held against the latest time that is proven, and the answer says so. Only
signed times are kept: a clock that was wrong once must not make every later bundle look expired.
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
from typing import Any, Mapping, Optional

from ..errors import RefusedError

STATE = "accepted.json"
_SCHEMA = 1


@dataclass(frozen=True)
class Accepted:
    """The highest release that a board accepted: its number, its manifest's hash, the latest signed time."""

    release: int
    sha256: str
    made_at: str

    @classmethod
    def of(cls, manifest: Mapping[str, Any], sha256: str, *, after: Optional[Accepted] = None) -> Accepted:
        """What is kept of a signed manifest that was accepted after another."""
        times = [str(manifest["made_at"]), *([after.made_at] if after else [])]
        return cls(int(manifest["release"]), sha256, max(times, key=_seconds))


def read_accepted(home: Path) -> Optional[Accepted]:
    """What was accepted so far; None on a board that has had none.

    Raises:
        RefusedError: the file is damaged, or others can write it: then nobody knows what is older.
    """
    path = home / STATE
    try:
        handle = os.open(str(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RefusedError(f"{path} cannot be read: {error.strerror}.", _mend(path)) from error
    with os.fdopen(handle, "rb") as file:
        state = os.fstat(handle)
        if state.st_uid not in (0, os.geteuid()) or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise RefusedError(
                f"{path} says which releases are too old, but others than its owner can change it.",
                f"chmod 600 {path}, as root or as who installs; then see that the number in it is right.",
            )
        data = file.read(1 << 16)
    try:
        held = json.loads(data.decode("utf-8"))
        if held.pop("schema") != _SCHEMA:
            raise ValueError("another schema")
        accepted = Accepted(**held)
        datetime.fromisoformat(accepted.made_at)
        if not isinstance(accepted.release, int) or not isinstance(accepted.sha256, str):
            raise ValueError("values of other kinds")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RefusedError(f"{path} is damaged ({error}).", _mend(path)) from error
    return accepted


def write_accepted(home: Path, accepted: Accepted) -> None:
    """Keeps it, whole or not at all, readable and writable by its owner alone."""
    from ..artifact import sync_directory  # what only checks a bundle does without its imports

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


def refuse_older(
    manifest: Mapping[str, Any], sha256: str, accepted: Optional[Accepted], *, name: str
) -> None:
    """Downgrade and replay: a release must be newer than what was accepted, or exactly that one again.

    Raises:
        RefusedError: it is older, or another one under the same number.
    """
    release = manifest["release"]
    if accepted is None or release > accepted.release:
        return
    if release < accepted.release:
        raise RefusedError(
            f"This is release {release} of {name}, and release {accepted.release} was accepted here before: "
            "an old one is not taken again.",
            f"To go back to the one before: deadweight rollback {name}. For anything else, make a new bundle "
            "with a higher --release.",
        )
    if sha256 != accepted.sha256:
        raise RefusedError(
            f"Another bundle than this was accepted as release {release} of {name} "
            f"({accepted.sha256[:16]}, not {sha256[:16]}).",
            "Make the bundle again with a higher --release: no number is given twice.",
        )


def check_expiry(
    manifest: Mapping[str, Any], accepted: Optional[Accepted] = None, *, now_s: Optional[float] = None
) -> str:
    """Refuses what expired; returns what is to be said of a clock that cannot be right, else nothing.

    `now_s` are seconds since 1970, by default this machine's clock.

    Raises:
        RefusedError: it expired, by the clock or by the latest signed time.
    """
    now_s = time.time() if now_s is None else now_s
    signed = Accepted.of(manifest, "", after=accepted).made_at
    behind = now_s < _seconds(signed) - 24 * 3600  # a workstation's clock may be ahead by a little
    known_s = _seconds(signed) if behind else now_s
    told = f"The clock of this machine is wrong: it says {_words(now_s)}, and {_words(_seconds(signed))} "
    told += "was signed already."
    expires = manifest["expires"]
    if expires is not None and known_s > _seconds(expires):
        raise RefusedError(
            f"Release {manifest['release']} of {manifest['name']} expired at {expires}; "
            f"{told if behind else f'it is {_words(now_s)} now.'}",
            "Get a newer release, or set the clock if it is wrong (timedatectl).",
        )
    if not behind:
        return ""
    if expires is None:
        return told
    return f"{told} Whether this release expired since ({expires}) cannot be told here: set the clock."


def _seconds(told: str) -> float:
    return datetime.fromisoformat(told).timestamp()


def _words(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="minutes")


def _mend(path: Path) -> str:
    return (
        f"See who changed it. If nobody did and the disk is at fault, delete it (rm {path}): the number of "
        "the installed release then counts."
    )
