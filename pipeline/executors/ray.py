"""The executor "ray": every trial a task of a Ray cluster, every board a resource of count one.

The recipe's folder travels to the workers as the job's working directory; data are read there by the same
path or URL, and their fingerprint is compared. Results go through the store, or a directory that all see.
Ray itself repeats the tasks of a node that died (Moritz et al. 2018).
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import exceptions

from ...targets.artifact import write_text
from ...targets.errors import DeadweightError, ModelError, RecipeError
from ...targets.progress import Counted
from .executor import Ended, Place, Task

RETRIES = 3
"""How often a task is repeated after its worker or its node died."""
_DRIVER = ".driver"
_SENT = ("DEADWEIGHT_DATA", "DEADWEIGHT_DATA_URL")
_LEFT = ("/runs", ".git", "__pycache__", ".venv", "*.part")
"""What of the recipe's folder stays here."""


@contextlib.contextmanager
def executor(place: Place) -> Iterator[OnRay]:
    """A cluster, joined as its driver.

    Raises:
        RecipeError: none is there, it has another Ray or Python, or no node has what a trial asks for.
    """
    if ray.is_initialized():
        raise RecipeError("This process has joined a Ray cluster already.", "Call ray.shutdown() before.")
    where = place.address or "this machine"
    _check_answers(place.address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    folder = place.folder.resolve()
    runs = [mark.parent for mark in (*folder.glob("*/recipe.path"), *folder.glob("*/*/recipe.path"))]
    left = [
        f"/{one.relative_to(folder)}" for one in (*runs, place.directory.resolve()) if folder in one.parents
    ]
    try:
        ray.init(
            address=place.address or None,
            runtime_env={
                "working_dir": str(folder),
                "excludes": [*_LEFT, *left],
                "env_vars": {name: os.environ[name] for name in _SENT if name in os.environ},
            },
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError, OSError, exceptions.RayError) as error:
        cure = "Give HOST:PORT, as `ray start --head` prints it, of a cluster with the same Ray and Python."
        said = _line(error)
        if said.startswith("Version mismatch"):
            said = " ".join(str(error).split())  # both versions are in the lines below
            cure = "Install the Ray and the Python of one side on the other; no worker could read a trial."
        if "maximum" in said:  # the size of the package
            cure = "Move data and results out of the recipe's folder; name the data with --data PATH or URL."
        raise RecipeError(f"The Ray cluster of {where} cannot be used: {said}.", cure) from error
    try:
        token = secrets.token_hex(8)
        if not place.stored:
            write_text(place.directory / _DRIVER, token)
        yield OnRay(replace(place, at_once=_at_once(place, where)), max(1, _count(place.board)), token)
    finally:
        (place.directory / _DRIVER).unlink(missing_ok=True)
        ray.shutdown()


@dataclass(frozen=True)
class OnRay:
    """A cluster that was joined."""

    place: Place
    boards: int
    token: str

    @property
    def at_once(self) -> int:
        return self.place.at_once

    def run(self, tasks: Sequence[Task], ended: Counted, *, alone: bool = False) -> list[Ended]:
        """As `Executor.run`; one error does not stop the other trials.

        Raises:
            ModelError: a task's process was killed again and again, as where memory ran out.
        """
        asked: dict[str, Any] = {"num_cpus": self.place.cpus, "num_gpus": self.place.gpus}
        if alone and self.place.board:
            asked = {"num_cpus": 0, "resources": {self.place.board: 1}}
        elif alone:
            return []  # this machine times, while no trial runs
        remote = ray.remote(max_retries=RETRIES, **asked)(_run)
        directory, token = self.place.directory.resolve(), "" if self.place.stored else self.token
        refs = [remote.options(name=task.name).remote(task, directory, token) for task in tasks]
        waiting, found, failed = list(refs), dict[Any, Ended](), list[DeadweightError]()
        try:
            while waiting:
                ready, waiting = ray.wait(waiting)
                for ref in ready:
                    try:
                        found[ref] = ray.get(ref)
                    except exceptions.RayError as error:
                        failed.append(_explained(error, tasks[refs.index(ref)].name))
                    ended(len(refs) - len(waiting), len(refs))
        finally:
            for ref in waiting:
                ray.cancel(ref, force=True)
        if failed:
            raise failed[0]
        return [found[ref] for ref in refs]


def _run(task: Task, directory: Path, token: str) -> Ended:
    """Runs a task on a worker; without a token results go to the store, by a directory of this node's own."""
    if not token:
        directory = Path.cwd() / f".deadweight-{ray.get_runtime_context().get_node_id()[:12]}"
    elif not (directory / _DRIVER).is_file() or (directory / _DRIVER).read_text() != token:
        error = RecipeError(
            f"The worker {socket.gethostname()} does not see {directory} of the machine that started the "
            "sweep.",
            'Add [store] with url = "s3://..." or "ssh://..." to the recipe, or put --out on a shared disk.',
        )
        return Ended(error=error)
    return task.moved(Path.cwd(), directory)()


def _explained(error: Exception, name: str) -> DeadweightError:
    """What Ray says of a task that failed, as an error of ours."""
    missing = getattr(error, "cause", error)
    if isinstance(missing, ModuleNotFoundError) or "ModuleNotFoundError" in str(error):
        return RecipeError(
            f"A worker lacks a package: {_line(missing)}.",
            "Install deadweight[workstation,scale] and the workload's packages on each node, in one version.",
        )
    if isinstance(error, exceptions.OutOfMemoryError):
        return ModelError(
            f"Memory ran out on a node in the trial {name}: {_line(error)}",
            "Give each trial more of a node (a higher cpus in [sweep]), or use smaller batches. "
            "The other trials are finished and kept.",
        )
    if isinstance(error, exceptions.RuntimeEnvSetupError):
        cure = "Free space on the nodes, or make the recipe's folder smaller."
        return RecipeError(f"The recipe's folder did not reach a worker: {_line(error)}", cure)
    return ModelError(
        f"{name} was given up after {RETRIES} repetitions: {type(error).__name__}: {_line(error)}.",
        "Look for killed workers in the cluster's logs (memory is the usual reason), and run the same "
        "command again: finished stages are kept.",
    )


def _at_once(place: Place, where: str) -> int:
    """Trials that the cluster runs at a time.

    Raises:
        RecipeError: no node can run one.
    """
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = [node["Resources"] for node in found if node["Alive"]]
    fits = [
        min(
            int(has.get("CPU", 0) // place.cpus),
            int(has.get("GPU", 0) // place.gpus) if place.gpus else 1 << 30,
        )
        for has in nodes
    ]
    if not sum(fits):
        have = "; ".join(f"{has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs" for has in nodes)
        raise RecipeError(
            f"A trial needs {place.cpus} CPUs and {place.gpus:g} GPUs; the nodes of {where} have {have}.",
            "Lower cpus or gpus in [sweep], or add a larger node.",
        )
    if place.board and not _count(place.board):
        start = f"""ray start --address ... --num-cpus 0 --resources '{{"{place.board}": 1}}'"""
        boards = sorted(
            {name for has in nodes for name in has if ":" not in name}
            - {"CPU", "GPU", "memory", "object_store_memory"}
        )
        raise RecipeError(
            f'No node of {where} has the board "{place.board}"; there are: {", ".join(boards) or "none"}.',
            f"Start the node beside it with {start}.",
        )
    return place.at_once if place.at_once > 1 else sum(fits)


def _count(board: str) -> int:
    has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(has.get(board, 0))


def _check_answers(address: str) -> None:
    """Refuses an address where nobody listens, at once: Ray itself tries for minutes."""
    host, colon, port = address.rpartition("//")[2].rpartition(":")
    if not colon or not port.isdigit():
        if address not in ("", "auto"):
            raise RecipeError(
                f'"{address}" is no address of a cluster.', "Write HOST:PORT, e.g. 10.0.0.5:6379."
            )
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise RecipeError(
            f"No Ray cluster answers at {address}: {error.strerror or error}.",
            "Start one there (ray start --head), check the firewall, or use --ray without an address.",
        ) from error


def _line(error: Any) -> str:
    return str(error).strip().partition("\n")[0][:300].rstrip(".")
