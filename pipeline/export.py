"""The stage "export": every network of the chain as ONNX, seen to compute what its module computes."""

from __future__ import annotations

from dataclasses import dataclass

from ..export.to_onnx import to_onnx
from .work import Work
from .workload import example_batch


@dataclass(frozen=True)
class Export:
    """Adds an ONNX file to every network of the chain that has none.

    Attributes:
        opset: 17 is the newest that TensorRT 8.5 and 8.6 parse.
    """

    opset: int = 17

    def __call__(self, work: Work) -> Work:
        result = work
        waiting = [v for v in work.variants if v.role == "chain" and "onnx" not in v.files]
        for index, variant in enumerate(waiting):
            work.progress(index, len(waiting), f"export {variant.name}")
            path = work.directory / variant.name / "model.onnx"
            to_onnx(work.model(variant), example_batch(work.workload), path, opset=self.opset)
            result = result.with_file(variant.name, "onnx", path)
        work.progress(len(waiting), len(waiting), "export")
        return result.logged("export", self)
