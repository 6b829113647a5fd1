"""Reads and checks a recipe: the TOML file that names workload, target, budgets and stages.

The whole recipe is checked before anything runs: a misspelt key must not end an hour of training.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from pydantic import Field

from ..targets.board_file import read_toml, with_jetpack
from ..targets.budgets import Budgets
from ..targets.errors import RecipeError, meant, users_code, within
from ..targets.target import Target, load_target
from .stage import NamedStage, checked, files_read, make_stage, named_files
from .work import Facts

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


MOST_PROCESSES = 4 * (os.cpu_count() or 1)
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What torch, numpy and Python all take as a seed."""


@dataclass(frozen=True)
class SweepSettings:
    """The table `[sweep]` of a recipe: which settings are tried before the stages run, and how one is chosen.

    Attributes:
        over: values by setting, e.g. {"prune.mean" = [0.02, 0.1]}; all combinations are tried.
        score_drop: the sweep chooses the smallest network whose validation score is at most this much
            worse than the original's.
        seconds: time limit for timing all settings against the original, together.
        seeds: every setting is tried with each of these; empty: the recipe's own seed.
        processes: how many settings are tried at a time; on a cluster 1 stands for as many as fit.
        controls: whether each setting is also compared with random neurons and training from scratch.
        executor: what runs the trials, see `executors`: "pool", "ray", or your own, "module:function".
        address: of the executor's cluster; "": the one that runs on this machine, or a new one.
        cpus, gpus: of each trial; cpus are also its threads, 0: as many as torch has here.
        board: the resource that a timing has to itself, e.g. "orin-nano-8gb"; "": this machine.
        search: "grid" for all combinations, or "tpe": Optuna proposes `trials` settings. A range is then
            { low = 0.1, high = 0.9, log = false }.
        against: what a search trades the validation score for.
    """

    over: Mapping[str, tuple[Any, ...] | dict[str, Any]] = field(default_factory=dict)
    score_drop: Annotated[float, Field(ge=0)] = 0.0
    seconds: Annotated[float, Field(gt=0)] = 20.0
    seeds: tuple[Seed, ...] = ()
    processes: Annotated[int, Field(ge=1, le=MOST_PROCESSES)] = 1
    controls: bool = False
    executor: str = "pool"
    address: str = ""
    cpus: Annotated[int, Field(ge=0, le=1024)] = 0
    gpus: Annotated[float, Field(ge=0, le=64)] = 0.0
    board: str = ""
    search: Literal["grid", "tpe"] = "grid"
    trials: Annotated[int, Field(ge=1, le=100_000)] = 24
    against: Literal["parameters", "latency"] = "parameters"


@dataclass(frozen=True)
class StoreSettings:
    """The table `[store]` of a recipe: where finished stages are kept for other machines.

    Attributes:
        url: the folder, e.g. "file:///shared/runs", "s3://bucket/runs" or "ssh://user@host/runs".
        options: for fsspec's file system of that kind, e.g. {endpoint_url = "https://..."}.
    """

    url: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A recipe that was read and checked.

    Attributes:
        workload: "file.py:name", relative to the recipe, "package.module:name", or a factory's name; with the
            keys `data` and `task` as settings, see `workloads.named`.
        target: the board; in the TOML its name, or the path of the user's own .toml file.
        values: the TOML as it was read, with every `--set` applied.
        log: where the run is also written, see `loggers`.
    """

    path: Path
    workload: str
    target: Target
    seed: int
    budgets: Budgets
    stages: tuple[NamedStage, ...]
    sweep: SweepSettings | None
    values: Mapping[str, Any]
    log: tuple[str, ...] = ()
    store: StoreSettings | None = None

    def set(self, settings: Iterable[str]) -> Recipe:
        """This recipe with settings such as "prune.mean=0.1", "stages[2].mean=0.1" or "seed=3" replaced.

        Raises:
            RecipeError: a setting cannot be parsed, or names nothing in this recipe.
        """
        return parse_recipe(_replaced(self.values, settings), self.path)


def read_recipe(path: Path, settings: Iterable[str] = ()) -> Recipe:
    """Reads a recipe and applies `--set` values to it.

    Raises:
        RecipeError: the file is missing, is not TOML, or has an invalid key, value or order of stages.
    """
    return parse_recipe(_replaced(read_toml(path, RecipeError), settings), path)


def parse_recipe(values: Mapping[str, Any], path: Path) -> Recipe:
    """Checks every key, type, stage name and target of a recipe.

    Raises:
        RecipeError, TargetError: with the place in the recipe and the nearest name that exists.
    """

    @dataclass(frozen=True)
    class Top:
        workload: str
        data: str = ""
        task: str = ""
        target: str = "x86-cpu"
        jetpack: str | None = None
        seed: Seed = 0
        budgets: dict[str, Any] = field(default_factory=dict)
        stages: tuple[dict[str, Any], ...] = ()
        sweep: dict[str, Any] | None = None
        log: str | tuple[str, ...] = ()
        store: dict[str, Any] | None = None

    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # the user's own stages and criteria are beside the recipe
    top = checked(Top, values, path.name)
    if not top.stages:
        cure = 'Add at least one, e.g. [[stages]] with stage = "train".'
        raise RecipeError(f"{path.name} has no stages.", cure)
    with within(f"{path.name}, target"):
        name = with_jetpack(top.target, top.jetpack) or top.target
        target = load_target(path.parent / name if ".toml" in Path(name).name else name)
    budgets = checked(Budgets, top.budgets, f"{path.name}, budgets")
    stages = []
    for index, table in enumerate(top.stages):
        where, named = stage_of(table, index, path)
        budgeted = getattr(named.stage, "within", None)
        with within(where):
            stages.append(NamedStage(named.name, budgeted(budgets)) if budgeted else named)
            named_files(stages[-1].stage, "code")  # fails now if the user's own criterion does not exist
    sweep = None if top.sweep is None else checked(SweepSettings, top.sweep, f"{path.name}, sweep")
    store = None if top.store is None else checked(StoreSettings, top.store, f"{path.name}, store")
    log = (top.log,) if isinstance(top.log, str) else top.log
    more = urlencode({name: value for name in ("data", "task") if (value := getattr(top, name))}, safe="/:")
    workload = top.workload + (f"{'&' if '?' in top.workload else '?'}{more}" if more else "")
    return Recipe(path, workload, target, top.seed, budgets, tuple(stages), sweep, values, log, store)


def stage_of(table: Mapping[str, Any], index: int, path: Path) -> tuple[str, NamedStage]:
    """The place of a recipe's stage in words, and the stage from its table.

    Raises:
        RecipeError: it has no name, or a key or value that the stage does not take.
    """
    settings = dict(table)
    name = settings.pop("stage", None)
    if not isinstance(name, str):
        cure = 'Add e.g. stage = "prune".'
        raise RecipeError(f"{path.name}: stages[{index}] does not say which stage it is.", cure)
    where = f'{path.name}, stages[{index}] "{name}"'
    return where, NamedStage(name, make_stage(name, settings, where))


def check_stages(recipe: Recipe) -> None:
    """Runs each stage's own checks: of the stages before it, of the target, and of the files that it reads.

    Raises:
        RecipeError: the recipe cannot work.
    """
    for index, named in enumerate(recipe.stages):
        with within(f'{recipe.path.name}, stages[{index}] "{named.name}"'):
            files = files_read(named.stage, recipe.path.parent)
            for path in files:
                if not path.exists():
                    cure = "Check the path: it is relative to the recipe's folder."
                    raise RecipeError(f"{path} does not exist.", cure)
            given = (
                ("check", recipe.stages[:index]),
                ("check_target", recipe.target),
                ("check_files", files),
            )
            for method, value in given:
                with users_code(f"{method}() was called"):
                    getattr(named.stage, method, bool)(value)


def check_order(recipe: Recipe) -> None:
    """Checks that a stage that writes ONNX files precedes those that read them, and each stage.

    A sweep is exempt: it exports what it times. A user's own stage that does not declare `writes_onnx` is
    assumed to write ONNX files.

    Raises:
        RecipeError: the order cannot work.
        TargetError: what runs ONNX files for the target is not installed here.
    """
    check_stages(recipe)
    written = needs_runtime = False
    for index, named in enumerate(recipe.stages):
        facts = Facts.of(named.stage)
        if facts.reads_onnx and not written:
            raise RecipeError(
                f'{recipe.path.name}, stages[{index}] "{named.name}": it reads ONNX files, and no stage '
                "before it writes any of the newest network.",
                'Put the stage "export" before it.',
            )
        changed = facts.shrinks or facts.recovers or facts.trains
        written = facts.writes_onnx is not False or (written and not changed)
        needs_runtime = needs_runtime or bool(facts.reads_onnx or facts.writes_onnx)
    if needs_runtime:
        recipe.target.here.check_installed(recipe.path.name)
    asked = [name for name in ("ota_bytes", "max_gpu_fallbacks") if getattr(recipe.budgets, name) is not None]
    if asked and not written:
        raise RecipeError(
            f"The budget {asked[0]} needs an ONNX file, and no stage writes one.",
            'Add the stage "export".',
        )
    spends = [named for named in recipe.stages if getattr(named.stage, "energy_minutes", 0)]
    if recipe.budgets.energy_j is not None and not spends:
        raise RecipeError(
            "The budget energy_j is set, and no stage measures energy.",
            'Set energy_minutes in the stage "profile": docs/soak.md.',
        )


def parse_value(text: str) -> Any:
    """A value as TOML would read it; text that is not a TOML value is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def parse_over(texts: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    """The values of `--over prune.mean=0.02,0.1`, by setting; a RecipeError for text of another form."""
    over: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not values:
            cure = "Write it as name=value,value, e.g. prune.mean=0.02,0.1."
            raise RecipeError(f'"{text}" gives no values.', cure)
        over[name.strip()] = tuple(parse_value(value.strip()) for value in values.split(","))
    return over


def _replaced(values: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    tables = values.get("stages", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        cure = "Begin each stage with [[stages]], in two brackets."
        raise RecipeError("The stages are not a list of tables.", cure)
    result: dict[str, Any] = {**values, "stages": [dict(table) for table in tables]}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            cure = "Write it as name=value, e.g. --set prune.mean=0.1."
            raise RecipeError(f'"{setting}" sets nothing.', cure)
        place, _, name = key.strip().rpartition(".")
        _table(result, place, setting)[name] = parse_value(text.strip())
    return result


def _table(values: dict[str, Any], place: str, setting: str) -> dict[str, Any]:
    """The table that a setting is in: the recipe itself, one of its tables, or a stage."""
    if not place:
        return values
    if place in ("budgets", "store", "sweep"):
        if not isinstance(values.get(place, {}), dict):
            raise RecipeError(f"{place} is not a table.", f"Begin it with [{place}].")
        values[place] = dict(values.get(place, {}))
        found: dict[str, Any] = values[place]
        return found
    stages: list[dict[str, Any]] = values["stages"]
    named = {f"stages[{index}]": table for index, table in enumerate(stages)}
    named.update({str(table.get("stage")): table for table in reversed(stages)})
    if place not in named:
        raise RecipeError(
            f'"{setting}": this recipe has no stage "{place}".',
            meant(place, named, f"It has: {', '.join(sorted(named))}."),
        )
    return named[place]
