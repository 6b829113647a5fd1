"""`--on BOARD` where the board has TensorRT: compare, profile and gate build there and time the engines.

By NVIDIA's own bindings over the fake: what is called, sent and kept is real, and times are simulated.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import ssh_board
from support.simulated_board import simulated_board

from deadweight.__main__ import main
from deadweight.targets.artifact import read_json, sha256_of
from deadweight.targets.engines.dla import read_ranges
from deadweight.targets.errors import TargetError
from deadweight.targets.remote.board import predict_on
from deadweight.targets.remote.on_board import ready_on
from deadweight.targets.remote.ssh import connected

pytestmark = pytest.mark.skipif(
    ssh_board.SSHD is None, reason="there is no sshd here: apt install openssh-server"
)


class Command:
    """`deadweight` in this process: its exit code and its output in one line."""

    def __init__(
        self, board: ssh_board.Board, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        patch.setenv("DEADWEIGHT_SSH_CONFIG", str(board.config))
        patch.setenv("COLUMNS", "200")
        self._patch, self._capsys = patch, capsys

    def __call__(self, *arguments: object) -> tuple[int, str]:
        self._patch.setattr(sys, "argv", ["deadweight", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = self._capsys.readouterr()
        return int(caught.value.code or 0), " ".join((printed.out + printed.err).split())


@pytest.fixture
def deadweight(
    board: ssh_board.Board, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    return Command(board, monkeypatch, capsys)


def plans(board: ssh_board.Board) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in board.home.rglob("engines/*/*.plan")}


def test_two_onnx_files_are_built_there_and_their_engines_are_compared_and_kept(
    board: ssh_board.Board, models: Path, deadweight: Command, tmp_path: Path
) -> None:
    line = ["compare", models / "mlp.onnx", models / "qdq.onnx", "--on", "board", "--events", 6]
    code, said = deadweight(*line, "--event-s", 0.01, "--out", tmp_path / "c.json")
    assert code == 3, said
    assert "simulated on the GPU by TensorRT 10.3.0, baseline FP16, candidate INT8 and FP16, batch 1" in said
    answer = json.loads((tmp_path / "c.json").read_text())
    assert [answer[name]["protocol"]["precision"] for name in ("baseline", "candidate")] == ["fp16"] * 2
    engines = [answer[name]["conditions"]["engine"] for name in ("baseline", "candidate")]
    assert [one["flags"] for one in engines] == [["FP16"], []]  # by the flag, and in the file
    assert [one["strongly_typed"] for one in engines] == [False, True]
    assert engines[0]["limits"] == engines[1]["limits"]
    first = plans(board)
    assert len(first) == 2
    code, said = deadweight(*line, "--event-s", 0.01)
    assert code == 3, said
    assert "built before, and not again: baseline, candidate" in said
    assert plans(board) == first


@pytest.mark.slow
def test_one_model_is_profiled_as_an_engine_with_its_memory(models: Path, deadweight: Command) -> None:
    line = ["profile", models / "mlp.onnx", "--on", "board", "--events", 6, "--event-s", 0.01]
    code, said = deadweight(*line, "--precision", "fp32")
    assert code == 0, said
    assert "simulated on the GPU by TensorRT 10.3.0, FP32, batch 1" in said
    assert "memory, plan:" in said
    code, said = deadweight(*line, "--runtime", "onnxruntime")
    assert code == 0, said
    assert "on the CPU" in said
    assert "by ONNX Runtime" in said


@pytest.mark.slow
def test_a_gate_on_a_board_judges_engines_and_only_of_the_recorded_precision(
    models: Path, deadweight: Command, tmp_path: Path
) -> None:
    baseline = ["--baseline", tmp_path / "b.json", "--on", "board", "--config", tmp_path / "none.toml"]
    held = np.load(models / "mlp.npz")
    np.savez(tmp_path / "data.npz", x=held["x"], label=held["y"].argmax(1))
    (tmp_path / "none.toml").write_text('[gate]\ndata = "data.npz"\n[budgets]\nscore_drop = 0.9\n')
    code, said = deadweight("gate", "--record", "--model", models / "mlp.onnx", *baseline)
    assert code == 0, said
    recorded = json.loads((tmp_path / "b.json").read_text())
    assert recorded["protocol"]["runtime"] == "tensorrt"
    assert recorded["protocol"]["precision"] == "fp16"
    code, said = deadweight("gate", "--model", models / "qdq.onnx", *baseline)
    assert code == 3, said
    assert "by TensorRT 10.3.0, baseline FP16, candidate INT8 and FP16" in said
    assert "was 1.0000" in said  # the engine's score
    code, said = deadweight("gate", "--model", models / "qdq.onnx", *baseline, "--precision", "fp32")
    assert code == 2
    assert "recorded with precision fp16" in said
    code, said = deadweight("gate", "--model", models / "qdq.onnx", *baseline, "--runtime", "onnxruntime")
    assert code == 2
    assert "runs on onnxruntime, but the baseline was recorded on tensorrt fp16" in said
    assert "gate --record" in said


@pytest.mark.slow
def test_engines_for_scores_take_fewer_samples_than_the_inputs_of_the_times(
    board: ssh_board.Board, models: Path, tmp_path: Path
) -> None:
    held = np.load(models / "mlp.npz")
    np.savez(tmp_path / "five.npz", x=held["x"][:5])
    with connected("board", config=board.config) as there:
        given = {"mlp": models / "mlp.onnx"}
        ready = ready_on(there, given, inputs=tmp_path / "five.npz", scores=True)
        assert ready.batch == 5
        found = predict_on(there, ready, "mlp")({"x": held["x"][:7]})["y"]
    np.testing.assert_allclose(found, held["y"][:7], rtol=0.02, atol=0.02)


@pytest.mark.slow
def test_layers_of_engines_are_refused_before_anything_is_timed(models: Path, deadweight: Command) -> None:
    line = ["compare", models / "mlp.onnx", models / "qdq.onnx", "--on", "board", "--layers"]
    code, said = deadweight(*line)
    assert code == 2
    assert "layers of engines are not judged" in said
    assert "--runtime onnxruntime" in said


@pytest.mark.slow
def test_an_engine_that_the_board_built_is_timed_and_another_is_refused(
    board: ssh_board.Board, models: Path, deadweight: Command, tmp_path: Path
) -> None:
    code, said = deadweight("build", models / "mlp.onnx", "--on", "board", "--out", tmp_path / "m.plan")
    assert code == 0, said
    line = ["--on", "board", "--events", 6, "--event-s", 0.01]
    assert read_json(tmp_path / "m.plan.json")["rebuild"] == (
        f"deadweight build {models / 'mlp.onnx'} --out {tmp_path / 'm.plan'} --on board"
    )
    code, said = deadweight("profile", tmp_path / "m.plan", *line)
    assert code == 0, said
    assert "simulated on the GPU by TensorRT 10.3.0, FP16" in said
    code, said = deadweight("build", models / "qdq.onnx", "--on", "board", "--out", tmp_path / "q.plan")
    assert code == 0, said
    code, said = deadweight("compare", tmp_path / "m.plan", tmp_path / "q.plan", *line)
    assert code == 3, said  # built one after the other without options, they have the same limits
    assert "by TensorRT 10.3.0, baseline FP16, candidate INT8 and FP16, batch 1" in said
    plan = (tmp_path / "m.plan").read_bytes()
    (tmp_path / "m.plan").write_bytes(plan + b" ")
    code, said = deadweight("profile", tmp_path / "m.plan", *line)
    assert code == 2
    assert "was not built on this board" in said


def test_doctor_finds_tensorrt_on_a_board_that_is_no_jetson(deadweight: Command) -> None:
    code, said = deadweight("doctor", "--on", "board")
    assert code == 0, said
    assert "works │ tensorrt │ 10.3.0 │ engines" in said
    assert "before a model" in said  # its own memory was measured
    assert "--on USER@HOST builds both here in FP16" in said


def test_a_build_that_is_refused_leaves_nothing_and_never_replaces_the_model(
    models: Path, deadweight: Command, tmp_path: Path
) -> None:
    model = tmp_path / "qdq.onnx"
    model.write_bytes((models / "qdq.onnx").read_bytes())
    code, said = deadweight("build", model, "--on", "board", "--out", model)
    assert code == 2, said
    assert "Give one that ends in .plan or .engine" in said
    assert sha256_of(model) == sha256_of(models / "qdq.onnx")
    code, said = deadweight("build", model, "--on", "board", "--shapes", "none=1x2,1x2,1x2")
    assert code == 2, said
    assert "'none' is not an input" in said
    assert list(tmp_path.iterdir()) == [model]  # no file in FP16 without its plan


def test_without_onnx_a_file_that_must_be_cast_is_refused_with_the_cure(
    board: ssh_board.Board, models: Path
) -> None:
    with connected("board", config=board.config) as there:
        ready_on(there, {"mlp": models / "mlp.onnx"})  # a flag does it
        with pytest.raises(TargetError, match=r"keeps the types of qdq\.onnx") as caught:
            ready_on(there, {"qdq": models / "qdq.onnx"})
    assert "pip install onnx" in caught.value.cure


def test_a_build_that_was_cut_before_its_end_is_done_again(board: ssh_board.Board, models: Path) -> None:
    with connected("board", config=board.config) as there:
        ready = ready_on(there, {"mlp": models / "mlp.onnx"})
        plan = Path(ready.there["mlp"])
        Path(f"{plan}.json").unlink()  # as if the link was cut between the plan and its record
        again = ready_on(there, {"mlp": models / "mlp.onnx"})
        assert again.there == ready.there
        assert again.engines["mlp"]["kept"] is False
        assert Path(f"{plan}.json").is_file()
        assert ready_on(there, {"mlp": models / "mlp.onnx"}).engines["mlp"]["kept"] is True


@pytest.mark.slow
def test_how_engines_run_is_part_of_the_runtimes_name(
    models: Path, deadweight: Command, tmp_path: Path
) -> None:
    line = ["compare", models / "mlp.onnx", models / "qdq.onnx", "--on", "board", "--events", 6]
    line += ["--event-s", 0.01, "--out", tmp_path / "c.json", "--cuda-graph", "--sync", "block"]
    code, said = deadweight(*line)
    assert code == 3, said
    assert "by TensorRT 10.3.0, graph, block" in said
    answer = json.loads((tmp_path / "c.json").read_text())
    assert answer["baseline"]["protocol"]["runtime"] == "tensorrt+graph+block"
    code, said = deadweight("profile", models / "mlp.onnx", "--runtime", "tensorrt+graph")
    assert code == 2
    assert "tensorrt+graph does not open such files; onnxruntime does" in said
    code, said = deadweight("profile", models / "mlp.onnx", "--cuda-graph", "--buffers", "mapped")
    assert code == 2
    assert "ONNX Runtime does not run with graph and mapped" in said


def test_a_plugin_library_of_the_board_serves_build_and_timing(
    board: ssh_board.Board, models: Path, deadweight: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEADWEIGHT_PLUGINS", "")
    source = board.home / "ours.c"
    source.write_text(
        "void fake_register(const char *);\n"
        '__attribute__((constructor)) static void at_load(void) { fake_register("NormOfOurs"); }\n'
    )
    library, engine = board.home / "libours.so", next(board.home.parents[1].rglob("libnvinfer.so.10"))
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source), str(engine)], check=True)
    line = ["profile", models / "ours.onnx", "--on", "board", "--events", 6, "--event-s", 0.01]
    line += ["--precision", "fp32"]
    code, said = deadweight(*line)
    assert (code, "Plugin not found" in said, "--plugin" in said) == (2, True, True), said
    code, said = deadweight(*line, "--plugin", library)
    assert code == 0, said
    assert "simulated on the GPU by TensorRT 10.3.0" in said


@pytest.mark.slow
def test_int8_on_dla_goes_from_samples_to_an_engine_and_a_loadable(
    models: Path, deadweight: Command, tmp_path: Path
) -> None:
    np.savez(tmp_path / "samples.npz", x=np.load(models / "mlp.npz")["x"])
    made, target = tmp_path / "made", ["--target", "agx-orin-64gb"]
    line = ["quantize", models / "mlp.onnx", "--data", tmp_path / "samples.npz", *target, "--out", made]
    code, said = deadweight(*line, "--calibration-cache", "--batch", 4)
    assert code == 0, said
    ranges, plan = made / "calibration.cache", tmp_path / "float.plan"
    assert {"x", "m0", "r0", "y"} <= set(read_ranges(ranges))
    line = ["build", made / "float.onnx", "--on", "board", "--dla-core", 0, "--out", plan]
    line += ["--batch", "4,4,4"]
    for option, flags in (
        ([], ["INT8", "FP16", "GPU_FALLBACK"]),
        (["--standalone"], ["INT8", "FP16", "DIRECT_IO"]),
    ):
        code, said = deadweight(*line, "--calibration-cache", ranges, *option)
        assert code == 0, said
        record = json.loads(Path(f"{plan}.json").read_text())
        assert record["flags"] == flags
        assert record["calibration_cache"]["sha256"] == sha256_of(ranges)
    code, said = deadweight("build", made / "int8.onnx", "--on", "board", "--dla-core", 0, "--batch", "4,4,4")
    assert code == 2
    assert "has Q/DQ pairs, which DLA cannot run before TensorRT 11.4.1 (here: 10.3.0)" in said


@pytest.mark.slow
def test_from_tensorrt_11_on_a_float_file_is_cast_too(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = Command(simulated_board(tmp_path, "11.4.0.106"), monkeypatch, capsys)
    line = ["compare", models / "mlp.onnx", models / "qdq.onnx", "--on", "board", "--events", 6]
    code, said = newer(*line, "--event-s", 0.01, "--out", tmp_path / "c.json")
    assert code == 3, said
    assert "baseline FP16, candidate INT8 and FP16" in said
    answer = json.loads((tmp_path / "c.json").read_text())
    engines = [answer[name]["conditions"]["engine"] for name in ("baseline", "candidate")]
    assert [(one["flags"], one["half"], one["strongly_typed"]) for one in engines] == [([], True, True)] * 2
    code, said = newer("build", models / "mlp.onnx", "--on", "board", "--out", tmp_path / "m.plan")
    assert code == 0, said
    assert (tmp_path / "m.fp16.onnx").is_file()
    assert "precision fp16" in said


@pytest.mark.slow
@pytest.mark.parametrize("version", ["8.6.1", "10.7.0", "10.13.3.9", "10.16.1.11", "11.4.0.106"])
def test_every_tensorrt_builds_and_compares_in_fp16_and_the_second_time_builds_nothing(
    version: str,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    there = Command(simulated_board(tmp_path, version), monkeypatch, capsys)
    line = ["compare", models / "mlp.onnx", models / "qdq.onnx", "--on", "board", "--events", 6]
    code, said = there(*line, "--event-s", 0.01)
    assert code == 3, said
    assert f"by TensorRT {version}, baseline FP16, candidate INT8 and FP16" in said
    code, said = there(*line, "--event-s", 0.01)
    assert (code, "built before, and not again: baseline, candidate" in said) == (3, True), said
