# ruff: noqa: UP006, UP007, UP035, UP045 (as on a board: Python 3.8)
"""Dataclasses to JSON and back."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, List, Mapping, Optional, Tuple, Union

import pytest

from deadweight.targets.errors import TargetError
from deadweight.targets.plain import from_plain, plain


@dataclass(frozen=True)
class Inner:
    hz: float
    names: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    count: int
    on: bool
    value: Union[str, int, float, List[str]]
    inner: Optional[Inner] = None
    pair: Tuple[int, int] = (1, 2)
    by_name: Mapping[str, Inner] = field(default_factory=dict)
    rest: Mapping[str, Any] = field(default_factory=dict)


def read(value: Any) -> Outer:
    return from_plain(Outer, value, "board.toml", error=TargetError, cure="Correct it.")


@pytest.mark.parametrize("value", ["a", 3, 0.5, ["a", "b"]])
def test_a_dataclass_comes_back_as_it_was(value: Any) -> None:
    made = Outer(3, True, value, Inner(1.5, ("a",)), (3, 4), {"x": Inner(2.0)}, {"y": [1, None]})
    assert read(json.loads(json.dumps(plain(made)))) == made
    assert read({"count": 3, "on": False, "value": value}) == Outer(3, False, value)


def test_what_is_not_finite_is_null() -> None:
    assert plain([Inner(math.inf), math.nan]) == [{"hz": None, "names": []}, None]


def test_whole_numbers_of_toml_are_read() -> None:
    assert read({"count": 2e6, "on": True, "value": 1, "inner": {"hz": 3}}).count == 2_000_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": True}, "board.toml: count is True."),
        ({"count": 1.5}, "board.toml: count is 1.5."),
        ({"on": 1}, "board.toml: on is 1."),
        ({"value": None}, "board.toml: value is None."),
        ({"inner": 5}, "board.toml: inner is 5, not a table."),
        ({"inner": {}}, "board.toml: inner misses hz."),
        ({"inner": {"hz": "1"}}, "board.toml: inner.hz is '1'."),
        ({"pair": [1]}, "board.toml: pair is [1]."),
        ({"by_name": {"x": {"hz": 1, "names": [2]}}}, "board.toml: by_name.x.names is 2."),
        ({"cuont": 1}, "board.toml has the unknown key cuont."),
    ],
)
def test_a_wrong_value_is_named_with_its_place(change: Mapping[str, Any], message: str) -> None:
    with pytest.raises(TargetError) as caught:
        read({"count": 1, "on": True, "value": 1, **change})
    assert caught.value.what == message
    assert caught.value.cure.endswith("Correct it.")
    assert ("Did you mean 'count'?" in caught.value.cure) == ("cuont" in change)


def test_what_is_missing_and_what_is_no_table_are_named() -> None:
    with pytest.raises(TargetError, match=r"board.toml misses on, value\."):
        read({"count": 1})
    with pytest.raises(TargetError, match=r"board.toml is \[\], not a table\."):
        read([])
