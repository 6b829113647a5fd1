"""The shim over CUDA: against our own libcudart everywhere, and against a real GPU by every way there is."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from deadweight.targets.errors import TargetError
from deadweight.targets.machine.cuda import WAYS, Cuda, open_cuda
from deadweight.targets.machine.cuda_calls import Calls

SOURCE = Path(__file__).parents[1] / "fake_tensorrt" / "cudart.c"
SIZE = 1 << 20


@pytest.fixture(scope="module")
def libcudart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our libcudart, whose device memory is the host's."""
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc here")
    library = tmp_path_factory.mktemp("cuda") / "libcudart.so"
    subprocess.run(["gcc", "-std=c11", "-shared", "-fPIC", "-o", str(library), str(SOURCE)], check=True)
    return library


@pytest.fixture(params=["fake", *WAYS])
def cuda(request: pytest.FixtureRequest) -> Cuda:
    """CUDA by one way; a real one only where there is a GPU."""
    if request.param == "fake":
        return open_cuda(f"ctypes:{request.getfixturevalue('libcudart')}")
    try:
        return open_cuda(request.param)
    except TargetError as error:
        pytest.skip(error.what.splitlines()[0][:200])


@pytest.fixture
def stream(cuda: Cuda) -> Iterator[int]:
    made = cuda.stream()
    yield made
    cuda.stream_free(made)


def seen(address: int, size: int = SIZE) -> NDArray[np.uint8]:
    """The bytes at an address of the host."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def test_the_device_says_what_it_is(cuda: Cuda) -> None:
    major, minor = cuda.compute_capability().split(".")
    assert 5 <= int(major) < 20
    assert 0 <= int(minor) < 10
    assert cuda.attribute("integrated") in (0, 1)
    assert cuda.attribute("streaming_multiprocessors") > 0
    free, total = cuda.memory_bytes()
    assert 0 < free <= total
    assert int(cuda.versions()["driver"].split(".")[0]) >= 10


def test_bytes_go_to_the_device_and_come_back(cuda: Cuda, stream: int) -> None:
    there, back = cuda.host_malloc(SIZE, mapped=False), cuda.host_malloc(SIZE, mapped=False)
    device = cuda.malloc(SIZE)
    given = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)
    seen(there)[:] = given
    seen(back)[:] = 0
    cuda.copy_to_device(device, there, SIZE, stream)
    cuda.copy_to_host(back, device, SIZE, stream)
    cuda.synchronize(stream)
    assert np.array_equal(seen(back), given)
    cuda.free(device)
    cuda.host_free(there)
    cuda.host_free(back)


def test_every_address_is_one_that_tensorrt_takes(cuda: Cuda) -> None:
    device = [cuda.malloc(size) for size in (1, 3, 257)]
    host = [cuda.host_malloc(size, mapped=True) for size in (1, 3, 257)]
    for address in (*device, *host, *(cuda.device_address(each) for each in host)):
        assert address % 256 == 0
    for each in device:
        cuda.free(each)
    for each in host:
        cuda.host_free(each)


def test_what_is_written_to_mapped_memory_is_what_the_device_reads(cuda: Cuda, stream: int) -> None:
    mapped, back = cuda.host_malloc(SIZE, mapped=True), cuda.host_malloc(SIZE, mapped=False)
    seen(mapped)[:] = 77
    cuda.copy_to_host(back, cuda.device_address(mapped), SIZE, stream)
    cuda.synchronize(stream)
    assert (seen(back) == 77).all()
    cuda.host_free(mapped)
    cuda.host_free(back)


def test_a_captured_graph_does_again_what_was_put_into_the_stream(cuda: Cuda, stream: int) -> None:
    there, back = cuda.host_malloc(SIZE, mapped=False), cuda.host_malloc(SIZE, mapped=False)
    device = cuda.malloc(SIZE)

    def both_ways() -> None:
        cuda.copy_to_device(device, there, SIZE, stream)
        cuda.copy_to_host(back, device, SIZE, stream)

    if cuda.name.startswith("pycuda"):
        with pytest.raises(TargetError, match="cudaErrorNotSupported"):
            cuda.graph(stream, both_ways)
        return
    seen(back)[:] = 0
    graph = cuda.graph(stream, both_ways)
    assert not seen(back).any(), "capturing must not run anything"
    for value in (1, 2):
        seen(there)[:] = value
        cuda.bound("cudaGraphLaunch", graph, stream)()
        cuda.synchronize(stream)
        assert (seen(back) == value).all()
    cuda.graph_free(graph)
    cuda.free(device)


def test_what_was_bound_beforehand_does_what_the_call_does(cuda: Cuda, stream: int) -> None:
    there, back = cuda.host_malloc(SIZE, mapped=False), cuda.host_malloc(SIZE, mapped=False)
    device = cuda.malloc(SIZE)
    wait = cuda.bound("cudaStreamSynchronize", stream)
    seen(there)[:] = 5
    cuda.copy_to_device(device, there, SIZE, stream)
    if not cuda.name.startswith("pycuda"):
        graph = cuda.graph(stream, lambda: cuda.copy_to_host(back, device, SIZE, stream))
        seen(back)[:] = 0
        cuda.bound("cudaGraphLaunch", graph, stream)()
        wait()
        assert (seen(back) == 5).all()
    cuda.copy_to_host(back, device, SIZE, stream)
    wait()
    assert (seen(back) == 5).all()


def test_a_capture_that_fails_leaves_the_stream_usable(cuda: Cuda, stream: int) -> None:
    if cuda.name.startswith("pycuda"):
        pytest.skip("pycuda has no graphs")

    def stumbles() -> None:
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        cuda.graph(stream, stumbles)
    cuda.synchronize(stream)


def test_the_host_waits_as_it_was_set(cuda: Cuda, stream: int) -> None:
    if cuda.name.startswith("pycuda"):
        with pytest.raises(TargetError, match="does not support this"):
            cuda.wait_by("block")
        assert cuda.wait_by("spin")
        return
    library = ctypes.CDLL(cuda.name.split(" on ")[1])
    for how, flag in (("spin", 1), ("block", 4), ("spin", 1)):
        assert cuda.wait_by(how)
        flags = ctypes.c_uint()
        assert library.cudaGetDeviceFlags(ctypes.byref(flags)) == 0
        assert flags.value & 7 == flag
        cuda.synchronize(stream)


def test_memory_that_is_not_there_is_refused_with_what_is_free(cuda: Cuda) -> None:
    free, total = cuda.memory_bytes()
    with pytest.raises(TargetError, match="GPU is out of memory") as caught:
        cuda.malloc(4 * total)
    assert "MB are free" in caught.value.what
    assert "smaller batch" in caught.value.cure
    assert cuda.memory_bytes()[0] == pytest.approx(free, rel=0.2)


def test_a_failure_carries_cudas_own_words(cuda: Cuda) -> None:
    if cuda.name.startswith("pycuda"):
        pytest.skip("pycuda checks the arguments itself")
    with pytest.raises(TargetError, match=r"cudaFreeHost\(4096\) gave 1, cudaErrorInvalidValue: invalid"):
        cuda.host_free(4096)


def test_what_is_freed_is_free_again(libcudart: Path) -> None:
    cuda = open_cuda(f"ctypes:{libcudart}")
    before = cuda.memory_bytes()[0]
    address = cuda.malloc(SIZE)
    assert cuda.memory_bytes()[0] == before - SIZE
    cuda.free(address)
    assert cuda.memory_bytes()[0] == before


def test_a_machine_without_cuda_hears_why_of_every_way() -> None:
    code = (
        "import sys, ctypes.util, ctypes\n"
        "sys.modules['pycuda'] = None\n"
        "ctypes.util.find_library = lambda name: None\n"
        "import deadweight.targets.machine.cuda_calls as calls\n"
        "calls._LIBRARIES = ('libcudart_that_is_nowhere.so',)\n"
        "from deadweight.targets.machine.cuda import open_cuda\n"
        "from deadweight.targets.errors import TargetError\n"
        "try: open_cuda()\n"
        "except TargetError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pycuda: " in result
    assert "ctypes: no libcudart_that_is_nowhere.so in the loader's path" in result
    assert "pip install" in result


def test_a_way_that_is_unknown_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TargetError, match="no CUDA binding 'cupy'") as caught:
        open_cuda("cupy")
    assert "ctypes, pycuda" in caught.value.cure


def test_the_environment_chooses_a_way_too(libcudart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEADWEIGHT_CUDA", f"ctypes:{libcudart}")
    assert open_cuda().name == f"ctypes on {libcudart}"


def answering(status: int) -> Cuda:
    """CUDA by a binding that opens the device and answers anything else with this status."""

    def call(name: str, *inputs: int) -> tuple[int, tuple[int, ...]]:
        return (0, ()) if name == "cudaSetDevice" else (status, (0,))

    return Cuda(Calls("a binding", call, lambda status: f"status {status}", lambda *_: lambda: status))


def test_a_binding_without_graphs_refuses_them_and_blocking_with_the_cure() -> None:
    cuda = answering(801)  # as pycuda does
    assert cuda.wait_by("spin")
    with pytest.raises(TargetError, match="a binding does not support this") as caught:
        cuda.graph(1, lambda: None)
    assert "--cuda-graph and --sync block" in caught.value.cure
    with pytest.raises(TargetError, match="a binding does not support this"):
        cuda.wait_by("block")
    assert not answering(708).wait_by("block"), "an old CUDA that is in use waits its own way"
