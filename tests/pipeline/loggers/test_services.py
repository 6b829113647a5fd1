"""MLflow and TensorBoard for real: a whole run, read back from a server and from event files."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import deadweight
from deadweight.targets.errors import RecipeError

RECIPE = """
workload = "deadweight.testing:TinyWorkload"
log = "{log}"
[budgets]
parameters_removed = 0.2
[[stages]]
stage = "train"
epochs = 2
[[stages]]
stage = "prune"
ratio = 0.5
criterion = "weight_l2"
[[stages]]
stage = "export"
[[stages]]
stage = "profile"
events = 8
event_s = 0.01
"""
pytestmark = pytest.mark.slow


def run(folder: Path, log: str) -> dict[str, Any]:
    (folder / "recipe.toml").write_text(RECIPE.format(log=log))
    return dict(deadweight.run(folder / "recipe.toml", out=folder / "tiny").report)


def wanted(report: dict[str, Any]) -> dict[str, float]:
    """Scores, sizes, and the judgement with its interval, as a log should have them."""
    first, last = report["rows"]
    verdict = report["verdict"]
    return {
        "original/score": first["score"],
        "original/parameters": first["parameters"],
        "original/latency_s/p50": first["latency_s"]["p50"],
        "pruned/score": last["score"],
        "pruned/file_bytes": last["file_bytes"],
        **{f"pruned/speedup/{name}": last["speedup"][name] for name in ("ratio", "low", "high")},
        **{f"verdict/{name}": verdict[name] for name in ("ratio", "low", "high")},
        "budgets/parameters_removed/met": 1.0,
    }


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a local MLflow server."""
    pytest.importorskip("mlflow.server", reason="MLflow's server is not installed: pip install mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    command = ["server", "--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", store]
    with (tmp_path / "server.log").open("w") as output:
        process = subprocess.Popen(
            [*(sys.executable, "-m", "mlflow", *command), "--workers", "1"],
            stdout=output,
            stderr=output,
            cwd=tmp_path,
            start_new_session=True,
        )
        try:
            end = time.monotonic() + 180
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except OSError:
                    assert process.poll() is None, (tmp_path / "server.log").read_text()[-3000:]
                    assert time.monotonic() < end
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, 15)
            process.wait(30)


def test_an_mlflow_server_has_scores_settings_judgements_and_the_report(tmp_path: Path, server: str) -> None:
    report = run(tmp_path, f"mlflow:{server}")
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("deadweight")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("tiny", "FINISHED")
    assert {name: found.data.metrics.get(name) for name in wanted(report)} == wanted(report)
    assert found.data.params["2-prune/ratio"] == "0.5"
    assert found.data.params["budgets/parameters_removed"] == "0.2"
    assert found.data.tags["verdict/sentence"] == report["verdict"]["sentence"]
    assert {one.path for one in client.list_artifacts(found.info.run_id)} == {"report.html", "report.json"}
    page = client.download_artifacts(found.info.run_id, "report.html", str(tmp_path))
    assert Path(page).read_bytes() == (tmp_path / "tiny" / "report.html").read_bytes()


def test_an_mlflow_server_that_does_not_answer_is_refused_before_the_first_stage(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    with pytest.raises(RecipeError, match="cannot be written") as raised:
        run(tmp_path, "mlflow:http://127.0.0.1:9")
    assert "log=[]" in raised.value.cure
    assert not (tmp_path / "tiny" / "stages").exists()


def test_tensorboard_reads_back_what_was_logged(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    report = run(tmp_path, "tensorboard:events")
    folder = tmp_path / "events" / "tiny"
    read = events.EventAccumulator(str(folder), size_guidance={events.TENSORS: 0}).Reload()
    figures = {name: read.Scalars(name)[-1].value for name in read.Tags()["scalars"]}
    assert {name: figures[name] for name in wanted(report)} == pytest.approx(wanted(report), rel=1e-6)
    assert [one.step for one in read.Scalars("2-prune/seconds")] == [2]
    words = {
        name.removesuffix("/text_summary"): read.Tensors(name)[-1].tensor_proto.string_val[0].decode()
        for name in read.Tags()["tensors"]
    }
    assert words["2-prune/ratio"] == "0.5"
    assert words["verdict/sentence"] == report["verdict"]["sentence"]
    assert (folder / "report.html").read_bytes() == (tmp_path / "tiny" / "report.html").read_bytes()


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_stage(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "events").write_text("a file, not a folder")
    with pytest.raises(RecipeError, match="cannot be written"):
        run(tmp_path, "tensorboard:events")
    assert not (tmp_path / "tiny" / "stages").exists()
