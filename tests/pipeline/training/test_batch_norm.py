from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support import nets
from support.digits import Digits
from support.halving import halved
from torch import Tensor

from deadweight.pipeline.pruning.graphnet import GraphNet
from deadweight.pipeline.training.batch_norm import reestimated

IMAGES = nets.image(64, 3, 8, 8, seed=5)


class Images(Digits):
    """The same images in every split."""

    def example_inputs(self) -> dict[str, Tensor]:
        return {"image": IMAGES[:2]}

    def batches(self, split: str, *, seed: int = 0) -> Iterator[dict[str, Tensor]]:
        for images in torch.split(IMAGES, 16):
            yield {"image": images, "label": torch.arange(len(images)) % 5}


def test_running_statistics_become_the_plain_average_over_the_batches() -> None:
    model = nets.lively(nets.ResidualCnn())
    assert isinstance(model, nets.ResidualCnn)
    found = reestimated(model, Images())
    assert isinstance(found, nets.ResidualCnn)
    with torch.no_grad():
        inputs = [model.stem(images) for images in torch.split(IMAGES, 16)]
    means = torch.stack([value.mean((0, 2, 3)) for value in inputs]).mean(0)
    variances = torch.stack([value.var((0, 2, 3)) for value in inputs]).mean(0)
    torch.testing.assert_close(found.norm.running_mean, means, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.norm.running_var, variances, rtol=1e-4, atol=1e-5)
    assert found.norm.momentum == model.norm.momentum
    assert not found.training


def test_weights_and_the_network_that_was_given_stay() -> None:
    model = nets.lively(nets.ResidualCnn())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = reestimated(model, Images(), batches=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in found.named_parameters())


@pytest.mark.parametrize("batches", [0, 3])
def test_without_batches_or_norms_nothing_is_done(batches: int) -> None:
    model = nets.ResidualCnn() if not batches else nets.Mlp()
    assert reestimated(model, Images(), batches=batches) is model


def test_the_graph_form_is_estimated_too() -> None:
    small, _, _ = halved(nets.lively(nets.ResidualCnn()), IMAGES[:2], "graph")
    assert isinstance(small, GraphNet)
    found = reestimated(small, Images())
    before, after = (dict(one.named_buffers())["norm.running_mean"] for one in (small, found))
    assert not torch.equal(before, after)
    assert not found.training
