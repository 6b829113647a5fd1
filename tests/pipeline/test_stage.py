from __future__ import annotations

from pathlib import Path

import pytest

from deadweight.pipeline.stage import make_stage, settings_of, source_of, stage_class, stage_names
from deadweight.pipeline.stages.prune import Prune
from deadweight.targets.errors import RecipeError, WorkloadError

OWN = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Mine:
    strength: float = 1.0

    def __call__(self, work):
        return work

class NoStage:
    pass
"""


def test_every_stage_of_ours_has_a_name_and_makes_itself() -> None:
    assert {
        "train",
        "load",
        "statistics",
        "prune",
        "finetune",
        "controls",
        "export",
        "quantize",
        "profile",
    } <= set(stage_names())
    for name in stage_names():
        # These have settings without a default.
        if name not in ("load", "prune", "iterative", "sparsify", "depth", "factorize", "budget"):
            make_stage(name, {}, "stages[0]")


def test_a_stage_of_the_users_own_is_named_by_its_dotted_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_stages.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    stage = make_stage("my_stages.Mine", {"strength": 2}, "stages[0]")
    assert settings_of(stage) == {"strength": 2.0}
    assert source_of(stage) == tmp_path / "my_stages.py"
    with pytest.raises(RecipeError, match="is not a stage"):
        stage_class("my_stages.NoStage")
    with pytest.raises(WorkloadError, match="no attribute 'Other'"):
        stage_class("my_stages:Other")


def test_settings_are_the_fields(tmp_path: Path) -> None:
    assert settings_of(Prune(ratio=0.5))["ratio"] == 0.5
    assert source_of(Prune(ratio=0.5)).name == "prune.py"


def test_an_unknown_stage_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'finetune'"):
        stage_class("finetun")
