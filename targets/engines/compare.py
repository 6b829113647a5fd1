"""Two engines side by side: the original and the pruned one, or FP16 and INT8.

Both came from ONNX files with equal node names (pruning keeps them), but TensorRT fuses as it likes, so that
a layer of one may be several of the other. What is compared are the smallest groups of layers that hold the
same nodes in both: two layers belong together if they share a node, in either engine. Copies are counted to
the layers that they serve. Where the names agree on nothing, modules are tried, and then the order.

One export holds one figure a layer. That says how large a change was, never how sure it is: nothing here is a
verdict. `layers.judge_layers` gives one, for times that were taken by turns.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Set, Tuple

from .content import Engine, EngineLayer
from .names import served_by

UNJUDGED = (
    "Each engine was profiled once, on its own: these are ratios of two figures, without an interval, and no "
    "verdict. Time both by turns (deadweight compare) to have them judged."
)


@dataclass(frozen=True)
class Pair:
    """A part of the network in both engines; layers of one side may be missing."""

    name: str
    before: Tuple[EngineLayer, ...]
    after: Tuple[EngineLayer, ...]

    @property
    def before_s(self) -> Optional[float]:
        """Seconds in the first engine; None where nothing was timed."""
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
    """Pairs in the order of the first engine, how they were found, and what to know of them."""

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
    pairs = _grouped(before, after, first, second)
    remarks = [UNJUDGED]
    if way == "modules":
        remarks.append("The nodes' names differ; layers were matched by the modules of their weights.")
    if way == "order":
        remarks.append(
            "Neither nodes nor modules agree; layers were matched by their order, operator by operator: see "
            "that the engines are of the same network."
        )
    apart = sum(not pair.before or not pair.after for pair in pairs)
    if apart:
        remarks.append(f"{apart} of {len(pairs)} groups are in one engine only.")
    return Comparison(before, after, tuple(pairs), way, tuple(remarks))


def _keys(engine: Engine, way: str) -> List[Set[str]]:
    """What each layer is known by. A copy is known by the layer that it serves."""
    own: List[Set[str]] = []
    met: Dict[str, int] = {}
    for layer in engine.layers:
        if way == "order":
            word = "product" if layer.product else _operator(layer)
            met[word] = met.get(word, 0) + 1
            own.append({f"{word} {met[word]}"} if word else set())
        else:
            own.append(set(layer.modules if way == "modules" else layer.nodes))
    by_name = {layer.name: key for layer, key in zip(engine.layers, own)}
    found = []
    for layer, key in zip(engine.layers, own):
        served = served_by(layer.name)
        found.append(by_name.get(served, key) if served else key or {f"layer {layer.name}"})
    return [key or {f"layer {layer.name}"} for layer, key in zip(engine.layers, found)]


def _operator(layer: EngineLayer) -> str:
    """The operator of a layer that computes and is no product, by its first node; else ""."""
    if layer.kind != "compute" or not layer.nodes:
        return ""
    return re.sub(r"_\d+$", "", layer.nodes[0].rsplit("/", 1)[-1])


def _grouped(
    before: Engine, after: Engine, first: Sequence[Set[str]], second: Sequence[Set[str]]
) -> List[Pair]:
    """The connected parts of the graph of layers and keys, in the order of the first engine."""
    above: Dict[str, str] = {}

    def root(key: str) -> str:
        while above.setdefault(key, key) != key:
            above[key] = above[above[key]]
            key = above[key]
        return key

    for key in (*first, *second):
        every = sorted(key)
        for other in every[1:]:
            above[root(other)] = root(every[0])
    groups: Dict[str, Tuple[List[EngineLayer], List[EngineLayer]]] = {}
    for side, (engine, keys) in enumerate(((before, first), (after, second))):
        for layer, key in zip(engine.layers, keys):
            groups.setdefault(root(min(key)), ([], []))[side].append(layer)
    return [Pair(_name(one, other), tuple(one), tuple(other)) for one, other in groups.values()]


def _name(before: Sequence[EngineLayer], after: Sequence[EngineLayer]) -> str:
    """What a reader calls it: the modules, else the products' nodes, else the first layer's name."""
    layers = [*before, *after]
    main = [layer for layer in layers if layer.product] or layers
    modules = list(dict.fromkeys(module for layer in main for module in layer.modules))
    if modules:
        return ", ".join(modules[:2]) + (" …" if len(modules) > 2 else "")
    return main[0].name


def _sum(layers: Sequence[EngineLayer]) -> Optional[float]:
    times = [layer.latency_s for layer in layers if layer.latency_s is not None]
    return sum(times) if times else None
