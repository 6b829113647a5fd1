"""Compares the outputs of two networks, up to the order of sums.

Both run in a higher precision if their own would hide a mistake or look like one: a network in bfloat16
rounds by half a percent, and a GPU multiplies float32 in TensorFloat-32, or by Winograd's transform, with
errors a hundred times those of a CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Interpreter
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from .contexts import in_mode

TOLERANCE = {
    **dict.fromkeys((torch.float64, torch.complex128), 1e-11),
    **dict.fromkeys((torch.float32, torch.complex64), 1e-5),
    torch.bfloat16: 5e-2,
    torch.float16: 1e-2,
}
"""By type, the largest difference that the order of sums may cause, relative to the largest value."""

_FILLED = 1e6
"""A value this many times larger than those that differ is a fill value."""

_OPEN = 1e-2
"""Up to this difference the network may have amplified rounding; beyond, it is a mistake."""

_PIECE = 2**18
"""Number of elements that are compared at a time."""


def run(model: nn.Module, inputs: Sequence[Any], doubled: bool = False) -> list[Any]:
    """All outputs of a module in eval mode, flat, in the best precision; its buffers are not changed.

    Args:
        doubled: in double precision, whatever the network's own.
    """
    with in_mode(model, training=False), _exactly([*model.parameters(), *inputs], model.buffers(), doubled):
        return list(pytree.tree_leaves(model(*inputs)))


def run_graph(graph: Interpreter, inputs: Sequence[Any], doubled: bool = False) -> list[Any]:
    """The same of a graph."""
    with _exactly([*graph.module.parameters(), *inputs], graph.module.buffers(), doubled):
        return list(graph.run(*inputs))


Computation = Callable[[bool], list[Any]]
"""Takes whether to run in double precision; returns all outputs, flat."""


def or_nothing(computation: Computation) -> Computation:
    """The same, but empty if it fails: a narrow network's code may have a size of the wide one."""

    def outputs(doubled: bool) -> list[Any]:
        try:
            return computation(doubled)
        except Exception:  # torch or the user's code may raise anything
            return []

    return outputs


def compared(expected: Computation, found: Computation) -> tuple[float, bool]:
    """The difference of two computations in their own precision, and whether they are the same.

    A correct network that amplifies rounding (nothing is normalised, a sum cancels) can exceed the tolerance;
    in double precision it does not. In doubt both are run in double precision.
    """
    one = expected(False)
    error = relative_error(one, found(False))
    if not tolerance(one) < error < _OPEN:
        return error, error <= tolerance(one)
    try:
        one, other = expected(True), found(True)
    except Exception:  # an operator without double precision: use its own
        return error, False
    return error, relative_error(one, other) <= tolerance(one)


def relative_error(expected: list[Any], found: Sequence[Any]) -> float:
    """The largest difference, relative to the largest value of that output; infinite if shapes differ."""
    if len(expected) != len(found):
        return float("inf")
    return max((error_of(one, other) for one, other in zip(expected, found, strict=True)), default=0.0)


def tolerance(outputs: Sequence[Any]) -> float:
    """The difference that rounding may cause in outputs of these types."""
    kinds = [TOLERANCE.get(value.dtype, 0.0) for value in outputs if isinstance(value, Tensor)]
    return max(kinds, default=0.0)


def error_of(expected: Any, found: Any) -> float:
    """The largest difference of one output, relative to its largest finite value.

    Bitwise equal values that are a million times larger than any that differ do not count: scores masked with
    -1e9 would hide any mistake. An infinity is equal to itself; NaN to nothing.
    """
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor):
        return 0.0 if expected == found else float("inf")
    if expected.shape != found.shape:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    if not expected.is_floating_point() and not expected.is_complex():
        return 0.0 if torch.equal(expected, found) else float("inf")
    wide = torch.complex128 if expected.is_complex() or found.is_complex() else torch.float64
    largest = differing = worst = 0.0
    for one, other in _pieces(expected, found, wide):
        difference = torch.where(one == other, 0.0, (one - other).abs())
        if not bool(difference.isfinite().all()):
            return float("inf")
        worst = max(worst, float(difference.max()))
        differing = max(differing, float(torch.where(difference > 0, _size(one), 0.0).max()))
    for one, other in _pieces(expected, found, wide):
        size = _size(one)
        filled = (one == other) & (size > _FILLED * differing)
        largest = max(largest, float(torch.where(filled, 0.0, size).max()))
    return worst / max(largest, torch.finfo(torch.float64).tiny)


def _pieces(one: Tensor, other: Tensor, wide: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Both in higher precision, in pieces: a language model returns more scores than it has weights."""
    one, other = one.detach().reshape(-1), other.detach().reshape(-1)
    for start in range(0, one.numel(), _PIECE):
        yield one[start : start + _PIECE].to(wide), other[start : start + _PIECE].to(wide)


def _size(value: Tensor) -> Tensor:
    return torch.where(value.isfinite(), value.abs(), 0.0)


@contextlib.contextmanager
def _exactly(tensors: Iterable[Any], buffers: Iterable[Tensor], doubled: bool) -> Iterator[None]:
    """Runs the `with` block in higher precision if needed, and restores the buffers."""
    held = [(one, one._version, one.clone()) for one in buffers if not one.is_inference()]
    kinds = {(one.device.type, one.dtype) for one in tensors if isinstance(one, Tensor)}
    doubled = doubled or any(device == "cuda" for device, _ in kinds)
    wider = torch.float64 if doubled else torch.float32
    narrow = {kind for _, kind in kinds if kind.is_floating_point and kind.itemsize < wider.itemsize}
    mode = _Wider(dict.fromkeys(narrow, wider)) if narrow else contextlib.nullcontext()
    try:
        with torch.no_grad(), mode:
            yield
    finally:
        with torch.no_grad():
            for buffer, version, value in held:
                if buffer._version != version:
                    buffer.copy_(value)


_CASTS = {Tensor.float: torch.float32, Tensor.half: torch.float16, Tensor.bfloat16: torch.bfloat16}


class _Wider(TorchFunctionMode):
    def __init__(self, wider: Mapping[torch.dtype, torch.dtype]) -> None:
        super().__init__()
        self.wider = wider

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map(self._widened, (args, kwargs or {}))
        if _CASTS.get(func) in self.wider:  # widening afterwards would be too late: the cast rounds
            return args[0].to(self.wider[_CASTS[func]])
        return pytree.tree_map(self._widened, func(*args, **kwargs))

    def _widened(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(self.wider.get(value.dtype, value.dtype))
        return self.wider.get(value, value) if isinstance(value, torch.dtype) else value
