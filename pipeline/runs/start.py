"""How a run starts: its directory, its workload and the first Work, from a recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...targets.errors import users_code
from ...targets.progress import Progress
from ..recipe import Recipe
from ..stage import is_users_own, source_of
from ..training.networks import NetworkFiles
from ..work import Work
from ..workload import load_workload, workload_source
from .cache import Finished, Run


@dataclass(frozen=True)
class Watcher:
    """What a run calls as it goes on: a stage started, how far it is, how it ended. By default nothing."""

    started: Callable[[str], None] = lambda name: None
    progress: Progress = lambda done, total, what: None
    ended: Callable[[Finished], None] = lambda finished: None


def prepared(recipe: Recipe, directory: Path, watcher: Watcher) -> tuple[Run, Work]:
    workload = load_workload(recipe.workload, recipe.path.parent)
    with users_code("fingerprint() was called"):
        fingerprint = str(workload.fingerprint())
    own = [source_of(stage.stage) for stage in recipe.stages if is_users_own(stage.name)]
    files = (workload_source(recipe.workload, recipe.path.parent), *own)
    name = recipe.workload.rpartition(":")[2]
    run_ = Run(directory, files, fingerprint, name, watcher.started, watcher.ended)
    networks = NetworkFiles()
    work = Work(workload, recipe.target, directory, recipe.seed, progress=watcher.progress, networks=networks)
    return run_, work
