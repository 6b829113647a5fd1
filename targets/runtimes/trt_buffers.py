"""Buffers of an engine: mapped memory on an integrated GPU, elsewhere device memory with a copy.

On Orin the GPU does not cache mapped memory, which suits inputs and outputs: they are used once.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Tuple

import numpy as np

from ..machine.cuda import Cuda

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Buffer:
    """The buffer of one tensor. `device` is its address for TensorRT, `size` its bytes."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self._cuda = cuda
        self.size = size
        self.mapped = bool(cuda.attribute("integrated") and cuda.attribute("can_map_host_memory"))
        self._host = cuda.host_malloc(size, mapped=self.mapped)
        try:
            self.device = cuda.device_address(self._host) if self.mapped else cuda.malloc(size)
        except BaseException:
            cuda.host_free(self._host)
            raise

    def fill(self, array: NDArray[Any], stream: int) -> None:
        """Copies an array in, in the stream's order."""
        if not self.mapped:
            self._cuda.synchronize(stream)  # a previous copy may still read the host memory
        self._view(array.shape, str(array.dtype))[...] = array
        if not self.mapped:
            self._cuda.copy_to_device(self.device, self._host, array.nbytes, stream)

    def fetch(self, shape: Tuple[int, ...], dtype: str, stream: int) -> NDArray[Any]:
        """The buffer's array, valid after a synchronization of the stream until the next run."""
        view = self._view(shape, dtype)
        if not self.mapped:
            self._cuda.copy_to_host(self._host, self.device, view.nbytes, stream)
        return view

    def free(self) -> None:
        """Frees the memory."""
        self._cuda.host_free(self._host)
        if not self.mapped:
            self._cuda.free(self.device)

    def _view(self, shape: Tuple[int, ...], dtype: str) -> NDArray[Any]:
        count = int(np.prod(shape, dtype=np.int64))
        raw = (ctypes.c_uint8 * (count * np.dtype(dtype).itemsize)).from_address(self._host)
        view: NDArray[Any] = np.ctypeslib.as_array(raw).view(dtype).reshape(shape)
        return view
