from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from deadweight.targets.errors import ArtifactError, MeasurementError, ModelError
from deadweight.targets.gate.baseline import Baseline, old_model, read_baseline, record, refuse_other_protocol
from deadweight.targets.timing.measurement import Protocol

MakeMlp = Callable[..., Path]
QUICK = Protocol(events=12, event_s=0.002, block_s=0.0005, settle_s=0.0002, cap_s=5.0)


def recorded(mlp: MakeMlp, tmp_path: Path, **options: Any) -> tuple[Baseline, Path]:
    path = tmp_path / "accepted" / "baseline.json"
    return record(mlp(64, 32, 10), path, protocol=QUICK, **options)[0], path


def test_a_baseline_comes_back_from_its_file_and_finds_its_model(mlp: MakeMlp, tmp_path: Path) -> None:
    made, path = recorded(mlp, tmp_path, commit="abc", score=0.9)
    read = read_baseline(path)
    assert read == made
    assert read.protocol == QUICK
    assert (read.commit, read.score) == ("abc", 0.9)
    assert old_model(read, path) == (tmp_path / "model.onnx").resolve()


def test_a_model_that_is_not_there_is_fetched_by_its_command(mlp: MakeMlp, tmp_path: Path) -> None:
    store = tmp_path / "store.onnx"
    made, path = recorded(mlp, tmp_path)
    shutil.move(str(tmp_path / "model.onnx"), str(store))
    found = old_model(made, path, fetch=f"cp {store} {tmp_path}/model.onnx")
    assert found == (tmp_path / "model.onnx").resolve()


def test_a_fetch_that_fails_or_brings_another_file_is_refused(mlp: MakeMlp, tmp_path: Path) -> None:
    made, path = recorded(mlp, tmp_path)
    (tmp_path / "model.onnx").unlink()
    for command, says in (("ls nowhere.onnx", r"ended with 2 .*nowhere"), ("not-there x", "No such file")):
        with pytest.raises(ArtifactError, match=says):
            old_model(made, path, fetch=command)
    with pytest.raises(ArtifactError, match="is not here") as caught:
        old_model(made, path)
    assert "--fetch" in caught.value.cure
    mlp(64, 33, 10)
    with pytest.raises(ArtifactError, match="is not the accepted model"):
        old_model(made, path)


def test_a_command_in_the_file_is_never_run(mlp: MakeMlp, tmp_path: Path) -> None:
    _, path = recorded(mlp, tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "fetch": f"touch {tmp_path}/run"}))
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(ArtifactError, match="is not here"):
        old_model(read_baseline(path), path)
    assert not (tmp_path / "run").exists()


def test_a_fetch_has_no_shell(mlp: MakeMlp, tmp_path: Path) -> None:
    made, path = recorded(mlp, tmp_path)
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(ArtifactError, match="ended with"):
        old_model(made, path, fetch=f"ls {tmp_path}; touch {tmp_path}/run")
    assert not (tmp_path / "run").exists()


def test_weights_that_lie_beside_the_accepted_model_are_counted_and_must_be_the_accepted_ones(
    mlp: MakeMlp, tmp_path: Path
) -> None:
    path, apart, baseline = mlp(64, 32, 10), tmp_path / "apart.onnx", tmp_path / "baseline.json"
    onnx.save(onnx.load(path), apart, save_as_external_data=True, location="apart.data", size_threshold=0)
    made, _ = record(apart, baseline, protocol=QUICK)
    assert made.file_bytes > (64 * 32 + 32 * 10) * 4
    assert old_model(made, baseline) == apart.resolve()
    weights = bytearray((tmp_path / "apart.data").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "apart.data").write_bytes(bytes(weights))
    with pytest.raises(ArtifactError, match="is not the accepted model"):
        old_model(made, baseline)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "schema 99"),
        ({"schema": None}, "schema None"),
        ({"protocol": {"events": 5, "colour": "red"}}, "protocol has the unknown key colour"),
        ({"surprise": 1}, "has the unknown key surprise"),
        ({"model": None}, "model is None"),
        ({"model_sha256": 5}, "model_sha256 is 5"),
        ({"score": "high"}, "score is 'high'"),
        ({"machine": "mine"}, "machine is 'mine'"),
    ],
)
def test_another_schema_or_a_broken_file_is_refused(
    mlp: MakeMlp, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    _, path = recorded(mlp, tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises((ArtifactError, MeasurementError), match=message):
        read_baseline(path)


def test_a_file_that_was_cut_while_it_was_written_is_refused(mlp: MakeMlp, tmp_path: Path) -> None:
    _, path = recorded(mlp, tmp_path)
    path.write_text(path.read_text()[:100])
    with pytest.raises(ArtifactError, match="not readable as JSON") as caught:
        read_baseline(path)
    assert "Restore the baseline" in caught.value.cure
    assert "Delete" not in caught.value.cure


def test_a_model_that_cannot_be_recorded_leaves_the_old_baseline_as_it_was(
    mlp: MakeMlp, tmp_path: Path
) -> None:
    _, path = recorded(mlp, tmp_path)
    before = path.read_bytes()
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    for bad in (tmp_path / "bad.onnx", tmp_path / "none.onnx"):
        with pytest.raises(ModelError):
            record(bad, path, protocol=QUICK)
    assert path.read_bytes() == before


def test_a_flag_may_not_contradict_how_it_was_recorded(mlp: MakeMlp, tmp_path: Path) -> None:
    made, _ = recorded(mlp, tmp_path)
    refuse_other_protocol(made, threads=None, batch=1)
    with pytest.raises(MeasurementError, match="recorded with threads 1, but threads 2 was requested"):
        refuse_other_protocol(made, threads=2, batch=None)
