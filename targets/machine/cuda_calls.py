"""CUDA bindings: libcudart by ctypes, and pycuda. Each is one function that calls CUDA functions by name.

JetPack has libcudart; pycuda must be compiled on the board. A `Call` takes the name of a function of CUDA's
runtime and its inputs as integers, and returns the status and the outputs as integers. pycuda binds only the
driver; a table maps the runtime's functions to it, in the primary context, because TensorRT allocates there
(pycuda.autoinit would create another context).
"""

from __future__ import annotations

import atexit
import ctypes
import ctypes.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

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
_LIBRARIES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
_FOLDERS = ("/usr/local/cuda/lib64", "/usr/local/cuda/targets/aarch64-linux/lib")
NOT_SUPPORTED = 801
_MAPPED = 2

Call = Callable[..., Tuple[int, Tuple[Any, ...]]]


@dataclass(frozen=True)
class Calls:
    """A CUDA binding: its name with its version, the call, and the message of a status.

    `bind` prepares a call without outputs, so that timing excludes the conversion of its arguments. It
    returns a function that returns the status.
    """

    name: str
    call: Call
    words: Callable[[int], str]
    bind: Callable[..., Callable[[], int]]


def by_ctypes(path: str = "") -> Calls:
    """The runtime's library, at `path` or in the usual folders; an OSError if none loads."""
    home = os.environ.get("CUDA_HOME")
    folders = ([f"{home}/lib64"] if home else []) + list(_FOLDERS)
    # The folders of NVIDIA's wheels: TensorRT's wheel needs one.
    wheels = [str(each) for place in sys.path for each in Path(place).glob("nvidia/*/lib/libcudart.so.*")]
    found = ctypes.util.find_library("cudart")
    names = [path] if path else [*([found] if found else []), *_LIBRARIES, *wheels]
    if not path:
        names += [f"{folder}/{_LIBRARIES[0]}" for folder in folders]
    name, library = _load_first(names, folders)
    library.cudaGetErrorName.restype = library.cudaGetErrorString.restype = ctypes.c_char_p

    def call(name: str, *inputs: int) -> Tuple[int, Tuple[Any, ...]]:
        takes, gives = FUNCTIONS[name]
        function = getattr(library, name)
        outputs = [_C_TYPES[kind](0) for kind in gives]
        arguments = [_C_TYPES[kind](value) for kind, value in zip(takes, inputs)]
        pointers = [ctypes.byref(output) for output in outputs]
        status = int(
            function(*arguments, *pointers) if name in _OUTPUTS_LAST else function(*pointers, *arguments)
        )
        return status, tuple(output.value or 0 for output in outputs)

    def words(status: int) -> str:
        return f"{library.cudaGetErrorName(status).decode()}: {library.cudaGetErrorString(status).decode()}"

    def bind(name: str, *inputs: int) -> Callable[[], int]:
        function = getattr(library, name)
        handles = [ctypes.c_void_p(each) for each in inputs]
        return lambda: int(function(*handles))

    return Calls(f"ctypes on {name}", call, words, bind)


def _load_first(names: Sequence[str], folders: Sequence[str]) -> Tuple[str, Any]:
    """The first library that loads; a single name raises its own error."""
    reasons: List[str] = []
    for name in names:
        try:
            return name, ctypes.CDLL(name)
        except OSError as error:
            if len(names) == 1:
                raise
            reasons.append(str(error))
    raise OSError(f"no {_LIBRARIES[0]} in the loader's path, nor in {', '.join(folders)} ({reasons[-1]})")


def by_pycuda() -> Calls:
    """pycuda, in the device's primary context; it has no CUDA graphs.

    Raises:
        ImportError: it is not installed, or does not import.
        OSError: it finds no device.
    """
    import pycuda  # pyright: ignore[reportMissingImports]
    import pycuda.driver as driver  # pyright: ignore[reportMissingImports]

    try:
        driver.init()
        context = driver.Device(0).retain_primary_context()
    except driver.Error as error:
        raise OSError(str(error)) from error
    context.push()
    atexit.register(driver.Context.pop)  # otherwise pycuda aborts the process
    objects: Dict[int, Any] = {}
    table = _driver_table(driver, objects)

    def call(name: str, *inputs: int) -> Tuple[int, Tuple[Any, ...]]:
        if name not in table:
            return NOT_SUPPORTED, ()
        try:
            outputs = table[name](*inputs)
        except driver.MemoryError:
            return 2, ()
        except driver.Error as error:
            failures[999] = str(error)
            return 999, ()
        return 0, outputs if isinstance(outputs, tuple) else () if outputs is None else (outputs,)

    failures: Dict[int, str] = {
        2: "cudaErrorMemoryAllocation: out of memory",
        NOT_SUPPORTED: "cudaErrorNotSupported: pycuda has no such function",
    }

    def bind(name: str, *inputs: int) -> Callable[[], int]:
        return lambda: call(name, *inputs)[0]

    return Calls(f"pycuda {pycuda.VERSION_TEXT}", call, lambda status: failures.get(status, "unknown"), bind)


def _driver_table(driver: Any, objects: Dict[int, Any]) -> Dict[str, Callable[..., Any]]:
    """The runtime's functions by pycuda; `objects` has its objects by handle."""
    attributes = driver.device_attribute
    numbers = {
        16: attributes.MULTIPROCESSOR_COUNT,
        18: attributes.INTEGRATED,
        19: attributes.CAN_MAP_HOST_MEMORY,
        75: attributes.COMPUTE_CAPABILITY_MAJOR,
        76: attributes.COMPUTE_CAPABILITY_MINOR,
    }

    def keep(handle: int, thing: Any) -> int:
        objects[handle] = thing
        return handle

    def drop(handle: int) -> None:
        objects.pop(handle)

    def host(size: int, flags: int) -> int:
        mapped = driver.host_alloc_flags.DEVICEMAP if flags & _MAPPED else 0
        array = driver.pagelocked_empty(size, "uint8", mem_flags=mapped)
        return keep(array.ctypes.data, array)

    def copy(to: int, source: int, size: int, kind: int, stream: int) -> None:
        if kind == 1:
            driver.memcpy_htod_async(to, (ctypes.c_byte * size).from_address(source), objects[stream])
        else:
            driver.memcpy_dtoh_async((ctypes.c_byte * size).from_address(to), source, objects[stream])

    def malloc(size: int) -> int:
        allocation = driver.mem_alloc(size)
        return keep(int(allocation), allocation)

    def stream(flags: int) -> int:
        made = driver.Stream(flags)
        return keep(int(made.handle), made)

    def wait(handle: int) -> None:
        # It spins, since pycuda cannot set how the driver waits.
        while not objects[handle].is_done():
            pass

    return {
        "cudaSetDevice": lambda device: None,
        "cudaDriverGetVersion": driver.get_driver_version,
        "cudaRuntimeGetVersion": driver.get_driver_version,
        "cudaDeviceGetAttribute": lambda number, device: driver.Device(device).get_attribute(numbers[number]),
        "cudaMemGetInfo": lambda: tuple(driver.mem_get_info()),
        "cudaMalloc": malloc,
        "cudaFree": drop,
        "cudaHostAlloc": host,
        "cudaFreeHost": drop,
        "cudaHostGetDevicePointer": lambda pointer, flags: int(objects[pointer].base.get_device_pointer()),
        "cudaMemcpyAsync": copy,
        "cudaStreamCreateWithFlags": stream,
        "cudaStreamSynchronize": wait,
        "cudaStreamDestroy": drop,
    }
