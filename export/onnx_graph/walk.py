"""Walks over a graph and its bodies, and names that are not taken."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import GraphProto, NodeProto


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """The bodies of an If, Loop or Scan node, without those inside them."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and the bodies of its If, Loop and Scan nodes, and theirs."""
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from all_graphs(body)


def all_names(graph: GraphProto) -> set[str]:
    """The names of everything in a graph and its bodies."""
    used = set()
    for inner in all_graphs(graph):
        used |= {value.name for value in (*inner.input, *inner.initializer, *inner.node)}
        used |= {name for node in inner.node for name in node.output}
    return used


def unique(name: str, used: set[str]) -> str:
    """The name, with a number appended if it is in `used`, to which it is added."""
    found, count = name, 0
    while found in used:
        count += 1
        found = f"{name}_{count}"
    used.add(found)
    return found


def name_nodes(graph: GraphProto) -> None:
    """Names every node without a name, or with that of an earlier one, after its output."""
    used: set[str] = set()
    unnamed = []
    for node in graph.node:
        if node.name and node.name not in used:
            used.add(node.name)
        else:
            unnamed.append(node)
    for node in unnamed:
        node.name = unique(f"{next(iter(node.output), '')}/{node.op_type}", used)
