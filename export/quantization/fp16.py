"""Conversion of operators in float to FP16, since strongly typed TensorRT networks have no flag for it.

TensorRT 10 builds such networks, 11 only such; otherwise what is not quantized runs in FP32 there. Inputs and
outputs stay FP32, and so do every operator and every single input without half precision in ONNX; casts are
added around them. Scales are FP16 like their data, which QuantizeLinear allows from opset 19 on. A layer with
a scale or a constant outside FP16's range stays in FP32 with its Q/DQ pairs, so that it still runs in INT8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper

from ...targets.errors import ModelError
from ..onnx_graph.float_input import at_opset, with_initializers
from ..onnx_graph.graph import (
    QUANTIZED,
    WEIGHTED,
    Array,
    Index,
    OnnxModel,
    attribute_of,
    drop_unused,
    load,
    opset_of,
    replace_nodes,
    save,
)
from ..onnx_graph.walk import all_graphs
from .placement import MOVES

OPSET = 19  # the first in which a scale can be FP16
LARGEST = float(np.finfo(np.float16).max)
SMALLEST = 2.0**-17  # of a scale: FP16 rounds smaller numbers by more than 2^-8, half a step of INT8
COARSER = 16  # how much finer than the coarsest channel's a scale must be before it may be enlarged
FUSED = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "BatchNormalization", "QuantizeLinear")
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
VARIADIC = defs.OpSchema.FormalParameterOption.Variadic
# Attributes by which an operator sets the type of its output, independent of its input.
OWN_TYPE = {"dtype", "value", "output_datatype"}


@dataclass(frozen=True)
class Halved:
    """The result: the model, the number of operators in FP16, and the reason for each other operator."""

    model: OnnxModel
    in_half: int
    left_float: dict[str, str]

    def words(self) -> str:
        """The operators that stay in FP32, for readers: ", NAME stays in FP32: REASON" each; may be ""."""
        return "".join(f", {name} stays in FP32: {why}" for name, why in self.left_float.items())


def to_half(model: OnnxModel, *, tensorrt: tuple[int, ...] = (10, 0)) -> Halved:
    """The model, float or with Q/DQ pairs, with its float part in FP16.

    Args:
        tensorrt: the version that will build it.

    Raises:
        ModelError: that version has no strongly typed networks, or the model has Q/DQ pairs and cannot be
            converted to opset 19.
    """
    if tensorrt < (10,):
        raise ModelError(
            f"TensorRT {'.'.join(map(str, tensorrt))} has no FP16 scales: it parses up to opset 17, and "
            f"they need {OPSET}.",
            "Keep the file in FP32 and build it with the flags INT8 and FP16, which that version has.",
        )
    if any(node.op_type in QUANTIZED for node in model.graph.node):
        model = _with_larger_scales(at_opset(model, OPSET))
    model = with_initializers(model)
    opset = opset_of(model.proto)
    types = {name: kind.elem_type for name, kind in model.types.items()}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    own = {node.name: _why_not(node, types, model.index, opset) for node in model.graph.node}
    left_float = _spread({name: why for name, why in own.items() if why}, model)
    made = model.copy()
    writer = _Writer(made.proto, types, left_float)
    replace_nodes(made.graph, list(writer.nodes()))
    del made.graph.value_info[:]
    drop_unused(made.graph)
    return Halved(made, writer.in_half, left_float)


def write_half(path: Path, out: Path) -> dict[str, str]:
    """Writes a model, float or with Q/DQ pairs, with its float part in FP16; equal files give equal bytes.

    Returns the operators that stay in FP32, each with the reason.

    Raises:
        ModelError: as `to_half`.
    """
    try:
        halved = to_half(load(path))
    except ModelError as error:
        raise ModelError(error.what, f"{error.cure} Or leave it in FP32: --precision fp32.") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    save(halved.model.proto, out)
    return halved.left_float


def _with_larger_scales(model: OnnxModel) -> OnnxModel:
    """The model with larger scales for channels of an int8 weight that are too fine for FP16.

    Such channels died in training: their weights are nearly 0 beside those of the other channels. They are
    rounded again, with a step that is still far smaller than the coarsest channel's. So the layer need not
    stay in FP32 for them.
    """
    changed: dict[str, Array] = {}
    for node in model.graph.node:
        scale = model.index.value(node.input[1]) if node.op_type == "DequantizeLinear" else None
        if scale is None or scale.ndim != 1 or not scale.min() < SMALLEST <= scale.max() / COARSER:
            continue
        larger = np.maximum(scale, SMALLEST).astype(scale.dtype)
        integers = model.index.value(node.input[0])
        if integers is not None:
            others = {reader.input[1] for reader, _ in model.index.readers[node.input[0]]}
            if integers.dtype != np.int8 or len(others) > 1:
                continue
            along = [1] * integers.ndim
            along[attribute_of(node, "axis", 1)] = -1
            changed[node.input[0]] = np.rint(integers * (scale / larger).reshape(along)).astype(np.int8)
        changed[node.input[1]] = larger
    if not changed:
        return model
    made = model.copy()
    for tensor in made.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(numpy_helper.from_array(changed[tensor.name], tensor.name))
    return made


def _spread(own: Mapping[str, str], model: OnnxModel) -> dict[str, str]:
    """The operators that stay in FP32 by themselves, and those that must with them, each with the reason.

    TensorRT fuses a weighted operator with its pairs only if there is no cast between them. So it stays in
    FP32 with a scale that does, and with it what is fused behind it, up to the next QuantizeLinear.
    """
    left, waiting = dict(own), [node for node in model.graph.node if node.name in own]
    while waiting:
        node = waiting.pop()
        for other in _coupled(node, model.index):
            if other.name not in left:
                left[other.name] = f"it is computed with {node.name!r}"
                waiting.append(other)
    return {node.name: left[node.name] for node in model.graph.node if node.name in left}


def _coupled(node: onnx.NodeProto, index: Index) -> Iterator[onnx.NodeProto]:
    """The neighbours that stay in FP32 with an operator."""
    if node.op_type in ("DequantizeLinear", *MOVES):
        yield from (reader for reader, _ in index.readers.get(node.output[0], ()))
    if node.op_type in (*FUSED, *MOVES) and node.input[0] in index.producer:
        yield index.producer[node.input[0]]  # its values are outside FP16's range too
    behind = index.read_only_by(node.output[0], FUSED) if node.op_type in (*WEIGHTED, *FUSED) else None
    if behind is not None:
        yield behind


def _schema(node: onnx.NodeProto, opset: int) -> defs.OpSchema | None:
    try:
        return defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return None


def _allows_half(schema: defs.OpSchema, formals: Sequence[defs.OpSchema.FormalParameter], place: int) -> bool:
    """Whether an input or output may be half precision; a variadic one counts for all further positions."""
    if place >= len(formals) and not (formals and formals[-1].option == VARIADIC):
        return False
    named = formals[min(place, len(formals) - 1)].type_str  # "T", or a type itself
    allowed = {one.type_param_str: one.allowed_type_strs for one in schema.type_constraints}
    return "tensor(float16)" in allowed.get(named, (named,))


def _why_not(node: onnx.NodeProto, types: dict[str, int], index: Index, opset: int) -> str:
    """Why an operator stays in FP32; empty where it does not, or has no floats."""
    if any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute):
        return "the bodies of branches and loops are not converted"
    if not any(types.get(name) == FLOAT for name in (*node.input, *node.output)) or node.op_type == "Cast":
        return ""
    schema = _schema(node, opset)
    if schema is None:
        return "it is not an ONNX operator"
    named = OWN_TYPE & {attribute.name for attribute in node.attribute}
    follows = bool(node.input) and types.get(node.input[0]) == FLOAT and not named
    if OWN_TYPE & set(schema.attributes) and not follows:
        return "an attribute sets its type"
    made = [place for place, name in enumerate(node.output) if types.get(name) == FLOAT]
    taken = [place for place, name in enumerate(node.input[:1]) if types.get(name) == FLOAT]
    halves = [_allows_half(schema, schema.outputs, place) for place in made]
    if not all(halves + [_allows_half(schema, schema.inputs, place) for place in taken]):
        return "ONNX has no half precision for it"
    if node.op_type in QUANTIZED:
        return _unfit_scale(node, index)
    for name in node.input:
        value = index.value(name) if types.get(name) == FLOAT else None
        if value is None:
            continue
        # Attention masks have -1e9 or the largest float32, which may become infinite in FP16.
        if LARGEST < (largest := float(np.abs(value).max(initial=0.0))) < np.inf:
            return f"its constant {name!r} reaches {largest:.4g}, but FP16 only {LARGEST:.0f}"
        if value.size == 1 and largest > 0 and not np.float16(largest):  # against division by 0
            return f"its constant {name!r} is {largest:.3g}, which is 0 in FP16"
    return ""


def _unfit_scale(node: onnx.NodeProto, index: Index) -> str:
    scale = index.value(node.input[1])
    if scale is None or not scale.size:
        return ""
    least, most = float(scale.min()), float(scale.max())
    if least < SMALLEST:
        return f"its scale {node.input[1]!r} is {least:.3g}, which FP16 rounds too coarsely"
    if most * 127 > LARGEST:
        return (
            f"its scale {node.input[1]!r} is for values to {most * 127:.4g}, but FP16 reaches {LARGEST:.0f}"
        )
    return ""


class _Writer:
    """Rewrites the nodes; a tensor keeps its name in the type of its operator's output."""

    def __init__(self, model: onnx.ModelProto, types: dict[str, int], left_float: dict[str, str]) -> None:
        self.graph, self.types, self.left_float = model.graph, types, left_float
        self.opset = opset_of(model)
        self.index = Index.of(model.graph)
        bodies = list(all_graphs(model.graph))[1:]
        # These keep their type: they are shown outside, or the body of a branch reads them.
        self.fixed = self.index.outputs | {name for one in bodies for node in one.node for name in node.input}
        self.pairs = {
            node.output[0]: onnx.NodeProto(op_type=node.op_type, input=node.input, attribute=node.attribute)
            for node in model.graph.node
            if node.op_type == "DequantizeLinear"
        }
        self.now: dict[str, int] = {value.name: types[value.name] for value in model.graph.input}
        self.made: dict[tuple[str, int], str] = {}
        self.in_half = 0

    def nodes(self) -> Iterator[onnx.NodeProto]:
        """All nodes, with the casts between the two precisions."""
        for node in self.graph.node:
            float_only = node.op_type == "Cast" or node.name in self.left_float
            schema = None if float_only else _schema(node, self.opset)
            half = schema is not None
            floats = [name for name in (*node.input, *node.output) if self.types.get(name) == FLOAT]
            self.in_half += half and bool(floats)
            for place, name in enumerate(node.input):
                if self.types.get(name) == FLOAT:
                    wanted = (
                        HALF if schema is not None and _allows_half(schema, schema.inputs, place) else FLOAT
                    )
                    node.input[place], cast = self._as(name, wanted)
                    yield from cast
            shown = []
            for place, name in enumerate(node.output):
                if self.types.get(name) != FLOAT:
                    continue
                self.now[name] = HALF if half else FLOAT
                if half and name in self.fixed:
                    shown.append(name)
                    node.output[place] = f"{name}:half"
                    self.made[name, HALF] = f"{name}:half"
                    self.now[name] = FLOAT
            yield node
            for name in shown:
                yield helper.make_node("Cast", [f"{name}:half"], [name], name=f"{name}/Cast", to=FLOAT)

    def _as(self, name: str, kind: int) -> tuple[str, list[onnx.NodeProto]]:
        """The name of a tensor in a type, and the cast to it where there is none yet."""
        if (name, kind) in self.made:
            return self.made[name, kind], []
        value = self.index.value(name)
        if value is not None:
            return (name if kind == FLOAT else self._stored(name, value)), []
        if self.now[name] == kind:
            return name, []
        self.made[name, kind] = made = f"{name}:{'half' if kind == HALF else 'float'}"
        if kind == FLOAT and name in self.pairs:  # a cast behind it would break its fusion
            node = self.pairs[name]
            node.name, node.output[:] = f"{made}/DequantizeLinear", [made]
            return made, [node]
        return made, [helper.make_node("Cast", [name], [made], name=f"{made}/Cast", to=kind)]

    def _stored(self, name: str, value: Array) -> str:
        self.made[name, HALF] = made = f"{name}:half"
        self.graph.initializer.append(numpy_helper.from_array(value.astype(np.float16), made))
        return made
