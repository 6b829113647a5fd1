from __future__ import annotations

import subprocess
import sys

import deadweight


def test_every_public_name_can_be_had() -> None:
    for name in deadweight.__all__:
        assert getattr(deadweight, name) is not None


def test_the_list_of_public_names_is_the_promise() -> None:
    assert sorted(deadweight.__all__) == deadweight.__all__
    assert {name for names in deadweight._HOMES.values() for name in names} == set(deadweight.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    assert not hasattr(deadweight, "no_such_name")
    assert set(deadweight.__all__) <= set(dir(deadweight))


def test_the_commands_are_there_before_lightning_which_takes_seconds_to_import() -> None:
    program = "import sys, deadweight.api.recipes; print([n for n in sys.modules if 'lightning' in n])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
