"""Observes one run of a network: inputs and outputs of each module, and its skip connections.

A residual block is recognised by its behaviour: its input reaches its output through only sums, activations,
norms and views, without weights. The called functions of torch show this, in their order; an exported graph
has lost the modules to which they belong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ...targets.errors import ModelError
from .bypass import first_tensor
from .contexts import first_line, in_mode
from .inputs import Example, inputs_of

_SUMS = frozenset(("add", "add_", "sub", "sub_", "rsub"))


@dataclass(frozen=True)
class Call:
    """One call of a module: its number, its input tensor, and its result.

    `outputs` is as in `Bypass`; `reason` says why its input cannot replace its output; `carried` is whether
    it has a skip connection.
    """

    number: int
    taken: Tensor | None
    result: Any
    outputs: int
    reason: str
    carried: bool


Seen = Mapping[nn.Module, Sequence[Call]]


class _Watch(TorchFunctionMode):
    """Records every call of a module, and tracks the inputs of running modules through the called functions.

    A tensor maps to its carried inputs, and to `True` once something was added. Sums, and functions of it
    alone (activations, norms, views), carry it; functions that mix it with weights or other tensors do not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[nn.Module, list[Call]] = {}
        self.running: list[tuple[int, Tensor | None, dict[int, tuple[Tensor, bool]]]] = []
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.running:
            return result
        made = [one for one in pytree.tree_leaves(result) if isinstance(one, Tensor)]
        used = [one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        if not made or not used:
            return result
        name = str(getattr(func, "__name__", func))
        added = name in _SUMS and sum(not isinstance(one, nn.Parameter) for one in used) > 1
        alone = len(used) == 1 or ("norm" in name and not isinstance(used[0], nn.Parameter))
        for _, _, carried in self.running:
            held = [carried[id(one)][1] for one in used if id(one) in carried]
            for one in made:
                if held and (name in _SUMS or (alone and id(used[0]) in carried)):
                    carried[id(one)] = (one, added or any(held))
                else:
                    carried.pop(id(one), None)  # overwritten in place
        return result

    def begin(self, _: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        taken = first_tensor(args, named)
        self.running.append((self.count, taken, {id(taken): (taken, False)} if taken is not None else {}))
        self.count += 1

    def end(self, module: nn.Module, _: Any, result: Any) -> None:
        number, taken, carried = self.running.pop()
        outputs, reason = _fit(taken, result)
        first = result[0] if outputs else result
        past = carried.get(id(first), (None, False))[1]
        self.calls.setdefault(module, []).append(Call(number, taken, result, outputs, reason, past))


def watched(model: nn.Module, inputs: Example) -> Seen:
    watch, (args, named) = _Watch(), inputs_of(model, inputs)
    try:
        with contextlib.ExitStack() as hooks:
            for module in model.modules():
                hooks.enter_context(module.register_forward_pre_hook(watch.begin, with_kwargs=True))
                hooks.enter_context(module.register_forward_hook(watch.end))
            with in_mode(model, training=False), torch.no_grad(), watch:
                model(*args, **named)
    except Exception as error:  # the user's code
        raise ModelError(
            f"The network does not run on its example inputs: {first_line(error)}",
            "Check that model(*inputs) runs.",
        ) from error
    return watch.calls


def _fit(taken: Tensor | None, result: Any) -> tuple[int, str]:
    """The form of a module's output, and why its input cannot replace it; "" if it can."""
    outputs = len(result) if type(result) is tuple else 0
    first = result[0] if outputs else result
    if taken is None:
        return 0, "it takes no tensor"
    if not isinstance(first, Tensor):
        return 0, f"it returns a {type(result).__name__}, not a tensor or a tuple that begins with one"
    if outputs and any(one is not None for one in result[1:]):
        return outputs, "it returns more than its input can replace"
    if shape_of(first) != shape_of(taken):
        return outputs, f"it turns {_words(taken)} into {_words(first)}"
    return outputs, ""


def shape_of(value: Any) -> tuple[Any, ...] | None:
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else None


def _words(value: Tensor) -> str:
    return f"{' x '.join(map(str, value.shape))} ({str(value.dtype).removeprefix('torch.')})"
