"""A kind of file from outside: valid examples, how one is read, and what is signed or hashed anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

Files = dict[str, bytes]


@dataclass(frozen=True)
class Kind:
    """Attributes:
    weight: how often it is tried.
    seeds: valid examples, each the files of a folder; made in a folder that stays for all tries.
    read: reads the changed files in a folder, the way a command does.
    seal: puts hashes and signatures right again, so that a change comes past them.
    """

    weight: int
    seeds: Callable[[Path], list[Files]]
    read: Callable[[Path, Random], object]
    seal: Callable[[Files], Files] = dict


def files_in(folder: Path) -> Files:
    """All files below a folder by their relative paths."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
