"""Writes a picture as a PNG file, for the examples: they need no imaging library."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Writes uint8[rows, columns, 3]: red, green, blue."""
    rows, columns, _ = pixels.shape
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)  # 0: a line as it is, not filtered
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines, 9)),
        (b"IEND", b""),
    )
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def tiled(tiles: list[NDArray[np.uint8]], *, columns: int) -> NDArray[np.uint8]:
    """Pictures of one size beside and below each other; an incomplete last row is filled with white."""
    white = np.full_like(tiles[0], 255)
    full = tiles + [white] * (-len(tiles) % columns)
    rows = [np.concatenate(full[at : at + columns], axis=1) for at in range(0, len(full), columns)]
    return np.concatenate(rows)
