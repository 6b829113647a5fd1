from __future__ import annotations

from collections.abc import Iterator

import nets
import pytest
import torch
from small import Digits
from torch import Tensor

from deadweight.pipeline import importance
from deadweight.pipeline.gradients import Gradients
from deadweight.pipeline.importance import CRITERIA, Context, Criterion, below
from deadweight.pipeline.pruning.groups import Group, Groups, Slice
from deadweight.pipeline.pruning.trace import trace
from deadweight.pipeline.statistics import ActivationStatistics, UnitStatistics, collect
from deadweight.targets.errors import ModelError, RecipeError


@pytest.fixture(scope="module")
def model() -> nets.ResidualCnn:
    built = nets.lively(nets.ResidualCnn())
    assert isinstance(built, nets.ResidualCnn)
    with torch.no_grad():
        built.norm1.weight[5], built.norm1.bias[5] = 0.0, -1.0
    return built


@pytest.fixture(scope="module")
def groups(model: nets.ResidualCnn) -> Groups:
    return trace(model, {"image": nets.image(2, 3, 8, 8)})


@pytest.fixture(scope="module")
def context(model: nets.ResidualCnn, groups: Groups) -> Context:
    statistics = collect(groups, [{"image": nets.image(16, 3, 8, 8)}])
    return Context(model, statistics, seed=3, gradients=Gradients(model, groups, Images()))


class Images(Digits):
    """Random images and labels for the residual network."""

    def example_inputs(self) -> dict[str, Tensor]:
        return {"image": nets.image(2, 3, 8, 8)}

    def batches(self, split: str, *, seed: int = 0) -> Iterator[dict[str, Tensor]]:
        for number in range(3):
            yield {"image": nets.image(8, 3, 8, 8, seed=number), "label": torch.arange(8) % 5}


def units(mean: list[float], std: list[float], count: float = 10) -> UnitStatistics:
    """Statistics of which only these matter."""
    first, second = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
    return UnitStatistics(first, second, first.abs(), 0 * first, first, torch.full_like(first, count))


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_gives_one_finite_score_a_unit(name: str, groups: Groups, context: Context) -> None:
    criterion: Criterion = getattr(importance, name)
    for group in groups:
        scores = criterion(group, context)
        assert scores.shape == (group.size,)
        assert scores.dtype == torch.float64
        assert bool(torch.isfinite(scores).all())


@pytest.mark.parametrize("name", ["activation", "mean_absolute", "apoz"])
def test_a_channel_that_never_fires_scores_lowest(name: str, groups: Groups, context: Context) -> None:
    scores = getattr(importance, name)(groups["conv1"], context)
    assert float(scores[5]) == 0.0
    assert float(scores.min()) == 0.0


def test_a_unit_is_dead_if_both_its_mean_and_its_deviation_are_small() -> None:
    found = below(units([0.0, 0.1, -0.1, 0.3, 0.0, 5.0], [0.0, 0.2, 0.2, 0.1, 0.5, 0.0]), mean=0.1, std=0.2)
    assert found.tolist() == [True, True, True, False, False, False]


def test_thresholds_of_zero_find_the_units_that_are_constantly_zero() -> None:
    assert below(units([0.0, 1e-9, 0.0], [0.0, 0.0, 1e-9]), mean=0.0, std=0.0).tolist() == [
        True,
        False,
        False,
    ]


def test_a_unit_that_was_never_seen_is_not_dead() -> None:
    assert below(units([0.0], [0.0], count=0), mean=1.0, std=1.0).tolist() == [False]


@pytest.mark.parametrize(
    ("mean", "std", "named"), [(-0.1, 1.0, "mean is -0.1"), (1.0, torch.nan, "std is nan")]
)
def test_a_threshold_that_is_none_is_refused(mean: float, std: float, named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        below(units([0.0], [0.0]), mean=mean, std=std)


def test_the_activation_score_is_the_root_mean_square(groups: Groups, model: nets.ResidualCnn) -> None:
    data = nets.image(16, 3, 8, 8)
    context = Context(model, collect(groups, [{"image": data}]))
    values = torch.relu(model.norm(model.stem(data))).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(
        importance.activation(groups["stem"], context), values.square().mean(1).sqrt(), rtol=1e-5, atol=0
    )


def test_weights_of_all_producers_of_a_coupled_group_count_as_one_vector(
    groups: Groups, context: Context, model: nets.ResidualCnn
) -> None:
    """The residual sum ties conv2 to the projection: its first module gives the group its name."""
    joined = torch.cat([model.conv2.weight.flatten(1), model.short.weight.flatten(1)], 1).detach().double()
    group = groups["conv2"]
    torch.testing.assert_close(importance.weight_l1(group, context), joined.abs().sum(1))
    torch.testing.assert_close(importance.weight_l2(group, context), torch.linalg.vector_norm(joined, dim=1))


def test_only_producing_weights_count(groups: Groups, context: Context, model: nets.ResidualCnn) -> None:
    expected = model.stem.weight.detach().double().abs().sum((1, 2, 3))
    torch.testing.assert_close(importance.weight_l1(groups["stem"], context), expected)


def test_weights_of_several_rows_a_unit_are_added_up() -> None:
    weight = torch.arange(12.0).view(6, 2)
    model = torch.nn.ParameterDict({"w": weight})
    units_of_rows = torch.tensor([0, 0, 1, 1, -1, 2])
    group = Group("w", 3, "linear", ("linear",), (Slice("w", 0, units_of_rows, "producer"),), ())
    assert importance.weight_l1(group, Context(model)).tolist() == [6.0, 22.0, 21.0]


def test_random_scores_depend_on_the_seed_and_the_name_alone(groups: Groups, context: Context) -> None:
    first = {group.name: importance.random(group, context) for group in groups}
    torch.rand(7)
    again = {group.name: importance.random(group, context) for group in reversed(groups.groups)}
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = Context(context.model, seed=4)
    assert not any(torch.equal(first[group.name], importance.random(group, other)) for group in groups)
    assert not torch.equal(first["conv1"], first["conv2"])


def test_a_criterion_of_activations_asks_for_the_stage_that_collects_them(
    groups: Groups, model: nets.ResidualCnn
) -> None:
    with pytest.raises(RecipeError, match="no statistics were collected") as caught:
        importance.apoz(groups["stem"], Context(model))
    assert 'the stage "statistics" before the stage prune' in caught.value.cure


def test_statistics_of_another_network_are_refused(groups: Groups, model: nets.ResidualCnn) -> None:
    foreign = ActivationStatistics({"stem": units([0.0, 1.0], [1.0, 1.0])})
    with pytest.raises(ModelError, match=r'statistics of "stem" are of 2 units, not of its 8'):
        importance.activation(groups["stem"], Context(model, foreign))


def test_weights_of_another_network_are_refused(groups: Groups) -> None:
    with pytest.raises(ModelError, match=r'no parameter "stem\.weight"'):
        importance.weight_l2(groups["stem"], Context(nets.Mlp()))


def outgoing(group: Group, context: Context) -> Tensor:
    """A user's own: the weights that read a unit."""
    scores = torch.zeros(group.size)
    for piece in group.slices:
        if piece.role == "consumer":
            weights = context.weights(piece.parameter).movedim(piece.axis, 0).flatten(1)
            scores.index_add_(0, piece.units, weights.abs().sum(1))
    return scores


def test_a_criterion_of_the_users_own_has_the_same_two_arguments(
    groups: Groups, context: Context, model: nets.ResidualCnn
) -> None:
    own: Criterion = outgoing
    expected = model.conv2.weight.detach().abs().sum((0, 2, 3))
    torch.testing.assert_close(own(groups["conv1"], context), expected)
