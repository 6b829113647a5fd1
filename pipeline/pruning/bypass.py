"""Depth pruning: the replacements of dropped blocks and layers, the shallower network, and its proof.

A residual block returns its input plus the output of a branch (He et al. 2016, "Deep Residual Learning").
Without the branch it is its input or, if it changes the shape, its shortcut with the activation after the
sum. A small module of the same name replaces it, so the user's class is kept, and the state dict loses only
the keys of the dropped blocks.

The proof is independent of this surgery. The original runs in full, and hooks replace the block's output by
its input, or the end of the dropped branch by zeros.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...targets.errors import ModelError
from .compare import Comparison, Precision, compared, run
from .inputs import Example
from .narrow import copied_module
from .plan import Bypass, Plan, fingerprint

Dropped = Mapping[str, Bypass]
"""By module, its replacement."""

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "leaky_relu": F.leaky_relu,
    "hardswish": F.hardswish,
    "elu": F.elu,
    "mish": F.mish,
    "tanh": torch.tanh,
}
"""The activations that a block may apply to its sum. A plan names one: code in a file is never run."""


class Skip(nn.Module):
    """Replaces a block: returns its first input tensor in the form in which the block returned its output."""

    def __init__(self, outputs: int = 0) -> None:
        super().__init__()
        self.outputs = outputs

    # A block may also get masks and caches, by position or by name; they are ignored.
    def forward(self, *args: Any, **named: Any) -> Any:
        return returned(first_tensor(args, named), self.outputs)


class Shortcut(nn.Module):
    """Replaces a block: its shortcut, under its own name, and the activation after the sum."""

    def __init__(self, name: str, shortcut: nn.Module, activation: str) -> None:
        super().__init__()
        self.add_module(name, shortcut)
        self.activation = activation

    def forward(self, *args: Any, **named: Any) -> Any:
        (shortcut,) = self.children()
        return ACTIVATIONS[self.activation](shortcut(first_tensor(args, named)))


def first_tensor(args: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """The tensor that a block works on: its first one, by position or by name; None without one."""
    return next((value for value in (*args, *named.values()) if isinstance(value, Tensor)), None)


def returned(value: Any, outputs: int) -> Any:
    """A tensor in the form of the block's output: alone, or as the first item of a tuple of `outputs`."""
    return (value, *(None,) * (outputs - 1)) if outputs else value


def dropping(model: nn.Module, dropped: Dropped) -> Plan:
    return Plan(fingerprint(model), dropped=dropped)


def shallower(model: nn.Module, dropped: Dropped) -> nn.Module:
    """A copy of `model` in which a small module replaces each dropped block.

    Raises:
        ModelError: it has no such block.
    """
    small = copied_module(model, {})
    _swap(small, dropped)
    return small


@contextlib.contextmanager
def without(model: nn.Module, dropped: Dropped) -> Iterator[None]:
    """`model` itself without some blocks, until the end of the `with` block."""
    before = _swap(model, dropped)
    try:
        yield
    finally:
        for path, block in reversed(before):
            model.set_submodule(path, block)


def _zeros(module: nn.Module, inputs: object, result: Tensor) -> Tensor:
    return torch.zeros_like(result)


@contextlib.contextmanager
def bypassed(model: nn.Module, dropped: Dropped) -> Iterator[None]:
    """`model` itself, in full, with hooks by which these blocks return what their replacements would."""
    with contextlib.ExitStack() as hooks:
        for path, bypass in dropped.items():
            block = model.get_submodule(path)
            if bypass.shortcut:
                branch = block.get_submodule(bypass.branch)
                hooks.enter_context(branch.register_forward_hook(_zeros))
                continue
            held: list[Tensor] = []  # copies: a block may write to its input
            hooks.enter_context(block.register_forward_pre_hook(partial(_keep, held), with_kwargs=True))
            hooks.enter_context(block.register_forward_hook(partial(_put, held, bypass.outputs)))
        yield


def difference(original: nn.Module, small: nn.Module, dropped: Dropped, inputs: Example) -> Comparison:
    """The shallower network against the original with bypassed blocks; neither network is changed."""

    def expected(precision: Precision) -> list[Any]:
        with bypassed(original, dropped):
            return run(original, inputs, precision)

    return compared(expected, partial(run, small, inputs))


def _keep(held: list[Tensor], _: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
    held.append(first_tensor(args, named).clone())


def _put(held: list[Tensor], outputs: int, *_: Any) -> Any:
    return returned(held.pop(), outputs)


def _swap(model: nn.Module, dropped: Dropped) -> list[tuple[str, nn.Module]]:
    before: list[tuple[str, nn.Module]] = []
    for path, bypass in dropped.items():
        try:
            block = model.get_submodule(path)
            instead = _stand_in(block, bypass)
        except (AttributeError, KeyError) as error:
            raise ModelError(
                f'The plan drops "{path}", which does not exist in this network.',
                "Give the network that the plan was made for.",
            ) from error
        shared = [name for name, one in model.named_modules(remove_duplicate=False) if one is block]
        for name in shared:
            model.set_submodule(name, instead)
            before.append((name, block))
    return before


def _stand_in(block: nn.Module, bypass: Bypass) -> nn.Module:
    if not bypass.shortcut:
        return Skip(bypass.outputs).train(block.training)
    _ = ACTIVATIONS[bypass.activation]  # an unknown one fails now, not when it is run
    made = Shortcut(bypass.shortcut, block.get_submodule(bypass.shortcut), bypass.activation)
    made.training = block.training  # the shortcut keeps the mode that it has
    return made
