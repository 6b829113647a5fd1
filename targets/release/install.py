"""Putting a verified release in place on a board, whole or not at all, with the old one kept.

    PLACE/NAME/4c1f…/           one directory a release, written beside and renamed when it is complete
    PLACE/NAME/current          a link to the release in use, swapped in one step
    PLACE/NAME/previous         a link to the one before it: what `rollback` goes back to
    PLACE/NAME/accepted.json    the highest release that was ever accepted (`versions.py`)

A release comes as a bundle's directory or as an update file (`patch.py`). It is copied beside, tried there on
its own golden inputs, written down as accepted, and only then used. Power may be lost at any moment: what was
in use before is in use, or the new one is; the next install clears away the rest.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional, Tuple, Union

from ..artifact import sync_directory
from ..errors import ArtifactError, RefusedError, TargetError
from ..paths import PLACE
from .manifest import MANIFEST, SIGNATURE
from .patch import Patch, Patched, open_patch
from .trust import Bundle, Signed, open_bundle, verify
from .versions import STATE, Accepted, check_expiry, read_accepted, refuse_older, write_accepted

_ROOT = Path("/")
_Opener = Callable[[Path], Bundle]


def install(
    source: Path,
    place: Path = PLACE,
    *,
    root: Path = _ROOT,
    signers: Optional[Path] = None,
    tried: bool = True,
) -> Dict[str, Any]:
    """Verifies a bundle's directory or an update file and makes it the current release of its name.

    `tried`: run it on its golden inputs first, and refuse it if the outputs are not those expected.

    Returns:
        name, version, release, previous, signer, path; `golden` as `Rehearsal.to_json`, or None; `clock`,
        what is wrong with this machine's, or "".

    Raises:
        RefusedError: it is not trusted, too old, expired or wrong; what was in use still is.
        ArtifactError: no space, or the place cannot be written; what was in use still is.
        TargetError: there is no runtime here to try it with.
    """
    source = Path(source)
    whole = source.is_dir() or not source.exists()

    def opener(folder: Path) -> Bundle:
        return open_bundle(folder, root=root, signers=signers)

    given = opener(source) if whole else open_patch(source, root=root, signers=signers)
    signed, name = given.signed, str(given.signed.manifest["name"])
    home = Path(place).expanduser() / name
    with _alone(home):
        _clear(home)
        accepted = _accepted(home, opener)
        refuse_older(signed.manifest, signed.sha256, accepted, name=name)
        clock = check_expiry(signed.manifest, accepted)
        target = _found(home, signed, opener)
        if target is None:
            _room_for(signed, home)
            files = given if isinstance(given, Bundle) else given.onto(_base(home, given, opener))
            target, golden = _copied(files, home, opener, tried=tried)
        else:
            golden = _tried(opener(target)) if tried else None
            if isinstance(given, Bundle):  # it must be right as well, though nothing of it is used
                for each in given.files:
                    given.check(each)
        _take(home, target.name, Accepted.of(signed.manifest, signed.sha256, after=accepted))
    return {**_told(home, signed), "golden": golden, "clock": clock}


def rollback(
    name: str,
    place: Path = PLACE,
    *,
    root: Path = _ROOT,
    signers: Optional[Path] = None,
    only_if_wrong: bool = False,
) -> Dict[str, Any]:
    """Makes the release before the current one; a second rollback takes that back.

    What was accepted stays: nothing older than the highest release can be installed afterwards either.
    `only_if_wrong`: leaves the current one if its bytes and its golden outputs are right.

    Raises:
        ArtifactError: there is none.
        RefusedError: it is no longer trusted.
        TargetError: only if wrong, and there is no runtime to find out.
    """
    home = Path(place).expanduser() / name
    if "/" in name or name in ("", ".", "..") or not home.is_dir():
        raise ArtifactError(f"No bundle called '{name}' is installed in {place}.", "Check the name.")
    with _alone(home):
        now, before = _linked(home / "current"), _linked(home / "previous")
        if only_if_wrong and now is not None:
            with contextlib.suppress(RefusedError):
                held = verify(home / now, root=root, signers=signers)
                return {**_told(home, held.signed), "golden": _tried(held), "kept": True}
        if before is None or before == now:
            raise ArtifactError(
                f"There is no version of '{name}' before {now} to go back to.", "Install the one you want."
            )
        bundle = verify(home / before, root=root, signers=signers)
        _point(home / "current", before)
        if now is not None:
            _point(home / "previous", now)
    return {**_told(home, bundle.signed), "golden": None, "kept": False}


def _told(home: Path, signed: Signed) -> Dict[str, Any]:
    previous = _linked(home / "previous")
    return {
        "name": signed.manifest["name"],
        "version": signed.version,
        "release": signed.manifest["release"],
        "previous": None if previous is None else previous.split(".")[0],
        "signer": signed.signer,
        "path": str(home / "current"),
    }


def _installed(home: Path, opener: _Opener) -> Iterator[Bundle]:
    """The releases that lie there, the one in use first; those that are not trusted any more are left out."""
    for name in (_linked(home / "current"), _linked(home / "previous")):
        with contextlib.suppress(RefusedError):
            if name is not None:
                yield opener(home / name)


def _accepted(home: Path, opener: _Opener) -> Optional[Accepted]:
    """The highest release so far; where the file is missing, that of the bundles that lie there."""
    accepted = read_accepted(home)
    if accepted is None:
        held = [Accepted.of(each.manifest, each.signed.sha256) for each in _installed(home, opener)]
        accepted = max(held, key=lambda each: each.release, default=None)
    return accepted


def _base(home: Path, patch: Patch, opener: _Opener) -> Optional[Bundle]:
    """The installed release that a patch starts from."""
    return next((each for each in _installed(home, opener) if each.signed.sha256 == patch.base), None)


def _found(home: Path, signed: Signed, opener: _Opener) -> Optional[Path]:
    """Where this release lies already, if all its bytes are right; one that went bad is made anew."""
    for folder in sorted(home.glob(f"{signed.version}*")):
        with contextlib.suppress(RefusedError):
            held = opener(folder)
            if held.signed.sha256 == signed.sha256:
                for name in held.files:
                    held.check(name)
                return folder
    return None


def _copied(
    given: Union[Bundle, Patched], home: Path, opener: _Opener, *, tried: bool
) -> Tuple[Path, Optional[Dict[str, Any]]]:
    """Writes the checked bytes, not the files they came from: those might change meanwhile."""
    signed = given.signed
    names = [signed.version, *(f"{signed.version}.{number}" for number in range(1, 10))]
    target = home / next(name for name in names if not (home / name).exists())
    part = target.with_name(f".{target.name}.part")
    kept = {MANIFEST: signed.manifest_bytes, SIGNATURE: signed.signature_bytes}
    try:
        for name in (*sorted(signed.files), MANIFEST, SIGNATURE):
            file_path = part / name
            file_path.parent.mkdir(parents=True, exist_ok=True)
            with file_path.open("wb") as file:
                file.write(kept[name] if name in kept else given.read(name))
                file.flush()
                os.fsync(file.fileno())
        for folder in {(part / name).parent for name in (*signed.files, MANIFEST)}:
            sync_directory(folder)
        golden = _tried(opener(part)) if tried else None
        part.rename(target)
        sync_directory(home)
    except BaseException as error:
        shutil.rmtree(str(part), ignore_errors=True)
        if isinstance(error, OSError):
            raise _unwritable(target, error) from error
        raise
    return target, golden


def _tried(bundle: Bundle) -> Dict[str, Any]:
    try:
        from .self_test import refuse_wrong

        return refuse_wrong(bundle).to_json()
    except (TargetError, ModuleNotFoundError) as error:
        what = error.what if isinstance(error, TargetError) else f"This Python has no {error.name}."
        cure = error.cure if isinstance(error, TargetError) else f"sudo apt install python3-{error.name}"
        raise TargetError(
            f"The model cannot be tried on its golden inputs here, so it is not put in use: {what}",
            f"{cure}. Or take it untried: --untried",
        ) from error


def _take(home: Path, target: str, accepted: Accepted) -> None:
    """Makes a release that lies there whole the current one."""
    try:
        write_accepted(home, accepted)
    except OSError as error:
        raise _unwritable(home / STATE, error) from error
    before = _linked(home / "current")
    if before != target:
        if before is not None and before.split(".")[0] != target.split(".")[0]:
            _point(home / "previous", before)
        _point(home / "current", target)
    _forget_others(home)


def _room_for(signed: Signed, home: Path) -> None:
    needed, free = sum(entry.size_bytes for entry in signed.files.values()), shutil.disk_usage(str(home)).free
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
        sync_directory(link.parent)
    except OSError as error:
        raise _unwritable(link, error) from error


def _clear(home: Path) -> None:
    """Takes away what an install left that was cut off."""
    for path in home.glob(".*.part"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(str(path), ignore_errors=True)
        else:
            path.unlink()


def _forget_others(home: Path) -> None:
    kept = {_linked(home / "current"), _linked(home / "previous")}
    for place in home.iterdir():
        if place.is_dir() and not place.is_symlink() and place.name not in kept:
            shutil.rmtree(str(place), ignore_errors=True)


def _unwritable(path: Path, error: OSError) -> ArtifactError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    cure = "Free some space on the board." if full else "Choose another place with --place."
    return ArtifactError(f"{path} cannot be written: {error.strerror or error}. Nothing was changed.", cure)
