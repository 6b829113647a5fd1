from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small import Digits
from torch import Tensor

from deadweight.pipeline.export import Export
from deadweight.pipeline.quantize import Quantize
from deadweight.pipeline.work import Work
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
    work = Work(workload, load_target(target), directory)
    return Export()(work.with_model("original", workload.build_model()))


@pytest.mark.parametrize(("target", "told"), [("orin-nano-8gb", True), ("x86-cpu", False)])
def test_the_int8_file_is_held_against_tensorrt_where_the_target_runs_it(
    tmp_path: Path, target: str, told: bool
) -> None:
    said = "; ".join(Quantize()(exported(Digits(), target, tmp_path)).log[-1].words)
    assert ("int8: lint finds nothing that TensorRT 10.3.0.30 refuses" in said) is told
    assert ("lint" in said) is told


def test_the_stage_says_whether_the_calibration_samples_were_enough(tmp_path: Path) -> None:
    said = Quantize()(exported(Digits(), "x86-cpu", tmp_path / "enough")).log[-1].words
    assert [words for words in said if "200 calibration samples are enough" in words]
    said = Quantize()(exported(Few(), "x86-cpu", tmp_path / "few")).log[-1].words
    (told,) = [words for words in said if "8 calibration samples are not enough" in words]
    assert "pixels by " in told
    assert 'give more samples, or take method = "percentile"' in told
