"""Distributed training (DDP) in several processes, each with its share of every batch.

torch's elastic launch, that of `torchrun`, starts `processes` of them here (`worker`). Where `torchrun` or
`srun` start the whole command several times, on one machine or many, the first runs it and the others take
their share of its trainings. Each makes workload and network from the user's file: nothing is pickled or
forked. The first writes checkpoint and progress. When one dies, the others end; the same command resumes at
the last epoch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import nn
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ...targets import errors
from ...targets.artifact import write_json
from ...targets.errors import DeadweightError, ModelError, RecipeError
from ..workload import Workload
from . import checkpoint as on_disk

if TYPE_CHECKING:
    from .loop import TrainingJob

POLL_S = 0.05
_WAIT = datetime.timedelta(days=30)  # of the others, for the next training
_LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "gloo", "nccl", "socket")


def train_in_processes(model: nn.Module, job: TrainingJob) -> None:
    """Trains `model` in `schedule.processes` processes here; the result is in the checkpoint.

    Raises:
        RecipeError: the workload cannot be made in another process.
        ModelError: a process was killed, or failed without a message.
    """
    _launched(_written(model, job), job)


@contextlib.contextmanager
def shared(model: nn.Module, job: TrainingJob) -> Iterator[Fabric]:
    """Fabric for a training by all processes of torchrun or srun; the others get what they need to join it.

    Raises:
        RecipeError: the workload cannot be made in another process.
        ModelError: another process is gone.
    """
    place = _written(model, job)
    for at, teacher in enumerate(job.teaching.teachers if job.teaching else ()):
        shutil.copytree(teacher, place / f"teacher-{at}")
    if job.checkpoint.exists():
        shutil.copy(job.checkpoint, place / "checkpoint.safetensors")
    with lost_peers(job.checkpoint):
        announced(
            {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
        )
        yield fabric_of(job.schedule.precision)


def _written(model: nn.Module, job: TrainingJob) -> Path:
    """The folder with a training for other processes."""
    place = job.checkpoint.with_suffix(".job").resolve()
    shutil.rmtree(place, ignore_errors=True)
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
        "threads": max(1, torch.get_num_threads() // job.schedule.processes),
    }
    write_json(place / "job.json", json.loads(json.dumps(value, default=str)))
    return place


def fabric_of(precision: Any) -> Fabric:
    """Fabric, launched on all processes that torchrun or srun started."""
    size = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)
    if "SLURM_NTASKS" in os.environ:  # `srun --ntasks` alone leaves out how many a node has
        nodes = int(os.environ.get("SLURM_NNODES") or 1)
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(max(1, size // nodes)))
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or 1)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # who joined is no news
    fabric = Fabric(
        accelerator="cuda" if torch.cuda.device_count() >= local else "cpu",
        devices=local,
        num_nodes=size // local,
        strategy="ddp",
        precision=precision,
    )
    fabric.launch()
    return fabric


_control: list[Any] = []  # the group by which the first process tells the others, once made


def announced(files: Mapping[str, bytes] | None) -> Mapping[str, bytes] | None:
    """What the first process sends all: the files of a training, or None at the end."""
    if not _control:
        _control.append(dist.new_group(backend="gloo", timeout=_WAIT))
    box = [files]
    dist.broadcast_object_list(box, src=0, group=_control[0])
    return box[0]


@contextlib.contextmanager
def lost_peers(checkpoint: Path | None) -> Iterator[None]:
    """Says what it means when another process is gone; `checkpoint` is the first process's."""
    cause: BaseException
    try:
        yield
    except SystemExit as error:  # the launcher ends all after one
        why, cause = "was stopped from outside, as when another process or node has ended", error
    except (RuntimeError, DeadweightError) as error:
        said = str(error).lower()
        if not any(word in said for word in _LOST):
            raise
        why, cause = f"lost another process or node: {str(error).strip().splitlines()[0][:200]}", error
    else:
        return
    done = len(on_disk.reached(checkpoint).scores) if checkpoint and checkpoint.exists() else 0
    resumes = f"it resumes after epoch {done}" if checkpoint else "it resumes after the last finished epoch"
    raise ModelError(
        f"Process {dist.get_rank() + 1} of {dist.get_world_size()} {why}.",
        f"Start the same command again on all nodes: {resumes}. If memory ran out, use smaller batches.",
    ) from cause


def _launched(place: Path, job: TrainingJob) -> None:
    """Starts the processes here, by torch's elastic launch, and watches them."""
    count = job.schedule.processes
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id="training",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=POLL_S,
        signals_to_handle="SIGQUIT",  # the others end the command as ever, and the launch with it
        logs_specs=DefaultLogsSpecs(str(place), Std.ALL),
    )
    for name in [*logging.root.manager.loggerDict]:
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # the error below says it
    stopped = threading.Event()
    shower = threading.Thread(target=_show, args=(place / "progress", job, stopped))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    shower.start()
    try:
        elastic_launch(config, sys.executable)("-m", f"{__package__}.worker", str(place), str(os.getpid()))
    except ChildFailedError as error:
        _raise_failure(error.failures, place, count, job.checkpoint)
    finally:
        stopped.set()
        shower.join()


def _show(path: Path, job: TrainingJob, stopped: threading.Event) -> None:
    """Shows the progress that the first process writes."""
    while not stopped.wait(POLL_S):
        with contextlib.suppress(OSError, ValueError):
            done, total = path.read_text().split()
            job.progress(int(done), int(total), job.what)


def spec_of(workload: Workload) -> str:
    """The workload's spec for another process: "package.module:Class", or "/path/file.py:Class".

    Raises:
        RecipeError: its class is not at the top level of a file.
    """
    if spec := getattr(workload, "spec", ""):
        return str(spec)
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


def _raise_failure(failures: Mapping[int, ProcessFailure], place: Path, count: int, checkpoint: Path) -> None:
    """Raises the first process's own error, or describes its exit code."""
    # A process that ends makes the others fail: one that was killed, or gave a reason, goes before these.
    failure = min(
        failures.values(),
        key=lambda one: (one.exitcode != -signal.SIGKILL, "kind" not in one.error_file_data),
    )
    if "kind" in (said := failure.error_file_data):
        raise getattr(errors, said["kind"], ModelError)(said["message"], said["cure"])
    done = len(on_disk.reached(checkpoint).scores) if checkpoint.exists() else 0
    rank, code = failure.local_rank, failure.exitcode
    how = f"was killed by {failure.signal_name()}" if code < 0 else f"ended with exit code {code}"
    logs = sorted(place.glob(f"**/{rank}/stderr.log"), key=lambda path: path.stat().st_mtime)
    last = logs[-1].read_text(errors="replace").strip().splitlines() if logs else []
    output = f" Its last output: {last[-1][:300]}" if last and code > 0 else ""
    raise ModelError(
        f"Process {rank + 1} of {count} that trained the network {how} in epoch {done + 1}.{output}",
        f"Run the same command again: it resumes after epoch {done}. "
        "If memory ran out, use fewer processes or smaller batches.",
    )
