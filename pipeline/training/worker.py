"""A process of a distributed training: makes workload and network and trains on its share of each batch.

python -m deadweight.pipeline.training.worker JOB PARENT: one process of a launch. One that torchrun or srun
started comes here by `joined`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from ...targets.artifact import read_json, write_json
from ...targets.errors import DeadweightError, RecipeError, users_code
from ...targets.progress import Progress, silent
from ..workloads.named import load_workload
from . import checkpoint as on_disk
from .distributed import POLL_S, announced, fabric_of, lost_peers
from .loop import Schedule, TrainingJob, learn
from .networks import NetworkFiles, load_network
from .teachers import Teaching


def train_share(place: Path, progress: Progress = silent) -> None:
    """Trains this process's share of the job in a folder, with the other processes of the launch."""
    value = read_json(place / "job.json")
    torch.set_num_threads(value["threads"])
    workload = load_workload(value["workload"], Path("/"))
    with users_code("fingerprint() was called"):
        same = str(workload.fingerprint()) == value["fingerprint"]
    if not same:
        cure = "Let the workload need no arguments, or train with processes = 1."
        raise RecipeError(f"{value['workload']} gave other data in another process than in this one.", cure)
    teaching = value["teaching"]
    if teaching is not None:
        teaching = Teaching(**{**teaching, "teachers": tuple(map(Path, teaching["teachers"]))})
    job = TrainingJob(
        workload,
        NetworkFiles(),
        Schedule.of(value["schedule"]),
        seed=value["seed"],
        checkpoint=Path(value["checkpoint"]),
        progress=progress,
        teaching=teaching,
        masks=on_disk.tensors_in(place / "masks.safetensors") if value["masked"] else None,
        rewind_step=value["rewind_step"],
    )
    learn(load_network(workload, place), job, fabric_of(job.schedule.precision))


@contextlib.contextmanager
def joined() -> Iterator[bool]:
    """Whether this process is to run the command: the only one, or the first of those of torchrun or srun.

    The others take their share of every training until the first leaves the block, and then enter it.

    Raises:
        ModelError: the first process, or the connection to it, is gone.
    """
    sizes = [int(os.environ.get(name) or 1) for name in ("WORLD_SIZE", "SLURM_NTASKS")]
    if max(sizes) < 2 or dist.is_initialized():
        yield True
        return
    fabric_of("32-true")
    leads = not dist.get_rank()
    try:
        if not leads:
            _follow()
        yield leads
    finally:
        with contextlib.suppress(RuntimeError):  # another one is gone already
            if leads:
                announced(None)
            dist.destroy_process_group()


def _follow() -> None:
    """Takes a share of every training until the first process ends."""
    while True:
        with lost_peers(None):
            files = announced(None)
        if files is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            for name, content in files.items():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes(content)
            value = read_json(place / "job.json")
            value["checkpoint"] = str(place / "checkpoint.safetensors")
            if value["teaching"] is not None:
                count = len(value["teaching"]["teachers"])
                value["teaching"]["teachers"] = [str(place / f"teacher-{at}") for at in range(count)]
            write_json(place / "job.json", value)
            sys.path[:] = [*sys.path, *(one for one in value["path"] if one not in sys.path)]
            with lost_peers(None):
                train_share(place)


def _worker(place: Path, parent: int) -> None:
    """One process of a launch; its error is the launch's."""
    threading.Thread(target=_exit_without, args=(parent,), daemon=True).start()
    sys.path[:] = read_json(place / "job.json")["path"]
    last = [0.0]

    def show(done: int, total: int, what: str) -> None:
        if os.environ["RANK"] == "0" and time.monotonic() - last[0] > POLL_S:
            (place / "progress").write_text(f"{done} {total}")
            last[0] = time.monotonic()

    try:
        train_share(place, show)
    except DeadweightError as error:
        said = {"kind": type(error).__name__, "message": error.what, "cure": error.cure}
        write_json(Path(os.environ["TORCHELASTIC_ERROR_FILE"]), said)
        os._exit(2)  # without waiting for the others, who wait for this one
    dist.barrier()
    os._exit(0)  # at once: taking connections down aborts where another process was faster


def _exit_without(parent: int) -> None:
    """Exits when the process that launched this one dies; otherwise it would run forever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    _worker(Path(sys.argv[1]), int(sys.argv[2]))
