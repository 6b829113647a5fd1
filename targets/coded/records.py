"""One tensor's numbers, in whichever way took the fewest bytes; floats are the whole numbers of their bits.

    byte     kind
    planes   byte: 1 where floats were turned left by one bit, so that an exponent is one byte; then for
             each byte of a number, lowest first, a part
    book     varint: which code book; a part with an index for each number
    mask     a part of 0 and 1; then a record with the numbers where there is a 1; the others are 0
    gaps     byte: span; varint: symbols; stream: so many zeros and then a number, or, where it is `span`, so
             many zeros alone; then a record with the numbers
    rows     varint: rows; stream: numbers in each row; stream: their columns; then a record with the numbers
    same     varint: the earlier tensor that has the same numbers

A part is a byte and a stream of symbols. The byte is 0 for a stream without contexts; 1 for one whose
contexts are told before it (varint: rows; stream: a class for each row; stream: a class for each column); 2
for one whose contexts are those of the mask around it. The context of a weight is the class of its row
together with that of its column.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, List, Optional, Tuple

import numpy as np

from .reading import Reader, damaged, outdated
from .streams import MOST_CONTEXTS, read_symbols

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


PLANES, BOOK, MASK, GAPS, ROWS, SAME, _ATOMS = range(7)
PLAIN, TOLD, AROUND = range(3)
WIDTHS = (1, 2, 4, 8)
"""Bytes of a number."""


@dataclass
class Numbers:
    """Reads records one after the other; later ones may refer to books and tensors before them."""

    reader: Reader
    books: List[Array] = field(default_factory=list)
    tensors: List[Array] = field(default_factory=list)

    def read(self, count: int, width: int) -> Array:
        """`count` numbers of `width` bytes, unsigned."""
        return self._record(count, width, nested=False, around=None)

    def _record(self, count: int, width: int, *, nested: bool, around: Optional[Array]) -> Array:
        kind = self.reader.byte("the kind of a record")
        if kind == PLANES:
            return self._planes(count, width, around)
        if kind == BOOK:
            return self._from_book(count, width, around)
        if kind == _ATOMS:
            raise outdated("a dictionary's atoms")
        if nested or kind > SAME:
            raise damaged(f"there is no record of kind {kind} here")
        if kind == SAME:
            which = self.reader.number("an earlier tensor", most=len(self.tensors) - 1) if self.tensors else 0
            if not self.tensors or self.tensors[which].shape != (count,):
                raise damaged("it refers to a tensor of another size")
            found = self.tensors[which]
            if found.dtype.itemsize != width:
                raise damaged("it refers to a tensor of another type")
            return found
        places, known = self._places(kind, count)
        numbers = self._record(len(places), width, nested=True, around=known)
        found = np.zeros(count, numbers.dtype)
        found[places] = numbers
        return found

    def _planes(self, count: int, width: int, around: Optional[Array]) -> Array:
        turned = self.reader.byte("whether floats are turned")
        if turned > 1 or (turned and width == 1):
            raise damaged(f"floats are turned by rule {turned}")
        planes = [self._part(count, around, widest=1) for _ in range(width)]
        numbers = np.stack(planes, axis=1).reshape(-1).view(f"<u{width}")
        if turned:
            numbers = numbers >> numbers.dtype.type(1) | numbers << numbers.dtype.type(8 * width - 1)
        return numbers

    def _from_book(self, count: int, width: int, around: Optional[Array]) -> Array:
        if not self.books:
            raise damaged("there is no code book")
        book = self.books[self.reader.number("which code book", most=len(self.books) - 1)]
        index = self._part(count, around, widest=2)
        if book.dtype.itemsize != width or (count and int(index.max()) >= len(book)):
            raise damaged("an index leaves its code book")
        return book[index]

    def _part(self, count: int, around: Optional[Array], *, widest: int) -> Array:
        """A stream, and the contexts before it; see the head of this file."""
        contexts, _ = self._contexts(count, around)
        symbols = read_symbols(self.reader, most=count, contexts=contexts)
        if len(symbols) != count or symbols.dtype.itemsize > widest:
            raise damaged(f"{len(symbols)} symbols stand where {count} should")
        return symbols

    def _contexts(self, count: int, around: Optional[Array]) -> Tuple[Optional[Array], int]:
        way = self.reader.byte("how contexts are told")
        if way == PLAIN:
            return None, way
        if way == AROUND and around is not None:
            return around, way
        if way != TOLD or not count:
            raise damaged(f"contexts are told by rule {way}")
        rows = self.reader.number("the number of rows", least=1, most=count)
        if count % rows:
            raise damaged(f"{count} numbers are no {rows} rows")
        row, column = (self._classes(length) for length in (rows, count // rows))
        classes = int(column.max()) + 1
        if (int(row.max()) + 1) * classes > MOST_CONTEXTS:
            raise damaged("there are too many contexts")
        return (row[:, None] * np.uint8(classes) + column[None, :]).reshape(-1), way

    def _classes(self, count: int) -> Array:
        found = read_symbols(self.reader, most=count)
        if len(found) != count or found.dtype.itemsize > 1:
            raise damaged(f"{len(found)} classes stand where {count} should")
        return found

    def _places(self, kind: int, count: int) -> Tuple[Array, Optional[Array]]:
        """Where the numbers are that are not 0, and the contexts there."""
        if kind == MASK:
            contexts, _ = self._contexts(count, None)
            mask = read_symbols(self.reader, most=count, contexts=contexts)
            if len(mask) != count or (count and int(mask.max()) > 1):
                raise damaged("a mask is not of 0 and 1")
            places = np.flatnonzero(mask)
            return places, None if contexts is None else contexts[places]
        if kind == GAPS:
            span = self.reader.byte("the span of gaps")
            symbols = self.reader.number("the number of gaps", most=count)
            gaps = read_symbols(self.reader, most=symbols)
            if len(gaps) != symbols or (symbols and int(gaps.max()) > span):
                raise damaged("a gap is wider than the span")
            last = gaps == span
            places = np.cumsum(gaps.astype(np.int64) + ~last) - 1
            if symbols and int(places[-1]) >= count:
                raise damaged("the gaps leave the tensor")
            return places[~last], None
        rows = self.reader.number("the number of rows", least=1, most=max(count, 1))
        held = read_symbols(self.reader, most=rows).astype(np.int64)
        if count % rows or len(held) != rows or int(held.max()) > count // rows:
            raise damaged("its rows do not fit the tensor")
        total = int(held.sum())
        column = read_symbols(self.reader, most=total).astype(np.int64)
        if len(column) != total or (total and int(column.max()) >= count // rows):
            raise damaged("a column leaves the tensor")
        return np.repeat(np.arange(rows) * (count // rows), held) + column, None
