from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.digits import Digits

from deadweight.pipeline.runs.cache import Finished, Run, locked
from deadweight.pipeline.stage import NamedStage
from deadweight.pipeline.stages.load import Load
from deadweight.pipeline.stages.prune import Prune
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Facts, Work
from deadweight.targets.artifact import write_text
from deadweight.targets.errors import ArtifactError, ModelError
from deadweight.targets.runtimes.runtime import own_runtime
from deadweight.targets.target import load_target

HERE = Path(__file__)


@dataclass(frozen=True)
class Note:
    """A stage that writes a text, and counts how often it was run."""

    text: str = "a"
    fails: bool = False

    def __call__(self, work: Work) -> Work:
        counter = work.directory / "runs"
        counter.write_text(f"{int(counter.read_text()) + 1 if counter.exists() else 1}")
        if self.fails:
            raise ModelError("It failed.", "Try again.")
        write_text(work.directory / "note.txt", self.text)
        return work.with_artifact("note", work.directory / "note.txt").logged("note", self, "written")


def start(tmp_path: Path, users_file: Path = HERE) -> tuple[Run, Work]:
    return Run(tmp_path, (users_file,), "data"), Work(
        Digits(), load_target("x86-cpu"), tmp_path, networks=NetworkFiles()
    )


def test_a_stage_runs_once_and_is_then_taken_from_the_cache(tmp_path: Path) -> None:
    seen: list[Finished] = []
    run, work = start(tmp_path)
    run.ended = seen.append
    first = run.step(NamedStage("note", Note()), work)
    again = run.step(NamedStage("note", Note()), work)
    assert [finished.cached for finished in seen] == [False, True]
    assert again.artifacts["note"] == first.artifacts["note"]
    assert again.log == first.log
    assert first.artifacts["note"].path.read_text() == "a"


@pytest.mark.parametrize(
    "what", ["settings", "seed", "data", "code", "inputs", "workload", "target", "runtime"]
)
def test_whatever_goes_into_a_stage_is_in_its_key(tmp_path: Path, what: str) -> None:
    users = tmp_path / "users.py"
    users.write_text("X = 1")
    runtime = Path(shutil.copy(HERE.parents[2] / "support" / "own_runtime.py", tmp_path))
    run, work = start(tmp_path, users)
    if what == "runtime":
        own = own_runtime("own_runtime.py:RUNTIME", tmp_path)
        work = dataclasses.replace(work, target=dataclasses.replace(work.target, runtime=own))
    stage = NamedStage("note", Note())
    before = run.key(stage, work)
    if what == "settings":
        stage = NamedStage("note", Note(text="b"))
    elif what == "seed":
        work = dataclasses.replace(work, seed=1)
    elif what == "data":
        run = dataclasses.replace(run, fingerprint="other")
    elif what == "code":
        users.write_text("X = 2")
    elif what == "runtime":
        runtime.write_text(f"{runtime.read_text()}\n# another build of it\n")
    elif what == "workload":
        run = dataclasses.replace(run, workload="Other")
    elif what == "inputs":
        (tmp_path / "other").write_text("")
        work = work.with_artifact("other", tmp_path / "other")
    else:
        work = dataclasses.replace(work, target=load_target("orin-nano-8gb"))
    assert run.key(stage, work) != before


def test_the_place_of_a_run_is_not_in_the_key(tmp_path: Path) -> None:
    run, work = start(tmp_path)
    moved = dataclasses.replace(run, directory=tmp_path / "elsewhere")
    stage = NamedStage("note", Note())
    assert run.key(stage, work) == moved.key(stage, dataclasses.replace(work, directory=tmp_path / "b"))


def test_a_stage_that_failed_finds_its_own_files_again(tmp_path: Path) -> None:
    run, work = start(tmp_path)
    stage = NamedStage("note", Note(fails=True))
    for _ in range(2):
        with pytest.raises(ModelError):
            run.step(stage, work)
    (part,) = (tmp_path / "stages").glob("*.part")
    assert (part / "runs").read_text() == "2"
    assert not list((tmp_path / "stages").glob("*/done.json"))


def test_a_missing_file_makes_only_its_stage_run_again(tmp_path: Path) -> None:
    run, work = start(tmp_path)
    result = run.step(NamedStage("note", Note()), work)
    result.artifacts["note"].path.unlink()
    again = run.step(NamedStage("note", Note()), work)
    assert not run.finished[-1].cached
    assert again.artifacts["note"].checked().read_text() == "a"


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    run, work = start(tmp_path)
    run.step(NamedStage("note", Note()), work).artifacts["note"].path.write_text("tampered")
    with pytest.raises(ArtifactError, match="is damaged"):
        run.step(NamedStage("note", Note()), work)


@pytest.mark.parametrize(
    "wrong", [{}, {"artifacts": 3, "variants": []}, {"artifacts": {"a": {}}, "variants": []}]
)
def test_a_record_of_another_form_is_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    run, work = start(tmp_path)
    run.step(NamedStage("note", Note()), work)
    (done,) = (tmp_path / "stages").glob("note-*/done.json")
    done.write_text(json.dumps(wrong))
    with pytest.raises(ArtifactError, match=r"done\.json is damaged") as caught:
        run.step(NamedStage("note", Note()), work)
    assert f"rm -r {done.parent}" in caught.value.cure


def test_the_record_of_a_stage_says_what_made_it(tmp_path: Path) -> None:
    run, work = start(tmp_path)
    run.step(NamedStage("note", Note()), work)
    (done,) = (tmp_path / "stages").glob("note-*/done.json")
    record = json.loads(done.read_text())
    assert {"python", "cpu", "torch"} <= set(record["made_by"])
    assert record["log"] == [
        {
            "stage": "note",
            "settings": {"text": "a", "fails": False},
            "words": ["written"],
            "facts": dataclasses.asdict(Facts()),
        }
    ]


def test_what_a_killed_run_was_writing_is_gone_when_the_next_begins(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys\n"
        "from deadweight.targets.artifact import writing\n"
        "with writing(pathlib.Path(sys.argv[1])) as beside:\n"
        "    beside.write_text('half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    step = tmp_path / "run/stages/train-1f.part/step-0.safetensors"
    assert subprocess.run([sys.executable, "-c", code, str(step)]).returncode == -9
    (left,) = step.parent.iterdir()
    write_text(step.with_name("step-1.safetensors"), "whole")
    with locked(tmp_path / "run"):
        assert not left.exists()
        assert [path.name for path in step.parent.iterdir()] == ["step-1.safetensors"]


def test_a_directory_belongs_to_one_run(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "run"),
        pytest.raises(ArtifactError, match="Another run"),
        locked(tmp_path / "run"),
    ):
        pass
    with locked(tmp_path / "run"):
        pass


def test_a_file_that_a_stage_reads_is_in_its_key(tmp_path: Path) -> None:
    run, work = start(tmp_path)
    weights = tmp_path / "weights.pt"
    stage = NamedStage("load", Load(path=str(weights)))
    weights.write_bytes(b"old")
    before = run.key(stage, work)
    weights.write_bytes(b"new")
    assert run.key(stage, work) != before


def test_a_users_own_criterion_is_in_the_key_of_pruning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "edited_criterion.py"
    file.write_text("def mine(group, context):\n    return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    run, work = start(tmp_path)
    stage = NamedStage("prune", Prune(ratio=0.5, criterion="edited_criterion.mine"))
    before = run.key(stage, work)
    file.write_text("def mine(group, context):\n    return 2\n")
    assert run.key(stage, work) != before
