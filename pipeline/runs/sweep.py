"""The sweep: tries many settings of one recipe on the validation split and chooses one.

Every setting runs through the recipe's own stages, with the same cache, so the chosen one is already made
when the chain runs. An executor may run the trials elsewhere (`executors`); the sweep then reads what they
kept. All networks are timed together with the original, where nothing else runs.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
import torch

from ...targets.errors import ModelError, RecipeError
from ...targets.progress import Progress, silent
from ...targets.timing import measurement
from ...targets.timing.judge import Judgement, judge
from ..budget.timer import Conditions
from ..executors.executor import Ended, Executor, Place, executor_named
from ..recipe import Recipe, SweepSettings, check_stages
from ..report.schema import Outcome, Speedup, Sweep, SweepRow
from ..report.sweep_words import sweep_sentences
from ..report.units import ScoreScale, settings_text
from ..stage import NamedStage
from ..stages.controls import Controls
from ..work import Facts, Work
from .cache import Run, made_by
from .search import search
from .seeds import Tried, mark_front, merged
from .trials import (
    EVENTS,
    Made,
    Timing,
    Trial,
    controls_of,
    finished,
    original_of,
    scores_of,
    timed,
    trial_stages,
)

STEPS = 100  # of the progress bar, for each trial


@dataclass(frozen=True)
class Swept:
    """The result of a sweep: the rows, the chosen settings, and the settings that were refused."""

    sweep: Sweep
    chosen: tuple[str, ...]
    refused: tuple[str, ...]
    scale: ScoreScale


def sweep(recipe: Recipe, settings: SweepSettings, run: Run, start: Work) -> Swept:
    """Tries every combination of `settings.over` and chooses the smallest network within the score drop.

    Raises:
        RecipeError: there is nothing to try, or a name is not a setting of the recipe.
        ModelError: every combination was refused, or none keeps the score within the drop.
    """
    for named in controls_of(recipe) if settings.controls else []:
        cast(Controls, named.stage).check(trial_stages(recipe))
    _check_over(recipe, settings.over)
    grid = _combinations(recipe, settings.over) if settings.search == "grid" else None
    if settings.cpus:
        torch.set_num_threads(settings.cpus)  # as those of a worker: threads are in the stages' keys
    place = Place(
        recipe.path.parent,
        run.directory,
        run.store is not None,
        settings.processes,
        settings.cpus or torch.get_num_threads(),
        settings.gpus,
        settings.board,
        settings.address,
    )
    with ExitStack() as held:
        if run.store is not None:
            same = [recipe.values, dataclasses.asdict(settings)["over"], run.fingerprint]
            held.enter_context(run.store.driven(json.dumps(same, sort_keys=True, default=str)))
        executor = held.enter_context(executor_named(settings.executor)(place))
        trying = _Trying(recipe, settings, run, start, executor)
        rows = trying.rows(grid, settings.seconds) if grid is not None else trying.searched()
    if not rows:
        raise ModelError(
            f"Every setting was refused; the first: {trying.refused[0]}", "Try gentler settings."
        )
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
    if words := [*sweep_sentences(table, scale, score_drop=settings.score_drop), *trying.words]:
        table["words"] = words
    return Swept(table, chosen, tuple(dict.fromkeys(trying.refused)), scale)


@dataclass
class _Trying:
    """Tries settings with every seed; `refused` and `words` grow with each call of `rows`."""

    recipe: Recipe
    settings: SweepSettings
    run: Run
    start: Work
    executor: Executor
    refused: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def rows(self, over: Mapping[str, Mapping[str, Any]], seconds: float) -> list[SweepRow]:
        """A row for each setting, by its name, that was not refused; timed for so long in all."""
        seeds = self.settings.seeds or (self.recipe.seed,)
        recipes = {seed: _set(self.recipe.set([f"seed={seed}"]), over) for seed in seeds}
        elsewhere, refused = self._elsewhere(recipes)
        self.refused += refused.values()
        tried: dict[str, list[Tried]] = {}
        for seed, of_seed in recipes.items():
            kept = {name: one for name, one in of_seed.items() if name not in refused}
            begun = dataclasses.replace(self.start, seed=seed)
            run = dataclasses.replace(self.run, only_kept=elsewhere)
            for name, one in self._seed(kept, over, run, begun, seconds if seed == seeds[0] else 0.0):
                tried.setdefault(name, []).append(one)
        return [merged(of_seeds) for of_seeds in tried.values() if len(of_seeds) == len(seeds)]

    def searched(self) -> list[SweepRow]:
        """The rows of the settings that a search proposed, timed as they come or all together at the end."""
        seconds, timed = self.settings.seconds, self.settings.against == "latency"
        stages = trial_stages(self.recipe)
        cut = max((at for at, one in enumerate(stages, start=1) if Facts.of(one.stage).shrinks), default=0)
        trains = any(Facts.of(one.stage).recovers for one in stages[cut:])
        found = search(
            self.settings,
            lambda over: self.rows(over, timed * seconds * len(over) / self.settings.trials),
            partial(self._cut, cut) if trains else None,
            seed=self.recipe.seed,
            higher=self.start.workload.higher_is_better,
            at_once=self.executor.at_once,
        )
        self.words.append(found.words)
        every = {settings_text(row["settings"]): row["settings"] for row in found.rows}
        return found.rows if timed or not every else self.rows(every, seconds)

    def _cut(self, stages: int, over: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
        """Validation score and parameters of settings after so many stages; of the first seed."""
        seed = (self.settings.seeds or (self.recipe.seed,))[0]
        recipes = _set(self.recipe.set([f"seed={seed}"]), over)
        ended = self._ran([self._trial(name, one, stages) for name, one in recipes.items()])
        quiet = dataclasses.replace(self.run, only_kept=bool(ended), started=_silent, ended=_silent)
        begun, found = dataclasses.replace(self.start, seed=seed, progress=silent), {}
        words = [one.words for one in ended] or [""] * len(recipes)
        for (name, recipe), refused in zip(recipes.items(), words, strict=True):
            try:
                if refused:
                    raise ModelError(refused, "")
                work = begun
                for stage in trial_stages(recipe)[:stages]:
                    work = quiet.step(stage, work)
            except ModelError as error:
                self.refused.append(f"{name}: {error.what}")
                continue
            here = dataclasses.replace(quiet, only_kept=False)
            (one,) = scores_of(here, begun, [dataclasses.replace(work.latest(), name="cut")]).values()
            found[name] = (one["score"], float(one["parameters"]))
        return found

    def _ran(self, tasks: Sequence[Trial]) -> list[Ended]:
        """How the tasks ended, none if the executor leaves them to this process."""
        ended = self.executor.run(tasks, self._count) if tasks else []
        for one in ended:
            if one.error is not None:
                raise one.error
        return ended

    def _elsewhere(self, recipes: Mapping[int, Mapping[str, Recipe]]) -> tuple[bool, dict[str, str]]:
        """Whether the executor ran the trials, and why it refused which settings."""
        shared = min(len(_shared(list(of_seed.values()))) for of_seed in recipes.values())
        firsts = [
            self._trial(f"seed {seed}", next(iter(of_seed.values())), shared)
            for seed, of_seed in recipes.items()
        ]
        trials = [
            self._trial(name if len(recipes) == 1 else f"{name}, seed {seed}", one)
            for seed, of_seed in recipes.items()
            for name, one in of_seed.items()
        ]
        names = [name for of_seed in recipes.values() for name in of_seed]
        self._ran(firsts if shared and len(trials) > len(firsts) else [])
        ended = self._ran(trials)
        refused = {name: f"{name}: {one.words}" for name, one in zip(names, ended, strict=False) if one.words}
        return bool(ended), refused

    def _count(self, done: int, total: int) -> None:
        self.start.progress(done, total, f"sweep: {done} of {total} trials")

    def _trial(self, name: str, recipe: Recipe, stages: int | None = None) -> Trial:
        return Trial(
            name,
            recipe.values,
            recipe.path,
            self.run.directory,
            self.start.target,
            torch.get_num_threads(),
            self.run.fingerprint,
            made_by(),
            self.settings.controls,
            stages,
        )

    def _seed(
        self,
        recipes: Mapping[str, Recipe],
        over: Mapping[str, Mapping[str, Any]],
        run: Run,
        start: Work,
        seconds: float,
    ) -> Iterator[tuple[str, Tried]]:
        """Runs the settings with one seed, or reads what was run, and times them."""
        made = dict(self._made(recipes, run, start))
        if not made:
            return
        first = next(iter(recipes.values()))
        here = dataclasses.replace(run, only_kept=False)
        original = original_of(first, here, start, next(iter(made.values())))
        whole = scores_of(here, start, [original])["original"]
        speedups = self._speedups(recipes, run, start, made, seconds) if seconds else {}
        for name, one in made.items():
            found, raw = one.scores["final"], one.scores["before tuning"]
            row: SweepRow = {
                "settings": dict(over[name]),
                "score": found["score"],
                "raw_score": raw["score"],
                "score_change": found["score"] - whole["score"],
                "parameters": found["parameters"],
                "parameters_removed": 1 - found["parameters"] / whole["parameters"],
                "macs": found["macs"],
                "file_bytes": found["file_bytes"],
                "speedup": speedups.get(name),
                "chosen": False,
                "split": "validation",
            }
            yield name, Tried(row, {each.name: one.scores[each.name]["score"] for each in one.controls})

    def _made(self, recipes: Mapping[str, Recipe], run: Run, start: Work) -> Iterator[tuple[str, Made]]:
        shared, bare = _shared(list(recipes.values())), start
        for stage in shared:
            start = run.step(stage, start)
        quiet = dataclasses.replace(run, started=_silent, ended=_silent)
        for index, (name, tried) in enumerate(recipes.items()):
            work, steps = start, trial_stages(tried)[len(shared) :]
            what, count = f"sweep {index + 1} of {len(recipes)}, {name}", len(steps) + 1  # and the export
            try:
                for at, stage in enumerate(steps):
                    part = _part(
                        start.progress, what, begin=index + at / count, width=1 / count, trials=len(recipes)
                    )
                    work = quiet.step(stage, dataclasses.replace(work, progress=part))
                work = dataclasses.replace(work, progress=silent)
                yield name, finished(name, tried, quiet, bare, work, controls=self.settings.controls)
            except ModelError as error:
                self.refused.append(f"{name}: {error.what}")

    def _speedups(
        self, recipes: Mapping[str, Recipe], run: Run, start: Work, made: Mapping[str, Made], seconds: float
    ) -> dict[str, Speedup]:
        """Each trial's speed-up over the original; empty if nothing here or there is the target.

        Several boards share the trials out; each times the original too, so a speed-up is within a board.
        """
        parts = [list(made)[at :: self.executor.boards] for at in range(self.executor.boards)]
        parts = [names for names in parts if names]
        tasks, event_s = [], seconds / EVENTS / (len(made) + len(parts))
        for at, names in enumerate(parts, start=1):
            trials = tuple(self._trial(name, recipes[name]) for name in names)
            tasks.append(Timing(f"timing {at} of {len(parts)}", trials, event_s))
        ended = self.executor.run(
            tasks, lambda done, total: start.progress(done, total, "timing"), alone=True
        )
        for one in ended:
            if one.error is not None or one.words:
                raise one.error or ModelError(one.words, "Look at the board.")
        here = dataclasses.replace(run, only_kept=bool(ended))
        first = next(iter(recipes.values()))
        found = [timed(first, here, start, [made[name] for name in names], event_s) for names in parts]
        if len(found) > 1 and all(found):
            self.words.append(_unlike([one["original"] for one in found], self.settings.board))
        return {
            name: speedup(one["original"], one[name])
            for one, names in zip(found, parts, strict=True)
            for name in names
            if one
        }


def _silent(what: object) -> None:
    """Says nothing of a stage of a trial."""


def _unlike(originals: Sequence[measurement.Measurement], board: str) -> str:
    """The A/A across boards: how far the same network's times are apart; their events are no pairs."""
    from scipy import stats  # takes a second to import

    first, *others = (np.log(np.median(one.block_s("wall"), axis=1)) for one in originals)
    far = max(others, key=lambda one: abs(one.mean() - first.mean()))
    found = stats.ttest_ind(far, first, equal_var=False).confidence_interval(1 - 0.05 / len(others))
    ratio, low, high = np.exp([far.mean() - first.mean(), found.low, found.high])
    states = [Conditions.of(one) for one in originals]
    unlike = {said for one in states[1:] for said in states[0].differences(one, "on one", "on another")}
    return (
        f"{len(originals)} boards {board} shared the timings. A/A: the original's times on them differ by "
        f"a factor of at most {ratio:.3f} ({low:.3f} to {high:.3f}). Speed-ups are each within one board."
        + (f" The boards were not in the same state: {'; '.join(sorted(unlike))}." if unlike else "")
    )


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


def _combinations(recipe: Recipe, over: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """All combinations of values, by their names; a RecipeError for one that the recipe cannot have."""
    if ranges := [name for name, values in over.items() if isinstance(values, Mapping)]:
        cure = 'Give a list of values, or let Optuna choose: search = "tpe" in [sweep].'
        raise RecipeError(f'"{ranges[0]}" is a range, and a grid has no steps for it.', cure)
    combinations = [dict(zip(over, values, strict=True)) for values in itertools.product(*over.values())]
    named = {settings_text(each): each for each in combinations}
    for one in _set(recipe, named).values():
        check_stages(one)
    return named


def _set(recipe: Recipe, over: Mapping[str, Mapping[str, Any]]) -> dict[str, Recipe]:
    return {
        name: recipe.set(f"{key}={_toml(value)}" for key, value in each.items())
        for name, each in over.items()
    }


def _check_over(recipe: Recipe, over: Mapping[str, Any]) -> None:
    if not over or not all(over.values()):
        cure = "Give values, e.g. --over prune.mean=0.02,0.1,0.5."
        raise RecipeError("The sweep has nothing to try.", cure)
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
