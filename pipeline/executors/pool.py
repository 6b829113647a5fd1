"""The executor "pool": processes on this machine. With one, trials run in the sweep's own process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue

import torch

from ...targets.errors import ModelError, RecipeError
from ...targets.progress import Counted
from .executor import Ended, Place, Task


@contextlib.contextmanager
def executor(place: Place) -> Iterator[Pool]:
    """Processes here.

    Raises:
        RecipeError: trials ask for more GPUs than there are, or for a board.
    """
    if place.board:
        raise RecipeError(
            f'Processes on this machine time on no board "{place.board}".',
            'Set executor = "ray", on whose cluster a node has the board, or remove board from [sweep].',
        )
    each, count = int(-(-place.gpus // 1)), torch.cuda.device_count()
    if each * place.at_once > count:
        raise RecipeError(
            f"{place.at_once} trials at a time with {place.gpus:g} GPUs each need {each * place.at_once}; "
            f"this machine has {count}.",
            "Set fewer processes or gpus in [sweep], or use a cluster: --ray.",
        )
    if place.at_once == 1:
        yield Pool(1, None)
        return
    spawned = multiprocessing.get_context("spawn")
    devices = spawned.SimpleQueue()
    for at in range(place.at_once):
        devices.put(",".join(map(str, range(at * each, at * each + each))))
    with ProcessPoolExecutor(place.at_once, spawned, _trying, (os.getpid(), devices)) as pool:
        try:
            yield Pool(place.at_once, pool)
        except BrokenProcessPool as error:
            raise ModelError(
                "A process that tried settings of the sweep was killed.",
                "Run the same command again: finished stages are kept. "
                "If memory ran out, use fewer processes.",
            ) from error
        except BaseException:  # a signal too: nobody waits for the others
            for process in multiprocessing.active_children():
                process.terminate()
            pool.shutdown(cancel_futures=True)
            raise


@dataclass(frozen=True)
class Pool:
    """Processes, or None for the sweep's own; `boards`: this machine times for itself."""

    at_once: int
    pool: ProcessPoolExecutor | None
    boards: int = 1

    def run(self, tasks: Sequence[Task], ended: Counted, *, alone: bool = False) -> list[Ended]:
        """As `Executor.run`; nothing where the sweep itself is to run each, as it does every timing."""
        if alone or self.pool is None:
            return []
        futures = [self.pool.submit(task) for task in tasks]
        for done, future in enumerate(as_completed(futures), start=1):
            future.result()
            ended(done, len(tasks))
        return [future.result() for future in futures]


def _trying(parent: int, devices: SimpleQueue[str]) -> None:
    """Ends this process with its parent, and by SIGTERM as by an exception: half-written files go too."""
    if mine := devices.get():
        os.environ["CUDA_VISIBLE_DEVICES"] = mine
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    threading.Thread(target=exit_with_parent, args=(parent,), daemon=True).start()


def exit_with_parent(parent: int) -> None:
    """Exits when the parent dies; otherwise a process would wait for work forever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
