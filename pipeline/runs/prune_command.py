"""`deadweight prune`: prunes a network, scores it on the validation split and exports it; no fine-tuning."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from ...export.onnx_graph.counts import Counts, count
from ...export.onnx_graph.external_data import copy, drop_stale
from ...targets.artifact import unfinished, write_json, writing
from ...targets.errors import RecipeError
from ..pruning.plan import Plan
from ..pruning.saved import EXAMPLE, PLAN, WEIGHTS
from ..quantization.candidates import validated
from ..recipe import Recipe, parse_recipe, read_recipe
from ..stages.export import Export
from ..stages.prune import Prune
from ..stages.statistics import Statistics
from ..work import Work
from ..workload import built_model, example_batch
from .cache import Run

BEFORE, AFTER = "original.onnx", "pruned.onnx"
BUDGETS = {"ratio", "ratios", "parameters", "mean", "std"}
SAVED = "pruned"  # the folder for load_pruned


@dataclass(frozen=True)
class Figures:
    """A network's score on the validation split, and the figures of its ONNX file."""

    score: float
    counts: Counts


@dataclass(frozen=True)
class Cut:
    """The result of pruning a network.

    Attributes:
        before, after: None if nothing was removed; then nothing was written.
        words: the stages' messages.
    """

    plan: Plan
    before: Figures | None
    after: Figures | None
    words: tuple[str, ...]


def pruning(
    what: str, wanted: Mapping[str, Any], settings: Iterable[str], *, weights: Path | None, key: str = ""
) -> Recipe:
    """The recipe of `deadweight prune`; its last stage is "prune".

    Args:
        what: a recipe, which is used up to its first stage "prune", or a workload, "file.py:name".
        wanted: settings of the stage; a budget replaces the recipe's own.
        settings: as after `--set`.
        weights: a checkpoint, instead of the recipe's stages that make a trained network.
    """
    path, start = Path(what), [{"stage": "statistics"}]
    if weights is not None:
        start = [{"stage": "load", "path": str(weights), "key": key}, *start]
    if path.suffix == ".toml":
        recipe = read_recipe(path)
        values = {name: value for name, value in recipe.values.items() if name != "sweep"}
        at = next((at for at, named in enumerate(recipe.stages) if isinstance(named.stage, Prune)), None)
        if at is None:
            raise RecipeError(
                f"{path} has no stage prune; it has {', '.join(named.name for named in recipe.stages)}.",
                "Add one, or name the workload instead.",
            )
        earlier = values["stages"][:at] if weights is None else start
        dropped = BUDGETS if BUDGETS & set(wanted) else set()
        kept = {name: value for name, value in values["stages"][at].items() if name not in dropped}
        return parse_recipe({**values, "stages": [*earlier, {**kept, **wanted}]}, path).set(settings)
    file = what.partition("?")[0].rpartition(":")[0].rpartition(":")[2]
    if file.endswith(".py") and not Path(file).is_file():
        raise RecipeError(f"The workload's file {file} does not exist.", "Check the path.")
    if not BUDGETS & set(wanted):
        raise RecipeError(
            "No option says how much to remove.",
            "Give --ratio, e.g. 0.5, or --parameters, e.g. 0.74, or both --mean and --std.",
        )
    values = {"workload": what, "stages": [*start, {"stage": "prune", **wanted}]}
    return parse_recipe(values, Path("deadweight prune")).set(settings)


def up_to_pruning(recipe: Recipe, run: Run, work: Work) -> tuple[Work, Prune]:
    """The input of the stage "prune", and that stage."""
    stage = cast(Prune, recipe.stages[-1].stage)
    if isinstance(recipe.stages[0].stage, Statistics):
        work = as_built(work)
    for named in recipe.stages[:-1]:
        work = run.step(named, work)
    return work, stage


def in_python(recipe: Recipe, work: Work, folder: Path) -> tuple[str, str]:
    """The two lines by which Python loads the pruned network, from any directory."""
    place, _, name = recipe.workload.rpartition(":")
    file = (recipe.path.parent / place).resolve() if place.endswith(".py") else place
    spec = getattr(work.workload, "spec", "") or f"{file}:{name}"
    return (
        "from deadweight import load_pruned, load_workload",
        f'model = load_pruned(load_workload("{spec}").build_model, "{(folder / SAVED).resolve()}")',
    )


def as_built(work: Work) -> Work:
    """The work with the network "original" as `build_model()` returns it, with the work's seed."""
    with torch.random.fork_rng(devices=[]):
        model = built_model(work.workload, seed=work.seed)
    return work.with_model("original", model.eval())


def prune_alone(work: Work, stage: Prune, folder: Path) -> Cut:
    """Prunes the newest network and writes original.onnx, pruned.onnx, prune.json and pruned/ into a folder.

    Files are written atomically, and none before all checks have passed.

    Raises:
        DeadweightError: from the stages "statistics", "prune" and "export"; the folder cannot be written.
    """
    with unfinished(folder) as part:
        return _pruned(dataclasses.replace(work, directory=part), stage, folder)


def _pruned(work: Work, stage: Prune, folder: Path) -> Cut:
    old = dataclasses.replace(work.latest(), name="original")
    cut = stage(work)
    plan = cut.plan(cut.latest())
    assert plan is not None  # the stage saved one
    words = cut.log[-1].words[1:]  # the first are the widths
    if not plan.removed or not any(plan.removed.values()):
        return Cut(plan, None, None, words)
    done = Export()(dataclasses.replace(cut, variants=(old, cut.latest())))
    paths = [done.variant(name).path("onnx") for name in (old.name, "pruned")]
    sizes = {name: tuple(value.shape) for name, value in example_batch(work.workload).items()}
    before, after = (Figures(validated(done, path), count(path, sizes=sizes)) for path in paths)
    result = Cut(plan, before, after, (*words, *done.log[-1].words))
    for path, name in zip(paths, (BEFORE, AFTER), strict=True):
        copy(path, folder / name)
    drop_stale(folder)
    for name in (WEIGHTS, EXAMPLE, PLAN):  # the plan has the hashes of the others: it is last
        with writing(folder / SAVED / name) as beside:
            shutil.copyfile(done.latest().path("plan").with_name(name), beside)
    write_json(folder / "prune.json", _record(result, work, stage))
    return result


def _record(cut: Cut, work: Work, stage: Prune) -> dict[str, object]:
    return {
        "schema": 1,
        "settings": dataclasses.asdict(stage),
        "target": work.target.name,
        "seed": work.seed,
        "score_name": work.workload.score_name,
        "split": "validation",
        "tuned": False,
        "before": dataclasses.asdict(cut.before) if cut.before else None,
        "after": dataclasses.asdict(cut.after) if cut.after else None,
        "widths": {name: dataclasses.asdict(width) for name, width in cut.plan.widths.items()},
        "form": cut.plan.form,
        "words": list(cut.words),
    }
