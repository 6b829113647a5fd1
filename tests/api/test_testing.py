"""`deadweight.testing`: own stages pass a run, the cache, a kill and the controls, or fail with a cure."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deadweight.pipeline.stages.finetune import Finetune
from deadweight.targets.errors import DeadweightError, ModelError
from deadweight.targets.runtimes.session import TensorSpec
from deadweight.testing import FakeSession, check_stage

STAGES = """
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from deadweight.pipeline.stages.prune import Prune


@dataclass(frozen=True)
class Half:
    ratio: float = 0.5
    shrinks: ClassVar[bool] = True

    def __call__(self, work):
        return Prune(ratio=self.ratio, criterion="weight_l2")(work)


@dataclass(frozen=True)
class Noisy:
    recovers: ClassVar[bool] = False
    shrinks: ClassVar[bool] = False

    def __call__(self, work):
        model = work.model()
        with torch.no_grad():
            model[0].bias.add_(torch.rand(1, generator=torch.Generator().manual_seed(torch.seed() % 10**9)))
        return work.with_model("noisy", model)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "stages_to_check.py").write_text(STAGES)
    monkeypatch.syspath_prepend(str(tmp_path))
    import stages_to_check  # type: ignore[import-not-found]

    yield stages_to_check
    del sys.modules["stages_to_check"]


def test_a_stage_that_cuts_passes_every_check(own: Any) -> None:
    found = check_stage(own.Half())
    assert found.facts.shrinks
    assert "ok: controls are made of it" in str(found)
    assert found.left == ()


def test_a_stage_of_ours_that_trains_passes_every_check() -> None:
    assert "controls are made of it" in check_stage(Finetune(epochs=1)).checked


def test_a_stage_that_draws_its_own_random_numbers_is_found_out(own: Any) -> None:
    with pytest.raises(DeadweightError, match="other files when it was run again") as failed:
        check_stage(own.Noisy())
    assert "work.seed" in failed.value.cure


def test_a_stage_with_a_wrong_setting_is_refused_as_in_a_recipe(own: Any) -> None:
    with pytest.raises(DeadweightError, match="ratio"):
        check_stage(own.Half(ratio=1.5))


def test_a_fake_session_answers_by_a_function_and_names_what_is_missing() -> None:
    spec = TensorSpec("x", (None, 2), "float32")
    session = FakeSession(lambda arrays: {"y": arrays["x"] + 1}, (spec,), (spec,))
    x = np.zeros((1, 2), np.float32)
    assert session.run({"x": x})["y"].sum() == 2
    session.prepare({"x": x})()
    assert session.evidence == "simulated"
    with pytest.raises(ModelError, match="missing"):
        session.run({})
    session.close()
