"""The arena planner: the size of an arena in which every value has a fixed offset, for one order of kernels.

Two passes, like ONNX Runtime's memory plan for a network with known shapes. A value reuses the buffer of a
dead value of exactly its size, the one that died last. Then every buffer gets an offset in the arena for the
lifetime of its values: the smallest sufficient gap between the others, else the end (best fit). Such plans
are close to the largest sum of live sizes (Pisarchyk and Lee 2020, who order values by size instead).
"""

from __future__ import annotations

from collections.abc import Sequence

from .lower_bound import Kernel

GRAIN = 256  # bytes: the alignment of blocks


def planned_bytes(
    sizes: Sequence[int],
    kernels: Sequence[Kernel],
    kept: frozenset[int],
    *,
    held: frozenset[int] = frozenset(),
    forms: Sequence[object] | None = None,
) -> int:
    """Bytes of the arena, and of the buffers of kept values, when the kernels run in this order.

    Args:
        sizes: bytes[value].
        kept: values that the caller keeps; each has a buffer outside the arena.
        held: values in the caller's memory.
        forms: what must be equal for a value to reuse another's buffer; by default the size.
    """
    beside = sum(sizes[value] for value in kept - held)
    held = held | kept
    sizes, kernels = _shared(sizes, kernels, held, sizes if forms is None else forms)
    last = _last_uses(kernels)
    arena, offsets = _Arena(), dict[int, tuple[int, int]]()
    for at, kernel in enumerate(kernels):
        for value in kernel.writes:
            if value not in offsets:
                offsets[value] = arena.take(sizes[value])
        for value in _touched(kernel):
            if last[value] == at and value in offsets:
                arena.give(offsets.pop(value))
    return beside + arena.bytes


def depth_first(kernels: Sequence[Kernel]) -> list[Kernel]:
    """The kernels in ONNX Runtime's order: depth first from the last one, later branches first."""
    makers: dict[int, list[int]] = {}
    for at, kernel in enumerate(kernels):
        for value in kernel.writes:
            makers.setdefault(value, []).append(at)
    before = [
        sorted({at for v, _ in kernel.reads for at in makers.get(v, ()) if at < here})
        for here, kernel in enumerate(kernels)
    ]
    needed = {at for ats in before for at in ats}
    waiting = [(at, False) for at in range(len(kernels)) if at not in needed]
    seen: set[int] = set()
    order = []
    while waiting:
        at, ready = waiting.pop()
        if ready:
            order.append(kernels[at])
        elif at not in seen:
            seen.add(at)
            waiting.append((at, True))
            waiting += [(earlier, False) for earlier in before[at] if earlier not in seen]
    return order


def _shared(
    sizes: Sequence[int], kernels: Sequence[Kernel], held: frozenset[int], forms: Sequence[object]
) -> tuple[list[int], list[Kernel]]:
    """The same run over buffers instead of values."""
    last = _last_uses(kernels)
    buffer: dict[int, int] = {}
    bytes_of: list[int] = []
    form_of: list[object] = []
    dead: list[int] = []  # the last one to die is first
    for at, kernel in enumerate(kernels):
        for value in kernel.writes:
            if value in buffer or value in held:
                continue
            fitting = [old for old in dead if form_of[old] == forms[value]]
            if fitting:
                dead.remove(fitting[0])
                buffer[value] = fitting[0]
            else:
                buffer[value] = len(bytes_of)
                bytes_of.append(sizes[value])
                form_of.append(forms[value])
        for value in sorted(_touched(kernel)):
            if last[value] == at and value in buffer:
                dead.insert(0, buffer[value])
    moved = [
        Kernel(
            kernel.name,
            tuple((buffer[value], 0) for value, _ in kernel.reads if value in buffer),
            tuple(buffer[value] for value in kernel.writes if value in buffer),
        )
        for kernel in kernels
    ]
    return bytes_of, moved


def _last_uses(kernels: Sequence[Kernel]) -> dict[int, int]:
    return {value: at for at, kernel in enumerate(kernels) for value in _touched(kernel)}


def _touched(kernel: Kernel) -> set[int]:
    return {*kernel.writes, *(value for value, _ in kernel.reads)}


class _Arena:
    """An arena and its used parts, as (start, size) in order."""

    def __init__(self) -> None:
        self.bytes = 0
        self._taken: list[tuple[int, int]] = []

    def take(self, size: int) -> tuple[int, int]:
        """The offset of a new part: the smallest sufficient gap, or the end."""
        size = -(-size // GRAIN) * GRAIN
        end, best = 0, None
        for start, taken in [*self._taken, (self.bytes, 0)]:
            gap = start - end
            if gap >= size and (best is None or gap < best[1]):
                best = (end, gap)
            end = max(end, start + taken)
        start = best[0] if best is not None else max((s + n for s, n in self._taken), default=0)
        if size:
            self._taken.append((start, size))
            self._taken.sort()
            self.bytes = max(self.bytes, start + size)
        return start, size

    def give(self, place: tuple[int, int]) -> None:
        if place[1]:
            self._taken.remove(place)
