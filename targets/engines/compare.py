"""The comparison of two engines layer by layer: original and pruned, or FP16 and INT8.

Both are from ONNX files with equal node names (pruning preserves them), but TensorRT fuses differently, so a
layer of one may be several of the other. The comparison uses the smallest groups of layers with the same
nodes in both: layers that share a node, in either engine, are in one group. Copies belong to the layers that
they serve. Without common node names, modules are tried, then the order.

An export has one time per layer. It shows the size of a change without an interval, so nothing here is a
verdict. `layers.judge_layers` gives one, for times measured interleaved.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Set, Tuple

from .content import Engine, EngineLayer, served_by

UNJUDGED = (
    "Each engine was profiled once, alone: these are ratios of two times, without an interval, and not a "
    "verdict. For a verdict time both interleaved: deadweight compare."
)


@dataclass(frozen=True)
class Pair:
    """A part of the network in both engines; layers of one side may be missing."""

    name: str
    before: Tuple[EngineLayer, ...]
    after: Tuple[EngineLayer, ...]

    @property
    def before_s(self) -> Optional[float]:
        """Seconds in the first engine; None without times."""
        return _sum(self.before)

    @property
    def after_s(self) -> Optional[float]:
        """Seconds in the second engine."""
        return _sum(self.after)

    @property
    def speedup(self) -> Optional[float]:
        """First over second: above 1 the second is faster."""
        first, second = self.before_s, self.after_s
        return first / second if first and second else None


@dataclass(frozen=True)
class Comparison:
    """Pairs in the order of the first engine, how they were matched, and remarks."""

    before: Engine
    after: Engine
    pairs: Tuple[Pair, ...]
    matched_by: str
    """`nodes`, `modules` or `order`."""
    remarks: Tuple[str, ...]

    @property
    def speedup(self) -> Optional[float]:
        """The layers' sums, first over second."""
        first, second = self.before.layer_sum_s, self.after.layer_sum_s
        return first / second if first and second else None


def compare_engines(before: Engine, after: Engine) -> Comparison:
    """Matches the layers of two engines."""
    for way in ("nodes", "modules", "order"):
        first, second = _keys(before, way), _keys(after, way)
        shared = set().union(*first) & set().union(*second) if first and second else set()
        products = [key for layer, key in zip(before.layers, first) if layer.product]
        if way == "order" or (shared and 2 * sum(bool(key & shared) for key in products) > len(products)):
            break
    pairs = _components(before, after, first, second)
    remarks = [UNJUDGED]
    if way == "modules":
        remarks.append("The nodes' names differ; layers were matched by the modules of their weights.")
    if way == "order":
        remarks.append(
            "Neither nodes nor modules agree; layers were matched by their order, operator by operator: "
            "check that the engines are of the same network."
        )
    apart = sum(not pair.before or not pair.after for pair in pairs)
    if apart:
        remarks.append(f"{apart} of {len(pairs)} groups are in one engine only.")
    return Comparison(before, after, tuple(pairs), way, tuple(remarks))


def _keys(engine: Engine, way: str) -> List[Set[str]]:
    """The keys by which each layer is matched. A copy has the keys of the layer that it serves."""
    own: List[Set[str]] = []
    counts: Dict[str, int] = {}
    for layer in engine.layers:
        if way == "order":
            word = "product" if layer.product else _operator(layer)
            counts[word] = counts.get(word, 0) + 1
            own.append({f"{word} {counts[word]}"} if word else set())
        else:
            own.append(set(layer.modules if way == "modules" else layer.nodes))
    by_name = {layer.name: key for layer, key in zip(engine.layers, own)}
    keys = []
    for layer, key in zip(engine.layers, own):
        served = served_by(layer.name)
        keys.append(by_name.get(served, key) if served else key or {f"layer {layer.name}"})
    return [key or {f"layer {layer.name}"} for layer, key in zip(engine.layers, keys)]


def _operator(layer: EngineLayer) -> str:
    """The operator of a layer that computes and is not a product, by its first node; else ""."""
    if layer.kind != "compute" or not layer.nodes:
        return ""
    return re.sub(r"_\d+$", "", layer.nodes[0].rsplit("/", 1)[-1])


def _components(
    before: Engine, after: Engine, first: Sequence[Set[str]], second: Sequence[Set[str]]
) -> List[Pair]:
    """The connected components of the graph of layers and keys, in the order of the first engine."""
    parent: Dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for key in (*first, *second):
        every = sorted(key)
        for other in every[1:]:
            parent[root(other)] = root(every[0])
    groups: Dict[str, Tuple[List[EngineLayer], List[EngineLayer]]] = {}
    for side, (engine, keys) in enumerate(((before, first), (after, second))):
        for layer, key in zip(engine.layers, keys):
            groups.setdefault(root(min(key)), ([], []))[side].append(layer)
    return [Pair(_name(one, other), tuple(one), tuple(other)) for one, other in groups.values()]


def _name(before: Sequence[EngineLayer], after: Sequence[EngineLayer]) -> str:
    """A readable name: the modules, else the products' nodes, else the first layer's name."""
    layers = [*before, *after]
    main = [layer for layer in layers if layer.product] or layers
    modules = list(dict.fromkeys(module for layer in main for module in layer.modules))
    return ", ".join(modules[:2]) + (" …" if len(modules) > 2 else "") if modules else main[0].name


def _sum(layers: Sequence[EngineLayer]) -> Optional[float]:
    times = [layer.latency_s for layer in layers if layer.latency_s is not None]
    return sum(times) if times else None
