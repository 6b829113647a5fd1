"""The page of one engine or of two: time and precision of layers, and the cost of conversions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...targets.engines.compare import Comparison
from ...targets.engines.content import Engine, EngineLayer, Tensor, served_by
from .document import Cell, Group, Head, Legend, Section, Table, Words, document, figure
from .plots import series, times_figure
from .tables import facts
from .units import MISSING, TIMES, duration, percent, ratio, significant, time_unit

SHOWN = 20
_KINDS = (
    ("compute", "var(--kept)", "computes"),
    ("conversion", "var(--removed)", "converts types"),
    ("reorder", "var(--series-5)", "reorders in memory"),
    ("quantize", "var(--series-2)", "quantizes"),
    ("other", "var(--dim)", "unknown"),
)
_NOTE = (
    "A profiler waits after every layer, so that the sum of the layers is not the latency of the engine, and "
    "short layers look longer than they are."
)


def engine_page(engine: Engine) -> str:
    return document(
        f"{engine.name}: layers of the engine",
        [
            Head(_sentence(engine), engine.name, parts=[Words(engine.remarks)]),
            Section("At a glance", [facts(_figures(engine))]),
            _slowest(engine),
            Section("All layers", [_layers_table(engine)], _NOTE),
            _fallbacks([engine]),
        ],
    )


def comparison_page(comparison: Comparison) -> str:
    engines = (comparison.before, comparison.after)
    name = f"{engines[0].name} and {engines[1].name}"
    return document(
        f"{name}: layer by layer",
        [
            Head(_comparison_sentence(comparison), name, parts=[Words(comparison.remarks)]),
            Section("At a glance", [Group(engine.name, [facts(_figures(engine))]) for engine in engines]),
            _pairs_section(comparison),
            Section("All groups of layers", [_pairs_table(comparison)], _NOTE),
            _fallbacks(engines),
        ],
    )


def _sentence(engine: Engine) -> str:
    moved = [layer for layer in engine.layers if layer.kind in ("conversion", "reorder", "quantize")]
    if not engine.layer_sum_s:
        return f"{len(engine.layers)} layers, {len(moved)} of them move or convert data; none was timed."
    share = sum(layer.latency_s or 0.0 for layer in moved) / engine.layer_sum_s
    return (
        f"{len(engine.layers)} layers take {duration(engine.layer_sum_s)}; {len(moved)} of them move or "
        f"convert data, for {percent(share)} of the time."
    )


def _comparison_sentence(comparison: Comparison) -> str:
    if (speedup := comparison.speedup) is None:
        return f"{len(comparison.pairs)} groups of layers in two engines; they were not both timed."
    change = f"{ratio(speedup)} as fast" if speedup >= 1 else f"{ratio(1 / speedup)} as long"
    return (
        f"Layer by layer {comparison.after.name} "
        f"{'is' if speedup >= 1 else 'takes'} {change} as {comparison.before.name}, not judged."
    )


def _figures(engine: Engine) -> dict[str, object]:
    values: dict[str, object] = {"layers": len(engine.layers), "sum_of_layers_s": engine.layer_sum_s or None}
    if engine.runs_s:
        values["run_on_the_GPU, median_s"] = float(np.median(engine.runs_s))
        values["runs_timed"] = len(engine.runs_s)
    counts = {words: len(engine.of_kind(kind)) for kind, _, words in _KINDS}
    values |= {f"of_them: {words}": number for words, number in counts.items() if number}
    types = [layer.precision for layer in engine.layers if layer.product]
    products = [f"{types.count(name)} in {name or 'an unknown type'}" for name in sorted(set(types))]
    values |= {"of_them: only a view": len(engine.of_kind("view")), "fallbacks": len(engine.fallbacks())}
    return values | {"products": ", ".join(products)}


def _slowest(engine: Engine) -> Section | None:
    if not (timed := [layer for layer in engine.layers if layer.latency_s]):
        return None
    slow = sorted(timed, key=lambda layer: -(layer.latency_s or 0.0))[:SHOWN]
    shown = [layer for layer in timed if layer in slow]
    labels = _unique([_short(_label(layer), 28) for layer in shown])
    times = [
        (words, colour, [layer.latency_s if layer.kind == kind else None for layer in shown])
        for kind, colour, words in _KINDS
        if any(layer.kind == kind for layer in shown)
    ]
    alt = f"Time of the {len(shown)} slowest of {len(engine.layers)} layers."
    drawn = times_figure(labels, times, alt, row=22, stacked=True)
    colours = Legend([(colour, words) for kind, colour, words in _KINDS if engine.of_kind(kind)])
    return Section("Where the time goes", [colours, drawn], f"The {len(shown)} slowest layers.")


def _pairs_section(comparison: Comparison) -> Section | None:
    if not (timed := [pair for pair in comparison.pairs if pair.before_s or pair.after_s]):
        return None
    slow = sorted(timed, key=lambda pair: -max(pair.before_s or 0.0, pair.after_s or 0.0))[:SHOWN]
    shown = [pair for pair in timed if pair in slow]
    labels = _unique([_short(pair.name, 28) for pair in shown])
    both = [
        (comparison.before.name, series(0), [pair.before_s for pair in shown]),
        (comparison.after.name, series(2), [pair.after_s for pair in shown]),
    ]
    drawn = times_figure(labels, both, f"Time of {len(shown)} groups of layers in both engines.", row=38)
    key = Legend([(colour, name) for name, colour, _ in both])
    return Section("Where the time went", [key, drawn], f"The {len(shown)} slowest groups.")


def _layers_table(engine: Engine) -> Table:
    scale, unit = time_unit([max((layer.latency_s or 0.0 for layer in engine.layers), default=0.0)])
    words = {kind: does for kind, _, does in _KINDS} | {"view": "view"}
    rows = []
    for layer in engine.layers:
        share = (layer.latency_s or 0.0) / engine.layer_sum_s if engine.layer_sum_s else 0.0
        sizes = " to ".join(_size(tensors) for tensors in (layer.inputs, layer.outputs) if tensors)
        cells: list[Cell | str] = [
            Cell(_label(layer), small=[", ".join(layer.nodes) if layer.modules else ""]),
            Cell(words[layer.kind], small=[layer.type]),
            layer.precision,
            figure(layer.latency_s, lambda value: significant(value / scale), percent(share)),
            Cell(layer.tactic or MISSING, small=[sizes]),
        ]
        rows.append(cells)
    head = ["Layer", "Does", "Precision", f"Time, {unit}", "Tactic, sizes"]
    return Table("All layers", head, {"": rows}, wrap=4)


def _pairs_table(comparison: Comparison) -> Table:
    times = [pair.before_s or pair.after_s or 0.0 for pair in comparison.pairs]
    scale, unit = time_unit([max(times, default=0.0)])
    rows = []
    for pair in comparison.pairs:
        said = "" if pair.before and pair.after else "in one engine only"
        sides = ((pair.before_s, pair.before), (pair.after_s, pair.after))
        cells = [
            Cell(_short(pair.name), small=[said]),
            *(figure(time, lambda value: significant(value / scale), _how(some)) for time, some in sides),
            figure(pair.speedup, ratio),
        ]
        rows.append(cells)
    names = [f"{engine.name}, {unit}" for engine in (comparison.before, comparison.after)]
    return Table("Groups of layers", ["Layers", *names, "Ratio, not judged"], {"": rows})


def _fallbacks(engines: Sequence[Engine]) -> Section:
    items = [f"{engine.name}: {name} {reason}" for engine in engines for name, reason in engine.fallbacks()]
    return Section("Fallbacks", [Words(items)])


def _how(layers: Sequence[EngineLayer]) -> str:
    """`int8, 2 layers and 1 copy`."""
    copies = sum(layer.kind in ("conversion", "reorder", "quantize") for layer in layers)
    views = sum(layer.kind == "view" for layer in layers)
    main = next((layer for layer in layers if layer.product), layers[0] if layers else None)
    parts = [main.precision] if main and main.precision else []
    if len(layers) - copies - views > 1:
        parts.append(f"{len(layers) - copies - views} layers")
    if copies:
        parts.append(f"{copies} {'copy' if copies == 1 else 'copies'}")
    return ", ".join(parts)


def _label(layer: EngineLayer) -> str:
    if served := served_by(layer.name):
        return f"copy {'after' if ' Output Tensor ' in layer.name else 'before'} {_short(served)}"
    return _short(", ".join(layer.modules) if layer.modules and layer.product else layer.name)


def _short(name: str, most: int = 44) -> str:
    return name if len(name) <= most else f"{name[: most - 14]}…{name[-12:]}"


def _size(tensors: Sequence[Tensor]) -> str:
    return " + ".join(TIMES.join(map(str, tensor.shape)) for tensor in tensors)


def _unique(labels: Sequence[str]) -> list[str]:
    """Labels of a plot's rows, numbered where equal: plotly would merge equal ones."""
    found: list[str] = []
    for label in labels:
        times = sum(other.split("\u2002")[0] == label for other in found)
        found.append(f"{label}\u2002({times + 1})" if times else label)
    return found
