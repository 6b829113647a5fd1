"""Detects a forward that differs in training: runs it in both modes and compares the functions it calls.

Operators that run only in training (an auxiliary head, a residual sum) couple units too. Capturing both modes
is expensive, so it is done only if the called functions differ, which two passes over one sample show. Values
do not matter: convolutions and linear layers, nearly all the work, return zeros of the shape, norms their
input. Meta tensors would cost more: torch computes their shapes in Python.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...export.opened import tensors_of
from .compare import Precision, exactly
from .contexts import hushed, in_mode, seeded
from .inputs import Example, Inputs, inputs_of, with_tensors


def differs_in_training(model: nn.Module, example: Example) -> bool:
    """Whether forward calls other functions in training than at inference; False if it does not run in both.

    Buffers, attributes and the random state are restored.
    """
    if not any(map(_asks_for_its_mode, {type(module) for module in model.modules()})):
        return False
    inputs = inputs_of(model, example)
    tensors = tensors_of(inputs)
    with seeded(0, tensors), hushed():
        first = with_tensors(inputs, (one[:1] if one.dim() else one for one in tensors))
        # A batch norm in training may need more than one sample, and some code values other than zero.
        for some, free in ((first, _FREE), (inputs, _FREE), (inputs, {})):
            try:
                called = (_called(model, some, free, training=training) for training in (True, False))
                return next(called) != next(called)
            except Exception:  # the user's code may raise anything for these values, or in training
                continue
    return False


def _called(model: nn.Module, inputs: Inputs, free: _Stand, *, training: bool) -> list[str]:
    calls = _Calls(free)
    with in_mode(model, training=training), exactly((), model.buffers(), Precision.OWN), calls:
        model(*inputs.args, **inputs.named)
    return calls.names


def _asks_for_its_mode(kind: type) -> bool:
    """Whether a class outside torch has `training` in its code."""
    own = [one for one in kind.__mro__ if not one.__module__.startswith("torch.") and one is not object]
    methods = [method for one in own for method in vars(one).values() if isinstance(method, FunctionType)]
    return any("training" in method.__code__.co_names for method in methods)


def _linear(_: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return input.new_zeros((*input.shape[:-1], *weight.shape[:-1]))


def _convolution(
    function: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Zeros of the result's shape, which one channel gives except for the number of channels."""
    axis = input.dim() - weight.dim() + 1
    one: Tensor = function(input.narrow(axis, 0, 1), weight[:1, :1], None, stride, padding, dilation)
    return one.new_zeros((*one.shape[:axis], len(weight), *one.shape[axis + 1 :]))


def _same(function: Any, input: Tensor, *_: Any, **__: Any) -> Tensor:
    return input


_Stand = dict[Any, Callable[..., Tensor]]
_ALIKE = (F.batch_norm, F.layer_norm, F.group_norm, F.relu, F.relu6, F.gelu, F.silu, F.hardswish)
_FREE: _Stand = {F.linear: _linear, **dict.fromkeys(_ALIKE, _same)}
_FREE |= dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _convolution)
"""By function of torch, a cheap substitute that returns zeros."""


class _Calls(TorchFunctionMode):
    """Records the names of torch functions that are called, except on counters (of batches seen).

    Args:
        free: the substitutes, called with the function as first argument.
    """

    def __init__(self, free: _Stand) -> None:
        super().__init__()
        self.names: list[str] = []
        self.free = free

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(getattr(func, "__name__", func))
        if not (name == "add_" and isinstance(args[0], Tensor) and not args[0].is_floating_point()):
            self.names.append(name)
        if func in self.free:
            return self.free[func](func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
