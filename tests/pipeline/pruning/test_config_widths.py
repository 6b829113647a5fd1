"""A configuration, as transformers has them, carries the new sizes; a cache is off while it is captured."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from support import nets
from torch import Tensor, nn

from deadweight import apply, choose, plan_of, trace, verify


def configured(**changed: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"layers": 2, "outer": 8, "inner": 12, "eps": 1e-5, "use_cache": True} | changed)


class Cache:
    """No tree of tensors to torch.export."""

    def __init__(self, key: Tensor) -> None:
        self.key = key


class FromConfig(nn.Module):
    """Layers that a configuration describes, with a cache where it says so."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.config = config
        self.ups = nn.ModuleList(nn.Linear(config.outer, config.inner) for _ in range(config.layers))
        self.downs = nn.ModuleList(nn.Linear(config.inner, config.outer) for _ in range(config.layers))

    def save_pretrained(self, folder: str) -> None:
        raise NotImplementedError(folder)

    def forward(self, x: Tensor) -> Any:
        for up, down in zip(self.ups, self.downs, strict=True):
            x = x + down(F.relu(up(x)))
        return (x, Cache(x)) if self.config.use_cache else x


def halved(*names: str) -> tuple[nn.Module, nn.Module, str]:
    model = FromConfig(configured()).eval()
    groups = trace(model, (nets.image(2, 8),))
    scores = {name: torch.arange(float(groups[name].size)) for name in names}
    plan = choose(groups, scores, ratio=0.5)
    small = apply(model, plan, groups)
    verify(model, small, plan, groups)
    done = plan_of(small)
    assert done is not None
    assert done.form == "module"
    return model, small, done.reason


def test_a_config_has_the_sizes_from_which_its_class_builds_the_pruned_network() -> None:
    model, small, _ = halved("ups.0", "ups.1")
    assert isinstance(small, FromConfig)
    assert isinstance(model, FromConfig)
    assert small.config == configured(inner=6)
    assert model.config == configured()
    again = FromConfig(small.config)
    again.load_state_dict(small.state_dict())
    x = nets.image(3, 8)
    assert isinstance(small(x), tuple)  # with its cache, as before
    assert torch.equal(again(x)[0], small(x)[0])


def test_where_a_config_cannot_describe_the_widths_the_plan_says_what_can() -> None:
    _, small, reason = halved("ups.0")
    assert isinstance(small, FromConfig)
    assert small.config == configured()
    assert reason.endswith("its config cannot describe these widths: write it with save_pruned()")


def test_a_cache_is_off_while_a_network_is_captured_and_in_the_graph_form_which_says_so() -> None:
    model = FromConfig(configured()).eval()
    groups = trace(model, (nets.image(2, 8),))
    assert model.config.use_cache
    plan = choose(groups, {"ups.0": torch.arange(12.0)}, ratio=0.5)
    small = apply(model, plan, groups, form="graph")
    assert isinstance(small(nets.image(2, 8)), Tensor)
    done = plan_of(small)
    assert done is not None
    assert "without its cache (use_cache=False)" in done.reason
