"""The errors of deadweight, each with its cure.

    DeadweightError          every deliberate error; the CLI prints it and exits with 2
      RecipeError            an invalid recipe, setting or flag
      WorkloadError          the user's own file or data
      ModelError             a network that cannot be traced, pruned, exported or run
      ArtifactError          a file that is missing, damaged or unsafe to load
        RefusedError              a bundle that is not trusted
      TargetError            a board or runtime that is unknown or missing
      MeasurementError       samples that allow no judgement

An error is a sentence about what happened, with the values, and a cure. Both are required, so that every
message gives a next step.
"""

from __future__ import annotations

import contextlib
import difflib
from typing import Iterable, Iterator, Type


def meant(name: str, known: Iterable[str], otherwise: str, *, count: int = 1, cutoff: float = 0.6) -> str:
    """The cure for an unknown name: at most `count` similar known ones, or else `otherwise`."""
    near = difflib.get_close_matches(name, list(known), count, cutoff)
    return f"Did you mean {' or '.join(map(repr, near))}?" if near else otherwise


def meant_and(name: str, known: Iterable[str], more: str, *, count: int = 1, cutoff: float = 0.6) -> str:
    """The same, always followed by `more`."""
    return f"{meant(name, known, '', count=count, cutoff=cutoff)} {more}".lstrip()


class DeadweightError(Exception):
    """An error that the user can fix: `what` happened, and the `cure`."""

    def __init__(self, what: str, cure: str) -> None:
        super().__init__(what, cure)
        self.what = what
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.what}\n{self.cure}"


@contextlib.contextmanager
def within(where: str) -> Iterator[None]:
    """Errors of the block begin with their place in a file."""
    try:
        yield
    except DeadweightError as error:
        error.what = f"{where}: {error.what}"
        raise


class RecipeError(DeadweightError):
    """A recipe, a setting or a flag is invalid."""


class WorkloadError(DeadweightError):
    """The user's own file or data is not a valid workload."""


class ModelError(DeadweightError):
    """A network cannot be traced, pruned, exported or run."""


class ArtifactError(DeadweightError):
    """A file is missing, damaged or unsafe to load, or cannot be written."""


class RefusedError(ArtifactError):
    """A bundle is not trusted: nothing of it was loaded. `verify` and `install` exit with 1."""


class TargetError(DeadweightError):
    """A board or a runtime is unknown or missing."""


class MeasurementError(DeadweightError):
    """Samples allow no judgement."""


@contextlib.contextmanager
def reported(kind: Type[DeadweightError], what: str, cure: str, *of: Type[BaseException]) -> Iterator[None]:
    """Makes the system's errors in a block, or those of the classes `of`, one of ours, with the reason."""
    kinds = of or (OSError,)
    try:
        yield
    except kinds as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else error
        raise kind(f"{what}: {getattr(error, 'strerror', None) or reason}.", cure) from error
