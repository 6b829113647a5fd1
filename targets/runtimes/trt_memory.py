"""The memory of an engine, in parts, each with its source.

The parts differ in kind: TensorRT reports some, others are differences of CUDA's free memory, which on a
Jetson other programs and the page cache change too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from ..machine.cuda import Cuda


@dataclass(frozen=True)
class Part:
    """One part of the memory: None where this TensorRT does not report it."""

    name: str
    bytes: Optional[int]
    how: str


@dataclass(frozen=True)
class EngineMemory:
    """The parts of an engine's memory. They overlap: CUDA's differences include TensorRT's parts."""

    parts: Tuple[Part, ...]

    def bytes_of(self, name: str) -> Optional[int]:
        """A part's bytes; None where it is unknown."""
        return next((part.bytes for part in self.parts if part.name == name), None)

    def to_json(self) -> Dict[str, Any]:
        """Plain values for JSON, by part."""
        return {part.name: {"bytes": part.bytes, "how": part.how} for part in self.parts}


class Watch:
    """Records free memory: before the runtime, with the engine, with its context."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._free: List[int] = [cuda.memory_bytes()[0]]

    def engine(self) -> None:
        """To be called after the engine was opened."""
        self._free.append(self._cuda.memory_bytes()[0])

    def context(self) -> None:
        """To be called after its context was created."""
        self._free.append(self._cuda.memory_bytes()[0])

    def memory(self, engine: Any, trt: Any, *, plan: Path, io_bytes: int) -> EngineMemory:
        """All parts of an open engine."""
        lost = "cudaMemGetInfo, free before less free after"
        start, opened, running = (self._free + [self._free[-1]] * 3)[:3]
        return EngineMemory(
            (
                Part("plan", plan.stat().st_size, "size of the file"),
                _weights(engine, trt),
                _activations(engine),
                Part("io", io_bytes, "allocated for inputs and outputs"),
                Part("opening", start - opened, f"{lost} opening: runtime, weights, kernels"),
                Part("context", opened - running, f"{lost} creating the context: activations and scratch"),
            )
        )


def _weights(engine: Any, trt: Any) -> Part:
    if hasattr(engine, "get_engine_stat") and hasattr(trt, "EngineStat"):
        size = int(engine.get_engine_stat(trt.EngineStat.TOTAL_WEIGHTS_SIZE))
        return Part("weights", size, "TensorRT: get_engine_stat(TOTAL_WEIGHTS_SIZE)")
    return Part("weights", None, "unknown before TensorRT 10.16; it is less than the plan")


def _activations(engine: Any) -> Part:
    if hasattr(engine, "device_memory_size_v2"):
        size = int(engine.device_memory_size_v2)
        return Part("activations", size, "TensorRT: device_memory_size_v2, scratch included")
    if hasattr(engine, "device_memory_size"):
        size = int(engine.device_memory_size)
        return Part("activations", size, "TensorRT: device_memory_size, scratch included")
    return Part("activations", None, "unknown for this TensorRT")
