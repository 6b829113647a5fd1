from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.cpu import exact_int8
from support.digits import Digits
from support.workloads import trained
from torch import Tensor, nn

from deadweight.pipeline.quantization.candidates import Trials, first
from deadweight.pipeline.quantization.sensitivity import (
    Layer,
    return_sentence,
    returned,
    sensitivity,
    sensitivity_sentence,
)
from deadweight.pipeline.stages.export import Export
from deadweight.pipeline.stages.quantize import Quantize
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Work
from deadweight.targets.artifact import read_json, write_json
from deadweight.targets.plain import plain
from deadweight.targets.target import load_target


class Uneven(nn.Module):
    """A trained network whose second layer reads one value a thousand times as large as all others."""

    def __init__(self, plain: nn.Module | None = None) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(64, 96), nn.Linear(97, 48), nn.Linear(48, 10)
        if plain is not None:
            with torch.no_grad():
                for mine, theirs in ((self.fc1, plain[0]), (self.fc3, plain[4])):  # type: ignore[index]
                    mine.load_state_dict(theirs.state_dict())
                self.fc2.weight[:, :96] = plain[2].weight  # type: ignore[index]
                self.fc2.weight[:, 96] = 0.0
                self.fc2.bias.copy_(plain[2].bias)  # type: ignore[index]

    def forward(self, pixels: Tensor) -> Tensor:
        x = torch.relu(self.fc1(pixels))
        far = 1000.0 * pixels.sum(1, keepdim=True)
        out: Tensor = self.fc3(torch.relu(self.fc2(torch.cat([x, far], dim=1))))
        return out


class UnevenDigits(Digits):
    def build_model(self) -> nn.Module:
        return Uneven()


def work_of(directory: Path, target: str = "x86-cpu") -> Work:
    work = Work(UnevenDigits(), load_target(target), directory, networks=NetworkFiles())
    return Export()(work.with_model("original", Uneven(trained(Digits()))))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return work_of(tmp_path_factory.mktemp("work"))


@exact_int8
def test_the_layer_that_int8_breaks_is_the_most_sensitive_by_both_measures(work: Work) -> None:
    trials = Trials.of(work)
    candidate = first(trials, "minmax")
    assert candidate.score < trials.float_score - 0.2
    layers = sensitivity(trials, candidate)
    assert layers[0].name == "fc2/Gemm"
    assert {layer.name for layer in layers} == {"fc1/Gemm", "fc2/Gemm", "fc3/Gemm"}
    assert layers[0].sqnr_db < 10 < 30 < layers[1].sqnr_db
    assert layers[0].score_drop > 0.2
    assert all(abs(layer.score_drop) < 0.02 for layer in layers[1:])
    assert sensitivity_sentence(layers).index("fc2/Gemm") < sensitivity_sentence(layers).index(layers[1].name)


def test_the_worst_layer_goes_back_to_float_and_what_it_costs_is_measured(work: Work) -> None:
    trials = Trials.of(work)
    candidate = first(trials, "minmax")
    kept, returns = returned(trials, candidate, sensitivity(trials, candidate), score_drop=0.02)
    assert kept is not None
    assert [found.layer.name for found in returns] == ["fc2/Gemm"]
    assert kept.skip == ("fc2/Gemm",)
    assert kept.score >= trials.float_score - 0.02
    time = returns[0].time
    assert time is not None
    assert 0 < time[1] <= time[0] <= time[2]
    assert "fc2/Gemm back to float: validation" in return_sentence(returns[0], candidate.score)
    assert "x as long" in return_sentence(returns[0], candidate.score)


def test_the_stage_keeps_to_its_budget_and_says_which_layer_cost_what(work: Work) -> None:
    done = Quantize(score_drop=0.02)(work)
    said = "; ".join(done.log[-1].words)
    assert "allowed; each layer alone in INT8, worst first" in said
    assert "fc2/Gemm back to float" in said
    assert "1 layer in float: the network takes " in said
    assert "the stage qat would keep all in INT8" in said
    content = read_json(done.artifacts["int8"].checked())
    assert content["layers"][0]["name"] == "fc2/Gemm"
    assert all(words in done.log[-1].words for words in content["words"])
    assert done.latest("onnx").name == "int8"
    assert not (work.directory / "trials").exists()


def test_where_no_int8_keeps_to_the_budget_the_network_stays_in_float(tmp_path: Path) -> None:
    work = work_of(tmp_path, "orin-nano-8gb")
    # No rounding reaches a score that is better than float's by half.
    trials = Trials.of(work)
    candidate = first(trials, "minmax")
    kept, returns = returned(trials, candidate, sensitivity(trials, candidate), score_drop=-0.5)
    assert kept is None
    assert len(returns) == 2


def test_on_a_board_the_cost_is_left_to_be_measured(tmp_path: Path) -> None:
    done = Quantize(score_drop=0.02)(work_of(tmp_path, "orin-nano-8gb"))
    said = "; ".join(done.log[-1].words)
    assert "fc2/Gemm back to float" in said
    assert "its time must be measured on the board" in said


def test_a_layer_without_any_noise_can_be_written_as_json(tmp_path: Path) -> None:
    write_json(tmp_path / "layer.json", plain(Layer("fc", float("inf"), 0.0)))
    assert read_json(tmp_path / "layer.json") == {"name": "fc", "sqnr_db": None, "score_drop": 0.0}
