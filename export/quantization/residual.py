"""Residual adds, and the side that TensorRT fuses with its convolution."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx

from ..onnx_graph.graph import Index
from ..onnx_graph.kernels import CONVOLUTIONS


def residual_branches(graph: onnx.GraphProto, index: Index, chosen: Collection[int]) -> set[tuple[int, int]]:
    """The skip side of each residual add: (position of the node, position of the input).

    Where both sides are convolutions, the one with fewer operators before it is the skip.
    """
    places: set[tuple[int, int]] = set()
    for position, branches in residual_adds(graph, index, chosen):
        inputs = graph.node[position].input
        places.add((position, 1 - max(branches, key=lambda place_: _depth(inputs[place_], index))))
    return places


def residual_adds(
    graph: onnx.GraphProto, index: Index, chosen: Collection[int]
) -> Iterator[tuple[int, list[int]]]:
    """The adds with one of the convolutions at the positions `chosen`: (position, its sides with one).

    TensorRT fuses Conv + Add (+ ReLU) only without a pair in between; the other side, the skip, sets the
    precision of the sum. So the skip is rounded, and the convolution's side is not.
    """
    made = {name: position for position, node in enumerate(graph.node) for name in node.output}
    for position, node in enumerate(graph.node):
        if node.op_type != "Add" or len(index.computed(node)) != 2 or node.input[0] == node.input[1]:
            continue
        branches = [
            place_
            for place_, name in enumerate(node.input)
            if made.get(name) in chosen
            and index.producer[name].op_type in CONVOLUTIONS
            and index.read_only_by(name, ("Add",)) is not None
        ]
        if branches:
            yield position, branches


def _depth(name: str, index: Index) -> int:
    depth: dict[str, int] = {}
    stack = [name]
    while stack:
        node = index.producer.get(stack[-1])
        waiting = [i for i in node.input if i and i not in depth] if node is not None else []
        if waiting:
            stack.extend(waiting)
            continue
        here = stack.pop()
        depth[here] = 0 if node is None else 1 + max((depth[i] for i in node.input if i), default=0)
    return depth[name]
