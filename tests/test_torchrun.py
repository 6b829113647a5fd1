"""`deadweight run` started by torchrun on two nodes, and by srun: two processes on the loopback interface."""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from support.runs import project_of
from support.runs import recipe as recipe_of

from deadweight.pipeline.training import checkpoint as on_disk

pytestmark = pytest.mark.slow
RUN = ("-m", "deadweight", "run")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def project(folder: Path, epochs: int) -> Path:
    stages = (
        ("train", {"epochs": epochs}),
        ("prune", {"ratio": 0.3, "criterion": "weight_l2"}),
        ("finetune", {"epochs": 1}),
    )
    return project_of(folder, recipe_of(*stages, workload="mine.py:Mine"))


def started(
    folder: Path, commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]]
) -> list[subprocess.Popen[str]]:
    """The processes, each with what it says in log-N."""
    found = []
    for at, (command, more) in enumerate(zip(commands, environments, strict=True)):
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", **more}
        with (folder / f"log-{at}").open("w") as log:
            command = [sys.executable, *command]
            found.append(
                subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, text=True)
            )
    return found


def torchrun(folder: Path, *arguments: str) -> list[subprocess.Popen[str]]:
    """Two nodes of one process each."""
    nodes = (
        "-m",
        "torch.distributed.run",
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--master-addr",
        "127.0.0.1",
    )
    port = str(free_port())
    run = (*RUN, "recipe.toml", "--out", "run", *arguments)
    commands = [(*nodes, "--master-port", port, "--node-rank", str(at), *run) for at in range(2)]
    return started(folder, commands, [{}, {}])


def score(folder: Path) -> float:
    rows = json.loads((folder / "run" / "report.json").read_text())["rows"]
    return float(rows[0]["score"])


def test_two_nodes_end_within_the_spread_of_the_seeds_of_one_process(tmp_path: Path) -> None:
    scores: dict[int, list[float]] = {1: [], 2: []}
    for seed in range(3):
        for nodes, found in scores.items():
            folder = tmp_path / f"{nodes}-{seed}"
            folder.mkdir()
            project(folder, 6)
            chosen = ("--set", f"seed={seed}")
            if nodes == 2:
                ran = torchrun(folder, *chosen)
            else:
                ran = started(folder, [(*RUN, "recipe.toml", "--out", "run", *chosen)], [{}])
            for process in ran:
                process.wait(timeout=600)
            log = (folder / "log-0").read_text()
            assert "The report: run/report.html" in log, log
            assert "Traceback" not in log.partition("The report: run/report.html")[0]
            found.append(score(folder))
    print(scores)
    spread = max(statistics.stdev(scores[1]), 0.01)
    assert min(scores[1] + scores[2]) > 0.7
    assert abs(statistics.fmean(scores[1]) - statistics.fmean(scores[2])) < 3 * spread


def worker_of(launcher: int) -> int:
    """The process of `deadweight run` that a launcher started."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            command = (place / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
        if parent == launcher and b"deadweight" in command:
            return int(place.name)
    raise AssertionError("the launcher has no process")


def test_a_killed_node_ends_with_a_message_and_the_same_command_goes_on_at_the_last_epoch(
    tmp_path: Path,
) -> None:
    project(tmp_path, 200)
    nodes = torchrun(tmp_path)
    found, until = list[Path](), time.monotonic() + 300
    while time.monotonic() < until:
        found = list((tmp_path / "run" / "stages").glob("train-*.part/checkpoint.safetensors"))
        if found and len(on_disk.reached(found[0]).scores) >= 2:
            break
        time.sleep(0.05)
    os.kill(worker_of(nodes[1].pid), signal.SIGKILL)
    for process in nodes:
        assert process.wait(timeout=120) != 0
    said = " ".join((tmp_path / "log-0").read_text().split())
    done = len(on_disk.reached(found[0]).scores)
    assert 2 <= done < 200
    assert "Process 1 of 2" in said, said
    assert f"Start the same command again on all nodes: it resumes after epoch {done}" in said, said
    for process in torchrun(tmp_path):
        process.wait(timeout=600)
    assert f"({done} from the interrupted run)" in " ".join((tmp_path / "log-0").read_text().split())


def test_srun_starts_the_same_processes(tmp_path: Path) -> None:
    """By the variables that `srun --nodes 2 --ntasks 2` sets; it leaves out how many a node has."""
    project(tmp_path, 2)
    common = {"SLURM_NTASKS": "2", "SLURM_NNODES": "2", "SLURM_LOCALID": "0"}
    common |= {"SLURM_NODELIST": "localhost", "SLURM_JOB_ID": "4321", "SLURM_STEP_ID": "0"}
    common |= {"SLURM_JOB_NAME": "run", "MASTER_PORT": str(free_port())}
    own = [{**common, "SLURM_PROCID": str(at), "SLURM_NODEID": str(at)} for at in range(2)]
    run = (*RUN, "recipe.toml", "--out", "run")
    first, second = started(tmp_path, [run, run], own)
    assert first.wait(timeout=300) == 3, (tmp_path / "log-0").read_text()  # nothing was measured
    assert second.wait(timeout=60) == 0, (tmp_path / "log-1").read_text()
    assert "The report: run/report.html" in (tmp_path / "log-0").read_text()
    assert (tmp_path / "log-1").read_text().strip() == ""
