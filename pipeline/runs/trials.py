"""The trials of a sweep, and their timings, as tasks that another process or machine can run.

A trial leaves finished stages behind, in the run's directory or the store; who reads the same trial later
finds each stage finished. The key of a stage is that of the machine whose sweep it is: a worker has the same
versions, or refuses.
"""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ...targets.artifact import read_json
from ...targets.errors import DeadweightError, ModelError, RecipeError
from ...targets.target import Target
from ...targets.timing import measurement
from ..executors.executor import Ended
from ..recipe import Recipe, parse_recipe
from ..stage import NamedStage, is_users_own
from ..stages.controls import Controls
from ..stages.evaluate import Evaluate
from ..stages.export import Export
from ..stages.profile import Profile
from ..work import Facts, Variant, Work
from ..workload import Workload
from .cache import Run, Watcher, load, made_by, prepared
from .store import fetched

EVENTS = 24


@dataclass(frozen=True)
class Made:
    """What a setting made: its work, the exported network, its controls, and all scores on validation."""

    work: Work
    final: Variant
    controls: tuple[Variant, ...]
    scores: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Trial:
    """A setting with one seed, as a task.

    Attributes:
        values: of the recipe with the setting and the seed.
        target: with what was read from the board, which is in the stages' keys; so are `threads`.
        fingerprint: of the data.
        versions: of what results depend on, at the machine whose sweep it is.
        controls: whether the setting's controls are made too.
        stages: how many of the trial's stages run; None for all, with export and scores.
    """

    name: str
    values: Mapping[str, Any]
    path: Path
    directory: Path
    target: Target
    threads: int
    fingerprint: str
    versions: Mapping[str, str]
    controls: bool = False
    stages: int | None = None

    def moved(self, folder: Path, directory: Path) -> Trial:
        return dataclasses.replace(self, path=folder / self.path.name, directory=directory)

    def __call__(self) -> Ended:
        return _ended(self.name, self.make)

    def make(self) -> tuple[Recipe, Run, Work, Made | None]:
        """Runs the stages, or reads them.

        Raises:
            RecipeError: this machine has other versions or other data than the sweep's.
        """
        torch.set_num_threads(self.threads)
        _check_versions(self.versions)
        recipe = dataclasses.replace(parse_recipe(self.values, self.path), target=self.target)
        loaded = _loaded(self.path, recipe.workload)
        run, bare = prepared(recipe, self.directory, Watcher(), loaded, check=False)  # it is there, or lost
        if run.fingerprint != self.fingerprint:
            raise RecipeError(
                f"{socket.gethostname()} has other data than the sweep: their fingerprint is "
                f"{run.fingerprint[:12]}, not {self.fingerprint[:12]}.",
                "Put the same data there, at the same path, or name them by a URL: --data s3://...",
            )
        run.versions = dict(self.versions)
        work = bare
        for stage in trial_stages(recipe)[: self.stages]:
            work = run.step(stage, work)
        made = (
            finished(self.name, recipe, run, bare, work, controls=self.controls)
            if self.stages is None
            else None
        )
        return recipe, run, bare, made


@dataclass(frozen=True)
class Timing:
    """Some trials timed together with the original, where nothing else runs."""

    name: str
    trials: tuple[Trial, ...]
    event_s: float

    def moved(self, folder: Path, directory: Path) -> Timing:
        return dataclasses.replace(self, trials=tuple(one.moved(folder, directory) for one in self.trials))

    def __call__(self) -> Ended:
        return _ended(self.name, self._time)

    def _time(self) -> None:
        made = [one.make() for one in self.trials]
        recipe, run, bare, _ = made[0]
        timed(recipe, run, bare, [one[3] for one in made if one[3] is not None], self.event_s)


def finished(name: str, recipe: Recipe, run: Run, bare: Work, work: Work, *, controls: bool) -> Made:
    """Export, controls and validation scores after a trial's stages; `bare` is before the first."""
    newest = run.step(export_of(recipe), dataclasses.replace(work, variants=(work.latest(),)))
    controlled = work
    for stage in controls_of(recipe) if controls else []:
        controlled = run.step(stage, work)
    final = dataclasses.replace(newest.variants[0], name=name)
    others = tuple(one for one in controlled.variants if one.role == "control")
    chain = [variant for variant in work.variants if variant.role == "chain"]
    cut = [variant for variant in chain if not variant.recovered][-1]
    named = [
        dataclasses.replace(cut, name="before tuning"),
        dataclasses.replace(final, name="final"),
        *others,
    ]
    return Made(work, final, others, scores_of(run, bare, named))


def scores_of(run: Run, bare: Work, variants: Sequence[Variant]) -> dict[str, Mapping[str, Any]]:
    """Scores on validation, and sizes, by network."""
    step = NamedStage("evaluate", Evaluate(split="validation"))
    work = run.step(step, dataclasses.replace(bare, variants=tuple(variants)))
    found: dict[str, Mapping[str, Any]] = read_json(work.artifacts["scores_validation"].checked())["scores"]
    return found


def original_of(recipe: Recipe, run: Run, bare: Work, made: Made) -> Variant:
    """The original network, exported."""
    first = dataclasses.replace(bare, variants=(made.work.variant("original"),))
    return run.step(export_of(recipe), first).variants[0]


def timed(
    recipe: Recipe, run: Run, bare: Work, made: Sequence[Made], event_s: float
) -> dict[str, measurement.Measurement]:
    """The original and all trials timed together; empty if this machine is not the target."""
    variants = (original_of(recipe, run, bare, made[0]), *(one.final for one in made))
    profile = Profile(events=EVENTS, event_s=event_s, memory=False, layers=False)
    work = run.step(NamedStage("profile", profile), dataclasses.replace(bare, variants=variants))
    return (
        measurement.load(work.artifacts["measurements"].checked()) if "measurements" in work.artifacts else {}
    )


def trial_stages(recipe: Recipe) -> list[NamedStage]:
    """The stages of a recipe that each trial runs.

    Stages that need or make ONNX files run after the sweep, controls too; so does a user's own stage after
    the first of them, unless it declares that it changes the network.
    """
    stages, exported = [], False
    for named in recipe.stages:
        facts = Facts.of(named.stage)
        if facts.reads_onnx or facts.writes_onnx:
            exported = True
        elif not isinstance(named.stage, Controls) and (
            not exported or facts.shrinks or facts.recovers or not is_users_own(named.name)
        ):
            stages.append(named)
    return stages


def controls_of(recipe: Recipe) -> list[NamedStage]:
    """The recipe's own stage controls, or a default one."""
    own = [stage for stage in recipe.stages if isinstance(stage.stage, Controls)]
    return own[:1] or [NamedStage("controls", Controls())]


def export_of(recipe: Recipe) -> NamedStage:
    facts = [(named, Facts.of(named.stage)) for named in recipe.stages]
    own = [named for named, declared in facts if declared.writes_onnx and not declared.reads_onnx]
    return own[0] if own else NamedStage("export", Export())


@lru_cache(maxsize=1)  # a process tries many settings on the same data
def _loaded(path: Path, workload: str) -> tuple[Workload, str]:
    recipe_folder = path.parent
    if url := os.environ.get("DEADWEIGHT_DATA_URL"):
        os.environ["DEADWEIGHT_DATA"] = str(fetched(url))
    return load(workload, recipe_folder)


def _check_versions(wanted: Mapping[str, str]) -> None:
    """Refuses another Python or library than that of the sweep; another processor is only recorded."""
    here = made_by()
    for name in sorted({*wanted, *here} - {"cpu"}):
        if wanted.get(name) != here.get(name):
            raise RecipeError(
                f"{socket.gethostname()} has {name} {here.get(name, '(none)')}, and the machine that started "
                f"the sweep has {wanted.get(name, '(none)')}.",
                "Install the same version on each node: results of different ones are not comparable.",
            )


def _ended(name: str, do: Any) -> Ended:
    host = socket.gethostname()
    try:
        do()
    except ModelError as error:
        return Ended(words=error.what)
    except DeadweightError as error:
        return Ended(error=type(error)(f"{name}, on {host}: {error.what}", error.cure))
    except (MemoryError, torch.OutOfMemoryError) as error:
        what = f"{name}, on {host}: memory ran out: {str(error).partition(chr(10))[0] or 'MemoryError'}."
        cure = (
            "Use smaller batches, or fewer trials at a time: a higher cpus, or fewer processes, in [sweep]."
        )
        return Ended(error=ModelError(what, f"{cure} Finished stages are kept."))
    except SystemExit:  # SIGTERM; a pool would go on with the next setting
        os._exit(1)
    return Ended()
