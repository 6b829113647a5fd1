"""Random networks, random units: what is left always computes the original without them.

Networks are drawn from the operators that have rules: convolutions plain, grouped, depthwise and transposed,
norms, residual sums, concat, split, shuffles, permutes, gates, attention. A counterexample shrinks to the
shortest list of steps that still fails.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import nets
from torch import Tensor, nn

from deadweight.pipeline.pruning.groups import remove
from deadweight.pipeline.pruning.surgery import apply
from deadweight.pipeline.pruning.trace import trace
from deadweight.pipeline.pruning.verify import verify

EVERY_CHECK = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
AS_ONE = "all its units are coupled into one"
STEPS = [
    "conv",
    "norm",
    "relu",
    "depthwise",
    "grouped",
    "group norm",
    "residual",
    "dense",
    "split",
    "shuffle",
    "linear",
    "gate",
    "glu",
    "attention",
    "pixel shuffle",
    "transposed",
    "stacked",
]


class Drawn(nn.Module):
    """A network of the steps in a list; every width is a multiple of 12."""

    def __init__(self, steps: list[str]) -> None:
        super().__init__()
        self.steps = steps
        self.stem = nn.Conv2d(3, 12, 1)
        width = 12
        layers: list[nn.Module] = []
        for step in steps:
            layers.append(self.layers_for(step, width))
            width = {"dense": 2 * width, "conv": 24}.get(step, width)
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(width, 3)

    @staticmethod
    def layers_for(step: str, width: int) -> nn.Module:
        conv = nn.Conv2d
        made: dict[str, list[nn.Module]] = {
            "conv": [conv(width, 24, 3, padding=1, bias=False)],
            "norm": [nn.BatchNorm2d(width)],
            "depthwise": [conv(width, width, 3, padding=1, groups=width)],
            "grouped": [conv(width, width, 1, groups=3)],
            "group norm": [nn.GroupNorm(4, width)],
            "residual": [conv(width, 8, 1), conv(8, width, 3, padding=1)],
            "dense": [conv(width, width, 1)],
            "split": [conv(width // 2, width // 2, 1)],
            "linear": [nn.LayerNorm(width), nn.Linear(width, 20), nn.Linear(20, width)],
            "gate": [conv(width, 6, 1), conv(6, width, 1)],
            "glu": [conv(width, 2 * width, 1)],
            "attention": [nn.Linear(width, 3 * width), nn.Linear(width, width)],
            "pixel shuffle": [conv(width, 4 * width, 1)],
            "transposed": [nn.ConvTranspose2d(width, width, 2, 2, groups=2)],
            "stacked": [conv(width, width, 1)],
        }
        return nn.ModuleList(made.get(step, []))

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        for step, layers in zip(self.steps, self.layers, strict=True):
            assert isinstance(layers, nn.ModuleList)
            x = self.walk(step, list(layers), x)
        out: Tensor = self.head(x.mean((2, 3)))
        return out

    def walk(self, step: str, layers: list[nn.Module], x: Tensor) -> Any:
        b, c, h, w = x.shape
        if step == "relu":
            return F.relu(x)
        if step == "residual":
            return x + layers[1](F.relu(layers[0](x)))
        if step == "dense":
            return torch.cat([x, layers[0](x)], 1)
        if step == "split":
            left, right = x.chunk(2, 1)
            return torch.cat([layers[0](right), left], 1)
        if step == "shuffle":
            return x.view(b, 3, c // 3, h, w).transpose(1, 2).reshape(b, c, h, w)
        if step == "linear":
            y = layers[0](x.permute(0, 2, 3, 1))
            return x + layers[2](F.gelu(layers[1](y))).permute(0, 3, 1, 2)
        if step == "gate":
            gate = layers[1](F.relu(layers[0](x.mean((2, 3), keepdim=True))))
            return x * gate.sigmoid()
        if step == "glu":
            return F.glu(layers[0](x), 1)
        if step == "attention":
            y = x.flatten(2).transpose(1, 2)
            q, k, v = layers[0](y).reshape(b, h * w, 3, 3, -1).permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h * w, -1)
            return x + layers[1](y).transpose(1, 2).reshape(b, -1, h, w)
        if step in ("pixel shuffle", "transposed"):
            y = layers[0](x)
            return F.avg_pool2d(F.pixel_shuffle(y, 2) if step == "pixel shuffle" else y, 2)
        if step == "stacked":
            weights = torch.stack([x, layers[0](x)], 1)
            return (weights * weights.mean((2, 3, 4), keepdim=True).softmax(1)).sum(1)
        return layers[0](x)


def check(steps: list[str], seed: int) -> None:
    model = nets.lively(Drawn(steps), seed).double()
    example = nets.image(2, 3, 4, 4, seed=seed).double()
    groups = trace(model, (example,))
    generator = torch.Generator().manual_seed(seed)
    dead = {}
    for group in groups:
        order = torch.randperm(group.size, generator=generator)
        kept = int(torch.randint(1, group.size + 1, (1,), generator=generator))
        dead[group.name] = order >= kept
    plan = remove(groups, dead)
    small = apply(model, plan, groups)
    assert verify(model, small, plan, groups).max_relative_error < 1e-10
    assert small(torch.cat([example, example])).shape == (4, 3)
    # Nothing is over-frozen unseen, but where a split in 3 and one in 4 leave nothing that fits both.
    reasons = {one.reason for one in groups.frozen} - {"it is an output of the network", AS_ONE}
    assert len(groups) > 0 or AS_ONE in {one.reason for one in groups.frozen}
    assert not reasons


drawn = st.lists(st.sampled_from(STEPS), min_size=1, max_size=6)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=EVERY_CHECK)
@given(steps=drawn, seed=st.integers(0, 1000))
def test_a_dozen_random_networks_are_cut_right(steps: list[str], seed: int) -> None:
    check(steps, seed)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=EVERY_CHECK)
@given(steps=drawn, seed=st.integers(0, 1000))
def test_500_random_networks_are_cut_right(steps: list[str], seed: int) -> None:
    check(steps, seed)
