"""Conversion of operators in float to FP16, since strongly typed TensorRT networks have no flag for it.

TensorRT 10 builds such networks, 11 only such; otherwise what is not quantized runs in FP32 there. Inputs and
outputs stay FP32, and so do every operator and every single input without half precision in ONNX; casts are
added around them. Scales are FP16 like their data, which QuantizeLinear allows from opset 19 on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper

from ...targets.errors import ModelError
from ..onnx_graph.float_input import at_opset, with_initializers
from ..onnx_graph.graph import QUANTIZED, Array, Index, OnnxModel, all_graphs, drop_unused, replace_nodes

OPSET = 19
LARGEST = float(np.finfo(np.float16).max)
SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
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


def to_half(model: OnnxModel, *, tensorrt: tuple[int, ...] = (10, 0)) -> Halved:
    """The model, float or with Q/DQ pairs, with its float part in FP16.

    Args:
        tensorrt: the version that will build it.

    Raises:
        ModelError: that version has no strongly typed networks; the model has branches or loops, cannot be
            converted to opset 19, or has a scale outside FP16's range.
    """
    if tensorrt < (10,):
        raise ModelError(
            f"TensorRT {'.'.join(map(str, tensorrt))} has no FP16 scales: it parses up to opset 17, and "
            f"they need {OPSET}.",
            "Keep the file in FP32 and build it with the flags INT8 and FP16, which that version has.",
        )
    model = with_initializers(at_opset(model, OPSET))
    if len(list(all_graphs(model.graph))) > 1:
        raise ModelError(
            f"{model.path} has branches or loops, whose bodies are not converted.",
            "Unroll them before the export.",
        )
    types = {name: kind.elem_type for name, kind in model.types.items()}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    left_float = {node.name: why for node in model.graph.node if (why := _why_not(node, types, model.index))}
    made = model.copy()
    writer = _Writer(made.proto, types, left_float)
    replace_nodes(made.graph, list(writer.nodes()))
    del made.graph.value_info[:]
    drop_unused(made.graph)
    return Halved(made, writer.in_half, left_float)


def _schema(node: onnx.NodeProto) -> defs.OpSchema | None:
    try:
        return defs.get_schema(node.op_type, OPSET, node.domain)
    except onnx.defs.SchemaError:
        return None


def _allows_half(schema: defs.OpSchema, formals: Sequence[defs.OpSchema.FormalParameter], place: int) -> bool:
    """Whether an input or output may be half precision; a variadic one counts for all further positions."""
    if place >= len(formals) and not (formals and formals[-1].option == VARIADIC):
        return False
    named = formals[min(place, len(formals) - 1)].type_str  # "T", or a type itself
    allowed = {one.type_param_str: one.allowed_type_strs for one in schema.type_constraints}
    return "tensor(float16)" in allowed.get(named, (named,))


def _why_not(node: onnx.NodeProto, types: dict[str, int], index: Index) -> str:
    """Why an operator stays in FP32; empty where it does not, or has no floats."""
    if not any(types.get(name) == FLOAT for name in (*node.input, *node.output)) or node.op_type == "Cast":
        return ""
    schema = _schema(node)
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
    for name in node.input:
        # Attention masks have -1e9 or the largest float32, which may become infinite in FP16.
        value = index.value(name) if types.get(name) == FLOAT and node.op_type not in QUANTIZED else None
        if value is not None and LARGEST < (largest := float(np.abs(value).max(initial=0.0))) < np.inf:
            return f"its constant {name!r} reaches {largest:.4g}, but FP16 only {LARGEST:.0f}"
    return ""


class _Writer:
    """Rewrites the nodes; a tensor keeps its name in the type of its operator's output."""

    def __init__(self, model: onnx.ModelProto, types: dict[str, int], left_float: dict[str, str]) -> None:
        self.graph, self.types, self.left_float = model.graph, types, left_float
        self.index = Index.of(model.graph)
        self.now: dict[str, int] = {value.name: types[value.name] for value in model.graph.input}
        self.made: dict[tuple[str, int], str] = {}
        self.in_half = 0

    def nodes(self) -> Iterator[onnx.NodeProto]:
        """All nodes, with the casts between the two precisions."""
        for node in self.graph.node:
            schema = None if node.op_type == "Cast" or node.name in self.left_float else _schema(node)
            half = schema is not None
            floats = [name for name in (*node.input, *node.output) if self.types.get(name) == FLOAT]
            self.in_half += half and bool(floats)
            for place, name in enumerate(node.input):
                if self.types.get(name) == FLOAT:
                    wanted = (
                        HALF if schema is not None and _allows_half(schema, schema.inputs, place) else FLOAT
                    )
                    node.input[place], cast = self._as(name, wanted, node)
                    yield from cast
            shown = []
            for place, name in enumerate(node.output):
                if self.types.get(name) != FLOAT:
                    continue
                self.now[name] = HALF if half else FLOAT
                if half and name in self.index.outputs:
                    shown.append(name)
                    node.output[place] = f"{name}:half"
                    self.made[name, HALF] = f"{name}:half"
                    self.now[name] = FLOAT
            yield node
            for name in shown:
                yield helper.make_node("Cast", [f"{name}:half"], [name], name=f"{name}/Cast", to=FLOAT)

    def _as(self, name: str, kind: int, node: onnx.NodeProto) -> tuple[str, list[onnx.NodeProto]]:
        """The name of a tensor in a type, and the cast to it where there is none yet."""
        if (name, kind) in self.made:
            return self.made[name, kind], []
        value = self.index.value(name)
        if value is not None:
            return (name if kind == FLOAT else self._stored(name, value, node)), []
        if self.now[name] == kind:
            return name, []
        self.made[name, kind] = made = f"{name}:{'half' if kind == HALF else 'float'}"
        return made, [helper.make_node("Cast", [name], [made], name=f"{made}/Cast", to=kind)]

    def _stored(self, name: str, value: Array, node: onnx.NodeProto) -> str:
        fault = ""
        if node.op_type in QUANTIZED and float(value.max()) > LARGEST:
            fault = f"{float(value.max()):.4g}; FP16 reaches only {LARGEST:.0f}"
        elif node.op_type in QUANTIZED and float(value.min()) < SMALLEST:
            fault = f"{float(value.min()):.3g}, which is 0 in FP16"
        if fault:
            cure = "Keep that layer in float: skip it when quantizing."
            raise ModelError(f"The scale {name!r} of {node.name!r} is {fault}.", cure)
        self.made[name, HALF] = made = f"{name}:half"
        self.graph.initializer.append(numpy_helper.from_array(value.astype(np.float16), made))
        return made
