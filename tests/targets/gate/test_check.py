from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deadweight.targets.budgets import Budgets
from deadweight.targets.errors import TargetError
from deadweight.targets.gate.baseline import Baseline, record
from deadweight.targets.gate.check import Gated, check
from deadweight.targets.gate.report import limit_text
from deadweight.targets.timing.measurement import Interval, Mark, Measurement, Protocol
from deadweight.targets.timing.soak_summary import Energy

MakeMlp = Callable[..., Path]
QUICK = Protocol(events=96, event_s=0.002, block_s=0.0005, settle_s=0.0002)
NONE = Budgets()
MACHINE = {"cpu": "a CPU", "cores": 2}


def measured(times_s: list[float], *, name: str = "candidate", rounds: int = 3) -> Measurement:
    """One event for each time, its rounds a little apart."""
    wall_ns = (np.array(times_s)[:, None, None] * np.linspace(1, 1.001, rounds)[:, None] * 1e9).astype(
        np.int64
    )
    return Measurement(
        name=name,
        model_sha256="accepted" if name == "baseline" else "new",
        file_bytes=1000,
        run_id="r",
        wall_ns=wall_ns,
        cpu_ns=wall_ns[:, :, 0],
        runs=1,
        protocol=QUICK,
        conditions={"machine": MACHINE, "software": {"onnxruntime": "1"}},
    )


BASELINE = Baseline("m.onnx", "accepted", 1000, QUICK, MACHINE, {"onnxruntime": "1"})


def gated(slower: float, spread: float = 0.001, *, budgets: Budgets = NONE, **options: Any) -> Gated:
    """Both were timed elsewhere: the candidate takes (1 + slower) times as long, give or take the spread."""
    luck = np.linspace(-spread, spread, 24)
    taken = {
        "baseline": measured([1e-3] * 24, name="baseline"),
        "candidate": measured((1e-3 * (1 + slower) * np.exp(luck)).tolist()),
    }
    return check(Path("new.onnx"), BASELINE, Path("m.onnx"), budgets=budgets, taken=taken, **options)


@pytest.mark.parametrize(
    ("slower", "spread", "outcome", "code"),
    [
        (0.0, 0.001, "pass", 0),
        (-0.3, 0.001, "pass", 0),
        (0.05, 0.001, "fail", 1),
        (0.02, 0.05, "cannot_tell", 3),
        (0.05, 0.1, "cannot_tell", 3),
    ],
)
def test_the_whole_interval_must_be_on_one_side_of_the_limit(
    slower: float, spread: float, outcome: str, code: int
) -> None:
    found = gated(slower, spread)
    assert (found.checks[0].outcome, found.exit_code) == (outcome, code)
    assert found.checks[0].value == pytest.approx(slower, abs=0.01)


def test_the_limit_is_the_budgets() -> None:
    assert gated(0.05, budgets=Budgets(slowdown=0.1)).exit_code == 0
    assert gated(0.015, budgets=Budgets(slowdown=0.01)).exit_code == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evidence": "emulated"}, "the times are emulated"),
        ({"marks": (Mark(3, "board: the power mode went from A to B"),)}, "void: the power mode went"),
    ],
)
def test_times_that_prove_nothing_let_nothing_through_and_break_nothing(
    change: dict[str, Any], message: str
) -> None:
    budgets = Budgets(latency_s=1e-9, p99_s=1.0, file_bytes=2000)
    taken = {name: replace(measured([1e-3] * 400, name=name), **change) for name in ("baseline", "candidate")}
    found = check(Path("new.onnx"), BASELINE, Path("m.onnx"), budgets=budgets, taken=taken)
    answers = {one.name: one.outcome for one in found.checks}
    timed = dict.fromkeys(("slowdown", "latency_s", "p99_s"), "cannot_tell")
    assert answers == {**timed, "file_bytes": "pass"}
    assert found.exit_code == 3
    assert message in found.checks[0].sentence


def test_an_engine_is_not_held_against_an_onnx_file() -> None:
    with pytest.raises(TargetError, match=r"new.plan runs on tensorrt, .* recorded on onnxruntime"):
        check(Path("new.plan"), BASELINE, Path("m.onnx"), budgets=NONE)


def test_a_median_of_too_few_events_is_no_answer() -> None:
    for events, outcome in ((5, "cannot_tell"), (6, "pass")):
        taken = {name: measured([1e-3] * events, name=name) for name in ("baseline", "candidate")}
        found = check(Path("new.onnx"), BASELINE, Path("m.onnx"), budgets=Budgets(latency_s=1.0), taken=taken)
        assert found.checks[1].outcome == outcome


def test_a_broken_budget_outweighs_one_that_is_undecided() -> None:
    found = gated(0.0, budgets=Budgets(file_bytes=10, p99_s=1.0))
    assert [one.outcome for one in found.checks] == ["pass", "cannot_tell", "fail"]
    assert found.exit_code == 1


def test_every_budget_that_is_set_is_answered() -> None:
    budgets = Budgets(latency_s=0.0005, p99_s=0.1, memory_bytes=5, file_bytes=2000, score_drop=0.01)
    found = gated(0.0, budgets=budgets, scores=(0.9, 0.895))
    answers = {one.name: one.outcome for one in found.checks}
    assert answers == {
        "slowdown": "pass",
        "latency_s": "fail",
        "p99_s": "cannot_tell",  # 72 samples
        "memory_bytes": "cannot_tell",  # times from elsewhere bring no memory
        "file_bytes": "pass",
        "score_drop": "pass",
    }
    assert "299 are needed" in next(one.sentence for one in found.checks if one.name == "p99_s")


@pytest.mark.parametrize(
    ("energy", "outcome"),
    [
        (Energy(Interval(0.004, 0.0038, 0.0042), ""), "pass"),
        (Energy(Interval(0.006, 0.0058, 0.0062), ""), "fail"),
        (Energy(Interval(0.005, 0.0048, 0.0052), ""), "cannot_tell"),
        (Energy(None, "the sensor is too slow"), "cannot_tell"),
        (None, "cannot_tell"),
    ],
)
def test_the_whole_interval_of_the_energy_must_be_on_one_side_of_its_budget(
    energy: Energy | None, outcome: str
) -> None:
    found = gated(0.0, budgets=Budgets(energy_j=0.005), energy=energy).checks[-1]
    assert (found.name, found.outcome) == ("energy_j", outcome)
    assert limit_text(found) == "5 mJ"


@pytest.mark.parametrize(
    ("scores", "outcome"), [((0.9, 0.85), "fail"), ((None, 0.9), "cannot_tell"), ((0.9, 0.95), "pass")]
)
def test_a_drop_of_the_score_is_held_against_its_budget(scores: Any, outcome: str) -> None:
    found = gated(0.0, budgets=Budgets(score_drop=0.01), scores=scores)
    assert found.checks[-1].outcome == outcome


def test_two_real_models_are_timed_side_by_side_and_the_slower_one_is_refused(
    mlp: MakeMlp, tmp_path: Path
) -> None:
    old, new = mlp(256, 256, 10, name="a.onnx"), mlp(256, 2048, 10, name="b.onnx")
    baseline, _ = record(old, tmp_path / "baseline.json", protocol=QUICK)
    budgets = Budgets(memory_bytes=10**9, file_bytes=10**9)
    found = check(new, baseline, old, budgets=budgets, cap_s=30.0)
    assert found.exit_code == 1
    assert found.against == "side by side"
    assert found.memory_bytes is not None
    assert found.memory_bytes > 256 * 2048 * 4
    assert found.judgement is not None
    assert found.judgement.outcome == "slower"


def test_what_is_undecided_says_what_would_help() -> None:
    untold = gated(0.02, spread=0.2)
    assert untold.exit_code == 3
    assert any("stop other programs, or use more time" in remark for remark in untold.remarks)
    assert not any("to decide" in remark for remark in gated(0.0).remarks)


def test_a_baseline_of_another_machine_is_reported_though_both_were_timed_here() -> None:
    elsewhere = replace(BASELINE, machine={"cpu": "Cortex-A78AE", "cores": 8})
    taken = {name: measured([1e-3] * 24, name=name) for name in ("baseline", "candidate")}
    result = check(Path("new.onnx"), elsewhere, Path("m.onnx"), budgets=NONE, taken=taken)
    assert result.exit_code == 0
    assert any("another machine (Cortex-A78AE)" in remark for remark in result.remarks)
    assert not any("another machine" in remark for remark in gated(0.0).remarks)


def test_the_accepted_model_itself_passes_at_once_and_other_budgets_are_still_asked(
    mlp: MakeMlp, tmp_path: Path
) -> None:
    model = mlp(16, 32, 4)
    accepted, _ = record(model, tmp_path / "baseline.json", protocol=QUICK)
    found = check(model, accepted, model, budgets=Budgets(file_bytes=10))
    assert [(one.name, one.outcome) for one in found.checks] == [("slowdown", "pass"), ("file_bytes", "fail")]
    assert (found.against, found.measured) == ("the same bytes", {})
    timed = check(model, accepted, model, budgets=Budgets(latency_s=1.0), cap_s=1.0)
    assert timed.checks[0].outcome == "pass"
    assert timed.measured["candidate"].events
    assert check(model, accepted, model, budgets=NONE, cap_s=0.1, by_bytes=False).measured
