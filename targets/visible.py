"""Text from outside (names in a file, a board's words) as it may be shown: nothing in it is obeyed."""

from __future__ import annotations

import re

# Control characters, marks that reorder or hide text, and what is no character (XML and UTF-8 refuse it).
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\uffff\ud800-\udfff]"
)
# GitHub, Azure and TeamCity run a line of a log that begins so.
_OBEYED = re.compile(r"^(\s*)(?=::|##(?:\[|vso\[|teamcity\[))", re.MULTILINE)
_MARKUP = re.compile(r"([\\`*_{}\[\]<>|#~!&])")


def visible(text: str) -> str:
    r"""The text with control characters and marks of direction as escapes (`\x1b`).

    A line that a CI would obey begins with a backslash.
    """
    seen = _UNSEEN.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), text)
    return _OBEYED.sub(r"\1\\", seen)


def one_line(text: str) -> str:
    """`visible`, with line breaks as escapes too."""
    return visible(text.replace("\n", "\\n"))


def markdown_text(text: str) -> str:
    """`one_line`, without any character that Markdown or HTML would read."""
    return _MARKUP.sub(r"\\\1", one_line(text))
