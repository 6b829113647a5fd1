"""Counts the evaluations of the test split in a run's directory.

A choice made after an evaluation on the test split biases the next score. A second evaluation cannot be
prevented, but it is reported beside the score.
"""

from __future__ import annotations

from pathlib import Path

from ...targets.artifact import read_json, write_json
from ..work import Work


def looks(directory: Path, work: Work) -> int:
    """Adds the test scores of `work` to test_looks.json; returns how many different ones it has.

    Scores that are there already, as after a resumed run, do not count again.
    """
    path = directory / "test_looks.json"
    seen = read_json(path)["scores"] if path.exists() else []
    now = work.artifacts["scores_test"].sha256
    if now not in seen:
        seen.append(now)
        write_json(path, {"scores": seen})
    return len(seen)


def look_sentences(count: int) -> list[str]:
    """Sentences for the report; none for the first evaluation."""
    if count < 2:
        return []
    return [
        f"The test split was evaluated {count} times in this directory, each time with other networks. "
        "Choices after the first evaluation were not blind."
    ]
