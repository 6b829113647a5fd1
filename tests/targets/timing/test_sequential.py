from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from support.boards import unpack

from deadweight.targets.machine.probe import conditions
from deadweight.targets.runtimes.runtime import own_runtime
from deadweight.targets.timing import clock
from deadweight.targets.timing.judge import Judgement
from deadweight.targets.timing.measurement import Measurement, Protocol
from deadweight.targets.timing.sequential import (
    CONFIDENCE,
    LOOKS,
    compare_until_decided,
    order_at,
    sequential_protocol,
    slowdown,
)

MakeMlp = Callable[..., Path]
RUNS = 20_000
SHORT: dict[str, Any] = {"event_s": 0.002, "block_s": 0.0005, "settle_s": 0.0002}


def missed(values: np.ndarray, *, cap: int = LOOKS[-1]) -> tuple[float, float]:
    """Shares of runs in which any look's interval misses the true median 0, above and below."""
    above = np.zeros(len(values), bool)
    below = np.zeros(len(values), bool)
    for look in [*(one for one in LOOKS if one < cap), cap]:
        order, _ = order_at(look, scheduled=LOOKS, confidence=CONFIDENCE)
        if not order:
            continue
        ranked = np.sort(values[:, :look], axis=1)
        above |= ranked[:, order - 1] > 0
        below |= ranked[:, look - order] < 0
    return float(above.mean()), float(below.mean())


@pytest.mark.parametrize("cap", [24, 37, 96])
def test_looking_often_errs_no_more_than_it_says_also_where_the_cap_ends_it(cap: int) -> None:
    drawn = np.random.default_rng(0).standard_t(1.2, size=(RUNS, cap))  # no variance, hardly a mean
    above, below = missed(drawn, cap=cap)
    for share in (above, below):
        # Half the error each; three standard deviations of 20,000 runs are 0.15 %.
        assert share <= 0.005 + 0.0015
        assert share > 0.0004  # it is spent, not kept


def test_the_naive_rule_that_looks_as_often_errs_several_times_more() -> None:
    drawn = np.random.default_rng(1).standard_normal((RUNS, LOOKS[-1]))
    wrong = np.zeros(RUNS, bool)
    for look in LOOKS:
        below = (drawn[:, :look] < 0).sum(axis=1)
        wrong |= stats.binom.cdf(below, look, 0.5) < 0.005
    assert wrong.mean() > 0.01


def test_a_look_before_its_time_has_no_interval_and_the_last_one_has() -> None:
    assert order_at(8, scheduled=LOOKS, confidence=CONFIDENCE) == (0, 0.0)
    order, attained = order_at(LOOKS[-1], scheduled=LOOKS, confidence=CONFIDENCE)
    assert order > 30
    assert CONFIDENCE <= attained < 1


def test_the_slow_down_is_the_inverse_of_the_ratio_and_its_ends_change_places() -> None:
    judged = Judgement("slower", 0.8, 0.75, 0.9, 0.99, 0.99, 0.02, 24, 1.1, "cpu", "measured", "")
    assert slowdown(judged) == pytest.approx((0.25, 1 / 0.9 - 1, 1 / 0.75 - 1))
    assert math.isinf(slowdown(replace(judged, low=0.0))[2])


def test_a_network_of_twice_the_work_is_found_slower_and_the_drawing_stops(mlp: MakeMlp) -> None:
    one, two = mlp(256, 512, 10, name="a.onnx"), mlp(256, 2048, 10, name="b.onnx")
    found = compare_until_decided(one, two, protocol=replace(sequential_protocol(), **SHORT))
    assert found.judgement.outcome == "slower"
    assert found.judgement.events < LOOKS[-1]
    assert found.judgement.confidence == CONFIDENCE
    assert found.measured["baseline"].events == found.judgement.events


def test_the_time_cap_ends_it_before_the_first_look_and_nothing_is_claimed(mlp: MakeMlp) -> None:
    path = mlp(64, 32)
    found = compare_until_decided(path, path, protocol=Protocol(events=96, cap_s=0.001, event_s=0.001))
    assert found.judgement.events == 1
    assert found.judgement.outcome == "cannot_tell"
    assert "too few for a 99 % interval" in found.judgement.reason


def test_who_asks_decides_when_it_is_enough(mlp: MakeMlp) -> None:
    path = mlp(64, 32)
    protocol = Protocol(events=96, **SHORT)
    found = compare_until_decided(
        path, path, protocol=protocol, decided=lambda judged, measured: measured["candidate"].events >= 16
    )
    assert found.judgement.events == 16


EMULATED = """
from deadweight import Runtime
from deadweight.targets.runtimes.ort import open_ort

def opened(path, *, threads=1):
    session = open_ort(path, threads=threads)
    session.evidence = "emulated"
    return session

RUNTIME = Runtime(name="emulated", title="Emulated", library="onnxruntime", cure="None.", open=opened)
"""


def test_emulated_times_are_given_up_at_the_first_look_since_no_number_of_them_tells(
    mlp: MakeMlp, tmp_path: Path
) -> None:
    (tmp_path / "emulated.py").write_text(EMULATED)
    runtime = own_runtime("emulated.py:RUNTIME", tmp_path)
    one, two = mlp(16, 8, name="a.onnx"), mlp(16, 64, 8, name="b.onnx")
    protocol = replace(sequential_protocol(), **SHORT, runtime=runtime.name)
    found = compare_until_decided(one, two, protocol=protocol, decided=lambda judged, measured: False)
    assert (found.judgement.events, found.looks) == (LOOKS[0], 1)
    assert found.judgement.outcome == "cannot_tell"
    assert "the times are emulated" in found.judgement.reason
    assert "the timing stopped after 8 events, since more events would not help" in found.judgement.remarks


def test_a_board_whose_power_mode_is_another_one_afterwards_has_no_verdict(
    mlp: MakeMlp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = unpack("orin_nano_super_jp72", tmp_path)
    monkeypatch.setattr(clock, "conditions", lambda: conditions(root))
    one, two = mlp(256, 512, 10, name="a.onnx"), mlp(256, 4096, 10, name="b.onnx")
    looked = []

    def enough(judged: Judgement, measured: Mapping[str, Measurement]) -> bool:
        looked.append(judged.outcome)
        (root / "var/lib/nvpmodel/status").write_text("pmode:0002")
        return judged.outcome == "slower"

    found = compare_until_decided(one, two, protocol=replace(sequential_protocol(), **SHORT), decided=enough)
    assert (looked[-1], found.judgement.outcome) == ("slower", "cannot_tell")
    assert "the power mode went from 25W (mode 1) to MAXN_SUPER (mode 2)" in found.judgement.reason
    assert found.looks == len(looked)
