"""Optuna against the grid at equal trials, on five seeds: the hypervolume of what each found.

    python benchmarks/scale/search.py [--task signs] [--seeds 5]
    python benchmarks/scale/search.py --table

Both are sweeps of 12 trials on one trained original a seed. The grid takes 4 x 3 values, Optuna (TPE) ranges
with the same ends. The task "digits" trades the score for parameters, "signs" for the measured time: the
search times each trial beside the original as it comes, and at the end all networks of both are timed
together, so that both are judged by the same times. The hypervolume is the area that a front dominates, from
score 0 and the whole original, of 1 at most. The score is that of the validation split by which settings are
chosen, and of the test split, which no choice has seen. What is on record is not measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from benchmarks.common.grid import EXAMPLES
from benchmarks.common.record import append, recorded
from benchmarks.scale.small import RECIPE
from deadweight.pipeline.recipe import SweepSettings, read_recipe
from deadweight.pipeline.report.units import settings_text
from deadweight.pipeline.runs.cache import Watcher, prepared
from deadweight.pipeline.runs.run import run_sweep
from deadweight.pipeline.runs.seeds import paired
from deadweight.pipeline.runs.sweep import speedup
from deadweight.pipeline.runs.trials import Made, finished, timed, trial_stages
from deadweight.pipeline.training.predict import score_of, torch_predict
from deadweight.pipeline.workload import example_batch

RECORD = Path("runs") / "scale.jsonl"
TRIALS, SECONDS, EVENT_S = 12, 6.0, 0.01
CRITERIA = ("activation", "weight_l2", "random")


@dataclass(frozen=True)
class Task:
    """What is searched: the settings of the recipe that are fixed, and those that are tried."""

    fixed: Sequence[str]
    grid: Mapping[str, Any]
    ranges: Mapping[str, Any]
    against: Any


TASKS = {
    "digits": Task(
        (),
        {"prune.ratio": (0.35, 0.55, 0.75, 0.95), "prune.criterion": CRITERIA},
        {"prune.ratio": {"low": 0.35, "high": 0.95}},
        "parameters",
    ),
    "signs": Task(
        (
            f'workload="{EXAMPLES}/signs/signs.py:Quick"',
            "train.epochs=4",
            "prune.align=true",
            "prune.norms=8",
            "finetune.epochs=1",
        ),
        {"prune.ratio": (0.2, 0.4, 0.6, 0.8), "finetune.learning_rate": (5e-4, 2e-3, 8e-3)},
        {
            "prune.ratio": {"low": 0.2, "high": 0.8},
            "finetune.learning_rate": {"low": 5e-4, "high": 8e-3, "log": True},
        },
        "latency",
    ),
}


def hypervolume(points: Sequence[tuple[float, float]]) -> float:
    """The area dominated by points of (score, share of the original kept): high and low are better."""
    area, best = 0.0, 1.0
    for score, kept in sorted(points, reverse=True):
        if kept < best:
            area += score * (best - kept)
            best = kept
    return area


def measure(task: Task, seed: int) -> dict[str, Any]:
    timing = task.against == "latency"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "recipe.toml").write_text(RECIPE.format(seed=seed, epochs=4))
        shutil.copy(Path(__file__).with_name("small.py"), place)
        recipe = read_recipe(place / "recipe.toml", task.fixed)
        tried = SweepSettings(over=task.grid, seconds=0.0)
        sought = dataclasses.replace(
            tried,
            over={**task.grid, **task.ranges},
            search="tpe",
            trials=TRIALS,
            against=task.against,
            seconds=SECONDS * timing,
        )
        found = {
            name: run_sweep(recipe, settings, place / "run", Watcher()).sweep
            for name, settings in (("grid", tried), ("tpe", sought))
        }
        run, bare = prepared(recipe, place / "run", Watcher())
        made, test = dict[str, Made](), dict[str, float]()
        rows = {settings_text(row["settings"]): row for one in found.values() for row in one["rows"]}
        for name, row in rows.items():  # all stages are read
            chosen = recipe.set(
                f"{key}={value!r}".replace("'", '"') for key, value in row["settings"].items()
            )
            work = bare
            for stage in trial_stages(chosen):
                work = run.step(stage, work)
            made[name] = finished(name, chosen, run, bare, work, controls=False)
            predict = torch_predict(work.model(), example_batch(work.workload))
            test[name] = score_of(work.workload, predict, "test")
        kept = {name: 1 - row["parameters_removed"] for name, row in rows.items()}
        more: dict[str, Any] = {}
        if timing:
            measured = timed(recipe, run, bare, [*made.values()], EVENT_S)
            ratios = {name: speedup(measured["original"], measured[name]) for name in made}
            kept = {name: 1 / one["ratio"] for name, one in ratios.items()}
            more = {"ratios": ratios, "load": os.getloadavg()[0]}
    points: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, one in found.items():
        own = [(settings_text(row["settings"]), row["score"] or 0.0) for row in one["rows"]]
        points[name] = {
            "validation": [(score, kept[text]) for text, score in own],
            "test": [(test[text], kept[text]) for text, _ in own],
        }
    return {"seed": seed, **more, "words": found["tpe"].get("words", []), **points}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", choices=TASKS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--table", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    tasks = [chosen.task] if chosen.task else [*TASKS]
    known = [(row.get("task"), row.get("seed")) for row in recorded(RECORD)]
    for task in tasks if not chosen.table else ():
        for seed in range(chosen.seeds):
            if (task, seed) not in known:
                append(RECORD, {"study": "search", "task": task, **measure(TASKS[task], seed)})
                print(task, seed, flush=True)
    for task in tasks:
        rows = [row for row in recorded(RECORD) if row.get("task") == task]
        for split in ("validation", "test") if len(rows) > 1 else ():
            pairs = [(hypervolume(row["grid"][split]), hypervolume(row["tpe"][split])) for row in rows]
            for row, (grid, tpe) in zip(rows, pairs, strict=True):
                tuned = len(row["tpe"][split])
                print(f"| {task} | {split} | {row['seed']} | {grid:.4f} | {tpe:.4f} | {tuned} tuned |")
            grid, tpe = (sum(values) / len(values) for values in zip(*pairs, strict=True))
            by = paired([tpe - grid for grid, tpe in pairs])
            print(
                f"{task}, {split}: grid {grid:.4f}, TPE {tpe:.4f}, "
                f"TPE - grid {by.mean:+.4f} ({by.low:+.4f} to {by.high:+.4f}), p {by.p}"
            )


if __name__ == "__main__":
    main()
