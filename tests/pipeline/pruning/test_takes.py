"""What a graph form takes: other sizes, devices and precisions; what it does not take is said."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import nets
from support.halving import half_of, halved
from torch import Tensor, nn

from deadweight.pipeline.pruning.graphnet import GraphNet
from deadweight.pipeline.pruning.surgery import apply
from deadweight.pipeline.pruning.takes import holds
from deadweight.pipeline.pruning.trace import trace
from deadweight.pipeline.pruning.verify import verify
from deadweight.targets.errors import ModelError


class Pooled(nn.Module):
    """A mean written as a sum over height times width, behind a hard-coded number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 16, 3, 2, 1), nn.Linear(16, 4)

    def forward(self, image: Tensor) -> Tensor:
        y = F.relu(self.conv(image))
        y = y.view(y.shape[0], 16, -1).sum(-1) / (y.shape[2] * y.shape[3])
        scores: Tensor = self.head(y)
        return scores


class Causal(nn.Module):
    """Attention with hard-coded heads; positions, a mask and a scale are made in forward."""

    def __init__(self, kind: torch.dtype | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.embed, self.place = nn.Embedding(50, 32), nn.Embedding(64, 32)
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        y = self.embed(tokens) + self.place(torch.arange(length, device=tokens.device))
        q, k, v = (layer(y).view(-1, length, 4, 8).transpose(1, 2) for layer in (self.q, self.k, self.v))
        kind = self.kind or y.dtype
        hidden = torch.full((length, length), -1e4, dtype=kind, device=tokens.device).triu(1)
        scores = (q @ k.transpose(-1, -2) / 8**0.5 + hidden).softmax(-1).to(y.dtype)
        scored: Tensor = self.out((scores @ v).transpose(1, 2).reshape(-1, length, 32))
        return scored


class Branching(nn.Module):
    """Small images take another path; an odd width is refused by its own view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 16, 1), nn.Linear(16, 4)

    def forward(self, image: Tensor) -> Tensor:
        y = F.relu(self.conv(image)).view(image.shape[0], 16, image.shape[2], -1, 2).mean(-1)
        y = y.amax((2, 3)) if image.shape[2] > 6 else y.mean((2, 3))
        scores: Tensor = self.head(y)
        return scores


def pair(model: nn.Module, example: Tensor) -> tuple[nn.Module, Any]:
    """The original with the removed units at zero, and its graph form."""
    small, plan, _ = halved(nets.lively(model), example, "graph")
    assert isinstance(small, GraphNet)
    masked = copy.deepcopy(model)
    for name, parameter in masked.named_parameters():
        for axis, indices in plan.cut.get(name, {}).items():
            with torch.no_grad():
                parameter.index_fill_(axis, torch.tensor(indices), 0)
    return masked.eval(), small.eval()


def images(*shape: int) -> Tensor:
    return nets.image(*shape, seed=5)


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 50, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("model", "example", "others"),
    [
        (Pooled(), images(2, 3, 16, 16), [images(2, 3, 32, 24), images(5, 3, 7, 9), images(1, 3, 8, 8)]),
        (Causal(), tokens(2, 6), [tokens(2, 4), tokens(3, 12), tokens(1, 64)]),
        (Branching(), images(2, 3, 8, 8), [images(1, 3, 9, 12), images(4, 3, 7, 4)]),
    ],
    ids=["pooled", "causal", "branching"],
)
def test_it_takes_the_sizes_that_the_original_takes(
    model: nn.Module, example: Tensor, others: list[Tensor]
) -> None:
    masked, small = pair(model, example)
    for given in (example, *others):
        assert torch.allclose(small(given), masked(given), rtol=1e-4, atol=1e-5), given.shape
    small.train()(others[0]).sum().backward()


def test_a_size_for_which_the_code_has_another_branch_is_refused() -> None:
    _, small = pair(Branching(), images(2, 3, 8, 8))
    words = (
        r"(?s)image: float32 2 x 3 x 6 x 8 on cpu: its code has another branch where not image.shape\[2\] > 6"
    )
    with pytest.raises(ModelError, match=words + r".*traced with image: float32 2 x 3 x 8 x 8"):
        small(images(2, 3, 6, 8))
    with pytest.raises(ModelError, match="branch where not"):
        small(images(2, 3, 8, 7))


def test_a_fixed_size_and_a_wrong_type_are_refused_with_what_was_traced() -> None:
    _, small = pair(Pooled(), images(2, 3, 16, 16))
    with pytest.raises(ModelError, match="image is 2 x 4 x 16 x 16, not any x 3 x any x any"):
        small(images(2, 4, 16, 16))
    with pytest.raises(ModelError, match=r"float64 2 x 3 x 16 x 16 on cpu: .*traced with image: float32"):
        small(images(2, 3, 16, 16).double())


def test_tensors_made_in_forward_follow_the_network() -> None:
    masked, small = pair(Causal(), tokens(2, 6))
    found = copy.deepcopy(small).double()(tokens(2, 9))
    assert found.dtype == torch.float64
    assert torch.allclose(found, masked.double()(tokens(2, 9)), rtol=1e-9)
    assert copy.deepcopy(small).to("meta")(tokens(2, 9).to("meta")).shape == (2, 9, 32)


def test_half_precision_is_refused_where_a_graph_does_not_show_what_stays_precise() -> None:
    _, small = pair(Causal(torch.float32), tokens(2, 6))
    with pytest.raises(ModelError, match=r"(?s)in torch.float32 and is now in torch.bfloat16.*autocast"):
        copy.deepcopy(small).bfloat16()(tokens(2, 6))
    with torch.autocast("cpu"):
        assert small(tokens(2, 6)).dtype == torch.bfloat16
    _, plain = pair(Pooled(), images(2, 3, 16, 16))
    assert plain.bfloat16()(images(2, 3, 16, 16).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("condition", ["__import__('os')", "sizes.__class__", "(lambda: 1)()", "open('x')"])
def test_a_condition_is_arithmetic_and_nothing_else(condition: str) -> None:
    assert holds("min(sizes[0][1] // 2, 3) % 2 == 1", [(1, 7)])
    with pytest.raises(ModelError, match="more than arithmetic"):
        holds(condition, [(1, 7)])


class Constants(nn.Module):
    """Another constant in training than at inference, of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc2(F.relu(self.fc1(x)).view(-1, 8))
        scores: Tensor = y * (torch.tensor([2.0, 3.0]) if self.training else torch.tensor([5.0, 7.0]))
        return scores


def test_a_constant_of_training_is_not_that_of_inference() -> None:
    _, small = pair(Constants(), nets.image(3, 4))
    y = nets.image(3, 4)
    ratio = small.train()(y) / small.eval()(y)
    assert torch.allclose(ratio, torch.tensor([2 / 5, 3 / 7]).expand(3, 2))


class Nested(nn.Module):
    """Inputs in a list and a dictionary, a flag beside them, and a hard-coded width."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, xs: list[Any], *, more: dict[str, Any]) -> dict[str, Tensor]:
        y = F.relu(self.fc1(xs[0] - xs[1] if more["minus"] else xs[0] + xs[1])).view(-1, 8)
        return {"scores": self.fc2(y) * more["gain"]}


def test_it_takes_its_inputs_nested_as_the_users_forward_does() -> None:
    model, (one, other, gain) = nets.lively(Nested()), (nets.image(2, 4, seed=n) for n in range(3))
    example = {"xs": [one, other], "more": {"minus": True, "gain": gain[:, :1]}}
    groups = trace(model, example)
    small = apply(model, half_of(groups), groups, form="graph")
    verify(model, small, half_of(groups), groups)
    found = small([one, other], more={"minus": True, "gain": gain[:, :1]})["scores"]
    assert torch.allclose(found, small(**example)["scores"])
    with pytest.raises(ModelError, match=r"\(False,\), not \(True,\)"):
        small([one, other], more={"minus": False, "gain": gain[:, :1]})
