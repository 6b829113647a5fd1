"""Operators one by one: what they let go, what they keep and why, and that what is left is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import nets
from torch import Tensor, nn

from deadweight.pipeline.pruning.groups import Groups, choose
from deadweight.pipeline.pruning.surgery import apply
from deadweight.pipeline.pruning.trace import trace
from deadweight.pipeline.pruning.verify import verify
from deadweight.targets.errors import ModelError


class Between(nn.Module):
    """A convolution to 8 channels, an operator, a convolution that reads its result, a head."""

    def __init__(
        self, operator: Callable[[Tensor], Tensor], channels: int = 8, extra: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 8, 3, padding=1)
        self.operator = operator
        self.extra = extra
        self.after = nn.Conv2d(channels, 6, 1)
        self.head = nn.Linear(6, 2)

    def forward(self, image: Tensor) -> Tensor:
        x = self.before(image)
        x = self.operator(x) if self.extra is None else self.extra(x)
        out: Tensor = self.head(F.relu(self.after(x)).mean((2, 3)))
        return out


def blurred(x: Tensor) -> Tensor:
    kernel = torch.ones(1, 1, 3, 3, dtype=x.dtype) / 9
    return F.conv2d(
        F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel.repeat(x.shape[1], 1, 1, 1), groups=x.shape[1]
    )


def overwritten(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 2:5] = y[:, 2:5] * 2
    y[:, 5:] += 1
    return y


def most_alive(x: Tensor) -> Tensor:
    places = x.mean(1).flatten(1).topk(4).indices
    chosen = x.flatten(2).gather(2, places[:, None].expand(-1, x.shape[1], -1))
    return chosen.reshape(x.shape[0], -1, 2, 2)


def gridded(x: Tensor) -> Tensor:
    grid = torch.zeros(x.shape[0], 2, 2, 2, dtype=x.dtype) + 0.3
    return F.grid_sample(x, grid, align_corners=False)


def under_no_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        shift = x.mean((2, 3), keepdim=True)
    return x - shift


def in_full_precision(x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return x.tanh()


def in_a_precision_of_its_own(x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return x.double().tanh()


FREE: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "roll": (lambda x: x.roll(3, 1), 8),
    "shuffle": (lambda x: F.channel_shuffle(x, 2), 8),
    "flip": (lambda x: x.flip(1), 8),
    "strided": (lambda x: torch.cat([x[:, 1::2], x[:, ::2]], 1), 8),
    "maxout": (lambda x: x.view(-1, 4, 2, 6, 6).amax(2), 4),
    "maximum over halves": (lambda x: torch.max(x[:, :4], x[:, 4:]), 4),
    "repeated kernel": (blurred, 8),
    "patches": (lambda x: F.unfold(x, 3, padding=1).reshape(x.shape[0], -1, 6, 6), 72),
    "patches and back": (lambda x: F.fold(F.unfold(x, 3, padding=1), (6, 6), 3, padding=1), 8),
    "slices written in place": (overwritten, 8),
    "gather": (most_alive, 8),
    "grid sample": (gridded, 8),
    "no_grad": (under_no_grad, 8),
    "no autocast": (in_full_precision, 8),
    "no autocast, and a cast": (in_a_precision_of_its_own, 8),
    "repeat": (lambda x: x.repeat(1, 2, 1, 1), 16),
    "interleave": (lambda x: x.repeat_interleave(2, 1), 16),
    "expand": (lambda x: x + x.mean(1, keepdim=True).expand(-1, 8, -1, -1), 8),
    "cosine": (lambda x: F.normalize(x, dim=1), 8),
    "unbind": (lambda x: torch.stack(x.unbind(2), 2), 8),
}


def traced(model: nn.Module) -> tuple[nn.Module, Groups]:
    model = nets.lively(model).double()
    return model, trace(model, (nets.image(2, 3, 6, 6).double(),))


@pytest.mark.parametrize("name", FREE)
def test_channels_pass_and_half_of_them_go(name: str) -> None:
    operator, channels = FREE[name]
    model, groups = traced(Between(operator, channels))
    assert groups["before"].size in (8, 4)
    scores = {group.name: torch.arange(group.size).sin() for group in groups}
    plan = choose(groups, scores, ratio=0.5)
    small: Any = apply(model, plan, groups)
    assert small.before.weight.shape[0] <= 4
    assert verify(model, small, plan, groups).max_relative_error < 1e-12


KEPT: dict[str, tuple[Callable[[Tensor], Tensor], str, str]] = {
    "cumulative": (lambda x: x.cumsum(1), "cumsum", "depend on each other"),
    "softmax": (lambda x: x.softmax(1), "softmax", "depend on each other"),
    "indexed": (lambda x: x[:, torch.tensor([1, 0, 2, 3, 4, 5, 7, 6])], "index", "indexed by values"),
    "picked": (lambda x: x * x[:, 3:4], "slice", "selected"),
    "fixed": (lambda x: x * torch.arange(8.0).view(8, 1, 1), "mul", "fixed width"),
    "complex": (lambda x: torch.fft.fft(x, dim=1).real, "fft_fft", "depend on each other"),
    "sorted": (lambda x: x.sort(1).values, "sort", "returns positions"),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_cannot_be_followed_stays_with_operator_line_and_reason(name: str) -> None:
    operator, culprit, reason = KEPT[name]
    _, groups = traced(Between(operator))
    frozen = next(one for one in groups.frozen if one.parameter == "before.weight")
    assert frozen.operator == culprit
    assert reason in frozen.reason
    assert "test_rules.py" in frozen.line
    assert "after" in [group.name for group in groups]


def test_autocast_inside_forward_is_refused_with_its_line() -> None:
    def mixed(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return (x @ x).float()

    with pytest.raises(ModelError, match="autocast"):
        trace(Between(mixed), (nets.image(2, 3, 6, 6),))


def test_cells_of_a_recurrent_network_are_cut() -> None:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.gru = nn.LSTMCell(8, 10), nn.GRUCell(10, 12)
            self.conv = nn.Conv2d(12, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            h, c = self.lstm(x.mean((2, 3)))
            h, c = self.lstm(x.amax((2, 3)), (h, c))
            state: Tensor = self.conv(self.gru(h)[:, :, None, None])
            return state

    model, groups = traced(Between(torch.relu, extra=Cell()))
    assert {"extra.lstm": 10, "extra.gru": 12}.items() <= {group.name: group.size for group in groups}.items()
    plan = choose(groups, {group.name: torch.rand(group.size) for group in groups}, ratio=0.5)
    small: Any = apply(model, plan, groups)
    assert verify(model, small, plan, groups).max_relative_error < 1e-12
    assert (small.extra.lstm.hidden_size, small.extra.gru.hidden_size) == (5, 6)


def test_a_block_without_gradient_stays_so_in_the_graph_form() -> None:
    model, groups = traced(Between(under_no_grad))
    plan = choose(groups, {"before": torch.arange(8.0)}, ratio=0.5)
    module, graph = (apply(model, plan, groups, form=form).train() for form in ("module", "graph"))
    for small in (module, graph):
        small(nets.image(2, 3, 6, 6).double()).square().sum().backward()
    for name, parameter in module.named_parameters():
        other = graph.get_parameter(name).grad
        assert parameter.grad is not None
        assert other is not None
        assert torch.allclose(parameter.grad, other), name
