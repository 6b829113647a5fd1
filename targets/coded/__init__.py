"""Coded weights, read: what a board needs to get back the numbers that a workstation packed.

    values = decode_symbols(data, most=limit)     streams, rans, levels, reading
    model = unpack(data)                          container, records

The standard library and numpy, Python 3.8. What is written is written by `export/coding`. A stream says
itself how it is coded; nothing is allocated before its size was held against a limit.
"""

from .streams import decode_symbols

__all__ = ["decode_symbols"]
