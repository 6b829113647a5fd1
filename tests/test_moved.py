"""Names of 0.1.0 that moved can still be imported, and say where they went."""

from __future__ import annotations

import importlib
import sys

import pytest

from deadweight.moved import MOVED


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_name_imports_the_new_module_and_warns(old: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=r"removed in 0\.3\.0") as warned:
        found = importlib.import_module(old)
    assert found is importlib.import_module(MOVED[old])
    assert MOVED[old] in str(warned[0].message)


@pytest.mark.parametrize(
    ("package", "name", "home"),
    [
        ("importance", "Context", "criteria"),
        ("importance", "weight_l2", "criteria"),
        ("training", "Schedule", "loop"),
    ],
)
def test_a_package_that_was_a_module_still_gives_its_names(package: str, name: str, home: str) -> None:
    module = importlib.import_module(f"deadweight.pipeline.{package}")
    with pytest.warns(DeprecationWarning, match=rf"deadweight\.pipeline\.{package}\.{home}"):
        found = getattr(module, name)
    assert found is getattr(importlib.import_module(f"deadweight.pipeline.{package}.{home}"), name)


def test_a_name_that_never_was_is_still_an_error() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("deadweight.pipeline.nothing")
    with pytest.raises(AttributeError, match="nothing"):
        importlib.import_module("deadweight.pipeline.importance").nothing  # noqa: B018
