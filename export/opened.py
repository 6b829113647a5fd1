"""What torch.export does not take, opened: the wrappers of a network, and dataclasses that hold tensors."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
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

    Raises:
        ModelError: they are nested, or there are none.
    """
    made = opened(result)
    if isinstance(made, Tensor):
        return {"output": made}
    made = made.values if isinstance(made, Opened) else made
    cure = "Let forward return a tensor, a tuple or a dict of tensors."
    if not isinstance(made, (Mapping, tuple, list)):
        raise ModelError(f"The network returned a {type(result).__name__}.", cure)
    numbered = ((f"output_{place}", value) for place, value in enumerate(made))
    named = dict(made.items() if isinstance(made, Mapping) else numbered)
    if any(isinstance(value, (Opened, Mapping, tuple, list)) for value in named.values()):
        raise ModelError("The network returns nested outputs.", cure)
    return {str(name): value for name, value in named.items() if isinstance(value, Tensor)}


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
