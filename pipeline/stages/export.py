"""The stage "export": every network, controls too, as an ONNX file that was compared with its module.

An exporter can be wrong without an error, so each file runs beside its module on calibration data; the first
layer that differs is named. For a board with TensorRT the file is also checked against TensorRT's rules, so
that a refusal is known before the board is used.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from ...export.lint.check import lint_sentences, takes
from ...export.onnx_graph.graph import load
from ...export.parity.compare import Hop, compare_module
from ...export.to_onnx import OPSETS, to_onnx
from ..work import Work
from ..workload import example_batch, inputs_of

COMPARED = 4  # batches of the calibration split


@dataclass(frozen=True)
class Export:
    """Adds an ONNX file to every network without one.

    Attributes:
        opset: 17 is the newest that TensorRT 8.5 and 8.6 parse.
    """

    opset: Annotated[int, Field(ge=OPSETS[0], le=OPSETS[-1])] = OPSETS[0]
    writes_onnx: ClassVar[bool] = True

    def __call__(self, work: Work) -> Work:
        result, words = work, []
        waiting = [variant for variant in work.variants if "onnx" not in variant.files]
        for index, variant in enumerate(waiting):
            work.progress(index, len(waiting), f"export {variant.name}")
            model, path = work.model(variant), work.directory / variant.name / "model.onnx"
            to_onnx(
                model,
                example_batch(work.workload),
                path,
                opset=self.opset,
                spell_out_layer_norm=not takes(work.target, "LayerNormalization"),
            )
            batches = itertools.islice(inputs_of(work.workload, "calibration"), COMPARED)
            words.append(hop_sentence(variant.name, compare_module(model, load(path), batches)))
            if variant.role == "chain":  # controls have the operators and widths of the pruned network
                words += lint_sentences(path, work.target, name=variant.name)
            result = result.with_file(variant.name, "onnx", path)
        work.progress(len(waiting), len(waiting), "export")
        return result.logged("export", self, *words)


def hop_sentence(name: str, hop: Hop) -> str:
    flips = f", {len(hop.flips)} of {hop.samples} labels flip" if hop.labels else ""
    largest = max((difference.relative_largest for difference in hop.outputs.values()), default=0.0)
    difference = f"largest difference {largest:.1e}{flips}" if hop.outputs else "no output can be judged"
    decided = "".join(
        f"; {output} is behind {operator}, so {', '.join(hop.outputs) or 'nothing'} was judged"
        for output, operator in hop.decided.items()
    )
    return f"{name}: {difference}{decided}"
