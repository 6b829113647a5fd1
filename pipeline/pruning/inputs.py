"""The inputs and outputs of a network as they come: by position or by name, nested, in dataclasses.

A graph takes and returns flat tensors. Here is how an example is bound to forward's parameters, in which
order its tensors are, and how dataclasses are opened and made again.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...targets.errors import ModelError


class Inputs(NamedTuple):
    """The arguments of one call: `model(*args, **named)`."""

    args: tuple[Any, ...]
    named: dict[str, Any]


Example = Mapping[str, Any] | Sequence[Any] | Inputs
"""The arguments, by name or in order: tensors, or lists, tuples, dicts and dataclasses of them."""


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


pytree.register_pytree_node(
    Opened, lambda one: (list(one.values.values()), (one.kind, tuple(one.values))), _made
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


def inputs_of(model: nn.Module, example: Example) -> Inputs:
    """The example as arguments of `model`: by position where possible, else by name.

    Names that forward does not know are the user's own, for arguments in order.

    Raises:
        ModelError: it is a single tensor, whose rows would be read as the inputs; it does not fit forward's
            parameters; or its names are in another order than those.
    """
    given: object = example
    if isinstance(given, Inputs):
        return given
    if not isinstance(given, (Mapping, Sequence)):
        kind = f"tensor of shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise ModelError(
            f"The example inputs are one {kind}, not a collection of tensors.",
            'Give a tuple, even of one tensor: (x,), or a mapping: {"image": x}.',
        )
    if not tensors_of(example):
        raise ModelError("There are no example inputs.", "Give at least one tensor, with a batch of two.")
    named = dict(given) if isinstance(given, Mapping) else {}
    values = [*named.values()] if isinstance(given, Mapping) else [*given]
    signature = inspect.signature(model.forward)
    takes_any = any(one.kind == Parameter.VAR_KEYWORD for one in signature.parameters.values())
    known = [name for name, one in signature.parameters.items() if one.kind not in _REST]
    by_name = set(named) <= set(known) or (takes_any and not set(named).isdisjoint(known))
    try:
        bound = signature.bind(**named) if named and by_name else signature.bind(*values)
    except TypeError as error:
        raise ModelError(
            f"The network does not run on its example inputs: forward({', '.join(known)}): {error}.",
            "Check that model(*inputs) runs.",
        ) from error
    inputs = Inputs(bound.args, bound.kwargs)
    if any(one is not other for one, other in zip(_values(inputs), values, strict=True)):
        raise ModelError(
            f"The example inputs are {', '.join(named)}; forward takes {', '.join(known)}.",
            "Give them in the order of forward's parameters; those with a default may be left out.",
        )
    return inputs


_REST = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def _values(inputs: Inputs) -> tuple[Any, ...]:
    return (*inputs.args, *inputs.named.values())


def with_tensors(inputs: Inputs, tensors: Iterable[Any]) -> Inputs:
    """The same arguments with other tensors, in the order of `tensors_of`."""
    leaves, spec = pytree.tree_flatten(opened(inputs))
    given = iter(tensors)
    made = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    result: Inputs = pytree.tree_unflatten(made, spec)
    return result


def names_of(model: nn.Module, inputs: Inputs) -> list[str]:
    """The parameters of forward that these arguments fill; those of `*xs` are xs_0, xs_1, ..."""
    names: list[str] = []
    for name, one in inspect.signature(model.forward).parameters.items():
        rest = range(len(inputs.args) - len(names))
        names += [f"{name}_{n}" for n in rest] if one.kind == Parameter.VAR_POSITIONAL else [name]
    return [*names[: len(inputs.args)], *inputs.named]


def flattened(model: nn.Module, inputs: Inputs) -> Callable[..., Any]:
    """The model's forward as a function of the example's tensors alone, its result opened.

    Its parameters have forward's names; the tensors of a nested argument are called xs_0, xs_1, ...
    """
    forward = model.forward
    names: list[str] = []
    for name, value in zip(names_of(model, inputs), _values(inputs), strict=True):
        held = range(len(tensors_of(value)))
        names += [name] if isinstance(value, Tensor) else [f"{name}_{n}" for n in held]

    def flat(*tensors: Any) -> Any:
        given = with_tensors(inputs, tensors)
        return opened(forward(*given.args, **given.named))

    signature = Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names])
    flat.__signature__ = signature  # type: ignore[attr-defined]
    return flat


def open_batch(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """The dynamic shapes for torch.export: the first axis of every tensor, if all have the same size."""
    batches = {len(value) for value in tensors if value.dim()}
    shared = len(batches) == 1 and min(batches) > 1
    return tuple({0: torch.export.Dim.AUTO} if shared and value.dim() else None for value in tensors)


def check_inputs(model: nn.Module, tensors: Sequence[Tensor]) -> None:
    """Checks that the network has values, and is on the device of its inputs."""
    held = (*model.parameters(), *model.buffers(), *tensors)
    if any(map(torch.nn.parameter.is_lazy, held)):
        raise ModelError("A lazy layer has an uninitialized parameter.", "Run model(*inputs) once before.")
    devices = {str(one.device) for one in held}
    if len(devices) > 1:
        raise ModelError(
            f"The network and its example inputs are on different devices: {', '.join(sorted(devices))}.",
            "Move them to one device: model.to(device), and each input to the same.",
        )
