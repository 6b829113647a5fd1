"""Lint of a file that a stage has just written, for targets that run TensorRT.

A file that TensorRT would refuse ends the run: nothing that follows could be used. What it would run slowly
is summarized; `deadweight lint` lists all of it.
"""

from __future__ import annotations

from pathlib import Path

from ...targets.errors import ModelError, TargetError
from ...targets.target import Target
from .check import lint
from .platform import Platform


def takes(target: Target, operator: str) -> bool:
    """Whether the target's runtime supports an ONNX operator; False for an unknown TensorRT."""
    if not target.runtime.linted:
        return True
    try:
        return bool(Platform.of(target).supports(operator))
    except TargetError:
        return False


def lint_sentences(path: Path, target: Target, *, name: str) -> tuple[str, ...]:
    """Sentences on the findings in a network's file: the number by severity, and the first of each rule.

    Empty for a target without TensorRT; a remark for one whose TensorRT is unknown.

    Raises:
        ModelError: TensorRT would refuse the file; the message has the first reason and its cure.
    """
    if not target.runtime.linted:
        return ()
    try:
        report = lint(path, target=target)
    except TargetError as error:
        return (f"{name} was not checked against TensorRT's rules: {error.what.rstrip('.')}",)
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
    """How many nodes the board's DLA would leave to the GPU; None without DLA."""
    try:
        return lint(path, target=target).gpu_fallbacks if target.runtime.linted else None
    except TargetError:
        return None


def _count(number: int, kind: str) -> str:
    return f"{number} {kind}" if number == 1 else f"{number} {kind}s"
