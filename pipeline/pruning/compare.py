"""Compares the outputs of two networks, up to the order of sums.

Both run in a higher precision if their own would hide a mistake or look like one: a network in bfloat16
rounds by half a percent, and a GPU multiplies float32 in TensorFloat-32, or by Winograd's transform, with
errors a hundred times those of a CPU. A difference above the tolerance is judged in double precision, against
what the network makes there of a change of its weights in the last place: some amplify by ten million.
"""

from __future__ import annotations

import contextlib
import enum
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Interpreter
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ...export.opened import leaves_of, tensors_of
from .contexts import in_mode, outside_vmap
from .inputs import Example, inputs_of

TOLERANCE = {
    **dict.fromkeys((torch.float64, torch.complex128), 1e-11),
    **dict.fromkeys((torch.float32, torch.complex64), 1e-5),
    torch.bfloat16: 5e-2,
    torch.float16: 1e-2,
}
"""By type, the largest difference that the order of sums may cause, relative to the largest value."""

_FILLED = 1e6
"""A value this many times larger than those that differ is a fill value."""
_FILL = 1e3
"""A fill value of outputs is larger than this; a gradient of any size, beside one that is 0 but for rounding,
is none."""

_TIMES, _MOST = 1e2, 1e-3
"""Rounding is a difference of up to this many times what a change of all weights in the last place makes, but
never more than the second number: there a mistake could hide."""

_SURELY = 1e4
"""A larger difference that is this many times what such a change makes in the network's own precision is no
rounding; to find that takes less than a run in double precision."""

_PIECE = 2**18
"""Number of elements that are compared at a time."""


class Precision(enum.Enum):
    """How to run a network: as it is (but see above) or in double precision; and both with all weights
    changed in the last place."""

    OWN = enum.auto()
    SHAKEN = enum.auto()
    DOUBLE = enum.auto()
    NUDGED = enum.auto()


Computation = Callable[[Precision], list[Any]]
"""Returns all outputs, flat."""


def run(model: nn.Module, inputs: Example, precision: Precision = Precision.OWN) -> list[Any]:
    """All outputs of a module in eval mode, flat, in the best precision; its buffers are not changed."""
    given, tensors = inputs_of(model, inputs), [*model.parameters(), *tensors_of(inputs)]
    with in_mode(model, training=False), exactly(tensors, model.buffers(), precision):
        return leaves_of(model(*given.args, **given.named))


def run_graph(graph: Interpreter, inputs: Example, precision: Precision = Precision.OWN) -> list[Any]:
    """The same of a graph."""
    tensors = tensors_of(inputs)
    with exactly([*graph.module.parameters(), *tensors], graph.module.buffers(), precision), outside_vmap():
        return list(graph.run(*tensors))


def or_nothing(computation: Computation) -> Computation:
    """The same, but empty if it fails: a narrow network's code may have a size of the wide one."""

    def outputs(precision: Precision) -> list[Any]:
        try:
            return computation(precision)
        except Exception:  # torch or the user's code may raise anything
            return []

    return outputs


@dataclass(frozen=True)
class Comparison:
    """The difference of two computations, relative to the largest value of each output.

    Attributes:
        error: the largest; in double precision, if that was needed.
        same: whether rounding explains it.
        rounding: the difference in their own precision, if the one in double precision decided; else 0.
    """

    error: float
    same: bool
    rounding: float = 0.0


def compared(
    expected: Computation,
    found: Computation,
    *,
    times: float = 1.0,
    most: float = _MOST,
    fill: float = _FILL,
    careful: bool = True,
) -> Comparison:
    """Compares two computations in their own precision or, if they differ there, in double precision.

    A correct network that amplifies rounding (nothing is normalised, a sum cancels) can differ by
    any amount in its own precision, and above the tolerance even in double precision. There a difference is
    rounding only if the expected outputs move as far when the weights change in the last place.

    Args:
        times: of the tolerance.
        most: the largest difference that may be rounding in double precision.
        fill: see `error_of`.
        careful: without it a difference above the tolerance is never rounding, which costs nothing to say.
    """
    one, other = expected(Precision.OWN), found(Precision.OWN)
    error = relative_error(one, other, fill)
    if error <= times * tolerance(one):
        return Comparison(error, True)
    shapes = [[getattr(value, "shape", None) for value in some] for some in (one, other)]
    if not careful or shapes[0] != shapes[1]:
        return Comparison(error, False)
    if error > most and error > _SURELY * relative_error(one, expected(Precision.SHAKEN), fill):
        return Comparison(error, False)
    try:
        one, other = expected(Precision.DOUBLE), found(Precision.DOUBLE)
    except Exception:  # an operator without double precision: use its own
        return Comparison(error, False)
    if not one or not other:
        return Comparison(error, False)
    exact = relative_error(one, other, fill)
    if exact <= times * tolerance(one):
        return Comparison(exact, True, error)
    nudged = expected(Precision.NUDGED)
    same = all(
        error_of(a, b, fill) <= max(times * tolerance([a]), min(most, _TIMES * error_of(a, c, fill)))
        for a, b, c in zip(one, other, nudged, strict=True)
    )
    return Comparison(exact, same, error)


def relative_error(expected: Sequence[Any], found: Sequence[Any], fill: float = _FILL) -> float:
    """The largest difference, relative to the largest value of that output; infinite if shapes differ."""
    if len(expected) != len(found):
        return float("inf")
    return max((error_of(one, other, fill) for one, other in zip(expected, found, strict=True)), default=0.0)


def tolerance(outputs: Sequence[Any]) -> float:
    """The difference that rounding may cause in outputs of these types."""
    kinds = [TOLERANCE.get(value.dtype, 0.0) for value in outputs if isinstance(value, Tensor)]
    return max(kinds, default=0.0)


def error_of(expected: Any, found: Any, fill: float = _FILL) -> float:
    """The largest difference of one output, relative to its largest finite value.

    Bitwise equal values above `fill` that are a million times larger than any that differ do not count:
    scores masked with -1e9 would hide any mistake. An infinity is equal to itself; NaN to nothing.
    """
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor):
        return 0.0 if expected == found else float("inf")
    if expected.shape != found.shape:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    if not expected.is_floating_point() and not expected.is_complex():
        return 0.0 if torch.equal(expected, found) else float("inf")
    worst = largest = 0.0
    for one, other in _pieces(expected, found):
        off, size = one - other, _largest(one)
        difference = _largest(off)
        if not math.isfinite(difference + size):
            difference, size = _largest(off.masked_fill_(one == other, 0.0)), _largest(_size(one))
        if not math.isfinite(difference):
            return float("inf")
        worst, largest = max(worst, difference), max(largest, size)
    if largest > fill and worst > 0:
        differing = max(_largest(_size(one[one != other])) for one, other in _pieces(expected, found))
        if largest > _FILLED * differing > 0:
            largest = 0.0
            for one, other in _pieces(expected, found):
                sizes = _size(one)
                filled = (one == other) & (sizes > _FILLED * differing)
                largest = max(largest, _largest(sizes.masked_fill_(filled, 0.0)))
    return worst / max(largest, torch.finfo(torch.float64).tiny)


def _pieces(one: Tensor, other: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both in single precision or a higher one, in pieces: a language model returns more scores than it has
    weights."""
    wide = torch.promote_types(torch.promote_types(one.dtype, other.dtype), torch.float32)
    one, other = one.detach().reshape(-1), other.detach().reshape(-1)
    for start in range(0, one.numel(), _PIECE):
        yield one[start : start + _PIECE].to(wide), other[start : start + _PIECE].to(wide)


def _largest(value: Tensor) -> float:
    """The largest absolute value; NaN if one is."""
    return float(value.abs().amax()) if value.numel() else 0.0


def _size(value: Tensor) -> Tensor:
    return value.abs().nan_to_num_(0.0, 0.0)


@contextlib.contextmanager
def exactly(
    tensors: Iterable[Any], buffers: Iterable[Tensor], precision: Precision, *, grad: bool = False
) -> Iterator[None]:
    """Runs the `with` block in higher precision if needed, and restores the buffers.

    Args:
        grad: with gradients.
    """
    held = [(one, one.clone()) for one in buffers if not one.is_inference()]
    kinds = {(one.device.type, one.dtype) for one in tensors if isinstance(one, Tensor)}
    doubled = precision in (Precision.DOUBLE, Precision.NUDGED) or any(
        device == "cuda" for device, _ in kinds
    )
    wider = torch.float64 if doubled else torch.float32
    narrow = {kind for _, kind in kinds if kind.is_floating_point and kind.itemsize < wider.itemsize}
    nudged = precision in (Precision.SHAKEN, Precision.NUDGED)
    mode = _Wider(dict.fromkeys(narrow, wider), nudged) if narrow or nudged else contextlib.nullcontext()
    try:
        with torch.set_grad_enabled(grad), mode:
            yield
    finally:
        for buffer, value in held:  # a batch norm changes its statistics without a new version
            if not torch.equal(buffer, value):
                buffer.data.copy_(value)


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """`pytree.tree_map` without its overhead for what most functions take and return."""
    if type(value) in (tuple, list):
        return type(value)([_mapped(change, one) for one in value])
    if type(value) is dict:
        return {name: _mapped(change, one) for name, one in value.items()}
    return pytree.tree_map(change, value) if isinstance(value, tuple) else change(value)


_CASTS = {Tensor.float: torch.float32, Tensor.half: torch.float16, Tensor.bfloat16: torch.bfloat16}


class _Wider(TorchFunctionMode):
    """Widens what every function of torch takes and returns.

    Args:
        nudged: whether every element of a parameter is changed by up to its last place, each time it is read;
            all rows alike, which is cheap, and no norm undoes it.
    """

    def __init__(self, wider: Mapping[torch.dtype, torch.dtype], nudged: bool) -> None:
        super().__init__()
        self.wider, self.nudged = wider, nudged

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = _mapped(self._taken, args), _mapped(self._taken, kwargs or {})
        if _CASTS.get(func) in self.wider:  # widening afterwards would be too late: the cast rounds
            return args[0].to(self.wider[_CASTS[func]])
        return _mapped(self._widened, func(*args, **kwargs))

    def _taken(self, value: Any) -> Any:
        wide = self._widened(value)
        if not self.nudged or not isinstance(value, nn.Parameter) or not wide.is_floating_point():
            return wide
        row = wide[0] if wide.dim() > 1 and len(wide) else wide
        changes = torch.arange(row.numel(), device=wide.device, dtype=wide.dtype).cos_()
        return wide * (1 + torch.finfo(wide.dtype).eps * changes.reshape(row.shape))

    def _widened(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(self.wider.get(value.dtype, value.dtype))
        return self.wider.get(value, value) if isinstance(value, torch.dtype) else value
