"""The record beside an engine, where somebody cut or edited it. What it says of machines: fake_tensorrt/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deadweight.targets.artifact import sha256_of
from deadweight.targets.engines.record import check_comparable, check_record, read_record, record_path
from deadweight.targets.errors import ModelError

WHOLE: dict[str, Any] = {
    "schema": 1,
    "kind": "engine",
    "evidence": "measured",
    "rebuild": "deadweight build m.onnx --out m.plan",
    "plan": {"file": "m.plan", "bytes": 5, "sha256": "ab"},
    "tensorrt": {"flavour": "tensorrt", "version": "10.3.0", "strongly_typed": True},
    "settings": {"dla_core": None, "version_compatible": False, "hardware_compatibility": ""},
    "platform": {"machine": "aarch64"},
}


def test_a_plan_without_a_record_has_none_and_a_whole_record_is_read(tmp_path: Path) -> None:
    plan = tmp_path / "m.plan"
    assert read_record(plan) is None
    record_path(plan).write_text(json.dumps(WHOLE))
    assert read_record(plan) == WHOLE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, r"not an engine's record that this version can read"),
        ({"tensorrt": {"flavour": "tensorrt"}}, r"lacks tensorrt\.version"),
        ({"tensorrt": None}, r"lacks tensorrt\.flavour, tensorrt\.version"),
        ({"settings": {"dla_core": 0}}, r"lacks settings\.version_compatible"),
    ],
)
def test_a_record_that_is_not_whole_is_refused_by_what_it_lacks(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    plan = tmp_path / "m.plan"
    record_path(plan).write_text(json.dumps({**WHOLE, **change}))
    with pytest.raises(ModelError, match=message) as caught:
        read_record(plan)
    assert "remove" in caught.value.cure


def test_a_record_of_another_form_is_refused(tmp_path: Path) -> None:
    plan = tmp_path / "m.plan"
    plan.write_bytes(b"12345")
    record = {**WHOLE, "plan": {"bytes": 5, "sha256": sha256_of(plan)}, "device": 3}
    with pytest.raises(ModelError, match="record has another form"):
        check_record(record, plan, flavour="tensorrt", version="10.3.0", compute_capability="8.7")


def test_engines_of_unequal_precisions_or_limits_are_not_compared(tmp_path: Path) -> None:
    def plan(name: str, precision: str, workspace_bytes: int) -> Path:
        settings = {**WHOLE["settings"], "precision": precision}
        record = {**WHOLE, "settings": settings, "limits": {"workspace_bytes": workspace_bytes}}
        record_path(tmp_path / name).write_text(json.dumps(record))
        return tmp_path / name

    first = plan("a.plan", "fp16", 1 << 20)
    assert check_comparable([first, plan("b.plan", "fp16", 1 << 20)]) == "fp16"
    assert check_comparable([first, tmp_path / "without.plan"]) == ""
    for other in (plan("c.plan", "fp32", 1 << 20), plan("d.plan", "fp16", 1 << 21)):
        with pytest.raises(ModelError, match="unequal precisions or limits") as caught:
            check_comparable([first, other])
        assert "--workspace-bytes" in caught.value.cure
