"""The stage "quantize": the newest network in INT8, with ranges taken from the calibration split.

Ranges are taken after pruning and tuning, of the very file that is shipped. The Q/DQ graph is written in
the dialect of the target's runtime: TensorRT's symmetric one, or the one that ONNX Runtime on x86 runs
without a convolution left in float.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from ..export import adequacy
from ..export.calibrate import calibrate
from ..export.histogram import Method
from ..export.parity import compare_files
from ..export.placement import Dialect
from ..export.to_qdq import to_qdq
from ..targets.artifact import Artifact, write_json
from ..targets.session import open_session
from .export import COMPARED, hop_words
from .linted import held_against_tensorrt
from .work import Variant, Work
from .workload import inputs_of, score_of, session_predict


@dataclass(frozen=True)
class Quantize:
    """Adds the network "int8".

    Attributes:
        method: how ranges follow from activations: "minmax", "percentile", "entropy" or "mse".
    """

    method: Method = "minmax"

    def __call__(self, work: Work) -> Work:
        source = work.latest("onnx").path("onnx")
        work.progress(0, 3, "quantize: calibrate")
        ranges = calibrate(source, inputs_of(work.workload, "calibration"), method=self.method)
        write_json(work.directory / "ranges.json", ranges.to_json())
        work.progress(1, 3, "quantize: write")
        path = work.directory / "int8" / "model.onnx"
        dialect: Dialect = "tensorrt" if work.target.runtime == "tensorrt" else "x86"
        quantized = to_qdq(source, ranges, path, dialect=dialect)
        rounded = {name: ranges.adequacy[name] for name in quantized.tensors}
        found = held_against_tensorrt(path, work.target, name="int8")
        work.progress(2, 3, "quantize: compare")
        batches = itertools.islice(inputs_of(work.workload, "calibration"), COMPARED)
        hop = compare_files(source, path, batches, kind="lossy", name="ONNX -> INT8")
        session = open_session(path)
        score = score_of(work.workload, session_predict(session), "validation")
        session.close()
        words = (
            f"{self.method} ranges, {dialect} dialect, validation {work.workload.score_name} {score:.4f}",
            hop_words("int8", hop),
            *adequacy.words(rounded, samples=ranges.samples, method=self.method),
            *found,
        )
        result = work.with_variant(Variant("int8", {"onnx": Artifact.of(path)}))
        return result.with_artifact("ranges", work.directory / "ranges.json").logged("quantize", self, *words)
