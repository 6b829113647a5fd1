"""An xz stream that may be damaged or hostile, read piece by piece: no piece is larger than was asked for."""

from __future__ import annotations

import lzma

from ..errors import ArtifactError

MEMORY_BYTES = 1 << 26
"""What decoding may take; the streams of `export/coding` need a quarter of it."""


def damaged(what: str) -> ArtifactError:
    """The error for bytes that cannot have been written by `export`."""
    return ArtifactError(
        f"The packed data is damaged: {what}.", "Copy or download it again, or pack the model again."
    )


class Stream:
    """The content of an xz stream, in order.

    Raises:
        ArtifactError: from each method, if the stream is damaged, too short or too long.
    """

    def __init__(self, data: bytes) -> None:
        self._rest = data
        self._unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY_BYTES)

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        parts = []
        while count:
            part = self._some(count)
            if not part:
                raise damaged(f"{count} bytes are missing at its end")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def done(self) -> None:
        """To be called at the end: nothing may be left, and the checksum must be right."""
        if self._some(1) or not self._unpacker.eof or self._unpacker.unused_data:
            raise damaged("it does not end where it should")

    def _some(self, most: int) -> bytes:
        if self._unpacker.eof:
            return b""
        data, self._rest = self._rest, b""
        try:
            return self._unpacker.decompress(data, max_length=most)
        except (lzma.LZMAError, EOFError, MemoryError) as error:
            raise damaged(str(error) or type(error).__name__) from error
