"""Attributes that repeat a width follow it, also where the captured forward does not read them."""

from __future__ import annotations

import pytest
import torch
from support import nets
from torch import Tensor, nn

from deadweight import apply, choose, plan_of, trace


class Halves(nn.Module):
    """Like YOLO's C2f: forward splits by a number of parts, the code for export by a stored width."""

    def __init__(self, items: int = 7) -> None:
        super().__init__()
        self.width, self.items = 8, items
        self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(24, 2, 1)

    def joined(self, first: Tensor, second: Tensor) -> Tensor:
        out: Tensor = self.c(torch.cat([first, second, self.b(second)], 1))
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.joined(*self.a(x).chunk(2, 1))

    def forward_split(self, x: Tensor) -> Tensor:
        return self.joined(*self.a(x).split((self.width, self.width), 1))


class Looped(Halves):
    """A stored number that forward does read, as large as a width."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * sum(1 for _ in range(self.items))


@pytest.mark.parametrize("model", [Halves(), Looped(8)], ids=["unread", "read"])
def test_code_that_was_not_captured_runs_with_the_new_widths(model: Halves) -> None:
    example = (nets.image(2, 3, 4, 4),)
    groups = trace(model.eval(), example)
    plan = choose(groups, {group.name: torch.arange(float(group.size)) for group in groups}, ratio=0.5)
    small = apply(model, plan, groups)
    assert isinstance(small, Halves)
    assert small.b.in_channels == 4
    if isinstance(model, Looped):
        assert small.items == 8
        return
    assert small.width == 4
    assert small.items == 7
    assert torch.equal(small.forward_split(*example), small(*example))
    done = plan_of(small)
    assert done is not None
    assert done.attributes == {"": {"width": 4}}
    assert "with changed attributes: width" in done.reason
