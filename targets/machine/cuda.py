"""CUDA, as far as an engine needs it: memory, a stream, and a captured graph.

Handles and addresses are plain numbers, because that is what TensorRT's own functions take. `open_cuda` tries
the ways of `cuda_calls.py` in turn and says of each why it did not work. All of them use the device's primary
context, which TensorRT uses too. Streams are created without the default stream's implicit waits.
"""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, List, Optional, Tuple

from ..errors import TargetError
from .cuda_calls import NOT_SUPPORTED, Calls, by_ctypes, by_pycuda

WAYS = ("ctypes", "pycuda")
ALIGNMENT_BYTES = 256
"""What TensorRT asks of every address that it is given."""

_ATTRIBUTES = {
    "streaming_multiprocessors": 16,
    "integrated": 18,
    "can_map_host_memory": 19,
    "compute_capability_major": 75,
    "compute_capability_minor": 76,
}
_NON_BLOCKING = 1
_MAPPED = 2
_TO_DEVICE, _TO_HOST = 1, 2
_RELAXED = 2
_OUT_OF_MEMORY = 2
_NO_DRIVER = (35, 3)


class Cuda:
    """CUDA on device 0. Sizes are bytes; addresses, streams and graphs are numbers.

    Every method raises TargetError where CUDA reports a failure, with CUDA's own words.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.name = calls.name
        self._do("cudaSetDevice", 0)

    def attribute(self, name: str) -> int:
        """A fact of the device: one of `integrated`, `can_map_host_memory`, `streaming_multiprocessors`,
        `compute_capability_major`, `compute_capability_minor`."""
        return int(self._do("cudaDeviceGetAttribute", _ATTRIBUTES[name], 0)[0])

    def compute_capability(self) -> str:
        """The device's architecture, as in `8.7`."""
        return ".".join(str(self.attribute(f"compute_capability_{part}")) for part in ("major", "minor"))

    def versions(self) -> Dict[str, str]:
        """CUDA versions that the driver can take and that the runtime is of, as in `12.6`."""
        found = {}
        for part, name in (("driver", "cudaDriverGetVersion"), ("runtime", "cudaRuntimeGetVersion")):
            number = self._do(name)[0]
            found[part] = f"{number // 1000}.{number % 1000 // 10}"
        return found

    def memory_bytes(self) -> Tuple[int, int]:
        """Free and total memory. On an integrated GPU `free` leaves out what the system could reclaim."""
        free, total = self._do("cudaMemGetInfo")
        return int(free), int(total)

    def malloc(self, size: int) -> int:
        """Device memory, aligned to 256 bytes."""
        return self._address("cudaMalloc", size)

    def free(self, address: int) -> None:
        """Gives device memory back."""
        self._do("cudaFree", address)

    def host_malloc(self, size: int, *, mapped: bool) -> int:
        """Page-locked memory of the host; with `mapped` the device can reach it as well."""
        return self._address("cudaHostAlloc", size, _MAPPED if mapped else 0)

    def host_free(self, address: int) -> None:
        """Gives page-locked memory back."""
        self._do("cudaFreeHost", address)

    def device_address(self, host_address: int) -> int:
        """Where the device finds mapped host memory."""
        return int(self._do("cudaHostGetDevicePointer", host_address, 0)[0])

    def copy_to_device(self, to: int, source: int, size: int, stream: int) -> None:
        """Copies from the host within a stream."""
        self._do("cudaMemcpyAsync", to, source, size, _TO_DEVICE, stream)

    def copy_to_host(self, to: int, source: int, size: int, stream: int) -> None:
        """Copies from the device within a stream."""
        self._do("cudaMemcpyAsync", to, source, size, _TO_HOST, stream)

    def stream(self) -> int:
        """A stream of its own, which does not wait for the default one."""
        return int(self._do("cudaStreamCreateWithFlags", _NON_BLOCKING)[0])

    def synchronize(self, stream: int) -> None:
        """Waits until all work of a stream is done."""
        self._do("cudaStreamSynchronize", stream)

    def stream_free(self, stream: int) -> None:
        """Gives a stream back."""
        self._do("cudaStreamDestroy", stream)

    def graph(self, stream: int, enqueue: Callable[[], object]) -> int:
        """What `enqueue` puts into the stream, captured to be launched at once.

        Raises:
            TargetError: something in there cannot be captured, or this binding has no graphs.
        """
        self._do("cudaStreamBeginCapture", stream, _RELAXED)
        try:
            enqueue()
        finally:
            # The capture must end, or the stream stays unusable; what `enqueue` raised is told first.
            status, captured = self._calls.call("cudaStreamEndCapture", stream)
        if status or not captured[0]:
            raise self._failed("cudaStreamEndCapture", (stream,), status)
        try:
            return int(self._do("cudaGraphInstantiateWithFlags", captured[0], 0)[0])
        finally:
            self._do("cudaGraphDestroy", captured[0])

    def launch(self, graph: int, stream: int) -> None:
        """Puts a captured graph into a stream."""
        self._do("cudaGraphLaunch", graph, stream)

    def bound(self, name: str, *inputs: int) -> Callable[[], None]:
        """`cudaStreamSynchronize` or `cudaGraphLaunch` with these handles, for a clock to call."""
        call = self._calls.bind(name, *inputs)

        def checked() -> None:
            status = call()
            if status:
                raise self._failed(name, inputs, status)

        return checked

    def graph_free(self, graph: int) -> None:
        """Gives a graph back."""
        self._do("cudaGraphExecDestroy", graph)

    def _address(self, name: str, size: int, *flags: int) -> int:
        address = int(self._do(name, size, *flags)[0])
        if not address or address % ALIGNMENT_BYTES:
            raise TargetError(
                f"CUDA gave the address {address:#x} for {size} bytes ({name}), which is not a multiple of "
                f"{ALIGNMENT_BYTES}.",
                "This is a fault of the CUDA installation: reinstall it, or choose another binding.",
            )
        return address

    def _do(self, name: str, *inputs: int) -> Tuple[Any, ...]:
        status, outputs = self._calls.call(name, *inputs)
        if status:
            raise self._failed(name, inputs, status)
        return outputs

    def _failed(self, name: str, inputs: Tuple[int, ...], status: int) -> TargetError:
        told = f"{name}({', '.join(map(str, inputs))}) gave {status}, {self._calls.words(status)}."
        if status == _OUT_OF_MEMORY:
            # Asked plainly: a second failure here must not hide the first.
            failed, room = self._calls.call("cudaMemGetInfo")
            free = "" if failed else f" {room[0] / 1e6:.0f} of {room[1] / 1e6:.0f} MB are free."
            return TargetError(
                f"The GPU's memory is spent: {told}{free}",
                "Stop other programs that use the GPU, ask for a smaller batch, or use a smaller model.",
            )
        if status == NOT_SUPPORTED:
            return TargetError(
                f"{self.name} cannot do this: {told}",
                "Run without a CUDA graph, or by libcudart: DEADWEIGHT_CUDA=ctypes.",
            )
        if status in _NO_DRIVER:
            return TargetError(
                f"CUDA finds no driver that serves it: {told}",
                "Install a CUDA of the driver's version; in a container, start it with --runtime nvidia.",
            )
        return TargetError(
            f"CUDA failed: {told}",
            "Try once more in a fresh process: after some failures of the GPU nothing works in the old one.",
        )


def open_cuda(choice: Optional[str] = None) -> Cuda:
    """CUDA by the way asked for, or else by the first that works: ctypes on libcudart, pycuda.

    `choice` is one of `WAYS`, or `ctypes:` and the path of a libcudart. Where it is None, the environment
    variable DEADWEIGHT_CUDA is looked at.

    Raises:
        TargetError: none works; it gives the reason for each.
    """
    choice = choice or os.environ.get("DEADWEIGHT_CUDA") or None
    way, _, path = (choice or "").partition(":")
    if choice is not None and (way not in WAYS or (path and way != "ctypes")):
        raise TargetError(
            f"There is no way to CUDA called '{choice}'.", f"Known: {', '.join(WAYS)}, ctypes:PATH."
        )
    openers: Dict[str, Callable[[], Calls]] = {
        "pycuda": by_pycuda,
        "ctypes": lambda: by_ctypes(path),
    }
    reasons: List[str] = []
    for name in WAYS if choice is None else (way,):
        try:
            return Cuda(openers[name]())
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            reasons.append(f"{name}: {str(error).strip() or type(error).__name__}")
        except TargetError as error:
            reasons.append(f"{name}: {error.what.rstrip(chr(46))}")
    raise TargetError(
        f"CUDA cannot be reached from Python here. {'; '.join(reasons)}.",
        "On a Jetson: sudo apt install cuda-cudart-12-6 (the version of its JetPack), or "
        "pip install pycuda; elsewhere, DEADWEIGHT_CUDA=ctypes:PATH names a libcudart.",
    )
