"""A stage: a frozen dataclass whose fields are its settings and whose call takes a Work to the next.

A recipe names a stage by the file that holds it ("prune" is the class Prune of pipeline/stages/prune.py) or
by the dotted path of the user's own class. There is no list to enter a new stage in.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from ..targets.errors import RecipeError, meant, meant_and
from .work import Work
from .workload import users_code


class Stage(Protocol):
    """One step of a recipe.

    A stage declares what it does by class attributes, e.g. `shrinks: ClassVar[bool] = True`. Controls, sweeps
    and the check of a recipe's order go by these facts, never by a stage's name:

    - `shrinks`: the newest network has fewer parameters afterwards. Controls are compared from here on.
    - `recovers`: it trains the newest network, or changes it in a way that is no choice of neurons. Controls
      go through the stage too. A stage that both removes neurons and trains declares both, and then there is
      no random control of it, unless it runs other stages inside, whose entries in the log say what they did.
    - `trains`: it makes the network "original" by training `build_model()`; its settings are a `Schedule`'s.
    - `reads_onnx`, `writes_onnx`: it needs, or makes, ONNX files. A recipe in the wrong order is refused.

    A user's own stage that declares neither `shrinks` nor `recovers` runs, and `controls` refuses its recipe:
    a comparison that does not know what the stage did would mislead.

    Optional methods: `reads()` returns paths of data and `code()` paths of code that the result depends on
    beyond settings and input; they enter the cache key. `check(earlier)` takes the recipe's stages before
    this one and raises a RecipeError for what cannot work, before anything runs. A stage that shrinks may
    offer `cut(model, plan, groups, work) -> (model, words)`: the random control is then cut in the same way.
    """

    def __call__(self, work: Work) -> Work:
        """The work with what this stage adds; files go to `work.directory`."""
        ...


def is_users_own(name: str) -> bool:
    """Whether a stage is not one of ours: it is named by its dotted path then."""
    return bool({".", ":"} & set(name))


def stage_class(name: str) -> type[Stage]:
    """The class behind a stage's name in a recipe.

    Raises:
        RecipeError: no stage has this name.
    """
    if is_users_own(name):
        place, _, attribute = name.replace(":", ".").rpartition(".")
        with users_code(f'the stage "{name}" was imported'):
            found = getattr(importlib.import_module(place), attribute)
    else:
        found = _own_stage(name)
    # `callable(found)` is true of every class: it is the instances that must be.
    if not (isinstance(found, type) and dataclasses.is_dataclass(found) and "__call__" in dir(found)):
        raise RecipeError(
            f'"{name}" is no stage.', "A stage is a frozen dataclass with __call__(self, work) -> Work."
        )
    return cast("type[Stage]", found)


def stage_names() -> list[str]:
    """The names of our own stages: the files of the folder stages/."""
    files = (Path(__file__).parent / "stages").glob("*.py")
    return sorted(path.stem for path in files if path.name != "__init__.py")


def make_stage(name: str, settings: Mapping[str, Any], where: str) -> Stage:
    """A stage with its settings, every one of them checked.

    Args:
        where: the stage's place, for messages, e.g. 'recipe.toml, stages[2] "prune"'.

    Raises:
        RecipeError: a setting is unknown or of the wrong type.
    """
    return cast(Stage, checked(stage_class(name), settings, where))


def settings_of(stage: Stage) -> dict[str, Any]:
    """A stage's settings as plain values."""
    return dataclasses.asdict(cast(Any, stage))


def named_files(stage: Stage, method: str) -> list[Path]:
    """What a stage's optional `reads` or `code` names; nothing where it has no such method."""
    return list(getattr(stage, method, list)())


def source_of(stage: Stage) -> Path:
    """The file that a stage's class stands in."""
    return Path(inspect.getfile(type(stage)))


def checked(kind: type[Any], settings: Mapping[str, Any], where: str) -> Any:
    """An instance of a dataclass made from plain values, strictly typed.

    Unknown keys are looked for first: pydantic alone passes them in silence for a plain dataclass.

    Raises:
        RecipeError: with the place, the value and the nearest name that exists.
    """
    known = [field.name for field in dataclasses.fields(kind) if field.init]
    for key in settings:
        if key not in known:
            raise RecipeError(
                f'{where}: there is no setting "{key}".',
                meant(key, known, f"The settings are: {', '.join(known) or 'none'}."),
            )
    for key, value in settings.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise RecipeError(
                f"{where}: {key} is {value}.", "Give a finite number; 1e9 is as good as infinity."
            )
    try:
        # JSON's strict mode takes a list for a tuple and 1 for 1.0, as TOML means them, but no "1".
        return TypeAdapter(kind).validate_json(json.dumps(settings, default=str), strict=True)
    except ValidationError as error:
        raise RecipeError(
            f"{where}: {_fault(error.errors(include_url=False)[0])}.",
            "Correct it where it was given: in the recipe, after --set, or by a flag.",
        ) from error


def _fault(error: ErrorDetails) -> str:
    """What pydantic found, as a sentence about the setting: its own speak of an "input"."""
    setting = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"{setting} is missing"
    wanted = error["msg"].replace("Input should", "it should")
    return f"{setting} is {error['input']!r}; {wanted}"


def _own_stage(name: str) -> Any:
    names = stage_names()
    if name not in names:
        raise RecipeError(
            f'There is no stage "{name}".',
            meant_and(
                name, names, f"The stages are: {', '.join(names)}; your own is named by its dotted path."
            ),
        )
    return getattr(importlib.import_module(f".stages.{name}", __package__), _camel(name))


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))
