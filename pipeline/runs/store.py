"""The store: finished stages by content hash, in a folder that many machines reach through fsspec.

    stages/train-1f0c9a…/SHA256.tar

The folder's name is the stage's key, the file's name the SHA-256 of its bytes, which is compared when it is
read: what is cut or changed is never used. A file is written under another name and renamed, so that several
machines may write the same stage.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import tarfile
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ...targets.artifact import json_of, sha256_of
from ...targets.errors import ArtifactError, RecipeError
from ...targets.paths import CACHE, stored

_TRY = "Run the same command again: stages that are finished here are kept, and are sent then."
_BEAT_S, _DEAD_S = 20.0, 90.0
ARRIVING = ".arriving-"
"""How folders of the cache begin that are on their way from or to the store."""


@dataclass(frozen=True)
class Store:
    """The table `[store]` of a recipe.

    Attributes:
        url: of the folder, "file:///shared/runs", "s3://bucket/runs" or "ssh://user@host/runs"; "" for none.
        options: for fsspec's file system of that kind, e.g. endpoint_url, or client_keys.
    """

    url: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system, and the folder in it."""
        kind = self.url.partition("://")[0]
        try:
            import fsspec

            files, top = fsspec.core.url_to_fs(self.url, **self.options)
            return files, str(top)
        except ImportError as error:
            cure = 'Install the extra [scale], in a checkout: pip install ".[scale]".'
            raise RecipeError(f"The store {self.url} needs a package: {error}.", cure) from error
        except Exception as error:
            cure = (
                f"Check url and options in [store]: {kind} must be file, s3 or ssh, and the host reachable."
            )
            raise RecipeError(f"The store {self.url} cannot be opened: {_reason(error)}.", cure) from error

    def check(self) -> None:
        """Writes and deletes a small file; an ArtifactError if that is not possible."""
        with self._reported("cannot be written", "Check its address, and the permission to write there."):
            files, top = self._opened
            files.makedirs(f"{top}/stages", exist_ok=True)
            files.pipe_file(f"{top}/.writable", b"")
            files.rm_file(f"{top}/.writable")

    def get(self, place: Path) -> bool:
        """Brings a stage's folder here; False if the store has none.

        Raises:
            ArtifactError: the store cannot be reached, or what it has is damaged.
        """
        with self._reported("cannot be read", f"Check that it can be reached. {_TRY}"):
            files, top = self._opened
            files.invalidate_cache()  # another machine may have written since a folder was listed
            try:
                kept = [
                    one
                    for one in files.ls(f"{top}/stages/{place.name}", detail=False)
                    if one.endswith(".tar")
                ]
            except FileNotFoundError:
                return False
            if not kept:
                return False
            name = sorted(kept)[0].rpartition("/")[2]
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=place.parent, prefix=ARRIVING) as beside:
                tar = Path(beside) / name
                files.get_file(f"{top}/stages/{place.name}/{name}", str(tar))
                if sha256_of(tar) != name.removesuffix(".tar"):
                    damaged = f"{self.url}/stages/{place.name}/{name}"
                    raise ArtifactError(
                        f"{damaged} is damaged: its SHA-256 is not that in its name.",
                        "Delete it: the stage runs again.",
                    )
                inside = Path(beside) / "stage"
                _unpack(tar, inside)
                shutil.rmtree(place, ignore_errors=True)
                inside.rename(place)
        return True

    def put(self, place: Path) -> None:
        """Sends a finished stage's folder, unless the store has it.

        Raises:
            ArtifactError: the store is full, read-only or unreachable; the stage stays here.
        """
        said = f"could not be sent the finished stage {place.name}"
        with self._reported(said, f"Free space there, or restore the access. {_TRY}"):
            files, top = self._opened
            files.invalidate_cache()
            there = f"{top}/stages/{place.name}"
            with contextlib.suppress(FileNotFoundError):
                if any(one.endswith(".tar") for one in files.ls(there, detail=False)):
                    return
            with tempfile.TemporaryDirectory(dir=place.parent, prefix=ARRIVING) as beside:
                tar = Path(beside) / "stage.tar"
                with tarfile.open(tar, "w") as made:
                    for path in sorted(place.rglob("*")):
                        made.add(path, str(path.relative_to(place)), recursive=False)
                with contextlib.suppress(FileExistsError):
                    files.mkdir(there, create_parents=False)  # not where a disk was that is gone
                cut = f"{there}/.{uuid.uuid4().hex}"
                try:
                    files.put_file(str(tar), cut)
                    files.mv(cut, f"{there}/{sha256_of(tar)}.tar")
                except BaseException:
                    with contextlib.suppress(Exception):
                        files.rm_file(cut)
                    raise

    @contextlib.contextmanager
    def driven(self, sweep: str) -> Iterator[None]:
        """Holds a sweep for one driver; others may use the store meanwhile.

        Args:
            sweep: all that makes it the same sweep.

        Raises:
            ArtifactError: another driver runs it, and was alive less than a minute and a half ago.
        """
        files, top = self._opened
        at = f"{top}/drivers/{hashlib.sha256(sweep.encode()).hexdigest()[:16]}.json"
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "id": uuid.uuid4().hex}

        def beat() -> None:
            files.pipe_file(at, json.dumps({**mine, "alive": time.time()}).encode())

        def keep() -> None:
            while not stopped.wait(_BEAT_S):
                with contextlib.suppress(Exception):  # a stage's own write says it
                    beat()

        with self._reported("cannot be read", "Check that it can be reached."):
            with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError):
                other = json_of(files.cat_file(at))
                host, pid = str(other["host"]), int(other["pid"])
                gone = host == mine["host"] and Path("/proc").exists() and not Path(f"/proc/{pid}").exists()
                if time.time() - float(other["alive"]) < _DEAD_S and not gone:
                    raise ArtifactError(
                        f"Process {pid} on {host} runs this sweep with the store {self.url}.",
                        "Wait for it. If it was killed, this command works a minute and a half after that.",
                    )
            files.makedirs(f"{top}/drivers", exist_ok=True)
            beat()
        stopped = threading.Event()
        threading.Thread(target=keep, daemon=True).start()
        try:
            yield
        finally:
            stopped.set()
            with contextlib.suppress(Exception):
                files.rm_file(at)

    @contextlib.contextmanager
    def _reported(self, what: str, cure: str) -> Iterator[None]:
        try:
            yield
        except (ArtifactError, RecipeError):
            raise
        except Exception as error:  # each kind of file system has errors of its own
            raise ArtifactError(f"The store {self.url} {what}: {_reason(error)}.", cure) from error


def fetched(url: str) -> Path:
    """A folder or a file of data by its URL, copied to this machine's cache once.

    Raises:
        RecipeError: it cannot be read.
    """
    place = stored(CACHE, "data") / hashlib.sha256(url.encode()).hexdigest()[:16]
    if not place.exists():
        files, path = Store(url)._opened
        part = place.with_name(f"{place.name}.part-{uuid.uuid4().hex}")
        try:
            files.get(path, str(part), recursive=True)
        except Exception as error:
            shutil.rmtree(part, ignore_errors=True)
            raise RecipeError(
                f"The data at {url} cannot be read: {_reason(error)}.", "Check --data."
            ) from error
        with contextlib.suppress(OSError):  # another process was faster
            part.rename(place)
        shutil.rmtree(part, ignore_errors=True)
    return place


def _unpack(tar: Path, place: Path) -> None:
    """Unpacks plain files and folders, and nothing else."""
    place.mkdir()
    with tarfile.open(tar) as kept:
        for one in kept:
            parts = Path(one.name).parts
            if not (one.isfile() or one.isdir()) or Path(one.name).is_absolute() or ".." in parts:
                raise ArtifactError(
                    f"{tar.name} has the entry {one.name!r}, which no stage makes.", "Delete it."
                )
            if one.isdir():
                (place / one.name).mkdir(parents=True, exist_ok=True)
            elif (source := kept.extractfile(one)) is not None:
                (place / one.name).parent.mkdir(parents=True, exist_ok=True)
                with source, (place / one.name).open("wb") as file:
                    shutil.copyfileobj(source, file)


def _reason(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    return (getattr(error, "strerror", None) or text)[:300].rstrip(".")
