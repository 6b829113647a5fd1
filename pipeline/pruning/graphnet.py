"""The graph form of a pruned network: a module that runs exported graphs with one set of parameters.

It has the user's parameter names and forward's arguments. Training and inference are two graphs, each
captured in its mode, so `train()` and `eval()` switch batch norm, dropout, attention dropout and all else
that the user's code switches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, Signature
from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from ...targets.errors import ModelError


class GraphNet(nn.Module):
    """Runs the graph of its mode, with the inputs and outputs of the original module.

    Args:
        tensors: parameters and buffers by the user's names; names that share a tensor share it here too.
        transient: the buffers that are not part of the state dict.
        graphs: by mode (True: training) the graph to run, which may be resized.
        structured: by mode, the function that restores the original's output structure from a graph's leaves.
        why_no_training: the reason if there is no graph for training.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        transient: frozenset[str],
        graphs: Mapping[bool, Graph],
        structured: Mapping[bool, Callable[[Any], Any]],
        why_no_training: str = "",
    ) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            _place(self, name, tensor, name not in transient)
        # On the instance, so that exporters see the names of forward's arguments.
        vars(self)["forward"] = MethodType(_forward(graphs, structured, why_no_training), self)

    def extra_repr(self) -> str:
        return _shapes(self)


class Part(nn.Module):
    """The tensors of one of the user's modules; the graph has the operations on them."""

    def extra_repr(self) -> str:
        return _shapes(self)


def _shapes(module: nn.Module) -> str:
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return ", ".join(f"{name}: {' x '.join(map(str, tensor.shape)) or 'one'}" for name, tensor in own)


def _place(root: nn.Module, path: str, tensor: Tensor, saved: bool) -> None:
    *parents, leaf = path.split(".")
    for step in parents:
        if step not in root._modules:
            root.add_module(step, Part())
        child = root._modules[step]
        assert child is not None
        root = child
    if isinstance(tensor, nn.Parameter):
        root.register_parameter(leaf, tensor)
    else:
        root.register_buffer(leaf, tensor, persistent=saved)


def _names_only(graph: Graph) -> nn.Module:
    """A module with a placeholder for each tensor of a graph, from which code can be generated."""
    root = nn.Module()
    for node in graph.nodes:
        if node.op == "get_attr":
            *parents, leaf = str(node.target).split(".")
            place = root
            for step in parents:
                place.__dict__.setdefault(step, nn.Module())
                place = place.__dict__[step]
            place.__dict__.setdefault(leaf, None)
    return root


def _forward(
    graphs: Mapping[bool, Graph], structured: Mapping[bool, Callable[[Any], Any]], why_no_training: str
) -> Callable[..., Any]:
    """A `forward` with the signature of the original's, which runs the graph of the module's mode."""
    runs: dict[bool, Callable[..., Any]] = {}
    names = ["self", *(str(node.target) for node in graphs[False].nodes if node.op == "placeholder")]
    signature = Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names])

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.training not in graphs:
            raise ModelError(
                f"This network has no graph for training: {why_no_training}",
                "Call eval() before you run it, or prune fewer groups, so that it keeps its own class.",
            )
        if self.training not in runs:  # generated on first use; it reads its tensors from any `self`
            generated = GraphModule(_names_only(graphs[self.training]), graphs[self.training])
            runs[self.training] = type(generated).forward
        values = signature.bind(self, *args, **kwargs).args
        return structured[self.training](runs[self.training](*values))

    forward.__signature__ = signature  # type: ignore[attr-defined]
    return forward
