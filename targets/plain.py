"""Dataclasses as plain values for JSON, and back by their type hints."""

from __future__ import annotations

import collections.abc
import math
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Mapping, Type, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import ArtifactError, DeadweightError, meant

T = TypeVar("T")
_WIDER: Mapping[Any, Any] = {float: (int, float)}
_AGAIN = "It was written by another version of deadweight: make it again."


def plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists, and None for a number that is not finite, which JSON has not."""
    if is_dataclass(value):
        return {one.name: plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_plain(
    kind: Type[T], value: Any, where: str, *, error: Type[DeadweightError] = ArtifactError, cure: str = _AGAIN
) -> T:
    """The dataclass with these values; `error`, with the place, if a key or the type of a value is wrong."""
    try:
        made: T = _typed(kind, value, where)
    except TypeError as misfit:
        what, *hints = misfit.args
        raise error(f"{what}.", " ".join((*hints, cure))) from None
    return made


def _typed(hint: Any, value: Any, where: str) -> Any:
    """The value as this type; a TypeError with the place, and a hint if there is one."""
    kind: Any = get_origin(hint) or hint
    inner = get_args(hint)
    if kind is Any:
        return value
    if kind is Union:
        misfits = []
        for each in inner:
            try:
                return _typed(each, value, where)
            except TypeError as misfit:
                misfits.append(misfit)
        raise misfits[0]  # of an optional value: what it should be
    if is_dataclass(kind) and isinstance(value, Mapping):
        return _dataclass(kind, value, where)
    if kind is collections.abc.Mapping and isinstance(value, Mapping):
        return {key: _typed(inner[1], each, _inside(where, key)) for key, each in value.items()}
    if kind is tuple and isinstance(value, (list, tuple)):
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(kinds) == len(value):
            return tuple(_typed(one, each, where) for one, each in zip(kinds, value))
    elif kind is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 2e6, as in TOML
    elif isinstance(value, _WIDER.get(kind, kind)) and isinstance(value, bool) == (kind is bool):
        return value
    raise TypeError(f"{where} is {value!r}{', not a table' if is_dataclass(kind) else ''}")


def _dataclass(kind: Any, value: Mapping[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    for name in value:
        if name not in hints:
            raise TypeError(
                f"{where} has the unknown key {name}", meant(name, hints, f"Known: {', '.join(hints)}.")
            )
    required = [one.name for one in fields(kind) if one.default is one.default_factory is MISSING]
    missing = [name for name in required if name not in value]
    if missing:
        raise TypeError(f"{where} misses {', '.join(missing)}")
    return kind(**{name: _typed(hints[name], each, _inside(where, name)) for name, each in value.items()})


def _inside(where: str, name: str) -> str:
    """As in `board.toml: facts.cuda.source`."""
    return f"{where}.{name}" if ": " in where else f"{where}: {name}"
