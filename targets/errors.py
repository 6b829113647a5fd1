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
import errno
import sys
import sysconfig
import traceback
import zlib
from importlib import util
from pathlib import Path
from types import ModuleType
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


class NoiseError(ModelError):
    """The noise of INT8 in an output is beyond what a network bears."""


class ArtifactError(DeadweightError):
    """A file is missing, damaged or unsafe to load, or cannot be written."""


class RefusedError(ArtifactError):
    """A bundle is not trusted: nothing of it was loaded. `verify` and `install` exit with 1."""


class TargetError(DeadweightError):
    """A board or a runtime is unknown or missing."""


class MeasurementError(DeadweightError):
    """Samples allow no judgement."""


MISFITS = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)
"""What Python raises where a value from outside has another form than it should."""


@contextlib.contextmanager
def reported(kind: Type[DeadweightError], what: str, cure: str, *of: Type[BaseException]) -> Iterator[None]:
    """Makes the system's errors in a block, or those of the classes `of`, one of ours, with the reason."""
    kinds = of or (OSError,)
    try:
        yield
    except kinds as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else error
        raise kind(f"{what}: {getattr(error, 'strerror', None) or reason}.", cure) from error


def module_in(path: Path) -> ModuleType:
    """The module of a file, under a name of its own."""
    spec = util.spec_from_file_location(f"{path.stem}_{zlib.crc32(str(path).encode()):08x}", path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up there
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def users_code(while_what: str, kind: Type[DeadweightError] = WorkloadError) -> Iterator[None]:
    """Turns an exception of the user's code into an error of ours that names the line."""
    try:
        yield
    except (DeadweightError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # a full disk is no fault of that code
        frames = traceback.extract_tb(error.__traceback__)
        theirs = [frame for frame in frames if not _is_installed(frame.filename)]
        at = f" at {theirs[-1].filename}:{theirs[-1].lineno}" if theirs else ""
        if isinstance(error, SyntaxError) and error.filename:
            at = f" at {error.filename}:{error.lineno}"
        cure = "Fix that line and run again." if at else "Fix it and run again."
        if isinstance(error, ModuleNotFoundError) and error.name:
            top = error.name.partition(".")[0]
            top = _PACKAGES.get(top, top)
            cure = f"Check the name; install {top}, or, if it is a file of yours, put it beside the recipe."
        elif "operator torchvision::" in str(error):
            cure = "torchvision is of another build than torch (CUDA, CPU): install both from the same index."
        raise kind(f"While {while_what}: {type(error).__name__}: {error}{at}.", cure) from error


_PACKAGES = {"PIL": "Pillow", "cv2": "opencv-python", "sklearn": "scikit-learn", "yaml": "PyYAML"}
"""The packages of modules that have another name."""


def _is_installed(filename: str) -> bool:
    """Whether a source file belongs to Python, an installed package or deadweight, not to the user."""
    root = Path(__file__).resolve().parents[1]
    floors = {root / floor for floor in ("pipeline", "export", "targets", "deadweight")}
    places = floors | {Path(sysconfig.get_path("stdlib")).resolve()}
    within = places & set(Path(filename).resolve().parents)
    return filename.startswith("<") or "site-packages" in filename or bool(within)
