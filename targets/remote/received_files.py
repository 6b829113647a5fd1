"""The board's store of received files, by hash, so that an interrupted copy resumes.

    ~/.cache/deadweight/files/SHA256/data        a complete file
    ~/.cache/deadweight/files/SHA256/NAME        the same file under its original name
    ~/.cache/deadweight/files/SHA256/part        the part of it received so far

A model with external weights, and a bundle, need all their files in one folder: these are also linked under
their names in a folder named by a hash of all their hashes.

The input is a tar stream of regular members named `SHA256@OFFSET`; any other member is an error. Two streams
of the same file write the same bytes to the same offsets, so a hanging connection does not harm the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tarfile
import time
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, Mapping, Sequence

from ..artifact import sha256_of
from ..errors import ArtifactError, TargetError, reported
from ..paths import CACHE, cache, stored

_BLOCK = 1 << 18
_PIECE = 1 << 16  # the most that an interruption loses: tarfile gives whole pieces or none
_HASH = r"[0-9a-f]{64}"
_RESERVED = ("data", "part")


def held(wanted: Sequence[Sequence[Any]], folder: Path = CACHE) -> Dict[str, Any]:
    """How much is stored of the files [hash, name, size, folder], in bytes by hash, and the free space.

    A complete file is also linked under its name, in the folder of that hash, by default its own: `paths` has
    it by folder and name.
    """
    files = stored(folder, "files")
    held_bytes: Dict[str, int] = {}
    paths: Dict[str, str] = {}
    for sha256, name, size, *folders in wanted:
        beside = _checked(str(folders[0] if folders else sha256))
        place, named = files / _checked(str(sha256)), files / beside / str(name)
        parts = str(name).split("/")
        alone = beside == sha256  # there, `data` and `part` are reserved
        unfit = any(part in ("", ".", "..") for part in parts) or "\0" in str(name)
        if unfit or (alone and (parts[1:] or name in _RESERVED)):
            raise ArtifactError(f"A file named {name!r} cannot be stored.", "Rename it.")
        whole, part = place / "data", place / "part"
        if whole.is_file() and whole.stat().st_size == size:
            held_bytes[sha256] = int(size)
            if not named.exists():
                named.parent.mkdir(parents=True, exist_ok=True)
                os.link(str(whole), str(named))
            os.utime(str(place))
            os.utime(str(files / beside))
            paths[f"{beside}/{name}"] = str(named)
        else:
            held_bytes[sha256] = min(part.stat().st_size, int(size)) if part.is_file() else 0
    return {"bytes": held_bytes, "paths": paths, "free_bytes": shutil.disk_usage(str(files)).free}


def receive(stream: BinaryIO, sizes: Mapping[str, int], folder: Path = CACHE) -> List[str]:
    """Writes the stream's pieces as they arrive, and returns the hashes of the files now complete.

    Raises:
        ArtifactError: a member is not a piece of an announced file, a file has another hash (it is deleted),
            or there is no space.
    """
    files = cache(folder) / "files"
    done: List[str] = []
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                match = re.fullmatch(rf"({_HASH})@([0-9]{{1,18}})", member.name)
                if not member.isreg() or match is None or match.group(1) not in sizes:
                    raise ArtifactError(
                        f"The copy has an unexpected member {member.name!r}; it was not written.",
                        "Copy with the same version of deadweight on both sides.",
                    )
                sha256, offset, source = match.group(1), int(match.group(2)), archive.extractfile(member)
                assert source is not None  # it is a regular file
                place = files / sha256
                place.mkdir(parents=True, exist_ok=True)
                _append(place / "part", offset, source)
                if (place / "part").stat().st_size >= sizes[sha256]:
                    _finish(place, sha256)
                    done.append(sha256)
    except (tarfile.TarError, EOFError) as error:
        raise ArtifactError(f"The copy was interrupted: {error}.", "Run the same command again.") from error
    except OSError as error:
        raise ArtifactError(
            f"The board cannot store the file: {error.strerror or error}.",
            "Free some space in ~/.cache/deadweight and run the same command again.",
        ) from error
    return done


def pieces(path: Path, offset: int) -> Iterator[bytes]:
    """A file's bytes from `offset`, in blocks."""
    with path.open("rb") as file:
        file.seek(offset)
        yield from iter(lambda: file.read(_BLOCK), b"")


@contextlib.contextmanager
def measuring(folder: Path = CACHE, *, wait_s: float = 30.0) -> Iterator[None]:
    """A lock for one measurement at a time: two at once would both be wrong."""
    with (cache(folder) / "measuring.lock").open("a+") as lock:
        until = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > until:
                    raise TargetError(
                        "Another measurement is running on this board; two at once would both be wrong.",
                        "Wait until it ends. One whose connection broke ends within seconds.",
                    ) from error
                time.sleep(0.2)
        yield


def _checked(sha256: str) -> str:
    if not re.fullmatch(_HASH, sha256):
        raise ArtifactError(f"{sha256!r} is not a SHA-256.", "Use the same version on both sides.")
    return sha256


def _append(part: Path, offset: int, source: Any) -> None:
    handle = os.open(str(part), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "r+b", buffering=0) as file:
        if offset > os.fstat(handle).st_size:
            raise ArtifactError("A piece of the file is missing.", "Run the same command again.")
        file.seek(offset)
        for block in iter(lambda: source.read(_PIECE), b""):
            view = memoryview(block)
            while view:
                view = view[file.write(view) :]


def _finish(place: Path, sha256: str) -> None:
    part = place / "part"
    if sha256_of(part) != sha256:
        part.unlink()
        raise ArtifactError(
            f"The received file does not have the hash {sha256[:12]}…; it was deleted.",
            "Run the same command again.",
        )
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(place / "data")


def hashed(path: Path) -> str:
    """The SHA-256 of a file to be sent."""
    with reported(ArtifactError, f"{path} cannot be read", "Check the path."):
        return sha256_of(path)
