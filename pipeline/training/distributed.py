"""Distributed training (DDP) by several processes on this machine, each with its share of every batch.

torch's elastic launcher starts and watches the processes (`worker`). Each makes workload and network from the
user's file: nothing is pickled or forked. The parent writes the job, the first process writes checkpoint and
progress. When one dies, the launcher ends the others; the same command then resumes at the last epoch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, RunProcsResult, Std, start_processes

from ...targets import errors
from ...targets.artifact import write_json
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
    count, place = job.schedule.processes, job.checkpoint.with_suffix(".job").resolve()
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
    }
    write_json(place / "job.json", json.loads(json.dumps(value, default=str)))
    from lightning_fabric.plugins.environments.lightning import find_free_network_port  # see `fit`

    shared = {"GLOO_SOCKET_IFNAME": "lo", **os.environ, "TORCHELASTIC_RUN_ID": "training"}  # as torchrun does
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}
    shared |= {"WORLD_SIZE": str(count), "GROUP_RANK": "0"}
    environments = {rank: {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)}
    commands = dict.fromkeys(range(count), ("-m", "deadweight.pipeline.training.worker", place))
    logs = DefaultLogsSpecs(str(place), Std.ALL)
    logging.getLogger(start_processes.__module__ + ".api").setLevel("CRITICAL")  # the error below says it
    with ThreadPoolExecutor(1) as starter:  # in the main thread it would replace the handler of Ctrl-C
        processes = starter.submit(
            start_processes, "train", sys.executable, commands, environments, logs
        ).result()
    try:
        while (result := processes.wait(POLL_S, POLL_S)) is None:
            with contextlib.suppress(OSError, ValueError):
                done, total = (place / "progress").read_text().split()
                job.progress(int(done), int(total), job.what)
    finally:
        processes.close(signal.SIGKILL)
    if result.is_failed():
        _raise_failure(result, count, job.checkpoint)


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


def _raise_failure(result: RunProcsResult, count: int, checkpoint: Path) -> None:
    """Raises the first process's own error, or describes its exit code."""
    # A process that ends makes the others fail: one that was killed, or gave a reason, goes before these.
    failure = min(
        result.failures.values(),
        key=lambda one: (one.exitcode != -signal.SIGKILL, "kind" not in one.error_file_data),
    )
    if "kind" in (said := failure.error_file_data):
        raise getattr(errors, said["kind"])(said["message"], said["cure"])
    done = len(on_disk.reached(checkpoint).scores) if checkpoint.exists() else 0
    rank, code = failure.local_rank, failure.exitcode
    how = f"was killed by {failure.signal_name()}" if code < 0 else f"ended with exit code {code}"
    last = Path(result.stderrs[rank]).read_text(errors="replace").strip().splitlines()
    output = f" Its last output: {last[-1][:300]}" if last and code > 0 else ""
    raise ModelError(
        f"Process {rank + 1} of {count} that trained the network {how} in epoch {done + 1}.{output}",
        f"Run the same command again: it resumes after epoch {done}. "
        "If memory ran out, use fewer processes or smaller batches.",
    )
