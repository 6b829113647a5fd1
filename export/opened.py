"""What torch.export does not take, opened: the wrappers of a network, and dataclasses that hold tensors."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils import _pytree as pytree

from ..targets.errors import ModelError


@dataclass
class Opened:
    """An object that holds tensors, to torch a dictionary of its attributes."""

    kind: type
    values: dict[str, Any]


def _made(values: Iterable[Any], context: Any) -> Any:
    kind, names = context
    again = object.__new__(kind)  # its constructor may compute, or take other arguments
    for name, value in zip(names, values, strict=True):
        object.__setattr__(again, name, value)
    return again


def _written(context: Any) -> list[str]:
    kind, names = context
    written = [kind.__module__, kind.__qualname__, *names]
    _read(written)
    return written


def _read(written: Sequence[str]) -> tuple[type, tuple[str, ...]]:
    """The class and the names of its attributes; only what is loaded already is looked up."""
    module, name, *names = written
    kind = getattr(sys.modules.get(module), name, None)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise TypeError(f"no dataclass {name} is loaded in {module}")
    return kind, tuple(names)


pytree.register_pytree_node(
    Opened,
    lambda one: (list(one.values.values()), (one.kind, tuple(one.values))),
    _made,
    serialized_type_name="deadweight.Opened",
    to_dumpable_context=_written,
    from_dumpable_context=_read,
)


def opened(value: Any) -> Any:
    """The value with an `Opened` in place of each dataclass, also within collections."""

    def one(leaf: Any) -> Any:
        if not dataclasses.is_dataclass(leaf) or isinstance(leaf, type):
            return leaf
        names = [field.name for field in dataclasses.fields(leaf)]
        return Opened(type(leaf), {name: opened(getattr(leaf, name)) for name in names})

    return pytree.tree_map(one, value)


def leaves_of(value: Any) -> list[Any]:
    """All values in nested collections and dataclasses, in the order of a graph's inputs and outputs."""
    return pytree.tree_leaves(opened(value))


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors among them."""
    return [leaf for leaf in leaves_of(value) if isinstance(leaf, Tensor)]


def outputs_of(result: Any) -> dict[str, Tensor]:
    """The tensors that a network returned, by their names in a file; other values are left out.

    A nested one has the names of all collections around it, as in "output_1_0" or "boxes_0".

    Raises:
        ModelError: there are none, or two have one name.
    """
    made = opened(result)
    found = [("output", made)] if isinstance(made, Tensor) else [*_named(made, "")]
    named = dict(found)
    if not found:
        raise ModelError(
            f"The network returned a {type(result).__name__} without tensors.",
            "Let forward return a tensor, or tuples and dicts of tensors.",
        )
    if len(named) < len(found):
        names = [name for name, _ in found]
        twice = next(name for name in names if names.count(name) > 1)
        raise ModelError(f"Two outputs of the network would be called {twice!r}.", "Rename one of the keys.")
    return named


def _named(value: Any, within: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested collections with their names."""
    value = value.values if isinstance(value, Opened) else value
    if isinstance(value, Tensor):
        yield within, value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _named(one, f"{within}_{key}" if within else str(key))
    elif isinstance(value, (tuple, list)):
        for place, one in enumerate(value):
            yield from _named(one, f"{within or 'output'}_{place}")


def unwrapped(model: nn.Module) -> nn.Module:
    """The network within DataParallel, DistributedDataParallel, AveragedModel or `torch.compile`.

    Raises:
        ModelError: it is TorchScript, or its parameters are spread over processes.
    """
    while True:
        if isinstance(model, (nn.DataParallel, DistributedDataParallel, AveragedModel)):
            model = model.module
        elif "torch._dynamo" in sys.modules and isinstance(model, torch._dynamo.OptimizedModule):
            model = model._orig_mod
        else:
            break
    if isinstance(model, torch.jit.ScriptModule):
        cure = "Give the Python module that it was made from."
        raise ModelError("The network is a TorchScript module, which torch.export does not take.", cure)
    spread = [name for name, one in model.named_parameters() if hasattr(one, "full_tensor")]
    if spread:
        raise ModelError(
            f'"{spread[0]}" is spread over several processes (FSDP, tensor parallelism).',
            "Load the full state dict in a network that is on one device, prune it, and spread the result.",
        )
    return model
