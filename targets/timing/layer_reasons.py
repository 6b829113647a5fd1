"""Reasons why a pruned layer did not get faster, from its profile.

Five reasons are known, and are checked in this order:
    conversions     conversions of layout or type around the layer cost more than the layer saves
    alignment       the kernel works in blocks of channels, and the last block costs as much as a full one
    launch          the layer takes hardly longer than the launch of any kernel
    memory          it is bound by memory, and its bytes fell by less than its arithmetic
    unseen          the gain that its weights promise is possible, but this run could not detect it
Whether a layer is bound by memory follows from the networks' own layers: the fastest of them show this
machine's peak bytes and products per second (a roofline: Williams et al. 2009), without a data sheet.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import List, Mapping, Optional, Sequence, Tuple

from ..target import Alignment, Target
from .layers import MARGIN, Layer, LayerJudgement, matching

_LAUNCHES = 2.5
"""A layer that takes less than this multiple of the shortest kernel is bound by its launch."""
_CONVERSION = 0.3
"""Conversions are named when they take at least this share of the expected gain."""


def explained(
    judged: Sequence[LayerJudgement],
    baseline: Mapping[str, Layer],
    candidate: Mapping[str, Layer],
    *,
    target: Optional[Target] = None,
) -> Tuple[LayerJudgement, ...]:
    """The judgements, with a reason for every pruned layer that is not `faster`."""
    matched = matching(baseline, candidate)
    every = [*baseline.values(), *candidate.values()]
    floor_s = min(layer.median_s for layer in every)
    peak_bytes = max((layer.moved_bytes / layer.median_s for layer in every), default=0.0)
    peak_macs = max((layer.macs / layer.median_s for layer in every), default=0.0)

    def explain(one: LayerJudgement) -> LayerJudgement:
        if not one.pruned or one.outcome == "faster":
            return one
        before, after = baseline[one.name], candidate[matched[one.name]]
        checked = (
            _conversions(before, after),
            _blocks(before, after, target),
            # A layer bound by its launch shows nothing about memory.
            _launch(after, floor_s) or _memory(before, after, peak_bytes=peak_bytes, peak_macs=peak_macs),
        )
        reasons = [reason for reason in checked if reason] or [_unseen(one, before, after)]
        return replace(one, reason="; ".join(reasons))

    return tuple(explain(one) for one in judged)


def _conversions(before: Layer, after: Layer) -> str:
    more_s = after.conversion_s - before.conversion_s
    hoped_s = before.median_s * (1 - math.prod(after.weight) / math.prod(before.weight))
    if more_s < _CONVERSION * hoped_s:
        return ""
    new = [kernel for kernel in after.kernels if kernel not in before.kernels]
    named = f" ({', '.join(sorted(set(new)))})" if new else ""
    return f"{1e6 * more_s:.0f} µs more go into conversions of layout or type{named}"


def _blocks(before: Layer, after: Layer, target: Optional[Target]) -> str:
    """Widths that are not a multiple of the step. Weights: [out, in / groups, ...], of a MatMul [in, out]."""
    if target is None:
        return ""
    rule, sides = _rule(after, target), []
    for name, was, now in _widths(before, after):
        step = rule.step_for(was)
        if now < was and now % step:
            full = min(was, math.ceil(now / step) * step)
            sides.append(f"{now} {name} channels are not a multiple of {step}: {full} cost no more")
    return "; ".join(sides)


def _rule(layer: Layer, target: Target) -> Alignment:
    if layer.kind.endswith("Conv") or layer.kind.startswith("Conv"):
        grouped = len(layer.weight) > 2 and layer.weight[1] == 1 and layer.weight[0] > 1
        return target.align("depthwise" if grouped else "conv")
    return target.align("linear")


def _widths(before: Layer, after: Layer) -> List[Tuple[str, int, int]]:
    if len(before.weight) != len(after.weight) or len(before.weight) < 2:
        return []
    outputs, inputs = (1, 0) if before.kind == "MatMul" else (0, 1)
    return [
        ("output", before.weight[outputs], after.weight[outputs]),
        ("input", before.weight[inputs], after.weight[inputs]),
    ]


def _launch(after: Layer, floor_s: float) -> str:
    kernels = max(1, len(after.kernels))
    if after.median_s > _LAUNCHES * floor_s * kernels:
        return ""
    return (
        f"it is bound by its launch: it takes {1e6 * after.median_s:.1f} µs, and the shortest kernel here "
        f"{1e6 * floor_s:.1f} µs"
    )


def _memory(before: Layer, after: Layer, *, peak_bytes: float, peak_macs: float) -> str:
    if not (after.moved_bytes and after.macs and peak_bytes and peak_macs):
        return ""
    if after.moved_bytes / peak_bytes < after.macs / peak_macs:
        return ""
    bytes_kept = 100 * after.moved_bytes / max(before.moved_bytes, 1)
    products_kept = 100 * after.macs / max(before.macs, 1)
    return (
        f"it is bound by memory: {after.moved_bytes / 1e3:.3g} kB for {after.macs / 1e6:.3g} M products,"
        f" and {bytes_kept:.0f} % of the bytes are left for {products_kept:.0f} % of the products"
    )


def _unseen(one: LayerJudgement, before: Layer, after: Layer) -> str:
    """Whether the measured interval allows the gain that the weights promise."""
    kept = math.prod(after.weight) / math.prod(before.weight)
    if one.outcome == "slower" or not math.isfinite(one.high) or 1 / kept > max(one.high, 1 + MARGIN):
        return "its profile shows none of the known reasons"
    return (
        f"a gain was not seen: {100 * (1 - kept):.2g} % of its weights were removed, and this run shows only"
        f" that it is {one.low:.2f} to {one.high:.2f} times as fast"
    )
