"""The example inputs of a network: their order, their batch, and the checks before a capture."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...targets.errors import ModelError

Example = Mapping[str, Tensor] | Sequence[Tensor]


def inputs_of(example: Example) -> tuple[Tensor, ...]:
    """The example's tensors, in the order of forward's parameters.

    Raises:
        ModelError: it is a single tensor, whose rows would be read as the inputs.
    """
    given: object = example
    if isinstance(given, Tensor):
        raise ModelError(
            f"The example inputs are one tensor of shape {tuple(given.shape)}, not a collection of tensors.",
            'Give a tuple, even of one tensor: (x,), or a mapping: {"image": x}.',
        )
    return tuple(example.values()) if isinstance(example, Mapping) else tuple(example)


def open_batch(model: nn.Module, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """The dynamic shapes for torch.export: the first axis of every input, if all have the same size."""
    batches = {len(value) for value in inputs if _batched(value)}
    shared = len(batches) == 1 and min(batches) > 1
    shapes = [{0: torch.export.Dim.AUTO} if shared and _batched(value) else None for value in inputs]
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:  # forward(self, *xs): the rest is one argument
        first = kinds.index(inspect.Parameter.VAR_POSITIONAL)
        return (*shapes[:first], tuple(shapes[first:]))
    return tuple(shapes)


def check_inputs(model: nn.Module, inputs: Sequence[Any]) -> None:
    if not inputs:
        raise ModelError("There are no example inputs.", "Give at least one tensor, with a batch of two.")
    if isinstance(model, torch.jit.ScriptModule):
        cure = "Give the Python module that it was made from."
        raise ModelError("The network is a TorchScript module, which torch.export does not take.", cure)
    tensors = (*model.parameters(), *model.buffers(), *inputs)
    if any(map(torch.nn.parameter.is_lazy, tensors)):
        raise ModelError("A lazy layer has an uninitialized parameter.", "Run model(*inputs) once before.")
    devices = {str(one.device) for one in tensors if isinstance(one, Tensor)}
    if len(devices) > 1:
        raise ModelError(
            f"The network and its example inputs are on different devices: {', '.join(sorted(devices))}.",
            "Move them to one device: model.to(device), and each input to the same.",
        )


def check_names(model: nn.Module, example: Example) -> None:
    """Checks the order of names: inputs are passed by position, so another order would mix them up."""
    names = list(example) if isinstance(example, Mapping) else []
    known = list(inspect.signature(model.forward).parameters)
    if set(names) <= set(known) and names != known[: len(names)]:
        raise ModelError(
            f"The example inputs are {', '.join(names)}; forward takes {', '.join(known)}.",
            "Give them in the order of forward's parameters; only the last ones may be left out.",
        )


def _batched(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0
