"""Traces a network to its groups: one pass over the exported graph that propagates identities.

Sizes are read from the graph; only the layout of identities is computed, so the cost hardly depends on the
resolution.
"""

from __future__ import annotations

import contextlib
import dataclasses
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from ...export.opened import tensors_of, unwrapped
from ...targets.errors import ModelError
from .assemble import grouped
from .calls import Call, Notes, Rule, Tracked, fixed, unknown
from .capture import (
    argument_of,
    batch_is_open,
    capture,
    declared_arguments,
    has_batch,
    operator_name,
    size_of,
    users_line,
)
from .compare import compared, run, run_graph
from .contexts import uncollected
from .dry_run import differs_in_training
from .follow import following
from .groups import Groups, Tracing
from .identities import Cause, Identities
from .inputs import Example, inputs_of, with_tensors
from .narrow import named_tensors, reads
from .plan import fingerprint, owner_of
from .rules import RULES, pointwise


@uncollected()
def trace(model: nn.Module, example_inputs: Example | Groups) -> Groups:
    """The groups of units that may be removed from `model`, or from the network within if it is wrapped.

    It is not changed.

    Args:
        example_inputs: in the order of forward's parameters, or by their names; batch axis first. Or, for a
            network that `apply` has made, trained since or not, the groups of the one that it was cut from:
            its own follow from them without another capture, where its code is still the same.

    Raises:
        ModelError: the network cannot be captured, the inputs do not fit, or two different parameters share
            memory.
    """
    model = unwrapped(model)
    if isinstance(example_inputs, Groups):
        if (found := following(model, example_inputs)) is not None:
            return found
        example_inputs = example_inputs.example
    graph, example_inputs = _captured(model, example_inputs)
    _check_memory(model)
    used = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr" and node.users}
    floating = [(name, tensor) for name, tensor in named_tensors(model) if tensor.is_floating_point()]
    everything = all(used & set(names) for _, names in _shared_names(floating))
    if everything and not differs_in_training(model, example_inputs):
        return trace_graph(model, graph, example_inputs)
    # Some operators run only in training (an auxiliary head, a residual sum): both graphs are traced as one.
    with contextlib.suppress(ModelError):
        return trace_graph(model, graph, example_inputs, capture(model, example_inputs, training=True))
    return trace_graph(model, graph, example_inputs)


def _captured(model: nn.Module, example: Example) -> tuple[GraphModule, Example]:
    """The graph and the example that it was captured with.

    torch.export fixes a batch of one, so it gets each sample twice if the network computes the same for them.
    """
    inputs = inputs_of(model, example)
    tensors = tensors_of(inputs)
    if {len(one) for one in tensors if one.dim()} == {1}:
        twice = with_tensors(inputs, (torch.cat([one, one]) if one.dim() else one for one in tensors))
        with contextlib.suppress(ModelError):
            graph = capture(model, twice)
            takes = graph.graph.find_nodes(op="placeholder")
            opened = all(has_batch(node) == bool(one.dim()) for node, one in zip(takes, tensors, strict=True))
            found = partial(run_graph, Interpreter(graph), inputs)
            if opened and compared(partial(run, model, inputs), found).same:
                return graph, twice
    return capture(model, example), example


def trace_graph(
    model: nn.Module, captured: GraphModule, example: Example, learner: GraphModule | None = None
) -> Groups:
    """The same for a captured graph, and optionally the training graph of the same network."""
    tracing = tracing_of(model, captured, learner)
    batch = None if batch_is_open(captured) else len(tensors_of(example)[0])
    return grouped(tracing, example, batch, fingerprint(model))


def tracing_of(model: nn.Module, captured: GraphModule, learner: GraphModule | None = None) -> Tracing:
    """The coupling of units in a captured graph, before groups are made."""
    aliases = dict(_shared_names([*named_tensors(model)]))
    canonical = {alias: name for name, aliased in aliases.items() for alias in aliased}
    notes = Notes()
    slots: dict[tuple[str, int], Tensor] = {}
    values = _Pass(captured, notes, slots, canonical).run()
    others = Notes(notes.identities, notes.produced, notes.consumed)
    learners = _Pass(learner, others, slots, canonical).run() if learner else {}
    shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(model)}
    solution = notes.identities.solve()
    notes.identities = Identities()
    tracing = Tracing(captured, values, slots, aliases, shapes, {}, notes, solution)
    attributes = [
        one for graph in (captured, learner) if graph for one in graph.graph.find_nodes(op="get_attr")
    ]
    read = {canonical.get(str(node.target)) for node in attributes if node.users}
    for name, one in model.named_parameters():
        above, _, own = name.rpartition(".")
        # What no method names no forward uses: it stays.
        if name in read or not one.dim() or not reads(model.get_submodule(above), own):
            continue
        for vector in _beside(tracing, name):
            slots.pop((name, one.dim() - 1), None)
            slots[name, one.dim() - 1] = vector  # the last: a group has the name of one that is always read
    if learner:
        twin = dataclasses.replace(tracing, graph=learner, values=learners)
        tracing = dataclasses.replace(tracing, learner=twin)
    return tracing


def _beside(tracing: Tracing, name: str) -> list[Tensor]:
    """The identities of the last axis of a parameter that no graph reads, or nothing.

    In training it may replace masked values or be added to some: those are known if all axes of its size
    that pass between the modules beside it are one.
    """
    above = name.rpartition(".")[0]

    def beside(node: Node) -> str:
        inside = f".{owner_of(node)}.".removeprefix(f".{above}." if above else ".")
        return inside.partition(".")[0]

    passed = [
        vector
        for node in tracing.graph.graph.nodes
        if node.op == "call_function" and any(beside(node) != beside(user) for user in node.users)
        for value in pytree.tree_leaves(tracing.values.get(node.name, ()))
        for size, vector in zip(value.shape, value.axes, strict=True)
        if size == tracing.shapes[name][-1]
    ]
    of = tracing.solution.of
    first = next(iter(passed), None)
    alike = first is not None and all(one is not None and torch.equal(of[one], of[first]) for one in passed)
    return passed[:1] if alike else []


def _shared_names(named: Iterable[tuple[str, Tensor]]) -> list[tuple[str, tuple[str, ...]]]:
    """The names of each tensor, with its first name in front."""
    names: dict[int, list[str]] = {}
    for name, tensor in named:
        names.setdefault(id(tensor), []).append(name)
    return [(aliased[0], tuple(aliased)) for aliased in names.values()]


def _check_memory(model: nn.Module) -> None:
    """Refuses parameters that are views of each other: surgery would separate them."""
    tensors = dict(named_tensors(model))
    held = [(name, tensors[name]) for name, _ in _shared_names(tensors.items()) if not tensors[name].is_meta]
    dense = [(name, one) for name, one in held if one.layout == torch.strided and one.numel()]
    places = sorted(((one.data_ptr(), name, one) for name, one in dense), key=lambda place: place[0])
    for number, (start, name, tensor) in enumerate(places):
        end = start + _extent(tensor) * tensor.element_size()
        for behind, other, view in places[number + 1 :]:
            if behind >= end:
                break
            learns = isinstance(tensor, nn.Parameter) or isinstance(view, nn.Parameter)
            if learns and _overlap(tensor, view, behind - start):
                raise ModelError(
                    f'"{name}" and "{other}" share memory, but are not the same parameter.',
                    "Tie them by assigning the same nn.Parameter to both; where one is the other transposed, "
                    "or a part of it, keep one and compute the view in forward.",
                )


def _extent(tensor: Tensor) -> int:
    """The number of elements between a tensor's first and last in memory, inclusive."""
    return 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def _overlap(tensor: Tensor, other: Tensor, bytes_behind: int) -> bool:
    """Whether two tensors have an element in common; those of interleaved columns have none."""
    ahead, rest = divmod(bytes_behind, tensor.element_size())
    if rest or tensor.element_size() != other.element_size():
        return True
    numbers = torch.arange(max(_extent(tensor), ahead + _extent(other)))
    taken = numbers.as_strided(tensor.shape, tensor.stride())
    return bool(torch.isin(numbers.as_strided(other.shape, other.stride(), ahead), taken).any())


@dataclass
class _Pass:
    graph: GraphModule
    notes: Notes
    slots: dict[tuple[str, int], Tensor]
    canonical: Mapping[str, str]
    values: dict[str, Any] = field(default_factory=dict)

    def run(self) -> dict[str, Tracked | list[Tracked]]:
        for node in self.graph.graph.nodes:
            try:
                self.values[node.name] = self._value(node)
            except ModelError as error:
                raise ModelError(
                    f"{error.what} It arises at {users_line(node) or node.name}.", error.cure
                ) from error
        return {name: value for name, value in self.values.items() if _tracked(value)}

    def _value(self, node: Node) -> Any:
        if node.op == "get_attr":
            return self._attribute(node)
        if node.op == "output":
            self._freeze_outputs(node)
            return None
        meta = node.meta.get("val")
        if node.op == "placeholder":
            if not isinstance(meta, Tensor):
                return meta
            return dataclasses.replace(fixed(_shape(meta)), node=node.name, activation=True)
        if node.target is operator.getitem:
            return self._named(self._plain(node.args[0])[node.args[1]], node)
        if isinstance(meta, (int, torch.SymInt)):
            return size_of(meta)
        return self._call(node, meta)

    def _call(self, node: Node, meta: Any) -> Any:
        several = isinstance(meta, (list, tuple))
        shapes = [_shape(one) if isinstance(one, Tensor) else () for one in (meta if several else [meta])]
        call = Call(node, operator_name(node), self._arguments(node), shapes, self.notes)
        results = self._apply(_rule(node, call.name) or unknown, call)
        activation = any(x.activation for x in call.operands())
        results = [dataclasses.replace(x, activation=activation) for x in results]
        return results if several else self._named(results[0], node)

    def _apply(self, rule: Rule, call: Call) -> list[Tracked]:
        """Applies a rule; if it fails or its result is impossible, the operands are frozen."""
        try:
            result = rule(call)
        except Exception:  # an unexpected overload; facts recorded so far only freeze more
            result = unknown(call)
        results = result if isinstance(result, list) else [result]
        if all(_sizes(x) == shape for x, shape in zip(results, call.shapes, strict=False)):
            return results
        vectors = (vector for x in (*call.operands(), *results) for vector in x.axes)
        call.freeze_all(vectors, "its rule does not fit this use of the operator")
        return [fixed(shape) for shape in call.shapes]

    def _arguments(self, node: Node) -> dict[str, Any]:
        """All arguments by the names of the operator's schema, nodes replaced by the facts on them."""
        if getattr(node.target, "_schema", None) is None:
            return {str(number): self._plain(value) for number, value in enumerate(node.args)}
        return {name: self._plain(argument_of(node, name)) for name in declared_arguments(node.target)}

    def _plain(self, value: Any) -> Any:
        if isinstance(value, Node):
            return self.values[value.name]
        return [self._plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    def _named(self, value: Any, node: Node) -> Any:
        return dataclasses.replace(value, node=node.name) if isinstance(value, Tracked) else value

    def _attribute(self, node: Node) -> Any:
        value = operator.attrgetter(str(node.target))(self.graph)
        if not isinstance(value, Tensor):
            return value
        name = self.canonical.get(str(node.target))
        if name is None or not (value.is_floating_point() or value.is_complex()):
            return dataclasses.replace(fixed(tuple(value.shape)), node=node.name, value=value)
        for axis, size in enumerate(value.shape):
            if size > 1 and (name, axis) not in self.slots:
                self.slots[name, axis] = self.notes.identities.fresh(size)
                if value.is_complex():
                    cause = Cause("parameter", "", "its elements are complex numbers")
                    self.notes.identities.freeze(self.slots[name, axis], cause)
        axes = tuple(self.slots.get((name, axis)) for axis in range(value.dim()))
        return Tracked(tuple(value.shape), axes, node.name)

    def _freeze_outputs(self, node: Node) -> None:
        cause = Cause("output", "", "it is an output of the network")
        for one in pytree.tree_leaves([self.values[source.name] for source in node.all_input_nodes]):
            for vector in one.axes if isinstance(one, Tracked) else ():
                if vector is not None:
                    self.notes.identities.freeze(vector, cause)


def _sizes(x: Tracked) -> tuple[int, ...]:
    return tuple(
        size if vector is None else len(vector) for size, vector in zip(x.shape, x.axes, strict=True)
    )


def _tracked(value: Any) -> bool:
    return isinstance(value, Tracked) or (
        isinstance(value, list) and bool(value) and all(isinstance(one, Tracked) for one in value)
    )


def _shape(value: Tensor) -> tuple[int, ...]:
    return tuple(size_of(size) for size in value.shape)


def _rule(node: Node, name: str) -> Any:
    """The rule of an operator; an in-place operator has the rule of its functional form."""
    for known in (name, name.removesuffix("_")):
        if known in RULES:
            return RULES[known]
    tags = getattr(node.target, "tags", ())
    return pointwise if torch.Tag.pointwise in tags else None
