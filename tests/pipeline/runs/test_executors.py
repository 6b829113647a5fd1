"""Sweeps whose trials run elsewhere: in an executor of the user's own, or on a Ray cluster."""

from __future__ import annotations

import dataclasses
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support import ssh_board
from support.clusters import cluster, head_of, other_python
from support.runs import MINE, project_of
from support.runs import recipe as recipe_of

from deadweight.pipeline.executors.executor import Ended
from deadweight.pipeline.executors.ray import _run
from deadweight.pipeline.recipe import SweepSettings, read_recipe
from deadweight.pipeline.runs.cache import Watcher, load, made_by
from deadweight.pipeline.runs.run import run_sweep
from deadweight.pipeline.runs.sweep import Swept
from deadweight.pipeline.runs.trials import Trial
from deadweight.targets.artifact import read_json
from deadweight.targets.errors import DeadweightError, ModelError, RecipeError, TargetError

STAGES = recipe_of(
    ("train", {"epochs": 1}),
    ("prune", {"ratio": 0.5, "criterion": "random"}),
    ("finetune", {"epochs": 1}),
    workload="mine.py:Mine",
)
OVER = {"prune.ratio": (0.3, 0.9)}
OWN = """
import contextlib
from dataclasses import dataclass
from pathlib import Path

@dataclass
class Inline:
    place: object
    at_once: int = 1
    boards: int = 1

    def run(self, tasks, ended, *, alone=False):
        with (self.place.folder / "seen").open("a") as file:
            file.writelines(f"{task.name}\\n" for task in tasks)
        return [task() for task in tasks]

@contextlib.contextmanager
def inline(place):
    yield Inline(place)
"""


def swept(project: Path, run: str, text: str = STAGES, **changes: Any) -> Swept:
    (project / "recipe.toml").write_text(text)
    settings = dataclasses.replace(SweepSettings(over=OVER, score_drop=1.0, seconds=0.5), **changes)
    return run_sweep(read_recipe(project / "recipe.toml"), settings, project / run, Watcher())


def table(found: Swept) -> list[Mapping[str, Any]]:
    """The rows without times."""
    return [{key: value for key, value in row.items() if key != "speedup"} for row in found.sweep["rows"]]


def artifacts(run: Path) -> dict[str, Any]:
    """The SHA-256 of every file of every finished stage, by the stage's key; without times."""
    found = {}
    for done in (run / "stages").glob("*/done.json"):
        record = read_json(done)
        files = {one["name"]: one["files"] for one in record["variants"]}
        named = {name: one for name, one in record["artifacts"].items() if name != "measurements"}
        if not done.parent.name.startswith("profile"):
            found[done.parent.name] = {"variants": files, "artifacts": named}
    return found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return project_of(tmp_path, STAGES)


def test_an_executor_of_the_users_own_runs_all_trials_and_timings_to_the_same_table(project: Path) -> None:
    (project / "mine_executor.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(project)
        found = swept(project, "own", executor="mine_executor:inline")
    assert (project / "seen").read_text().splitlines() == [
        *("seed 0", "prune.ratio 0.3", "prune.ratio 0.9", "timing 1 of 1")
    ]
    assert table(found) == table(swept(project, "alone"))
    assert artifacts(project / "own") == artifacts(project / "alone")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"executor": "rai"}, 'There is no executor "rai"'),
        ({"board": "orin"}, 'time on no board "orin"'),
        ({"gpus": 64.0}, "64 GPUs each need 64"),
        ({"executor": "ray", "address": "nowhere"}, "is no address"),
    ],
)
def test_what_cannot_run_trials_is_refused_before_any_runs(
    project: Path, changes: Mapping[str, Any], said: str
) -> None:
    pytest.importorskip("ray")
    with pytest.raises(RecipeError, match=said) as caught:
        swept(project, "run", **changes)
    assert caught.value.cure
    assert not (project / "run" / "stages").exists()


def test_an_address_where_no_cluster_answers_is_named_at_once(project: Path) -> None:
    pytest.importorskip("ray")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but nobody listens
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(RecipeError, match=rf"No Ray cluster answers at {address}"):
            swept(project, "run", executor="ray", address=address)


def trial(project: Path, **changes: Any) -> Ended:
    recipe = read_recipe(project / "recipe.toml")
    values = (recipe.values, recipe.path, project / "run", recipe.target, 1)
    task = Trial("one", *values, load(recipe.workload, project)[1], made_by())
    return dataclasses.replace(task, **changes)()


def test_a_worker_with_another_version_or_other_data_refuses_a_trial(project: Path) -> None:
    other = trial(project, versions={**made_by(), "torch": "1.0"})
    assert isinstance(other.error, RecipeError)
    assert (
        f"has torch {made_by()['torch']}, and the machine that started the sweep has 1.0" in other.error.what
    )
    other = trial(project, versions={**made_by(), "python": "3.99.0"})
    assert isinstance(other.error, RecipeError)
    assert "3.99.0" in other.error.what
    other = trial(project, fingerprint="another")
    assert isinstance(other.error, RecipeError)
    assert "other data" in other.error.what
    assert not (project / "run" / "stages").exists()


def test_a_trial_whose_memory_runs_out_is_an_error_and_no_refused_setting(project: Path) -> None:
    (project / "mine.py").write_text(
        f"{MINE}\n    def loss(self, outputs, batch):\n        raise MemoryError('300 GiB')\n"
    )
    ended = trial(project)
    assert isinstance(ended.error, ModelError)
    assert "memory ran out: 300 GiB" in ended.error.what
    assert "Use smaller batches" in ended.error.cure


def test_a_node_beside_a_board_times_there(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEADWEIGHT_BOARD", "nobody@nowhere.invalid")
    with pytest.raises(TargetError, match=r"nowhere\.invalid"):
        swept(project, "run")


def stored(store: Path) -> str:
    return f'store = {{ url = "file://{store}" }}\n{STAGES}'


@pytest.mark.slow
def test_pool_one_node_and_three_nodes_give_the_same_table_and_artifacts(project: Path) -> None:
    pytest.importorskip("ray")
    pool = swept(project, "pool", processes=2)
    local = swept(project, "local", executor="ray")
    with cluster(*[{"num_cpus": 1}] * 3) as nodes:
        three = swept(
            project, "three", stored(project / "store"), executor="ray", address=nodes.address, cpus=1
        )
    assert table(pool) == table(local) == table(three)
    assert artifacts(project / "pool") == artifacts(project / "local") == artifacts(project / "three")


DIES = f"""{MINE}
    def loss(self, outputs, batch):
        import pathlib, ray, time
        mark = pathlib.Path({{mark!r}})
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return super().loss(outputs, batch)
        mark.write_text(ray.get_runtime_context().get_node_id())
        time.sleep(600)
"""


@pytest.mark.slow
def test_a_node_that_dies_in_a_trial_costs_that_trial_alone(project: Path) -> None:
    pytest.importorskip("ray")
    over = {"prune.ratio": (0.2, 0.4, 0.6, 0.8)}
    whole = swept(project, "whole", over=over)
    mark = project / "killed"
    (project / "mine.py").write_text(DIES.format(mark=str(mark)))
    with cluster(*[{"num_cpus": 1}] * 3) as nodes:

        def kill() -> None:
            while not (mark.exists() and mark.read_text()):
                time.sleep(0.1)
            nodes.kill(mark.read_text())

        killer = threading.Thread(target=kill)
        killer.start()
        ray: dict[str, Any] = {"executor": "ray", "address": nodes.address, "cpus": 1}
        found = swept(project, "run", stored(project / "store"), over=over, **ray)
        killer.join()
        assert nodes.alive() == 3  # the head and two others
    assert table(found) == table(whole)


@pytest.mark.slow
@pytest.mark.skipif(ssh_board.SSHD is None, reason="there is no sshd here: apt install openssh-server")
def test_two_boards_share_the_timings_of_a_sweep_and_the_table_says_how_far_they_are_apart(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("ray")
    python = str(Path(sys.executable).parent)
    one, two, config = ssh_board.make_two(tmp_path_factory.mktemp("boards"), python=python)
    beside = [
        {"num_cpus": 0, "resources": {"orin": 1}, "env_vars": {"DEADWEIGHT_BOARD": name}}
        for name in ("one", "two")
    ]
    known = {"DEADWEIGHT_SSH_CONFIG": str(config)}
    with cluster({"num_cpus": 1}, *beside, environment=known) as nodes:
        ray: dict[str, Any] = {"executor": "ray", "address": nodes.address, "cpus": 1}
        found = swept(project, "run", **ray, board="orin", seconds=2.0)
    assert all(row["speedup"] for row in found.sweep["rows"])
    (said,) = [words for words in found.sweep.get("words", []) if "A/A" in words]
    assert re.search(
        r"2 boards orin shared the timings. A/A: the original's times on them differ by a factor of at most "
        r"\d\.\d{3} \(\d\.\d{3} to \d\.\d{3}\)",
        said,
    )
    assert one.traffic()
    assert two.traffic()


@pytest.mark.slow
def test_a_fresh_cluster_goes_on_from_the_store_alone(project: Path) -> None:
    pytest.importorskip("ray")
    text = stored(project / "store")
    with cluster({"num_cpus": 1}) as nodes:
        first = swept(project, "first", text, executor="ray", address=nodes.address, cpus=1)
    kept = project / "store" / "stages"
    before = sorted(kept.rglob("*.tar"))
    with cluster({"num_cpus": 1}) as nodes:
        again = swept(project, "again", text, executor="ray", address=nodes.address, cpus=1)
    assert table(first) == table(again)
    assert (
        sorted((project / "store" / "stages").rglob("*.tar")) == before
    )  # one that ran again has other times
    assert artifacts(project / "first") == artifacts(project / "again")


@pytest.mark.slow
def test_a_cluster_that_lacks_what_a_trial_needs_says_what(project: Path) -> None:
    """One cluster, since each takes ten seconds: a board, CPUs, a package, a version, a directory, memory."""
    pytest.importorskip("ray")
    dist = project / "fake" / "torch-0.1.dist-info"
    dist.mkdir(parents=True)
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 0.1\n")
    (project / "here").mkdir()
    (project / "here" / "only_here.py").write_text("")
    with cluster({"num_cpus": 1, "resources": {"orin": 1}}) as nodes, pytest.MonkeyPatch.context() as patch:
        ray: dict[str, Any] = {"executor": "ray", "address": nodes.address, "cpus": 1}
        with pytest.raises(RecipeError, match=r'has the board "xavier"; there are: .*orin'):
            swept(project, "run", **ray, board="xavier")
        with pytest.raises(RecipeError, match="A trial needs 64 CPUs"):
            swept(project, "run", **{**ray, "cpus": 64})
        patch.syspath_prepend(project / "here")
        (project / "mine.py").write_text(f"import only_here\n{MINE}")
        with pytest.raises(DeadweightError, match="No module named 'only_here'") as caught:
            swept(project, "run", **ray)
        assert "install only_here" in caught.value.cure
        (project / "mine.py").write_text(MINE)
        timings = swept(project, "run", **ray, board="orin")
        assert all(row["speedup"] for row in timings.sweep["rows"])
    other = r"has torch 0\.1, and the machine that started the sweep has"
    fake = {"PYTHONPATH": str(project / "fake")}
    with cluster({"num_cpus": 1}, environment=fake) as nodes, pytest.raises(RecipeError, match=other):
        swept(project, "run2", executor="ray", address=nodes.address, cpus=1)


@pytest.mark.slow
def test_a_cluster_with_another_python_or_ray_is_refused_with_both_versions(project: Path) -> None:
    here = pytest.importorskip("ray").__version__
    if not (python := other_python()):
        pytest.skip("there is no other Python with pip here")
    for interpreter, version in ((python, here), (sys.executable, "2.55.0")):
        place = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: sockets are in it
        try:
            subprocess.run([interpreter, "-m", "venv", str(place / "venv")], check=True, capture_output=True)
            install = [str(place / "venv/bin/pip"), "install", "--quiet", f"ray=={version}"]
            if subprocess.run(install, capture_output=True, check=False).returncode:
                pytest.skip(f"Ray {version} cannot be installed here")
            with head_of(place / "venv/bin/ray", place) as address:
                command = [sys.executable, "-m", "deadweight", "sweep", str(project / "recipe.toml")]
                command += ["--over", "prune.ratio=0.3,0.9", "--out", str(project / "run"), "--ray", address]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            said = " ".join(done.stderr.split())
            assert (done.returncode, "Traceback" in said) == (2, False)
            assert f"The Ray cluster of {address} cannot be used: Version mismatch: " in said
            assert f"started with: Ray: {version} Python: " in said
            assert f"started with: Ray: {here} Python: {platform.python_version()}" in said
            assert "Install the Ray and the Python of one side" in said
            assert not (project / "run" / "stages").exists()
        finally:
            shutil.rmtree(place, ignore_errors=True)


@pytest.mark.slow
def test_a_node_whose_memory_runs_out_is_named(project: Path) -> None:
    """Ray's monitor kills a worker as soon as a thousandth of the memory is used."""
    pytest.importorskip("ray")
    little = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "100"}
    with cluster({"num_cpus": 1}, environment={**little, "RAY_task_oom_retries": "0"}) as nodes:
        with pytest.raises(ModelError, match="Memory ran out on a node in the trial") as caught:
            swept(project, "run", stored(project / "store"), executor="ray", address=nodes.address, cpus=1)
        assert "Give each trial more of a node" in caught.value.cure


def test_a_worker_that_does_not_see_the_runs_directory_is_named_and_runs_nothing(tmp_path: Path) -> None:
    ran: list[str] = []

    @dataclasses.dataclass
    class Noted:
        name: str = "ratio 0.3"

        def moved(self, folder: Path, directory: Path) -> Noted:
            return self

        def __call__(self) -> Ended:
            ran.append(self.name)
            return Ended()

    missing = _run(Noted(), tmp_path, "of the driver")
    (tmp_path / ".driver").write_text("another")
    other = _run(Noted(), tmp_path, "of the driver")
    for ended in (missing, other):
        assert f"The worker {socket.gethostname()} does not see {tmp_path}" in str(ended.error)
        assert "[store]" in str(ended.error)
    (tmp_path / ".driver").write_text("of the driver")
    assert _run(Noted(), tmp_path, "of the driver").error is None
    assert ran == ["ratio 0.3"]
