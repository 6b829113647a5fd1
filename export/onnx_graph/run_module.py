"""The execution of a torch module like its exported file: in eval mode, from named arrays to named arrays."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ...targets.errors import ModelError
from ..opened import outputs_of
from .graph import WEIGHTED, Array, OnnxModel
from .run import Run, input_names, runner

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@contextlib.contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode for the duration of the block; every submodule's mode is restored."""
    flags = [(part, part.training) for part in module.modules()]
    # The GraphModule of torch.export does not allow it and keeps its exported mode.
    with contextlib.suppress(NotImplementedError):
        module.eval()
    try:
        yield
    finally:
        with contextlib.suppress(NotImplementedError):
            module.train(flags[0][1])
        for part, training in flags:
            part.training = training


def arguments(
    module: nn.Module, inputs: Mapping[str, Tensor]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The inputs as positional or keyword arguments of `module`, on its device."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    moved = {name: value.to(device) for name, value in inputs.items()}
    if isinstance(module, torch.fx.GraphModule):
        # Those of torch.export need their inputs exactly as exported; others by position.
        spec = getattr(module, "_in_spec", None)
        by_name = spec is not None and spec.child(1).num_children > 0
    else:
        known = inspect.signature(module.forward).parameters
        by_name = all(name in known for name in moved)
    return ((), moved) if by_name else (tuple(moved.values()), {})


@contextlib.contextmanager
def predicting(module: nn.Module, model: OnnxModel) -> Iterator[Run]:
    """A function from input arrays to output arrays, whose names and order are those of the module's file.

    Raises:
        ModelError: (when called) the module returns another number of tensors.
    """
    inputs, outputs = input_names(model.proto), [value.name for value in model.graph.output]

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        args, kwargs = arguments(module, {name: torch.from_numpy(feeds[name]) for name in inputs})
        with torch.no_grad():
            found = [*outputs_of(module(*args, **kwargs)).values()]
        if len(found) != len(outputs):
            raise ModelError(
                f"The module returns {len(found)} tensors, the file has {len(outputs)}: {list(outputs)}.",
                "Export the module again.",
            )
        return {name: value.cpu().numpy() for name, value in zip(outputs, found, strict=True)}

    with eval_mode(module):
        yield run


def first_layer_that_differs(
    module: nn.Module, model: OnnxModel, feeds: Mapping[str, Array], tolerance: float
) -> str:
    """The first weighted layer whose output in the file differs from the module's.

    A file's "conv1/Conv" is the module conv1, with a following batch norm folded in. A network without
    submodules, such as an exported graph, has no layers to compare.
    """
    seen: list[tuple[str, nn.Module, Tensor]] = []

    def record(name: str, part: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor):
            seen.append((name, part, output.detach().cpu()))

    with contextlib.ExitStack() as hooks:
        for name, part in module.named_modules():
            if not list(part.children()):
                hooks.enter_context(part.register_forward_hook(functools.partial(record, name)))
        hooks.enter_context(predicting(module, model))(feeds)
    names = set(model.float_names())
    layers = [node for node in model.graph.node if node.op_type in WEIGHTED and node.output[0] in names]
    inside = runner(model.proto, [node.output[0] for node in layers], optimize=False)(feeds)
    for node in layers:
        scope = node.name.rpartition("/")[0]
        for place, (name, part, value) in enumerate(seen):
            if name != scope:
                continue
            following = seen[place + 1] if place + 1 < len(seen) else (name, part, value)
            expected = following[2] if isinstance(following[1], NORMS) else value
            # A linear layer over sequences may be exported over flattened rows.
            found, expected = torch.from_numpy(inside[node.output[0]]).reshape(-1), expected.reshape(-1)
            error = (found - expected).abs().max() if len(found) == len(expected) else torch.inf
            if not error <= tolerance * expected.abs().max():
                return f"{node.output[0]!r}, made by {node.op_type} {node.name!r} from module {scope!r}"
            break
    return "no weighted layer, so an operator between them or the output itself"
