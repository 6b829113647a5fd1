"""The graph form of a pruned network: a module that runs exported graphs with one set of parameters.

It has the user's parameter names and forward's arguments. Training and inference are two graphs, each
captured in its mode, so `train()` and `eval()` switch batch norm, dropout, attention dropout and all else
that the user's code switches. A batch norm can be in eval mode in training, as in a module.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from inspect import Parameter, Signature
from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from ...targets.errors import ModelError
from .capture import copied, operator_name


class GraphNet(nn.Module):
    """Runs the graph of its mode, with the inputs and outputs of the original module.

    Args:
        tensors: parameters and buffers by the user's names; names that share a tensor share it here too.
        transient: the buffers that are not part of the state dict.
        graphs: by mode (True: training) the graph to run, which may be resized.
        structured: by mode, the function that restores the original's output structure from a graph's leaves.
        norms: by name, the class of the user's batch and instance norms, for isinstance().
        why_no_training: the reason if there is no graph for training.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        transient: frozenset[str],
        graphs: Mapping[bool, Graph],
        structured: Mapping[bool, Callable[[Any], Any]],
        norms: Mapping[str, type],
        why_no_training: str = "",
    ) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            _place(self, name, tensor, name not in transient)
        for name, part in self.named_modules():
            if isinstance(part, Part) and name in norms:
                vars(part)["stands_for"] = norms[name]
        # On the instance, so that exporters see the names of forward's arguments.
        vars(self)["forward"] = MethodType(_forward(graphs, structured, why_no_training), self)

    def extra_repr(self) -> str:
        return _shapes(self)

    def __copy__(self) -> GraphNet:
        return self._of(vars(self).copy())

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphNet:
        twin = memo[id(self)] = self._of({})
        kept = {name: value for name, value in vars(self).items() if name != "forward"}
        vars(twin).update(copy.deepcopy(kept, memo))
        return twin

    def __reduce_ex__(self, protocol: object) -> str:
        raise ModelError(
            "A pruned network in the graph form cannot be pickled: its code was generated.",
            "Write it with save_pruned(), or save its state_dict().",
        )

    def _replicate_for_data_parallel(self) -> GraphNet:
        replica: nn.Module = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        return self._of(vars(replica))

    def _of(self, attributes: dict[str, Any]) -> GraphNet:
        """Another one with the same code and these attributes."""
        twin = type(self).__new__(type(self))
        vars(twin).update(attributes)
        vars(twin)["forward"] = MethodType(vars(self)["forward"].__func__, twin)
        return twin


class Part(nn.Module):
    """The tensors of one of the user's modules; the graph has the operations on them."""

    @property
    def __class__(self) -> type:  # a loop over the batch norms, to freeze them, must find them
        found: type = vars(self).get("stands_for", type(self))
        return found

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise TypeError("the class of a part of a graph is fixed")

    def _get_name(self) -> str:
        return "Part"

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
    runs: dict[tuple[bool, frozenset[str]], Callable[..., Any]] = {}
    names = ["self", *(str(node.target) for node in graphs[False].nodes if node.op == "placeholder")]
    signature = Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names])

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.training not in graphs:
            raise ModelError(
                f"This network has no graph for training: {why_no_training}",
                "Call eval() before you run it, or prune fewer groups, so that it keeps its own class.",
            )
        still = (
            frozenset(name for name, part in self.named_modules() if not part.training)
            if self.training
            else frozenset()
        )
        if (self.training, still) not in runs:  # generated on first use; it reads its tensors from any `self`
            graph = _with_fixed_statistics(graphs[self.training], still)
            runs[self.training, still] = type(GraphModule(_names_only(graph), graph)).forward
        values = signature.bind(self, *args, **kwargs).args
        return structured[self.training](runs[self.training, still](*values))

    forward.__signature__ = signature  # type: ignore[attr-defined]
    return forward


def _with_fixed_statistics(graph: Graph, norms: frozenset[str]) -> Graph:
    """A training graph in which these norms use their running statistics and do not change them."""
    if not norms:
        return graph
    graph = copied(graph)
    for node in list(graph.nodes):
        held = {str(one.target).rpartition(".")[0] for one in node.all_input_nodes if one.op == "get_attr"}
        if held & norms and operator_name(node) in ("batch_norm", "instance_norm"):
            node.update_arg(5, False)  # whether it takes the statistics of its input
        elif held & norms and operator_name(node) == "add_" and not node.users:
            graph.erase_node(node)  # the number of batches seen
    return graph
