from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small import Digits

from deadweight.pipeline.export import Export
from deadweight.pipeline.quantize import Quantize
from deadweight.pipeline.work import Work
from deadweight.targets.target import load_target


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
