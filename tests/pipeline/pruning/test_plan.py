"""A plan is a record: it survives JSON, is refused when it is not one, and belongs to one network."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import nets
from support.halving import done, halved
from torch import nn

from deadweight.pipeline.pruning.plan import Plan, Shapes, Width, fingerprint, plan_of, record, together
from deadweight.targets.errors import ArtifactError


def a_plan(**other: Any) -> Plan:
    settings: dict[str, Any] = {
        "original": "0" * 64,
        "removed": {"fc1": (1, 3), "fc2:heads": (0,)},
        "cut": {"fc1.weight": {0: (1, 3), 1: (2,)}},
        "shapes": {"fc1.weight": Shapes((4, 5), (2, 4))},
        "widths": {"fc1": Width("linear", 4, 2), "fc2:heads": Width("heads", 3, 2)},
        "form": "module",
        "reason": "its forward code follows the widths",
        "attributes": {"": {"heads": 2, "sizes": [1, 2]}},
    }
    return Plan(**(settings | other))


def through_json(plan: Plan) -> Plan:
    return Plan.from_json(json.loads(json.dumps(plan.to_json())))


def test_everything_in_a_plan_survives_json() -> None:
    first = a_plan()
    later = a_plan(original="1" * 64, form="graph", earlier=(first, a_plan(original="2" * 64)))
    assert through_json(first) == first
    assert through_json(later) == later
    assert through_json(later).earlier[0].cut == {"fc1.weight": {0: (1, 3), 1: (2,)}}


def test_a_plan_that_surgery_carried_out_survives_json() -> None:
    small, _, _ = halved(nets.lively(nets.Separable()), nets.image(2, 3, 6, 6))
    again, _, _ = halved(small, nets.image(2, 3, 6, 6), "graph")
    plan = done(again)
    assert through_json(plan) == plan
    assert [earlier.form for earlier in plan.earlier] == ["module"]


def test_a_key_of_somebody_else_is_no_obstacle() -> None:
    assert Plan.from_json({**a_plan().to_json(), "weights": "abc", "comment": 1}) == a_plan()


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_another_schema_is_refused_with_its_number(schema: Any) -> None:
    with pytest.raises(ArtifactError, match=f"schema {schema} is not known"):
        Plan.from_json({**a_plan().to_json(), "schema": schema})


@pytest.mark.parametrize("key", ["schema", *a_plan().to_json()])
def test_a_missing_key_is_refused_and_named(key: str) -> None:
    value = a_plan().to_json()
    del value[key]
    with pytest.raises(ArtifactError, match=f"not a plan of this version.*{key}"):
        Plan.from_json(value)


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("removed", {"fc1": ["x"]}),
        ("removed", {"fc1": [float("inf")]}),
        ("cut", {"w": {"first": [1]}}),
        ("shapes", {"w": {"before": [1]}}),
        ("widths", {"fc1": {"kind": "linear", "breadth": 3}}),
        ("widths", []),
        ("earlier", [{"schema": 9}]),
        ("removed", None),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(key: str, wrong: Any) -> None:
    with pytest.raises(ArtifactError, match="Run the stage that prunes again"):
        Plan.from_json({**a_plan().to_json(), key: wrong})


def without_bias(model: nn.Module) -> None:
    model.register_parameter("bias", None)


CHANGES: dict[str, Callable[[Any], object]] = {
    "a name": lambda model: model.register_module("other", model._modules.pop("fc1")),
    "a shape": lambda model: setattr(model, "fc1", nn.Linear(16, 13)),
    "a type": lambda model: model.double(),
    "a buffer": lambda model: model.register_buffer("extra", torch.zeros(1)),
    "a parameter less": lambda model: without_bias(model.fc3),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_fingerprint_changes_with_names_shapes_and_types(name: str) -> None:
    model = nets.Mlp()
    before = fingerprint(model)
    CHANGES[name](model)
    assert fingerprint(model) != before


def test_the_fingerprint_does_not_change_with_values_modes_and_order() -> None:
    model = nets.ResidualCnn()
    expected = fingerprint(nets.lively(nets.ResidualCnn(), seed=5).train())
    assert fingerprint(model.eval()) == fingerprint(copy.deepcopy(model)) == expected
    model._modules["stem"] = model._modules.pop("stem")  # now the last
    assert fingerprint(model) == expected


def test_the_fingerprint_counts_every_name_of_a_shared_parameter() -> None:
    one, other = nets.Mlp(8, 8, 8, 8), nets.Mlp(8, 8, 8, 8)
    other.fc2 = other.fc1
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(nn.Sequential(one.fc1)) != fingerprint(nn.Sequential(one.fc1, one.fc1))


def test_a_network_knows_its_plan_and_so_does_its_copy() -> None:
    model = nets.Mlp()
    assert plan_of(model) is None
    assert plan_of(record(model, a_plan())) == a_plan()
    assert plan_of(copy.deepcopy(model)) == a_plan()
    assert "deadweight_plan" not in model.state_dict()


def test_names_that_differ_only_in_numbers_are_one_in_a_sentence() -> None:
    names = [
        *(f"encoder.layer_{number}.attention.{one}" for number in range(24) for one in ("heads", "dim")),
        *("head.fc1", "layers.3.fc2"),
    ]
    assert (
        together(names) == "attention.heads, attention.dim of 24 encoder.layer_* and head.fc1, layers.3.fc2"
    )
