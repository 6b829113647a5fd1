"""The mapping from ONNX Runtime's kernels to layers of the file, by name.

The runtime makes a kernel's name from the nodes it fused, or from its output tensor, with affixes:
`fused fc1/Gemm`, `relu/Relu_nchwc`. See `ort_layers`, which takes the times.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Dict, Iterator, Mapping, Optional, Sequence, Tuple

from ..onnx_file import Node, Nodes

_INWARD = ("ReorderInput", "QuantizeLinear", "Transpose", "Cast", "DynamicQuantizeLinear")
_OUTWARD = ("ReorderOutput", "DequantizeLinear")
HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulInteger", "ConvInteger", "LSTM", "GRU", "RNN")
_AFFIXES = re.compile(r"^fused |(_kernel_time|_nchwc|_nhwc|_token_\d+|_quant|_Conv|_fused)$")


def owners_of(kernels: Sequence[Tuple[str, str]], graph: Nodes) -> Dict[str, Tuple[Node, bool]]:
    """For each kernel (name, operator), in execution order: its layer's node, and if it is a conversion."""
    # A node without a name gets one from the runtime: its operator and its place.
    nodes = [
        node if node.name else replace(node, name=f"{node.op_type}_{at}")
        for at, node in enumerate(graph.nodes)
    ]
    makers = {output: node for node in nodes for output in node.outputs}
    # Some of the runtime's passes name a kernel after the node, others after its output tensor.
    by_name = {**makers, **{node.name: node for node in nodes}}
    own: Dict[str, Optional[Node]] = {}
    for name, op in kernels:
        converts = op in _INWARD + _OUTWARD
        node = _named(name, by_name)
        if node is not None and op not in (node.op_type,) and _is_heavy(op) and not _is_heavy(node.op_type):
            node = _heavy_before(node, makers) or node
        if node is None and not converts:
            node = Node(_stripped(name), op, (), ())
        own[name] = node if not converts or (node is not None and node.op_type == op == "Transpose") else None
    owners: Dict[str, Tuple[Node, bool]] = {}
    names = [name for name, _ in kernels]
    ops = dict(kernels)
    for at, name in enumerate(names):
        node = own[name]
        if node is not None:
            owners[name] = (node, False)
            continue
        after = next((own[other] for other in names[at + 1 :] if own[other] is not None), None)
        before = next((own[other] for other in reversed(names[:at]) if own[other] is not None), None)
        near = (after or before) if ops[name] in _INWARD else (before or after)
        owners[name] = (near or Node(_stripped(name), ops[name], (), ()), True)
    return owners


def layer_name(node: Node) -> str:
    """A node's name without its operator: `layer1.0.conv1/Conv` is the layer `layer1.0.conv1`."""
    end = f"/{node.op_type}"
    return node.name[: -len(end)] if node.name.endswith(end) and len(node.name) > len(end) else node.name


def _named(kernel: str, by_name: Mapping[str, Node]) -> Optional[Node]:
    name = kernel[: -len("_kernel_time")] if kernel.endswith("_kernel_time") else kernel
    return next((by_name[each] for each in _shorter(name) if each in by_name), None)


def _stripped(kernel: str) -> str:
    return list(_shorter(kernel))[-1]


def _shorter(name: str) -> Iterator[str]:
    """A name, then with one affix less each time."""
    before = ""
    while name != before:
        yield name
        before, name = name, _AFFIXES.sub("", name, count=1)


def _is_heavy(op: str) -> bool:
    return any(heavy in op for heavy in ("Conv", "Gemm", "MatMul", "LSTM", "GRU", "RNN"))


def _heavy_before(node: Node, makers: Mapping[str, Node]) -> Optional[Node]:
    """The nearest weighted node among those that feed this one."""
    waiting, seen = [node], set()
    while waiting:
        for name in waiting.pop(0).inputs:
            maker = makers.get(name)
            if maker is None or maker.name in seen:
                continue
            if maker.op_type in HEAVY:
                return maker
            seen.add(maker.name)
            waiting.append(maker)
    return None


def labels_of(nodes: Sequence[Node]) -> Dict[str, str]:
    """A layer's name for each node; where two nodes of one module share it, the weighted one gets it."""
    owners: Dict[str, Node] = {}
    for node in sorted(nodes, key=lambda node: node.op_type not in HEAVY):
        owners.setdefault(layer_name(node), node)
    return {
        node.name: layer_name(node) if owners[layer_name(node)].name == node.name else node.name
        for node in nodes
    }
