"""Training by several processes on this machine, each with its share of every batch (DDP).

Every process makes workload and network for itself, from the same file of the user's: nothing is pickled and
nothing forked. They speak through files: the parent writes the job, the first process writes the checkpoint
and how far it is. When one of them dies the others are ended, and the parent says which and when; the same
command then goes on at the last epoch.

    python -m deadweight.pipeline.processes JOB RANK      one of them
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
import threading
import time
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from ..targets import errors
from ..targets.artifact import read_json, write_json
from ..targets.errors import DeadweightError, ModelError, RecipeError
from . import checkpoint as on_disk
from .masks import Masks, load_masks, save_masks
from .pruning.plan import plan_of
from .pruning.saved import save_pruned
from .teaching import Teaching
from .training import STEPS, Schedule, learn
from .work import Progress, load_network, write_tensors
from .workload import Workload, example_batch, load_workload, users_code

POLL_S = 0.05


def train_in_processes(
    model: nn.Module,
    workload: Workload,
    schedule: Schedule,
    *,
    seed: int,
    checkpoint: Path,
    progress: Progress,
    what: str,
    teaching: Teaching | None,
    masks: Masks | None = None,
) -> None:
    """Trains `model` in `schedule.processes` processes; what came of it is in the checkpoint.

    Raises:
        RecipeError: the workload cannot be made anew in another process.
        ModelError: a process was killed, or failed without a word.
    """
    job = checkpoint.with_suffix(".job")
    job.mkdir(parents=True, exist_ok=True)
    plan = plan_of(model)
    if plan is None:
        write_tensors(job / "model.safetensors", model.state_dict())
    else:
        save_pruned(job, model, plan, example_batch(workload))
    if masks:
        save_masks(job / "masks.safetensors", masks, "")
    value = {
        "workload": spec_of(workload),
        "fingerprint": str(workload.fingerprint()),
        "path": sys.path,
        "schedule": dataclasses.asdict(schedule),
        "seed": seed,
        "checkpoint": str(checkpoint.resolve()),
        "masked": bool(masks),
        "teaching": None if teaching is None else dataclasses.asdict(teaching),
        "threads": max(1, torch.get_num_threads() // schedule.processes),
        "parent": os.getpid(),
        "port": _free_port(),
    }
    write_json(job / "job.json", json.loads(json.dumps(value, default=str)))
    workers = [_started(job, rank, schedule.processes) for rank in range(schedule.processes)]
    try:
        while any(worker.poll() is None for worker in workers):
            failed = next((rank for rank, worker in enumerate(workers) if worker.poll()), None)
            if failed is not None:
                _give_up(job, failed, workers, checkpoint)
            with contextlib.suppress(OSError, ValueError):
                progress(int((job / "progress").read_text()), STEPS, what)
            time.sleep(POLL_S)
        failed = next((rank for rank, worker in enumerate(workers) if worker.returncode), None)
        if failed is not None:
            _give_up(job, failed, workers, checkpoint)
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


def work_off(job: Path, rank: int) -> None:
    """One of the processes: trains its share, as the job says."""
    value = read_json(job / "job.json")
    threading.Thread(target=_end_with, args=(value["parent"],), daemon=True).start()
    sys.path[:] = value["path"]
    torch.set_num_threads(value["threads"])
    schedule = Schedule(**value["schedule"])
    workload = load_workload(value["workload"], Path("/"))
    with users_code("fingerprint() was called"):
        same = str(workload.fingerprint()) == value["fingerprint"]
    if not same:
        raise RecipeError(
            f"{value['workload']} gave other data in another process than in this one.",
            "Let the workload need no arguments, or train with processes = 1.",
        )
    count = schedule.processes
    fabric = Fabric(
        accelerator="cuda" if torch.cuda.device_count() >= count else "cpu",
        devices=count,
        strategy="ddp",
        precision=schedule.precision,
    )
    fabric.launch()
    told = [0.0]

    def tell(done: int, total: int, what: str) -> None:
        if rank == 0 and time.monotonic() - told[0] > POLL_S:
            (job / "progress").write_text(str(done))
            told[0] = time.monotonic()

    teaching = value["teaching"]
    if teaching is not None:
        teaching = Teaching(**{**teaching, "teachers": tuple(map(Path, teaching["teachers"]))})
    learn(
        load_network(workload, job),
        workload,
        schedule,
        fabric,
        seed=value["seed"],
        checkpoint=Path(value["checkpoint"]),
        progress=tell,
        what="",
        teaching=teaching,
        masks=load_masks(job / "masks.safetensors")[0] if value["masked"] else None,
    )


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
    command = [sys.executable, "-m", "deadweight.pipeline.processes", str(job.resolve()), str(rank)]
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


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone: nobody would."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _main(arguments: list[str]) -> Any:
    job, rank = Path(arguments[0]), int(arguments[1])
    told = job / f"process-{rank}.json"
    told.unlink(missing_ok=True)
    try:
        work_off(job, rank)
    except DeadweightError as error:
        write_json(told, {"kind": type(error).__name__, "what": error.what, "cure": error.cure})
        os._exit(2)  # without waiting for the others, who wait for this one


if __name__ == "__main__":
    _main(sys.argv[1:])
