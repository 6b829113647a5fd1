"""Exporter workarounds: rewrites of a traced network that torch's exporter cannot convert.

A view is valid only for some memory layouts, and the exporter lowers attention to another layout than the
traced one; after a copy it is always valid, and ONNX has no layouts, so the copy vanishes. Attention over
more or fewer than four axes has no translation, but its definition has. ONNX's LSTM has no projection: one
with `proj_size` becomes operators, step by step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

aten = torch.ops.aten


def restate(program: ExportedProgram) -> ExportedProgram:
    """A program with the same results; the graph of `program` is changed."""
    if any(map(_projects, program.graph.nodes)):
        lstm = aten.lstm.input
        program = program.run_decompositions({lstm: torch.export.default_decompositions()[lstm]})
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target in (aten.view.default, aten.reshape.default) and not _in_order(node.args[0]):
            with graph.inserting_before(node):
                settings: dict[str, Any] = {"memory_format": torch.contiguous_format}
                copied = graph.call_function(aten.clone.default, (node.args[0],), settings)
                copied.meta = dict(node.meta)
                copied.meta["val"] = node.args[0].meta["val"].contiguous()
            node.update_arg(0, copied)
        elif node.target is aten.scaled_dot_product_attention.default and _odd(node):
            _spell_out(graph, node)
    graph.lint()
    program.graph_module.recompile()
    return program


def _projects(node: Node) -> bool:
    """Whether an LSTM has five weights for each layer and direction, or three without biases."""
    if node.target is not aten.lstm.input:
        return False
    given: Any = node.args
    _, _, weights, biased, layers, _, _, both, _ = given
    return bool(len(weights) > layers * (1 + both) * (4 if biased else 2))


def _in_order(operand: Node) -> bool:
    turned = operand.target in (aten.transpose.int, aten.permute.default, aten.contiguous.default)
    return not turned and operand.meta["val"].is_contiguous()


def _odd(node: Node) -> bool:
    """Whether attention has no translation and a simple definition: not over 4 axes, not causal."""
    query, causal = node.args[0], _argument(node, 5, "is_causal", False)
    shared = _argument(node, 7, "enable_gqa", False)
    assert isinstance(query, Node)
    return query.meta["val"].dim() != 4 and not causal and not shared


def _spell_out(graph: Graph, node: Node) -> None:
    """softmax(q k^T scale + mask) v (Vaswani et al. 2017, equation 1)."""
    query, key, value = node.args[:3]
    assert isinstance(query, Node)
    mask, scale = _argument(node, 3, "attn_mask", None), _argument(node, 6, "scale", None)
    with graph.inserting_before(node):
        made: list[Node] = []

        def call(operator: Any, *args: Any) -> Node:
            made.append(graph.call_function(operator, args))
            made[-1].meta = dict(node.meta)
            made[-1].meta["val"] = operator(
                *(one.meta["val"] if isinstance(one, Node) else one for one in args)
            )
            return made[-1]

        width = query.meta["val"].shape[-1]
        scores = call(aten.matmul.default, query, call(aten.transpose.int, key, -2, -1))
        scores = call(aten.mul.Tensor, scores, width**-0.5 if scale is None else scale)
        if mask is not None and mask.meta["val"].dtype == torch.bool:
            hidden = call(aten.logical_not.default, mask)
            scores = call(aten.masked_fill.Scalar, scores, hidden, float("-inf"))
        elif mask is not None:
            scores = call(aten.add.Tensor, scores, mask)
        result = call(aten.matmul.default, call(aten.softmax.int, scores, -1), value)
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def _argument(node: Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)
