"""The decoder of coded weights, for a board or a CI gate.

    values = decode_symbols(data, most=limit)     streams, rans, reading
    model = unpack(data)                          container, records

The standard library and numpy, Python 3.8. `export/coding` is the encoder. A stream contains its kind of
coding; nothing is allocated before its size was checked against a limit.
"""

from .streams import decode_symbols

__all__ = ["decode_symbols"]
