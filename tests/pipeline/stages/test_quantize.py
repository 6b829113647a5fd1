from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from support.digits import Digits
from torch import Tensor

from deadweight.pipeline.stages.export import Export
from deadweight.pipeline.stages.quantize import Quantize
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Work
from deadweight.targets.errors import RecipeError
from deadweight.targets.target import load_target


class Few(Digits):
    """Calibrated with 8 samples of an input with heavy tails."""

    def batches(self, split: str, *, seed: int = 0) -> Iterator[dict[str, Tensor]]:
        if split != "calibration":
            yield from super().batches(split, seed=seed)
            return
        above, below = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(0))
        yield {"pixels": above / below}  # Cauchy's distribution


def exported(workload: Digits, target: str, directory: Path) -> Work:
    torch.manual_seed(0)
    work = Work(workload, load_target(target), directory, networks=NetworkFiles())
    return Export()(work.with_model("original", workload.build_model()))


@pytest.mark.parametrize(("target", "checked"), [("orin-nano-8gb", True), ("x86-cpu", False)])
def test_the_int8_file_is_checked_against_tensorrt_where_the_target_runs_it(
    tmp_path: Path, target: str, checked: bool
) -> None:
    said = "; ".join(Quantize()(exported(Digits(), target, tmp_path)).log[-1].words)
    assert ("int8: lint finds nothing that TensorRT 10.3.0.30 refuses" in said) is checked
    assert ("lint" in said) is checked


def test_the_stage_says_whether_the_calibration_samples_were_enough(tmp_path: Path) -> None:
    said = Quantize()(exported(Digits(), "x86-cpu", tmp_path / "enough")).log[-1].words
    assert [words for words in said if "200 calibration samples are enough" in words]
    said = Quantize()(exported(Few(), "x86-cpu", tmp_path / "few")).log[-1].words
    (sentence,) = [words for words in said if "8 calibration samples are not enough" in words]
    assert "pixels by " in sentence
    assert "give more samples, or use the method percentile" in sentence


class Wild(Digits):
    """Calibrated with one sample that is a thousand times as large as the others."""

    def batches(self, split: str, *, seed: int = 0) -> Iterator[dict[str, Tensor]]:
        for batch in super().batches(split, seed=seed):
            if split == "calibration":
                batch["pixels"][0] *= 1000
            yield batch


def test_an_int8_network_whose_outputs_are_noise_is_not_kept_and_the_run_goes_on(tmp_path: Path) -> None:
    work = Quantize()(exported(Wild(), "x86-cpu", tmp_path))
    assert [variant.name for variant in work.variants] == ["original"]
    (said,) = [words for words in work.log[-1].words if "noise" in words]
    assert "it is broken" in said
    assert said.endswith("The network stays in float")


class AgainstTheThird(Digits):
    """Scores the third network that it is shown worse by 0.3: it comes after the float and the INT8 one."""

    shown = 0

    def score(self, predict: Any, batches: Iterable[Mapping[str, Tensor]]) -> float:
        self.shown += 1
        return super().score(predict, batches) - 0.3 * (self.shown == 3)


@pytest.mark.parametrize(("allowed", "kept"), [(0.1, False), (0.5, True), (None, True)])
def test_fp16_is_compared_with_the_budget_of_the_score_too(
    tmp_path: Path, allowed: float | None, kept: bool
) -> None:
    work = Quantize(half=True, score_drop=allowed)(exported(AgainstTheThird(), "orin-nano-8gb", tmp_path))
    (said,) = [words for words in work.log[-1].words if words.startswith("FP16 for operators in float")]
    assert ("NOT kept" in said) is not kept
    model = onnx.load(work.variant("int8").path("onnx"))
    assert any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer) is kept
    assert [path.name for path in (tmp_path / "int8").iterdir()] == ["model.onnx"]


def test_fp16_for_a_target_without_tensorrt_is_refused_before_anything_is_calibrated() -> None:
    with pytest.raises(RecipeError, match="has half = true"):
        Quantize(half=True).check_target(load_target("x86-cpu"))


def test_steps_of_an_older_recipe_have_no_effect_and_the_report_says_so(tmp_path: Path) -> None:
    work = Quantize(steps=("adaround",))(exported(Digits(), "x86-cpu", tmp_path))
    assert [words for words in work.log[-1].words if words.startswith("steps has no effect any more")]
