from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support import nets
from support.digits import Digits
from torch import Tensor

from deadweight.pipeline.importance import criteria
from deadweight.pipeline.importance.activations import ActivationStatistics, UnitStatistics, collect
from deadweight.pipeline.importance.criteria import CRITERIA, Context, Criterion, below
from deadweight.pipeline.importance.gradients import Gradients
from deadweight.pipeline.pruning.groups import Group, Groups, Slice
from deadweight.pipeline.pruning.trace import trace
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
    criterion: Criterion = getattr(criteria, name)
    for group in groups:
        scores = criterion(group, context)
        assert scores.shape == (group.size,)
        assert scores.dtype == torch.float64
        assert bool(torch.isfinite(scores).all())


@pytest.mark.parametrize("name", ["activation", "mean_absolute", "apoz"])
def test_a_channel_that_never_fires_scores_lowest(name: str, groups: Groups, context: Context) -> None:
    scores = getattr(criteria, name)(groups["conv1"], context)
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
        criteria.activation(groups["stem"], context), values.square().mean(1).sqrt(), rtol=1e-5, atol=0
    )


def test_weights_of_all_producers_of_a_coupled_group_count_as_one_vector(
    groups: Groups, context: Context, model: nets.ResidualCnn
) -> None:
    """The residual sum ties conv2 to the projection: its first module gives the group its name."""
    joined = torch.cat([model.conv2.weight.flatten(1), model.short.weight.flatten(1)], 1).detach().double()
    group = groups["conv2"]
    torch.testing.assert_close(criteria.weight_l1(group, context), joined.abs().sum(1))
    torch.testing.assert_close(criteria.weight_l2(group, context), torch.linalg.vector_norm(joined, dim=1))


def test_only_producing_weights_count(groups: Groups, context: Context, model: nets.ResidualCnn) -> None:
    expected = model.stem.weight.detach().double().abs().sum((1, 2, 3))
    torch.testing.assert_close(criteria.weight_l1(groups["stem"], context), expected)


def test_weights_of_several_rows_a_unit_are_added_up() -> None:
    weight = torch.arange(12.0).view(6, 2)
    model = torch.nn.ParameterDict({"w": weight})
    units_of_rows = torch.tensor([0, 0, 1, 1, -1, 2])
    group = Group("w", 3, "linear", ("linear",), (Slice("w", 0, units_of_rows, "producer"),), ())
    assert criteria.weight_l1(group, Context(model)).tolist() == [6.0, 22.0, 21.0]


def test_random_scores_depend_on_the_seed_and_the_name_alone(groups: Groups, context: Context) -> None:
    first = {group.name: criteria.random(group, context) for group in groups}
    torch.rand(7)
    again = {group.name: criteria.random(group, context) for group in reversed(groups.groups)}
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = Context(context.model, seed=4)
    assert not any(torch.equal(first[group.name], criteria.random(group, other)) for group in groups)
    assert not torch.equal(first["conv1"], first["conv2"])


def test_a_criterion_of_activations_asks_for_the_stage_that_collects_them(
    groups: Groups, model: nets.ResidualCnn
) -> None:
    with pytest.raises(RecipeError, match="no statistics were collected") as caught:
        criteria.apoz(groups["stem"], Context(model))
    assert 'the stage "statistics" before the stage prune' in caught.value.cure


def test_statistics_of_another_network_are_refused(groups: Groups, model: nets.ResidualCnn) -> None:
    foreign = ActivationStatistics({"stem": units([0.0, 1.0], [1.0, 1.0])})
    with pytest.raises(ModelError, match=r'statistics of "stem" are of 2 units, not of its 8'):
        criteria.activation(groups["stem"], Context(model, foreign))


def test_weights_of_another_network_are_refused(groups: Groups) -> None:
    with pytest.raises(ModelError, match=r'no parameter "stem\.weight"'):
        criteria.weight_l2(groups["stem"], Context(nets.Mlp()))


def test_the_scale_of_a_unit_is_that_of_all_its_batch_norms_as_one_vector(
    groups: Groups, context: Context, model: nets.ResidualCnn
) -> None:
    """The residual group has one; the sum's other branch is not normalised."""
    expected = model.norm2.weight.detach().double().abs()
    torch.testing.assert_close(criteria.batch_norm(groups["conv2"], context), expected)


def test_a_group_without_a_batch_norm_is_named() -> None:
    model = nets.Mlp()
    (first, *_) = trace(model, {"image": nets.image(2, 16)})
    with pytest.raises(ModelError, match='No batch norm scales the units of "fc1"'):
        criteria.batch_norm(first, Context(model))


def test_what_readers_get_counts_in_activation_outgoing(
    groups: Groups, context: Context, model: nets.ResidualCnn
) -> None:
    """The stem is read by the first convolution and by the projection: their columns are one vector."""
    group = groups["stem"]
    columns = [
        layer.weight.detach().double().transpose(0, 1).flatten(1) for layer in (model.conv1, model.short)
    ]
    norm = torch.linalg.vector_norm(torch.cat(columns, 1), dim=1)
    expected = criteria.activation(group, context) * norm
    torch.testing.assert_close(criteria.activation_outgoing(group, context), expected)


def test_the_geometric_median_is_the_sum_of_distances_over_all_producers(
    groups: Groups, context: Context, model: nets.ResidualCnn
) -> None:
    joined = torch.cat([model.conv2.weight.flatten(1), model.short.weight.flatten(1)], 1).detach().double()
    expected = torch.cdist(joined, joined).sum(1)
    torch.testing.assert_close(criteria.geometric_median(groups["conv2"], context), expected)


def test_a_unit_that_another_can_stand_in_for_is_nearest_to_the_median() -> None:
    weight = torch.tensor([[0.0, 1.0], [0.1, 1.0], [5.0, -3.0], [0.0, 1.1]])
    model = torch.nn.ParameterDict({"w": weight})
    group = Group("w", 4, "linear", ("linear",), (Slice("w", 0, torch.arange(4), "producer"),), ())
    assert int(criteria.geometric_median(group, Context(model)).argmax()) == 2


def test_units_of_several_rows_are_compared_row_by_row() -> None:
    weight = torch.tensor([[1.0], [2.0], [1.0], [2.0], [3.0], [4.0]])
    model = torch.nn.ParameterDict({"w": weight})
    rows = torch.tensor([0, 0, 1, 1, 2, 2])
    group = Group("w", 3, "linear", ("linear",), (Slice("w", 0, rows, "producer"),), ())
    scores = criteria.geometric_median(group, Context(model))
    torch.testing.assert_close(scores, torch.tensor([1, 1, 2], dtype=torch.float64) * 8**0.5)


def test_lamp_is_the_share_of_what_is_at_least_as_heavy() -> None:
    found = criteria.lamp_of(torch.tensor([4.0, 1.0, 5.0]))
    torch.testing.assert_close(found, torch.tensor([4 / 9, 1 / 10, 1.0]))


def test_within_a_group_lamp_is_the_order_of_the_weights(groups: Groups, context: Context) -> None:
    for group in groups:
        lamp, norm = criteria.lamp(group, context), criteria.weight_l2(group, context)
        assert torch.equal(lamp.argsort(), norm.argsort())


def test_taylor_predicts_what_switching_a_unit_off_costs() -> None:
    """First order: right where the change is small, so the readers' columns are made small."""
    torch.manual_seed(0)
    last = torch.nn.Linear(12, 10)
    model = torch.nn.Sequential(torch.nn.Linear(64, 12), torch.nn.ReLU(), last)
    with torch.no_grad():
        last.weight *= 1e-3
    groups = trace(model, Digits().example_inputs())
    context = Context(model, gradients=Gradients(model, groups, Digits()))
    (group,) = groups
    batch = next(iter(Digits().batches("calibration")))
    whole = Digits().loss(model(batch["pixels"]), batch)
    costs = []
    for unit in range(12):
        kept = last.weight[:, unit].clone()
        with torch.no_grad():
            last.weight[:, unit] = 0
            costs.append(float(whole - Digits().loss(model(batch["pixels"]), batch)))
            last.weight[:, unit] = kept
    slopes = context.slopes(group)
    torch.testing.assert_close(slopes[0], torch.tensor(costs, dtype=torch.float64), rtol=0.05, atol=1e-6)
    torch.testing.assert_close(criteria.taylor(group, context), slopes.square().mean(0))


def test_a_criterion_of_the_loss_asks_for_gradients(groups: Groups, model: nets.ResidualCnn) -> None:
    with pytest.raises(RecipeError, match="no gradients were given"):
        criteria.taylor(groups["stem"], Context(model))


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
