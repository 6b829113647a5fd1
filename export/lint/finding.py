"""The finding: one fault of one node, by one rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One fault of one node, and the cure.

    Attributes:
        rule: the rule's number.
        severity: "error" where TensorRT refuses the file, "warning" where it runs slowly, else "note".
        node: the node's name; "the file" for a fault of no node.
        what: what is wrong and why, with the values.
        cure: what to do; equal for equal faults, so that they can be grouped.
    """

    rule: int
    severity: Severity
    node: str
    what: str
    cure: str
