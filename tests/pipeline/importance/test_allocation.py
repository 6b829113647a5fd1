from __future__ import annotations

import pytest
import torch
from support import nets
from torch import Tensor

from deadweight.pipeline.importance.allocation import (
    check_scores,
    choose_by_parameters,
    kept,
    ranking,
)
from deadweight.pipeline.pruning.groups import Groups
from deadweight.pipeline.pruning.plan import parameters_left
from deadweight.pipeline.pruning.surgery import apply
from deadweight.pipeline.pruning.trace import trace
from deadweight.targets.errors import ModelError

SCORES = {"a": torch.tensor([1.0, 2.0, 3.0, 4.0]), "b": torch.tensor([10.0, 10.0, 30.0, 30.0])}


@pytest.fixture(scope="module")
def model() -> nets.Mlp:
    return nets.Mlp()


@pytest.fixture(scope="module")
def groups(model: nets.Mlp) -> Groups:
    return trace(model, {"image": nets.image(2, 16)})


def drawn(groups: Groups) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {group.name: torch.rand(group.size, generator=generator) for group in groups}


def test_locally_all_groups_give_equal_shares() -> None:
    order = ranking(SCORES, scope="local")
    assert order == ["a", "b", "a", "b", "a", "b"]


def test_globally_scores_are_compared_as_multiples_of_their_groups_mean() -> None:
    """a: 0.4 0.8 1.2 1.6, b: 0.5 0.5 1.5 1.5."""
    assert ranking(SCORES) == ["a", "b", "b", "a", "a", "b"]


def test_without_normalisation_a_group_of_small_scores_goes_first() -> None:
    assert ranking(SCORES, normalise="none") == ["a", "a", "a", "b", "b", "b"]


def test_lamp_compares_shares_of_what_is_at_least_as_high() -> None:
    """a: 1/10 2/9 3/7 1, b: 1/8 1/7 1/2 1."""
    assert ranking(SCORES, normalise="lamp") == ["a", "b", "b", "a", "a", "b"]


def test_no_group_is_emptied_however_low_its_scores() -> None:
    low = {"a": torch.zeros(5), "b": torch.ones(5)}
    assert ranking(low, normalise="none").count("a") == 4


def test_a_group_gives_no_more_than_its_largest_share() -> None:
    assert ranking(SCORES, normalise="none", most=0.5) == ["a", "a", "b", "b"]


def test_the_units_that_are_kept_follow_from_the_order(groups: Groups) -> None:
    names = [group.name for group in groups]
    assert kept(groups, drawn(groups), [names[0], names[0], names[1]], 2) == {
        names[0]: groups[names[0]].size - 2,
        names[1]: groups[names[1]].size,
    }


@pytest.mark.parametrize("removed", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_budget_in_parameters_is_met_by_the_fewest_units(
    removed: float, scope: str, model: nets.Mlp, groups: Groups
) -> None:
    scores = drawn(groups)
    order = ranking(scores, scope="local" if scope == "local" else "global")
    plan = choose_by_parameters(model, groups, scores, removed=removed, order=order)
    total = sum(parameter.numel() for parameter in model.parameters())
    small = apply(model, plan, groups)
    left = sum(parameter.numel() for parameter in small.parameters())
    assert left == parameters_left(model, plan)
    assert 1 - left / total >= removed
    count = sum(map(len, plan.removed.values()))
    from deadweight.pipeline.pruning.groups import choose

    fewer = choose(groups, scores, keep=kept(groups, scores, order, count - 1))
    assert 1 - parameters_left(model, fewer) / total < removed


def test_a_budget_that_cannot_be_met_says_how_much_can(model: nets.Mlp, groups: Groups) -> None:
    scores = drawn(groups)
    with pytest.raises(ModelError, match=r"99\.9% of the parameters .* only \d\d\.\d% can"):
        choose_by_parameters(model, groups, scores, removed=0.999, order=ranking(scores))


def test_scores_that_cannot_be_ranked_are_refused(groups: Groups) -> None:
    (first, *_) = groups
    with pytest.raises(ModelError, match="NaN"):
        check_scores(groups, {first.name: torch.full((first.size,), torch.nan)})
    with pytest.raises(ModelError, match="one number per unit"):
        check_scores(groups, {first.name: torch.zeros(first.size + 1)})
