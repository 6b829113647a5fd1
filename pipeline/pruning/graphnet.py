"""The graph form of a pruned network: a module that runs exported graphs with one set of parameters.

It has the user's parameter names and forward's arguments. Training and inference are two graphs, each
captured in its mode, so `train()` and `eval()` switch all that the user's code switches. Torch's own layers,
whose code has no width, are called whole: their modes, settings and hooks have their effect; what cannot have
one is refused by name. A pickle has the graphs as plain rows: an operator is read by its name, and as an
operator of torch or an arithmetic function only.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import Parameter, Signature
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import predispatch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate, map_arg
from torch.utils._pytree import TreeSpec, tree_structure, tree_unflatten

from ...targets.errors import ModelError
from .capture import argument_of
from .contexts import outside_vmap
from .narrow import WIDTH_ARGUMENTS
from .plan import owner_of
from .resize import Change
from .takes import Takes


class Program:
    """What a graph form runs; it reads its tensors from any module, and copies share it.

    Args:
        graphs: by mode (True: training) the graph to run, which may be resized.
        structures: by mode, the structure of the original's output, of which a graph returns the leaves.
        takes: by mode, the inputs that a graph takes.
        precision: the precision that these tensors had, which tensors made in the graphs follow.
        why_no_training: the reason if there is no graph for training.
    """

    def __init__(
        self,
        graphs: Mapping[bool, Graph],
        structures: Mapping[bool, TreeSpec],
        takes: Mapping[bool, Takes],
        precision: Mapping[str, torch.dtype],
        why_no_training: str = "",
    ) -> None:
        self.graphs, self.structures, self.takes, self.precision = graphs, structures, takes, precision
        self.why_no_training = why_no_training
        self.one_mode = dependent_on_mode(graphs)
        self.runs: dict[bool, Callable[..., Any]] = {}
        self.called = {
            mode: {str(node.target) for node in graph.nodes if node.op == "call_module"}
            for mode, graph in graphs.items()
        }

    @functools.cached_property
    def forward(self) -> Callable[..., Any]:
        """A function of a module and its inputs, with forward's names for them, which exporters read."""
        names = ("self", *self.takes[False].arguments)
        parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names]

        def forward(self: GraphNet, *args: Any, **kwargs: Any) -> Any:
            values = signature.bind(self, *args, **kwargs).args
            return self.program.run(*values)

        signature = forward.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        return forward

    def run(self, net: nn.Module, *values: Any) -> Any:
        if net.training not in self.graphs:
            raise ModelError(
                f"This network has no graph for training: {self.why_no_training}",
                "Call eval() before you run it, or prune fewer groups, so that it keeps its own class.",
            )
        takes = self.takes[net.training]
        inputs = takes.tensors(values)
        if not torch.compiler.is_dynamo_compiling() and not torch._C._get_tracing_state():
            self._check_parts(net)
            self._check_precision(net)
            takes.check(inputs)
        if net.training not in self.runs:  # generated on first use
            self.runs[net.training] = _generated(self.graphs[net.training])
        try:
            with outside_vmap():
                leaves = self.runs[net.training](net, *inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise takes.refusal(str(error).splitlines()[0], inputs) from error
        return tree_unflatten(leaves, self.structures[net.training])

    def _check_parts(self, net: nn.Module) -> None:
        """Refuses hooks and modes of parts whose code is only operators of the graph."""
        called = self.called[net.training]
        for name, part in net.named_modules():
            if part.training != net.training and name in self.one_mode:
                mode = "train" if part.training else "eval"
                raise ModelError(
                    f'"{name}" is in {mode} mode and the network is not; in the graph form its code has one '
                    "mode with the network.",
                    f"Switch the whole network with {mode}(), or prune fewer groups, so that it keeps its "
                    "own class.",
                )
            if name and name not in called and hooked(part):
                raise ModelError(
                    f'A hook on "{name}" would never run: in the graph form it is operators of a graph.',
                    "Set it on the network or on one of torch's layers, or prune fewer groups, so that it "
                    "keeps its own class.",
                )

    def _check_precision(self, net: nn.Module) -> None:
        for name, before in self.precision.items():
            now = operator.attrgetter(name)(net).dtype
            if torch.finfo(now).bits < torch.finfo(before).bits:
                raise ModelError(
                    f"The graph form was traced in {before} and is now in {now}: a graph does not show if "
                    f"its code converts to {before} for precision, or to the type of its inputs.",
                    f"Use torch.autocast, or convert the original to {now} before it is traced.",
                )

    def __deepcopy__(self, _: object) -> Program:
        return self

    def __getstate__(self) -> dict[str, Any]:
        rows = {mode: rows_of(graph) for mode, graph in self.graphs.items()}
        plain = {mode: structure_of(spec) for mode, spec in self.structures.items()}
        kept = {name: value for name, value in vars(self).items() if name != "forward"}
        return kept | {"graphs": rows, "structures": plain, "runs": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.graphs = {mode: graph_of(rows) for mode, rows in state["graphs"].items()}
        self.structures = {mode: spec_of(plain) for mode, plain in state["structures"].items()}


class _Forward:
    """The `forward` of each instance is that of its program."""

    def __get__(self, net: GraphNet | None, _: type) -> Any:
        return self if net is None else MethodType(net.program.forward, net)


_of_its_program: Any = _Forward()


class Part(nn.Module):
    """The tensors of one of the user's modules; the graph has the operations on them."""

    def extra_repr(self) -> str:
        own = [*self.named_parameters(recurse=False), *self.named_buffers(recurse=False)]
        return ", ".join(f"{name}: {' x '.join(map(str, tensor.shape)) or 'one'}" for name, tensor in own)


class GraphNet(Part):
    """Runs the graph of its mode, with the inputs and outputs of the original module.

    Args:
        tensors: parameters and buffers by the user's names; names that share a tensor share it here too.
        transient: the buffers that are not part of the state dict.
        layers: the modules that the graphs call, by name.
    """

    program: Program
    forward: Callable[..., Any] = _of_its_program

    def __init__(
        self,
        program: Program,
        tensors: Mapping[str, Tensor],
        transient: frozenset[str],
        layers: Mapping[str, nn.Module],
    ) -> None:
        super().__init__()
        self.program = program
        for name, tensor in tensors.items():
            path, _, leaf = name.rpartition(".")
            holder = _part(self, path, layers)
            if leaf not in holder._parameters and leaf not in holder._buffers:
                if isinstance(tensor, nn.Parameter):
                    holder.register_parameter(leaf, tensor)
                else:
                    holder.register_buffer(leaf, tensor, persistent=name not in transient)
        for name in sorted({*layers, *program.one_mode}):
            _part(self, name, layers)


def _part(root: nn.Module, path: str, layers: Mapping[str, nn.Module]) -> nn.Module:
    """The module of this name, made where it is missing."""
    if not path:
        return root
    above, _, name = path.rpartition(".")
    holder = _part(root, above, layers)
    if name not in holder._modules:
        holder.add_module(name, layers.get(path) or Part())
    found = holder._modules[name]
    assert found is not None
    return found


def _generated(graph: Graph) -> Callable[..., Any]:
    """The code of a graph, as a function of a module and the inputs."""
    held = {str(node.target) for node in graph.nodes if node.op in ("get_attr", "call_module")}
    run: Callable[..., Any] = type(GraphModule({name: nn.Module() for name in held}, graph)).forward
    return run


_NORM = nn.modules.batchnorm._NormBase
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def call_layers(graph: Graph, changes: Iterable[Change], model: nn.Module) -> set[str]:
    """Changes a graph so that it calls these layers; the names of those that it calls.

    A layer is called if it takes one tensor and returns one. `graph` and `changes` are from `resized`.
    """
    calls: dict[str, list[Node]] = {}
    names: dict[str, str] = {}
    for node in graph.nodes:
        made = node.op == "call_function" and isinstance(node.meta.get("val"), Tensor)
        stack = node.meta.get("nn_module_stack") or {} if made else {}
        for key, (path, _) in stack.items():
            if path and _is_whole(model, path):
                calls.setdefault(key, []).append(node)
                names[key] = path
                break
    literal = {change.node.name for change in changes if change.argument not in WIDTH_ARGUMENTS}
    stiff = {names[key] for key, nodes in calls.items() if any(node.name in literal for node in nodes)}
    stiff |= {names[key] for key, nodes in calls.items() if len(_ends(nodes)) != 2}
    for key, nodes in calls.items():
        if names[key] not in stiff:
            taken, returned = _ends(nodes)
            with graph.inserting_after(returned):
                whole = graph.call_module(names[key], (taken,))
            whole.meta = dict(returned.meta)
            returned.replace_all_uses_with(whole)
            for node in reversed(nodes):
                graph.erase_node(node)
    return set(names.values()) - stiff


def _is_whole(model: nn.Module, path: str) -> bool:
    """Whether a module is one of torch's layers, or a norm, whose forward is all that runs."""
    try:
        module = model.get_submodule(path)
    except AttributeError:  # a name of the exporter's
        return False
    leaf = type(module).__module__.startswith("torch.nn.modules.") and not any(module.children())
    return (leaf or isinstance(module, _NORM)) and not any(map(hooked, module.modules()))


def hooked(module: nn.Module) -> bool:
    """Whether something runs before or after its forward or backward."""
    return any(vars(module)[name] for name in _HOOKS)


def _ends(nodes: list[Node]) -> list[Node]:
    """What a call takes, and which of its results are used: two nodes, if it takes and returns one tensor."""
    inside = set(nodes)
    read = dict.fromkeys(one for node in nodes for one in node.all_input_nodes)
    taken = [one for one in read if one not in inside and one.op != "get_attr"]
    returned = [node for node in nodes if not inside.issuperset(node.users)]
    # The results of an operator with several, as an LSTM with a state, are not what its layer takes.
    several = len(taken) != 1 or not isinstance(taken[0].meta.get("val"), Tensor)
    return [] if several else [*taken, *returned]


def dependent_on_mode(graphs: Mapping[bool, Graph]) -> set[str]:
    """The modules that compute another thing in training, other than by the layers that a graph calls."""
    first, *others = [_by_module(graph) for graph in graphs.values()]
    return {name for other in others for name in first | other if first.get(name) != other.get(name)} - {""}


def _by_module(graph: Graph) -> dict[str, list[Any]]:
    """By module, the operators of its own and their settings."""
    found: dict[str, list[Any]] = {}
    for node in graph.nodes:
        if node.op == "call_function":
            settings = [*map_arg((*node.args, *node.kwargs.items()), lambda _: None)]
            schema = getattr(node.target, "_schema", None)
            arguments: Sequence[Any] = schema.arguments if schema else ()
            places = {str(one.name): place for place, one in enumerate(arguments)}
            rate = "p" if "p" in places else "dropout"
            if (place := places.get("train")) is not None and not argument_of(node, rate):
                del settings[place]  # a dropout of nothing
            found.setdefault(owner_of(node), []).append((str(node.target), settings))
    return found


Structure = tuple[Any, Any, list[Any]] | None


def structure_of(spec: TreeSpec) -> Structure:
    """The structure of an output: its type, its context and those of its children; None for a leaf."""
    return None if spec.is_leaf() else (spec.type, spec.context, [*map(structure_of, spec.children())])


def spec_of(structure: Structure) -> TreeSpec:
    if structure is None:
        return tree_structure(0)
    kind, context, children = structure
    return TreeSpec(kind, context, [*map(spec_of, children)])


class Reference(str):
    """The result of another node, by its name."""


Row = tuple[str, str, str, Any]


def rows_of(graph: Graph) -> list[Row]:
    """The nodes of a graph, without their metadata."""
    return [
        (
            node.op,
            node.name,
            _name(node.target),
            map_arg((node.args, node.kwargs), lambda one: Reference(one.name)),
        )
        for node in graph.nodes
    ]


def graph_of(rows: Sequence[Row]) -> Graph:
    """The graph of these rows.

    Raises:
        ModelError: an operator is not known here.
    """
    graph, made = Graph(), dict[str, Node]()
    for kind, name, target, given in rows:
        found = _operator(target) if kind == "call_function" else target
        args, kwargs = map_aggregate(given, lambda one: made[str(one)] if isinstance(one, Reference) else one)
        made[name] = graph.create_node(kind, found, args, kwargs, name)
    return graph


def _name(target: Any) -> str:
    """'aten.view.default', '_operator.add', 'torch.sym_max'; a string as it is."""
    named = isinstance(target, (str, torch._ops.OpOverload))
    return str(target) if named else f"{target.__module__}.{target.__name__}"


_OF_VMAP = (
    predispatch.lazy_load_decompositions,
    predispatch._vmap_increment_nesting,
    predispatch._add_batch_dim,
    predispatch._remove_batch_dim,
    predispatch._vmap_decrement_nesting,
)


def _operator(name: str) -> Any:
    home, _, rest = name.partition(".")
    homes = {"_operator": operator, "math": math}
    known = home in homes and not rest.startswith("_")
    if (vmap := getattr(predispatch, name.removeprefix(f"{predispatch.__name__}."), None)) in _OF_VMAP:
        return vmap
    try:
        if known or (home == "torch" and rest.startswith("sym_")):
            return getattr(homes.get(home, torch), rest)
        return functools.reduce(getattr, name.split("."), torch.ops)
    except AttributeError as error:
        cure = f'Import the package that registers the operators of "{home}", then load it again.'
        raise ModelError(f"The graph has the operator {name}, which is not known here.", cure) from error
