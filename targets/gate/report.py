"""The gate's reports for CI: JUnit XML, a Markdown summary, workflow annotations."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional
from xml.sax.saxutils import escape, quoteattr

from ..artifact import write_text
from ..timing.measurement import timed_by
from ..visible import markdown_text, one_line, visible
from .baseline import Baseline
from .check import Check, Gated

_SIGNS = {"pass": "pass", "fail": "**fail**", "cannot_tell": "cannot tell"}
_LEVELS = {"pass": "notice", "fail": "error", "cannot_tell": "warning"}


def limit_text(check: Check) -> str:
    """The limit in a readable unit."""
    if check.name.endswith("_s"):
        return f"{1e3 * check.limit:g} ms"
    if check.name.endswith("_j"):
        return f"{1e3 * check.limit:g} mJ"
    if check.name.endswith("_bytes"):
        return f"{check.limit / 1e6:g} MB"
    return f"{100 * check.limit:g} %" if check.name == "slowdown" else f"{check.limit:g}"


def write_junit(gated: Gated, path: Path, *, model: str) -> None:
    """Writes one test case per budget: `fail` is a failure, `cannot_tell` is skipped, with the reason."""
    cases = []
    for one in gated.checks:
        inside = ""
        if one.outcome == "fail":
            inside = f"<failure message={_attribute(_sentence(one))}/>"
        elif one.outcome == "cannot_tell":
            inside = f"<skipped message={_attribute('cannot tell: ' + _sentence(one))}/>"
        named = f"classname={_attribute(model)} name={_attribute(one.name)}"
        cases.append(f"  <testcase {named}>{inside}</testcase>")
    outcomes = [one.outcome for one in gated.checks]
    said = escape(visible("\n".join((gated.against, *gated.remarks))))
    head = (
        f'<testsuite name="deadweight gate" tests="{len(outcomes)}" failures="{outcomes.count("fail")}" '
        f'errors="0" skipped="{outcomes.count("cannot_tell")}">'
    )
    body = "\n".join(cases)
    write_text(
        Path(path),
        f'<?xml version="1.0" encoding="UTF-8"?>\n{head}\n{body}\n  <system-out>{said}'
        "</system-out>\n</testsuite>\n",
    )


def markdown(gated: Gated, baseline: Baseline, *, model: str) -> str:
    """A summary: one row per budget, the baseline, and this runner's rate of false alarms."""
    text = markdown_text
    verdict = {0: "passes", 1: "is refused", 3: "cannot be decided"}[gated.exit_code]
    lines = [f"## deadweight gate: {text(model)} {verdict}", ""]
    lines += ["| budget | answer | measured | limit |", "| --- | --- | --- | --- |"]
    rows = ((one.name, _SIGNS[one.outcome], text(one.sentence), limit_text(one)) for one in gated.checks)
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += [
        "",
        f"Compared with {text(baseline.model)} ({text(baseline.model_sha256[:12])}), {text(gated.against)}.",
    ]
    lines += [f"{text(timed_by(gated.measured))}." if gated.measured else ""]
    lines += [f"- {text(remark)}" for remark in gated.remarks]
    machine: Mapping[str, Any] = next((one.conditions["machine"] for one in gated.measured.values()), {})
    return "\n".join([*lines, text(calibration_sentence(baseline.calibration, machine))]) + "\n"


def workflow_commands(gated: Gated) -> List[str]:
    """GitHub's workflow commands, one per budget."""
    return [
        f"::{_LEVELS[one.outcome]} title=deadweight gate: {one.name} {_SIGNS[one.outcome].strip('*')}::"
        + one_line(_sentence(one)).replace("%", "%25")
        for one in gated.checks
    ]


def calibration_sentence(calibration: Optional[Mapping[str, Any]], machine: Mapping[str, Any]) -> str:
    """The rate of false alarms, as counted on this machine."""
    if calibration is None:
        return "False-alarm rate on this runner: not counted; run deadweight gate --calibrate 60."
    counts: Dict[str, Any] = calibration["false_alarms"]
    elsewhere = "" if calibration["machine"] == machine else " This was on another machine."
    return (
        f"False alarms counted on {calibration['at'][:10]}: {counts['count']} of {counts['runs']} "
        f"(95 % interval {100 * counts['low']:.1f} to {100 * counts['high']:.1f} %), {counts['cannot_tell']} "
        f"undecided.{elsewhere}"
    )


def _attribute(text: str) -> str:
    return quoteattr(one_line(text))


def _sentence(one: Check) -> str:
    return f"{one.sentence}, limit {limit_text(one)}"
