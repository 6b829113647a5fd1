from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from support import nets
from support.digits import Digits
from torch import Tensor, nn

from deadweight.pipeline.importance.gradients import Gradients
from deadweight.pipeline.pruning.trace import trace
from deadweight.targets.errors import ModelError


class Images(Digits):
    """Random images and labels for the residual network."""

    def example_inputs(self) -> dict[str, Tensor]:
        return {"image": nets.image(2, 3, 8, 8)}

    def batches(self, split: str, *, seed: int = 0) -> Iterator[dict[str, Tensor]]:
        for number in range(3):
            yield {"image": nets.image(8, 3, 8, 8, seed=number), "label": torch.arange(8) % 5}


def test_the_slope_is_that_of_the_loss_along_a_factor_in_front_of_the_unit() -> None:
    """Against the definition: the residual stream is read by the last layer alone."""
    model = nets.lively(nets.ResidualCnn())
    assert isinstance(model, nets.ResidualCnn)
    groups = trace(model, {"image": nets.image(2, 3, 8, 8)})
    slopes = Gradients(model, groups, Images()).slopes
    factor = torch.ones(16, requires_grad=True)

    def gated(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        return inputs[0] * factor

    handle = model.fc.register_forward_pre_hook(gated)
    for number, batch in enumerate(Images().batches("calibration")):
        loss = F.cross_entropy(model(batch["image"]), batch["label"])
        (slope,) = torch.autograd.grad(loss, factor)
        torch.testing.assert_close(slopes["conv2"][number], slope.double(), rtol=1e-4, atol=1e-6)
    handle.remove()


def test_the_network_itself_is_left_as_it_was() -> None:
    model = nets.lively(nets.ResidualCnn())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    groups = trace(model, {"image": nets.image(2, 3, 8, 8)})
    assert len(Gradients(model, groups, Images()).slopes) == len(groups)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Random(nn.Module):
    """Dropout as a module, as a function, in attention, in an LSTM and of whole paths."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.embed, self.drop = nn.Linear(24, 16), nn.Dropout(rate)
        self.whole = nn.MultiheadAttention(16, 2, rate, batch_first=True)
        self.steps = nn.LSTM(16, 16, 2, batch_first=True, dropout=rate)
        self.path, self.head = nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        rate = self.rate if self.training else 0.0
        x = self.drop(torch.relu(self.embed(image.reshape(-1, 8, 24))))
        x = x + F.scaled_dot_product_attention(x, x, x, dropout_p=rate)
        x = self.steps(x + self.whole(x, x, x, need_weights=False)[0])[0]
        kept = x.new_empty(len(x), 1, 1).bernoulli_(1 - rate).div_(1 - rate) if rate else 1.0
        x = F.dropout(x + self.path(x) * kept, rate, self.training)
        scores: Tensor = self.head(x.mean(1))
        return scores


def test_no_dropout_of_any_kind_is_in_a_slope() -> None:
    slopes = []
    for rate in (0.5, 0.0):
        model = nets.lively(Random(rate))
        groups = trace(model, {"image": nets.image(2, 3, 8, 8)})
        slopes += [Gradients(model, groups, Images()).slopes for _ in range(2)]
    assert len(slopes[0]) >= 3
    for name, first in slopes[0].items():
        for other in slopes[1:]:
            torch.testing.assert_close(other[name], first, rtol=1e-5, atol=1e-7)
        assert torch.equal(slopes[1][name], first)


def test_other_random_numbers_of_training_are_the_same_each_time() -> None:
    class Noisy(nets.ResidualCnn):
        def forward(self, image: Tensor) -> Tensor:
            scores = super().forward(image)
            return scores * torch.rand_like(scores) if self.training else scores

    model = nets.lively(Noisy())
    groups = trace(model, {"image": nets.image(2, 3, 8, 8)})
    state = torch.random.get_rng_state()
    first, again = (Gradients(model, groups, Images()).slopes for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(again[name], slope) for name, slope in first.items())


def test_a_loss_that_is_no_number_is_refused_with_its_batch() -> None:
    class Broken(Images):
        def loss(self, outputs: Tensor, batch: object) -> Tensor:
            return outputs.sum() * float("nan")

    model = nets.lively(nets.ResidualCnn())
    groups = trace(model, {"image": nets.image(2, 3, 8, 8)})
    with pytest.raises(ModelError, match="loss is nan on calibration batch 1"):
        _ = Gradients(model, groups, Broken()).slopes
