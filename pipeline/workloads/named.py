"""A workload by its name: "file.py:name", "package.module:name", or a factory's, "timm:resnet18?classes=10".

A factory is a file of this folder, whose name is the prefix; its function `network` makes a `Network`. One
of the user's own is a function by its dotted path. Settings follow a "?", as in an address; the keys `data`
and `task` of a recipe add to them.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import inspect
import sys
import typing
import urllib.parse
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import nn

from ...targets.errors import RecipeError, WorkloadError, meant, module_in, reported, users_code
from ..stage import files_with
from ..workload import Workload
from .assembled import Assembled, Network, assembled


@functools.cache
def factories() -> list[str]:
    """The prefixes: the files of this folder with a function `network`."""
    return files_with("network", Path(__file__).parent)


def load_workload(spec: str, directory: Path | str = ".") -> Workload:
    """Loads a workload by its name; files are relative to `directory`.

    The name may be a class or a function without arguments, or a ready object: a workload, or a network with
    data in the settings.

    Raises:
        WorkloadError: the file is missing, does not import, or the named object is not a workload.
        RecipeError: a setting is unknown or of the wrong type.
    """
    place, options = _split(spec)
    directory = Path(options.pop("folder", directory))
    made, used = _object(place, directory, options)
    rest = {name: value for name, value in options.items() if name not in used}
    if isinstance(made, Network):
        _check_known(rest, ["data", *options_of(assembled), *used], place)
        code = [file for value in rest.values() if ":" in value for file in file_of(value, directory)]
        own: dict[str, Any] = {n: named_object(v, directory) if ":" in v else v for n, v in rest.items()}
        data = own.pop("data", None)
        data = directory / data if isinstance(data, str) else data
        built = assembled(made, data, **_typed(assembled, own, place))
        where = urllib.parse.urlencode({**options, "folder": str(directory.resolve())})
        return dataclasses.replace(built, spec=f"{place}?{where}", code=(*built.code, *code))
    _check_known(rest, used, place)
    if isinstance(made, Assembled) and not made.spec:
        made = dataclasses.replace(
            made, spec=f"{place}?folder={urllib.parse.quote(str(directory.resolve()))}"
        )
    wanted = [key for key in (*Workload.__annotations__, *vars(Workload)) if not key.startswith("_")]
    missing = [key for key in wanted if not hasattr(made, key)]
    if missing:
        raise WorkloadError(
            f"{spec} is not a workload: it lacks {', '.join(missing)}.",
            "Add these members; deadweight.Workload says what each must return.",
        )
    return made  # type: ignore[no-any-return]


def network_of(spec: str, directory: Path) -> Network:
    """The network of a factory's name.

    Raises:
        WorkloadError, RecipeError: as `load_workload`; or it makes none.
    """
    place, options = _split(spec)
    made, used = _object(place, directory, options)
    _check_known(options, used, place)
    if not isinstance(made, Network):
        raise WorkloadError(f"{spec} makes a {type(made).__name__}, not a network.", "Return a torch module.")
    return made


def workload_code(spec: str, directory: Path, workload: Workload) -> tuple[Path, ...]:
    """The source files of a workload: the one that names it, and those that it names."""
    place = _split(spec)[0]
    return (*file_of(place, directory), *getattr(workload, "code", ()))


def file_of(place: str, directory: Path) -> tuple[Path, ...]:
    """The source file that a name is in; none in a notebook."""
    home = place.rpartition(":")[0]
    if place.partition(":")[0] in factories():
        return (Path(__file__).with_name(f"{place.partition(':')[0]}.py"),)
    if home.endswith(".py"):
        return ((directory / home).resolve(),)
    file = getattr(sys.modules[home], "__file__", None)
    return (Path(file),) if file else ()


def _split(spec: str) -> tuple[str, dict[str, str]]:
    place, _, query = spec.partition("?")
    return place, dict(urllib.parse.parse_qsl(query, keep_blank_values=True))


def _object(place: str, directory: Path, options: Mapping[str, str]) -> tuple[Any, list[str]]:
    """What a name stands for, a network where it is a module; and the options that it takes."""
    prefix, _, rest = place.partition(":")
    if prefix in factories() and rest:
        with users_code(f"{prefix} was imported"):
            make = importlib.import_module(f".{prefix}", __package__).network
        used = options_of(make)
        with users_code(f"{place} was made"):
            return make(rest, directory, **_typed(make, _only(options, used), place)), used
    made = named_object(place, directory)
    used = options_of(made) if isinstance(made, (type, FunctionType)) else []
    own = _typed(made, _only(options, used), place)
    with users_code(f"{place} was made"):
        found = made(**own) if isinstance(made, (type, FunctionType)) else made
    if isinstance(found, nn.Module):
        again = functools.partial(copy.deepcopy, found) if found is made else functools.partial(made, **own)
        return Network(again, code=file_of(place, directory)), used
    return found, used


def named_object(place: str, directory: Path) -> Any:
    """The object of "file.py:name" or "package.module:name".

    Raises:
        WorkloadError: the file is missing, does not import, or has no such name.
    """
    home, separator, name = place.rpartition(":")
    if not separator or not home or not name:
        cure = 'Write it as "file.py:name" or "package.module:name", or with a factory: '
        raise WorkloadError(
            f'The workload "{place}" names no object.',
            f"{cure}{', '.join(f'{one}:NAME' for one in factories())}.",
        )
    module = _import_file(directory / home) if home.endswith(".py") else _import_name(home)
    if not hasattr(module, name):
        known = [key for key in vars(module) if not key.startswith("_")]
        raise WorkloadError(
            f"{home} has no {name!r}.", meant(name, known, f"Define {name!r} there, or name one that exists.")
        )
    return getattr(module, name)


def options_of(function: Callable[..., Any]) -> list[str]:
    """The settings that a function takes: its parameters that can be given by name."""
    found = inspect.signature(function).parameters.values()
    return [one.name for one in found if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)]


def _only(options: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    return {name: value for name, value in options.items() if name in names}


def _check_known(options: Mapping[str, str], known: Collection[str], place: str) -> None:
    for name in options:
        if name not in known:
            cure = f"The settings are: {', '.join(known) or 'none'}."
            raise RecipeError(f'{place} has no setting "{name}".', meant(name, known, cure))


def _typed(function: Callable[..., Any], options: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Settings that came as text, each converted to the type of its parameter."""
    hints = typing.get_type_hints(function) if isinstance(function, FunctionType) else {}
    values = {}
    for name, value in options.items():
        kind = hints.get(name, str)
        text = isinstance(value, str) and kind in (bool, int, float)
        with reported(RecipeError, f"{place}: {name} is {value!r}", f"Give {_A.get(kind)}.", ValidationError):
            values[name] = TypeAdapter(kind).validate_strings(value) if text else value
    return values


_A: Mapping[Any, str] = {bool: "true or false", int: "a whole number", float: "a number"}


def _import_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise WorkloadError(
            f"The workload's file {path} does not exist.",
            "Check the path; in a recipe it is relative to the recipe's folder.",
        )
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # so that it can import the files beside it, as a script can
    with users_code(f"{path.name} was imported"):
        return module_in(path)


def _import_name(name: str) -> ModuleType:
    with users_code(f"{name} was imported"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module exists, but a module that it imports does not
            raise WorkloadError(
                f"There is no module {error.name} to import {name} from.",
                'Check the name, or give the file, as "path/to/file.py:name".',
            ) from error
