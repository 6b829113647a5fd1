"""Opening a model's file: which runtime it is for, and the session."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Iterable, Optional, Union

from ..errors import TargetError
from .runtime import DEFAULT, Runtime, by_suffix, runtime_named

if TYPE_CHECKING:
    from .session import Session


def runtime_of(path: Union[str, Path], board: Optional[Runtime] = None) -> Runtime:
    """What runs a file: the runtime of the board that the user named if it opens such files, else by name.

    TensorRT's flavours share their suffixes; the record of a plan says which one built it.
    """
    path = Path(path)
    opens = board is not None and path.suffix in board.suffixes
    runtime = board if opens and board is not None else by_suffix(path.name)
    return runtime if runtime.variant is None else runtime_named(runtime.variant(path))


def shared_runtime(paths: Iterable[Path], board: Optional[Runtime] = None) -> Runtime:
    """What runs all of these.

    Raises:
        TargetError: they run on different runtimes, and their times would not compare.
    """
    found = {path: runtime_of(path, board) for path in paths}
    if len(set(found.values())) != 1:
        named = ", ".join(f"{path.name} on {runtime}" for path, runtime in found.items())
        raise TargetError(
            f"These do not run on one runtime, so they cannot be timed by turns: {named}.",
            "Compare two engines, or two ONNX files: deadweight build makes an engine of an ONNX file.",
        )
    return found.popitem()[1]


def open_session(
    path: Union[str, Path], *, runtime: Union[str, Runtime] = DEFAULT, threads: int = 1
) -> Session:
    """Opens a model file for running on this machine's CPU or board.

    Args:
        runtime: what runs it, or the name of a built-in runtime, or of one of your own that was loaded.

    Raises:
        ModelError: the file is missing, cut short, or holds what the runtime does not know.
        TargetError: the runtime is unknown or not installed.
    """
    if threads < 1:
        raise TargetError(f"A model cannot be run with {threads} threads.", "Ask for 1 or more.")
    runs = runtime_named(runtime) if isinstance(runtime, str) else runtime
    if runs.source:
        runs.check_installed(Path(path).name)
    return runs.open(Path(path), threads=threads)
