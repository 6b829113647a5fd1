from __future__ import annotations

import dataclasses
import json

import pytest
from support.digits import Digits
from support.workloads import trained
from torch import nn

from deadweight.pipeline.pruning.narrow import elements_of
from deadweight.pipeline.stage import make_stage
from deadweight.pipeline.stages.budget import Budget
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Work
from deadweight.targets.errors import DeadweightError, RecipeError
from deadweight.targets.target import load_target


class Wide(Digits):
    """Wide enough that its layers, not the call, take its time."""

    def build_model(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(64, 768), nn.ReLU(), nn.Linear(768, 512), nn.ReLU(), nn.Linear(512, 10)
        )


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("budget")
    work = Work(Wide(), load_target("x86-cpu"), folder, networks=NetworkFiles())
    return work.with_model("original", trained(Wide()))


QUICK = Budget(speedup=2.0, criterion="weight_l2", networks=16, finalists=2, events=12, norms=0)


@pytest.mark.slow
def test_a_network_is_found_that_is_measured_within_its_budget_and_a_second_call_measures_less(
    work: Work,
) -> None:
    done = QUICK(dataclasses.replace(work, directory=work.directory / "speedup"))
    facts = json.loads(done.artifacts["budget"].checked().read_text())
    kept = [one for one in facts["tried"] if one["kept"]]
    assert kept
    assert all(one["bound"] <= 1 for one in kept)
    assert elements_of(done.model()) < elements_of(work.model())
    assert "keep the budget" in done.log[-1].words[1]
    before = {path: path.stat().st_mtime_ns for path in (work.directory / "speedup").glob("*.json")}
    QUICK(dataclasses.replace(work, directory=work.directory / "speedup"))
    for name in ("segments", "networks", "damage"):
        path = work.directory / "speedup" / f"{name}.json"
        assert path.stat().st_mtime_ns == before[path]


@pytest.mark.slow
def test_a_budget_out_of_reach_says_what_the_least_possible_is(work: Work) -> None:
    asked = dataclasses.replace(QUICK, speedup=50.0)
    with pytest.raises(RecipeError, match=r"budget cannot be met: .*the least is .*%, at widths of"):
        asked(dataclasses.replace(work, directory=work.directory / "far"))


def test_two_budgets_of_time_at_once_and_none_are_refused() -> None:
    with pytest.raises(DeadweightError, match=r"latency_s 0\.1 and speedup 2\.0"):
        make_stage("budget", {"latency_s": 0.1, "speedup": 2.0}, "stages[1]")
    with pytest.raises(DeadweightError, match="latency_s None and speedup None"):
        make_stage("budget", {}, "stages[1]")


def test_without_a_board_a_target_that_is_one_is_refused(work: Work) -> None:
    there = dataclasses.replace(work, target=load_target("orin-nano-8gb"))
    with pytest.raises(RecipeError, match="this machine is not one") as caught:
        QUICK(there)
    assert 'on = "USER@HOST"' in str(caught.value)
