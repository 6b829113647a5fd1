"""The memory for a network's activations, on plain numbers: a lower bound for any order, and a plan.

When kernel k is about to run, all that k depends on has run, and nothing that depends on k. Every value that
the former wrote and that k, the latter or the caller will read must exist: no order of the kernels has less
in memory at k. k's result is added, unless it may be accumulated into an existing value: both cases are tried
and the smaller one counts.

Two more facts hold in any order: one of the readers of a value is last, and one of the makers of a kernel's
inputs is last. The others have run before; the smallest need over the choice of the last one is a bound too.
The result is the largest of all these bounds. What else may run before or after k counts as nothing; a
minimum cut over all such choices gains 0.6 % at most on average (docs/memory.md).

Assumptions: a value is computed once, and a kernel reads its inputs whole from memory. A value counts at most
with its smallest form; gaps, alignment and workspaces do not count.

Liveness and the sharing of buffers: Aho, Lam, Sethi, Ullman, Compilers, 2nd edition, 9.2.5. For networks,
Pisarchyk and Lee 2020, "Efficient memory management for deep neural net inference", call the largest sum of
live sizes the lower bound of any plan for a fixed order; here the order is free too.

The upper end is a plan: an arena in which every value has a fixed offset, for one order of the kernels.
Two passes, like ONNX Runtime's memory plan for a network with known shapes. A value reuses the buffer of a
dead value of exactly its size, the one that died last. Then every buffer gets an offset in the arena for the
lifetime of its values: the smallest sufficient gap between the others, else the end (best fit). Such plans
are close to the largest sum of live sizes (Pisarchyk and Lee 2020, who order values by size instead).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GRAIN = 256  # bytes: the alignment of blocks
_MANY = 1 << 60  # more than any memory: for a kernel that cannot run there


@dataclass(frozen=True)
class Kernel:
    """One step of a run. `reads` are values, each with the bytes of it that are read; `writes` are values.

    `whole`: it reads from memory and writes to memory; otherwise it may be fused into another kernel and only
    orders the values. `sum`: it combines its inputs element by element, so it may be fused into the kernel
    that makes one of them, and overwrite one of them.
    """

    name: str
    reads: tuple[tuple[int, int], ...]
    writes: tuple[int, ...]
    whole: bool = True
    sum: bool = False


@dataclass(frozen=True)
class Peak:
    """The largest need, and its kernel."""

    bytes: int
    kernel: str


def least_bytes(sizes: Sequence[int], kernels: Sequence[Kernel], kept: frozenset[int]) -> Peak:
    """The lower bound in bytes: no run of `kernels`, in any order, needs less.

    Args:
        sizes: bytes[value], the smallest form of each; 0 for those in the caller's memory.
        kernels: in an order in which they can run.
        kept: values that the caller keeps, which live to the end.
    """
    graph = _Graph.of(sizes, kernels, kept)
    best = Peak(0, "")
    for at, kernel in enumerate(kernels):
        if kernel.whole or kernel.sum:
            need = graph.need(at)
            if need > best.bytes:
                best = Peak(need, kernel.name)
    for group in sorted({ats for ats in graph.rivals() if len(ats) > 1}):
        needs = {at: graph.need(at, before=[other for other in group if other != at]) for at in group}
        last = min(needs, key=lambda at: needs[at])
        if best.bytes < needs[last] < _MANY:
            best = Peak(needs[last], kernels[last].name)
    return best


@dataclass(frozen=True)
class _Graph:
    sizes: Sequence[int]
    kernels: Sequence[Kernel]
    kept: frozenset[int]
    makers: dict[int, int]
    readers: dict[int, set[int]]
    above: list[int]  # by kernel, a bit set of those that must run before it
    below: list[int]  # and of those that must run after it

    @classmethod
    def of(cls, sizes: Sequence[int], kernels: Sequence[Kernel], kept: frozenset[int]) -> _Graph:
        makers = {value: at for at, kernel in enumerate(kernels) for value in kernel.writes}
        readers: dict[int, set[int]] = {value: set() for value in makers}
        above, below = [0] * len(kernels), [0] * len(kernels)
        for at, kernel in enumerate(kernels):
            for value, _ in kernel.reads:
                readers.setdefault(value, set()).add(at)
                if value in makers:
                    above[at] |= above[makers[value]] | 1 << makers[value]
        for at in range(len(kernels) - 1, -1, -1):
            for value in kernels[at].writes:
                for reader in readers.get(value, ()):
                    below[at] |= below[reader] | 1 << reader
        return cls(sizes, kernels, kept, makers, readers, above, below)

    def rivals(self) -> list[tuple[int, ...]]:
        """Groups of kernels of which one is last: the readers of a value, the makers of a kernel's inputs."""
        makers = ({self.makers[v] for v, _ in kernel.reads if v in self.makers} for kernel in self.kernels)
        return [tuple(sorted(group)) for group in (*self.readers.values(), *makers)]

    def need(self, at: int, before: Sequence[int] = ()) -> int:
        """The minimum bytes when kernel `at` runs after all of `before`; `_MANY` when it cannot."""
        kernel, done, later = self.kernels[at], self.above[at], self.below[at] | 1 << at
        for other in before:
            done |= self.above[other] | 1 << other
        if done & later:
            return _MANY
        extra = sum(max(0, read - self.sizes[value]) for value, read in kernel.reads)
        if not kernel.whole:
            most = max(
                (read for v, read in kernel.reads if kernel.sum and len(self.readers[v]) == 1), default=0
            )
            # One input of a sum may never exist: the kernel that makes it can add the others.
            return max(0, self._alive(done, later) + extra - most)
        best = self._alive(done, later) + sum(self._least_form(value) for value in set(kernel.writes))
        for other in self._addends(kernel, {value for value, _ in kernel.reads}):
            maker = self.makers.get(other)
            if maker is not None and not later >> maker & 1:
                best = min(best, self._alive(done | self.above[maker] | 1 << maker, later))
        return best + extra

    def _addends(self, kernel: Kernel, read: set[int]) -> set[int]:
        """Values that the kernel's result may overwrite, if the following sums are fused."""
        found: set[int] = set()
        for value in set(kernel.writes):
            while (follower := self._sum_of(value)) is not None:
                found |= {other for other, _ in follower.reads if other != value and other not in read}
                value = follower.writes[0]
        return found

    def _sum_of(self, value: int) -> Kernel | None:
        """The sum that is the only reader of a value."""
        if value in self.kept or len(self.readers.get(value, ())) != 1:
            return None
        (at,) = self.readers[value]
        return self.kernels[at] if self.kernels[at].sum else None

    def _least_form(self, value: int) -> int:
        """Additional bytes of a result, whose successors may be fused."""
        least = self.sizes[value]
        while (follower := self._sum_of(value)) is not None:
            value = follower.writes[0]
            least = min(least, self.sizes[value])
        readers = [self.kernels[at] for at in self.readers.get(value, ())]
        if value not in self.kept and readers and not any(r.whole or r.sum for r in readers):
            return 0
        return least

    def _alive(self, done: int, later: int) -> int:
        """Bytes of the values that kernels of `done` make, and that the caller or kernels of `later` read."""
        return sum(
            self.sizes[value]
            for value, maker in self.makers.items()
            if done >> maker & 1
            and (value in self.kept or any(later >> reader & 1 for reader in self.readers[value]))
        )


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
