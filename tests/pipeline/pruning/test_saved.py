"""A pruned network comes back from disk bit by bit, or not at all."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import nets
from support.halving import halved
from torch import Tensor, nn

from deadweight.pipeline.pruning.groups import choose
from deadweight.pipeline.pruning.plan import Plan, plan_of
from deadweight.pipeline.pruning.saved import _sealed, load_pruned, save_pruned
from deadweight.pipeline.pruning.surgery import apply
from deadweight.pipeline.pruning.trace import trace
from deadweight.targets.errors import ArtifactError, ModelError

EXAMPLE = (nets.image(2, 3, 8, 8),)


def done(model: nn.Module) -> Plan:
    plan = plan_of(model)
    assert plan is not None
    return plan


def pruned(model: nn.Module, form: str = "") -> Any:
    groups = trace(model, EXAMPLE)
    scores = {group.name: torch.arange(group.size).float() for group in groups}
    return apply(model, choose(groups, scores, ratio=0.5), groups, form=form)


def saved(directory: Path, form: str = "") -> Any:
    small = pruned(nets.lively(nets.ResidualCnn()), form)
    save_pruned(directory, small, done(small), EXAMPLE)
    return small


@pytest.mark.parametrize("form", ["module", "graph"])
def test_what_is_loaded_computes_the_same_bits(tmp_path: Path, form: str) -> None:
    small = saved(tmp_path, form)
    loaded = load_pruned(nets.ResidualCnn, tmp_path).eval()
    assert done(loaded) == done(small)
    assert torch.equal(loaded(nets.image(5, 3, 8, 8)), small(nets.image(5, 3, 8, 8)))


@pytest.mark.parametrize("axis", ["0", "9"])
def test_a_plan_that_does_not_fit_its_network_is_refused(tmp_path: Path, axis: str) -> None:
    saved(tmp_path)
    value = json.loads((tmp_path / "plan.json").read_text())
    name, _ = next(iter(value["cut"].items()))
    value["cut"][name] = {axis: [65536]}
    (tmp_path / "plan.json").write_bytes(_sealed(value))
    with pytest.raises((ArtifactError, ModelError)):
        load_pruned(nets.ResidualCnn, tmp_path)


def test_a_tuned_copy_is_saved_under_the_same_plan(tmp_path: Path) -> None:
    small = copy.deepcopy(saved(tmp_path))
    with torch.no_grad():
        small.fc.bias += 1
    plan = Plan.from_json(json.loads((tmp_path / "plan.json").read_text()))
    save_pruned(tmp_path / "tuned", small, plan, EXAMPLE)
    loaded = load_pruned(nets.ResidualCnn, tmp_path / "tuned")
    assert torch.equal(loaded.get_parameter("fc.bias"), small.fc.bias)


def test_a_network_that_was_pruned_three_times_comes_back(tmp_path: Path) -> None:
    model = nets.lively(nets.ResidualCnn(16))
    for form in ("module", "graph", "graph"):
        model = pruned(model, form)
    save_pruned(tmp_path, model, done(model), EXAMPLE)
    loaded = load_pruned(lambda: nets.ResidualCnn(16), tmp_path)
    assert torch.equal(loaded.eval()(*EXAMPLE), model(*EXAMPLE))
    assert len(loaded.get_parameter("stem.weight")) == 2


@pytest.mark.parametrize("form", ["module", "graph"])
def test_equal_networks_are_equal_bytes(tmp_path: Path, form: str) -> None:
    saved(tmp_path / "a", form)
    saved(tmp_path / "b", form)
    for name in ("plan.json", "model.safetensors", "example.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_flipped_byte_in_plan_or_weights_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    for name in ("plan.json", "model.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for place in range(0, len(whole), max(len(whole) // 60, 1)):
            (tmp_path / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(ArtifactError):
                load_pruned(nets.ResidualCnn, tmp_path)
        (tmp_path / name).write_bytes(whole)
    load_pruned(nets.ResidualCnn, tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"model.safetensors cannot be read"):
        load_pruned(nets.ResidualCnn, tmp_path)


def test_another_constructor_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(ModelError, match="does not return the network that was pruned"):
        load_pruned(lambda: nets.ResidualCnn(9), tmp_path)


def test_weights_that_do_not_belong_to_the_example_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    small = copy.deepcopy(saved(tmp_path / "b"))
    with torch.no_grad():
        small.fc.bias += 1
    save_pruned(tmp_path / "c", small, done(small), EXAMPLE)
    (tmp_path / "a" / "example.safetensors").write_bytes(
        (tmp_path / "c" / "example.safetensors").read_bytes()
    )
    with pytest.raises(ArtifactError, match="outputs differ"):
        load_pruned(nets.ResidualCnn, tmp_path / "a")


@pytest.mark.parametrize(("change", "fits"), [(3e-5, True), (1e-3, False)])
def test_rounding_of_a_deep_network_is_no_damage(tmp_path: Path, change: float, fits: bool) -> None:
    saved(tmp_path)
    values = load_file(tmp_path / "example.safetensors")
    values["output.0"] *= 1 + change
    save_file(values, tmp_path / "example.safetensors")
    if fits:
        load_pruned(nets.ResidualCnn, tmp_path)
        return
    with pytest.raises(ArtifactError, match="outputs differ"):
        load_pruned(nets.ResidualCnn, tmp_path)


def test_loading_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    saved(tmp_path)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    load_pruned(nets.ResidualCnn, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_state_outside_the_state_dict_is_named_and_not_called_damage(tmp_path: Path) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.gain = nn.Linear(4, 8), nn.Linear(8, 2), 1.0
            self.register_buffer("mean", torch.zeros(4), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc2(torch.relu(self.fc1(x - self.get_buffer("mean")))) * self.gain
            return out

    model = Shifted().eval()
    model.get_buffer("mean").fill_(1.0)
    small, plan, _ = halved(model, nets.image(2, 4))
    save_pruned(tmp_path, small, plan, (nets.image(2, 4),))
    with pytest.raises(ModelError, match=r"no file was altered(?s:.*)non-persistent buffers in build_model"):
        load_pruned(Shifted, tmp_path)


def test_a_constructor_with_lazy_layers_gets_its_shapes_from_the_example(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 2))

    model, x = build(), nets.image(2, 4)
    model(x)
    small, plan, _ = halved(model.eval(), x)
    save_pruned(tmp_path, small, plan, (x,))
    assert torch.equal(load_pruned(build, tmp_path)(x), small(x))
