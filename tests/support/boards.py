"""Whole fake boards: a directory that looks like a Jetson's root, unpacked from one text file a board.

The files in tests/targets/boards were put together from what public reports show of real boards: releases,
device trees, sysfs trees and the answers of NVIDIA's tools. `path = text` is a file; `--- path` begins one of
many lines; a tool is a script that prints what follows, if it is called with the options behind its path.
"""

from __future__ import annotations

import re
from pathlib import Path

CARDS = Path(__file__).parents[1] / "targets" / "boards"
BOARDS = tuple(sorted(path.stem for path in CARDS.glob("*.txt")))


def unpack(name: str, root: Path) -> Path:
    """Lays the board out below `root` and returns it."""
    head, *parts = re.split(r"^--- ", (CARDS / f"{name}.txt").read_text("utf-8"), flags=re.MULTILINE)
    for line in head.splitlines():
        if not line.startswith("#"):
            path, _, text = line.partition(" =")
            put(root, path, text[1:].replace("\\0", "\0"))
    for part in parts:
        title, _, text = part.partition("\n")
        path, *options = title.split(" ")
        if path.startswith(("usr/bin/", "usr/sbin/")):
            wanted = f'[ "$*" = "{" ".join(options)}" ] || exit 1\n' if options else ""
            put(root, path, f"#!/bin/sh\n{wanted}cat <<'END'\n{text}END\n").chmod(0o755)
        else:
            put(root, path, text)
    return root


def put(root: Path, path: str, text: str) -> Path:
    """Writes one file of a board."""
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text, "utf-8")
    return place
