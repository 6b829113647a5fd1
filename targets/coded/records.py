"""The reader of records: one tensor's numbers in the smallest of several forms; floats as their bits.

    byte     kind
    planes   byte: 1 where floats were rotated left by one bit, so that an exponent is one byte; then for
             each byte of a number, lowest first, a part
    book     varint: which code book; a part with an index for each number
    mask     a part of 0 and 1; then a record with the numbers where there is a 1; the others are 0
    gaps     byte: span; varint: symbols; stream: the count of zeros before a number, or `span` for that many
             zeros without a number; then a record with the numbers
    rows     varint: rows; stream: numbers in each row; stream: their columns; then a record with the numbers
    same     varint: the earlier tensor that has the same numbers

A part is a byte and a stream of symbols. The byte is 0 for a stream without contexts; 1 for one whose
contexts precede it (varint: rows; stream: a class for each row; stream: a class for each column); 2 for one
with the contexts of the mask around it. The context of a weight is the class of its row combined with that of
its column.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import List, Optional, Tuple

import numpy as np

from .reading import Array, Reader, damaged, outdated
from .streams import MOST_CONTEXTS, read_symbols

PLANES, BOOK, MASK, GAPS, ROWS, SAME, _ATOMS = range(7)
PLAIN, EXPLICIT, AROUND = range(3)
WIDTHS = (1, 2, 4, 8)
"""Bytes of a number."""


@dataclass
class Numbers:
    """Reads records in order; later ones may refer to earlier code books and tensors."""

    reader: Reader
    books: List[Array] = field(default_factory=list)
    tensors: List[Array] = field(default_factory=list)

    def read(self, count: int, width: int) -> Array:
        """`count` numbers of `width` bytes, unsigned."""
        return self._record(count, width, nested=False, mask_contexts=None)

    def _record(self, count: int, width: int, *, nested: bool, mask_contexts: Optional[Array]) -> Array:
        kind = self.reader.byte("the kind of a record")
        if kind == PLANES:
            return self._planes(count, width, mask_contexts)
        if kind == BOOK:
            return self._from_book(count, width, mask_contexts)
        if kind == _ATOMS:
            raise outdated("a dictionary's atoms")
        if nested or kind > SAME:
            raise damaged(f"there is no record of kind {kind} here")
        if kind == SAME:
            which = self.reader.number("an earlier tensor", most=len(self.tensors) - 1) if self.tensors else 0
            if not self.tensors or self.tensors[which].shape != (count,):
                raise damaged("it refers to a tensor of another size")
            values = self.tensors[which]
            if values.dtype.itemsize != width:
                raise damaged("it refers to a tensor of another type")
            return values
        places, known = self._places(kind, count)
        numbers = self._record(len(places), width, nested=True, mask_contexts=known)
        values = np.zeros(count, numbers.dtype)
        values[places] = numbers
        return values

    def _planes(self, count: int, width: int, mask_contexts: Optional[Array]) -> Array:
        rotated = self.reader.byte("whether floats are rotated")
        if rotated > 1 or (rotated and width == 1):
            raise damaged(f"floats are rotated by rule {rotated}")
        planes = [self._part(count, mask_contexts, widest=1) for _ in range(width)]
        numbers = np.stack(planes, axis=1).reshape(-1).view(f"<u{width}")
        if rotated:
            numbers = numbers >> numbers.dtype.type(1) | numbers << numbers.dtype.type(8 * width - 1)
        return numbers

    def _from_book(self, count: int, width: int, mask_contexts: Optional[Array]) -> Array:
        if not self.books:
            raise damaged("there is no code book")
        book = self.books[self.reader.number("which code book", most=len(self.books) - 1)]
        index = self._part(count, mask_contexts, widest=2)
        if book.dtype.itemsize != width or (count and int(index.max()) >= len(book)):
            raise damaged("an index is outside its code book")
        return book[index]

    def _part(self, count: int, mask_contexts: Optional[Array], *, widest: int) -> Array:
        """A stream and the contexts before it; see the head of this file."""
        symbols = read_symbols(self.reader, most=count, contexts=self._contexts(count, mask_contexts))
        if len(symbols) != count or symbols.dtype.itemsize > widest:
            raise damaged(f"there are {len(symbols)} symbols, not {count}")
        return symbols

    def _contexts(self, count: int, mask_contexts: Optional[Array]) -> Optional[Array]:
        way = self.reader.byte("the kind of contexts")
        if way == PLAIN:
            return None
        if way == AROUND and mask_contexts is not None:
            return mask_contexts
        if way != EXPLICIT or not count:
            raise damaged(f"there are no contexts of kind {way}")
        rows = self.reader.number("the number of rows", least=1, most=count)
        if count % rows:
            raise damaged(f"{count} numbers cannot be {rows} rows")
        row, column = (self._classes(length) for length in (rows, count // rows))
        classes = int(column.max()) + 1
        if (int(row.max()) + 1) * classes > MOST_CONTEXTS:
            raise damaged("there are too many contexts")
        return (row[:, None] * np.uint8(classes) + column[None, :]).reshape(-1)

    def _classes(self, count: int) -> Array:
        classes = read_symbols(self.reader, most=count)
        if len(classes) != count or classes.dtype.itemsize > 1:
            raise damaged(f"there are {len(classes)} classes, not {count}")
        return classes

    def _places(self, kind: int, count: int) -> Tuple[Array, Optional[Array]]:
        """The indices of the numbers that are not 0, and their contexts."""
        if kind == MASK:
            contexts = self._contexts(count, None)
            mask = read_symbols(self.reader, most=count, contexts=contexts)
            if len(mask) != count or (count and int(mask.max()) > 1):
                raise damaged("a mask has values other than 0 and 1")
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
                raise damaged("the gaps end outside the tensor")
            return places[~last], None
        rows = self.reader.number("the number of rows", least=1, most=max(count, 1))
        lengths = read_symbols(self.reader, most=rows).astype(np.int64)
        if count % rows or len(lengths) != rows or int(lengths.max()) > count // rows:
            raise damaged("its rows do not fit the tensor")
        total = int(lengths.sum())
        column = read_symbols(self.reader, most=total).astype(np.int64)
        if len(column) != total or (total and int(column.max()) >= count // rows):
            raise damaged("a column is outside the tensor")
        return np.repeat(np.arange(rows) * (count // rows), lengths) + column, None
