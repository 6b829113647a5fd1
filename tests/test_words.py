"""The words that a non-native reader stumbles over, and the plain word for each.

What a user reads must not have them. A folder of Python joins by its name in SOURCES.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXTS = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "action.yml",
    "docs/**/*.md",
    "benchmarks/**/*.md",
    *(f"examples/**/*.{suffix}" for suffix in ("md", "toml", "yml", "py")),
)
# Folders whose Python is checked too.
SOURCES: tuple[str, ...] = ("deadweight", "export", "pipeline", "targets")
BANNED = {
    r"mend(s|ed|ing)?": "fix",
    r"told": "reported, stated, known, distinguished",
    r"(hold|holds|held|holding)( [^ .]+){0,6} against": "compare with, check against",
    r"by turns": "interleaved",
    r"in another dress": "written in another way",
    r"whoever": "anyone who",
    r"(win|wins|won|winning)( [^ .]+){0,3} back": "recover, restore",
    r"(keep|keeps|kept|keeping) still": "change state, be constant",
    r"(let|lets|letting) ([^ .]+ )?through": "accept",
    r"taken for": "read as, mistaken for",
    r"(lie|lies|lay|lying) in": "is in",
    r"strangers?": "new user",
    r"(for )?want of": "without, because there is no",
}


def pattern(words: str) -> re.Pattern[str]:
    return re.compile(rf"\b{words}\b".replace(" ", r"\s+"), re.IGNORECASE)


def texts() -> list[Path]:
    globs = (*TEXTS, *(f"{folder}/**/*.py" for folder in SOURCES))
    return sorted({path for glob in globs for path in ROOT.glob(glob)})


def unreleased(changelog: str) -> str:
    """A changelog without the versions that were released: their entries are not changed any more."""
    return re.split(r"^## \[[0-9]", changelog, maxsplit=1, flags=re.MULTILINE)[0]


def found(text: str) -> list[str]:
    """Each banned word in a text, with its line and the cure."""
    return [
        f"line {text.count(chr(10), 0, match.start()) + 1}: {match.group()!r}: say {plain}"
        for words, plain in BANNED.items()
        for match in pattern(words).finditer(text)
    ]


@pytest.mark.parametrize("path", [str(path.relative_to(ROOT)) for path in texts()])
def test_a_text_is_in_plain_words(path: str) -> None:
    text = (ROOT / path).read_text("utf-8")
    hits = found(unreleased(text) if path == "CHANGELOG.md" else text)
    assert not hits, f"{path} has words that a reader stumbles over:\n" + "\n".join(hits)


@pytest.mark.parametrize(
    "sentence",
    [
        "Mend that line.",
        "The builder must be told.",
        "It holds the file against\n    the rules.",
        "timed by\nturns",
        "a constant in another dress",
        "Whoever loads it runs it.",
        "It wins the lost accuracy back.",
        "The board did not keep still.",
        "The gate lets it through.",
        "It is taken for zero.",
        "the file lies in memory",
        "for a stranger",
        "skipped for want of a tool",
    ],
)
def test_a_banned_word_is_found_across_lines(sentence: str) -> None:
    assert len(found(sentence)) == 1


def test_a_text_without_them_passes() -> None:
    assert not found("Both models were timed interleaved; the report compares them.")


def test_a_released_entry_of_the_changelog_is_left_as_it_was() -> None:
    assert unreleased("# Changelog\n\nnew\n\n## [0.1.0] - 2026-11-23\nold\n") == "# Changelog\n\nnew\n\n"
