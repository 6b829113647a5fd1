"""The content of an engine: layers and times, read from TensorRT's exports.

    layers   the inspector's JSON (engine inspector, or trtexec --exportLayerInfo): 8.x and 10 list inputs and
             outputs as "Bindings", names only; 11 as "I/O Tensors", with type and shape. An engine built
             without detailed verbosity has names instead of layers
    profile  trtexec --exportProfile, or an IProfiler's times as {name: milliseconds, or a list of them}
    times    trtexec --exportTimes: one entry per run of the whole engine

Layers and times are joined by name. A layer without a time did not run alone (a view, or one whose time is
part of another's); a time without a layer is added as a layer, described only by its name. The profiler
synchronizes after every layer: the sum of the times is not the latency.

From 8.6 on TensorRT lists the ONNX nodes of a layer in `Metadata`: "[ONNX Layer: conv1]", one for each, with
control characters between. Older engines and layers without metadata have only their name, which has nodes:
"conv1.weight + QuantizeLinear_7 + Conv_9", "PWN(Sigmoid_1, Mul_2)", "Conv_3 + Relu_4 || Conv_5",
"Reformatting CopyNode for Input Tensor 0 to Conv_3", "{ForeignNode[Conv_0...Add_9]}" (which names two ends of
a region, nothing in between).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ..artifact import json_in
from ..errors import MISFITS, ArtifactError, reported
from ..onnx_file import Nodes
from ..plain import plain

KINDS = ("compute", "conversion", "reorder", "quantize", "view", "other")
PRODUCTS = ("conv", "gemm", "matmul", "matrix", "deconv", "fullyconnected")
_AGAIN = "Export it again: it is truncated, or is a log."
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
    """A tensor between layers: its element type ("" if unknown) and its memory format."""

    name: str
    shape: Tuple[int, ...]
    dtype: str
    format: str


@dataclass(frozen=True)
class EngineLayer:
    """One layer. `latency_s` is the median of a run in seconds, None where it was not timed."""

    name: str
    type: str
    """TensorRT's name, as in CaskConvolution; "" if unknown."""
    kind: str
    precision: str
    """The type of its computation: that of its weights, else of its inputs."""
    tactic: str
    inputs: Tuple[Tensor, ...]
    outputs: Tuple[Tensor, ...]
    nodes: Tuple[str, ...]
    modules: Tuple[str, ...]
    latency_s: Optional[float] = None
    device: str = "GPU"

    @property
    def product(self) -> bool:
        """Whether it multiplies by weights, so that INT8 is worthwhile."""
        return self.kind == "compute" and any(word in self.type.lower() for word in PRODUCTS)


@dataclass(frozen=True)
class Engine:
    """All layers in execution order, inputs and outputs, and the runs of the whole engine."""

    name: str
    layers: Tuple[EngineLayer, ...]
    ends: Tuple[str, ...]
    runs_s: Tuple[float, ...] = ()
    """GPU time of each run, in seconds."""
    remarks: Tuple[str, ...] = ()

    @property
    def layer_sum_s(self) -> float:
        """The sum of all layers' times."""
        return sum(layer.latency_s or 0.0 for layer in self.layers)

    def of_kind(self, kind: str) -> Tuple[EngineLayer, ...]:
        """The layers of one kind."""
        return tuple(layer for layer in self.layers if layer.kind == kind)

    def fallbacks(self) -> Tuple[Tuple[str, str], ...]:
        """Layers with another precision or device than the rest: (name, reason).

        Float products in an engine with INT8 ones, and GPU layers in an engine with DLA ones.
        """
        layers_and_reasons: List[Tuple[str, str]] = []
        whole = any(layer.product and layer.precision == "int8" for layer in self.layers)
        on_dla = any(layer.device == "DLA" for layer in self.layers)
        for layer in self.layers:
            if whole and layer.product and layer.precision not in ("int8", "fp8", "int4", ""):
                layers_and_reasons.append((layer.name, f"computes in {layer.precision}, others in int8"))
            if on_dla and layer.device != "DLA" and layer.kind != "view":
                layers_and_reasons.append((layer.name, "runs on the GPU, others on the DLA"))
        return tuple(layers_and_reasons)

    def to_json(self) -> Dict[str, Any]:
        summary = {"layer_sum_s": self.layer_sum_s, "fallbacks": plain(self.fallbacks())}
        counts = {kind: len(self.of_kind(kind)) for kind in KINDS}
        return {**plain(self), **summary, "counts": counts}


def read_engine(
    layers: Path,
    *,
    profile: Optional[Path] = None,
    times: Optional[Path] = None,
    modules: Optional[Mapping[str, str]] = None,
) -> Engine:
    """Reads an engine's exports.

    Args:
        modules: the PyTorch module by ONNX node, where the nodes' names do not contain it.

    Raises:
        ArtifactError: a file is missing or truncated, or has none of these formats.
    """
    engine = engine_of(json_in(layers, _AGAIN), name=Path(layers).name.split(".")[0], where=str(layers))
    if modules:
        engine = replace(engine, layers=tuple(_with_modules(layer, modules) for layer in engine.layers))
    if profile is not None:
        engine = timed(engine, profile_of(json_in(profile, _AGAIN), where=str(profile)))
    if times is not None:
        engine = replace(engine, runs_s=runs_of(json_in(times, _AGAIN), where=str(times)))
    return engine


def engine_of(content: Any, *, name: str, where: str = "the inspector's JSON") -> Engine:
    """The engine of an inspector's JSON, without times."""
    if not isinstance(content, Mapping) or not isinstance(content.get("Layers"), list):
        raise ArtifactError(
            f"{where} is not JSON of TensorRT's inspector: it has no list of 'Layers'.",
            "Give the file of trtexec --exportLayerInfo=FILE --profilingVerbosity=detailed.",
        )
    remarks: List[str] = []
    if not content["Layers"]:
        remarks.append("the plan has no names of layers: it was built with --hide-layers")
    elif all(isinstance(layer, str) for layer in content["Layers"]):
        remarks.append(
            "the engine was built without detailed verbosity: precisions, tactics and formats are unknown"
        )
    what, cure = f"{where} is not JSON of TensorRT's inspector", "Export the layer information again."
    with reported(ArtifactError, what, cure, *MISFITS):
        layers = tuple(
            _layer({"Name": each} if isinstance(each, str) else each, where) for each in content["Layers"]
        )
        ends = content.get("I/O Tensors", content.get("Bindings", []))
        names = tuple(str(end["Name"] if isinstance(end, Mapping) else end) for end in ends)
    return Engine(name, layers, names, remarks=tuple(remarks))


def timed(engine: Engine, times_s: Mapping[str, float]) -> Engine:
    """The engine with its layers' times; a remark counts what is in only one of the two."""
    layers = [replace(layer, latency_s=times_s.get(layer.name)) for layer in engine.layers]
    known = {layer.name for layer in layers}
    unlisted = [name for name in times_s if name not in known]
    layers += [replace(_layer({"Name": name}, "the profile"), latency_s=times_s[name]) for name in unlisted]
    remarks = list(engine.remarks)
    if unlisted:
        remarks.append(f"{len(unlisted)} timed layers are not in the inspector's list, as {unlisted[0]!r}")
    untimed = [layer.name for layer in engine.layers if layer.name not in times_s]
    if untimed:
        remarks.append(f"{len(untimed)} of {len(known)} layers have no time, as {untimed[0]!r}")
    return replace(engine, layers=tuple(layers), remarks=tuple(remarks))


def profile_of(content: Any, *, where: str = "the profile") -> Dict[str, float]:
    """Seconds of a run by layer, in order: the median, where the profiler has one, else the mean."""
    cure = "Give the file of trtexec --exportProfile=FILE."
    with reported(ArtifactError, f"{where} has no times of layers", cure, *MISFITS):
        if isinstance(content, Mapping) and content:
            if any(isinstance(times, list) and not times for times in content.values()):
                raise ValueError("a layer has no times")
            return {str(name): float(np.median(times)) / 1e3 for name, times in content.items()}
        entries = [entry for entry in content if "name" in entry]
        runs = next((int(entry["count"]) for entry in content if "count" in entry), 1)
        seconds: Dict[str, float] = {}
        for entry in entries:
            time = entry.get("medianMs", entry.get("averageMs"))
            time = float(entry["timeMs"]) / max(runs, 1) if time is None else float(time)
            seconds[entry["name"]] = seconds.get(entry["name"], 0.0) + time / 1e3
        if not seconds:
            raise ValueError("no layer has a time")
        return seconds


def runs_of(content: Any, *, where: str = "the times", after_s: float = 0.0) -> Tuple[float, ...]:
    """GPU seconds of each run of the whole engine that began `after_s`, from trtexec --exportTimes."""
    cure = "Give the file of trtexec --exportTimes=FILE."
    with reported(ArtifactError, f"{where} has no times of runs", cure, *MISFITS):
        counted = (each for each in content if not after_s or each["startComputeMs"] >= 1e3 * after_s)
        return tuple(float(entry["computeMs"]) / 1e3 for entry in counted)


def _layer(content: Any, where: str) -> EngineLayer:
    if not isinstance(content, Mapping) or "Name" not in content:
        raise ArtifactError(
            f"{where} has a layer without a name: {str(content)[:80]}.", "Export the layer information again."
        )
    name, type_ = str(content["Name"]), str(content.get("LayerType", ""))
    inputs, outputs = (_tensors(content.get(side, ())) for side in ("Inputs", "Outputs"))
    weights = content.get("Weights")
    precision = _dtype(str(weights.get("Type", ""))) if isinstance(weights, Mapping) else ""
    precision = precision or next((tensor.dtype for tensor in (*inputs, *outputs) if tensor.dtype), "")
    tactic = str(content.get("TacticName") or content.get("TacticValue") or "")
    nodes = nodes_of(name, str(content.get("Metadata", "")))
    return EngineLayer(
        name=name,
        type=type_,
        kind=_kind(name, type_, str(content.get("Origin", "")), inputs, outputs),
        precision=precision,
        tactic="" if set(tactic) <= set("0x") else tactic,
        inputs=inputs,
        outputs=outputs,
        nodes=nodes,
        modules=modules_of(name, nodes),
        device="DLA" if "dla" in type_.lower() or str(content.get("Origin")) == "DLA" else "GPU",
    )


def _kind(name: str, type_: str, origin: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> str:
    """The purpose of a layer. A copy between types is a conversion; between formats only, a reorder."""
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


def _tensors(content: Any) -> Tuple[Tensor, ...]:
    tensors = []
    for each in content if isinstance(content, list) else ():
        words = str(each.get("Format/Datatype", each.get("Format", "")))
        dtype = _dtype(str(each.get("Datatype", each.get("DataType", ""))) or words)
        shape = tuple(int(size) for size in each.get("Dimensions", ()))
        tensors.append(Tensor(str(each.get("Name", "")), shape, dtype, words))
    return tuple(tensors)


def _dtype(words: str) -> str:
    return next((name for name, pattern in _TYPES if re.search(pattern, words, re.IGNORECASE)), "")


def _with_modules(layer: EngineLayer, modules: Mapping[str, str]) -> EngineLayer:
    own = [modules[node] for node in layer.nodes if node in modules]
    return replace(layer, modules=tuple(dict.fromkeys([*own, *layer.modules])))


_METADATA = re.compile(r"\[ONNX Layer: (.*?)\](?=\s*(?:[\x1e\x1f]|\[ONNX Layer: |$))", re.DOTALL)
_COPY = re.compile(r"^Reformatting CopyNode for (?:Input|Output) Tensor \d+ (?:to|from) ")
_MADE_UP = re.compile(
    r"\(Unnamed Layer\*? ?\d+\)|^(?:copied_)?(?:un)?squeeze_|^unsqueeze_node_after_|^__myl_|^$"
)
_PARAMETER = re.compile(r"^(.*?)\.(?:weight|bias|running_mean|running_var|parametrizations\..*)$")


def nodes_of(name: str, metadata: str = "") -> Tuple[str, ...]:
    """The ONNX nodes of a layer, each once, in order; () where neither name nor metadata has any."""
    listed = _METADATA.findall(metadata or "")
    if listed:
        return tuple(dict.fromkeys(node.strip() for node in listed if node.strip()))
    parts = dict.fromkeys(_parts(name))
    return tuple(part for part in parts if not _MADE_UP.search(part) and not _PARAMETER.match(part))


def served_by(name: str) -> str:
    """The layer that a copy serves, after "to" or "from" in its name; "" if the layer is not a copy."""
    match = _COPY.match(name)
    return name[match.end() :] if match else ""


def modules_of(name: str, nodes: Tuple[str, ...]) -> Tuple[str, ...]:
    """The PyTorch modules of a layer, from the weights in its name or the paths of its nodes.

    torch.onnx writes a path for a node, "/layer1/layer1.0/conv1/Conv", where each step is a module's full
    name or is appended to the previous one. Nodes named "Conv_3" or "node_conv2d_1" have no module.
    """
    modules: List[str] = []
    for part in _parts(name):
        parameter = _PARAMETER.match(part)
        if parameter and not _MADE_UP.search(part):
            modules.append(parameter.group(1).strip("/"))
    for node in nodes:
        steps = [step for step in node.strip("/").split("/") if step]
        if len(steps) < 2:
            continue
        module = ""
        for step in steps[:-1]:
            whole = not module or step == module or step.startswith(module + ".")
            module = step if whole else f"{module}.{step}"
        modules.append(module)
    return tuple(dict.fromkeys(modules))


def modules_in(nodes: Nodes) -> Dict[str, str]:
    """The PyTorch module of every ONNX node that reads a weight, from the weight's name."""
    modules: Dict[str, str] = {}
    for node in nodes.nodes:
        for name in node.inputs:
            parameter = _PARAMETER.match(name)
            if parameter:
                modules.setdefault(node.name, parameter.group(1))
    return modules


def _parts(name: str) -> List[str]:
    rest = served_by(name) or name
    region = re.match(r"^\{ForeignNode\[(.*)\]\}$", rest)
    if region:
        return [part.strip() for part in region.group(1).split("...") if part.strip()]
    between = r" \|\| | \+ "
    if "PWN(" in rest:  # fused pointwise nodes, perhaps nested
        rest, between = rest.replace("PWN(", ""), between + "|, "
    parts = [part.strip() for part in re.split(between, rest)]
    return [part[: len(part) - max(part.count(")") - part.count("("), 0)] for part in parts]
