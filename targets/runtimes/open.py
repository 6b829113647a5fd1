"""Opening a model file: its runtime and the session."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Iterable, Mapping, Optional, TypeVar, Union

from ..errors import TargetError, users_code
from .runtime import DEFAULT, Runtime, by_suffix, runtime_named, usable, with_choices

if TYPE_CHECKING:
    from .session import Session

T = TypeVar("T")


def runtime_of(path: Union[str, Path], board: Optional[Runtime] = None) -> Runtime:
    """The runtime of a file: that of the user's board if it opens such files, else by the file's suffix.

    TensorRT's flavours share their suffixes; the record of a plan has the one that built it. `usable` may
    have another where that one does not work here.
    """
    path = Path(path)
    runtime = board if board is not None and path.suffix in board.suffixes else by_suffix(path.name)
    return usable(runtime if runtime.variant is None else runtime_named(runtime.variant(path)))


def shared_runtime(paths: Iterable[Path], board: Optional[Runtime] = None) -> Runtime:
    """The common runtime of several files."""
    return same_runtime({path: runtime_of(path, board) for path in paths})


def same_runtime(runtimes: Mapping[Path, T]) -> T:
    """The one of all files; a TargetError if there are several."""
    if len(set(runtimes.values())) != 1:
        named = ", ".join(f"{path.name} on {runtime}" for path, runtime in runtimes.items())
        raise TargetError(
            f"These files run on different runtimes, so they cannot be timed interleaved: {named}.",
            "Compare two engines, or two ONNX files: deadweight build makes an engine from an ONNX file.",
        )
    return next(iter(runtimes.values()))


def run_as(found: Runtime, name: Optional[str]) -> Runtime:
    """The runtime of this name in place of the one that was found for a file.

    A name such as `+graph` is the found one with that choice.
    """
    if not name:
        return found
    if name.startswith("+"):
        return with_choices(found, name)
    wanted = runtime_named(name)
    if wanted.suffixes != found.suffixes:
        raise TargetError(
            f"{wanted} does not open such files; {found} does.",
            "Omit --runtime. On a board (--on) ONNX files are built for TensorRT, and then any of its names "
            "can be given.",
        )
    return wanted


def open_session(
    path: Union[str, Path], *, runtime: Union[str, Runtime] = DEFAULT, threads: int = 1
) -> Session:
    """Opens a model file to run it on this machine's CPU or board.

    Args:
        runtime: a runtime, or the name of a built-in one or of a user's own that was loaded.

    Raises:
        ModelError: the file is missing, truncated, or not supported by the runtime.
        TargetError: the runtime is unknown or not installed.
    """
    if threads < 1:
        raise TargetError(f"A model cannot be run with {threads} threads.", "Use 1 or more.")
    runs = runtime_named(runtime) if isinstance(runtime, str) else runtime
    if not runs.source:
        return runs.open(Path(path), threads=threads)
    runs.check_installed(Path(path).name)
    with users_code(f"the runtime {runs.source} opened {path}", TargetError):
        session: Optional[Session] = runs.open(Path(path), threads=threads)
    if session is None:
        raise TargetError(
            f"The runtime {runs.source} opened {path} as None.", "Let open(path, threads=1) return a Session."
        )
    return session
