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


def test_a_loss_that_is_no_number_is_refused_with_its_batch() -> None:
    class Broken(Images):
        def loss(self, outputs: Tensor, batch: object) -> Tensor:
            return outputs.sum() * float("nan")

    model = nets.lively(nets.ResidualCnn())
    groups = trace(model, {"image": nets.image(2, 3, 8, 8)})
    with pytest.raises(ModelError, match="loss is nan on calibration batch 1"):
        _ = Gradients(model, groups, Broken()).slopes
