"""The placement of Q/DQ pairs: the rules of each dialect, with their reasons.

A placement has the tensors that are rounded to int8, the readers of the rounded values, the tensors that
share a scale, and the constants stored as int8 weights. It is independent of ranges: calibration uses it to
select tensors, `to_qdq` to write the file.

There are two dialects, since each runtime fuses other patterns, and what one fuses the other runs in float:

"tensorrt"  TensorRT fuses a weighted operator with what follows it (batch norm, residual add, activation)
            with the precision of its inputs. So pairs are at inputs, never in between.
"x86"       ONNX Runtime replaces an operator only when it sits between dequantized inputs and a quantized
            output. So pairs are on every edge of a convolutional region, after the activation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from ...targets.errors import ModelError, meant
from ..onnx_graph import kernels
from ..onnx_graph.graph import WEIGHTED, Index, OnnxModel, attribute_of
from ..onnx_graph.walk import all_graphs, bodies
from .fusions import IN_FLOAT, residual_branches, summed_in_float


@dataclass(frozen=True)
class DialectRules:
    """The differences between dialects."""

    operators: tuple[str, ...]
    """Weighted operators with an int8 kernel. ONNX Runtime has no int8 transposed convolution."""
    symmetric: bool
    """int8 with zero point 0 and biases in float; else uint8 activations and int32 biases."""
    every_edge: bool
    """Whether pairs are on every edge of a region, and all readers use the rounded value."""
    concat_rescales: bool
    """Whether the inputs of a Concat may have different scales."""
    onnx_runtime: bool
    """Whether the kernels are ONNX Runtime's: what they run in float stays in float."""


DIALECTS = {
    "tensorrt": DialectRules(
        ("Conv", "ConvTranspose", "Gemm", "MatMul"),
        symmetric=True,
        every_edge=False,
        concat_rescales=False,
        onnx_runtime=False,
    ),
    "x86": DialectRules(
        ("Conv", "Gemm", "MatMul"), symmetric=False, every_edge=True, concat_rescales=True, onnx_runtime=True
    ),
}
# These move values without changing them, so rounding before or after is equal for an equal scale.
MOVES = ("MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "DepthToSpace")
# ONNX Runtime has int8 kernels for these, useful between int8 neighbours.
BETWEEN = (*MOVES, "Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu")


@dataclass(frozen=True)
class Weight:
    """A constant input of a weighted operator; `axis` is the output channel's, None for a single scale."""

    name: str
    axis: int | None


@dataclass(frozen=True)
class Placement:
    """The tensors and weights to quantize.

    Attributes:
        tensors: computed tensors that get a pair, in the order of the graph.
        readers: (position of the node, position of the input) that use the rounded value.
        weights: by (position of the node, position of the input).
        ties: for each tensor of `tensors` those that share its scale, itself included.
        everywhere: whether all other readers and the network's output use the rounded value too.
        left_float: names of the weighted operators that stay in float, with the reason.
    """

    tensors: tuple[str, ...]
    readers: frozenset[tuple[int, int]]
    weights: dict[tuple[int, int], Weight]
    ties: dict[str, tuple[str, ...]]
    everywhere: bool
    left_float: dict[str, str]

    def rounds(self, position: int, place_: int, name: str) -> bool:
        """Whether the node at `position` reads the rounded value of the tensor `name`, its input `place_`."""
        return name in self.ties and (self.everywhere or (position, place_) in self.readers)


def place(model: OnnxModel, dialect: str, *, skip: Collection[str] = ()) -> Placement:
    """The placement of a float model for one dialect.

    Args:
        skip: names of weighted nodes that stay in float.

    Raises:
        ModelError: the dialect or a name of `skip` is unknown.
    """
    rules, graph, index = rules_of(dialect), model.graph, model.index
    known = [node.name for node in graph.node if node.op_type in WEIGHTED]
    for name in skip:
        if name not in known:
            raise ModelError(
                f"There is no weighted operator {name!r} to keep in float.",
                meant(name, known, f"The network has {', '.join(known)}."),
            )
    not_float = model.not_float32()
    if rules.onnx_runtime:
        apart = dict.fromkeys(summed_in_float(model), IN_FLOAT)
    else:
        apart = dict.fromkeys(kernels.single_rows(model), kernels.SINGLE_ROW)
    left_float = _out_of_reach(graph)
    chosen: list[int] = []
    for position, node in enumerate(graph.node):
        if node.op_type in kernels.CONVOLUTIONS or node.op_type in rules.operators:
            reason = _reason_for_float(node, index, rules, skip, not_float) or apart.get(node.name, "")
            if reason:
                left_float[node.name] = reason
            else:
                chosen.append(position)
    weights: dict[tuple[int, int], Weight] = {}
    readers: set[tuple[int, int]] = set()
    for position in chosen:
        node = graph.node[position]
        # The third input, the bias, stays float: TensorRT has no int32 bias.
        for place_, name in enumerate(node.input[:2]):
            if name in index.constants:
                axis = channel_axis(node, place_, len(index.constants[name].dims))
                weights[position, place_] = Weight(name, axis)
            else:
                readers.add((position, place_))
    if not rules.every_edge:
        readers |= residual_branches(graph, index, chosen)
    tensors = {graph.node[position].input[place_] for position, place_ in readers}
    if rules.every_edge:
        for node in (graph.node[position] for position in chosen):
            behind = _after_activation(node, index)
            # ONNX Runtime runs a product and its ReLU in int8 only if the ReLU's result is rounded.
            if node.op_type == "Conv" or (behind != node.output[0] and behind not in index.outputs):
                tensors.add(behind)
        tensors = _spread(graph, index, tensors)
    order = [value.name for value in graph.input] + [name for node in graph.node for name in node.output]
    ordered = tuple(name for name in order if name in tensors)
    ties = _ties(graph, ordered, rules)
    return Placement(ordered, frozenset(readers), weights, ties, rules.every_edge, left_float)


def rules_of(dialect: str) -> DialectRules:
    """The rules of a dialect; a ModelError if it is unknown."""
    if dialect not in DIALECTS:
        raise ModelError(f"There is no dialect {dialect!r}.", f"Choose one of {', '.join(DIALECTS)}.")
    return DIALECTS[dialect]


def nothing_to_quantize(path: Path, left_float: Mapping[str, str]) -> ModelError:
    """The error for a network without an operator for int8, with the reason for each weighted one."""
    reasons = "".join(f" {name} stays in float: {why}." for name, why in left_float.items())
    return ModelError(
        f"{path} has no convolution, Gemm or MatMul to quantize.{reasons}",
        "Use the float model as it is; for a network in FP16 or FP64 give the FP32 one.",
    )


def _out_of_reach(graph: onnx.GraphProto) -> dict[str, str]:
    """The products that no dialect rounds: those of an Einsum, and in the bodies of branches and loops."""
    found = {}
    for node in graph.node:
        if node.op_type == "Einsum":
            found[node.name] = "no runtime has an INT8 Einsum: export it as a MatMul"
        for inner in (each for body in bodies(node) for each in all_graphs(body)):
            for one in inner.node:
                if one.op_type in (*WEIGHTED, "Einsum"):
                    name = one.name or f"{one.output[0]}/{one.op_type}"
                    found[name] = f"it is in a body of the {node.op_type} {node.name}"
    return found


def _reason_for_float(
    node: onnx.NodeProto, index: Index, rules: DialectRules, skip: Collection[str], not_float: Collection[str]
) -> str:
    if node.name in skip:
        return "requested"
    if node.op_type not in rules.operators:
        return f"ONNX Runtime has no int8 {node.op_type}"
    if len(node.input) < 2:
        return "it lacks a factor"
    for name in node.input[:2]:
        tensor = index.constants.get(name)
        if tensor is not None and (tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2):
            return "its weight is not a float32 matrix"
        if name in not_float:
            return "its factors are not float32"
    if len(index.computed(node)) == 0:
        return "it computes a constant"
    if rules.onnx_runtime:
        return kernels.float_in_onnx_runtime(node, index)
    weight = index.constants.get(node.input[1])
    if weight is not None:
        return kernels.without_int8_kernel(node, weight.dims, first=node.input[0] not in index.producer)
    return ""


def channel_axis(node: onnx.NodeProto, place_: int, dimensions: int) -> int | None:
    """The axis of per-channel scales of a weight: the output channel's; None without one.

    Only there can the accumulator of a channel be rescaled.

    Args:
        place_: the input position of the weight in `node`.
        dimensions: the number of axes of the weight.
    """
    if place_ == 0:
        return None
    if node.op_type == "Conv":  # [out, in/groups, ...]
        return 0
    if node.op_type == "ConvTranspose":  # [in, out/groups, ...]
        return 1
    if node.op_type == "Gemm":
        return 0 if attribute_of(node, "transB", 0) else 1
    return 1 if dimensions == 2 else None


def clipped_at(node: onnx.NodeProto, index: Index) -> float | None:
    """The upper bound of an activation that saturation of an unsigned integer implements; None for others.

    ReLU is unbounded (infinity); Clip(0, b) has b.
    """
    if node.op_type == "Relu":
        return float("inf")
    if node.op_type == "Clip":
        low = index.value(node.input[1]) if len(node.input) > 1 and node.input[1] else None
        high = index.value(node.input[2]) if len(node.input) > 2 and node.input[2] else np.float32(np.inf)
        if low is not None and high is not None and float(low) == 0.0:
            return float(high)
    return None


def _after_activation(node: onnx.NodeProto, index: Index) -> str:
    # Saturation at zero is free in uint8: the tensor after a ReLU is rounded, and the ReLU is dropped.
    activation = index.read_only_by(node.output[0], ("Relu", "Clip"))
    if activation is not None and clipped_at(activation, index) is not None:
        return str(activation.output[0])
    return str(node.output[0])


def _spread(graph: onnx.GraphProto, index: Index, tensors: set[str]) -> set[str]:
    # An operator between rounded tensors runs in int8 if its output is rounded too.
    spread = set(tensors)
    for node in graph.node:
        data = node.input[:1] if node.op_type in MOVES else node.input
        inside = node.op_type in BETWEEN and all(name in spread for name in data)
        if inside and not index.outputs.intersection(node.output):
            spread.add(_after_activation(node, index) if node.op_type in ("Add", "Mul") else node.output[0])
    return spread


def _ties(
    graph: onnx.GraphProto, tensors: tuple[str, ...], rules: DialectRules
) -> dict[str, tuple[str, ...]]:
    """Tensors that must share a scale.

    A move has the scale of its input. TensorRT concatenates tensors without rescaling, so all inputs of a
    Concat and its output share one; ONNX Runtime's concat rescales, so its inputs may differ.
    """
    group = {name: {name} for node in graph.node for name in (*node.input, *node.output) if name}
    for node in graph.node:
        if node.op_type in MOVES:
            together = [node.input[0], node.output[0]]
        elif node.op_type == "Concat" and not rules.concat_rescales:
            together = [*node.input, node.output[0]]
        else:
            continue
        joined = set().union(*(group[name] for name in together))
        for name in joined:
            group[name] = joined
    wanted = set(tensors)
    return {name: tuple(sorted(group[name] & wanted)) for name in tensors}
