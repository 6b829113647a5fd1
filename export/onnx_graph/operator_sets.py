"""Named sets of ONNX's operators, and of its types, from TOML files: lists of words with their sources."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...targets.board_file import read_toml
from ...targets.errors import ArtifactError


def read_sets(path: Path) -> Mapping[str, frozenset[str]]:
    """The sets of a file by name; an ArtifactError if it is damaged."""
    return {name: frozenset(words.split()) for name, words in read_toml(path, ArtifactError).items()}
