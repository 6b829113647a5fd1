"""A reader of coded bytes that may be damaged or hostile: every length is checked before it is used.

Numbers are little endian base 128 ("varint", as in protobuf). Short lists of small numbers (tables, code
lengths) are Rice codes of their differences (Rice and Plaunt 1971), most significant bit first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List, Optional, Sequence, Union

from ..errors import ArtifactError
from ..protobuf import varint

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
else:
    Array = Any

Bytes = Union[bytes, bytearray, memoryview]

_LONGEST_UNARY = 1 << 17  # a zigzag of two levels under 65536


def damaged(what: str) -> ArtifactError:
    """The error for coded bytes that cannot have been written by `export/coding`."""
    return ArtifactError(
        f"The coded data is damaged: {what}.", "Copy or download it again, or pack the model again."
    )


def outdated(what: str) -> ArtifactError:
    """The error for a format that 0.1.0 could write, never by default, and that is no longer read."""
    return ArtifactError(
        f"The data has {what}, which only deadweight 0.1.0 can read.",
        "Unpack it with deadweight 0.1.0, then pack the model again.",
    )


class Reader:
    """A position in coded bytes. Reading past the end is an ArtifactError, never an IndexError."""

    def __init__(self, data: Bytes) -> None:
        self.data = memoryview(data).cast("B")
        self.at = 0

    @property
    def left(self) -> int:
        """The number of unread bytes."""
        return len(self.data) - self.at

    def take(self, count: int, what: str) -> memoryview:
        """The next `count` bytes."""
        if not 0 <= count <= self.left:
            raise damaged(f"{what} should have {count} bytes, but {self.left} are left")
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self, what: str) -> int:
        """The next byte as a number."""
        return self.take(1, what)[0]

    def number(self, what: str, *, least: int = 0, most: int) -> int:
        """The next varint, which must be from `least` to `most`."""
        try:
            value, self.at = varint(self.data, self.at)
        except (IndexError, ValueError) as error:
            raise damaged(f"{what} is no number: {error}") from error
        if not least <= value <= most:
            raise damaged(f"{what} is {value}, not {least} to {most}")
        return value

    def levels(
        self, count: int, what: str, *, most: int, before: Optional[Sequence[int]] = None
    ) -> List[int]:
        """`count` numbers from 0 to `most`: Rice codes of zigzag differences, padded to whole bytes.

        The first byte has the parameter (low four bits) and, in bit 4, the reference of the differences: the
        previous number, or the one at the same index of `before`. A code is a unary quotient in ones, a zero,
        and `parameter` bits.
        """
        head = self.byte(what)
        rice = head & 15
        if head > 31 or (head > 15 and before is None) or count > 8 * self.left:
            raise damaged(f"{what} cannot be {count} Rice codes of kind {head}")
        place, end = 8 * self.at, 8 * len(self.data)
        found: List[int] = []
        level = 0
        for index in range(count):
            quotient = 0
            while place < end and self._bit(place):
                quotient += 1
                place += 1
            if quotient > _LONGEST_UNARY or place + 1 + rice > end:
                raise damaged(f"{what} ends in the middle of a number")
            place += 1
            for _ in range(rice):
                quotient = quotient << 1 | self._bit(place)
                place += 1
            difference = (quotient >> 1) ^ -(quotient & 1)
            level = difference + (before[index] if before is not None and head > 15 else level)
            if not 0 <= level <= most:
                raise damaged(f"{what} has {level}, not 0 to {most}")
            found.append(level)
        self.at = -(-place // 8)
        return found

    def _bit(self, place: int) -> int:
        return self.data[place >> 3] >> (7 - (place & 7)) & 1

    def done(self, what: str) -> None:
        """Raises if bytes are left."""
        if self.left:
            raise damaged(f"{self.left} bytes follow the end of {what}")
