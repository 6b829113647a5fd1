from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest
import torch
from support.digits import Digits
from torch import Tensor, nn

from deadweight.pipeline.stages.export import Export
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Work
from deadweight.targets.errors import ModelError
from deadweight.targets.target import Fact, Target, load_target


class Normed(Digits):
    """Digits, seen by an MLP with a layer norm."""

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 10))


class Hard(nn.Module):
    """Three operators that TensorRT 8.5 does not take (rule 103), among layers that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, 32)
        self.fc2 = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.bitwise_and((x * 9).int(), 7).float()
        out: Tensor = self.fc2(torch.relu(self.fc1(x)))
        return out


class Refused(Digits):
    def build_model(self) -> nn.Module:
        return Hard()


def board(tensorrt: str) -> Target:
    """An Orin Nano with another TensorRT than its own."""
    known = load_target("orin-nano-8gb")
    facts = {**known.facts, "tensorrt": Fact(tensorrt, "a test", "high")}
    return dataclasses.replace(known, facts=facts)


def work_for(workload: Digits, target: Target, directory: Path) -> Work:
    torch.manual_seed(0)
    work = Work(workload, target, directory, networks=NetworkFiles())
    return work.with_model("original", workload.build_model())


def operators(work: Work) -> list[str]:
    return [node.op_type for node in onnx.load(work.latest("onnx").path("onnx")).graph.node]


@pytest.mark.parametrize(("tensorrt", "kept"), [("8.5.2", False), ("8.6.1", True), ("10.3.0", True)])
def test_layer_norms_are_spelled_out_only_for_a_tensorrt_that_has_no_operator_for_them(
    tmp_path: Path, tensorrt: str, kept: bool
) -> None:
    done = Export()(work_for(Normed(), board(tensorrt), tmp_path))
    assert ("LayerNormalization" in operators(done)) is kept
    assert f"lint finds nothing that TensorRT {tensorrt} refuses" in "; ".join(done.log[-1].words)


def test_for_onnx_runtime_layer_norms_stay_and_lint_says_nothing(tmp_path: Path) -> None:
    done = Export()(work_for(Normed(), load_target("x86-cpu"), tmp_path))
    assert "LayerNormalization" in operators(done)
    assert len(done.log[-1].words) == 1
    assert "lint" not in done.log[-1].words[0]


def test_a_file_that_tensorrt_would_refuse_ends_the_run_with_the_first_finding_and_its_cure(
    tmp_path: Path,
) -> None:
    with pytest.raises(ModelError, match=r"TensorRT 8\.5\.2 of orin-nano-8gb would refuse") as caught:
        Export(opset=18)(work_for(Refused(), board("8.5.2"), tmp_path))
    assert "rule 103: BitwiseAnd" in caught.value.what
    assert "Lint finds 2 more errors." in caught.value.what
    assert caught.value.cure.startswith("Replace it by other operators")
    assert "deadweight lint" in caught.value.cure


def test_what_tensorrt_runs_slowly_is_reported_by_count_and_by_the_first_of_each_rule(tmp_path: Path) -> None:
    class Odd(Digits):
        def build_model(self) -> nn.Module:
            return nn.Sequential(
                nn.Linear(64, 37), nn.ReLU(), nn.Linear(37, 35), nn.ReLU(), nn.Linear(35, 10)
            )

    said = Export()(work_for(Odd(), board("10.3.0"), tmp_path)).log[-1].words
    assert any(" 401 (and 1 more): " in words and "37 output channels" in words for words in said)
    assert sum(" 401" in words for words in said) == 1


def test_a_tensorrt_that_is_not_known_is_reported_and_gets_what_every_version_takes(tmp_path: Path) -> None:
    target = board("10.3.0")
    target = dataclasses.replace(target, facts={k: v for k, v in target.facts.items() if k != "tensorrt"})
    done = Export()(work_for(Normed(), target, tmp_path))
    assert "LayerNormalization" not in operators(done)
    assert "original was not checked against TensorRT's rules" in "; ".join(done.log[-1].words)
