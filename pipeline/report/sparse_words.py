"""The report's sentences on unstructured and 2:4 sparsity: bytes, time, and why zeros save no time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...targets.target import Target
from .schema import Row
from .units import count, interval, percent, ratio, size

SPARSE_SINCE = 8.0  # the lowest compute capability whose tensor cores support 2:4: Ampere


def sparse_sentences(
    facts: Mapping[str, Any], row: Row, others: Sequence[Row], target: Target, *, label: str
) -> list[str]:
    """Sentences on a network with dropped weights.

    Args:
        facts: the artifact of the stage "sparsify".
        row: the network's row; `label` is its name in the sentences.
        others: rows of networks that were made smaller instead, for comparison.
    """
    held, kept = facts["bytes"], count(facts["left"])
    words = [
        f"{label}: {kept} of {count(facts['parameters'])} parameters are left "
        f"({percent(facts['left'] / facts['parameters'])}), the others are zero but are still in the file. "
        f"Its weights take {size(held['dense'])} dense, {size(held['bitmask'])} as a bitmask with values, "
        f"{size(held['csr'])} as compressed sparse rows.",
        _speed(facts, row, target, label),
    ]
    for other in others:
        judged = other["speedup"]
        if judged and other["parameters"]:
            words.append(
                f"The {other['name']} network, whose {count(other['parameters'])} parameters are in "
                f"smaller dense layers: speed-up {ratio(judged['ratio'])}, "
                f"{interval(judged['low'], judged['high'])}."
            )
    return [*words, _kernels(target)] if facts["structured"] else words


def _speed(facts: Mapping[str, Any], row: Row, target: Target, label: str) -> str:
    if (judged := row["speedup"]) is None:
        return f"{label}: its speed was not measured."
    text = f"{label}: speed-up {ratio(judged['ratio'])}, {interval(judged['low'], judged['high'])}."
    if judged["outcome"] == "faster" and facts["structured"] and target.runtime.sparse_kernels:
        return f"{text} The kernels for 2:4 are faster here."
    if judged["outcome"] == "faster":
        return f"{text} No kernel of this runtime is known to skip zeros: look for another cause."
    return (
        f"{text} Zeros do not make dense kernels faster: they multiply by zero as by any other number. To "
        "gain time, remove whole neurons (the stage prune)."
    )


def _kernels(target: Target) -> str:
    text = (
        "2:4 can be faster on the tensor cores of Ampere GPUs and later ones, in INT8 and FP16. It must be "
        "enabled: deadweight build MODEL.onnx --sparse sets TensorRT's flag SPARSE_WEIGHTS. The builder "
        "still uses a layer's dense kernel if that is faster."
    )
    if not target.runtime.sparse_kernels:
        return f"{text} {target.title} has no kernels for it."
    capability = target.certain("compute_capability")
    if capability is not None and float(str(capability)) < SPARSE_SINCE:
        return f"{text} {target.title} has none: its GPU is of compute capability {capability}."
    return text
