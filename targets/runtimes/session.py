"""The session: an opened model of any runtime, from named arrays to named arrays.

One file per runtime (such as `ort.py`) imports that runtime, only when a model is opened. `prepare` is for
timing: inputs are checked and placed once, so that only the run is timed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Protocol, Sequence, Tuple, Union

import numpy as np

from ..errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .trt_memory import Part

    Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class TensorSpec:
    """An input or output. A dimension is an int: fixed; a str: symbolic; or None: unknown."""

    name: str
    shape: Tuple[Union[int, str, None], ...]
    dtype: str

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether an array of this shape is one."""
        same = len(self.shape) == len(shape)
        return same and all(not isinstance(size, int) or size == got for size, got in zip(self.shape, shape))

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name}: {self.dtype}[{sizes}]"


@dataclass(frozen=True, eq=False)
class ProcessTimes:
    """What a program's process measured of one model, for `Runtime.time_process`."""

    wall_ns: NDArray[np.int64]
    """int64[samples]: the time of each run in nanoseconds, without warm-up, in order."""
    evidence: str
    """As a session's."""
    inputs: Tuple[str, ...]
    """dtype and shape of each input, as in `float32[1, 3, 32, 32]`."""
    remark: str
    """What the times contain, printed beside the verdict."""


class Session(Protocol):
    """A model that can be run until it is closed."""

    @property
    def runtime(self) -> str:
        """The runtime's name and version, as in `onnxruntime 1.23.0`."""
        ...

    @property
    def evidence(self) -> str:
        """The kind of its times: `measured`, `emulated` or `simulated`."""
        ...

    @property
    def inputs(self) -> Tuple[TensorSpec, ...]:
        """The inputs of `run`, in the model's order."""
        ...

    @property
    def outputs(self) -> Tuple[TensorSpec, ...]:
        """The outputs of `run`, in the model's order."""
        ...

    def run(self, inputs: Arrays) -> Dict[str, NDArray[Any]]:
        """Outputs by name, which may have NaN.

        Raises:
            ModelError: an input has a wrong name, shape or dtype, or the runtime failed.
        """
        ...

    def prepare(self, inputs: Arrays) -> Callable[[], object]:
        """A function that runs the model once on these inputs, which are checked and placed, for timing."""
        ...

    def close(self) -> None:
        """Frees the model. Closing twice is allowed; running afterwards is a ModelError."""


class EngineSession(Session, Protocol):
    """A session that shows the inside of an engine."""

    def layer_times(self, inputs: Arrays) -> Dict[str, List[float]]:
        """Seconds of each layer, in one run or more, by the runtime's names, in execution order.

        The runtime waits after every layer here: the sum exceeds the latency of a run.
        """
        ...

    def inspect(self) -> str:
        """The JSON of TensorRT's inspector about the layers."""
        ...

    def memory(self) -> Tuple[Part, ...]:
        """The engine's memory, in parts, each with its source."""
        ...


def random_inputs(specs: Tuple[TensorSpec, ...], *, batch: int = 1, seed: int = 0) -> Dict[str, NDArray[Any]]:
    """Inputs for a timing: normal noise for floats, 0 and 1 for integers, so that any index is in range.

    A dynamic first dimension of an input is its batch.

    Raises:
        ModelError: another dimension is dynamic too, so its size is unknown.
    """
    generator = np.random.default_rng(seed)
    arrays: Dict[str, NDArray[Any]] = {}
    for spec in specs:
        shape = tuple(
            batch if axis == 0 and not isinstance(size, int) else size for axis, size in enumerate(spec.shape)
        )
        sizes = tuple(size for size in shape if isinstance(size, int))
        if len(sizes) < len(shape):
            raise ModelError(
                f"Input {spec} has a dynamic dimension besides its batch, so random inputs are impossible.",
                "Give inputs of the usual size (profile, compare and gate take --inputs FILE.npz), or export "
                "the model with that dimension fixed, or fix it in the file: python -m "
                "onnxruntime.tools.make_dynamic_shape_fixed MODEL.onnx FIXED.onnx --dim_param NAME "
                "--dim_value SIZE.",
            )
        dtype = np.dtype(spec.dtype)
        try:
            if dtype.kind == "f":
                arrays[spec.name] = generator.standard_normal(sizes).astype(dtype)
            else:
                arrays[spec.name] = generator.integers(0, 2, size=sizes).astype(dtype)
        except MemoryError as error:
            raise ModelError(
                f"Input {spec} does not fit into memory with {batch} samples at once.", "Use a smaller batch."
            ) from error
    return arrays


def checked_inputs(specs: Tuple[TensorSpec, ...], inputs: Arrays, *, model: str) -> Dict[str, NDArray[Any]]:
    """Checks names, shapes and dtypes of inputs; returns them contiguous and in the model's order.

    TensorRT 8 has no INT64: int64 values for an int32 input are cast, so that inputs of the ONNX file fit.
    """
    faults = [f"'{name}' is missing" for name in (spec.name for spec in specs) if name not in inputs]
    faults += [f"'{name}' is not an input" for name in inputs if name not in {spec.name for spec in specs}]
    arrays = {spec.name: np.asarray(inputs[spec.name]) for spec in specs if spec.name in inputs}
    for spec in specs:
        if spec.name not in inputs:
            continue
        array = arrays[spec.name]
        if array.dtype == np.int64 and spec.dtype == "int32":
            outside = array[array != array.astype(np.int32)]
            faults += [f"'{spec.name}' has {outside[0]}, too large for int32"] if outside.size else []
            array = arrays[spec.name] = array.astype(np.int32)
        if array.dtype != np.dtype(spec.dtype):
            faults.append(f"'{spec.name}' is {array.dtype}, not {spec.dtype}")
        if not spec.fits(array.shape):
            faults.append(f"'{spec.name}' has the shape {list(array.shape)}")
        elif math.prod(array.shape) == 0 and 0 not in spec.shape:
            faults.append(f"'{spec.name}' is empty: its shape is {list(array.shape)}")
    if faults:
        raise ModelError(
            f"{model} cannot run on these inputs: {'; '.join(faults)}.",
            f"It needs {', '.join(str(spec) for spec in specs)}.",
        )
    return {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
