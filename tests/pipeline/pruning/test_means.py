"""A constant unit can go without a trace: its value is in the next bias."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support import nets
from torch import Tensor, nn

from deadweight.pipeline.pruning.groups import remove
from deadweight.pipeline.pruning.means import fold_means
from deadweight.pipeline.pruning.surgery import apply
from deadweight.pipeline.pruning.trace import trace
from deadweight.targets.errors import ModelError


class Pointwise(nn.Module):
    """A 1x1 convolution before a batch norm, a padded one, a linear layer behind a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 6, 1)
        self.b = nn.Conv2d(6, 8, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.c = nn.Conv2d(8, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 9, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.sigmoid(self.norm(self.b(F.relu(self.a(image)))))
        out: Tensor = self.fc(F.relu(self.c(x)).flatten(1))
        return out


def constant(layer: nn.Module, units: list[int]) -> None:
    """Makes units of a layer give the same value, whatever comes in."""
    with torch.no_grad():
        layer.get_parameter("weight")[units] = 0
        layer.get_parameter("bias")[units] = 0.7


def test_constant_neurons_of_an_mlp_leave_no_trace() -> None:
    model = nets.lively(nets.Mlp()).double()
    constant(model.get_submodule("fc1"), [0, 5])
    constant(model.get_submodule("fc2"), [3])
    example = nets.image(4, 1, 4, 4).double()
    groups = trace(model, (example,))
    dead = {"fc1": torch.isin(torch.arange(12), torch.tensor([0, 5])), "fc2": torch.arange(8) == 3}
    small = apply(model, remove(groups, dead), groups)
    assert not torch.allclose(small(example), model(example))
    folded, skipped = fold_means(small, groups, [(example,)])
    assert skipped == ()
    assert torch.allclose(folded(example), model(example), rtol=1e-12)


def test_a_batch_norm_takes_the_constant_where_there_is_no_bias() -> None:
    model = nets.lively(Pointwise()).double()
    constant(model.get_submodule("a"), [1, 4])
    example = nets.image(2, 2, 3, 3).double()
    groups = trace(model, (example,))
    dead = {"a": torch.isin(torch.arange(6), torch.tensor([1, 4]))}
    small = apply(model, remove(groups, dead), groups)
    folded, skipped = fold_means(small, groups, [{"image": example}])
    assert skipped == ()
    assert torch.allclose(folded(example), model(example), rtol=1e-12)


def test_a_padded_convolution_is_left_as_it_is_and_named() -> None:
    model = nets.lively(Pointwise()).double()
    example = nets.image(2, 2, 3, 3).double()
    groups = trace(model, (example,))
    small = apply(model, remove(groups, {"b": torch.arange(8) < 2}), groups)
    folded, skipped = fold_means(small, groups, [(example,)])
    assert skipped == ("c.weight: it pads with zeros, which are not the mean",)
    assert torch.equal(folded(example), small(example))


def test_a_channel_behind_a_flatten_has_a_mean_at_each_place() -> None:
    model = nets.lively(Pointwise()).double()
    constant(model.get_submodule("c"), [2])
    example = nets.image(2, 2, 3, 3).double()
    groups = trace(model, (example,))
    small = apply(model, remove(groups, {"c": torch.arange(4) == 2}), groups)
    folded, _ = fold_means(small, groups, [(example[:1],), (example[1:],)])
    assert torch.allclose(folded(example), model(example), rtol=1e-12)


def test_means_need_batches_and_the_right_trace() -> None:
    model = nets.lively(nets.Mlp())
    groups = trace(model, (nets.image(2, 1, 4, 4),))
    small = apply(model, remove(groups, {"fc1": torch.arange(12) < 2}), groups)
    with pytest.raises(ModelError, match="no batches"):
        fold_means(small, groups, [])
    with pytest.raises(ModelError, match="not pruned from"):
        fold_means(model, groups, [])
