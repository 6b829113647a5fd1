"""The canonical form: rewrites between torch's exporter and a file that every target parses.

torch writes opset 18 or newer, with stack traces, paths and numbered names; old TensorRT parsers stop at
17, and a cache needs equal bytes for equal networks. Each function changes one such property in place and
preserves what the graph computes.
"""

from __future__ import annotations

import ast
from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper

from ...targets.errors import ModelError
from .external_data import array_of
from .graph import Array, Index, attribute_of, drop_unused, replace_nodes, tensor_types
from .walk import all_graphs, unique

_LAYER_NORM = "LayerNormalization"
# Further inputs did not exist in opset 17; with these counts, and the listed attributes at these values, the
# definitions of 17 and 18 are equal.
_SAME_INPUTS = {"Pad": 3, "Resize": 4}
_SAME_VALUES: dict[str, dict[str, tuple[int | bytes, ...]]] = {
    "Resize": {"antialias": (0,), "keep_aspect_ratio_policy": (b"stretch",), "axes": ()},
    "ScatterElements": {"reduction": (b"none", b"add", b"mul")},
    "ScatterND": {"reduction": (b"none", b"add", b"mul")},
    "LpPool": {"dilations": (), "ceil_mode": (0,)},
    "Pad": {"mode": (b"constant", b"reflect", b"edge")},
}


def lower_opset(model: onnx.ModelProto, opset: int) -> None:
    """Converts a model of opset 18 to opset 17.

    An operator whose definition is equal in both is unchanged, by `onnx.defs`. The others are rewritten or
    refused.

    Raises:
        ModelError: an operator cannot be expressed in `opset`.
    """
    imported = next(entry for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    refused, least = [], imported.version
    for graph in all_graphs(model.graph):
        index = Index.of(graph)
        for node in graph.node:
            since = _since(node, imported.version)
            if since > opset and not (opset == 17 and imported.version == 18 and _rewrite_in_17(node, index)):
                refused.append(f"{node.name or node.output[0]} ({node.op_type})")
                least = max(least, since)
    if refused:
        raise ModelError(
            f"Opset {opset} cannot express {', '.join(refused[:5])}.",
            f"Export at opset {least} (the target must run TensorRT 10), or replace the operator.",
        )
    imported.version = opset
    drop_unused(model.graph)


def _since(node: onnx.NodeProto, opset: int) -> int:
    """The opset of an operator's definition; of its newest, if `opset` has none."""
    if node.domain not in ("", "ai.onnx"):
        return 0
    known = opset if defs.has(node.op_type, opset, "") else defs.onnx_opset_version()
    return int(defs.get_schema(node.op_type, known, "").since_version)


def _rewrite_in_17(node: onnx.NodeProto, index: Index) -> bool:
    kind = node.op_type
    if kind.startswith("Reduce"):
        # The axes were an attribute before they became an input.
        given = len(node.input) > 1 and bool(node.input[1])
        axes = index.value(node.input[1]) if given else None
        over_nothing = attribute_of(node, "noop_with_empty_axes", 0) and (axes is None or axes.size == 0)
        if over_nothing or (given and axes is None):
            return False
        _drop_attribute(node, "noop_with_empty_axes")
        if axes is not None and axes.size:
            node.attribute.append(helper.make_attribute("axes", [int(axis) for axis in axes]))
        del node.input[1:]
        return True
    if kind == "Split":
        # Without sizes 17 splits evenly into one part per output; num_outputs came in 18.
        _drop_attribute(node, "num_outputs")
        return True
    if kind not in _SAME_VALUES or len(node.input) > _SAME_INPUTS.get(kind, len(node.input)):
        return False
    for attribute in list(node.attribute):
        same = _SAME_VALUES[kind].get(attribute.name)
        if same is None:
            continue
        if helper.get_attribute_value(attribute) not in same:
            return False
        if kind in ("Resize", "LpPool"):  # these attributes do not exist in 17
            _drop_attribute(node, attribute.name)
    return True


def _drop_attribute(node: onnx.NodeProto, name: str) -> None:
    for attribute in [each for each in node.attribute if each.name == name]:
        node.attribute.remove(attribute)


def name_by_module(model: onnx.ModelProto, parameters: Collection[str], outputs: list[str]) -> None:
    """Names every node after the module it came from and its operator, e.g. "layer1.conv/Conv".

    The exporter's names are numbered over the whole graph, so that removing a layer renames all others; these
    names stay, and layers can be compared before and after pruning. Outputs get the names `outputs`.
    """
    graph = model.graph
    # An output that is an input, a constant or a second output needs its own value for a name.
    made = {name for node in graph.node for name in node.output}
    seen: set[str] = set()
    for value in graph.output:
        if value.name in seen or value.name not in made:
            fresh = unique(f"{value.name}:copy", made)
            graph.node.append(helper.make_node("Identity", [value.name], [fresh]))
            value.name = fresh
        seen.add(value.name)
    new: dict[str, str] = dict(zip((value.name for value in graph.output), outputs, strict=True))
    used = {value.name for value in graph.input} | set(outputs)
    for node in graph.node:
        scope = _module_of(node, parameters)
        node.name = unique(f"{scope}/{node.op_type}" if scope else node.op_type, used)
        for place, name in enumerate(node.output):
            if name and name not in new:
                new[name] = node.name if place == 0 else unique(f"{node.name}:{place}", used)
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in constants and name not in new and _parameter(name, parameters) is None:
                new[name] = unique(f"{node.name}:constant{place}", used)
    rename(graph, new)


def _module_of(node: onnx.NodeProto, parameters: Collection[str]) -> str:
    if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        # A folded batch norm leaves its name on the convolution; the weight has the convolution's name.
        parameter = _parameter(node.input[1], parameters)
        if parameter is not None:
            return parameter.rpartition(".")[0]
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = ast.literal_eval(entry.value)
            return str(scopes[-2]) if len(scopes) > 1 else ""
    return ""


def _parameter(name: str, parameters: Collection[str]) -> str | None:
    # Folding adds a suffix: "conv.weight_bias" and "conv.weight_folded" are from conv.weight.
    while name not in parameters:
        name, found, _ = name.rpartition("_")
        if not found:
            return None
    return name


def rename(graph: onnx.GraphProto, new: dict[str, str]) -> None:
    """Renames tensors in nodes, inputs, outputs and constants."""
    for inner in all_graphs(graph):
        for node in inner.node:
            node.input[:] = [new.get(name, name) for name in node.input]
            node.output[:] = [new.get(name, name) for name in node.output]
        for group in (inner.input, inner.output, inner.initializer, inner.value_info):
            for entry in group:
                entry.name = new.get(entry.name, entry.name)


def global_pools(model: onnx.ModelProto) -> None:
    """Replaces a mean over all spatial axes by GlobalAveragePool, which runtimes quantize and fuse.

    torch exports AdaptiveAvgPool2d(1) and x.mean((2, 3)) as ReduceMean; ranks are read from value infos.
    """
    graph = model.graph
    index = Index.of(graph)
    ranks = {
        v.name: len(v.type.tensor_type.shape.dim) for v in (*graph.value_info, *graph.input, *graph.output)
    }
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        rank = ranks.get(node.input[0], 0) if node.op_type == "ReduceMean" else 0
        axes = index.value(node.input[1]) if len(node.input) > 1 else attribute_of(node, "axes")
        if rank < 3 or axes is None or sorted(int(a) % rank for a in axes) != list(range(2, rank)):
            continue
        if not attribute_of(node, "keepdims", 1):
            flatten = helper.make_node("Flatten", [f"{node.output[0]}_pooled"], node.output[:])
            flatten.metadata_props.extend(node.metadata_props)
            node.output[0] = flatten.input[0]
            nodes.append(flatten)
        node.op_type = "GlobalAveragePool"
        del node.input[1:]
        del node.attribute[:]
    replace_nodes(graph, nodes)


def fold_batch_norm(model: onnx.ModelProto) -> None:
    """Folds a batch norm into the Conv, ConvTranspose or Gemm before it (Jacob et al. 2018, section 3.2)."""
    graph = model.graph
    index = Index.of(graph)
    used = set(index.constants)
    gone: set[str] = set()
    for norm in graph.node:
        weighted = index.producer.get(norm.input[0]) if norm.op_type == "BatchNormalization" else None
        if weighted is None or weighted.op_type not in ("Conv", "ConvTranspose", "Gemm"):
            continue
        values = [index.value(name) for name in (*norm.input[1:5], *weighted.input[1:3])]
        alone = index.read_only_by(norm.input[0], ("BatchNormalization",)) is not None
        scaled = attribute_of(weighted, "alpha", 1.0) != 1.0 or attribute_of(weighted, "beta", 1.0) != 1.0
        training = attribute_of(norm, "training_mode", 0)  # by the batch's own statistics
        if not alone or scaled or training or any(value is None for value in values):
            continue
        gamma, beta, mean, variance, weight, *bias = [np.asarray(v, np.float64) for v in values]
        factor = gamma / np.sqrt(variance + attribute_of(norm, "epsilon", 1e-5))
        shift = beta + ((bias[0] if bias else 0.0) - mean) * factor
        folded = _scale_outputs(weight, factor, weighted)
        names = [unique(f"{weighted.input[1]}_{end}", used) for end in ("folded", "shift")]
        for name, value in zip(names, (folded, shift), strict=True):
            graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
        weighted.input[1:] = names
        weighted.output[0] = norm.output[0]
        gone.add(norm.output[0])
    if gone:
        kept = [n for n in graph.node if not (n.op_type == "BatchNormalization" and n.output[0] in gone)]
        replace_nodes(graph, kept)
        drop_unused(graph)


def _scale_outputs(weight: Array, factor: Array, node: onnx.NodeProto) -> Array:
    if node.op_type == "ConvTranspose":
        # [in, out/groups, ...]: with groups the output channel is spread over two axes.
        groups = int(attribute_of(node, "group", 1))
        rows = factor.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
        return np.asarray((weight.reshape(groups, -1, *weight.shape[1:]) * rows).reshape(weight.shape))
    if node.op_type == "Gemm" and not attribute_of(node, "transB", 0):
        return np.asarray(weight * factor)
    return np.asarray(weight * factor.reshape(-1, *[1] * (weight.ndim - 1)))


def strip(model: onnx.ModelProto, opset: int) -> None:
    """Removes all but the computation: stack traces, paths, versions and intermediate shapes."""
    model.producer_name = "deadweight"
    model.ir_version = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    for field in ("producer_version", "domain", "doc_string", "metadata_props", "model_version"):
        model.ClearField(field)
    for graph in all_graphs(model.graph):
        graph.name = "network"
        for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
            for field in ("doc_string", "metadata_props"):
                part.ClearField(field)
        del graph.value_info[:]
        for node in graph.node:
            if node.op_type == "Reshape":
                # Without a zero in the shape the flag has no effect, and some parsers refuse it.
                shape = next((t for t in graph.initializer if t.name == node.input[1]), None)
                if shape is not None and not (array_of(shape) == 0).any():
                    _drop_attribute(node, "allowzero")
            attributes = sorted(node.attribute, key=lambda each: each.name)
            ordered = onnx.NodeProto(attribute=attributes).attribute
            del node.attribute[:]
            node.attribute.extend(ordered)
    drop_unused(model.graph)


def name_batch_axis(model: onnx.ModelProto) -> None:
    """Names the first axis of every input and output "batch"."""
    symbols = {value.type.tensor_type.shape.dim[0].dim_param for value in model.graph.input}
    for value in (*model.graph.input, *model.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in symbols:
                axis.dim_param = "batch"


def spell_out_layer_norms(model: onnx.ModelProto) -> None:
    """Replaces each float32 LayerNormalization for parsers without that operator: TensorRT before 8.6.

    The order is that of torch before opset 17, the pattern that TensorRT 8.5 fuses: mean, difference, square,
    mean, epsilon, root, quotient, scale, shift (Ba, Kiros and Hinton, "Layer Normalization", 2016). Where the
    operator exists it is better: in FP16 it still accumulates in FP32. Group and instance norms need nothing:
    torch writes both as InstanceNormalization, which 8.5 has.

    The model is of opset 18 or newer. Other types are unchanged: they accumulate in another than their input.
    """
    known = tensor_types(model)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        found = known.get(node.input[0]) if node.op_type == _LAYER_NORM else None
        if found is None or found.elem_type != TensorProto.FLOAT or any(node.output[1:]):
            nodes.append(node)
            continue
        first, rank = int(attribute_of(node, "axis", -1)), len(found.shape.dim)
        nodes += _spelled(node, list(range(first if first < 0 else first - rank, 0)), model.graph)
    replace_nodes(model.graph, nodes)


def _spelled(node: onnx.NodeProto, axes: list[int], graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    made: list[onnx.NodeProto] = []
    scope = node.name.removesuffix(f"/{_LAYER_NORM}")

    def constant(what: str, value: Array) -> str:
        graph.initializer.append(numpy_helper.from_array(value, f"{node.name}:{what}"))
        return f"{node.name}:{what}"

    def call(operator: str, what: str, *inputs: str) -> str:
        made.append(helper.make_node(operator, inputs, [f"{node.name}:{what}"], name=f"{scope}/{what}"))
        made[-1].metadata_props.extend(node.metadata_props)
        return f"{node.name}:{what}"

    over = constant("axes", np.array(axes, np.int64))
    epsilon = np.array(attribute_of(node, "epsilon", 1e-5), np.float32)
    centred = call("Sub", "centred", node.input[0], call("ReduceMean", "mean", node.input[0], over))
    squared = call("Pow", "squared", centred, constant("two", np.array(2.0, np.float32)))
    variance = call("ReduceMean", "variance", squared, over)
    deviation = call("Sqrt", "deviation", call("Add", "raised", variance, constant("epsilon", epsilon)))
    result = call("Mul", "scaled", call("Div", "normed", centred, deviation), node.input[1])
    if len(node.input) > 2 and node.input[2]:
        result = call("Add", "shifted", result, node.input[2])
    made[-1].output[0] = node.output[0]
    return made
