"""Atomic installation of a verified release on a board, with rollback.

    PLACE/NAME/4c1f…/           one directory per release, written beside and renamed when complete
    PLACE/NAME/current          a link to the release in use, replaced atomically
    PLACE/NAME/previous         a link to the release before it, for `rollback`
    PLACE/NAME/accepted.json    the highest release that was ever accepted (`versions.py`)

A release is a bundle's directory or an update file (`patch.py`). It is copied beside, tested there on its
golden inputs, recorded as accepted, and only then used. Power may fail at any moment: then either the old or
the new release is in use, and the next install deletes the rest.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
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

_Opener = Callable[[Path], Bundle]


def install(
    source: Path, place: Path = PLACE, *, root: Path = Path("/"), tried: bool = True
) -> Dict[str, Any]:
    """Verifies a bundle's directory or an update file and makes it the current release of its name.

    `tried`: run the golden test first, and refuse the release if it fails.

    Returns:
        name, version, release, previous, signer, path; `golden` as `Rehearsal.to_json`, or None; `clock`,
        the fault of this machine's clock, or "".

    Raises:
        RefusedError: it is not trusted, too old, expired or wrong; the release in use is unchanged.
        ArtifactError: no space, or the place cannot be written; the release in use is unchanged.
        TargetError: there is no runtime here for the golden test.
    """
    source = Path(source)
    whole = source.is_dir() or not source.exists()

    opener = functools.partial(open_bundle, root=root)
    release = opener(source) if whole else open_patch(source, root=root)
    signed, name = release.signed, release.signed.manifest.name
    home = Path(place).expanduser() / name
    with _locked(home):
        for path in home.glob(".*.part"):  # what an interrupted install left
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(str(path), ignore_errors=True)
            else:
                path.unlink()
        accepted = _accepted(home, opener)
        refuse_older(signed.manifest, signed.sha256, accepted)
        clock = check_expiry(signed.manifest)
        target = _existing(home, signed, opener)
        if target is None:
            needed = sum(entry.bytes for entry in signed.files.values())
            free = shutil.disk_usage(str(home)).free
            if needed > free:
                raise ArtifactError(
                    f"The bundle needs {needed / 1e6:.0f} MB, but {home} has {free / 1e6:.0f} MB left.",
                    "Free some space on the board; nothing was changed.",
                )
            files = release if isinstance(release, Bundle) else release.onto(_base(home, release, opener))
            target, golden = _copy(files, home, opener, tried=tried)
        else:
            golden = _golden_test(opener(target)) if tried else None
            if isinstance(release, Bundle):  # checked too, though none of it is used
                for each in release.files:
                    release.check(each)
        _activate(home, target.name, Accepted(signed.manifest.release, signed.sha256))
    return {**_report(home, signed), "golden": golden, "clock": clock}


def rollback(
    name: str, place: Path = PLACE, *, root: Path = Path("/"), only_if_wrong: bool = False
) -> Dict[str, Any]:
    """Makes the previous release the current one; a second rollback reverses that.

    The accepted number stays: no release older than the highest can be installed afterwards.
    `only_if_wrong`: does nothing if the current one has the right bytes and passes its golden test.

    Raises:
        ArtifactError: there is no previous release.
        RefusedError: it is no longer trusted.
        TargetError: with `only_if_wrong`, and there is no runtime for the golden test.
    """
    home = Path(place).expanduser() / name
    if "/" in name or name in ("", ".", "..") or not home.is_dir():
        raise ArtifactError(f"No bundle named '{name}' is installed in {place}.", "Check the name.")
    with _locked(home):
        now, before = _link_target(home / "current"), _link_target(home / "previous")
        if only_if_wrong and now is not None:
            with contextlib.suppress(RefusedError):
                bundle = verify(home / now, root=root)
                return {**_report(home, bundle.signed), "golden": _golden_test(bundle), "kept": True}
        if before is None or before == now:
            raise ArtifactError(
                f"'{name}' has no version before {now} to go back to.", "Install the one you want."
            )
        bundle = verify(home / before, root=root)
        _point(home / "current", before)
        if now is not None:
            _point(home / "previous", now)
    return {**_report(home, bundle.signed), "golden": None, "kept": False}


def _report(home: Path, signed: Signed) -> Dict[str, Any]:
    previous = _link_target(home / "previous")
    return {
        "name": signed.manifest.name,
        "version": signed.version,
        "release": signed.manifest.release,
        "previous": None if previous is None else previous.split(".")[0],
        "signer": signed.signer,
        "path": str(home / "current"),
    }


def _installed(home: Path, opener: _Opener) -> Iterator[Bundle]:
    """The installed releases, the current one first, without those no longer trusted."""
    for name in (_link_target(home / "current"), _link_target(home / "previous")):
        with contextlib.suppress(RefusedError):
            if name is not None:
                yield opener(home / name)


def _accepted(home: Path, opener: _Opener) -> Optional[Accepted]:
    """The highest accepted release; where the file is missing, that of the installed bundles."""
    accepted = read_accepted(home)
    if accepted is None:
        known = [Accepted(each.manifest.release, each.signed.sha256) for each in _installed(home, opener)]
        accepted = max(known, key=lambda each: each.release, default=None)
    return accepted


def _base(home: Path, patch: Patch, opener: _Opener) -> Optional[Bundle]:
    return next((each for each in _installed(home, opener) if each.signed.sha256 == patch.base), None)


def _existing(home: Path, signed: Signed, opener: _Opener) -> Optional[Path]:
    """The folder where this release is already, if all its bytes are right; else it is copied again."""
    for folder in sorted(home.glob(f"{signed.version}*")):
        with contextlib.suppress(RefusedError):
            bundle = opener(folder)
            if bundle.signed.sha256 == signed.sha256:
                for name in bundle.files:
                    bundle.check(name)
                return folder
    return None


def _copy(
    release: Union[Bundle, Patched], home: Path, opener: _Opener, *, tried: bool
) -> Tuple[Path, Optional[Dict[str, Any]]]:
    """Writes the checked bytes, since the source files may change meanwhile."""
    signed = release.signed
    names = [signed.version, *(f"{signed.version}.{number}" for number in range(1, 10))]
    target = home / next(name for name in names if not (home / name).exists())
    part = target.with_name(f".{target.name}.part")
    own_files = {MANIFEST: signed.manifest_bytes, SIGNATURE: signed.signature_bytes}
    try:
        with _written(target):
            for name in (*sorted(signed.files), MANIFEST, SIGNATURE):
                file_path = part / name
                file_path.parent.mkdir(parents=True, exist_ok=True)
                with file_path.open("wb") as file:
                    file.write(own_files[name] if name in own_files else release.read(name))
                    file.flush()
                    os.fsync(file.fileno())
            for folder in {(part / name).parent for name in (*signed.files, MANIFEST)}:
                sync_directory(folder)
            golden = _golden_test(opener(part)) if tried else None
            part.rename(target)
            sync_directory(home)
    finally:
        shutil.rmtree(str(part), ignore_errors=True)
    return target, golden


def _golden_test(bundle: Bundle) -> Dict[str, Any]:
    try:
        from .self_test import refuse_wrong

        return refuse_wrong(bundle).to_json()
    except (TargetError, ModuleNotFoundError) as error:
        what = error.what if isinstance(error, TargetError) else f"This Python has no {error.name}."
        cure = error.cure if isinstance(error, TargetError) else f"sudo apt install python3-{error.name}"
        raise TargetError(
            f"The model cannot be run on its golden inputs here, so it is not installed: {what}",
            f"{cure}. Or install it without that test: --untried",
        ) from error


def _activate(home: Path, target: str, accepted: Accepted) -> None:
    with _written(home / STATE):
        write_accepted(home, accepted)
    before = _link_target(home / "current")
    if before != target:
        if before is not None and before.split(".")[0] != target.split(".")[0]:
            _point(home / "previous", before)
        _point(home / "current", target)
    used = {_link_target(home / "current"), _link_target(home / "previous")}
    for place in home.iterdir():
        if place.is_dir() and not place.is_symlink() and place.name not in used:
            shutil.rmtree(str(place), ignore_errors=True)


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    with _written(home):
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / ".lock").open("a")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ArtifactError(f"Another install is running in {home}.", "Wait until it ends.") from error
        yield


def _link_target(link: Path) -> Optional[str]:
    return os.readlink(str(link)) if link.is_symlink() else None  # noqa: PTH115 (Path's came with Python 3.9)


def _point(link: Path, version: str) -> None:
    """Replaces a link atomically: a concurrent reader gets the old or the new version."""
    beside = link.with_name(f".{link.name}.part")
    with _written(link):
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
        beside.symlink_to(version)
        beside.replace(link)
        sync_directory(link.parent)


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    """Reports what cannot be written, as an ArtifactError."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cure = "Free some space on the board." if full else "Choose another place with --place."
        reason = f"{error.strerror or error}. Nothing was changed."
        raise ArtifactError(f"{path} cannot be written: {reason}", cure) from error
