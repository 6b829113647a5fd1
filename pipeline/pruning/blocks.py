"""Finds the blocks and layers that depth pruning may drop, by observing one run of the network.

A module may be dropped if its output has the shape and type of its input. It is a *residual block* if its
input also reaches its output through only sums, activations and norms, without weights: a skip connection. If
most of the weights of such a module are in others of its kind, it is a chain of blocks (a stage, an encoder),
and these are the blocks. A block that changes the shape may be dropped if one of its children, applied to its
input, gives its output alone once the other branch ends in zeros.

The called functions of torch show this, in their order; an exported graph has lost the modules to which they
belong. No class is known by name. Each candidate is tested: the network must run with the replacement, and
compute the same as with the block bypassed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ...export.opened import unwrapped
from ...targets.errors import ModelError
from .bypass import ACTIVATIONS, bypassed, first_tensor, without
from .compare import relative_error, run, tolerance
from .contexts import first_line, in_mode
from .graphnet import GraphNet
from .inputs import Example, inputs_of
from .narrow import copied_module, elements_of
from .plan import Bypass

Kind = Literal["blocks", "layers"]


@dataclass(frozen=True)
class Block:
    """A block or a layer, and whether it can be dropped.

    Attributes:
        path: the module's name; `kind` its class.
        parameters: the number of parameter elements in it.
        bypass: its replacement; None if it cannot be dropped.
        reason: why it cannot; "" if it can.
    """

    path: str
    kind: str
    parameters: int = 0
    bypass: Bypass | None = None
    reason: str = ""


def find(
    model: nn.Module, example: Example, *, kind: Kind = "blocks", only: Sequence[str] = ()
) -> tuple[Block, ...]:
    """The blocks of a network, or its layers, in the order of its modules; `model` is not changed.

    Args:
        example: tensors in the order of forward's parameters, batch axis first.
        kind: "blocks" for residual blocks, "layers" for single layers with a weight whose output is as wide
            as their input.
        only: names of modules, with wildcards, that are tried instead, of any kind; of nested modules the
            outermost.

    Returns:
        Those that can be dropped; and, with the reason, those that cannot although they are of the same
        class or were named.

    Raises:
        ModelError: the network does not run, is in the graph form, or has no module of a name in `only`.
    """
    model = unwrapped(model)
    if isinstance(model, GraphNet):
        raise ModelError(
            "This network was pruned in the graph form: its blocks are not modules any more.",
            'Drop blocks first and neurons afterwards, or prune neurons with form="module".',
        )
    copy = copied_module(model, {})
    seen = watched(copy, example)
    modules = {path: one for path, one in copy.named_modules() if path and _weighted(one)}
    found = _Finder(copy, example, modules, seen)
    if only:
        return tuple(found.tried(path) for path in _named(only, modules))
    if kind == "layers":
        return tuple(found.tried(path) for path, one in modules.items() if _is_layer(one))
    return found.blocks()


def removable(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """Those that can be dropped.

    Raises:
        ModelError: none can; the message has the reasons.
    """
    able = tuple(block for block in blocks if block.bypass is not None)
    if able:
        return able
    reasons = "; ".join(f"{block.path} ({block.kind}): {block.reason}" for block in blocks[:4])
    raise ModelError(
        f"This network has no block or layer that can be dropped. {reasons}".strip(),
        "Residual blocks can be dropped, and layers as wide as their input: ask for the other kind, name "
        "modules of this network, or prune neurons instead.",
    )


class _Finder:
    def __init__(
        self, model: nn.Module, inputs: Example, modules: Mapping[str, nn.Module], seen: Seen
    ) -> None:
        self.model, self.inputs, self.modules, self.seen = model, inputs, modules, seen

    def blocks(self) -> tuple[Block, ...]:
        carrying = {path for path in self.modules if self._carries(path)}
        chosen: dict[str, Bypass | None] = {}
        for path in self.modules:  # parents come before their children
            if any(_inside(path, other) for other in chosen):
                continue
            if path in carrying:
                if not self._is_chain(path, carrying):
                    chosen[path] = None
            elif bypass := self._shortcut(path):
                chosen[path] = bypass
        kinds = {type(self.modules[path]) for path in chosen}
        for path, module in self.modules.items():  # report also modules of these classes that are not blocks
            apart = not any(_inside(path, one) or _inside(one, path) for one in chosen)
            if type(module) in kinds and apart:
                chosen.setdefault(path, None)
        return tuple(self.tried(path, chosen[path]) for path in self.modules if path in chosen)

    def tried(self, path: str, bypass: Bypass | None = None) -> Block:
        """A module with its replacement, if the network runs with it and its outputs are right."""
        block = Block(path, type(self.modules[path]).__name__)
        reasons = [call.reason for call in self._calls(path)] or ["forward does not call it"]
        why = next(filter(None, reasons), "")
        bypass = bypass or (self._shortcut(path) if why else Bypass(self._calls(path)[0].outputs))
        if bypass is None:
            return dataclasses.replace(block, reason=why)
        if problem := self._problem({path: bypass}):
            return dataclasses.replace(block, reason=problem)
        whole = elements_of(self.model)
        with without(self.model, {path: bypass}):
            gone = whole - elements_of(self.model)
        return dataclasses.replace(block, parameters=gone, bypass=bypass)

    def _problem(self, dropped: Mapping[str, Bypass]) -> str:
        with bypassed(self.model, dropped):
            expected = run(self.model, self.inputs)
        try:
            with without(self.model, dropped):
                found = run(self.model, self.inputs)
        except Exception as error:  # the user's code, which may use more of the block than its output
            return f"the network's code fails without it: {first_line(error)}"
        if (wrong := relative_error(expected, found)) > tolerance(expected):
            return f"the network's code uses more of it than its output: outputs are wrong by {wrong:.1e}"
        return ""

    def _calls(self, path: str) -> Sequence[Call]:
        return self.seen.get(self.modules[path], ())

    def _carries(self, path: str) -> bool:
        calls = self._calls(path)
        return bool(calls) and all(call.carried and not call.reason for call in calls)

    def _is_chain(self, path: str, carrying: set[str]) -> bool:
        """Whether most of its elements are in inner modules that themselves have a skip connection."""
        inner = [self.modules[other] for other in carrying if _inside(other, path)]
        elements = {id(one): one.numel() for module in inner for one in module.parameters()}
        return 2 * sum(elements.values()) > elements_of(self.modules[path])

    def _shortcut(self, path: str) -> Bypass | None:
        """The child that alone gives the output of a block, once the other branch ends in zeros."""
        calls = self._calls(path)
        if len(calls) != 1 or not isinstance(calls[0].result, Tensor):
            return None
        (whole,) = calls
        children = {name: one for name, one in self.modules[path].named_children() if _weighted(one)}
        ran = {name: self.seen[one][0] for name, one in children.items() if len(self.seen.get(one, ())) == 1}
        for name, call in ran.items():
            others = [other for other in ran if other != name and isinstance(ran[other].result, Tensor)]
            if not others or call.taken is not whole.taken or shape_of(call.result) != shape_of(whole.result):
                continue
            last = max(others, key=lambda other: ran[other].number)
            alone, left = self._left(path, name, last)
            for activation, function in ACTIVATIONS.items():
                found = [function(alone)] if isinstance(alone, Tensor) else []
                if relative_error([left], found) <= tolerance(found):
                    return Bypass(shortcut=name, branch=last, activation=activation)
        return None

    def _left(self, path: str, shortcut: str, branch: str) -> tuple[Any, Any]:
        """The outputs of the shortcut and of the block when the branch ends in zeros."""
        results: list[Any] = []
        block = self.modules[path]
        bypass = Bypass(shortcut=shortcut, branch=branch)
        with contextlib.ExitStack() as hooks:
            for one in (block.get_submodule(shortcut), block):  # in the order in which they return
                keep = one.register_forward_hook(lambda _, __, result: results.append(result.clone()))
                hooks.enter_context(keep)
            with bypassed(self.model, {path: bypass}):
                run(self.model, self.inputs)
        return results[0], results[1]


def _inside(path: str, other: str) -> bool:
    return path.startswith(f"{other}.")


def _is_layer(module: nn.Module) -> bool:
    own = [one for one in module.parameters(recurse=False) if one.dim() > 1]
    return bool(own) and not any(_weighted(child) for child in module.children())


def _weighted(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _named(only: Sequence[str], modules: Mapping[str, nn.Module]) -> list[str]:
    """The modules whose names match, in their order; of nested ones the outermost."""
    for pattern in only:
        if not fnmatch.filter(modules, pattern):
            raise ModelError(
                f'No module with parameters is named "{pattern}".',
                f"Names are those of named_modules(), e.g. {', '.join(list(modules)[:5])}.",
            )
    named = [path for path in modules if any(fnmatch.fnmatchcase(path, pattern) for pattern in only)]
    return [path for path in named if not any(_inside(path, other) for other in named)]


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
