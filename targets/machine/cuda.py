"""The part of CUDA that an engine needs: memory, streams and captured graphs.

Handles and addresses are plain numbers, as in TensorRT's functions. `open_cuda` tries the bindings of
`cuda_calls.py` in order and reports why each failed. All of them use the device's primary context, as does
TensorRT. Streams do not wait for the default stream.
"""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, List, Optional, Tuple

from ..errors import TargetError
from .cuda_calls import NOT_SUPPORTED, Calls, by_ctypes, by_pycuda

WAYS = ("ctypes", "pycuda")
ALIGNMENT_BYTES = 256
"""The alignment that TensorRT requires of every address."""

_ATTRIBUTES = {
    "streaming_multiprocessors": 16,
    "integrated": 18,
    "can_map_host_memory": 19,
    "compute_capability_major": 75,
    "compute_capability_minor": 76,
}
_WAITS = {"spin": 1, "block": 4}
_NON_BLOCKING = 1
_MAPPED = 2
_TO_DEVICE, _TO_HOST = 1, 2
_RELAXED = 2
_OUT_OF_MEMORY = 2
_ACTIVE = 708
_NO_DRIVER = (35, 3)


class Cuda:
    """CUDA on device 0. Sizes are bytes; addresses, streams and graphs are numbers.

    Every method raises TargetError with CUDA's message where CUDA reports a failure.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.name = calls.name
        self._do("cudaSetDevice", 0)

    def wait_by(self, how: str) -> bool:
        """How the process waits for the GPU: `spin`, or `block`: then its wake-up is part of each time.

        CUDA's own choice on a Jetson may be to block; False where it applies, because an old CUDA is in use
        already. pycuda always spins.
        """
        status, _ = self._calls.call("cudaSetDeviceFlags", _WAITS[how])
        if status not in (0, _ACTIVE) and (status, how) != (NOT_SUPPORTED, "spin"):
            raise self._failed("cudaSetDeviceFlags", (_WAITS[how],), status)
        return status != _ACTIVE

    def attribute(self, name: str) -> int:
        """A device attribute: one of `integrated`, `can_map_host_memory`, `streaming_multiprocessors`,
        `compute_capability_major`, `compute_capability_minor`."""
        return int(self._do("cudaDeviceGetAttribute", _ATTRIBUTES[name], 0)[0])

    def compute_capability(self) -> str:
        """The device's architecture, as in `8.7`."""
        return ".".join(str(self.attribute(f"compute_capability_{part}")) for part in ("major", "minor"))

    def versions(self) -> Dict[str, str]:
        """CUDA versions that the driver supports and that the runtime has, as in `12.6`."""
        names = {"driver": "cudaDriverGetVersion", "runtime": "cudaRuntimeGetVersion"}
        numbers = {part: self._do(name)[0] for part, name in names.items()}
        return {part: f"{number // 1000}.{number % 1000 // 10}" for part, number in numbers.items()}

    def memory_bytes(self) -> Tuple[int, int]:
        """Free and total memory. On an integrated GPU `free` excludes reclaimable memory."""
        free, total = self._do("cudaMemGetInfo")
        return int(free), int(total)

    def malloc(self, size: int) -> int:
        """Device memory, aligned to 256 bytes."""
        return self._address("cudaMalloc", size)

    def free(self, address: int) -> None:
        self._do("cudaFree", address)

    def host_malloc(self, size: int, *, mapped: bool) -> int:
        """Page-locked memory of the host; with `mapped` the device can access it too."""
        return self._address("cudaHostAlloc", size, _MAPPED if mapped else 0)

    def host_free(self, address: int) -> None:
        self._do("cudaFreeHost", address)

    def device_address(self, host_address: int) -> int:
        """The device's address of mapped host memory."""
        return int(self._do("cudaHostGetDevicePointer", host_address, 0)[0])

    def copy_to_device(self, to: int, source: int, size: int, stream: int) -> None:
        """Copies from the host within a stream."""
        self._do("cudaMemcpyAsync", to, source, size, _TO_DEVICE, stream)

    def copy_to_host(self, to: int, source: int, size: int, stream: int) -> None:
        """Copies from the device within a stream."""
        self._do("cudaMemcpyAsync", to, source, size, _TO_HOST, stream)

    def stream(self) -> int:
        """Creates a stream that does not wait for the default one."""
        return int(self._do("cudaStreamCreateWithFlags", _NON_BLOCKING)[0])

    def synchronize(self, stream: int) -> None:
        """Waits until all work of a stream is done."""
        self._do("cudaStreamSynchronize", stream)

    def stream_free(self, stream: int) -> None:
        self._do("cudaStreamDestroy", stream)

    def graph(self, stream: int, enqueue: Callable[[], object]) -> int:
        """Captures what `enqueue` puts into the stream as a graph."""
        self._do("cudaStreamBeginCapture", stream, _RELAXED)
        try:
            enqueue()
        finally:
            # The capture must end, or the stream stays unusable; an error of `enqueue` has priority.
            status, captured = self._calls.call("cudaStreamEndCapture", stream)
        if status or not captured[0]:
            raise self._failed("cudaStreamEndCapture", (stream,), status)
        try:
            return int(self._do("cudaGraphInstantiateWithFlags", captured[0], 0)[0])
        finally:
            self._do("cudaGraphDestroy", captured[0])

    def bound(self, name: str, *inputs: int) -> Callable[[], None]:
        """`cudaStreamSynchronize` or `cudaGraphLaunch` bound to these handles, for timing."""
        call = self._calls.bind(name, *inputs)

        def checked() -> None:
            status = call()
            if status:
                raise self._failed(name, inputs, status)

        return checked

    def graph_free(self, graph: int) -> None:
        self._do("cudaGraphExecDestroy", graph)

    def _address(self, name: str, size: int, *flags: int) -> int:
        address = int(self._do(name, size, *flags)[0])
        if not address or address % ALIGNMENT_BYTES:
            raise TargetError(
                f"CUDA gave the address {address:#x} for {size} bytes ({name}), which is not a multiple of "
                f"{ALIGNMENT_BYTES}.",
                "The CUDA installation is faulty: reinstall it, or choose another binding.",
            )
        return address

    def _do(self, name: str, *inputs: int) -> Tuple[Any, ...]:
        status, outputs = self._calls.call(name, *inputs)
        if status:
            raise self._failed(name, inputs, status)
        return outputs

    def _failed(self, name: str, inputs: Tuple[int, ...], status: int) -> TargetError:
        message = f"{name}({', '.join(map(str, inputs))}) gave {status}, {self._calls.words(status)}."
        if status == _OUT_OF_MEMORY:
            # Called directly: a second failure must not hide the first.
            failed, room = self._calls.call("cudaMemGetInfo")
            free = "" if failed else f" {room[0] / 1e6:.0f} of {room[1] / 1e6:.0f} MB are free."
            return TargetError(
                f"The GPU is out of memory: {message}{free}",
                "Stop other programs that use the GPU, use a smaller batch, or use a smaller model.",
            )
        if status == NOT_SUPPORTED:
            what = f"{self.name} does not support this"
            cure = "Omit --cuda-graph and --sync block, or use libcudart: DEADWEIGHT_CUDA=ctypes."
        elif status in _NO_DRIVER:
            what = "CUDA found no suitable driver"
            cure = "Install the CUDA of the driver's version; start a container with --runtime nvidia."
        else:
            what = "CUDA failed"
            cure = "Try again in a new process: after some GPU failures the old process cannot use CUDA."
        return TargetError(f"{what}: {message}", cure)


def open_cuda(choice: Optional[str] = None) -> Cuda:
    """Opens CUDA by the chosen binding, or by the first that works: ctypes on libcudart, pycuda.

    `choice` is one of `WAYS`, or `ctypes:` and the path of a libcudart; by default the environment variable
    DEADWEIGHT_CUDA.

    Raises:
        TargetError: none works; the message has the reason for each.
    """
    choice = choice or os.environ.get("DEADWEIGHT_CUDA") or None
    way, _, path = (choice or "").partition(":")
    if choice is not None and (way not in WAYS or (path and way != "ctypes")):
        raise TargetError(f"There is no CUDA binding '{choice}'.", f"Known: {', '.join(WAYS)}, ctypes:PATH.")
    openers: Dict[str, Callable[[], Calls]] = {"pycuda": by_pycuda, "ctypes": lambda: by_ctypes(path)}
    reasons: List[str] = []
    for name in WAYS if choice is None else (way,):
        try:
            return Cuda(openers[name]())
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            reasons.append(f"{name}: {str(error).strip() or type(error).__name__}")
        except TargetError as error:
            reasons.append(f"{name}: {error.what.rstrip(chr(46))}")
    raise TargetError(
        f"CUDA cannot be used from Python here. {'; '.join(reasons)}.",
        "On a Jetson: sudo apt install cuda-cudart-12-6 (the version of its JetPack), or "
        "pip install pycuda; elsewhere set DEADWEIGHT_CUDA=ctypes:PATH to a libcudart.",
    )
