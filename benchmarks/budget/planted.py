"""A planted clock: times that follow from a file's sizes, with steps, overheads and noise, all known.

No file is run. What a network costs in truth is `Clock.true_s`; `Clock.together` is what times files for the
table, with noise on every block.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deadweight.export.onnx_graph.counts import Shapes
from deadweight.targets.machine.probe import conditions
from deadweight.targets.timing.measurement import Measurement, Protocol


@dataclass
class Clock:
    """Widths are rounded up to `step`; each call costs `call_s`, each segment alone a reorder more."""

    step: int
    noise: float = 0.05
    call_s: float = 5e-6
    reorder_s: float = 4e-6
    seed: int = 0
    evidence: str = "simulated"
    timings: int = 0
    random: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def true_s(self, model: onnx.ModelProto) -> float:
        """Seconds of a file: whole steps of its layers' rows and columns, and what is there once."""
        sizes = Shapes.of(model, 1).sizes
        weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
        total, layers = self.call_s, 0
        for node in model.graph.node:
            if node.op_type not in ("Conv", "Gemm", "MatMul"):
                continue
            rows, columns, *kernel = weights[node.input[1]]
            whole = [-(-size // self.step) * self.step for size in (rows, columns)]
            places = int(np.prod(sizes[node.output[0]][2:])) if node.op_type == "Conv" else 1
            total += 1e-10 * whole[0] * whole[1] * int(np.prod(kernel)) * places
            layers += 1
        return total + (self.reorder_s if layers == 1 else 0.0)

    def chain_s(self, widths: np.ndarray[Any, np.dtype[np.int64]], *, size: int = 8) -> Any:
        """float64[networks]: seconds of chains of these widths, int64[networks, layers]."""
        ends = [np.full((len(widths), 1), each) for each in (3, 10)]
        whole = -(-np.hstack([ends[0], widths, ends[1]]) // self.step) * self.step
        return self.call_s + 9e-10 * size**2 * (whole[:, 1:] * whole[:, :-1]).sum(1)

    def together(self, files: Mapping[str, Path], protocol: Protocol) -> dict[str, Measurement]:
        """Measurements of files, as `time_together` makes them."""
        found, run_id, facts = {}, uuid.uuid4().hex, conditions()
        for name, path in files.items():
            self.timings += 1
            true = self.true_s(onnx.load(path))
            drawn = (
                true * np.exp(self.noise * self.random.standard_normal()) * np.ones((protocol.events, 3, 1))
            )
            found[name] = Measurement(
                name=name,
                model_sha256="0" * 64,
                file_bytes=path.stat().st_size,
                run_id=run_id,
                wall_ns=np.maximum(1, (drawn * 1e9 * 1000)).astype(np.int64),
                cpu_ns=None,
                runs=1000,
                protocol=protocol,
                conditions={**facts, "state_after": facts["state"]},
                evidence=self.evidence,
            )
        return found


def chain(path: Path, widths: list[int], *, size: int = 8, seed: int = 0) -> Path:
    """Writes a chain of 3 x 3 convolutions with these widths, between 3 inputs and 10 outputs."""
    rng = np.random.default_rng(seed)
    nodes, constants, last, given = [], [], "x", 3
    for at, width in enumerate([*widths, 10]):
        weight = rng.standard_normal((width, given, 3, 3)).astype(np.float32)
        constants.append(numpy_helper.from_array(weight, f"w{at}"))
        out = "y" if at == len(widths) else f"c{at}"
        nodes.append(helper.make_node("Conv", [last, f"w{at}"], [out], name=f"conv{at}", pads=[1, 1, 1, 1]))
        if out != "y":
            nodes.append(helper.make_node("Relu", [out], [f"r{at}"], name=f"relu{at}"))
        last, given = f"r{at}", width
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10, size, size])],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
