"""Training by several processes on this machine, each with its share of every batch (DDP).

Every process (`worker`) makes workload and network for itself, from the same file of the user's: nothing is
pickled and nothing forked. They speak through files: the parent writes the job, the first process writes the
checkpoint and how far it is. When one of them dies the others are ended, and the parent says which and when;
the same command then goes on at the last epoch.
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
    """Trains `model` in `schedule.processes` processes; what came of it is in the checkpoint.

    Raises:
        RecipeError: the workload cannot be made anew in another process.
        ModelError: a process was killed, or failed without a word.
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
                _give_up(place, failed, workers, job.checkpoint)
            with contextlib.suppress(OSError, ValueError):
                done, total = (place / "progress").read_text().split()
                job.progress(int(done), int(total), job.what)
            time.sleep(POLL_S)
        failed = next((rank for rank, worker in enumerate(workers) if worker.returncode), None)
        if failed is not None:
            _give_up(place, failed, workers, job.checkpoint)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def spec_of(workload: Workload) -> str:
    """How another process can make this workload: "package.module:Class", or "/path/file.py:Class".

    Raises:
        RecipeError: it is no object of a class at the top of a file.
    """
    kind = type(workload)
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    if file is None or getattr(module, kind.__qualname__, None) is not kind:
        raise RecipeError(
            f"Several processes cannot make the workload {kind.__qualname__} each for themselves.",
            "Make it an object of a class at the top of a file, or train with processes = 1.",
        )
    # What a recipe's file was loaded as is known here alone, under a name that no other process finds.
    top = kind.__module__.partition(".")[0]
    if top != "__main__" and any(finder.find_spec(top, None) for finder in sys.meta_path):
        return f"{kind.__module__}:{kind.__qualname__}"
    return f"{Path(file).resolve()}:{kind.__qualname__}"


def _started(job: Path, rank: int, count: int) -> subprocess.Popen[bytes]:
    value = read_json(job / "job.json")
    environment = {
        **os.environ,
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(value["port"]),
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
    }
    command = [sys.executable, "-m", "deadweight.pipeline.training.worker", str(job.resolve()), str(rank)]
    with (job / f"process-{rank}.log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def _give_up(job: Path, rank: int, workers: list[subprocess.Popen[bytes]], checkpoint: Path) -> None:
    """Says what ended a process, in the words of the one that had some."""
    time.sleep(2 * POLL_S)  # one that ends pulls the others down: look who was first
    lost = [at for at, worker in enumerate(workers) if (worker.poll() or 0) == -signal.SIGKILL]
    for at in () if lost else range(len(workers)):
        log = job / f"process-{at}.json"
        if log.exists():
            told = read_json(log)
            raise getattr(errors, told["kind"])(told["what"], told["cure"])
    done = len(on_disk.reached(checkpoint).scores) if checkpoint.exists() else 0
    rank = lost[0] if lost else rank
    code = workers[rank].returncode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    last = (job / f"process-{rank}.log").read_text(errors="replace").strip().splitlines()
    said = f" Its last words: {last[-1][:300]}" if last and code > 0 else ""
    raise ModelError(
        f"Process {rank + 1} of {len(workers)} that trained the network {how} in epoch {done + 1}.{said}",
        f"Run the same command again: it goes on after epoch {done}. "
        "If memory ran out, take fewer processes or smaller batches.",
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
