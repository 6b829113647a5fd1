from __future__ import annotations

import gc
import weakref

import pytest

from deadweight.targets.timing.garbage import only_new_garbage


class Ring:
    def __init__(self) -> None:
        self.self = self


def test_what_was_made_before_is_left_out_what_is_made_after_is_freed_and_all_is_searched_again() -> None:
    before = gc.get_freeze_count()
    with only_new_garbage():
        assert gc.get_freeze_count() > before
        made = weakref.ref(Ring())
        gc.collect()
        assert made() is None
    assert gc.get_freeze_count() == 0


def test_a_caller_who_froze_stays_in_charge_and_an_error_undoes_it() -> None:
    gc.freeze()
    try:
        with only_new_garbage():
            pass
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()
    with pytest.raises(ZeroDivisionError), only_new_garbage():
        raise ZeroDivisionError
    assert gc.get_freeze_count() == 0
