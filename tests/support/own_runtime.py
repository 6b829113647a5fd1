"""A runtime of a user's own: ONNX's reference evaluator, in a file beside a recipe or a board's TOML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deadweight import Runtime, Session, TensorSpec


class ReferenceSession:
    """A model in the reference evaluator; see `deadweight.Session`."""

    evidence = "measured"

    def __init__(self, path: Path) -> None:
        import onnx
        from onnx.reference import ReferenceEvaluator

        self.runtime = f"onnx reference {onnx.__version__}"
        self._evaluator = ReferenceEvaluator(str(path))
        graph = onnx.load(str(path)).graph
        self.inputs = tuple(_spec(value) for value in graph.input)
        self.outputs = tuple(_spec(value) for value in graph.output)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        found = self._evaluator.run(None, {name: np.asarray(array) for name, array in inputs.items()})
        return {spec.name: array for spec, array in zip(self.outputs, found, strict=True)}

    def prepare(self, inputs: Mapping[str, Any]) -> Callable[[], object]:
        return lambda: self._evaluator.run(None, dict(inputs))

    def close(self) -> None:
        """Nothing is held but Python objects."""


def _spec(value: Any) -> TensorSpec:
    from onnx import helper

    kind = value.type.tensor_type
    sizes = tuple(axis.dim_value or axis.dim_param or None for axis in kind.shape.dim)
    return TensorSpec(value.name, sizes, str(helper.tensor_dtype_to_np_dtype(kind.elem_type)))


def opened(path: Path, *, threads: int = 1) -> Session:
    """Opens a file. The evaluator has one thread, whatever is asked for."""
    return ReferenceSession(path)


RUNTIME = Runtime(
    name="onnx-reference",
    title="ONNX's reference evaluator",
    library="onnx",
    cure="Install it: pip install onnx",
    open=opened,
)
NOT_INSTALLED = Runtime(
    name="absent",
    title="Absent",
    library="no_such_runtime",
    cure="Install it: pip install no-such-runtime",
    open=opened,
)
