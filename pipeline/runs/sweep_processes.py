"""The settings of a sweep in several processes: each runs a recipe's stages into the run's own cache.

Nothing comes back from them but files. When they are done the sweep goes through all settings itself and
finds their stages finished, so what it reports is the same with one process or with many, and a sweep that
was killed goes on where its stages were.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from ...targets.errors import DeadweightError, ModelError
from ..recipe import NamedStage, Recipe, parse_recipe
from ..stage import is_users_own
from ..stages.controls import Controls
from ..work import Facts, Work
from .cache import Run


def warm(
    by_seed: Sequence[Sequence[Recipe]],
    run: Run,
    start: Work,
    *,
    processes: int,
    last: Sequence[NamedStage],
) -> None:
    """Runs all trials, those of each seed given apart; what a trial is refused for is met again by the sweep.

    Args:
        last: the stages that end a trial: the export, of the newest network alone, and the controls.

    Raises:
        ModelError: a process was killed.
    """
    total = sum(map(len, by_seed))
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:

        def submitted(recipe: Recipe) -> Future[None]:
            return pool.submit(
                _tried,
                recipe.values,
                recipe.path,
                run.directory,
                threads=torch.get_num_threads(),
                last=tuple(last),
            )

        try:
            # What the settings of a seed have in common is made by the first of them; the others wait for it.
            futures = [submitted(recipe) for recipes in zip(*by_seed, strict=True) for recipe in recipes]
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                start.progress(done, total, f"sweep: {done} of {total} trials")
        except BrokenProcessPool as error:
            raise ModelError(
                "A process that tried settings of the sweep was killed.",
                "Run the same command again: finished stages are kept. "
                "If memory ran out, take fewer processes.",
            ) from error


def trial_stages(recipe: Recipe) -> list[NamedStage]:
    """The stages of a recipe that each trial runs.

    Those that need or make ONNX files come after the sweep, controls too; so does a user's own stage behind
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


def _tried(
    values: Mapping[str, Any],
    path: Path,
    directory: Path,
    *,
    threads: int,
    last: Sequence[NamedStage],
) -> None:
    from .start import Watcher, prepared

    torch.set_num_threads(threads)  # it is part of the cache's key
    watcher = Watcher(lambda name: None, lambda done, total, what: None, lambda finished: None)
    try:
        recipe = parse_recipe(values, path)
        run, work = prepared(recipe, directory, watcher)
        for stage in trial_stages(recipe):
            work = run.step(stage, work)
        export, *controls = last
        run.step(export, dataclasses.replace(work, variants=(work.latest(),)))
        for stage in controls:
            run.step(stage, work)
    except DeadweightError:
        return  # the sweep comes to the same point and says it
