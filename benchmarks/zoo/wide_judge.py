"""Whether a pruned network is right beyond one forward pass: its gradients, at other sizes, and pickled.

It is compared with the reference of `value_judge`, in float64, and reads no plan either.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from benchmarks.zoo.measure import floats
from benchmarks.zoo.networks import Network
from benchmarks.zoo.value_judge import Judged, doubled
from deadweight.targets.errors import DeadweightError

ROUNDING = 1e-9
"""Gradients this far below the largest of the network are what rounding leaves of zero."""


def gradients(judged: Judged, network: Network, *, training: bool) -> float | str:
    """The largest error of a gradient of what is left, relative to that gradient.

    In training mode without dropout; "random" where two passes of one of the two still differ.

    Raises:
        ValueError: a parameter has a gradient in one of the two only.
    """
    inputs = doubled(network.example(seed=1))
    nets = [copy.deepcopy(one) for one in (judged.reference, judged.pruned)]
    both: list[dict[str, Tensor]] = []
    contexts: tuple[AbstractContextManager[None], ...] = (judged.as_judged(), nullcontext())
    for net, context in zip(nets, contexts, strict=True):
        for one in net.modules():
            one.training = training and not isinstance(one, nn.modules.dropout._DropoutNd)
        with context, _Undropped():
            outputs, grads = _gradients(net, inputs)
            both.append(grads)
            torch.manual_seed(1)
            with torch.no_grad():
                if training and _error(outputs, floats(net(*inputs))) > ROUNDING:
                    return "random"
    expected, found = both
    if one_sided := sorted(expected.keys() ^ found.keys()):
        raise ValueError(f"a gradient in one of the two only: {one_sided[:4]}")
    largest = max((float(one.abs().max()) for one in expected.values() if one.numel()), default=0.0)
    worst = 0.0
    for name, gradient in expected.items():
        for axis, left in enumerate(judged.places.get(name, ())):
            gradient = gradient.index_select(axis, torch.from_numpy(left))
        if gradient.numel():
            scale = max(float(gradient.abs().max()), ROUNDING * largest)
            worst = max(worst, float((gradient - found[name]).abs().max()) / scale) if scale else worst
    return worst


class _Undropped(TorchFunctionMode):
    """Dropout returns its input, also in a graph and in attention."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if "dropout" in name:
            return args[0] if args else kwargs["input"]
        if "scaled_dot_product" in name:
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
            kwargs = kwargs if len(args) > 4 else {**kwargs, "dropout_p": 0.0}
        return func(*args, **kwargs)


def _gradients(net: nn.Module, inputs: list[Any]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The outputs, and the gradients of a sum of all of them with random weights."""
    torch.manual_seed(0)
    with torch.enable_grad():
        outputs = floats(net(*inputs))
        reached = [one for one in outputs if one.requires_grad]
        draw = torch.Generator().manual_seed(0)
        weights = [torch.randn(one.shape, generator=draw, dtype=torch.float64) for one in reached]
        total = sum((a.double() * b).sum() for a, b in zip(reached, weights, strict=True))
        if isinstance(total, Tensor):
            total.backward()  # type: ignore[no-untyped-call]
    named = net.named_parameters(remove_duplicate=False)
    gradients = {name: one.grad for name, one in named if one.grad is not None}
    return [one.detach() for one in outputs], gradients


def other_sizes(judged: Judged, original: nn.Module, network: Network) -> dict[str, float | str]:
    """For each axis that the original takes at another size: the error there, or in words that it is fixed.

    Raises:
        ValueError: the pruned network fails there with no word of its own.
    """
    found: dict[str, float | str] = {}
    example = network.example(seed=3)
    for name, axes, inputs in _variants(example):
        try:
            with torch.no_grad():
                original(*inputs.values())
        except Exception:  # whatever a network says to a size that it does not take
            continue
        with torch.no_grad(), judged.as_judged():
            expected = floats(judged.reference(*doubled(inputs)))
        label = f"{name} {axes}"
        try:
            with torch.no_grad():
                found[label] = _error(expected, floats(judged.pruned(*doubled(inputs))))
        except DeadweightError as error:
            found[label] = f"fixed: {error}"[:300]
        except Exception as error:
            raise ValueError(f"{label}: {type(error).__name__}: {error}"[:500]) from error
    return found


def _variants(example: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...], dict[str, Any]]]:
    """The example with an axis of an input smaller, or with the last two of an image."""
    for name, value in example.items():
        one = value if isinstance(value, Tensor) else value[0]
        first = 1 if isinstance(value, Tensor) else 0
        single = [(axis,) for axis in range(first, one.dim())]
        for axes in (*single, tuple(range(one.dim() - 2, one.dim()))) if one.dim() > 2 else single:
            yield (
                name,
                axes,
                {**example, name: pytree.tree_map(lambda x, axes=axes: _smaller(x, axes), value)},
            )


def _smaller(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """By a quarter; a multiple of 32 where it was one."""
    for axis in axes:
        step = 32 if x.shape[axis] % 32 == 0 else 1
        x = x.narrow(axis, 0, max(x.shape[axis] * 3 // 4 // step, 1) * step)
    return x


def pickled(original: nn.Module, small: nn.Module, example: dict[str, Any]) -> bool | str:
    """Whether it computes the same bits after torch.save and torch.load; or in words why it cannot.

    Raises:
        ValueError: it cannot where its original can, or other bits come out.
    """
    buffer = io.BytesIO()
    try:
        torch.save(small, buffer)
        buffer.seek(0)
        again = torch.load(buffer, weights_only=False)
    except DeadweightError as error:
        return f"fixed: {error}"[:300]
    except Exception as error:
        if _raises(lambda: torch.save(original, io.BytesIO())):
            return "the original neither"
        raise ValueError(f"{type(error).__name__}: {error}"[:300]) from error
    with torch.no_grad():
        one, other = floats(small(*example.values())), floats(again(*example.values()))
    if not all(torch.equal(a, b) for a, b in zip(one, other, strict=True)):
        raise ValueError("other bits")
    return True


def _raises(call: Callable[[], Any]) -> bool:
    try:
        call()
    except Exception:  # anything may be raised by what a network holds
        return True
    return False


def _error(expected: list[Tensor], found: list[Tensor]) -> float:
    """Relative to the largest value of each output."""
    if [one.shape for one in expected] != [one.shape for one in found]:
        return math.inf
    pairs = [(a.double(), b.double()) for a, b in zip(expected, found, strict=True) if a.numel()]
    return max((float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)) for a, b in pairs), default=0.0)
