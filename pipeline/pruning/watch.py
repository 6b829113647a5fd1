"""One run of a network, watched: what each module takes and returns, and how far its input is carried.

A residual block is told by what it does: its input gets to its output by sums, activations, norms and views
alone, past whatever holds weights. The functions of torch that are called say so, in the order they are
called in; the graph of an export would have lost which module they belong to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ...targets.errors import ModelError
from .bypass import first_tensor
from .contexts import in_mode

_SUMS = frozenset(("add", "add_", "sub", "sub_", "rsub"))


@dataclass(frozen=True)
class Call:
    """One call of a module: its number, the tensor it worked on, and what it returned.

    `outputs` is as in `Bypass`; `reason` says why its input cannot stand for its output; `carried` is whether
    the input is carried past its weights and added to.
    """

    number: int
    taken: Tensor | None
    result: Any
    outputs: int
    reason: str
    carried: bool


Seen = Mapping[nn.Module, Sequence[Call]]


class _Watch(TorchFunctionMode):
    """Notes every call of a module, and follows the inputs of those that run through what is done to them.

    A tensor is the carried input, and `True` once something was added to it; sums, and functions of it alone
    (activations, norms, views), carry it on; what mixes it with weights or other tensors does not.
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
                    carried.pop(id(one), None)  # written over in place
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


def watched(model: nn.Module, inputs: Sequence[Tensor]) -> Seen:
    watch = _Watch()
    handles: list[Any] = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(watch.begin, with_kwargs=True))
        handles.append(module.register_forward_hook(watch.end))
    try:
        with in_mode(model, training=False), torch.no_grad(), watch:
            model(*inputs)
    except Exception as error:  # the user's code
        raise ModelError(
            f"The network does not run on its example inputs: {next(iter(str(error).splitlines()), '')}",
            "Check that model(*inputs) runs.",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return watch.calls


def _fit(taken: Tensor | None, result: Any) -> tuple[int, str]:
    """How a module returns its tensor, and why the tensor it took cannot stand for that; "" where it can."""
    outputs = len(result) if type(result) is tuple else 0
    first = result[0] if outputs else result
    if taken is None:
        return 0, "it takes no tensor"
    if not isinstance(first, Tensor):
        return 0, f"it returns a {type(result).__name__}, not a tensor or a tuple that begins with one"
    if outputs and any(one is not None for one in result[1:]):
        return outputs, "it returns more than its input can stand for"
    if shape_of(first) != shape_of(taken):
        return outputs, f"it makes {_words(first)} of {_words(taken)}"
    return outputs, ""


def shape_of(value: Any) -> tuple[Any, ...] | None:
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else None


def _words(value: Tensor) -> str:
    return f"{' x '.join(map(str, value.shape))} ({str(value.dtype).removeprefix('torch.')})"
