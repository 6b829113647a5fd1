"""How often the test split was looked at in a run's directory.

A choice made after a look at the test split is no longer blind, and the score that follows flatters. Nobody
can forbid the second look; but it can be written down where the score is read.
"""

from __future__ import annotations

from pathlib import Path

from ...targets.artifact import read_json, write_json
from ..work import Work


def looks(directory: Path, work: Work) -> int:
    """Notes the test scores of `work` in test_looks.json and says how many different ones are there now.

    Scores that were there already, as after a run that was resumed, are no new look.
    """
    path = directory / "test_looks.json"
    seen = read_json(path)["scores"] if path.exists() else []
    now = work.artifacts["scores_test"].sha256
    if now not in seen:
        seen.append(now)
        write_json(path, {"scores": seen})
    return len(seen)


def look_words(count: int) -> list[str]:
    """What a reader of the report should know; nothing at the first look."""
    if count < 2:
        return []
    return [
        f"The test split was looked at {count} times in this directory, each time with other networks. "
        "What was chosen after the first look was not chosen blindly."
    ]
