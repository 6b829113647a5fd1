"""Runs the settings of a sweep in several processes; each writes finished stages into the run's cache.

The processes return only files. Afterwards the sweep goes through all settings itself and finds their stages
finished, so its result does not depend on the number of processes, and a killed sweep resumes.
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
    """Runs all trials, given by seed; a refused trial raises its error again in the sweep.

    Args:
        last: the stages that end a trial: the export of the newest network, and the controls.

    Raises:
        ModelError: a process was killed.
    """
    total = sum(map(len, by_seed))
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:

        def submitted(recipe: Recipe) -> Future[None]:
            return pool.submit(
                _run_trial,
                recipe.values,
                recipe.path,
                run.directory,
                threads=torch.get_num_threads(),
                last=tuple(last),
            )

        try:
            # The first setting of a seed makes the stages that all share; the others wait for it.
            futures = [submitted(recipe) for recipes in zip(*by_seed, strict=True) for recipe in recipes]
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                start.progress(done, total, f"sweep: {done} of {total} trials")
        except BrokenProcessPool as error:
            raise ModelError(
                "A process that tried settings of the sweep was killed.",
                "Run the same command again: finished stages are kept. "
                "If memory ran out, use fewer processes.",
            ) from error


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


def _run_trial(
    values: Mapping[str, Any],
    path: Path,
    directory: Path,
    *,
    threads: int,
    last: Sequence[NamedStage],
) -> None:
    from .start import Watcher, prepared

    torch.set_num_threads(threads)  # part of the cache key
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
        return  # the sweep will raise the same error
