"""One process of a distributed training: makes workload and network and trains on its share of each batch.

python -m deadweight.pipeline.training.worker JOB
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import torch

from ...targets.artifact import read_json, write_json
from ...targets.errors import DeadweightError, RecipeError, users_code
from ..workloads.named import load_workload
from .checkpoint import tensors_in
from .distributed import POLL_S
from .loop import Schedule, TrainingJob, learn
from .networks import NetworkFiles, load_network
from .teachers import Teaching


def train_share(place: Path) -> None:
    from lightning_fabric import Fabric  # the sweep imports this file without training

    value = read_json(place / "job.json")
    threading.Thread(target=exit_with_parent, args=(value["parent"],), daemon=True).start()
    sys.path[:] = value["path"]
    torch.set_num_threads(value["threads"])
    schedule = Schedule.of(value["schedule"])
    workload = load_workload(value["workload"], Path("/"))
    with users_code("fingerprint() was called"):
        same = str(workload.fingerprint()) == value["fingerprint"]
    if not same:
        cure = "Let the workload need no arguments, or train with processes = 1."
        raise RecipeError(f"{value['workload']} gave other data in another process than in this one.", cure)
    count = schedule.processes
    fabric = Fabric(
        accelerator="cuda" if torch.cuda.device_count() >= count else "cpu",
        devices=count,
        strategy="ddp",
        precision=schedule.precision,
    )
    fabric.launch()
    last = [0.0]

    def tell(done: int, total: int, what: str) -> None:
        if fabric.is_global_zero and time.monotonic() - last[0] > POLL_S:
            (place / "progress").write_text(f"{done} {total}")
            last[0] = time.monotonic()

    teaching = value["teaching"]
    if teaching is not None:
        teaching = Teaching(**{**teaching, "teachers": tuple(map(Path, teaching["teachers"]))})
    job = TrainingJob(
        workload,
        NetworkFiles(),
        schedule,
        seed=value["seed"],
        checkpoint=Path(value["checkpoint"]),
        progress=tell,
        teaching=teaching,
        masks=tensors_in(place / "masks.safetensors") if value["masked"] else None,
        rewind_step=value["rewind_step"],
    )
    learn(load_network(workload, place), job, fabric)


def exit_with_parent(parent: int) -> None:
    """Exits when the parent dies; otherwise the worker would run forever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _main(job: Path) -> None:
    try:
        train_share(job)
    except DeadweightError as error:
        said = {"kind": type(error).__name__, "message": error.what, "cure": error.cure}
        write_json(Path(os.environ["TORCHELASTIC_ERROR_FILE"]), said)
        os._exit(2)  # without waiting for the others, who wait for this one


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
