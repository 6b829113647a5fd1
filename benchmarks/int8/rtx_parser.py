"""NVIDIA's own parser and builder as a second opinion on our Q/DQ graphs, without a GPU.

TensorRT-RTX is another product than the TensorRT of a Jetson: another builder, for desktop GPUs, always
strongly typed. But its ONNX parser is the same source, and its builder compiles for a named GPU on any
machine. It is no part of deadweight: pip install --target DIR tensorrt-rtx-cu13-libs
tensorrt-rtx-cu13-bindings, and give DIR.
"""

from __future__ import annotations

import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: "
)
_TYPE = re.compile(r"Datatype: (\w+)")
WEIGHTED = ("correlation", "gemm", "deconvolution")  # what its layer information calls products


@dataclass(frozen=True)
class Opinion:
    """What the parser and the builder said of one file.

    Attributes:
        version: of TensorRT-RTX.
        refused: why the parser refused it, or the builder; empty where an engine was built.
        kinds: how many layers of the engine there are of each kind.
        products: of the layers that multiply by weights, the type of their input, by name.
    """

    version: str
    refused: str
    kinds: dict[str, int]
    products: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def opinion(path: Path, folder: Path | None = None, *, batches: tuple[int, int, int] = (1, 4, 8)) -> Opinion:
    """Parses and builds an ONNX file for a GPU of compute capability 8.6, the nearest to Orin's 8.7.

    Args:
        folder: where the two wheels are, if they are not installed.
        batches: least, usual and largest batch.

    Raises:
        ImportError: TensorRT-RTX is not there.
    """
    if folder is not None and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    import tensorrt_rtx_bindings as trt  # type: ignore[import-not-found]  # pyright: ignore[reportMissingImports]

    said: list[tuple[str, str]] = []

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            said.append((str(severity), message))

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        reasons = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        return Opinion(trt.__version__, f"parser: {reasons}", {}, {})
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    profile = builder.create_optimization_profile()
    for place in range(network.num_inputs):
        given = network.get_input(place)
        if -1 not in tuple(given.shape):
            continue
        profile.set_shape(given.name, *((size, *tuple(given.shape)[1:]) for size in batches))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        errors = [text for severity, text in said if "ERROR" in severity]
        return Opinion(trt.__version__, f"builder: {'; '.join(errors[:3])}", {}, {})
    layers = [
        found
        for _, text in said
        if "Layers:" in text
        for line in text.splitlines()
        if (found := _LAYER.match(line))
    ]
    kinds: dict[str, int] = {}
    for layer in layers:
        kinds[layer["kind"]] = kinds.get(layer["kind"], 0) + 1
    products = {
        layer["name"]: (_TYPE.findall(layer["inputs"]) or ["unknown"])[0]
        for layer in layers
        if layer["kind"] in WEIGHTED
    }
    return Opinion(trt.__version__, "", kinds, products)
