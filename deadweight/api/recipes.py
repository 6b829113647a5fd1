"""Functions on recipes: a full run, a sweep, or the stage prune alone."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..pipeline.recipe import Recipe, SweepSettings, read_recipe
from ..pipeline.report.words import headline
from ..pipeline.runs.cache import Watcher, default_directory, locked, prepared
from ..pipeline.runs.check import Finding
from ..pipeline.runs.check import check as run_check
from ..pipeline.runs.prune_command import in_python, prune_alone, pruning, up_to_pruning
from ..pipeline.runs.run import run as run_recipe
from ..pipeline.runs.run import run_sweep
from ..pipeline.runs.summary import exit_code
from ..pipeline.stage import checked
from ..pipeline.workloads.starter import write_starter
from ..targets.errors import RecipeError, TargetError
from ..targets.remote.on_board import facts_of
from ..targets.remote.ssh import connected
from ..targets.target import with_facts
from .results import Checked, Pruned, Run, Sweep


def prune(
    what: str,
    *,
    ratio: float | None = None,
    parameters: float | None = None,
    mean: float | None = None,
    std: float | None = None,
    criterion: str | None = None,
    weights: Path | str | None = None,
    key: str = "",
    target: str | None = None,
    settings: Iterable[str] = (),
    out: Path | str | None = None,
    watcher: Watcher | None = None,
) -> Pruned:
    """Prune a network with the stage of a recipe, and report the cost of the cut, without fine-tuning.

    >>> import deadweight
    >>> made = deadweight.prune("workload.py:Small", ratio=0.5, out="half")
    >>> made.exit_code, made.cut.after.counts.parameters < made.cut.before.counts.parameters
    (0, True)

    Args:
        what: a workload, "file.py:Name", or a recipe with a stage prune.
        ratio: the share of each group's neurons to remove, 0 to 1.
        parameters: instead, the share of the network's parameters.
        mean, std: instead, remove neurons whose mean and standard deviation are both at or below these.
        criterion: ranks the neurons; None for "activation".
        weights: a checkpoint, .safetensors or .pt with only tensors; `key` names the state dict in a .pt.
        settings: more settings, as after `--set`.
        out: a folder for the files; None for runs/NAME-pruned.

    Raises:
        DeadweightError: no argument says how much to remove, or the network cannot be pruned.
    """
    chosen = {"ratio": ratio, "parameters": parameters, "mean": mean, "std": std, "criterion": criterion}
    wanted = {name: value for name, value in chosen.items() if value is not None}
    checkpoint = None if weights is None else Path(weights)
    recipe = pruning(what, wanted, [*settings, *_targeted((), target)], weights=checkpoint, key=key)
    of_recipe = recipe.path.suffix == ".toml"
    object_name = recipe.workload.partition("?")[0].rpartition(":")[2].lower()
    name = Path(what).stem if of_recipe else Path(object_name).stem
    folder = Path(out) if out is not None else Path("runs") / f"{name}-pruned"
    with contextlib.ExitStack() as held:
        if of_recipe:  # reuse the finished stages of a run
            directory = default_directory(recipe.path)
        else:
            directory = Path(held.enter_context(tempfile.TemporaryDirectory()))
        held.enter_context(locked(directory))
        work, stage = up_to_pruning(recipe, *prepared(recipe, directory, watcher or Watcher()))
        cut = prune_alone(work, stage, folder)
    score, trained = work.workload.score_name, weights is not None or of_recipe
    if cut.before is None or cut.after is None:
        return Pruned("nothing was removed by these settings", 1, cut, folder, score, trained)
    verdict = (
        f"{cut.before.counts.parameters:,} -> {cut.after.counts.parameters:,} parameters, "
        f"{score} {cut.before.score:.4f} -> {cut.after.score:.4f} before fine-tuning"
    )
    return Pruned(verdict, 0, cut, folder, score, trained, in_python(recipe, work, folder))


def init(
    model: str,
    data: str = "",
    task: str = "",
    *,
    target: str = "x86-cpu",
    size: int = 0,
    epochs: int = 10,
    out: Path | str = ".",
) -> tuple[Path, Path]:
    """Write a workload.py and a recipe.toml, with comments, for a network and its data; returns their paths.

    >>> import deadweight
    >>> written = deadweight.init("net.py:build", "net.py:loaders", "classification", out="own")
    >>> [path.name for path in written]
    ['workload.py', 'recipe.toml']

    Args:
        model: "file.py:function" that builds it, or a factory's name, e.g. "timm:resnet18?classes=10".
        data: "file.py:function" that returns the loaders, a folder of images, or an .npz file; "" for the
            network's own.
        task: classification, regression, segmentation, detection or language; "" for the network's own.
        size: the side of images in pixels; 0 for theirs, at most the network's own.
        epochs: of training; 0 for a network that comes trained.
        out: the folder; model and data are relative to it.

    Raises:
        DeadweightError: a file exists already, or there is no such network or task.
    """
    return write_starter(
        Path(out), model=model, data=data, task=task, target=target, size=size, epochs=epochs
    )


def check(
    what: str,
    *,
    settings: Iterable[str] = (),
    seen: Callable[[Finding], None] = lambda finding: None,
) -> Checked:
    """Try a recipe, or a workload, in seconds: every mistake with its place and its cure.

    >>> import deadweight
    >>> found = deadweight.check("recipe.toml")
    >>> found.exit_code, [one.where for one in found.findings if one.kind == "mistake"]
    (0, [])

    Args:
        what: a recipe, or a workload as a recipe names it.
        seen: called with each finding as it is made.
    """
    started = time.monotonic()
    findings = tuple(run_check(what, settings, seen))
    count = sum(one.kind == "mistake" for one in findings)
    plural = "s" if count > 1 else ""
    verdict = f"{count} mistake{plural}" if count else "no mistake was found"
    return Checked(f"{verdict}, {time.monotonic() - started:.1f} s", 2 if count else 0, findings)


def run(
    recipe: Path | str,
    *,
    settings: Iterable[str] = (),
    out: Path | str | None = None,
    target: str | None = None,
    on: str | None = None,
    runtime: str | None = None,
    precision: str | None = None,
    even_so: bool = False,
    watcher: Watcher | None = None,
) -> Run:
    """Run a recipe from training to the report; a killed run resumes.

    Where torchrun or srun started several processes, the first runs the recipe, and the others train with it
    and end here.

    >>> import deadweight
    >>> done = deadweight.run("recipe.toml", out="runs/example")
    >>> done.exit_code in (0, 1, 3), [row["name"] for row in done.report["rows"]]
    (True, ['original', 'pruned', 'tuned'])

    Args:
        settings: values over the recipe's own, e.g. ["prune.ratio=0.5", "seed=3"].
        out: the run's directory; None for runs/NAME.
        on: USER@HOST, to time the networks there; as engines, and scored as engines, where it has TensorRT.
        runtime, precision: there, as in `compare`.
        even_so: run on when a budget is known to be out of reach.

    Raises:
        DeadweightError: the recipe is wrong, or a stage failed; finished stages are kept.
    """
    there = {"on": on, "runtime": runtime, "precision": precision}
    named = [f"profile.{name}={json.dumps(value)}" for name, value in there.items() if value]
    chosen = [*_targeted(settings, target), *named]
    directory = Path(out) if out is not None else default_directory(Path(recipe))
    with _joined() as leads:
        if not leads:
            raise SystemExit(0)
        report = run_recipe(
            _for_its_board(Path(recipe), chosen), directory, watcher or Watcher(), even_so=even_so
        )
    return Run(headline(report), exit_code(report), report, directory)


def sweep(
    recipe: Path | str,
    *,
    over: Mapping[str, Sequence[Any]] | None = None,
    score_drop: float = 0.005,
    ray: str | None = None,
    settings: Iterable[str] = (),
    out: Path | str | None = None,
    target: str | None = None,
    watcher: Watcher | None = None,
) -> Sweep:
    """Try many settings on the validation split, and choose the smallest network that keeps the score.

    >>> import deadweight
    >>> found = deadweight.sweep("swept.toml", out="runs/example")  # its [sweep] has two settings
    >>> len(found.swept.sweep["rows"]), found.exit_code
    (2, 0)

    Args:
        over: values by setting; None for the recipe's own [sweep].
        score_drop: how much worse than the original the chosen network may score, with `over`.
        ray: HOST:PORT of a Ray cluster that runs the trials; "auto" for this machine's.

    Raises:
        DeadweightError: there is nothing to try, or every setting was refused.
    """
    read = read_recipe(Path(recipe), _targeted(settings, target))
    values = {name: tuple(each) for name, each in (over or {}).items()}
    given = {"over": values, "score_drop": score_drop}
    where = ("executor", "address", "cpus", "gpus", "board")
    own = {name: value for name, value in read.values.get("sweep", {}).items() if name in where}
    chosen = checked(SweepSettings, {**own, **given}, "sweep") if values else read.sweep
    if chosen is None:
        cure = "Give values by setting, e.g. --over prune.mean=0.02,0.1,0.5."
        raise RecipeError(f"{recipe} has no [sweep], and no values to try were given.", cure)
    if ray is not None:
        chosen = replace(chosen, executor="ray", address="" if ray == "auto" else ray)
    directory = Path(out) if out is not None else default_directory(Path(recipe))
    swept = run_sweep(read, chosen, directory, watcher or Watcher())
    verdict = ", ".join(swept.chosen) or f"No setting keeps the score within {chosen.score_drop}."
    return Sweep(verdict, 0, swept, chosen.score_drop, directory)


def _joined() -> contextlib.AbstractContextManager[bool]:
    """Whether this process runs the command, where a launcher may have started several."""
    if not {"TORCHELASTIC_RUN_ID", "SLURM_STEP_ID"} & set(os.environ):
        return contextlib.nullcontext(True)
    from ..pipeline.training.worker import joined

    return joined()


def _targeted(settings: Iterable[str], target: str | None) -> list[str]:
    return [*settings, *([f"target={json.dumps(target)}"] if target else [])]


def _for_its_board(path: Path, settings: Sequence[str]) -> Recipe:
    """The recipe; its target has the software of the board where a stage measures."""
    recipe = read_recipe(path, settings)
    place = next((on for one in recipe.stages if (on := getattr(one.stage, "on", ""))), "")
    if not place:
        return recipe
    with connected(place) as board:  # now, not after an hour of training
        facts = facts_of(board)
    if not recipe.target.runtime.builds:
        return recipe
    chosen = recipe.values.get("jetpack") is not None or "@" in str(recipe.values.get("target"))
    if not chosen:
        with contextlib.suppress(TargetError):  # of a release that no table has, only what was read is known
            recipe = read_recipe(path, [*settings, f'jetpack="{facts["board"]["jetpack"]}"'])
    return replace(recipe, target=with_facts(recipe.target, facts, chosen=chosen))
