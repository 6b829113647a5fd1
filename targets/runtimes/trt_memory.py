"""The memory of an engine: the buffers of its inputs and outputs, and all its parts, each with its source.

A buffer is in device memory, with copies through page-locked host memory, or in mapped memory without copies.
On Orin the GPU does not cache mapped memory: a layer that reads its input more than once is slower. The parts
differ in kind: TensorRT reports some, others are differences of CUDA's free memory, which on a Jetson other
programs and the page cache change too.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any, List, NamedTuple, Optional, Tuple

import numpy as np

from ..errors import DeadweightError
from ..machine.cuda import Cuda

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Buffer:
    """The buffer of one tensor, which grows as it is asked to. `size` is its bytes."""

    def __init__(self, cuda: Cuda, *, mapped: bool) -> None:
        self._cuda, self._mapped = cuda, mapped
        self.size = self._host = self._device = 0

    def reserve(self, size: int) -> int:
        """The address for TensorRT of at least `size` bytes; where they are new, the old ones are lost."""
        size = max(size, 1)
        if self.size < size:
            self.free()
            self._host = self._cuda.host_malloc(size, mapped=self._mapped)
            try:
                cuda = self._cuda
                self._device = cuda.device_address(self._host) if self._mapped else cuda.malloc(size)
            except BaseException:
                self._cuda.host_free(self._host)
                raise
            self.size = size
        return self._device

    def fill(self, array: NDArray[Any], stream: int) -> None:
        """Copies an array in, in the stream's order, whose earlier copies must be done."""
        self._view(array.shape, str(array.dtype))[...] = array
        if not self._mapped:
            self._cuda.copy_to_device(self._device, self._host, array.nbytes, stream)

    def fetch(self, shape: Tuple[int, ...], dtype: str, stream: int) -> NDArray[Any]:
        """The buffer's array, valid after a synchronization of the stream until the next run."""
        if 0 in shape:
            return np.empty(shape, dtype)
        view = self._view(shape, dtype)
        if not self._mapped:
            self._cuda.copy_to_host(self._host, self._device, view.nbytes, stream)
        return view

    def free(self) -> None:
        """Gives the memory back, if there is any."""
        if self.size:
            self.size = 0
            self._cuda.host_free(self._host)
            if not self._mapped:
                self._cuda.free(self._device)

    def _view(self, shape: Tuple[int, ...], dtype: str) -> NDArray[Any]:
        count = int(np.prod(shape, dtype=np.int64))
        raw = (ctypes.c_uint8 * (count * np.dtype(dtype).itemsize)).from_address(self._host)
        view: NDArray[Any] = np.ctypeslib.as_array(raw).view(dtype).reshape(shape)
        return view


class Growing:
    """An output whose size depends on the data: in each run TensorRT asks for memory, and tells its shape."""

    def __init__(self, trt: Any, buffer: Buffer) -> None:
        self._buffer = buffer
        self.shape: Tuple[int, ...] = ()
        self.error: Optional[DeadweightError] = None
        """Why the last request for memory failed: the bindings swallow exceptions."""
        self.allocator = _allocator(trt, self)

    def reallocate(self, size: int) -> int:
        """The address of at least `size` bytes; 0 without memory."""
        self.error = None
        try:
            return self._buffer.reserve(size)
        except DeadweightError as error:
            self.error = error
            return 0


def _allocator(trt: Any, growing: Growing) -> Any:
    class Allocator(trt.IOutputAllocator):  # type: ignore[misc, name-defined, unused-ignore]
        """TensorRT calls it during an enqueue: for memory, then with the shape."""

        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            return growing.reallocate(size)

        def reallocate_output_async(
            self, tensor_name: str, memory: int, size: int, alignment: int, stream: int
        ) -> int:
            return growing.reallocate(size)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            growing.shape = tuple(shape)

    return Allocator()


class Part(NamedTuple):
    """One part of an engine's memory: None where this TensorRT does not report it.

    The parts overlap: CUDA's differences include TensorRT's parts.
    """

    name: str
    bytes: Optional[int]
    how: str


class Watch:
    """Records free memory: before the runtime; then `mark` with the engine, and with its context."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._free: List[int] = [cuda.memory_bytes()[0]]

    def mark(self) -> None:
        """To be called after the engine was opened, and after its context was created."""
        self._free.append(self._cuda.memory_bytes()[0])

    def memory(self, engine: Any, trt: Any, *, plan: Path, io_bytes: int) -> Tuple[Part, ...]:
        """All parts of an open engine."""
        lost = "cudaMemGetInfo, free before less free after"
        start, opened, running = (self._free + [self._free[-1]] * 3)[:3]
        return (
            Part("plan", plan.stat().st_size, "size of the file"),
            _weights(engine, trt),
            _activations(engine),
            Part("io", io_bytes, "allocated for inputs and outputs"),
            Part("opening", start - opened, f"{lost} opening: runtime, weights, kernels"),
            Part("context", opened - running, f"{lost} creating the context: activations and scratch"),
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
