"""Widths that are written as numbers in forward: the user's class gets others, and stays what it was."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from support import nets
from support.halving import done, halved
from torch import Tensor, nn

from deadweight.pipeline.pruning.narrow import set_attributes
from deadweight.pipeline.pruning.saved import load_pruned, save_pruned
from deadweight.pipeline.pruning.verify import verify
from deadweight.targets.errors import ModelError


class Written(nn.Module):
    """A view, a split, zeros and a slice with their sizes in code, on one line twice the same number."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.parts, self.last = nn.Linear(6, 16 * 4), nn.Linear(16, 32), nn.Linear(16, 12)
        self.out = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x).view(-1, 16, 4).mean(2)
        one, two, three = torch.split(self.parts(y), [8, 8, 16], 1)
        y = self.last(torch.cat([one * two, one + two], 1) * three).relu()
        y = torch.cat([y + torch.zeros(len(x), 12), y], 1)
        out: Tensor = self.out(y[:, : 2 * 12])
        return out


EXAMPLE = nets.image(3, 6)


def test_literals_follow_the_widths_and_the_original_keeps_its_own() -> None:
    model = nets.lively(Written())
    small, plan, groups = halved(model, EXAMPLE)
    assert done(small).form == "module"
    assert isinstance(small, Written)
    assert type(small).__qualname__ == "Written"
    assert "literal" in done(small).reason
    assert small.wide.out_features == 8 * 2
    assert verify(model, small, plan, groups).max_relative_error < 1e-5
    assert model(EXAMPLE).shape == (3, 3)


def test_it_is_pickled_saved_and_cut_again(tmp_path: Path) -> None:
    small, plan, _ = halved(nets.lively(Written()), EXAMPLE)
    smaller, _, _ = halved(small, EXAMPLE)
    assert done(smaller).form == "module"
    for one in (small, smaller):
        again: Any = pickle.loads(pickle.dumps(one))
        save_pruned(tmp_path, one, plan, (EXAMPLE,))
        loaded = load_pruned(Written, tmp_path).eval()
        assert type(again) is type(loaded) is type(one)
        assert torch.equal(again(EXAMPLE), one(EXAMPLE))
        assert torch.equal(loaded(EXAMPLE), one(EXAMPLE))


def test_code_that_was_changed_since_is_refused() -> None:
    with pytest.raises(ModelError, match="is not what was pruned"):
        set_attributes(nets.Mlp(), {"": {"literal 99 of forward()": 4}})
