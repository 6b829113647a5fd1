"""The sweep: tries many settings of one recipe on the validation split and chooses one.

Every setting runs through the recipe's own stages, with the same cache, so the chosen one is already made
when the chain runs. All networks are then timed together with the original, in one process.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from ...targets.artifact import read_json
from ...targets.errors import DeadweightError, ModelError, RecipeError
from ...targets.progress import Progress
from ...targets.target import Target
from ...targets.timing import measurement
from ...targets.timing.judge import Judgement, judge
from ..recipe import Recipe, SweepSettings, check_stages, parse_recipe
from ..report.schema import Outcome, Speedup, Sweep, SweepRow
from ..report.sweep_words import sweep_sentences
from ..report.units import ScoreScale, settings_text
from ..stage import NamedStage, is_users_own
from ..stages.controls import Controls
from ..stages.evaluate import Evaluate
from ..stages.export import Export
from ..stages.profile import Profile
from ..training.worker import exit_with_parent
from ..work import Facts, Variant, Work
from .cache import Run, Watcher, prepared
from .seeds import Tried, mark_front, merged

EVENTS = 24
STEPS = 100  # of the progress bar, for each trial


@dataclass(frozen=True)
class Swept:
    """The result of a sweep: the rows, the chosen settings, and the settings that were refused."""

    sweep: Sweep
    chosen: tuple[str, ...]
    refused: tuple[str, ...]
    scale: ScoreScale


@dataclass(frozen=True)
class _Trial:
    name: str
    settings: Mapping[str, Any]
    work: Work
    final: Variant
    controls: tuple[Variant, ...] = ()


def sweep(recipe: Recipe, settings: SweepSettings, run: Run, start: Work) -> Swept:
    """Tries every combination of `settings.over` and chooses the smallest network within the score drop.

    Raises:
        RecipeError: there is nothing to try, or a name is not a setting of the recipe.
        ModelError: every combination was refused, or none keeps the score within the drop.
    """
    seeds = settings.seeds or (recipe.seed,)
    recipes = {seed: recipe.set([f"seed={seed}"]) for seed in seeds}
    for named in _controls(recipe, settings):
        cast(Controls, named.stage).check(trial_stages(recipe))
    if settings.processes > 1:
        for seed in seeds:
            _combinations(recipes[seed], settings.over)  # raises before processes are started
        warm(
            [list(_combinations(one, settings.over).values()) for one in recipes.values()],
            run,
            start,
            processes=settings.processes,
            last=[_export(recipe), *_controls(recipe, settings)],
        )
    refused: list[str] = []
    tried: dict[str, list[Tried]] = {}
    for seed in seeds:
        begun = dataclasses.replace(start, seed=seed)
        for name, one in _sweep_seed(recipes[seed], settings, run, begun, refused, timed=seed == seeds[0]):
            tried.setdefault(name, []).append(one)
    rows = [merged(of_seeds) for of_seeds in tried.values() if len(of_seeds) == len(seeds)]
    if not rows:
        raise ModelError(f"Every setting was refused; the first: {refused[0]}", "Try gentler settings.")
    sign = 1 if start.workload.higher_is_better else -1
    mark_front(rows, sign)
    within = [row for row in rows if sign * (row["score_change"] or 0.0) >= -settings.score_drop - 1e-12]
    chosen: tuple[str, ...] = ()
    if within:
        best = min(within, key=lambda row: (row["parameters"], -sign * (row["score"] or 0.0)))
        best["chosen"] = True
        chosen = tuple(f"{name}={_toml(value)}" for name, value in best["settings"].items())
    table: Sweep = {"settings": list(settings.over), "rows": rows}
    higher, scores = start.workload.higher_is_better, [row["score"] for row in rows]
    scale = ScoreScale.of(start.workload.score_name, higher_is_better=higher, scores=scores)
    if words := sweep_sentences(table, scale, score_drop=settings.score_drop):
        table["words"] = words
    return Swept(table, chosen, tuple(dict.fromkeys(refused)), scale)


def _sweep_seed(
    recipe: Recipe, settings: SweepSettings, run: Run, start: Work, refused: list[str], *, timed: bool
) -> Iterator[tuple[str, Tried]]:
    trials, not_tried = _trials(recipe, settings, run, start)
    refused += not_tried
    if not trials:
        return
    first = trials[0].work.variant("original")
    original = run.step(_export(recipe), dataclasses.replace(start, variants=(first,))).variants[0]
    scores = _scores(run, start, original, trials)
    speedups = _speedups(run, start, original, trials, settings.seconds) if timed else {}
    whole = scores["original"]
    for trial in trials:
        found, raw = scores[trial.name], scores[f"{trial.name}, before tuning"]
        row: SweepRow = {
            "settings": dict(trial.settings),
            "score": found["score"],
            "raw_score": raw["score"],
            "score_change": found["score"] - whole["score"],
            "parameters": found["parameters"],
            "parameters_removed": 1 - found["parameters"] / whole["parameters"],
            "macs": found["macs"],
            "file_bytes": found["file_bytes"],
            "speedup": speedups.get(trial.name),
            "chosen": False,
            "split": "validation",
        }
        controls = {one.name: scores[f"{trial.name}, {one.name}"]["score"] for one in trial.controls}
        yield trial.name, Tried(row, controls)


def require_choice(swept: Swept, settings: SweepSettings) -> tuple[str, ...]:
    """The chosen settings; a ModelError if none keeps the validation score within the drop."""
    if not swept.chosen:
        changes = [row["score_change"] for row in swept.sweep["rows"]]
        raise ModelError(
            f"No setting of the sweep keeps the validation score within {settings.score_drop}: "
            f"the changes are {', '.join(f'{change:+.4f}' for change in changes if change is not None)}.",
            "Try gentler settings in [sweep] over, or allow a larger score_drop.",
        )
    return swept.chosen


def _combinations(recipe: Recipe, over: Mapping[str, Sequence[Any]]) -> dict[str, Recipe]:
    if not over or not all(over.values()):
        cure = "Give values, e.g. --over prune.mean=0.02,0.1,0.5."
        raise RecipeError("The sweep has nothing to try.", cure)
    _check_reached(recipe, over)
    combinations = [dict(zip(over, values, strict=True)) for values in itertools.product(*over.values())]
    recipes = {
        settings_text(each): recipe.set(f"{name}={_toml(value)}" for name, value in each.items())
        for each in combinations
    }
    for one in recipes.values():
        check_stages(one)
    return recipes


def _trials(
    recipe: Recipe, settings: SweepSettings, run: Run, start: Work
) -> tuple[list[_Trial], tuple[str, ...]]:
    recipes = _combinations(recipe, settings.over)
    shared = _shared(list(recipes.values()))
    for stage in shared:
        start = run.step(stage, start)
    quiet = dataclasses.replace(run, started=lambda name: None, ended=lambda finished: None)
    trials, refused = [], []
    for index, (name, tried) in enumerate(recipes.items()):
        work, steps = start, trial_stages(tried)[len(shared) :]
        what, count = f"sweep {index + 1} of {len(recipes)}, {name}", len(steps) + 1  # and the export
        try:
            for at, stage in enumerate(steps):
                part = _part(
                    start.progress, what, begin=index + at / count, width=1 / count, trials=len(recipes)
                )
                work = quiet.step(stage, dataclasses.replace(work, progress=part))
            newest = quiet.step(_export(recipe), dataclasses.replace(work, variants=(work.latest(),)))
            controlled = work
            for stage in _controls(recipe, settings):
                controlled = quiet.step(stage, work)
        except ModelError as error:
            refused.append(f"{name}: {error.what}")
            continue
        controls = [one for one in controlled.variants if one.role == "control"]
        values = {key: _setting(tried, key) for key in settings.over}
        final = dataclasses.replace(newest.variants[0], name=name)
        trials.append(_Trial(name, values, work, final, tuple(controls)))
    return trials, tuple(refused)


def _setting(recipe: Recipe, name: str) -> Any:
    place, _, key = name.rpartition(".")
    named = {f"stages[{at}]": stage for at, stage in enumerate(recipe.stages)}
    named |= {stage.name: stage for stage in reversed(recipe.stages)}
    return getattr(named[place].stage, key)


def _controls(recipe: Recipe, settings: SweepSettings) -> list[NamedStage]:
    """The recipe's own stage controls, or a default one if the sweep asks for controls."""
    own = [stage for stage in recipe.stages if isinstance(stage.stage, Controls)]
    return (own[:1] or [NamedStage("controls", Controls())]) if settings.controls else []


def _check_reached(recipe: Recipe, over: Mapping[str, Sequence[Any]]) -> None:
    stages = {f"stages[{at}]": stage.name for at, stage in enumerate(recipe.stages)}
    reached = {stage.name for stage in trial_stages(recipe)}
    for name in over:
        place = name.rpartition(".")[0]
        if stages.get(place, place) not in reached:
            raise RecipeError(
                f'"{name}" cannot be swept: a trial ends before its stage.',
                f"Sweep settings of {', '.join(sorted(reached))}.",
            )


def _shared(recipes: Sequence[Recipe]) -> list[NamedStage]:
    """The first stages, which all settings share: they run once, with their own progress."""
    columns = zip(*map(trial_stages, recipes), strict=True)
    same = itertools.takewhile(lambda column: all(stage == column[0] for stage in column), columns)
    return [column[0] for column in same]


def _part(progress: Progress, what: str, *, begin: float, width: float, trials: int) -> Progress:
    """Maps the progress of one stage of one trial to that of the sweep."""
    return lambda done, total, _: progress(
        round(STEPS * (begin + width * done / max(total, 1))), STEPS * trials, what
    )


def _export(recipe: Recipe) -> NamedStage:
    facts = [(named, Facts.of(named.stage)) for named in recipe.stages]
    own = [named for named, declared in facts if declared.writes_onnx and not declared.reads_onnx]
    return own[0] if own else NamedStage("export", Export())


def _scores(run: Run, start: Work, original: Variant, trials: Sequence[_Trial]) -> dict[str, dict[str, Any]]:
    """Score and size of the original, and of every trial before and after fine-tuning."""
    variants = [original]
    for trial in trials:
        chain = [variant for variant in trial.work.variants if variant.role == "chain"]
        cut = [variant for variant in chain if not variant.recovered][-1]
        variants += [dataclasses.replace(cut, name=f"{trial.name}, before tuning"), trial.final]
        variants += [dataclasses.replace(one, name=f"{trial.name}, {one.name}") for one in trial.controls]
    step = NamedStage("evaluate", Evaluate(split="validation"))
    work = run.step(step, dataclasses.replace(start, variants=tuple(variants)))
    found: dict[str, dict[str, Any]] = read_json(work.artifacts["scores_validation"].checked())["scores"]
    return found


def _speedups(
    run: Run, start: Work, original: Variant, trials: Sequence[_Trial], seconds: float
) -> dict[str, Speedup]:
    """Each trial's speed-up over the original, timed together; empty if this machine is not the target."""
    variants = [original, *(trial.final for trial in trials)]
    event_s = seconds / EVENTS / len(variants)
    profile = Profile(events=EVENTS, event_s=event_s, memory=False, layers=False)
    work = run.step(NamedStage("profile", profile), dataclasses.replace(start, variants=tuple(variants)))
    if "measurements" not in work.artifacts:
        return {}
    measured = measurement.load(work.artifacts["measurements"].checked())
    return {trial.name: speedup(measured["original"], measured[trial.name]) for trial in trials}


def speedup(baseline: measurement.Measurement, candidate: measurement.Measurement) -> Speedup:
    found = judge(baseline, candidate)
    low, high = bounds(found)
    return {"outcome": cast(Outcome, found.outcome), "ratio": found.ratio, "low": low, "high": high}


def bounds(judgement: Judgement) -> tuple[float | None, float | None]:
    """The interval, or None twice if the events were too few for one."""
    return (judgement.low, judgement.high) if math.isfinite(judgement.high) else (None, None)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)


def warm(
    by_seed: Sequence[Sequence[Recipe]], run: Run, start: Work, *, processes: int, last: Sequence[NamedStage]
) -> None:
    """Runs all trials, given by seed; a refused trial raises its error again in the sweep.

    Args:
        last: the stages that end a trial: the export of the newest network, and the controls.

    Raises:
        ModelError: a process was killed.
    """
    total = sum(map(len, by_seed))
    # Threads and target, with what was read from the board, are in the cache key.
    shared = run.directory, start.target, torch.get_num_threads(), tuple(last)
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawned, _trying, (os.getpid(),)) as pool:

        def submitted(recipe: Recipe) -> Future[None]:
            return pool.submit(_run_trial, recipe.values, recipe.path, *shared)

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
        except BaseException:  # a signal too: nobody waits for the others
            for process in multiprocessing.active_children():
                process.terminate()
            pool.shutdown(cancel_futures=True)
            raise


def _trying(parent: int) -> None:
    """Ends this process with its parent, and by SIGTERM as by an exception: half-written files go too."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    threading.Thread(target=exit_with_parent, args=(parent,), daemon=True).start()


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
    values: Any, path: Path, directory: Path, target: Target, threads: int, last: Sequence[NamedStage]
) -> None:
    torch.set_num_threads(threads)
    try:
        recipe = dataclasses.replace(parse_recipe(values, path), target=target)
        run, work = prepared(recipe, directory, Watcher())
        for stage in trial_stages(recipe):
            work = run.step(stage, work)
        export, *controls = last
        run.step(export, dataclasses.replace(work, variants=(work.latest(),)))
        for stage in controls:
            run.step(stage, work)
    except DeadweightError:
        return  # the sweep will raise the same error
    except SystemExit:  # SIGTERM; the pool would go on with the next setting
        os._exit(1)
