"""Optuna against the grid at equal trials, on five seeds: the hypervolume of what each found.

    python benchmarks/scale/search.py [--seeds 5] [--epochs 4]
    python benchmarks/scale/search.py --table

Both have 12 trials over the ratio and the criterion; the grid takes 4 x 3 values, Optuna (TPE) a range with
the same ends. The front is that of the score and the parameters kept; its
hypervolume is the area that it dominates, from score 0 and the whole network, of 1 at most. The score is that
of the validation split by which settings are chosen, and of the test split, which no choice has seen.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import nn

from benchmarks.common.record import append, recorded
from benchmarks.scale.small import RECIPE
from deadweight.pipeline.recipe import SweepSettings, read_recipe
from deadweight.pipeline.report.schema import SweepRow
from deadweight.pipeline.report.units import settings_text
from deadweight.pipeline.runs.cache import Watcher, prepared
from deadweight.pipeline.runs.search import search
from deadweight.pipeline.runs.seeds import paired
from deadweight.pipeline.training.predict import score_of, torch_predict
from deadweight.pipeline.work import Work
from deadweight.pipeline.workload import example_batch

RECORD = Path("runs") / "scale.jsonl"
SHARED = 2  # stages that all trials share
GRID: Mapping[str, Any] = {
    "prune.ratio": (0.35, 0.55, 0.75, 0.95),
    "prune.criterion": ("activation", "weight_l2", "random"),
}
SPACE: Mapping[str, Any] = {
    "prune.ratio": {"low": 0.35, "high": 0.95},
    "prune.criterion": ("activation", "weight_l2", "random"),
}


def hypervolume(points: Sequence[tuple[float, float]]) -> float:
    """The area dominated by points of (score, share of the parameters kept): high and low are better."""
    area, best = 0.0, 1.0
    for score, kept in sorted(points, reverse=True):
        if kept < best:
            area += score * (best - kept)
            best = kept
    return area


class Trials:
    """Trials without export and timing: the rows that a search sees, and the test scores beside."""

    def __init__(self, place: Path) -> None:
        self.recipe = read_recipe(place / "recipe.toml")
        self.run, work = prepared(self.recipe, place / "run", Watcher())
        for stage in self.recipe.stages[:SHARED]:
            work = self.run.step(stage, work)
        self.work = work
        self.parameters = sum(one.numel() for one in work.model().parameters())
        self.number = itertools.count()
        self.cuts: dict[str, Work] = {}
        self.test: dict[str, float] = {}

    def _after(self, settings: Mapping[str, Any], *, tuned: bool) -> tuple[nn.Module, float, int]:
        name = settings_text(settings)
        chosen = self.recipe.set(f"{key}={value!r}".replace("'", '"') for key, value in settings.items())
        prune, tuning = (one.stage for one in chosen.stages[SHARED:])
        place = self.run.directory / f"trial-{next(self.number)}"
        if name not in self.cuts:
            self.cuts[name] = prune(dataclasses.replace(self.work, directory=place))
        work = self.cuts[name]
        model = (tuning(dataclasses.replace(work, directory=place / "tuned")) if tuned else work).model()
        return model, self._score(model, "validation"), sum(one.numel() for one in model.parameters())

    def _score(self, model: nn.Module, split: str) -> float:
        workload = self.work.workload
        return score_of(workload, torch_predict(model, example_batch(workload)), split)

    def cut(self, over: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
        found = {name: self._after(settings, tuned=False) for name, settings in over.items()}
        return {name: (score, float(size)) for name, (_, score, size) in found.items()}

    def tried(self, over: Mapping[str, Mapping[str, Any]]) -> list[SweepRow]:
        rows: list[SweepRow] = []
        for name, settings in over.items():
            model, score, size = self._after(settings, tuned=True)
            self.test[name] = self._score(model, "test")
            rows.append(
                {
                    "settings": dict(settings),
                    "score": score,
                    "raw_score": None,
                    "score_change": None,
                    "parameters": size,
                    "parameters_removed": 1 - size / self.parameters,
                    "macs": None,
                    "file_bytes": None,
                    "speedup": None,
                    "chosen": False,
                    "split": "validation",
                }
            )
        return rows


def measure(seed: int, epochs: int) -> dict[str, Any]:
    row: dict[str, Any] = {"study": "search", "seed": seed, "epochs": epochs}
    grid = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        shutil.copy(Path(__file__).with_name("small.py"), place)
        (place / "recipe.toml").write_text(RECIPE.format(seed=seed, epochs=epochs))
        trials = Trials(place)
        settings = SweepSettings(over=SPACE, search="tpe", trials=len(grid))
        sought = search(settings, trials.tried, trials.cut, seed=seed, higher=True, at_once=1)
        found = {"grid": trials.tried({settings_text(one): one for one in grid}), "tpe": sought.rows}
        row["words"] = sought.words
        for name, rows in found.items():
            kept = [1 - one["parameters_removed"] for one in rows]
            test = [trials.test[settings_text(one["settings"])] for one in rows]
            row[name] = {
                "validation": hypervolume(
                    [(one["score"] or 0.0, share) for one, share in zip(rows, kept, strict=True)]
                ),
                "test": hypervolume(list(zip(test, kept, strict=True))),
                "tuned": len(rows),
            }
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--table", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for seed in range(0 if chosen.table else chosen.seeds):
        append(RECORD, found := measure(seed, chosen.epochs))
        print(found, flush=True)
    rows = [row for row in recorded(RECORD) if row["study"] == "search"]
    for split in ("validation", "test"):
        for row in rows:
            print(f"| {split} | {row['seed']} | {row['grid'][split]:.4f} | {row['tpe'][split]:.4f} |")
        by = paired([row["tpe"][split] - row["grid"][split] for row in rows])
        print(f"{split}: TPE - grid {by.mean:+.4f} ({by.low:+.4f} to {by.high:+.4f}), p {by.p}")


if __name__ == "__main__":
    main()
