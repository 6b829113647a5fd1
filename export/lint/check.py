"""The table of all lint rules, and their report on a file.

A rule is a function `(network, platform) -> findings`; its number is here and in its findings, and its first
line states what it requires. Rules are independent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from ...targets.budgets import BudgetCheck
from ...targets.errors import ArtifactError, DeadweightError, ModelError, TargetError
from ...targets.plain import plain
from ...targets.target import Target
from ..onnx_graph.external_data import fits, for_inference
from ..onnx_graph.graph import OnnxModel, load
from . import dla, explicit, fusion, operators, widths
from .network import SEVERITIES, Finding, Network, network_of
from .platform import Platform

Rule = Callable[[Network, Platform], Iterable[Finding]]

RULES: dict[int, Rule] = {
    101: operators.opset,
    102: operators.ir_version,
    103: operators.operator_taken,
    104: operators.operator_standard,
    105: operators.restriction_kept,
    106: operators.types_taken,
    107: operators.seed_used,
    108: operators.output_sizes,
    109: operators.plugin,
    201: explicit.zero_point,
    202: explicit.quantized_type,
    203: explicit.float_bias,
    204: explicit.scale,
    205: explicit.activation_axis,
    206: explicit.weight_axis,
    207: explicit.opset_of_scales,
    208: explicit.zero_point_given,
    301: fusion.half_quantized,
    302: fusion.island,
    303: fusion.before_activation,
    304: fusion.convolution_side,
    305: fusion.skip_side,
    306: fusion.concat_scales,
    307: fusion.int8_kernel,
    308: fusion.lowest_weight,
    401: widths.width,
    402: widths.change_of_precision,
    403: widths.single_precision,
    501: dla.quantized,
    502: dla.on_dla,
    503: dla.within_limits,
    504: dla.tensor_sizes,
    505: dla.fixed_sizes,
}
_FALLBACK_RULES = range(501, 505)
_X86_RULES = {201, 202, 203}
"""Rules that the x86 dialect of `to_qdq` breaks on purpose."""


@dataclass(frozen=True)
class Report:
    """The findings in one file for one platform.

    Attributes:
        findings: errors first, then by rule, then in the order of the graph.
        words: remarks on how the platform was judged.
        gpu_fallbacks: how many nodes DLA would leave to the GPU; None without DLA.
        budgets: the given limits, checked against the findings.
    """

    path: Path
    platform: Platform
    findings: tuple[Finding, ...]
    words: tuple[str, ...]
    gpu_fallbacks: int | None
    budgets: tuple[BudgetCheck, ...]

    @property
    def counts(self) -> dict[str, int]:
        """The number of findings by severity."""
        severities = [finding.severity for finding in self.findings]
        return {severity: severities.count(severity) for severity in SEVERITIES}

    @property
    def passed(self) -> bool:
        """Whether there is no error and no broken budget."""
        return not self.counts["error"] and all(check.met for check in self.budgets)

    def to_json(self) -> dict[str, Any]:
        """Plain values, version 1; "rules" has the requirement of each rule with findings."""
        board = self.platform.board
        return {
            "schema": 1,
            "model": str(self.path),
            "tensorrt": ".".join(map(str, self.platform.version)),
            "table": self.platform.table,
            "target": None if board is None else board.name,
            "passed": self.passed,
            "counts": self.counts,
            "gpu_fallbacks": self.gpu_fallbacks,
            "budgets": plain(self.budgets),
            "words": list(self.words),
            "rules": {str(number): reason(number) for number in sorted({f.rule for f in self.findings})},
            "findings": plain(self.findings),
        }


def reason(number: int) -> str:
    """The requirement of a rule, as one sentence."""
    sentence = (RULES[number].__doc__ or "").partition(": ")[2].splitlines()[0]
    return sentence[:1].upper() + sentence[1:]


def lint(
    model: Path | OnnxModel,
    *,
    target: Target | None = None,
    tensorrt: str | None = None,
    max_gpu_fallbacks: int | None = None,
    dla: bool = False,
) -> Report:
    """Finds what TensorRT will refuse in an ONNX file, or run slowly. TensorRT is not needed.

    Args:
        model: an ONNX file, or one that was loaded or made.
        target: the board; without one, widths and deep learning accelerators are not judged.
        tensorrt: the version, such as "8.5" or "10.3.0"; by default the board's, or else the newest with
            an operator table.
        max_gpu_fallbacks: how many nodes DLA may leave to the GPU before the report fails.
        dla: whether the file is for the board's DLA: what a build for it refuses is an error then.

    Raises:
        ArtifactError: the file is missing, truncated, damaged or not an ONNX file.
        ModelError: it is larger than 2 GB, or an operator lacks its inputs.
        TargetError: the version is unknown; the board runs no TensorRT; a budget for DLA where there is none.
    """
    if not isinstance(model, OnnxModel):
        path = model
        try:
            model = load(path)
        except UnicodeDecodeError as error:  # names are decoded when they are read
            raise _damaged(path, error) from error
    platform = Platform.of(target, tensorrt, for_dla=dla)
    if max_gpu_fallbacks is not None and not platform.dla_cores:
        where = "No board was given" if target is None else f"{target.name} with {platform.name} has no DLA"
        raise TargetError(
            f"{where}, so max_gpu_fallbacks = {max_gpu_fallbacks} cannot be checked.",
            "Give a board whose TensorRT supports its DLA, such as agx-orin-64gb, or omit the limit.",
        )
    findings = _findings(model, platform)
    findings.sort(key=lambda finding: (SEVERITIES.index(finding.severity), finding.rule))
    on_gpu = len({finding.node for finding in findings if finding.rule in _FALLBACK_RULES})
    fallbacks = on_gpu if platform.dla_cores else None
    budgets: tuple[BudgetCheck, ...] = ()
    if max_gpu_fallbacks is not None:
        budgets = (BudgetCheck("max_gpu_fallbacks", max_gpu_fallbacks, on_gpu, on_gpu <= max_gpu_fallbacks),)
    words = platform.words()
    if model.proto.producer_name == "deadweight" and _X86_RULES & {finding.rule for finding in findings}:
        named = "the board it is for" if target is None else f'"{target.name}"'
        words.append(
            f"deadweight quantized this file for another runtime: run its recipe with target = {named}."
        )
    return Report(model.path, platform, tuple(findings), tuple(words), fallbacks, budgets)


def _findings(model: OnnxModel, platform: Platform) -> list[Finding]:
    try:
        network = network_of(model.proto)
        return [finding for rule in RULES.values() for finding in rule(network, platform)]
    except DeadweightError:
        raise
    except UnicodeDecodeError as error:
        raise _damaged(model.path, error) from error
    except Exception as error:
        # A rule fails on an attribute of another type, a tensor without axes. ONNX's checker decides whether
        # the file is at fault.
        try:
            onnx.checker.check_model(model.proto if fits(model.proto) else for_inference(model.proto))
        except Exception as refusal:  # its errors have no public base class
            raise _damaged(model.path, refusal) from error
        raise


def _damaged(path: Path, error: Exception) -> ArtifactError:
    message = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
    return ArtifactError(f"{path} is damaged: {message}.", "Export or copy it again.")


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
