"""The search for a new file's bytes in an old one: ranges to copy, and bytes to insert.

Blocks of the old file at fixed distances are indexed by their bytes; the new file is searched for them at
every byte, and a match is extended both ways (rsync, Tridgell 1999, without checksums, since both files are
here).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_BLOCK = 32
_MOST_BLOCKS = 1 << 18


@dataclass(frozen=True)
class Copied:
    """A range of the old file with the new one's next bytes."""

    at: int
    size: int


class Old:
    """The index of an old file."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._known: dict[bytes, int] = {}
        for at in range(0, len(data) - _BLOCK + 1, max(_BLOCK // 2, len(data) // _MOST_BLOCKS)):
            self._known.setdefault(data[at : at + _BLOCK], at)

    def parts(self, new: bytes) -> Iterator[Copied | bytes]:
        """All new bytes in order: ranges of the old file, or new bytes."""
        old, done, at = self._data, 0, 0
        while at + _BLOCK <= len(new):
            found = self._known.get(new[at : at + _BLOCK])
            if found is None:
                at += 1
                continue
            begin, source = at, found
            while begin > done and source > 0 and new[begin - 1] == old[source - 1]:
                begin, source = begin - 1, source - 1
            size = at + _BLOCK - begin + _common(old, found + _BLOCK, new, at + _BLOCK)
            if begin > done:
                yield new[done:begin]
            yield Copied(source, size)
            done = at = begin + size
        if done < len(new):
            yield new[done:]


def _common(old: bytes, at: int, new: bytes, start: int) -> int:
    most, same, step = min(len(old) - at, len(new) - start), 0, 1 << 16
    while step:
        end = same + step
        if end <= most and old[at + same : at + end] == new[start + same : start + end]:
            same = end
        else:
            step //= 2
    return same
