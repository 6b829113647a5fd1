"""What lint says of a file that a stage has just written, for targets that run TensorRT.

What TensorRT would refuse ends the run: nothing that follows could be used. What it would run slowly is told
in a few words; `deadweight lint` tells all of it.
"""

from __future__ import annotations

from pathlib import Path

from ...targets.errors import ModelError, TargetError
from ...targets.target import Target
from .check import lint
from .platform import Platform


def takes(target: Target, operator: str) -> bool:
    """Whether the target's runtime takes an operator of ONNX; for a TensorRT that is not known, False."""
    if not target.runtime.linted:
        return True
    try:
        return Platform.of(target).types(operator) is not None
    except TargetError:
        return False


def held_against_tensorrt(path: Path, target: Target, *, name: str) -> tuple[str, ...]:
    """What the rules say of a network's file: how many warnings and notes, and the first of each rule.

    Nothing for a target that runs no TensorRT; that nothing was judged, for one whose TensorRT is not known.

    Raises:
        ModelError: TensorRT would refuse the file; the message holds the first reason and its cure.
    """
    if not target.runtime.linted:
        return ()
    try:
        report = lint(path, target=target)
    except TargetError as error:
        return (f"{name} was not held against TensorRT's rules: {error.what.rstrip('.')}",)
    errors = report.counts["error"]
    if errors:
        first = report.findings[0]
        others = f" Lint finds {_count(errors - 1, 'more error')}." if errors > 1 else ""
        raise ModelError(
            f"{report.platform.name} of {target.name} would refuse the network {name}, by rule {first.rule}: "
            f"{first.node}: {first.what}.{others}",
            f"{first.cure} All findings: deadweight lint {path} --target {target.name}",
        )
    counted = [_count(report.counts[kind], kind) for kind in ("warning", "note") if report.counts[kind]]
    words = [f"{name}: lint finds nothing that {report.platform.name} refuses"]
    if counted:
        words[0] += f", {' and '.join(counted)}"
    for rule in dict.fromkeys(finding.rule for finding in report.findings):
        found = [finding for finding in report.findings if finding.rule == rule]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        words.append(f"{found[0].severity} {rule}{more}: {found[0].node}: {found[0].what}")
    return tuple(words)


def gpu_fallbacks(path: Path, target: Target) -> int | None:
    """How many nodes the board's DLA would hand back to the GPU; None where there is no DLA."""
    try:
        return lint(path, target=target).gpu_fallbacks if target.runtime.linted else None
    except TargetError:
        return None


def _count(number: int, kind: str) -> str:
    return f"{number} {kind}" if number == 1 else f"{number} {kind}s"
