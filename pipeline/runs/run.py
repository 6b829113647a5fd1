"""A full run: the sweep if the recipe has one, the stages, one evaluation on the test split, the report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from ...export.onnx_graph.external_data import copy, drop_stale
from ...targets.artifact import read_json, write_json
from ...targets.errors import RecipeError
from ..loggers.log import Entry, logs
from ..recipe import Recipe, SweepSettings, check_order
from ..report.page import write_report, write_sweep
from ..report.schema import Report
from ..stage import NamedStage
from ..stages.evaluate import Evaluate
from ..work import Facts, Work
from .cache import Watcher, locked, made_by, prepared
from .summary import summarize
from .sweep import Swept, require_choice, sweep


def run(recipe: Recipe, directory: Path, watcher: Watcher, *, even_so: bool = False) -> Report:
    """Runs or resumes a recipe; writes report and networks. After an error, finished stages are kept.

    Args:
        even_so: whether it goes on when a budget is out of reach.
    """
    check_order(recipe)
    first = _first(recipe, directory)
    with locked(directory), logs(recipe.log, first) as log:
        run_, work = prepared(recipe, directory, watcher)
        swept = None
        if recipe.sweep is not None:
            swept = sweep(recipe, recipe.sweep, run_, work)
            recipe = recipe.set(require_choice(swept, recipe.sweep))
            run_.finished.clear()  # the chosen setting's stages follow again, from the cache
        for step, stage in enumerate([*recipe.stages, NamedStage("evaluate", Evaluate())], start=1):
            work = run_.step(stage, work)
            done = first.of({f"{step}-{stage.name}": dataclasses.asdict(run_.finished[-1])})
            log.write(dataclasses.replace(done, step=step))
            if not even_so and step <= len(recipe.stages):
                refuse_out_of_reach(recipe, step - 1, work)
        report = summarize(recipe, work, run_, swept)
        report["words"] = [*report.get("words", []), *look_sentences(looks(directory, work))]
        deliver(work, directory)
        files = (directory / "report.json", _written(report, directory))
        done = first.of(_logged(report))
        log.write(dataclasses.replace(done, step=len(recipe.stages) + 2, status="finished", files=files))
        if log.remarks:
            report["words"] += log.remarks
            _written(report, directory)
        return report


def _first(recipe: Recipe, directory: Path) -> Entry:
    """The first entry of a log: the recipe. Its stages follow with all their settings; logs may be secret."""
    values = {name: value for name, value in recipe.values.items() if name not in ("stages", "log")}
    return Entry(directory.resolve().name, recipe.path.parent).of({"settings": values})


def _logged(report: Report) -> dict[str, Any]:
    """What a log keeps of a report: all but the lists of units and layers."""
    sweep = report.get("sweep")
    return {
        **{row["name"]: row for row in (*report["rows"], *report.get("controls", []))},
        "verdict": report["verdict"],
        "budgets": {budget["name"]: budget for budget in report.get("budgets", [])},
        "sweep": dict(enumerate(sweep["rows"] if sweep else [])),
        "remarks": "\n".join(report.get("words", [])),
        "settings": {"conditions": report["conditions"], "protocol": report["protocol"]},
    }


def _written(report: Report, directory: Path) -> Path:
    write_json(directory / "report.json", report)
    return write_report(directory)


def refuse_out_of_reach(recipe: Recipe, index: int, work: Work) -> None:
    """Stops after the last stage that shrinks the network, if its size already breaks a budget.

    Raises:
        RecipeError: a budget is out of reach.
    """
    limit, named = recipe.budgets.parameters_removed, recipe.stages[index]
    later = any(Facts.of(one.stage).shrinks is not False for one in recipe.stages[index + 1 :])
    if limit is None or not Facts.of(named.stage).shrinks or later:
        return
    removed = most_removed(work.model(work.variant("original")), work.model())
    if removed < limit:
        raise RecipeError(
            f'The budget parameters_removed = {limit:g} is out of reach: after the stage "{named.name}" '
            f"{removed:.1%} are removed, and no stage after it removes any.",
            "Remove more there (a higher ratio, less time, or align = false where alignment keeps groups "
            "whole), or lower the budget. --even-so runs the other stages all the same.",
        )


def most_removed(before: nn.Module, after: nn.Module) -> float:
    """The largest share of parameters that can be gone in a file: an export folds norms, but no weights."""
    shares = []
    for fewest in (0, 2):  # axes of the parameters that count
        old, new = (sum(p.numel() for p in one.parameters() if p.dim() >= fewest) for one in (before, after))
        shares.append(1 - new / max(old, 1))
    return max(shares)


def deliver(work: Work, directory: Path) -> None:
    """Copies the ONNX files of the chain, and only these, to networks/NAME.onnx.

    External weights of a network are copied too.
    """
    place = directory / "networks"
    kept = set()
    for variant in work.variants:
        if variant.role == "chain" and "onnx" in variant.files:
            path = place / f"{variant.name}.onnx"
            copy(variant.path("onnx"), path)
            kept.add(path)
    for stale in set(place.glob("*.onnx")) - kept:
        stale.unlink()
    if kept:
        drop_stale(place)


def run_sweep(recipe: Recipe, settings: SweepSettings, directory: Path, watcher: Watcher) -> Swept:
    """Sweeps a recipe; writes sweep.json, .csv and .html. After an error, finished stages are kept."""
    with locked(directory):
        run_, work = prepared(recipe, directory, watcher)
        swept = sweep(recipe, settings, run_, work)
        write_sweep(directory, swept.sweep, swept.scale, name=recipe.path.stem, made_by=made_by())
        return swept


def looks(directory: Path, work: Work) -> int:
    """Adds the test scores of `work` to test_looks.json; returns how many different ones it has.

    Scores that are there already, as after a resumed run, do not count again.
    """
    path = directory / "test_looks.json"
    seen = read_json(path)["scores"] if path.exists() else []
    now = work.artifacts["scores_test"].sha256
    if now not in seen:
        seen.append(now)
        write_json(path, {"scores": seen})
    return len(seen)


def look_sentences(count: int) -> list[str]:
    """Sentences for the report; none for the first evaluation."""
    if count < 2:
        return []
    return [
        f"The test split was evaluated {count} times in this directory, each time with other networks. "
        "Choices after the first evaluation were not blind."
    ]
