from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from deadweight.pipeline.report.schema import read_report, validate_report
from deadweight.targets.errors import ArtifactError

EXAMPLE = json.loads((Path(__file__).parent / "report_example.json").read_text("utf-8"))
OPTIONAL = {"controls", "words", "widths", "layers", "statistics", "sweep", "budgets"}


def changed(path: str, value: Any = None, *, remove: bool = False) -> Any:
    """The example with one value changed; `path` is like rows.0.score."""
    report = copy.deepcopy(EXAMPLE)
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = report
    for part in way:
        place = place[part]
    if remove:
        del place[last]
    else:
        place[last] = value
    return report


def message(report: Any) -> str:
    with pytest.raises(ArtifactError) as caught:
        validate_report(report)
    return str(caught.value)


def test_the_example_is_a_report_and_says_that_it_is_invented() -> None:
    assert "Invented" in validate_report(EXAMPLE)["name"]


def test_what_a_run_did_not_do_may_be_left_out() -> None:
    validate_report({key: value for key, value in EXAMPLE.items() if key not in OPTIONAL})


@pytest.mark.parametrize("key", sorted(set(EXAMPLE) - OPTIONAL))
def test_a_missing_key_is_named(key: str) -> None:
    assert f"lacks the key {key}." in message(changed(key, remove=True))


def test_a_missing_key_deep_inside_is_named_with_its_path() -> None:
    assert "rows[1].latency_s.p99" in message(changed("rows.1.latency_s.p99", remove=True))


def test_another_version_is_refused_with_a_cure() -> None:
    text = message(changed("schema", 2))
    assert "has schema 2" in text
    assert "version that wrote it" in text


def test_a_misspelt_key_is_refused_and_the_right_one_proposed() -> None:
    text = message(changed("rows.0.speed_up", None))
    assert "rows[0].speed_up" in text
    assert "Did you mean 'speedup'?" in text


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("rows.0.parameters", "many"),
        ("rows.0.parameters", 1.5),
        ("rows.0.score", float("nan")),
        ("verdict.outcome", "quicker"),
        ("higher_is_better", 1),
        ("statistics.fc1.removed", [1, 0]),
        ("sweep.rows.0.chosen", "yes"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(path: str, value: object) -> None:
    assert path.split(".")[-1] in message(changed(path, value))


def test_lists_that_do_not_belong_together_are_refused() -> None:
    assert "statistics.fc1 differ in length" in message(changed("statistics.fc1.mean", [0.1]))
    assert "not a share" in message(changed("sweep.rows.0.parameters_removed", 990_779))
    assert "rows is empty" in message(changed("rows", []))


def test_a_directory_without_a_report_is_reported_with_a_cure(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"report\.json does not exist") as caught:
        read_report(tmp_path)
    assert "deadweight run" in caught.value.cure


def test_a_half_written_report_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(EXAMPLE)[:1000])
    with pytest.raises(ArtifactError):
        read_report(tmp_path)
