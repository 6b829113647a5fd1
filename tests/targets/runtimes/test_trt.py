"""Building and running an engine, through NVIDIA's real bindings over a fake engine, and on a board.

The checks themselves are in fake_tensorrt/contract.py and faults.py: one process runs all of them for one
version, because a process can hold one TensorRT only.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support import tensorrt_versions as bench

SLOW = [pytest.mark.slow]


@pytest.mark.parametrize(
    "version",
    [
        "10.3.0",
        *(pytest.param(v, marks=SLOW) for v in ("8.6.1", "10.7.0", "10.13.3.9", "10.16.1.11", "11.4.0.106")),
    ],
)
def test_the_contract_holds_with_the_real_bindings_of(version: str, tmp_path: Path) -> None:
    found = bench.contract(version, tmp_path)
    assert {name: why for name, why in found.items() if why} == {}
    assert len(found) >= 47


@pytest.mark.slow
def test_a_check_that_does_not_hold_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without DLA cores every check that builds for one must fail, and no other.
    monkeypatch.setenv("FAKE_DLA_CORES", "0")
    found = bench.contract("10.3.0", tmp_path)
    failed = {name for name, why in found.items() if why}
    assert failed == {
        "check_layers_that_dla_refuses_are_counted_before_the_build",
        "check_layers_that_only_the_build_moves_to_the_gpu_break_the_budget_too",
        "check_the_commands_build_profile_and_compare_engines",
        "check_layers_that_fell_back_are_counted_after_the_build",
        "check_flags_are_set_by_name_and_dla_alone_is_weakly_typed_before_11",
    }


@pytest.mark.jetson
def test_the_contract_holds_on_the_board(board: str, tmp_path: Path) -> None:
    found = bench.contract_on(board, tmp_path)
    assert {name: why for name, why in found.items() if why} == {}
    assert len(found) >= 20
