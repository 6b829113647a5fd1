"""Why did a pruned layer not get faster? In words, from what its profile tells.

Five reasons are known, and are looked for in the order in which they can be checked:
    conversions     more time goes into another layout or type around the layer than the layer saves
    alignment       the kernel works in blocks of channels, and the last block is as dear as a full one
    launch          the layer takes hardly longer than any kernel does, whatever it computes
    memory          its time goes into moving bytes, and those fell by less than its arithmetic
    unseen          nothing speaks against the gain that its weights promise, but this run could not see it
Whether a layer is bound by memory is read from the networks' own layers: the fastest of them show how many
bytes and how many products a second this machine gives (a roofline: Williams et al. 2009), so that no figure
of a data sheet is needed.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from ..target import Alignment, Target
from .layers import MARGIN, Layer, LayerJudgement, matching

_LAUNCHES = 2.5
"""A layer that takes less than so many times the shortest kernel is bound by launching it."""
_CONVERSION = 0.3
"""Share of the time that was to be gained which conversions must have eaten to be named."""


def explained(
    judged: Sequence[LayerJudgement],
    baseline: Mapping[str, Layer],
    candidate: Mapping[str, Layer],
    *,
    target: Optional[Target] = None,
) -> Tuple[LayerJudgement, ...]:
    """The judgements, with a reason for every pruned layer that is not `faster`."""
    pairs = matching(baseline, candidate)
    every = [*baseline.values(), *candidate.values()]
    floor_s = min(layer.median_s for layer in every)
    peak_bytes = max((layer.moved_bytes / layer.median_s for layer in every), default=0.0)
    peak_macs = max((layer.macs / layer.median_s for layer in every), default=0.0)

    def told(one: LayerJudgement) -> LayerJudgement:
        if not one.pruned or one.outcome == "faster":
            return one
        before, after = baseline[one.name], candidate[pairs[one.name]]
        found = (
            _conversions(before, after),
            _blocks(before, after, target),
            # What only takes as long as a launch says nothing about memory.
            _launch(after, floor_s) or _memory(before, after, peak_bytes=peak_bytes, peak_macs=peak_macs),
        )
        reasons = [reason for reason in found if reason] or [_unseen(one, before, after)]
        return replace(one, reason="; ".join(reasons))

    return tuple(told(one) for one in judged)


def _conversions(before: Layer, after: Layer) -> str:
    more_s = after.conversion_s - before.conversion_s
    hoped_s = before.median_s * (1 - math.prod(after.weight) / math.prod(before.weight))
    if more_s < _CONVERSION * hoped_s:
        return ""
    new = [kernel for kernel in after.kernels if kernel not in before.kernels]
    named = f" ({', '.join(sorted(set(new)))})" if new else ""
    return f"{1e6 * more_s:.0f} µs more go into bringing data into another layout or type{named}"


def _blocks(before: Layer, after: Layer, target: Optional[Target]) -> str:
    """Widths off the step. Weights are [out, in / groups, ...], those of a MatMul [in, out]."""
    if target is None:
        return ""
    rule, sides = _rule(after, target), []
    for name, was, now in _widths(before, after):
        step = rule.step_for(was)
        if now < was and now % step:
            full = min(was, math.ceil(now / step) * step)
            sides.append(f"{now} {name} channels are off the multiple of {step}: {full} cost no more")
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
        f"it is bound by launching: it takes {1e6 * after.median_s:.1f} µs, and the shortest kernel here "
        f"{1e6 * floor_s:.1f} µs whatever it computes"
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
    """Whether what was measured leaves room for the gain that the weights promise."""
    kept = math.prod(after.weight) / math.prod(before.weight)
    if one.outcome == "slower" or not math.isfinite(one.high) or 1 / kept > max(one.high, 1 + MARGIN):
        return "none of the known reasons shows in its profile"
    return (
        f"a gain was not seen: {100 * (1 - kept):.2g} % of its weights went, and this run tells no more than"
        f" that it is {one.low:.2f} to {one.high:.2f} times as fast"
    )


def counted(judged: Sequence[LayerJudgement]) -> Dict[str, int]:
    """How often each kind of reason was given, by its first words; for tables."""
    kinds = {
        "layout or type": "conversions",
        "multiple of": "alignment",
        "launching": "launch",
        "by memory": "memory",
        "gain was not seen": "unseen",
        "none of the known": "unknown",
    }
    found: Dict[str, int] = {}
    for one in judged:
        for words, kind in kinds.items():
            if words in one.reason:
                found[kind] = found.get(kind, 0) + 1
    return found
