"""The writer for `targets/coded/reading.py`: varints and Rice codes of short lists."""

from __future__ import annotations

from collections.abc import Sequence


def levels(values: Sequence[int], *, before: Sequence[int] | None = None) -> bytes:
    """Integers, 0 or more, with the Rice parameter and the prediction of the smallest result."""
    kinds = [(0, [_zigzag(value - last) for last, value in zip([0, *values[:-1]], values, strict=True)])]
    if before is not None:
        kinds.append((16, [_zigzag(value - old) for old, value in zip(before, values, strict=True)]))
    size, head, rice, codes = min(
        (sum((code >> rice) + 1 + rice for code in codes), head, rice, codes)
        for head, codes in kinds
        for rice in range(8)
    )
    bits = "".join(
        "1" * (code >> rice) + "0" + (f"{code & ((1 << rice) - 1):0{rice}b}" if rice else "")
        for code in codes
    )
    whole = -(-size // 8)
    return bytes([head | rice]) + int(bits.ljust(8 * whole, "0") or "0", 2).to_bytes(whole, "big")


def _zigzag(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1
