"""What an engine is made of, read from TensorRT's own exports into one plain form.

    layers   the inspector's JSON (engine inspector, or trtexec --exportLayerInfo): 8.x and 10 list the ends
             as "Bindings", names only; 11 as "I/O Tensors", with type and shape. An engine that was built
             without detailed verbosity has names instead of layers
    profile  trtexec --exportProfile, or an IProfiler's times as {name: milliseconds, or a list of them}
    times    trtexec --exportTimes: one entry a run of the whole engine

Layers and times are joined by name. A layer without a time was not run by itself (a view, or one whose time
was charged to another); a time without a layer is kept, with what its name tells. Times come from a profiler
that synchronizes after every layer: their sum is not the latency.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ..errors import ArtifactError
from .names import modules_of, nodes_of, served_by

KINDS = ("compute", "conversion", "reorder", "quantize", "view", "other")
PRODUCTS = ("conv", "gemm", "matmul", "matrix", "deconv", "fullyconnected")
_TYPES = (
    ("int8", r"\bint8\b|\bINT8\b|kINT8"),
    ("fp8", r"\bfp8\b|\bFP8\b"),
    ("bf16", r"\bbf16\b|\bBFloat16\b|\bBF16\b"),
    ("fp16", r"\bfp16\b|\bhalf\b|kHALF"),
    ("int4", r"\bint4\b"),
    ("int64", r"\bint64\b"),
    ("int32", r"\bint32\b"),
    ("bool", r"\bbool\b"),
    ("fp32", r"\bfp32\b|\bfloat\b|\bfloat32\b|kFLOAT"),
)


@dataclass(frozen=True)
class Tensor:
    """A tensor between layers: its element type ("" where not told) and how it lies in memory."""

    name: str
    shape: Tuple[int, ...]
    dtype: str
    format: str


@dataclass(frozen=True)
class EngineLayer:
    """One layer. `latency_s` is the median of a run in seconds, None where it was not timed."""

    name: str
    type: str
    """TensorRT's own word, as in CaskConvolution; "" where not told."""
    kind: str
    precision: str
    """The type that it computes in: that of its weights, else of what it reads."""
    tactic: str
    inputs: Tuple[Tensor, ...]
    outputs: Tuple[Tensor, ...]
    nodes: Tuple[str, ...]
    modules: Tuple[str, ...]
    latency_s: Optional[float] = None
    device: str = "GPU"

    @property
    def product(self) -> bool:
        """Whether it multiplies with weights: what one would have in INT8."""
        return self.kind == "compute" and any(word in self.type.lower() for word in PRODUCTS)


@dataclass(frozen=True)
class Engine:
    """All layers in the order they run, what goes in and out, and the runs of the whole engine."""

    name: str
    layers: Tuple[EngineLayer, ...]
    ends: Tuple[str, ...]
    runs_s: Tuple[float, ...] = ()
    """GPU time of each run, in seconds."""
    remarks: Tuple[str, ...] = ()

    @property
    def layer_sum_s(self) -> float:
        """All layers' times together."""
        return sum(layer.latency_s or 0.0 for layer in self.layers)

    def of_kind(self, kind: str) -> Tuple[EngineLayer, ...]:
        """The layers of one kind."""
        return tuple(layer for layer in self.layers if layer.kind == kind)

    def fallbacks(self) -> Tuple[Tuple[str, str], ...]:
        """Layers that do not run where or how the rest does, and why: (name, reason).

        Products in float in an engine that has INT8 ones, and GPU layers in an engine that has DLA ones.
        """
        found: List[Tuple[str, str]] = []
        whole = any(layer.product and layer.precision == "int8" for layer in self.layers)
        on_dla = any(layer.device == "DLA" for layer in self.layers)
        for layer in self.layers:
            if whole and layer.product and layer.precision not in ("int8", "fp8", "int4", ""):
                found.append((layer.name, f"computes in {layer.precision}, others in int8"))
            if on_dla and layer.device != "DLA" and layer.kind != "view":
                found.append((layer.name, "runs on the GPU, others on the DLA"))
        return tuple(found)

    def to_json(self) -> Dict[str, Any]:
        """Plain values for JSON."""
        told = {"layer_sum_s": self.layer_sum_s, "fallbacks": [list(pair) for pair in self.fallbacks()]}
        counts = {kind: len(self.of_kind(kind)) for kind in KINDS}
        return {**json.loads(json.dumps(asdict(self))), **told, "counts": counts}


def read_engine(
    layers: Path,
    *,
    profile: Optional[Path] = None,
    times: Optional[Path] = None,
    name: str = "",
    modules: Optional[Mapping[str, str]] = None,
) -> Engine:
    """Reads an engine's exports.

    Args:
        modules: the PyTorch module of an ONNX node, where the nodes' own names do not tell.

    Raises:
        ArtifactError: a file is missing or cut, or is none of the forms above.
    """
    engine = engine_of(_json(layers), name=name or Path(layers).name.split(".")[0], where=str(layers))
    if modules:
        engine = replace(engine, layers=tuple(_with_modules(layer, modules) for layer in engine.layers))
    if profile is not None:
        engine = timed(engine, profile_of(_json(profile), where=str(profile)))
    if times is not None:
        engine = replace(engine, runs_s=runs_of(_json(times), where=str(times)))
    return engine


def engine_of(told: Any, *, name: str, where: str = "the inspector's JSON") -> Engine:
    """The engine that an inspector describes, without times.

    Raises:
        ArtifactError: it is not what an inspector writes.
    """
    if not isinstance(told, Mapping) or not isinstance(told.get("Layers"), list):
        raise ArtifactError(
            f"{where} is not what TensorRT's inspector writes: it has no list of 'Layers'.",
            "Give the file of trtexec --exportLayerInfo=FILE --profilingVerbosity=detailed.",
        )
    remarks: List[str] = []
    names_only = bool(told["Layers"]) and all(isinstance(layer, str) for layer in told["Layers"])
    if names_only:
        remarks.append(
            "the engine was built without detailed verbosity: precisions, tactics and formats are not known"
        )
    try:
        layers = tuple(
            _layer({"Name": each} if isinstance(each, str) else each, where) for each in told["Layers"]
        )
        ends = told.get("I/O Tensors", told.get("Bindings", []))
        names = tuple(str(end["Name"] if isinstance(end, Mapping) else end) for end in ends)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ArtifactError(
            f"{where} is not what TensorRT's inspector writes: {type(error).__name__} at {error}.",
            "Export the layer information again.",
        ) from error
    return Engine(name, layers, names, remarks=tuple(remarks))


def profile_of(told: Any, *, where: str = "the profile") -> Dict[str, float]:
    """Seconds of a run by layer, in order: the median, where the profiler keeps one, else the mean.

    Raises:
        ArtifactError: it is neither trtexec's profile nor an IProfiler's times.
    """
    try:
        if isinstance(told, Mapping) and told:
            if any(isinstance(times, list) and not times for times in told.values()):
                raise ValueError("a layer has no times")
            return {str(name): float(np.median(times)) / 1e3 for name, times in told.items()}
        entries = [entry for entry in told if "name" in entry]
        runs = next((int(entry["count"]) for entry in told if "count" in entry), 1)
        found: Dict[str, float] = {}
        for entry in entries:
            time = entry.get("medianMs", entry.get("averageMs"))
            time = float(entry["timeMs"]) / max(runs, 1) if time is None else float(time)
            found[entry["name"]] = found.get(entry["name"], 0.0) + time / 1e3
        if not found:
            raise ValueError("no layer has a time")
        return found
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ArtifactError(
            f"{where} holds no times of layers: {error}.", "Give the file of trtexec --exportProfile=FILE."
        ) from error


def runs_of(told: Any, *, where: str = "the times") -> Tuple[float, ...]:
    """Seconds that the GPU took for each run of the whole engine, from trtexec --exportTimes.

    Raises:
        ArtifactError: it is not what trtexec writes.
    """
    try:
        found = tuple(float(entry["computeMs"]) / 1e3 for entry in told)
    except (TypeError, ValueError, KeyError) as error:
        raise ArtifactError(
            f"{where} holds no times of runs: {type(error).__name__} at {error}.",
            "Give the file of trtexec --exportTimes=FILE.",
        ) from error
    return found


def timed(engine: Engine, times_s: Mapping[str, float]) -> Engine:
    """The engine with its layers' times; what is in one of the two only is kept, and said."""
    layers = [replace(layer, latency_s=times_s.get(layer.name)) for layer in engine.layers]
    known = {layer.name for layer in layers}
    strangers = [name for name in times_s if name not in known]
    layers += [replace(_layer({"Name": name}, "the profile"), latency_s=times_s[name]) for name in strangers]
    remarks = list(engine.remarks)
    if strangers:
        remarks.append(f"{len(strangers)} timed layers are not in the inspector's list, as {strangers[0]!r}")
    lost = [layer.name for layer in engine.layers if layer.name not in times_s]
    if lost:
        remarks.append(f"{len(lost)} of {len(known)} layers have no time of their own, as {lost[0]!r}")
    return replace(engine, layers=tuple(layers), remarks=tuple(remarks))


def _layer(told: Any, where: str) -> EngineLayer:
    if not isinstance(told, Mapping) or "Name" not in told:
        raise ArtifactError(
            f"{where} has a layer without a name: {str(told)[:80]}.", "Export the layer information again."
        )
    name, type_ = str(told["Name"]), str(told.get("LayerType", ""))
    inputs, outputs = (_tensors(told.get(side, ())) for side in ("Inputs", "Outputs"))
    weights = told.get("Weights")
    precision = _dtype(str(weights.get("Type", ""))) if isinstance(weights, Mapping) else ""
    precision = precision or next((tensor.dtype for tensor in (*inputs, *outputs) if tensor.dtype), "")
    tactic = str(told.get("TacticName") or told.get("TacticValue") or "")
    nodes = nodes_of(name, str(told.get("Metadata", "")))
    on_dla = "DLA" in type_.upper().split("_") or "dla" in type_.lower() or str(told.get("Origin")) == "DLA"
    return EngineLayer(
        name=name,
        type=type_,
        kind=_kind(name, type_, str(told.get("Origin", "")), inputs, outputs),
        precision=precision,
        tactic="" if set(tactic) <= set("0x") else tactic,
        inputs=inputs,
        outputs=outputs,
        nodes=nodes,
        modules=modules_of(name, nodes),
        device="DLA" if on_dla else "GPU",
    )


def _kind(name: str, type_: str, origin: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> str:
    """What a layer is there for. A copy between types converts; between formats alone, it reorders."""
    if type_.lower() == "noop":
        return "view"
    if origin == "QDQ" or re.fullmatch(r"(?:De)?[Qq]uantize(?:Linear)?(?:_\d+)?", name):
        return "quantize"
    if type_.lower() == "reformat" or served_by(name):
        before, after = ({tensor.dtype for tensor in side} for side in (inputs, outputs))
        return "conversion" if before != after else "reorder"
    if type_.lower() in ("shuffle", "transpose"):
        return "reorder"
    return "compute" if type_ or not name.startswith("(Unnamed") else "other"


def _tensors(told: Any) -> Tuple[Tensor, ...]:
    found = []
    for each in told if isinstance(told, list) else ():
        words = str(each.get("Format/Datatype", each.get("Format", "")))
        dtype = _dtype(str(each.get("Datatype", each.get("DataType", ""))) or words)
        shape = tuple(int(size) for size in each.get("Dimensions", ()))
        found.append(Tensor(str(each.get("Name", "")), shape, dtype, words))
    return tuple(found)


def _dtype(words: str) -> str:
    return next((name for name, pattern in _TYPES if re.search(pattern, words, re.IGNORECASE)), "")


def _with_modules(layer: EngineLayer, modules: Mapping[str, str]) -> EngineLayer:
    told = [modules[node] for node in layer.nodes if node in modules]
    return replace(layer, modules=tuple(dict.fromkeys([*told, *layer.modules])))


def _json(path: Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist.", "Check the path.") from error
    except (ValueError, OSError) as error:
        raise ArtifactError(
            f"{path} is not readable as JSON: {error}.", "Export it again: it was cut short, or is a log."
        ) from error
