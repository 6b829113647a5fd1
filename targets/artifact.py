"""Artifacts (a file with its hash, parents and origin), and atomic writing of files.

Files appear whole or not at all: `writing` writes the bytes beside the destination, flushes them to disk and
renames. A process killed at any moment leaves the old file or the new one.
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
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple, Union

from .errors import ArtifactError, reported


@dataclass(frozen=True)
class Artifact:
    """A file of a run.

    `parents` are the SHA-256 of its sources; `made_by` names the stage and library versions.
    """

    path: Path
    sha256: str
    parents: Tuple[str, ...] = ()
    made_by: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path, parents: Tuple[str, ...] = (), made_by: Mapping[str, str] = {}) -> Artifact:
        """The artifact for the current content of `path`."""
        return cls(path, sha256_of(path), parents, dict(made_by))

    def checked(self) -> Path:
        """The path; raises if the file's SHA-256 has changed."""
        if not self.path.exists():
            raise ArtifactError(
                f"{self.path} is missing.",
                "Run the same command again: only the stage that makes it will run again.",
            )
        sha256 = sha256_of(self.path)
        if sha256 != self.sha256:
            raise ArtifactError(
                f"{self.path} is damaged: its SHA-256 is {sha256[:12]}…, recorded was {self.sha256[:12]}….",
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
    """Yields a temporary path beside `path`, which replaces `path` when the block succeeds.

    Raises:
        ArtifactError: the disk is full, or the folder cannot be written. The old file is unchanged.
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
        mask = os.umask(0)  # only setting the mask returns it
        os.umask(mask)
        beside.chmod(0o666 & ~mask)
        beside.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


_CUT = ".writing-"


def drop_cut_writes(folder: Path) -> None:
    """Deletes the partial files of a killed process below a folder that no other process uses."""
    for beside in sorted(folder.rglob(f"{_CUT}*")):
        beside.unlink()


@contextlib.contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """A folder inside for unfinished files; deleted afterwards, and `folder` too if it is empty."""
    part = folder / ".part"
    shutil.rmtree(part, ignore_errors=True)
    cure = "Free some space, or choose another path with --out."
    try:
        with reported(ArtifactError, f"{folder} cannot be written", cure):
            part.mkdir(parents=True)
            yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.rmdir()


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with writing(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")  # JSON may have lone surrogates


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all. Keys are sorted, so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def json_of(text: Union[str, bytes], pairs: Optional[Callable[[List[Tuple[str, Any]]], Any]] = None) -> Any:
    """The value of JSON from outside; `pairs` makes an object from its keys and values.

    Raises:
        ValueError: it is not UTF-8 or not JSON, or it is nested beyond any file of ours.
    """
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def json_in(path: Path, cure: str) -> Any:
    """The value of a JSON file; an ArtifactError if it is missing or not JSON."""
    try:
        return json_of(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist.", "Check the path.") from error
    except (ValueError, OSError) as error:
        raise ArtifactError(f"{path} is not readable as JSON: {error}.", cure) from error


def read_json(path: Path, cure: str = "Delete it; it will be made again.") -> Dict[str, Any]:
    """Reads a JSON object; an ArtifactError if the file is missing, or is not JSON or no object."""
    value = json_in(path, cure)
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} is a {type(value).__name__}, not an object.", "Check the path.")
    return value


def _unwritable(path: Path, error: OSError) -> ArtifactError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ArtifactError(
            f"No space left on the disk while writing {path}.",
            "Free some space, or choose another path with --out, and run the same command again: "
            "finished stages are kept.",
        )
    return ArtifactError(
        f"{path} cannot be written: {error.strerror or error}.", "Choose another path with --out."
    )


def sync_directory(path: Path) -> None:
    """Flushes a directory's entries to disk, against a loss of power."""
    handle = os.open(str(path), os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
