"""Captures a network as a graph of ATen operators, with `torch.export`, for tracing and surgery.

The batch dimension stays dynamic if the network allows it. The graph keeps the user's parameter names, and
each node the stack of the user's code that made it, so that a message about an operator can name its line.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen

from ...export.opened import tensors_of, unwrapped
from ...targets.errors import ModelError
from .contexts import ShortSizes, any_length, collected, first_line, hushed, in_mode, own_backward
from .inputs import Example, Inputs, check_inputs, doubled, flattened, inputs_of, open_axes, with_tensors
from .takes import takes_of

_TORCH, _HERE = (f"{Path(file).parent}{os.sep}" for file in (torch.__file__, __file__))  # not torchvision


def capture(
    model: nn.Module, example: Example, *, training: bool = False, every: bool = False
) -> GraphModule:
    """The graph of `model` on `example` (batch axis first), in eval or in train form. `model` is untouched.

    Raises:
        ModelError: the inputs do not fit, or the network cannot be captured (control flow that depends on
            data, a device mismatch); the message names the line of the user's code.

    The graph takes the tensors of the example and returns the leaves of the model's output.
    With `every`, all axes of the inputs are open that the network leaves open, not only the batch.
    `meta["takes"]` is what the graph takes, `meta["structure"]` the structure of its output.
    `meta["own_backward"]` names the functions whose backward the graph does not have; in eval form its
    outputs then have no gradient.
    """
    model = unwrapped(model)
    inputs = inputs_of(model, example)
    tensors = tensors_of(inputs)
    check_inputs(model, tensors)
    try:
        with in_mode(model, training=training), torch.set_grad_enabled(training), hushed(), collected():
            vars(model)["forward"] = flattened(model, inputs)  # `in_mode` restores it
            short = ShortSizes() if every else contextlib.nullcontext()
            wide = doubled(tensors) if every else []
            with any_length(), short, own_backward() as functions:
                try:
                    program = _exported(model, wide or tensors, every=every)
                except Exception:  # that axis has one size only
                    if not wide:
                        raise
                    program = _exported(model, tensors, every=every)
            module = program.module()
    except Exception as error:  # the user's code and the passes of torch.export may raise anything
        raise _refusal(error) from error
    assert isinstance(module, GraphModule)
    spec = module._out_spec
    assert spec is not None
    _inline_regions(module)
    _drop_guards(module.graph)  # also within the regions
    _know_parameters(module, model)
    hooked = [name for name, one in model.named_modules() if one._backward_hooks or one._backward_pre_hooks]
    functions |= {f'the backward hook of "{name}"' for name in hooked}
    if functions and not training:
        _detach_outputs(module.graph)
    module.meta["own_backward"] = ", ".join(sorted(functions))
    module.graph.set_codegen(CodeGen())  # it takes and returns flat tensors
    module.meta["structure"] = spec
    module.meta["takes"] = takes_of(model, module.graph, program._guards_code if every else (), inputs)
    return module


def _exported(model: nn.Module, tensors: Sequence[Tensor], *, every: bool) -> torch.export.ExportedProgram:
    shapes = open_axes(tensors, every=every)
    return torch.export.export(model, tuple(tensors), dynamic_shapes=shapes, strict=False)


def copied(graph: Graph) -> Graph:
    """A copy of a graph, with its node names."""
    copy = Graph()
    copy.output(copy.graph_copy(graph, {}))
    return copy


def batch_is_open(graph: GraphModule) -> bool:
    """Whether the graph takes any batch size; else it is fixed to the example's."""
    return any(map(has_batch, graph.graph.find_nodes(op="placeholder")))


def has_batch(placeholder: Node) -> bool:
    """Whether the first axis of an input is the dynamic batch: not if another input has that size fixed."""
    inputs = (one.meta.get("val") for one in placeholder.graph.nodes if one.op == "placeholder")
    sizes: list[Any] = [one.shape[0] for one in inputs if isinstance(one, Tensor) and one.dim()]
    # A symbol may have been narrowed to one value after it was made.
    fixed = {size_of(one) for one in sizes if isinstance(one, int) or one.node.maybe_as_int() is not None}
    value = placeholder.meta.get("val")
    size: object = value.shape[0] if isinstance(value, Tensor) and value.dim() else 0
    return isinstance(size, torch.SymInt) and size_of(size) not in fixed


def users_line(node: Node) -> str:
    """The line of the user's code that made a node: 'file.py:12: x = self.conv(x)', or ''."""
    file, line, _, code = users_frame(node)
    return f"{file}:{line}: {code}" if file else ""


def users_frame(node: Node) -> tuple[str, int, str, str]:
    """The file, the line's number, the function, and the line."""
    frames = re.findall(r'File "(.+?)", line (\d+), in (.*)\n\s*(.*)', node.meta.get("stack_trace") or "")
    for file, line, function, code in reversed(frames):
        if not file.startswith((_TORCH, "<")):
            return file, int(line), function, code.strip()
    return "", 0, "", ""


def first_samples(model: nn.Module, example: Example, graph: Graph, count: int = 1) -> Inputs:
    """The example with so many samples in each input of which the graph takes any number."""
    given = inputs_of(model, example)
    pairs = zip(tensors_of(given), graph.find_nodes(op="placeholder"), strict=True)
    return with_tensors(given, [one[:count] if has_batch(node) else one for one, node in pairs])


def operator_name(node: Node) -> str:
    """'conv2d' for aten.conv2d.default; an operator in place has a trailing underscore."""
    return _named(node.target)


@functools.cache
def _named(target: Any) -> str:
    schema = getattr(target, "_schema", None)
    return str(schema.name).split("::")[1] if schema else getattr(target, "__name__", str(target))


def argument_of(node: Node, name: str) -> Any:
    """An argument of an ATen operator by its name in the schema, defaults included."""
    place, declared = declared_argument(node, name)
    if place < len(node.args) and not declared.kwarg_only:
        return node.args[place]
    return node.kwargs.get(name, declared.default_value)


def declared_argument(node: Node, name: str) -> tuple[int, Any]:
    """The place and the declaration of an argument in the operator's schema."""
    return declared_arguments(node.target)[name]


@functools.cache
def declared_arguments(target: Any) -> dict[str, tuple[int, Any]]:
    """The same of all arguments, by name."""
    return {argument.name: (place, argument) for place, argument in enumerate(target._schema.arguments)}


def size_of(size: int | torch.SymInt) -> int:
    """The size of an axis in the example, also if it is dynamic.

    Raises:
        ModelError: the size depends on the data.
    """
    known = size if isinstance(size, int) else size.node.hint
    if known is None:
        raise ModelError(
            "The size of a tensor inside the network depends on the data (nonzero, a boolean mask, repeats).",
            "Give it a fixed size (torch.where, topk, output_size=), or leave that part out.",
        )
    return int(known)


def _know_parameters(module: GraphModule, model: nn.Module) -> None:
    """Restores parameters that forward reads from a user's list, which the exporter sees as constants."""
    named = [*model.named_parameters(), *model.named_buffers()]
    names = {place: name for name, tensor in named if (place := _place(tensor))}
    for node in module.graph.nodes:
        constant = getattr(module, str(node.target), None) if node.op == "get_attr" else None
        if isinstance(constant, Tensor):
            node.target = names.get(_place(constant), node.target)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor's elements are in memory; empty if it has none."""
    if tensor.layout != torch.strided or not tensor.data_ptr():
        return ()
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _drop_guards(graph: Graph) -> None:
    """Removes checks of the example's sizes, which would refuse a narrower network or another batch."""
    for node in reversed(list(graph.nodes)):
        name = str(node.target)
        if (node.op == "call_module" and name == "_guards_fn") or "_assert_tensor_metadata" in name:
            graph.erase_node(node)


def _inline_regions(module: GraphModule) -> None:
    """Inlines the operators of a region under `torch.no_grad()` or a disabled autocast.

    Raises:
        ModelError: a region computes in another precision than the rest.
    """
    for node in list(module.graph.nodes):
        kind = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
        if kind not in ("wrap_with_autocast", "wrap_with_set_grad_enabled"):
            continue
        settings = [value for value in node.args if not isinstance(value, Node)]
        block, *operands = [value for value in node.args if isinstance(value, Node)]
        inner = module.get_submodule(str(block.target))
        assert isinstance(inner, GraphModule)
        if kind == "wrap_with_autocast" and settings[2]:
            line = next(filter(None, map(users_line, inner.graph.nodes)), "an unknown line")
            raise ModelError(
                f"A part of forward enables autocast; it begins at {line}.",
                "Remove it from forward: wrap the call of the network instead, or cast explicitly.",
            )
        with module.graph.inserting_before(node):
            if kind == "wrap_with_set_grad_enabled" and not settings[0]:
                tensors = {one: _detached(one) for one in operands if isinstance(one.meta.get("val"), Tensor)}
                operands = [tensors.get(one, one) for one in operands]
            known = dict(zip(inner.graph.find_nodes(op="placeholder"), operands, strict=True))
            outputs: Any = module.graph.graph_copy(inner.graph, known)
        for user in list(node.users):
            user.replace_all_uses_with(outputs[user.args[1]])
            module.graph.erase_node(user)
        module.graph.erase_node(node)
        module.graph.erase_node(block)


def _detached(node: Node) -> Node:
    detached = node.graph.call_function(torch.ops.aten.detach.default, (node,))
    detached.meta = {name: value for name, value in node.meta.items() if name != "nn_module_stack"}
    return detached


def _detach_outputs(graph: Graph) -> None:
    output = graph.output_node()
    with graph.inserting_before(output):
        for node in list(output.all_input_nodes):
            if isinstance(node.meta.get("val"), Tensor):
                output.replace_input_with(node, _detached(node))


_OF_TORCH = (
    (
        "transformer.py",
        "data-dependent",
        "torch compares the values of a mask to see whether it is causal",
        "Say so in the call: tgt_is_causal=True (nn.Transformer, nn.TransformerDecoder), or is_causal=True "
        "(nn.TransformerEncoder).",
    ),
    (
        "rnn.py",
        "tuple of ints",
        "The sizes of a packed sequence depend on the data",
        "Give the padded sequence to the recurrent layer, and mask what is behind each end.",
    ),
    (
        "_trace.py",
        "fake tensor in the exported program",
        "Forward computes a gradient (torch.autograd.grad), without a graph, or moves axes in vmap",
        "Prune the module whose gradient it is, and put it back; transpose after vmap instead of out_dims.",
    ),
    (
        "utils.py",
        r"Found <class '(.+?)'> in output",
        r"Forward returns a \1, which torch.export does not know",
        "Return tensors, in tuples, lists, dictionaries or dataclasses.",
    ),
    (
        "fake_class_registry.py",
        "__obj_flatten__",
        "It has quantized layers, whose weights torch.export does not see",
        "Prune the network in floating point, and quantize it afterwards.",
    ),
    (
        "exported_program.py",
        r"Calling train\(\)",
        "The network is an exported program",
        "Give the Python module that it was made from.",
    ),
)
"""Files of torch, a pattern of their errors, what happened, the cure."""


def _refusal(error: Exception) -> ModelError:
    """An error with the place and the cure; torch.export's own message needs knowledge of its internals."""
    where = ""
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if not frame.filename.startswith((_TORCH, _HERE, contextlib.__file__)) and frame.line:
            where = f" at {frame.filename}:{frame.lineno}: {frame.line}"
            break
    for file, words, what, cure in _OF_TORCH:
        inside = any(
            Path(frame.filename).name == file and frame.filename.startswith(_TORCH) for frame in frames
        )
        if inside and (found := re.search(words, str(error))):
            return ModelError(f"{found.expand(what)}{where}.", cure)
    if "data-dependent" in str(error).lower() or "GuardOnDataDependent" in type(error).__name__:
        return ModelError(
            f"The network takes a different path for different data{where}, so it is not one graph.",
            "Replace the condition on values with torch.where, a size from values with a fixed one, or move "
            "that part out of the module.",
        )
    return ModelError(
        f"The network does not run on its example inputs, or cannot be captured{where}: {first_line(error)}",
        "Check that model(*inputs) runs; torch.export explains what a forward may contain.",
    )
