"""Putting a verified bundle in place on a board, whole or not at all, with the old one kept.

PLACE/NAME/4c1f…/        one directory a version, written beside and renamed when it is complete
PLACE/NAME/current       a link to the version in use, swapped in one step
PLACE/NAME/previous      a link to the one before it: what `rollback` goes back to
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from pathlib import Path
from typing import Any, Dict, Iterator, Optional

from .errors import ArtifactError
from .trust import MANIFEST, SIGNATURE, Bundle, open_bundle, verify

PLACE = Path("~/.local/share/deadweight/bundles")
_ROOT = Path("/")


def install(
    folder: Path, place: Path = PLACE, *, root: Path = _ROOT, signers: Optional[Path] = None
) -> Dict[str, Any]:
    """Verifies a bundle and makes it the current one of its name. Returns name, version, previous and path.

    Raises:
        RefusedError: the bundle is not trusted; nothing was changed.
        ArtifactError: no space, or the place cannot be written; nothing was changed.
    """
    bundle = open_bundle(folder, root=root, signers=signers)
    home = Path(place).expanduser() / str(bundle.manifest["name"])
    with _alone(home):
        _room_for(bundle, home)
        target = home / bundle.version
        if not target.exists():
            _copied(bundle, target)
        else:  # both must be right: the one that was given, and the one that lies there
            for name in bundle.files:
                bundle.check(name)
            verify(target, root=root, signers=signers)
        before = _linked(home / "current")
        if before != bundle.version:
            if before is not None:
                _point(home / "previous", before)
            _point(home / "current", bundle.version)
            _forget_others(home)
    return {
        "name": bundle.manifest["name"],
        "version": bundle.version,
        "previous": _linked(home / "previous"),
        "signer": bundle.signer,
        "path": str(home / "current"),
    }


def rollback(
    name: str, place: Path = PLACE, *, root: Path = _ROOT, signers: Optional[Path] = None
) -> Dict[str, Any]:
    """Makes the version before the current one; a second rollback takes that back.

    Raises:
        ArtifactError: there is none.
        RefusedError: it is no longer trusted.
    """
    home = Path(place).expanduser() / name
    if not home.is_dir() or "/" in name:
        raise ArtifactError(f"No bundle called '{name}' is installed in {place}.", "Check the name.")
    with _alone(home):
        now, before = _linked(home / "current"), _linked(home / "previous")
        if before is None or before == now:
            raise ArtifactError(
                f"There is no version of '{name}' before {now} to go back to.", "Install the one you want."
            )
        bundle = verify(home / before, root=root, signers=signers)
        _point(home / "current", before)
        if now is not None:
            _point(home / "previous", now)
    return {
        "name": name,
        "version": before,
        "previous": now,
        "signer": bundle.signer,
        "path": str(home / "current"),
    }


def _copied(bundle: Bundle, target: Path) -> None:
    """Writes the checked bytes, not the files they came from: those might change meanwhile."""
    part = target.with_name(f".{target.name}.part")
    try:
        shutil.rmtree(str(part), ignore_errors=True)  # of an install that was cut off
        for name in (*sorted(bundle.files), MANIFEST, SIGNATURE):
            place = part / name
            place.parent.mkdir(parents=True, exist_ok=True)
            kept = {MANIFEST: bundle.manifest_bytes, SIGNATURE: bundle.signature_bytes}
            with place.open("wb") as file:
                file.write(kept[name] if name in kept else bundle.read(name))
                file.flush()
                os.fsync(file.fileno())
        part.rename(target)
        _sync(target.parent)
    except BaseException as error:
        shutil.rmtree(str(part), ignore_errors=True)
        if isinstance(error, OSError):
            raise _unwritable(target, error) from error
        raise


def _room_for(bundle: Bundle, home: Path) -> None:
    needed, free = sum(entry.size_bytes for entry in bundle.files.values()), shutil.disk_usage(str(home)).free
    if needed > free:
        raise ArtifactError(
            f"The bundle takes {needed / 1e6:.0f} MB, and {home} has {free / 1e6:.0f} MB left.",
            "Free some space on the board; nothing was changed.",
        )


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / ".lock").open("a")
    except OSError as error:
        raise _unwritable(home, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ArtifactError(f"Another install is at work in {home}.", "Wait for it to end.") from error
        yield


def _linked(link: Path) -> Optional[str]:
    return os.readlink(str(link)) if link.is_symlink() else None  # noqa: PTH115 (Path's came with Python 3.9)


def _point(link: Path, version: str) -> None:
    """Swaps a link in one step: whoever follows it meanwhile finds the old version or the new one."""
    beside = link.with_name(f".{link.name}.part")
    try:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
        beside.symlink_to(version)
        beside.replace(link)
        _sync(link.parent)
    except OSError as error:
        raise _unwritable(link, error) from error


def _forget_others(home: Path) -> None:
    kept = {_linked(home / "current"), _linked(home / "previous")}
    for place in home.iterdir():
        if place.is_dir() and not place.is_symlink() and place.name not in kept:
            shutil.rmtree(str(place), ignore_errors=True)


def _sync(folder: Path) -> None:
    handle = os.open(str(folder), os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(path: Path, error: OSError) -> ArtifactError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    cure = "Free some space on the board." if full else "Choose another place with --place."
    return ArtifactError(f"{path} cannot be written: {error.strerror or error}. Nothing was changed.", cure)
