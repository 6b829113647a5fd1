"""An opened model: named arrays in, named arrays out, whatever runs it.

One file a runtime (`ort.py` first). Only that file imports its runtime, and only when a model is opened.
`prepare` is there for the clock: inputs are checked and placed once, and what is timed is the run itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Dict, Mapping, Protocol, Tuple, Union

import numpy as np

from ..errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class TensorSpec:
    """An input or output. A dimension is a number, or the name of a free one, or None: free and nameless."""

    name: str
    shape: Tuple[Union[int, str, None], ...]
    dtype: str

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name}: {self.dtype}[{sizes}]"


class Session(Protocol):
    """A model that can be run until it is closed."""

    @property
    def runtime(self) -> str:
        """The runtime's name and version, as in `onnxruntime 1.23.0`."""
        ...

    @property
    def evidence(self) -> str:
        """What a time taken with it is: `measured`, `emulated` or `simulated`."""
        ...

    @property
    def inputs(self) -> Tuple[TensorSpec, ...]:
        """What `run` wants, in the model's order."""
        ...

    @property
    def outputs(self) -> Tuple[TensorSpec, ...]:
        """What `run` gives, in the model's order."""
        ...

    def run(self, inputs: Arrays) -> Dict[str, NDArray[Any]]:
        """Outputs by name. NaN among them is the caller's business.

        Raises:
            ModelError: inputs of a wrong name, shape or dtype, or the runtime gave up.
        """
        ...

    def prepare(self, inputs: Arrays) -> Callable[[], object]:
        """A function that runs the model once on these inputs, checked and in place: what a clock wants."""
        ...

    def close(self) -> None:
        """Frees the model. Closing twice is fine; running afterwards is a ModelError."""
        ...


def random_inputs(specs: Tuple[TensorSpec, ...], *, batch: int = 1, seed: int = 0) -> Dict[str, NDArray[Any]]:
    """Inputs for a timing: normal noise for floats, 0 and 1 for whole numbers, so that any index is in range.

    The first free dimension of an input is its batch.

    Raises:
        ModelError: another dimension is free as well, so that its size cannot be guessed.
    """
    generator = np.random.default_rng(seed)
    made: Dict[str, NDArray[Any]] = {}
    for spec in specs:
        shape = tuple(
            batch if axis == 0 and not isinstance(size, int) else size for axis, size in enumerate(spec.shape)
        )
        sizes = tuple(size for size in shape if isinstance(size, int))
        if len(sizes) < len(shape):
            raise ModelError(
                f"Input {spec} has a free dimension that is not its batch, so random inputs cannot be made.",
                "Give inputs of the usual size (profile, compare and gate take --inputs FILE.npz), or export "
                "the model with that dimension fixed, or fix it in the file: python -m "
                "onnxruntime.tools.make_dynamic_shape_fixed MODEL.onnx FIXED.onnx --dim_param NAME "
                "--dim_value SIZE.",
            )
        dtype = np.dtype(spec.dtype)
        try:
            if dtype.kind == "f":
                made[spec.name] = generator.standard_normal(sizes).astype(dtype)
            else:
                made[spec.name] = generator.integers(0, 2, size=sizes).astype(dtype)
        except MemoryError as error:
            raise ModelError(
                f"Input {spec} does not fit into memory with {batch} samples at once.", "Ask for fewer."
            ) from error
    return made


def checked_inputs(specs: Tuple[TensorSpec, ...], inputs: Arrays, *, model: str) -> Dict[str, NDArray[Any]]:
    """The inputs, contiguous and in the model's order, once names, shapes and dtypes were seen to fit.

    Raises:
        ModelError: they do not; it names every difference at once.
    """
    wrong = [f"'{name}' is missing" for name in (spec.name for spec in specs) if name not in inputs]
    wrong += [f"'{name}' is not an input" for name in inputs if name not in {spec.name for spec in specs}]
    for spec in specs:
        if spec.name not in inputs:
            continue
        given = np.asarray(inputs[spec.name])
        if given.dtype != np.dtype(spec.dtype):
            wrong.append(f"'{spec.name}' is {given.dtype}, not {spec.dtype}")
        if len(given.shape) != len(spec.shape) or any(
            isinstance(size, int) and size != got for size, got in zip(spec.shape, given.shape)
        ):
            wrong.append(f"'{spec.name}' has the shape {list(given.shape)}")
        elif math.prod(given.shape) == 0:
            wrong.append(f"'{spec.name}' holds nothing: its shape is {list(given.shape)}")
    if wrong:
        raise ModelError(
            f"{model} cannot take these inputs: {'; '.join(wrong)}.",
            f"It wants {', '.join(str(spec) for spec in specs)}.",
        )
    return {
        spec.name: np.ascontiguousarray(inputs[spec.name]).reshape(np.shape(inputs[spec.name]))
        for spec in specs
    }
