"""The choice of units: ratios, masks, alignment, and what is refused."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from support import nets

from deadweight.pipeline.pruning.groups import Groups, choose, random_like, remove
from deadweight.pipeline.pruning.plan import Plan, plan_of
from deadweight.pipeline.pruning.surgery import apply
from deadweight.pipeline.pruning.trace import trace
from deadweight.targets.errors import ArtifactError, ModelError


@functools.cache
def mlp() -> Groups:
    return trace(nets.Mlp(), (nets.image(2, 1, 4, 4),))


@functools.cache
def separable() -> Groups:
    return trace(nets.Separable(), (nets.image(2, 3, 6, 6),))


def test_the_lowest_scores_go_first() -> None:
    scores = {"fc1": torch.arange(12.0).flip(0)}
    plan = choose(mlp(), scores, ratio=0.25)
    assert plan.removed == {"fc1": (9, 10, 11)}
    assert (plan.widths["fc1"].before, plan.widths["fc1"].after) == (12, 9)
    assert plan.widths["fc2"].after == 8


def test_the_plan_says_what_is_cut_from_each_parameter() -> None:
    plan = remove(mlp(), {"fc1": torch.arange(12) == 4})
    assert plan.cut == {"fc1.weight": {0: (4,)}, "fc1.bias": {0: (4,)}, "fc2.weight": {1: (4,)}}
    assert (plan.shapes["fc2.weight"].before, plan.shapes["fc2.weight"].after) == ((8, 12), (8, 11))


def test_what_to_keep_can_be_said_by_group() -> None:
    scores = {group.name: torch.rand(group.size) for group in mlp()}
    plan = choose(mlp(), scores, keep={"fc1": 5, "fc2": 0})
    assert {name: width.after for name, width in plan.widths.items()} == {"fc1": 5, "fc2": 1}
    with pytest.raises(ModelError, match="either ratio or keep"):
        choose(mlp(), scores, ratio=0.5, keep={})


def test_widths_are_rounded_up_and_the_best_of_the_doomed_come_back() -> None:
    scores = {"fc1": torch.tensor([5.0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 0])}
    plan = choose(mlp(), scores, ratio=0.5, align=8)
    assert plan.widths["fc1"].after == 8
    assert plan.removed["fc1"] == (1, 2, 3, 11)


def test_a_mask_without_scores_is_aligned_too() -> None:
    plan = remove(mlp(), {"fc1": torch.arange(12) < 7}, align={"linear": 4})
    assert plan.removed["fc1"] == (3 + 0, 4, 5, 6)


def test_a_width_is_never_rounded_beyond_its_size() -> None:
    assert remove(mlp(), {"fc1": torch.arange(12) < 7}, align=16).removed == {}


def test_a_group_keeps_the_steps_of_all_its_members() -> None:
    dead = {"expand": torch.arange(12) < 9}
    assert remove(separable(), dead, align={"conv": 2, "depthwise": 3}).widths["expand"].after == 6
    assert remove(separable(), dead, align={"conv": 2}).widths["expand"].after == 4


def test_to_remove_a_whole_layer_is_refused_with_its_name_and_the_thresholds() -> None:
    with pytest.raises(ModelError, match=r'(?s)All 12 units of the group "fc1".*thresholds \(mean, std\)'):
        remove(mlp(), {"fc1": torch.ones(12, dtype=torch.bool)})


@pytest.mark.parametrize("ratio", [0.0, 1.0, 1.5, -0.1])
def test_a_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(ModelError, match="between 0 and 1"):
        choose(mlp(), {"fc1": torch.rand(12)}, ratio=ratio)


def test_a_high_ratio_leaves_one_unit() -> None:
    assert choose(mlp(), {"fc1": torch.rand(12)}, ratio=0.999).widths["fc1"].after == 1


def test_scores_of_the_wrong_size_or_without_sense_are_refused() -> None:
    with pytest.raises(ModelError, match=r"shape \(5,\); it has 12 units"):
        choose(mlp(), {"fc1": torch.rand(5)}, ratio=0.5)
    with pytest.raises(ModelError, match="have NaN"):
        choose(mlp(), {"fc1": torch.full((12,), torch.nan)}, ratio=0.5)
    with pytest.raises(ModelError, match=r'(?s)no group "fc9".*fc1, fc2'):
        choose(mlp(), {"fc9": torch.rand(5)}, ratio=0.5)


def test_the_random_control_has_the_same_widths_and_repeats() -> None:
    plan = choose(mlp(), {"fc1": torch.rand(12), "fc2": torch.rand(8)}, ratio=0.5)
    control = random_like(mlp(), plan, seed=1)
    assert control.widths == plan.widths
    assert (
        control.removed
        == random_like(mlp(), plan, seed=1).removed
        != random_like(mlp(), plan, seed=2).removed
    )


def test_a_plan_survives_json() -> None:
    plan = choose(separable(), {group.name: torch.rand(group.size) for group in separable()}, ratio=0.5)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    with pytest.raises(ArtifactError, match="not a plan"):
        Plan.from_json({"schema": 1})


def test_groups_and_plans_are_printed_as_what_a_reader_wants_of_them() -> None:
    model = nets.lively(nets.ResidualCnn())
    groups = trace(model, (nets.image(2, 3, 8, 8),))
    lines = str(groups).splitlines()
    assert lines[0] == f"{len(groups)} groups"
    assert "  conv1 (conv): 16 units" in lines
    assert "  fc.weight, axis 0, stays: it is an output of the network" in lines
    plan = choose(groups, {"conv1": torch.arange(16.0)}, ratio=0.5)
    assert str(plan) == "Plan, not applied yet\n  conv1 (conv): 16 -> 8"
    done = plan_of(apply(model, plan, groups))
    assert str(done).startswith("Plan, module form: its forward code follows the widths\n  conv1")


def test_a_choice_without_scores_is_refused() -> None:
    groups = trace(nets.Mlp(), (nets.image(2, 1, 4, 4),))
    with pytest.raises(ModelError, match="There are no scores"):
        choose(groups, {}, ratio=0.5)
