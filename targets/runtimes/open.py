"""Which runtime runs a file, and a session opened with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterable, Mapping, Union

from ..errors import TargetError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]
from .session import RUNTIMES, Session


def runtime_of(path: Union[str, Path]) -> str:
    """What runs a file, by its name: plans and engines are TensorRT's, whose flavour their record knows."""
    path = Path(path)
    if path.suffix not in (".plan", ".engine"):
        return "onnxruntime"
    from ..engines.record import read_record

    record = read_record(path)
    return "tensorrt" if record is None else str(record["tensorrt"]["flavour"])


def shared_runtime(paths: Iterable[Path]) -> str:
    """What runs all of these.

    Raises:
        TargetError: they run on different runtimes, and their times would not compare.
    """
    found = {path: runtime_of(path) for path in paths}
    if len(set(found.values())) != 1:
        told = ", ".join(f"{path.name} on {runtime}" for path, runtime in found.items())
        raise TargetError(
            f"These do not run on one runtime, so they cannot be timed by turns: {told}.",
            "Compare two engines, or two ONNX files: deadweight build makes an engine of an ONNX file.",
        )
    return found.popitem()[1]


def open_session(path: Union[str, Path], *, runtime: str = "onnxruntime", threads: int = 1) -> Session:
    """Opens a model file for running on this machine's CPU or board.

    Raises:
        ModelError: the file is missing, cut short, or holds what the runtime does not know.
        TargetError: the runtime is unknown or not installed.
    """
    if threads < 1:
        raise TargetError(f"A model cannot be run with {threads} threads.", "Ask for 1 or more.")
    if runtime == "onnxruntime":
        from .ort import open_ort

        return open_ort(Path(path), threads=threads)
    if runtime in RUNTIMES:
        from .trt_open import open_trt

        flavour, _, graph = runtime.partition("+")
        return open_trt(Path(path), flavour=flavour, graph=bool(graph))
    raise TargetError(f"The runtime '{runtime}' is not known here.", f"Known: {', '.join(RUNTIMES)}.")
