"""Names of an earlier version still work, say what replaces them, and go when it was announced."""

from __future__ import annotations

import importlib
import re
import sys
from itertools import takewhile

import pytest

from deadweight.targets import __version__
from deadweight.targets.deprecated import DEPRECATED


def number(version: str) -> tuple[int, ...]:
    return tuple(int("".join(takewhile(str.isdigit, part))) for part in version.split("."))


def named(path: str) -> object:
    """The module of this path, or the name in one."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        home, _, name = path.rpartition(".")
        return getattr(importlib.import_module(home), name)


@pytest.mark.parametrize("version", DEPRECATED)
def test_what_was_to_be_removed_by_now_is_removed(version: str) -> None:
    assert number(__version__) < number(version), f"remove these names: {', '.join(DEPRECATED[version])}"


@pytest.mark.parametrize(("version", "old"), [(each, old) for each in DEPRECATED for old in DEPRECATED[each]])
def test_an_old_name_gives_the_new_one_and_says_when_it_goes(version: str, old: str) -> None:
    sys.modules.pop(old, None)
    home, _, name = old.rpartition(".")
    used: dict[str, object] = {}
    words = f"{old} is {DEPRECATED[version][old]} now; the old name will be removed in {version}."
    with pytest.warns(DeprecationWarning, match=f"^{re.escape(words)}$"):
        exec(f"from {home} import {name}", used)
    assert used[name] is named(DEPRECATED[version][old])


def test_a_name_that_never_was_is_still_an_error() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("deadweight.pipeline.nothing")
    with pytest.raises(AttributeError, match="nothing"):
        importlib.import_module("deadweight.pipeline.importance").nothing  # noqa: B018
