"""A shallower network is the original whose blocks hand on their input, on disk and off it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import block_nets, nets
from support.halving import done, half_of
from torch import nn

from deadweight.export.to_onnx import to_onnx
from deadweight.pipeline.pruning.bypass import Shortcut, Skip, bypassed, dropping, shallower, without
from deadweight.pipeline.pruning.groups import planned
from deadweight.pipeline.pruning.plan import Bypass, Plan, fingerprint
from deadweight.pipeline.pruning.saved import load_pruned, save_pruned
from deadweight.pipeline.pruning.surgery import apply, replay
from deadweight.pipeline.pruning.survivors import MismatchError
from deadweight.pipeline.pruning.trace import trace
from deadweight.pipeline.pruning.verify import verify
from deadweight.targets.errors import ArtifactError, ModelError

EXAMPLE = (nets.image(2, 3, 8, 8),)
PAST = Bypass(shortcut="downsample", branch="bn2", activation="relu")
DROPPED = {"layer1.1": Bypass(), "layer2.0": PAST}


def stages() -> Any:
    return nets.lively(block_nets.Stages())


def test_a_dropped_block_leaves_its_input_and_takes_its_keys_along() -> None:
    model = stages()
    small: Any = shallower(model, {"layer1.1": Bypass()})
    gone = model.state_dict().keys() - small.state_dict().keys()
    assert gone == {name for name in model.state_dict() if name.startswith("layer1.1.")}
    x = nets.image(2, 8, 6, 6)
    assert torch.equal(small.layer1(x), model.layer1[0](x))
    assert isinstance(model.layer1[1], block_nets.Basic)


def test_a_block_with_a_projection_leaves_it_and_the_relu_behind_the_sum() -> None:
    model = stages()
    small: Any = shallower(model, {"layer2.0": PAST})
    assert isinstance(small.layer2[0], Shortcut)
    x = nets.image(2, 8, 6, 6)
    assert torch.equal(small.layer2[0](x), model.layer2[0].downsample(x).relu())
    kept = {name for name in small.state_dict() if name.startswith("layer2.0.")}
    assert kept == {name for name in model.state_dict() if name.startswith("layer2.0.downsample.")}


def test_a_stand_in_returns_the_tuple_that_its_block_did_whatever_it_is_called_with() -> None:
    x = torch.ones(2, 3)
    assert Skip()(x, "cache", mask=x + 1) is x
    out = Skip(3)(None, mask=None, hidden=x)
    assert out[0] is x
    assert out[1:] == (None, None)


def test_blocks_come_back_after_a_trial_without_them() -> None:
    model = stages()
    before = {name: id(module) for name, module in model.named_modules()}
    with without(model, DROPPED):
        assert isinstance(model.get_submodule("layer1.1"), Skip)
    assert {name: id(module) for name, module in model.named_modules()} == before


def test_a_block_that_two_names_share_goes_under_both() -> None:
    model = nets.lively(block_nets.Shared())
    small: Any = shallower(model, {"first": Bypass()})
    assert isinstance(small.first, Skip)
    assert small.again is small.first
    plan = dropping(model, {"first": Bypass()})
    assert verify(model, apply(model, plan), plan, (nets.image(2, 4, 5, 5),)).max_relative_error == 0


def test_the_original_is_bypassed_by_hooks_alone_and_is_itself_again_afterwards() -> None:
    model = stages()
    expected = model(*EXAMPLE)
    with bypassed(model, DROPPED):
        bypassing = model(*EXAMPLE)
    assert torch.equal(model(*EXAMPLE), expected)
    assert not torch.allclose(bypassing, expected)
    assert torch.allclose(shallower(model, DROPPED)(*EXAMPLE), bypassing, rtol=1e-5, atol=1e-6)


def test_a_plan_that_drops_blocks_is_carried_out_and_verified() -> None:
    model = stages()
    plan = dropping(model, DROPPED)
    small = apply(model, plan)
    assert done(small).dropped == DROPPED
    assert done(small).form == "module"
    found = verify(model, small, plan, EXAMPLE)
    assert found.max_relative_error < 1e-6
    assert found.function_changed_by == ()


def test_a_wrong_block_is_found_out() -> None:
    model = stages()
    wrong = shallower(model, {"layer1.0": Bypass(), "layer2.0": PAST})
    with pytest.raises(MismatchError, match=r"without layer1\.1, layer2\.0 does not compute"):
        verify(model, wrong, dropping(model, DROPPED), EXAMPLE)


def test_a_forgotten_activation_is_found_out() -> None:
    model = stages()
    bare = Bypass(shortcut="downsample", branch="bn2")
    with pytest.raises(MismatchError, match="outputs differ"):
        verify(model, shallower(model, {"layer2.0": bare}), dropping(model, {"layer2.0": bare}), EXAMPLE)


def test_plans_that_drop_blocks_survive_json_and_others_say_nothing_of_blocks() -> None:
    plan = dropping(stages(), DROPPED)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert "dropped" not in dropping(stages(), {}).to_json()
    with pytest.raises(ArtifactError, match="not a plan"):
        Plan.from_json({**plan.to_json(), "dropped": {"layer1.1": {"code": "import os"}}})


@pytest.mark.parametrize(
    ("dropped", "named"),
    [
        ({"layer9": Bypass()}, "layer9"),
        ({"layer2.0": Bypass(shortcut="downsample", activation="eval")}, "2.0"),
    ],
)
def test_a_block_that_is_not_there_or_an_unknown_activation_is_refused(dropped: Any, named: str) -> None:
    model = stages()
    with pytest.raises(ModelError, match=f'drops ".*{named}", which does not exist in this network'):
        apply(model, dropping(model, dropped))


def test_a_plan_for_another_network_and_the_graph_form_are_refused() -> None:
    model = stages()
    with pytest.raises(ModelError, match="another network"):
        apply(nets.lively(block_nets.Stages(4)), dropping(model, DROPPED))
    with pytest.raises(ModelError, match="not from its graph form"):
        apply(model, dropping(model, DROPPED), form="graph")


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize("first", ["depth", "width"])
def test_blocks_and_neurons_go_in_any_order_and_come_back_from_disk(
    form: str, first: str, tmp_path: Path
) -> None:
    model = stages()
    small = model
    if first == "depth":
        small = apply(small, dropping(small, DROPPED))
    groups = trace(small, EXAMPLE)
    half = half_of(groups)
    narrow = apply(small, half, groups, form=form)
    verify(small, narrow, half, groups)
    if first == "width":
        if form == "graph":  # its blocks are no modules any more
            with pytest.raises(ModelError, match="not from its graph form"):
                apply(narrow, dropping(narrow, DROPPED))
            return
        plan = dropping(narrow, DROPPED)
        before, narrow = narrow, apply(narrow, plan)
        verify(before, narrow, plan, EXAMPLE)
    steps = (*done(narrow).earlier, done(narrow))
    assert [bool(step.dropped) for step in steps] == [first == "depth", first == "width"]
    save_pruned(tmp_path, narrow, done(narrow), EXAMPLE)
    loaded = load_pruned(block_nets.Stages, tmp_path).eval()
    assert torch.equal(loaded(*EXAMPLE), narrow(*EXAMPLE))
    assert done(loaded) == done(narrow)
    assert loaded.state_dict().keys() == narrow.state_dict().keys()


def test_a_shallower_network_is_exported_with_no_trace_of_its_blocks(tmp_path: Path) -> None:
    import onnx

    model = stages()
    small = apply(model, dropping(model, DROPPED))
    to_onnx(small, {"image": EXAMPLE[0]}, tmp_path / "small.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "small.onnx").graph.node]
    assert kinds.count("Conv") == 1 + 2 + 1 + 2  # stem, layer1.0, the shortcut of layer2.0, layer2.1
    assert kinds.count("Add") == 2


def test_a_shallower_network_trains_in_the_mode_it_was_in() -> None:
    model = stages().train()
    small = apply(model, dropping(model, DROPPED))
    assert all(module.training for module in small.modules())
    small(*EXAMPLE).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_replaying_a_plan_gives_a_fresh_instance_with_values_of_its_own() -> None:
    model = stages()
    small = apply(model, dropping(model, DROPPED))
    fresh = block_nets.Stages().eval()
    again = replay(fresh, done(small), EXAMPLE)
    assert fingerprint(again) == fingerprint(small)
    assert torch.equal(again.get_parameter("fc.weight"), fresh.fc.weight)


def test_a_plan_that_removes_nothing_still_needs_a_trace() -> None:
    model = copy.deepcopy(stages())
    groups = trace(model, EXAMPLE)
    assert planned(groups, {}).dropped == {}
    assert isinstance(apply(model, planned(groups, {}), groups), nn.Module)
