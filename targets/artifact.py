"""A file that can be trusted: its hash, its parents, and what made it.

Files appear whole or not at all. Whoever writes one goes through `writing`, which puts the bytes beside
the destination, flushes them to the disk and renames; a process killed at any moment leaves the old file
or the new one, never half of either.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Tuple

from .errors import ArtifactError


@dataclass(frozen=True)
class Artifact:
    """A file of a run.

    `parents` are the SHA-256 of what it was made from; `made_by` names the stage and library versions.
    """

    path: Path
    sha256: str
    parents: Tuple[str, ...] = ()
    made_by: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path, parents: Tuple[str, ...] = (), made_by: Mapping[str, str] = {}) -> Artifact:
        """The artifact that `path` holds now."""
        return cls(path, sha256_of(path), parents, dict(made_by))

    def checked(self) -> Path:
        """The path, once its bytes were seen to be those that were recorded."""
        if not self.path.exists():
            raise ArtifactError(
                f"{self.path} is missing.",
                "Run the same command again: the stage that makes it will run again, the others will not.",
            )
        found = sha256_of(self.path)
        if found != self.sha256:
            raise ArtifactError(
                f"{self.path} is damaged: its SHA-256 is {found[:12]}…, recorded was {self.sha256[:12]}….",
                f"Delete it (rm {self.path}) and run the same command again: only the stage that makes it "
                "will run again.",
            )
        return self.path


def utc_now() -> str:
    """The time for a file's record: ISO 8601 in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what is written there takes its place when the block ends well.

    Raises:
        ArtifactError: the disk is full, or the place cannot be written to. The old file is untouched.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=str(path.parent), prefix=_CUT + path.name, suffix=path.suffix)
        os.close(handle)
    except OSError as error:
        raise _unwritable(path, error) from error
    beside = Path(name)
    try:
        yield beside
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.chmod(0o666 & ~_umask())
        beside.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


_CUT = ".writing-"


def drop_cut_writes(folder: Path) -> None:
    """Removes what a killed process was writing anywhere below; only for who holds the folder alone."""
    for beside in sorted(folder.rglob(f"{_CUT}*")):
        beside.unlink()


@contextlib.contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """A folder inside for what is not finished; afterwards it is gone, and `folder` too if it is empty.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    part = folder / ".part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
    except OSError as error:
        raise ArtifactError(
            f"{folder} cannot be written: {error.strerror or error}.",
            "Free some space, or choose another place with --out.",
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.rmdir()


def write_text(path: Path, text: str) -> None:
    """Writes a whole text file, or nothing."""
    with writing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a whole JSON file, or nothing. Keys are sorted, so that equal values are equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ArtifactError: the file is missing, is not JSON or does not hold an object.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist.", "Check the path.") from error
    except (ValueError, OSError) as error:
        raise ArtifactError(
            f"{path} is not readable as JSON: {error}.", f"Delete {path} to have it made anew."
        ) from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} holds a {type(value).__name__}, not an object.", "Check the path.")
    return value


def _unwritable(path: Path, error: OSError) -> ArtifactError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ArtifactError(
            f"No space left on the disk while writing {path}.",
            "Free some space, or choose another place with --out, and run the same command again: "
            "finished stages are kept.",
        )
    return ArtifactError(
        f"{path} cannot be written: {error.strerror or error}.", "Choose another place with --out."
    )


def _umask() -> int:
    # The mask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_directory(path: Path) -> None:
    """Has the disk keep the names in a directory, also through a loss of power."""
    handle = os.open(str(path), os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
