from __future__ import annotations

import onnx
import pytest
from support.digits import Digits
from support.int8_files import calibrate
from support.workloads import trained

from deadweight.pipeline.quantization.candidates import Candidate, Trials, first
from deadweight.pipeline.stages.export import Export
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Work
from deadweight.pipeline.workload import inputs_of
from deadweight.targets.target import load_target


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Trials:
    workload = Digits()
    work = Work(workload, load_target("x86-cpu"), tmp_path_factory.mktemp("work"), networks=NetworkFiles())
    return Trials.of(Export()(work.with_model("original", trained(workload))))


def test_the_dialect_is_that_of_the_target_and_the_float_score_is_known(trials: Trials) -> None:
    assert trials.dialect == "x86"
    assert trials.float_score > 0.85


def test_a_candidate_is_scored_and_its_noise_is_that_of_its_outputs(trials: Trials) -> None:
    made = first(trials, "minmax")
    assert abs(made.score - trials.float_score) < 0.02
    assert 0 < made.noise < 0.05
    assert made.ranges == calibrate(trials.original, inputs_of(trials.work.workload, "calibration"))
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(made.path).graph.node}


def test_the_best_method_is_no_worse_than_any_by_both_measures(trials: Trials) -> None:
    best = first(trials, "best")
    for method in ("minmax", "percentile", "entropy", "mse"):
        assert not trials.helps(first(trials, method), best)


@pytest.mark.parametrize(
    ("score", "noise", "helps"),
    [
        (0.90, 0.01, True),
        (0.90, 0.03, False),  # no nearer to float
        (0.89, 0.01, False),  # a worse score
        (0.93, 0.03, False),  # luck alone
    ],
)
def test_what_helps_is_nearer_to_float_and_scores_no_worse(
    trials: Trials, score: float, noise: float, helps: bool
) -> None:
    base = first(trials, "minmax")
    held = Trials(trials.work, trials.original, trials.network, 0.92, trials.dialect, trials.folder)

    def candidate(score: float, noise: float) -> Candidate:
        return Candidate(base.source, base.ranges, base.quantized, base.path, (), score, noise)

    assert held.helps(candidate(score, noise), candidate(0.90, 0.02)) is helps
    # What rounding gains over float is luck, and giving it up is no loss.
    assert held.helps(candidate(0.92, 0.01), candidate(0.95, 0.02))
