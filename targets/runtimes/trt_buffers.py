"""Where an engine reads and writes: mapped memory on an integrated GPU, elsewhere device memory and a copy.

Mapped memory is not cached by the GPU on Orin: it is right for inputs and outputs, which are read and written
once.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Tuple

import numpy as np

from ..machine.cuda import Cuda

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Buffer:
    """Room for one tensor. `device` is the address that TensorRT is given, `size` the bytes that fit."""

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
        """Puts an array in, in the stream's order."""
        if not self.mapped:
            self._cuda.synchronize(stream)  # a copy of before may still read the host's side
        self._view(array.shape, str(array.dtype))[...] = array
        if not self.mapped:
            self._cuda.copy_to_device(self.device, self._host, array.nbytes, stream)

    def fetch(self, shape: Tuple[int, ...], dtype: str, stream: int) -> NDArray[Any]:
        """The array that is in here, once the stream was waited for; a later run writes over it."""
        view = self._view(shape, dtype)
        if not self.mapped:
            self._cuda.copy_to_host(self._host, self.device, view.nbytes, stream)
        return view

    def free(self) -> None:
        """Gives the memory back."""
        self._cuda.host_free(self._host)
        if not self.mapped:
            self._cuda.free(self.device)

    def _view(self, shape: Tuple[int, ...], dtype: str) -> NDArray[Any]:
        count = int(np.prod(shape, dtype=np.int64))
        raw = (ctypes.c_uint8 * (count * np.dtype(dtype).itemsize)).from_address(self._host)
        view: NDArray[Any] = np.ctypeslib.as_array(raw).view(dtype).reshape(shape)
        return view
