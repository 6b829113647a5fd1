from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from deadweight.targets.gate.baseline import Baseline
from deadweight.targets.gate.check import Check, Gated
from deadweight.targets.gate.report import calibration_sentence, markdown, workflow_commands, write_junit
from deadweight.targets.timing.measurement import Protocol

CHECKS = (
    Check("slowdown", "fail", 0.02, 0.05, 0.04, 0.06, "5 % slower <&>"),
    Check("p99_s", "cannot_tell", 0.02, None, None, None, "100 samples"),
    Check("file_bytes", "pass", 2e6, 1e6, 1e6, 1e6, "1.000 MB"),
)
GATED = Gated(CHECKS, "side by side", None, {}, None, ("3 of 24 events are marked",))
BASELINE = Baseline("m.onnx", "ab" * 32, 10, Protocol(), {"cpu": "a CPU"}, {})


def test_junit_has_a_failure_for_what_is_broken_and_skips_what_is_undecided(tmp_path: Path) -> None:
    write_junit(GATED, tmp_path / "gate.xml", model='a "model"')
    suite = ElementTree.parse(tmp_path / "gate.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    inside = [[child.tag for child in case] for case in suite.findall("testcase")]
    assert inside == [["failure"], ["skipped"], []]
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.get("message") == "5 % slower <&>, limit 2 %"
    assert suite.findall("testcase")[0].get("classname") == 'a "model"'


def test_the_summary_is_a_table_with_what_it_was_held_against() -> None:
    text = markdown(GATED, BASELINE, model="new.onnx")
    assert "new.onnx is refused" in text
    assert "| slowdown | **fail** | 5 % slower \\<\\&\\> | 2 % |" in text
    assert "| p99_s | cannot tell | 100 samples | 20 ms |" in text
    assert "side by side" in text
    assert "3 of 24 events are marked" in text
    assert "not counted" in text


def test_annotations_are_workflow_commands_whose_percents_are_escaped() -> None:
    lines = workflow_commands(GATED)
    assert [line.split(" ")[0] for line in lines] == ["::error", "::warning", "::notice"]
    assert "5 %25 slower" in lines[0]


def test_what_was_counted_is_reported_and_also_that_it_was_elsewhere() -> None:
    rate = {"count": 1, "runs": 60, "low": 0.0, "high": 0.09, "cannot_tell": 2}
    calibration = {"false_alarms": rate, "machine": {"cpu": "a CPU"}, "at": "2026-01-02T03:04:05"}
    here = calibration_sentence(calibration, {"cpu": "a CPU"})
    assert "counted on 2026-01-02: 1 of 60 (95 % interval 0.0 to 9.0 %), 2 undecided" in here
    assert "on another machine" in calibration_sentence(calibration, {"cpu": "another"})
