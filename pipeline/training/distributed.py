"""Distributed training (DDP) by several processes on this machine, each with its share of every batch.

Every process (`worker`) makes workload and network from the user's file: nothing is pickled or forked. They
communicate through files: the parent writes the job, the first process writes checkpoint and progress. When
one dies, the parent ends the others and reports which one and when; the same command then resumes at the last
epoch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ...targets import errors
from ...targets.artifact import read_json, write_json
from ...targets.errors import ModelError, RecipeError
from ..workload import Workload
from . import checkpoint as on_disk

if TYPE_CHECKING:
    from .loop import TrainingJob

POLL_S = 0.05


def train_in_processes(model: nn.Module, job: TrainingJob) -> None:
    """Trains `model` in `schedule.processes` processes; the result is in the checkpoint.

    Raises:
        RecipeError: the workload cannot be made in another process.
        ModelError: a process was killed, or failed without a message.
    """
    count, place = job.schedule.processes, job.checkpoint.with_suffix(".job")
    job.networks.save(place, model, job.workload, None)
    if job.masks:
        on_disk.write_tensors(place / "masks.safetensors", job.masks)
    value = {
        "workload": spec_of(job.workload),
        "fingerprint": str(job.workload.fingerprint()),
        "path": sys.path,
        "schedule": dataclasses.asdict(job.schedule),
        "seed": job.seed,
        "checkpoint": str(job.checkpoint.resolve()),
        "masked": bool(job.masks),
        "teaching": None if job.teaching is None else dataclasses.asdict(job.teaching),
        "rewind_step": job.rewind_step,
        "threads": max(1, torch.get_num_threads() // count),
        "parent": os.getpid(),
        "port": _free_port(),
    }
    write_json(place / "job.json", json.loads(json.dumps(value, default=str)))
    workers = [_started(place, rank, count) for rank in range(count)]
    try:
        while any(worker.poll() is None for worker in workers):
            failed = next((rank for rank, worker in enumerate(workers) if worker.poll()), None)
            if failed is not None:
                _raise_failure(place, failed, workers, job.checkpoint)
            with contextlib.suppress(OSError, ValueError):
                done, total = (place / "progress").read_text().split()
                job.progress(int(done), int(total), job.what)
            time.sleep(POLL_S)
        failed = next((rank for rank, worker in enumerate(workers) if worker.returncode), None)
        if failed is not None:
            _raise_failure(place, failed, workers, job.checkpoint)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def spec_of(workload: Workload) -> str:
    """The workload's spec for another process: "package.module:Class", or "/path/file.py:Class".

    Raises:
        RecipeError: its class is not at the top level of a file.
    """
    kind = type(workload)
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    if file is None or getattr(module, kind.__qualname__, None) is not kind:
        raise RecipeError(
            f"Several processes cannot each make the workload {kind.__qualname__}: its class is not at the "
            "top level of a file.",
            "Move the class to the top level of a file, or train with processes = 1.",
        )
    # Only this process knows the module name under which the recipe's file was loaded.
    top = kind.__module__.partition(".")[0]
    if top != "__main__" and any(finder.find_spec(top, None) for finder in sys.meta_path):
        return f"{kind.__module__}:{kind.__qualname__}"
    return f"{Path(file).resolve()}:{kind.__qualname__}"


def _started(job: Path, rank: int, count: int) -> subprocess.Popen[bytes]:
    port = str(read_json(job / "job.json")["port"])
    environment = {"GLOO_SOCKET_IFNAME": "lo", **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(count)}
    command = [sys.executable, "-m", "deadweight.pipeline.training.worker", str(job.resolve()), str(rank)]
    with (job / f"process-{rank}.log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def _raise_failure(job: Path, rank: int, workers: list[subprocess.Popen[bytes]], checkpoint: Path) -> None:
    """Raises the first worker's own error, or describes its exit code."""
    time.sleep(2 * POLL_S)  # a process that ends makes the others fail: find the first
    lost = [at for at, worker in enumerate(workers) if (worker.poll() or 0) == -signal.SIGKILL]
    for at in () if lost else range(len(workers)):
        log = job / f"process-{at}.json"
        if log.exists():
            failure = read_json(log)
            raise getattr(errors, failure["kind"])(failure["what"], failure["cure"])
    done = len(on_disk.reached(checkpoint).scores) if checkpoint.exists() else 0
    rank = lost[0] if lost else rank
    code = workers[rank].returncode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    last = (job / f"process-{rank}.log").read_text(errors="replace").strip().splitlines()
    output = f" Its last output: {last[-1][:300]}" if last and code > 0 else ""
    raise ModelError(
        f"Process {rank + 1} of {len(workers)} that trained the network {how} in epoch {done + 1}.{output}",
        f"Run the same command again: it resumes after epoch {done}. "
        "If memory ran out, use fewer processes or smaller batches.",
    )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
