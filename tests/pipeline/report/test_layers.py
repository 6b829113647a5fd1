"""Layers in the report: times of every network, what was judged of the last, and why not."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from deadweight.pipeline.report.page import report_page
from deadweight.pipeline.report.schema import validate_report
from deadweight.targets.errors import ArtifactError

EXAMPLE = json.loads((Path(__file__).parent / "report_example.json").read_text("utf-8"))


def judged() -> dict[str, Any]:
    """The example with two layers: one that got faster, one that was pruned and did not."""
    report: dict[str, Any] = copy.deepcopy(EXAMPLE)
    first, last = (report["rows"][at]["name"] for at in (0, -1))
    verdict = {"outcome": "faster", "ratio": 1.5, "low": 1.4, "high": 1.6, "pruned": True, "reason": ""}
    doubt = {**verdict, "outcome": "slower", "ratio": 0.8, "low": None, "high": None, "reason": "47 <off> 16"}
    report["layers"] = [
        {
            "name": name,
            "kind": "Conv",
            "latency_s": {first: 3e-6, last: 2e-6},
            "judged": {last: one},
        }
        for name, one in (("conv1", verdict), ("conv2", doubt))
    ]
    return report


def test_every_layers_answer_and_reason_is_on_the_page() -> None:
    page = report_page(validate_report(judged()))
    table = page[page.index('aria-label="Time per layer"') :]
    text = re.sub(r"<[^>]*>", " ", table[: table.index("</table>")])
    assert "1.40" in text
    assert "faster" in text
    assert "slower" in text
    assert "47 &lt;off&gt; 16" in text
    assert "corrected for the number of layers" in page


def test_layers_without_verdicts_are_shown_as_before() -> None:
    report = judged()
    for layer in report["layers"]:
        del layer["judged"]
    page = report_page(validate_report(report))
    assert 'aria-label="Time per layer"' in page
    assert "corrected for the number of layers" not in page


def test_a_verdict_of_no_known_outcome_is_refused() -> None:
    report = judged()
    report["layers"][0]["judged"]["int8"] = {**EXAMPLE["rows"][-1]["speedup"], "outcome": "quick"}
    with pytest.raises(ArtifactError, match="judged"):
        validate_report(report)
