"""The stage contract: a frozen dataclass whose fields are its settings and whose call maps Work to Work.

A recipe names a stage by its file ("prune" is the class Prune of pipeline/stages/prune.py) or by the dotted
path of the user's own class. There is no registry.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from ..targets.errors import RecipeError, WorkloadError, meant, meant_and, users_code, within
from .work import Work


class Stage(Protocol):
    """One step of a recipe.

    A stage declares what it does by class attributes, e.g. `shrinks: ClassVar[bool] = True`. Controls, sweeps
    and the check of a recipe's order use these facts, never a stage's name:

    - `shrinks`: the newest network has fewer parameters afterwards. Controls are compared from here on.
    - `recovers`: it trains the newest network, or changes it without choosing neurons. Controls run through
      this stage too. A stage that both removes neurons and trains declares both, and has no random control.
      One that does so by running other stages inside declares `shrinks` alone: the log has their facts.
    - `trains`: it makes the network "original" by training `build_model()`; its settings are a `Schedule`'s.
    - `reads_onnx`, `writes_onnx`: it needs, or makes, ONNX files. A recipe in the wrong order is refused.
    - `long`: it times, searches, or trains several networks. `deadweight check` tries only its settings.

    A user's own stage that declares neither `shrinks` nor `recovers` runs, but `controls` refuses its recipe:
    a comparison that does not know what the stage did would mislead.

    Optional methods: `reads()` returns paths of data, relative to the recipe's folder, and `code()` paths of
    code that the result depends on besides settings and input; they enter the cache key. `within(budgets)`
    returns the stage with what the recipe's budgets ask for. `check(earlier)`
    gets the recipe's stages before this one, `check_target(target)` its target, and `check_files(paths)` the
    files of `reads`; they raise a RecipeError for what cannot work, before anything runs. A stage that
    shrinks may offer `cut(model, plan, groups, work) -> (model, words)`: the random control is then cut in
    the same way.
    """

    def __call__(self, work: Work) -> Work:
        """The work with what this stage adds; files go to `work.directory`."""
        ...


@dataclass(frozen=True)
class NamedStage:
    """A stage and its name in the recipe."""

    name: str
    stage: Stage


def is_users_own(name: str) -> bool:
    """Whether a stage is not built in: it is then named by a dotted path."""
    return bool({".", ":"} & set(name))


def stage_class(name: str) -> type[Stage]:
    """The class behind a stage's name in a recipe; a RecipeError if no stage has this name."""
    if is_users_own(name):
        place, _, attribute = name.replace(":", ".").rpartition(".")
        with users_code(f'the stage "{name}" was imported'):
            found = getattr(importlib.import_module(place), attribute)
    else:
        found = _own_stage(name)
    # `callable(found)` is true of every class; the instances must be callable.
    if not (isinstance(found, type) and dataclasses.is_dataclass(found) and "__call__" in dir(found)):
        cure = "A stage is a frozen dataclass with __call__(self, work) -> Work."
        raise RecipeError(f'"{name}" is not a stage.', cure)
    return cast("type[Stage]", found)


def stage_names() -> list[str]:
    """The names of the built-in stages: the files of the folder stages/."""
    files = (Path(__file__).parent / "stages").glob("*.py")
    return sorted(path.stem for path in files if path.name != "__init__.py")


def files_with(function: str, folder: Path) -> list[str]:
    """The names of the files of a folder that define a function: what such a file is, it declares by it."""
    files = sorted(folder.glob("*.py"))
    return [path.stem for path in files if f"\ndef {function}(" in path.read_text("utf-8")]


def make_stage(name: str, settings: Mapping[str, Any], where: str) -> Stage:
    """A stage made from its settings, each checked.

    Args:
        where: the stage's place, for messages, e.g. 'recipe.toml, stages[2] "prune"'.

    Raises:
        RecipeError: a setting is unknown or of the wrong type.
    """
    with within(where):
        kind = stage_class(name)
    return cast(Stage, checked(kind, settings, where))


def settings_of(stage: Stage) -> dict[str, Any]:
    return dataclasses.asdict(cast(Any, stage))


def run_stage(name: str, stage: Stage, work: Work) -> Work:
    """The work after a stage, run by the name that the recipe gives it.

    Raises:
        WorkloadError: a user's own stage failed, or returned something else; the message names the line.
    """
    if not is_users_own(name):
        return stage(work)
    try:
        with users_code(f'the stage "{name}" ran'):
            result: object = stage(work)
    except SystemExit as error:
        raise WorkloadError(
            f'The stage "{name}" ended the process.', "Raise an exception instead."
        ) from error
    if not isinstance(result, Work):
        raise WorkloadError(
            f'The stage "{name}" returned {type(result).__name__}, not a Work.',
            "Return the work that it was given, or what work.with_model(...) returns.",
        )
    return result


def beside(path: Path, folder: Path) -> Path:
    """A path that a recipe in this folder names.

    Until version 0.4, a file of the working directory is found too.
    """
    found = folder / path
    return path if path.exists() and not found.exists() else found


def files_read(stage: Stage, folder: Path) -> list[Path]:
    """The files that a stage of a recipe in this folder reads."""
    return [beside(path, folder) for path in named_files(stage, "reads")]


def named_files(stage: Stage, method: str) -> list[Path]:
    """The paths that a stage's optional `reads` or `code` returns; empty without such a method.

    Raises:
        WorkloadError: it is a user's own and failed, or returned something else.
    """
    with users_code(f"{type(stage).__name__}.{method}() was called"):
        paths: Any = getattr(stage, method, list)()
    if not isinstance(paths, (list, tuple)) or not all(isinstance(path, Path) for path in paths):
        raise WorkloadError(
            f"{type(stage).__name__}.{method}() returned {paths!r}.", "Return a list of pathlib.Path."
        )
    return list(paths)


def source_of(stage: Stage) -> Path:
    return Path(inspect.getfile(type(stage)))


def checked(kind: type[Any], settings: Mapping[str, Any], where: str) -> Any:
    """An instance of a dataclass made from plain values, strictly typed.

    Unknown keys are checked first: for a plain dataclass pydantic ignores them.

    Raises:
        RecipeError: with the place, the value and the nearest name that exists.
    """
    known = [field.name for field in dataclasses.fields(kind) if field.init]
    with within(where):
        for key, value in settings.items():
            if key not in known:
                cure = meant(key, known, f"The settings are: {', '.join(known) or 'none'}.")
                raise RecipeError(f'there is no setting "{key}".', cure)
            _check_plain(key, value)
        try:
            # JSON's strict mode accepts a list as a tuple and 1 as 1.0, as TOML needs, but not "1".
            return TypeAdapter(kind).validate_json(json.dumps(settings, default=str), strict=True)
        except ValidationError as error:
            cure = "Correct it in the recipe, after --set, or in the flag."
            faults = map(_fault, error.errors(include_url=False))
            raise RecipeError(f"{'; '.join(dict.fromkeys(faults))}.", cure) from error


def _check_plain(key: str, value: Any) -> None:
    """Refuses NUL characters, and numbers that nothing takes, at any depth."""
    inner = dict(enumerate(value)) if isinstance(value, (list, tuple)) else value
    if isinstance(inner, Mapping):
        for name, each in inner.items():
            _check_plain(f"{key}.{name}", each)
    elif isinstance(value, (int, float)) and not abs(value) < 2**63:
        raise RecipeError(f"{key} is {value}.", "Give a finite number; 1e9 serves as infinity.")
    elif "\0" in f"{key}{value}":
        raise RecipeError(f"{key!r} has a NUL character: {value!r}.", "Remove it.")


def _fault(error: ErrorDetails) -> str:
    """Pydantic's error as a sentence about the setting; its own messages say "input"."""
    setting = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"{setting} is missing"
    wanted = error["msg"].replace("Input should", "it should")
    return f"{setting} is {error['input']!r}; {wanted}"


def _own_stage(name: str) -> Any:
    names = stage_names()
    if name not in names:
        known = f"The stages are: {', '.join(names)}; your own is named by its dotted path."
        raise RecipeError(f'There is no stage "{name}".', meant_and(name, names, known))
    return getattr(importlib.import_module(f".stages.{name}", __package__), name.title().replace("_", ""))
