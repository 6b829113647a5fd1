"""The executor contract: what runs the trials of a sweep, and the timings that must run alone.

An executor is a file of this folder; its name is the `executor` of a recipe's `[sweep]`, and its function
`executor(place)` makes an `Executor`. The user's own is such a function itself, named "module:function".
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Protocol

from ...targets.errors import DeadweightError, RecipeError, meant_and, users_code
from ...targets.progress import Counted
from ..stage import files_with


@dataclass(frozen=True)
class Ended:
    """How a task ended: without an error, or with one of ours.

    Attributes:
        words: why a setting was refused; "" if it was not.
    """

    words: str = ""
    error: DeadweightError | None = None


class Task(Protocol):
    """A trial, or a timing; it can be pickled, and leaves its results in the run's directory or the store."""

    @property
    def name(self) -> str:
        """What it tries, for a dashboard."""
        ...

    def moved(self, folder: Path, directory: Path) -> Task:
        """The same task on a machine where the recipe's folder and the run's directory are elsewhere."""
        ...

    def __call__(self) -> Ended:
        """Runs it here."""
        ...


@dataclass(frozen=True)
class Place:
    """What an executor is made with.

    Attributes:
        folder: the recipe's; a cluster sends it to its workers.
        directory: the run's.
        stored: whether results go to a store, so that workers need not see `directory`.
        at_once: trials at a time, on this machine.
        cpus, gpus: of one trial.
        board: the name of the resource that a timing has to itself; "": this machine.
        address: of the cluster; "" for one that runs here already, or else a new one on this machine.
    """

    folder: Path
    directory: Path
    stored: bool
    at_once: int
    cpus: int
    gpus: float
    board: str
    address: str


class Executor(Protocol):
    """Runs tasks: `at_once` trials at a time, and on `boards` boards a timing each."""

    at_once: int
    boards: int

    def run(self, tasks: Sequence[Task], ended: Counted, *, alone: bool = False) -> list[Ended]:
        """Runs all tasks and returns how each ended, in their order.

        Args:
            ended: called with how many are done, and of how many.
            alone: nothing else runs on the same board meanwhile: they are timings.

        Raises:
            DeadweightError: what runs them failed; finished stages are kept.
        """
        ...


Maker = Callable[[Place], AbstractContextManager[Executor]]


def executors() -> list[str]:
    """The names: the files of this folder with a function `executor`."""
    return files_with("executor", Path(__file__).parent)


def executor_named(name: str) -> Maker:
    """What makes the executor of this name; a RecipeError if there is none."""
    if name in executors():
        try:
            made: Maker = importlib.import_module(f".{name}", __package__).executor
        except ModuleNotFoundError as error:
            cure = 'Install the extra [scale], in a checkout: pip install ".[scale]".'
            raise RecipeError(f'The executor "{name}" needs {error.name}.', cure) from error
        return made
    module, _, attribute = name.partition(":")
    if not attribute or PathFinder.find_spec(module.partition(".")[0]) is None:
        known = f"The executors are: {', '.join(executors())}; your own is module:function."
        raise RecipeError(f'There is no executor "{name}".', meant_and(module, executors(), known))
    with users_code(f'the executor "{name}" was imported', RecipeError):
        own: Maker = getattr(importlib.import_module(module), attribute)
    return own
