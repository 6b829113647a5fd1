"""Whether a network is another one in training: forward is run on tensors without values, in both modes.

What training alone does (an auxiliary head, a residual sum) hangs units together too. To capture both modes
is dear, so it is done only where the functions that are called differ.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .capture import Example, hushed, inputs_of
from .narrow import copied_module


def differs_in_training(model: nn.Module, example: Example) -> bool:
    """Whether forward calls other functions in training than at inference, as far as a dry run can tell.

    Nothing is computed: in a copy, parameters and inputs have shapes only. Where forward does not run like
    that, the answer is no.
    """
    if not any(map(_asks_for_its_mode, {type(module) for module in model.modules()})):
        return False
    inputs = tuple(value.to("meta") for value in inputs_of(example))
    shapes: dict[int, Any] = {id(one): one.detach().to("meta") for one in model.buffers()}
    shapes |= {id(one): nn.Parameter(one.detach().to("meta"), False) for one in model.parameters()}
    called: list[list[str]] = []
    try:
        dry = copied_module(model, shapes)
        for training in (False, True):
            with torch.no_grad(), hushed(), _Calls() as calls:
                dry.train(training)(*inputs)
            called.append(calls.names)
    except Exception:  # whatever the user's code raises for tensors without values
        return False
    return called[0] != called[1]


def _asks_for_its_mode(kind: type) -> bool:
    """Whether a class that is not torch's own has `training` in its code."""
    own = [one for one in kind.__mro__ if not one.__module__.startswith("torch.") and one is not object]
    methods = [method for one in own for method in vars(one).values() if isinstance(method, FunctionType)]
    return any("training" in method.__code__.co_names for method in methods)


class _Calls(TorchFunctionMode):
    """The names of the functions of torch that are called; counters (of batches seen) do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(getattr(func, "__name__", func))
        if not (name == "add_" and isinstance(args[0], Tensor) and not args[0].is_floating_point()):
            self.names.append(name)
        return func(*args, **(kwargs or {}))
