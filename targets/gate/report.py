"""What a CI system reads of the gate: JUnit XML, a summary in Markdown, annotations on the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional
from xml.sax.saxutils import escape, quoteattr

from ..artifact import write_text
from .baseline import Baseline
from .check import Check, Gated

_SIGNS = {"pass": "pass", "fail": "**fail**", "cannot_tell": "cannot tell"}
_LEVELS = {"pass": "notice", "fail": "error", "cannot_tell": "warning"}


def limit_text(check: Check) -> str:
    """The limit in the unit that a reader knows."""
    if check.name.endswith("_s"):
        return f"{1e3 * check.limit:g} ms"
    if check.name.endswith("_bytes"):
        return f"{check.limit / 1e6:g} MB"
    return f"{100 * check.limit:g} %" if check.name == "slowdown" else f"{check.limit:g}"


def write_junit(gated: Gated, path: Path, *, model: str) -> None:
    """One test case a budget: a broken one is a failure, one that cannot be told is skipped, with why."""
    cases = []
    for one in gated.checks:
        inside = ""
        if one.outcome == "fail":
            inside = f"<failure message={quoteattr(_sentence(one))}/>"
        elif one.outcome == "cannot_tell":
            inside = f"<skipped message={quoteattr('cannot tell: ' + _sentence(one))}/>"
        named = f"classname={quoteattr(model)} name={quoteattr(one.name)}"
        cases.append(f"  <testcase {named}>{inside}</testcase>")
    outcomes = [one.outcome for one in gated.checks]
    remarks = "".join(f"\n{escape(remark)}" for remark in gated.remarks)
    head = (
        f'<testsuite name="deadweight gate" tests="{len(outcomes)}" failures="{outcomes.count("fail")}" '
        f'errors="0" skipped="{outcomes.count("cannot_tell")}">'
    )
    body = "\n".join(cases)
    write_text(
        Path(path),
        f'<?xml version="1.0" encoding="UTF-8"?>\n{head}\n{body}\n  <system-out>{gated.against}{remarks}'
        "</system-out>\n</testsuite>\n",
    )


def markdown(gated: Gated, baseline: Baseline, *, model: str) -> str:
    """A summary: one row a budget, what it was held against, and what this runner's gate is worth."""
    verdict = {0: "passes", 1: "is refused", 3: "cannot be told"}[gated.exit_code]
    lines = [f"## deadweight gate: {model} {verdict}", ""]
    lines += ["| budget | answer | measured | limit |", "| --- | --- | --- | --- |"]
    for one in gated.checks:
        lines.append(f"| {one.name} | {_SIGNS[one.outcome]} | {one.sentence} | {limit_text(one)} |")
    held = f"Held against {baseline.model} ({baseline.model_sha256[:12]}), {gated.against}."
    lines += ["", held]
    lines += [f"- {remark}" for remark in gated.remarks]
    lines += [calibrated_words(baseline.calibration, _machine(gated))]
    return "\n".join(line for line in lines if line is not None) + "\n"


def workflow_commands(gated: Gated) -> List[str]:
    """GitHub's workflow commands, one a budget."""
    return [
        f"::{_LEVELS[one.outcome]} title=deadweight gate: {one.name} {_SIGNS[one.outcome].strip('*')}::"
        + _sentence(one).replace("%", "%25").replace("\n", "%0A")
        for one in gated.checks
    ]


def calibrated_words(calibration: Optional[Mapping[str, Any]], machine: Mapping[str, Any]) -> str:
    """What the gate is worth here, as far as it was counted on this machine."""
    if calibration is None:
        return "False-alarm rate on this runner: not counted; `deadweight gate --calibrate 60` does."
    found: Dict[str, Any] = calibration["false_alarms"]
    elsewhere = "" if calibration["machine"] == machine else " On another machine than this one."
    return (
        f"False alarms counted on {calibration['at'][:10]}: {found['count']} of {found['runs']} "
        f"(95 % interval {100 * found['low']:.1f} to {100 * found['high']:.1f} %).{elsewhere}"
    )


def _machine(gated: Gated) -> Mapping[str, Any]:
    for measurement in gated.measured.values():
        machine: Mapping[str, Any] = measurement.conditions["machine"]
        return machine
    return {}


def _sentence(one: Check) -> str:
    return f"{one.sentence}, limit {limit_text(one)}"
