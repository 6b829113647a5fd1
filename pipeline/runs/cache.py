"""A run's directory and the cache of its stages, which never serves a stale result.

    runs/mlp/
      stages/train-1f0c9a…/      a stage's files, and done.json: written last, so that a stage is
      stages/prune-77ab21…/      either finished or absent
      networks/original.onnx …   the networks to ship
      report.json  report.html

The name of a stage's folder has the hash of all that affects its result: its settings, the hashes of its
inputs, its source and the user's (see `sources`), the data, the seed, the threads, the machine and the
library versions. A killed stage leaves a folder that ends in ".part"; the next run resumes from the
checkpoints in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ...targets.artifact import (
    Artifact,
    drop_cut_writes,
    read_json,
    sha256_of,
    sync_directory,
    write_json,
    write_text,
)
from ...targets.errors import MISFITS, ArtifactError, ModelError, reported, users_code
from ...targets.machine.probe import cpu_name
from ...targets.progress import Progress
from ..recipe import Recipe
from ..stage import NamedStage, files_read, is_users_own, named_files, run_stage, settings_of, source_of
from ..training.networks import NetworkFiles
from ..work import Done, Facts, Work
from ..workload import Workload
from ..workloads.named import load_workload, workload_code
from .sources import package_versions, source_hash
from .store import ARRIVING, Store

LIBRARIES = (
    *("torch", "numpy", "onnx", "onnxscript", "onnxsim", "onnxruntime"),
    *("lightning-fabric", "safetensors"),
)


@dataclass(frozen=True)
class Finished:
    """A finished stage: how long it took when it ran, and whether its result is from the cache."""

    name: str
    settings: Mapping[str, Any]
    seconds: float
    cached: bool
    words: tuple[str, ...]


@dataclass
class Run:
    """A run's directory; `finished` grows with every stage, and `started` and `ended` are called for each."""

    directory: Path
    users_files: tuple[Path, ...]
    fingerprint: str
    workload: str = ""  # the object's name: one file may define several
    started: Callable[[str], None] = lambda name: None
    ended: Callable[[Finished], None] = lambda finished: None
    finished: list[Finished] = field(default_factory=list)
    store: Store | None = None
    only_kept: bool = False  # all stages were run elsewhere: none runs here
    versions: Mapping[str, str] | None = None  # of the machine whose run it is, if not of this one

    def step(self, named: NamedStage, work: Work) -> Work:
        """The work after a stage: from the cache if nothing in its key has changed, else run now.

        Raises:
            ArtifactError: a file of a finished stage is damaged, or the disk is full.
        """
        folder = named.name.replace(":", ".").rpartition(".")[2]
        place = self.directory / "stages" / f"{folder}-{self.key(named, work)[:16]}"
        with _alone(self.directory / ".locks" / place.name):
            arrived = self.store is not None and not (place / "done.json").exists() and self.store.get(place)
            if (place / "done.json").exists():
                record, cure = (
                    read_json(place / "done.json"),
                    f"Delete it (rm -r {place}): the stage runs again.",
                )
                with reported(ArtifactError, f"{place}/done.json is damaged", cure, *MISFITS):
                    held = [record["artifacts"], *(variant["files"] for variant in record["variants"])]
                    kept = (self.directory / one["path"] for files in held for one in files.values())
                    if "void" not in record["artifacts"] and all(path.exists() for path in kept):
                        result = work.restored(record, self.directory)
                        if self.store is not None and not arrived:
                            self.store.put(place)
                        self._note(named, work, result, float(record["seconds"]), cached=True)
                        return result
            if self.only_kept:
                raise ArtifactError(
                    f'The stage "{named.name}" of a finished trial is not in {place}: a worker kept it by '
                    "another key.",
                    "Give all workers the same files, and let nothing change the recipe's folder meanwhile.",
                )
            self.started(named.name)
            before = time.monotonic()
            result = self._ran(named, work, place, before)
            if self.store is not None and "void" not in result.artifacts:
                self.store.put(place)
            self._note(named, work, result, time.monotonic() - before, cached=False)
            return result

    def key(self, named: NamedStage, work: Work) -> str:
        """The hash of all that affects a stage's result."""
        code = (
            source_of(named.stage),
            *self.users_files,
            *named_files(named.stage, "code"),
            *work.networks.code(work.variants),
            *work.target.runtime.code,
        )
        value = {
            "stage": named.name,
            "settings": settings_of(named.stage),
            "inputs": work.digest(),
            "source": source_hash(*code),
            "packages": package_versions(*code),
            "reads": [sha256_of(path) for path in files_read(named.stage, work.folder) if path.is_file()],
            "workload": self.workload,
            "data": self.fingerprint,
            "target": work.target.to_json(),
            "seed": work.seed,
            "threads": torch.get_num_threads(),
            **({"world": dist.get_world_size()} if dist.is_initialized() else {}),  # of torchrun
            "made_by": dict(self.versions or made_by()),
        }
        return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()

    def _ran(self, named: NamedStage, work: Work, place: Path, started_s: float) -> Work:
        part = place.with_name(place.name + ".part")
        try:
            part.mkdir(parents=True, exist_ok=True)
            result = run_stage(named.name, named.stage, dataclasses.replace(work, directory=part))
            if is_users_own(named.name):
                _check_shrunk(named, work, result)
            result = _moved(_logged(named, work, result), part, place)
            about = {"seconds": time.monotonic() - started_s, "made_by": dict(made_by())}
            write_json(part / "done.json", {**about, **result.record(self.directory)})
            for path in [*part.rglob("*"), part]:
                sync_directory(path)  # before it counts as finished
            shutil.rmtree(place, ignore_errors=True)  # it was finished, but one of its files is missing
            part.rename(place)
            sync_directory(place.parent)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) and str(part) not in str(error.filename):
                raise
            raise ArtifactError(
                f'The stage "{named.name}" could not write to {part}: {error.strerror or error}.',
                "Free some space, or choose another directory with --out, and run the same command again: "
                "finished stages are kept.",
            ) from error
        return result

    def _note(self, named: NamedStage, before: Work, after: Work, seconds: float, *, cached: bool) -> None:
        words = after.log[-1].words if len(after.log) > len(before.log) else ()
        self.finished.append(Finished(named.name, settings_of(named.stage), seconds, cached, words))
        self.ended(self.finished[-1])


@dataclass(frozen=True)
class Watcher:
    """What a run calls as it goes on: a stage started, how far it is, how it ended. By default nothing."""

    started: Callable[[str], None] = lambda name: None
    progress: Progress = lambda done, total, what: None
    ended: Callable[[Finished], None] = lambda finished: None


def prepared(
    recipe: Recipe,
    directory: Path,
    watcher: Watcher,
    loaded: tuple[Workload, str] | None = None,
    *,
    check: bool = True,
) -> tuple[Run, Work]:
    """A run of a recipe and its first work.

    Args:
        loaded: the workload and its fingerprint, where they are known.
        check: whether the store is made if it is not there, and tried, to say now what is wrong with it.
    """
    workload, fingerprint = loaded or load(recipe.workload, recipe.path.parent)
    own = [source_of(stage.stage) for stage in recipe.stages if is_users_own(stage.name)]
    files = (*workload_code(recipe.workload, recipe.path.parent, workload), *own)
    place, mark, settings = recipe.workload.partition("?")
    name = f"{place.rpartition(':')[2]}{mark}{settings}"
    store = Store(recipe.store.url, recipe.store.options) if recipe.store else None
    if store is not None and check:
        store.check()
    run_ = Run(directory, files, fingerprint, name, watcher.started, watcher.ended, store=store)
    work = Work(
        workload,
        recipe.target,
        directory,
        recipe.seed,
        progress=watcher.progress,
        folder=recipe.path.parent,
        networks=NetworkFiles(),
    )
    if recipe.path.suffix == ".toml":
        write_text(directory / _OF, os.path.relpath(recipe.path.resolve(), directory.resolve()))
    return run_, work


def load(spec: str, folder: Path) -> tuple[Workload, str]:
    """A workload by its name in a recipe of this folder, and its fingerprint."""
    workload = load_workload(spec, folder)
    with users_code("fingerprint() was called"):
        return workload, str(workload.fingerprint())


_OF = "recipe.path"
"""The recipe of a run's directory, relative to it."""


def default_directory(recipe: Path) -> Path:
    """runs/NAME; runs/FOLDER-NAME where that is the directory of another recipe of this name."""
    whole = recipe.resolve()
    place = Path("runs") / whole.stem
    for count in range(len(whole.parts)):
        place = Path("runs") / "-".join([*whole.parent.parts[len(whole.parts) - 1 - count :], whole.stem])
        held = place / _OF
        owner = (place / held.read_text("utf-8")).resolve() if held.is_file() else whole
        if owner == whole or not owner.is_file():
            break
    return place


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Locks a run's directory for one process, and deletes files that a killed process left half written.

    Raises:
        ArtifactError: another process has locked it, or it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / ".lock").open("a+")
    except OSError as error:
        cure = "Choose another directory with --out."
        raise ArtifactError(f"{directory} cannot be used: {error.strerror}.", cure) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            cure = "Wait for it, or choose another one with --out."
            raise ArtifactError(f"Another run is active in {directory}.", cure) from error
        for kept in ("stages", "networks"):  # other files are also written without the lock
            drop_cut_writes(directory / kept)
        for cut in (directory / "stages").glob(f"{ARRIVING}*"):
            shutil.rmtree(cut)
        yield


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Locks a stage's folder: one process of a sweep makes the stage, the others wait and use the result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@lru_cache(maxsize=1)
def made_by() -> Mapping[str, str]:
    """The versions and the machine that results depend on."""
    versions = {"python": platform.python_version(), "cpu": cpu_name()}
    for name in ("deadweight", *LIBRARIES):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _moved(work: Work, part: Path, place: Path) -> Work:
    """The work with the paths of this stage's files changed from `part` to `place`."""

    def moved(files: Mapping[str, Artifact]) -> dict[str, Artifact]:
        own = {key: one.path.relative_to(part) for key, one in files.items() if part in one.path.parents}
        return {**files, **{key: dataclasses.replace(files[key], path=place / at) for key, at in own.items()}}

    variants = tuple(dataclasses.replace(v, files=moved(v.files)) for v in work.variants)
    return dataclasses.replace(work, variants=variants, artifacts=moved(work.artifacts))


def _logged(named: NamedStage, before: Work, after: Work) -> Work:
    """The work with the stage's own entry last in the log, under the recipe's name, with its declared facts.

    Entries of stages that ran inside this one stay, so that controls can repeat them; if the stage declares
    that it recovers, controls run the stage itself, and those entries would count twice.
    """
    facts, settings = Facts.of(named.stage), settings_of(named.stage)
    inner = list(after.log[len(before.log) :])
    words = inner[-1].words if inner else ()
    if inner and inner[-1].settings == settings:
        inner.pop()
    if facts.recovers:
        inner = []
    result = dataclasses.replace(after, log=(*before.log, *inner, Done(named.name, settings, words, facts)))
    return result if inner else result.marked(facts, before=before)


def _check_shrunk(named: NamedStage, before: Work, after: Work) -> None:
    """Refuses a user's own stage that declares `shrinks` and left as many parameters as before."""
    if not Facts.of(named.stage).shrinks or not before.variants:
        return
    old, new = (sum(p.numel() for p in work.model().parameters()) for work in (before, after))
    if new >= old:
        raise ModelError(
            f'The stage "{named.name}" declares that it shrinks the network, but the newest network has '
            f"{new:,} parameters; before the stage it had {old:,}.",
            "Return the smaller network, by work.with_model(...), or set shrinks = False in its class.",
        )
