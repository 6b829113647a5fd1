"""The part of CUDA that an engine needs: memory, streams and captured graphs, by ctypes on libcudart.

Handles and addresses are plain numbers, as in TensorRT's functions. Where TensorRT works, a libcudart is
there: from JetPack, or from NVIDIA's wheels. Both use the device's primary context. Streams do not wait for
the default stream.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from ..errors import TargetError

ALIGNMENT_BYTES = 256
"""The alignment that TensorRT requires of every address."""

# Inputs and outputs: p pointer or handle, n size, i int, u unsigned, q 64 bits.
FUNCTIONS = {
    "cudaSetDevice": ("i", ""),
    "cudaSetDeviceFlags": ("u", ""),
    "cudaDriverGetVersion": ("", "i"),
    "cudaRuntimeGetVersion": ("", "i"),
    "cudaDeviceGetAttribute": ("ii", "i"),
    "cudaMemGetInfo": ("", "nn"),
    "cudaMalloc": ("n", "p"),
    "cudaFree": ("p", ""),
    "cudaHostAlloc": ("nu", "p"),
    "cudaFreeHost": ("p", ""),
    "cudaHostGetDevicePointer": ("pu", "p"),
    "cudaMemcpyAsync": ("ppnip", ""),
    "cudaStreamCreateWithFlags": ("u", "p"),
    "cudaStreamSynchronize": ("p", ""),
    "cudaStreamDestroy": ("p", ""),
    "cudaStreamBeginCapture": ("pi", ""),
    "cudaStreamEndCapture": ("p", "p"),
    "cudaGraphInstantiateWithFlags": ("pq", "p"),
    "cudaGraphLaunch": ("pp", ""),
    "cudaGraphDestroy": ("p", ""),
    "cudaGraphExecDestroy": ("p", ""),
}
_OUTPUTS_LAST = ("cudaStreamEndCapture",)
_C_TYPES: Dict[str, Any] = {
    "p": ctypes.c_void_p,
    "n": ctypes.c_size_t,
    "i": ctypes.c_int,
    "u": ctypes.c_uint,
    "q": ctypes.c_ulonglong,
}
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
_LIBRARIES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
_FOLDERS = ("/usr/local/cuda/lib64", "/usr/local/cuda/targets/aarch64-linux/lib")


class Cuda:
    """CUDA on device 0. Sizes are bytes; addresses, streams and graphs are numbers.

    Every method raises TargetError with CUDA's message where CUDA reports a failure.
    """

    def __init__(self, name: str, library: Any) -> None:
        self.name = name
        self._library = library
        library.cudaGetErrorName.restype = library.cudaGetErrorString.restype = ctypes.c_char_p
        self._do("cudaSetDevice", 0)

    def wait_by(self, how: str) -> bool:
        """How the process waits for the GPU: `spin`, or `block`: then its wake-up is part of each time.

        CUDA's own choice on a Jetson may be to block; False where it applies, because an old CUDA is in use
        already.
        """
        status, _ = self._call("cudaSetDeviceFlags", _WAITS[how])
        if status not in (0, _ACTIVE):
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
            status, captured = self._call("cudaStreamEndCapture", stream)
        if status or not captured[0]:
            raise self._failed("cudaStreamEndCapture", (stream,), status)
        try:
            return int(self._do("cudaGraphInstantiateWithFlags", captured[0], 0)[0])
        finally:
            self._do("cudaGraphDestroy", captured[0])

    def bound(self, name: str, *inputs: int) -> Callable[[], None]:
        """`cudaStreamSynchronize` or `cudaGraphLaunch` bound to these handles, for timing."""
        function = getattr(self._library, name)
        handles = [ctypes.c_void_p(each) for each in inputs]  # converted here, so that timing excludes it

        def checked() -> None:
            status = function(*handles)
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
                "The CUDA installation is faulty: reinstall it.",
            )
        return address

    def _call(self, name: str, *inputs: int) -> Tuple[int, Tuple[Any, ...]]:
        """The status and the outputs of a function of CUDA's runtime."""
        takes, gives = FUNCTIONS[name]
        outputs = [_C_TYPES[kind](0) for kind in gives]
        arguments = [_C_TYPES[kind](value) for kind, value in zip(takes, inputs)]
        pointers = [ctypes.byref(output) for output in outputs]
        ordered = [*arguments, *pointers] if name in _OUTPUTS_LAST else [*pointers, *arguments]
        status = int(getattr(self._library, name)(*ordered))
        return status, tuple(output.value or 0 for output in outputs)

    def _do(self, name: str, *inputs: int) -> Tuple[Any, ...]:
        status, outputs = self._call(name, *inputs)
        if status:
            raise self._failed(name, inputs, status)
        return outputs

    def _failed(self, name: str, inputs: Tuple[int, ...], status: int) -> TargetError:
        named, meaning = (
            getattr(self._library, ask)(status).decode() for ask in ("cudaGetErrorName", "cudaGetErrorString")
        )
        message = f"{name}({', '.join(map(str, inputs))}) gave {status}, {named}: {meaning}."
        if status == _OUT_OF_MEMORY:
            # Called directly: a second failure must not hide the first.
            failed, room = self._call("cudaMemGetInfo")
            free = "" if failed else f" {room[0] / 1e6:.0f} of {room[1] / 1e6:.0f} MB are free."
            return TargetError(
                f"The GPU is out of memory: {message}{free}",
                "Stop other programs that use the GPU, use a smaller batch, or use a smaller model.",
            )
        if status in _NO_DRIVER:
            what = "CUDA found no suitable driver"
            cure = "Install the CUDA of the driver's version; start a container with --runtime nvidia."
        else:
            what = "CUDA failed"
            cure = "Try again in a new process: after some GPU failures the old process cannot use CUDA."
        return TargetError(f"{what}: {message}", cure)


def open_cuda(choice: Optional[str] = None) -> Cuda:
    """Opens CUDA by a libcudart.

    `choice` is `ctypes:` and the path of a libcudart, by default the environment variable DEADWEIGHT_CUDA;
    without a path, the usual places are searched.

    Raises:
        TargetError: none loads, or CUDA does not start.
    """
    choice = choice or os.environ.get("DEADWEIGHT_CUDA") or "ctypes"
    way, _, path = choice.partition(":")
    if way != "ctypes":
        raise TargetError(f"There is no CUDA binding '{choice}'.", "Known: ctypes, ctypes:PATH.")
    reason = ""
    for name in [path] if path else _libraries():
        try:
            return Cuda(f"ctypes on {name}", ctypes.CDLL(name))
        except (OSError, AttributeError) as error:
            reason = str(error)
    raise TargetError(
        f"CUDA cannot be used from Python here: {reason}.",
        "On a Jetson: sudo apt install cuda-cudart-12-6 (the version of its JetPack); elsewhere set "
        "DEADWEIGHT_CUDA=ctypes:PATH to a libcudart.",
    )


def _libraries() -> List[str]:
    """Where a libcudart may be: the loader's path, NVIDIA's wheels (TensorRT's needs one), CUDA's folders."""
    home, found = os.environ.get("CUDA_HOME"), ctypes.util.find_library("cudart")
    wheels = [str(each) for place in sys.path for each in Path(place).glob("nvidia/*/lib/libcudart.so.*")]
    folders = [*([f"{home}/lib64"] if home else []), *_FOLDERS]
    inside = [f"{folder}/{_LIBRARIES[0]}" for folder in folders]
    return [*([found] if found else []), *_LIBRARIES, *wheels, *inside]
