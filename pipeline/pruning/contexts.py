"""Contexts in which a network runs: one mode for all modules, no logs, no garbage collection, no chance, a
record of its own backward passes."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import random
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._C._functorch import _vmap_decrement_nesting, get_interpreter_stack
from torch.autograd import Function
from torch.overrides import TorchFunctionMode


def first_line(error: Exception) -> str:
    """What it says first, or its class if that is nothing."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Suppresses torch's warnings and logs: it prints the whole graph of a network that it cannot capture."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.ERROR))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def configs_with_cache(modules: Iterable[nn.Module]) -> list[Any]:
    """The configurations of modules, as transformers has them, that switch a cache on."""
    found = [vars(module).get("config") for module in modules]
    return [*{id(one): one for one in found if getattr(one, "use_cache", None) is True}.values()]


@contextlib.contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """The whole network in one mode, without caches of keys and values, which no graph can take or return.

    Afterwards every module has its old attributes again, its mode too.
    """
    modules = [*model.modules()]
    caching = configs_with_cache(modules)
    before = [(vars(module), vars(module).copy()) for module in modules]
    held = [one for _, kept in before for one in kept.values() if isinstance(one, (dict, list))]
    contents = [one.copy() if one else one for one in held]  # nearly all are empty
    if any(module.training != training for module in modules):
        model.train(training)
    for config in caching:
        config.use_cache = False
    try:
        yield
    finally:
        for config in caching:
            config.use_cache = True
        for own, attributes in before:  # forward may have stored a tensor of the exporter
            own.clear()
            own.update(attributes)
        for container, content in zip(held, contents, strict=True):
            if content is container:
                container.clear()
            elif isinstance(container, dict):
                container.clear()
                container.update(content)
            else:
                container[:] = content


_found_on: list[bool] = []  # by every open `uncollected`: whether it found the collector on


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector, except in torch.export: one collection costs as much as many runs."""
    _found_on.append(gc.isenabled())
    gc.disable()
    try:
        yield
    finally:
        if _found_on.pop():
            gc.enable()


@contextlib.contextmanager
def collected() -> Iterator[None]:
    """With the garbage collector again, if it was on: torch.export leaves much garbage.

    It looks only at what is new: a search of all that is loaded costs up to half as much as the export.
    """
    off, thawed = any(_found_on) and not gc.isenabled(), not gc.get_freeze_count()
    if thawed:
        gc.freeze()
    if off:
        gc.enable()
    try:
        yield
    finally:
        if off:
            gc.disable()
        if thawed:
            gc.unfreeze()


@contextlib.contextmanager
def any_length() -> Iterator[None]:
    """Recurrent layers are captured for any length.

    For the shapes of their results alone, torch runs them step by step, which fixes the number of steps.
    """
    from torch._decomp import decompositions  # torch.export loads it too

    def layer(inp: Tensor, hidden: Any, params: Any, *_: Any, **__: Any) -> tuple[Tensor, Any]:
        state = hidden if isinstance(hidden, Tensor) else hidden[0]
        first = inp[..., :1] + params[0].reshape(-1)[:1]  # it has a gradient if the result has one
        return first.repeat(1, 1, state.shape[-1]), hidden

    space: dict[str, Any] = decompositions.__dict__
    own = dict(space)
    space.update(one_layer_rnn=layer, select_one_layer_lstm_function=lambda *_: layer)
    try:
        yield
    finally:
        space.update(own)


class ShortSizes(TorchFunctionMode):
    """Ends a capture with open axes once a size has become a long expression.

    Windows that are padded and shifted at every stage nest their remainders, with which torch's symbolic
    arithmetic takes minutes.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            sizes: tuple[Any, ...] = value.shape if isinstance(value, Tensor) else ()
            if any(isinstance(size, torch.SymInt) and size.node.expr.count_ops() > _LONG for size in sizes):
                raise RuntimeError("with all axes open, sizes become expressions of dozens of operations")
        return result


_LONG = 50
"""Operations; five convolutions of stride two have 15."""


@contextlib.contextmanager
def own_backward() -> Iterator[set[str]]:
    """The names of the user's autograd functions and gradient hooks that run: no graph has their backward."""
    found: set[str] = set()
    apply: Any = vars(Function)["apply"]
    hook: Any = Tensor.register_hook

    def applied(kind: type, *args: Any, **kwargs: Any) -> Any:
        if not kind.__module__.startswith("torch."):
            found.add(kind.__name__)
        return apply.__get__(None, kind)(*args, **kwargs)  # torch 2.14 has it in C

    def hooked(tensor: Tensor, *args: Any) -> Any:
        if not str(sys._getframe(1).f_globals.get("__name__")).startswith("torch."):
            found.add("register_hook")
        return hook(tensor, *args)

    Function.apply, Tensor.register_hook = classmethod(applied), hooked  # type: ignore[method-assign, assignment]
    try:
        yield found
    finally:
        Function.apply, Tensor.register_hook = apply, hook  # type: ignore[method-assign]


@contextlib.contextmanager
def outside_vmap() -> Iterator[None]:
    """Leaves every `vmap` that a graph has entered if the graph fails inside."""
    before = len(get_interpreter_stack() or ())
    try:
        yield
    except BaseException:
        while len(get_interpreter_stack() or ()) > before:
            _vmap_decrement_nesting()
        raise


@contextlib.contextmanager
def seeded(seed: int, tensors: Iterable[Any]) -> Iterator[None]:
    """Random numbers of torch, on the devices of these tensors too, of NumPy and of Python, all from a seed;
    afterwards each goes on as if none had been drawn."""
    cards = sorted({one.device.index or 0 for one in tensors if one.device.type == "cuda"})
    python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(cards):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(of_numpy)


class Undropped(TorchFunctionMode):
    """Dropout, as a function or an operator of a graph, returns its input; a Bernoulli draw, of stochastic
    depth, its mean."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = str(getattr(func, "__name__", "")).partition(".")[0].strip("_")
        if name.endswith(("dropout", "dropout1d", "dropout2d", "dropout3d")):
            return args[0] if args else kwargs["input"]
        rate = args[1] if len(args) > 1 else kwargs.get("p", 0.5 if func is Tensor.bernoulli_ else None)
        if name == "bernoulli" and isinstance(rate, float):
            drawn = args[0] if func.__name__.startswith("bernoulli_") else torch.empty_like(args[0])
            return drawn.fill_(rate)
        place = _RATES.get(name, len(args))
        if name in _RECURRENT and len(args) > 6:  # of a packed sequence the rate is one place later
            place = 5 if isinstance(args[3], bool) else 6
        if place < len(args):
            args = (*args[:place], 0.0, *args[place + 1 :])
        elif "dropout_p" in kwargs:
            kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)


_RATES = {"scaled_dot_product_attention": 4, "multi_head_attention_forward": 10}
"""By function, the place of the dropout's rate."""
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
