"""The memory footprint of a network on its board, from the ONNX file alone, before a build.

The result is a band. Its lower end is certain as long as the runtime follows `runtime_rules`: what a
runtime is known to do without memory (fusion, writing in place, views, concatenation without a copy) costs
nothing here, and what is not known to need memory counts as 0. Weights and values count in the smallest form
that they may have: rounded, if quantization is next to them or may be moved there; in 16 bits, where halves
are allowed. `bounds.least_bytes` has the rest of the argument.

What would break the bound: removing unnecessary work (two successive constant factors multiplied beforehand),
recomputation, 2:4 compressed weights. TensorRT's fusions are from the fusion catalog of its documentation;
ONNX Runtime's were measured (docs/memory.md). The upper end is a plan of the unfused graph, not a guarantee;
for ONNX Runtime with what its process holds beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from ...targets.errors import ModelError, meant
from ...targets.memory_fit import Footprint
from ...targets.runtimes.runtime import Runtime, runtime_named
from ..onnx_graph.counts import Shapes, bytes_of, item_bytes, living
from ..onnx_graph.graph import Index, attribute_of, given_inputs, lift_constants, load
from ..onnx_graph.operator_sets import read_sets
from ..onnx_graph.walk import all_graphs
from .bounds import Kernel, depth_first, least_bytes, planned_bytes

SCRATCH = 1 << 16  # bytes of a convolution's scratch memory: that of ONNX Runtime on one thread
KNOWN = read_sets(Path(__file__).with_name("runtime_rules.toml"))
# ONNX Runtime beside the plan, measured (docs/memory.md): its arena grows by doubling, and is in pieces in
# the first run; a node has its kernel; weights are held once more, packed.
ARENA = 3
NODE_BYTES = 8 << 10
RUNTIME_BYTES = 1 << 20
MARGIN = 1.08  # factor on the plan: fitted to ONNX Runtime, on other graphs than the reported ones


def footprint(
    path: Path,
    *,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] = {},
    runtime: Runtime | str = "tensorrt",
    halves: bool | None = None,
) -> Footprint:
    """The band of memory that a model needs at a batch, as plain numbers for the board.

    Args:
        path: an ONNX file, float or with Q/DQ.
        batch: the size of the first axis of every input where it is dynamic.
        shapes: whole shapes of inputs by name, for other dynamic axes.
        runtime: the runtime, or its name.
        halves: whether the runtime may keep float32 values in 16 bits; by default one with a flag for FP16
            may, as the builds of TensorRT 8.x do.

    Raises:
        ArtifactError, ModelError: as `graph.load`; or the batch is below 1, or a shape does not fit.
        TargetError: there is no such runtime.
    """
    if batch < 1:
        raise ModelError(f"A footprint cannot be computed for batch {batch}.", "Use 1 or more.")
    runs = runtime_named(runtime) if isinstance(runtime, str) else runtime
    model = load(path).proto
    lift_constants(model.graph)
    _refuse_other_shapes(model, shapes)
    known_shapes = Shapes.of(model, batch, shapes)
    walk = _Walk(model, known_shapes, runs.fuses)
    smallest = 2 if ("flag" in runs.fp16 if halves is None else halves) else 8
    low = least_bytes([least.bytes(smallest) for least in walk.values], walk.kernels(smallest), walk.kept)
    high = max(low.bytes, math.ceil(MARGIN * _planned(model, known_shapes)))
    weights = sum(bytes_of(tensor) for tensor in model.graph.initializer)
    nodes = sum(len(inner.node) for inner in all_graphs(model.graph))
    beside = weights + ARENA * high + NODE_BYTES * nodes + RUNTIME_BYTES
    return Footprint(
        batch=batch,
        runtime=runs.name,
        weights_low_bytes=_weights(model.graph, smallest, quantized=walk.quantized),
        weights_high_bytes=weights,
        activations_low_bytes=low.bytes,
        activations_high_bytes=None if known_shapes.unknown else high,
        peak_at=low.kernel,
        inputs_bytes=sum(known_shapes.bytes(name) for name in walk.inputs),
        outputs_bytes=sum(known_shapes.bytes(value.name) for value in model.graph.output),
        largest_bytes=max((known_shapes.bytes(name) for name in known_shapes.sizes), default=0),
        unknown=tuple(sorted(known_shapes.unknown)),
        beside_bytes=0 if runs.builds else beside,
    )


def _refuse_other_shapes(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> None:
    inputs = {value.name: value.type.tensor_type.shape.dim for value in given_inputs(model.graph)}
    for name, sizes in shapes.items():
        if name not in inputs:
            cure = meant(name, inputs, f"It has {', '.join(inputs)}.")
            raise ModelError(f"The model has no input {name!r}.", cure)
        wanted = [axis.dim_value for axis in inputs[name]]
        fits = len(wanted) == len(sizes) and all(
            size > 0 and own in (0, size) for own, size in zip(wanted, sizes, strict=False)
        )
        if not fits:
            axes = ", ".join(str(size or "?") for size in wanted)
            what = f"The input {name!r} is [{axes}], and the shape {list(sizes)} was given for it."
            raise ModelError(what, "Give its fixed sizes as they are, and 1 or more for the others.")


@dataclass
class _Least:
    """The smallest form of a value: the number of elements and their size."""

    elements: float
    item: float

    def bytes(self, smallest: float) -> int:
        return math.floor(self.elements * min(self.item, smallest))


@dataclass
class _Walk:
    """The graph as kernels and values, after all fusions that a runtime may do.

    A tensor is stored in one value, or in several adjacent ones: its `parts`, in elements.
    """

    model: onnx.ModelProto
    shapes: Shapes
    fuses: bool
    values: list[_Least] = field(default_factory=list)
    parts: dict[str, dict[int, float]] = field(default_factory=dict)
    steps: list[tuple[str, dict[int, tuple[float, float]], tuple[int, ...], bool, bool]] = field(
        default_factory=list
    )

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.index = Index.of(graph)
        self.inputs = [value.name for value in given_inputs(graph)]
        self.quantized = any("QuantizeLinear" in node.op_type for node in graph.node)
        for name in self.inputs:
            self._new(name, elements=0)  # in the caller's memory
        seen: dict[tuple[object, ...], onnx.NodeProto] = {}
        for node in living(graph):
            twin = seen.setdefault(_same(node), node)
            if twin is not node:  # runtimes compute equal nodes once
                for name, other in zip(node.output, twin.output, strict=True):
                    if other in self.parts:
                        self.parts[name] = self.parts[other]
                continue
            self._step(node)
        self._commute()
        self.kept = frozenset(part for value in graph.output for part in self.parts.get(value.name, {}))

    def _commute(self) -> None:
        """Moves quantization past operators that only select, average or concatenate: values shrink."""
        graph = self.model.graph
        nodes = [
            node for node in graph.node if node.op_type in KNOWN["commuting"] and node.output[0] in self.parts
        ]
        for node in (*nodes, *reversed(nodes)):
            parts = [part for name in (*node.input[:1], *node.output) for part in self.parts.get(name, ())]
            least = min((self.values[part].item for part in parts), default=4)
            for part in parts:
                self.values[part].item = least

    def kernels(self, smallest: float) -> list[Kernel]:
        """The steps, with bytes instead of elements."""
        return [
            Kernel(
                name,
                tuple((value, math.floor(n * min(item, smallest))) for value, (n, item) in reads.items()),
                writes,
                whole,
                sums,
            )
            for name, reads, writes, whole, sums in self.steps
        ]

    def _step(self, node: onnx.NodeProto) -> None:
        read = list(dict.fromkeys(name for name in node.input if name in self.parts))
        if not read or node.op_type in KNOWN["shapes"]:
            return  # constant, or known before the run
        kind = node.op_type
        if kind in KNOWN["sums"] or kind == "PRelu":
            if len({frozenset(self.parts[name]) for name in read}) == 1 and len(self.parts[read[0]]) == 1:
                if len(read) > 1 and not self.fuses:
                    return self._kernel(node, read, whole=True, sums=False)
                return self._fused(node, read)
            return self._kernel(node, read, whole=False, sums=True)
        if len(read) == 1 and kind in KNOWN["views"] | KNOWN["pointwise"] | KNOWN["rows"]:
            return self._fused(node, read)
        if kind == "Concat" and self.fuses:
            joined: dict[int, float] = {}
            for name in read:
                for part, elements in self.parts[name].items():
                    joined[part] = max(joined.get(part, 0), elements)
            self.parts[node.output[0]] = joined
            return None
        if kind == "Conv" and self.fuses and self._depthwise(node):
            return self._fused(node, read)
        whole = kind in KNOWN["whole"] and not (kind == "MatMul" and len(read) > 1 and self.fuses)
        return self._kernel(node, read, whole=whole, sums=False)

    def _fused(self, node: onnx.NodeProto, read: list[str]) -> None:
        """Stores the outputs in the value of the input, which may shrink to them."""
        source = self.parts[read[0]]
        before = sum(source.values())
        for name in node.output:
            if not name:
                continue
            ratio = min(1.0, self.shapes.elements(name) / before) if before else 1.0
            if ratio < 1 and len(source) > 1 and node.op_type in ("Slice", "Split"):
                ratio = 0.0  # which of the parts remain is not tracked
            self.parts[name] = {part: elements * ratio for part, elements in source.items()}
            for part, elements in self.parts[name].items():
                least = self.values[part]
                least.elements = min(least.elements, elements)
                least.item = min(least.item, self.shapes.items.get(name, 4))

    def _kernel(self, node: onnx.NodeProto, read: list[str], *, whole: bool, sums: bool) -> None:
        reads: dict[int, tuple[float, float]] = {}
        for name in read:
            for part, elements in self.parts[name].items():
                item = min(self.values[part].item, self.shapes.items.get(name, 4))
                reads[part] = max(reads.get(part, (0.0, item)), (elements, item))
        writes = tuple(self._new(name, None if whole or sums else 0) for name in node.output if name)
        self.steps.append((node.name, reads, writes, whole, sums))

    def _new(self, name: str, elements: int | None = None) -> int:
        number = len(self.values)
        count = self.shapes.elements(name) if elements is None else elements
        self.values.append(_Least(count, self.shapes.items.get(name, 4)))
        self.parts[name] = {number: float(count)}
        return number

    def _depthwise(self, node: onnx.NodeProto) -> bool:
        weight = self.shapes.sizes.get(node.input[1]) or tuple(
            self.index.constants[node.input[1]].dims if node.input[1] in self.index.constants else ()
        )
        return bool(weight) and weight[1] == 1 and int(attribute_of(node, "group", 1)) > 1


def _same(node: onnx.NodeProto) -> tuple[object, ...]:
    attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
    return (node.domain, node.op_type, tuple(node.input), tuple(attributes), len(node.output))


def _weights(graph: onnx.GraphProto, smallest: float, *, quantized: bool) -> int:
    """Bytes of the constants that products read, each once, in its smallest form."""
    index = Index.of(graph)
    found: dict[str, float] = {}
    for node in graph.node:
        if node.op_type not in KNOWN["products"]:
            continue
        for name in node.input:
            rounded = False
            while name in index.producer and index.producer[name].op_type in KNOWN["views"]:
                rounded |= "QuantizeLinear" in index.producer[name].op_type
                name = next(iter(index.producer[name].input), "")
            if name in index.constants:
                least = 1.0 if rounded else 2.0 if quantized or smallest < 4 else 8.0
                found[name] = min(found.get(name, 8.0), least)
    constants = index.constants
    return sum(
        math.floor(math.prod(constants[name].dims) * min(item_bytes(constants[name].data_type), least))
        for name, least in found.items()
    )


def _gate(node: onnx.NodeProto, index: Index) -> bool:
    """Whether a node is the sigmoid of a SiLU, x * sigmoid(x), which runtimes fuse."""
    reader = index.read_only_by(node.output[0], ("Mul",)) if node.op_type == "Sigmoid" else None
    return reader is not None and bool(node.input) and node.input[0] in reader.input


@dataclass
class _Written:
    """The unfused graph, kernel by kernel, for the plan of the upper end."""

    sizes: list[int] = field(default_factory=list)
    forms: list[object] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)
    number: dict[str, int] = field(default_factory=dict)

    def new(self, name: str, size: int, form: object = None) -> int:
        self.number[name] = len(self.sizes)
        self.sizes.append(size)
        self.forms.append(form)
        return self.number[name]


def _planned(model: onnx.ModelProto, shapes: Shapes) -> int:
    """Bytes of a plan in which products are fused with a following activation, and nothing is overwritten."""
    index, plan = Index.of(model.graph), _Written()
    for value in given_inputs(model.graph):
        plan.new(value.name, 0)
    held = frozenset(plan.number.values())
    nodes = living(model.graph)
    done_with: set[str] = set()  # results of products, and of activations fused with them
    made = 0  # bytes of constants that the graph computes (ConstantOfShape, Range, Expand): kept like weights
    for node in nodes:
        read = [name for name in node.input if name in plan.number]
        unpacked = node.op_type == "DequantizeLinear"  # weights, which are stored rounded and used as floats
        if not (read or unpacked) or node.op_type in KNOWN["shapes"]:
            made += sum(shapes.bytes(name) for name in node.output)
            continue
        out = node.output[0]
        if read and (node.op_type in KNOWN["reinterpreted"] or _gate(node, index)):
            plan.number[out] = plan.number[read[0]]
            continue
        pointwise = node.op_type in KNOWN["pointwise"]
        after = pointwise and read[0] in done_with and len(index.readers[read[0]]) == 1
        if after or node.op_type in ("Conv", "ConvTranspose", "Gemm"):
            done_with.add(out)
        if after and read[0] not in index.outputs:
            plan.number[out] = plan.number[read[0]]
            writes: tuple[int, ...] = (plan.number[out],)
        else:
            writes = tuple(
                plan.new(name, shapes.bytes(name), (shapes.sizes.get(name), shapes.items.get(name)))
                for name in node.output
                if name
            )
        plan.kernels.append(Kernel(node.name, tuple((plan.number[name], 0) for name in read), writes))
    kept = frozenset(plan.number[name] for name in index.outputs if name in plan.number)
    orders = (plan.kernels, depth_first(plan.kernels))
    scratch = SCRATCH if any(node.op_type in ("Conv", "ConvTranspose") for node in nodes) else 0
    return (
        made
        + scratch
        + max(planned_bytes(plan.sizes, order, kept, held=held, forms=plan.forms) for order in orders)
    )
