"""The logs of a run: a user's own, what it gets, and what is refused before the first stage."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import deadweight
from deadweight.pipeline.loggers.log import loggers
from deadweight.targets.errors import RecipeError

RECIPE = """
workload = "deadweight.testing:TinyWorkload"
log = {log}
[[stages]]
stage = "train"
epochs = 1
[[stages]]
stage = "prune"
ratio = 0.5
criterion = "weight_l2"
"""
OWN = """
import dataclasses, json, pathlib

def lines(entry):
    with open(pathlib.Path(__file__).with_name("log.jsonl"), "a") as file:
        file.write(json.dumps(dataclasses.asdict(entry), default=str) + "\\n")

def breaks(entry):
    if entry.step == AT:
        raise OSError("the disk of the log is full")
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def recipe(folder: Path, log: object, *, at: int = -1) -> Path:
    """A recipe with this log; `breaks` fails at this entry."""
    module = f"own_{folder.name}"
    (folder / f"{module}.py").write_text(OWN.replace("AT", str(at)))
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(log=json.dumps(log).replace("own:", f"{module}:")))
    return path


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_an_own_log_gets_the_recipe_each_stage_and_the_report(project: Path) -> None:
    done = deadweight.run(recipe(project, "own:lines"), out=project / "out")
    first, train, prune, evaluate, last = entries(project)
    assert (first["run"], first["status"], first["settings"]["workload"]) == (
        "out",
        "running",
        "deadweight.testing:TinyWorkload",
    )
    assert train["figures"]["1-train/seconds"] > 0
    assert (prune["step"], prune["settings"]["2-prune/ratio"]) == (2, "0.5")
    assert evaluate["step"] == 3
    assert last["status"] == "finished"
    rows = {row["name"]: row for row in done.report["rows"]}
    for name, row in rows.items():
        assert last["figures"][f"{name}/score"] == row["score"]
        assert last["figures"][f"{name}/parameters"] == row["parameters"]
    assert last["words"]["verdict/sentence"] == done.verdict
    assert [Path(path).name for path in last["files"]] == ["report.json", "report.html"]


def test_a_log_that_fails_in_mid_run_ends_and_the_run_goes_on(project: Path) -> None:
    done = deadweight.run(recipe(project, ["own:breaks", "own:lines"], at=2), out=project / "out")
    (remark,) = [words for words in done.report.get("words", []) if "log" in words]
    assert "the disk of the log is full" in remark
    assert "the disk of the log is full" in (project / "out" / "report.html").read_text()
    assert len(entries(project)) == 5  # the other log has all


def test_a_log_that_fails_at_the_end_is_in_the_report_too(project: Path) -> None:
    done = deadweight.run(recipe(project, "own:breaks", at=4), out=project / "out")
    assert "the disk of the log is full" in done.report.get("words", [])[-1]


def test_an_error_in_a_stage_is_the_last_entry_of_a_log(project: Path) -> None:
    path = recipe(project, "own:lines")
    with pytest.raises(deadweight.DeadweightError):  # the network has no batch norms to go by
        deadweight.run(path, settings=["prune.criterion=batch_norm"], out=project / "out")
    assert [(one["step"], one["status"]) for one in entries(project)] == [
        (0, "running"),
        (1, "running"),
        (0, "failed"),
    ]


@pytest.mark.parametrize(
    ("log", "what", "cure"),
    [
        ("mlfow:http://host", 'There is no log "mlfow', "Did you mean 'mlflow'?"),
        ("", "There is no log", "module:function"),
        ("own:missing", "missing", ""),
        ("own:breaks", "the disk of the log is full", "Fix that line"),
        (3, "log", ""),
    ],
)
def test_a_log_that_cannot_be_written_is_refused_before_the_first_stage(
    project: Path, log: object, what: str, cure: str
) -> None:
    with pytest.raises(RecipeError) as raised:
        deadweight.run(recipe(project, log, at=0), out=project / "out")
    assert what in raised.value.what
    assert cure in raised.value.cure
    assert not (project / "out" / "stages").exists()


@pytest.mark.parametrize("prefix", loggers())
def test_without_its_package_a_log_names_its_extra(
    project: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [*[one for one in sys.modules if one.startswith(f"{prefix}.")], prefix]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(RecipeError, match="needs") as raised:
        deadweight.run(recipe(project, f"{prefix}:{project}"), out=project / "out")
    assert f"[{prefix}]" in raised.value.cure


def test_every_logger_has_an_extra() -> None:
    text = (Path(__file__).resolve().parents[3] / "pyproject.toml").read_text("utf-8")
    assert loggers() == ["mlflow", "tensorboard"]
    assert all(f"\n{prefix} = [" in text for prefix in loggers())


def test_an_address_with_a_password_is_in_no_message(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = "http://user:secret@host:5000"

    def opens(place: str, first: object) -> None:
        raise OSError(f"no answer from {place}")

    fake = type(sys)("deadweight.pipeline.loggers.mlflow")
    fake.log = opens  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    with pytest.raises(RecipeError) as raised:
        deadweight.run(recipe(project, f"mlflow:{address}"), out=project / "out")
    assert "no answer from" in raised.value.what
    assert "secret" not in str(raised.value)
