"""What a network is run within: one mode for all of it, silence, and no garbage collector in the way.

All of it is put back afterwards, whatever the user's code raises meanwhile.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Without torch's own warnings and logs: of a network it cannot capture it prints the whole graph."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.ERROR))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """The whole network in one mode, and afterwards every module with the attributes it had, its mode too."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    held = [(one, one.copy()) for _, kept in before for one in kept.values() if isinstance(one, (dict, list))]
    model.train(training)
    try:
        yield
    finally:
        for module, attributes in before:  # what forward keeps of a run would be a tensor of the exporter's
            vars(module).clear()
            vars(module).update(attributes)
        for container, contents in held:
            container.clear()
            container.update(contents) if isinstance(container, dict) else container.extend(contents)


_found_on: list[bool] = []  # by every open `uncollected`: whether it found the collector on


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector, save in torch.export: one walk of it over the heap is many forwards."""
    _found_on.append(gc.isenabled())
    gc.disable()
    try:
        yield
    finally:
        if _found_on.pop():
            gc.enable()


@contextlib.contextmanager
def collected() -> Iterator[None]:
    """With it again, where it was on: torch.export leaves much behind."""
    off = any(_found_on) and not gc.isenabled()
    if off:
        gc.enable()
    try:
        yield
    finally:
        if off:
            gc.disable()
