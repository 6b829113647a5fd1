"""What a report says of single weights that were dropped: bytes, time, and why there is no time in zeros.

The sentences are made from the run's own figures. Where nothing was measured, nothing is said of speed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...targets.target import Target
from .schema import Row
from .units import count, interval, percent, ratio, size

SPARSE_SINCE = 8.0  # the compute capability from which on tensor cores know 2:4: Ampere


def sparse_words(
    facts: Mapping[str, Any], row: Row, others: Sequence[Row], target: Target, *, label: str
) -> list[str]:
    """Sentences on a network with dropped weights.

    Args:
        facts: what the stage "sparsify" wrote.
        row: the network's row; `label` is what it is called.
        others: rows of networks that were made smaller instead, for comparison.
    """
    held = facts["bytes"]
    words = [
        f"{label}: {count(facts['left'])} of {count(facts['parameters'])} parameters are left "
        f"({percent(facts['left'] / facts['parameters'])}), the others are zero and stand in the file all "
        f"the same. Its weights take {size(held['dense'])}; with a bit for each weight and the values that "
        f"are left {size(held['bitmask'])}, as compressed sparse rows {size(held['csr'])}."
    ]
    words.append(_speed(facts, row, target, label))
    for other in others:
        judged = other["speedup"]
        if judged and other["parameters"]:
            words.append(
                f"The {other['name']} network, whose {count(other['parameters'])} parameters stand in "
                f"smaller dense layers: speed-up {ratio(judged['ratio'])}, "
                f"{interval(judged['low'], judged['high'])}."
            )
    return [*words, _kernels(target)] if facts["structured"] else words


def _speed(facts: Mapping[str, Any], row: Row, target: Target, label: str) -> str:
    judged = row["speedup"]
    if judged is None:
        return f"{label}: its speed was not measured, so nothing is said of it."
    text = f"{label}: speed-up {ratio(judged['ratio'])}, {interval(judged['low'], judged['high'])}."
    if judged["outcome"] == "faster" and facts["structured"] and target.runtime.sparse_kernels:
        return f"{text} The 2:4 pattern was worth its kernels here."
    if judged["outcome"] == "faster":
        return f"{text} No kernel of this runtime is known to skip zeros: look for what else differs."
    return (
        f"{text} Zeros do not make dense kernels faster: they multiply by zero as by any other number. To "
        "gain time, take whole neurons out (the stage prune)."
    )


def _kernels(target: Target) -> str:
    """Who can make use of 2:4, and how to enable it."""
    text = (
        "2:4 can be faster on the tensor cores of Ampere GPUs and later ones, in INT8 and FP16. It must be "
        "enabled: deadweight build MODEL.onnx --sparse sets TensorRT's flag SPARSE_WEIGHTS. The builder "
        "still takes the dense kernel of a layer where that one is faster."
    )
    if not target.runtime.sparse_kernels:
        return f"{text} {target.title} has no kernels for it."
    capability = target.certain("compute_capability")
    if capability is not None and float(str(capability)) < SPARSE_SINCE:
        return f"{text} {target.title} has none: its GPU is of compute capability {capability}."
    return text
