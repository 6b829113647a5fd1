"""What is put back after a network was run, whatever happened meanwhile."""

from __future__ import annotations

import gc

import pytest

from deadweight.pipeline.pruning.contexts import collected, uncollected


def test_the_collector_is_on_again_even_after_an_error() -> None:
    def fail() -> None:
        with uncollected(), uncollected():
            assert not gc.isenabled()
            raise ValueError("inside")

    assert gc.isenabled()
    with pytest.raises(ValueError, match="inside"):
        fail()
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_was_loaded_before_is_not_searched_during_an_export_unless_the_user_froze_it() -> None:
    with collected():
        assert gc.get_freeze_count() > 1000
    assert gc.get_freeze_count() == 0
    gc.freeze()
    try:
        with collected():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
