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
    assert len(found) >= 62


@pytest.mark.slow
def test_a_check_that_does_not_hold_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without DLA cores every check that builds for one must fail, and no other.
    monkeypatch.setenv("FAKE_DLA_CORES", "0")
    found = bench.contract("10.3.0", tmp_path)
    failed = {name for name, why in found.items() if why}
    assert failed == {
        "check_dla_gets_fp16_and_its_layers_are_counted",
        "check_int8_on_dla_takes_its_ranges_from_a_calibration_cache",
        "check_a_loadable_for_cudla_has_no_gpu_layers_and_is_not_opened",
    }


@pytest.mark.jetson
def test_the_contract_holds_on_the_board(board: str, tmp_path: Path) -> None:
    found = bench.contract_on(board, tmp_path)
    assert {name: why for name, why in found.items() if why} == {}
    assert len(found) >= 24
