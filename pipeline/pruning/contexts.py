"""Contexts in which a network runs: one mode for all modules, no logs, no garbage collection, a record of its
own backward passes."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.autograd import Function


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


def configs_with_cache(model: nn.Module) -> list[Any]:
    """The configurations of its modules, as transformers has them, that switch a cache on."""
    found = [vars(module).get("config") for module in model.modules()]
    return [*{id(one): one for one in found if getattr(one, "use_cache", None) is True}.values()]


@contextlib.contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """The whole network in one mode, without caches of keys and values, which no graph can take or return.

    Afterwards every module has its old attributes again, its mode too.
    """
    caching = configs_with_cache(model)
    before = [(module, dict(vars(module))) for module in model.modules()]
    held = [(one, one.copy()) for _, kept in before for one in kept.values() if isinstance(one, (dict, list))]
    model.train(training)
    for config in caching:
        config.use_cache = False
    try:
        yield
    finally:
        for config in caching:
            config.use_cache = True
        for module, attributes in before:  # forward may have stored a tensor of the exporter
            vars(module).clear()
            vars(module).update(attributes)
        for container, contents in held:
            container.clear()
            container.update(contents) if isinstance(container, dict) else container.extend(contents)


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
