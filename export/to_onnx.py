"""The export of a module to an ONNX file that every target parses, with reproducible bytes.

The steps: torch.export with a dynamic batch axis, torch's ONNX exporter (which folds batch norms and
constants), our rewrites (canonical.py), a simplifier, and a check that the simplified graph computes the
same. `to_onnx` works on any nn.Module and on the GraphModules of torch.export.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import torch
from onnx_ir.passes.common import DeduplicateHashedInitializersPass
from torch import Tensor, nn
from torch.utils import _pytree

from ..targets.errors import ModelError
from .onnx_graph import canonical
from .onnx_graph.exporter_fixes import restate
from .onnx_graph.external_data import fits, whole_copy
from .onnx_graph.graph import Array, opset_of, save
from .onnx_graph.run import first_line, runner
from .onnx_graph.run_module import arguments, eval_mode
from .opened import outputs_of, unwrapped

OPSETS = (17, 18, 19, 20)  # TensorRT 8.5 and 8.6 parse 17; below it LayerNormalization is missing
NATIVE = 18  # the oldest opset that torch's exporter writes


@dataclass(frozen=True)
class Exported:
    """A written file: `simplified_by` is "onnxsim", "onnxslim" or "nothing", and `notes` give the reason."""

    path: Path
    opset: int
    simplified_by: str
    notes: tuple[str, ...] = ()


def to_onnx(
    module: nn.Module,
    example_inputs: Mapping[str, Tensor],
    path: Path,
    *,
    opset: int = 17,
    simplify: bool = True,
    spell_out_layer_norm: bool = False,
) -> Exported:
    """Writes `module`, in eval mode, as an ONNX file.

    Args:
        example_inputs: tensors by input name, in the order of `forward`'s parameters; axis 0 is the batch.
            It becomes the dynamic axis "batch"; all other sizes are fixed.
        opset: 17 to 20.
        spell_out_layer_norm: for TensorRT 8.5, whose parser has no LayerNormalization.

    Raises:
        ModelError: the network cannot be traced, has a fixed batch size, or uses an operator that the
            opset lacks.
    """
    path = Path(path)
    if opset not in OPSETS:
        raise ModelError(
            f"Opset {opset} is not supported.", f"Choose one of {OPSETS}; 17 fits every TensorRT from 8.5."
        )
    module = unwrapped(module)
    with _quiet(), eval_mode(module):
        program, names = _trace(module, example_inputs)
        program = restate(program)
        model = _convert(program, opset)
    canonical.global_pools(model)
    canonical.fold_batch_norm(model)
    canonical.name_by_module(model, {*program.state_dict, *program.constants}, names)
    found, given = [value.name for value in model.graph.input], list(example_inputs)
    if len(found) != len(given):
        raise ModelError(
            f"The network uses the inputs {found}, the example has {given}.",
            "Leave inputs that forward does not use out of example_inputs().",
        )
    canonical.rename(model.graph, dict(zip(found, given, strict=True)))
    canonical.name_batch_axis(model)
    if spell_out_layer_norm:
        canonical.spell_out_layer_norms(model)
    if opset < NATIVE:
        canonical.lower_opset(model, opset)
    model = _with_equal_constants_once(model)
    canonical.strip(model, opset)
    if not simplify:
        save(model, path)
        return Exported(path, opset, "nothing", ("not requested",))
    arrays = {name: value.detach().cpu().numpy() for name, value in example_inputs.items()}
    model, simplified_by, notes = _simplified(model, arrays)
    save(model, path)
    return Exported(path, opset, simplified_by, notes)


def _trace(
    module: nn.Module, example: Mapping[str, Tensor]
) -> tuple[torch.export.ExportedProgram, list[str]]:
    """The traced network, and the names of its outputs."""
    forward = module.forward
    before = [(vars(each), vars(each).copy()) for each in module.modules()]  # forward may store what it made
    one = all(len(value) == 1 for value in example.values())
    args, kwargs = arguments(module, {name: torch.cat([x, x]) if one else x for name, x in example.items()})
    inputs = [*kwargs] or [f"input_{place}" for place in range(len(args))]

    def flat(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return outputs_of(forward(*args, **kwargs))

    parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in inputs]
    flat.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    batch = torch.export.Dim("batch")
    shapes = {name: {0: batch} for name in inputs}
    vars(module)["forward"] = flat
    exported = functools.partial(torch.export.export, dynamic_shapes=shapes, strict=False)
    try:
        try:
            program = exported(module, args, kwargs)
        except Exception:
            if not _forgotten(module, args, kwargs):
                raise
            program = exported(module, args, kwargs)
    except ModelError:
        raise
    except Exception as error:  # torch.export does not wrap the errors of the user's code
        if "Constraints violated" in str(error):
            raise ModelError(
                f"{type(module).__name__} has a fixed batch size: {_reason(error)}.",
                "Use the input's sizes, e.g. x.flatten(1) or x.view(x.shape[0], -1).",
            ) from error
        raise ModelError(
            f"{type(module).__name__} cannot be traced with inputs "
            f"{ {name: tuple(value.shape) for name, value in example.items()} }: {first_line(error)}",
            "Check that the module runs on these inputs and has no data-dependent branch.",
        ) from error
    finally:
        for now, then in before:
            now.clear()
            now.update(then)
    spec = program.call_spec.out_spec
    assert spec is not None
    return program, [*outputs_of(_pytree.tree_unflatten([torch.empty(0)] * spec.num_leaves, spec))]


def _forgotten(module: nn.Module, args: Any, kwargs: Any) -> bool:
    """Sets to None the attributes that a pass of one more sample changes: what is kept for a shape with its
    batch is then computed again. Whether there are any."""
    before = [(each, vars(each).copy()) for each in module.modules()]
    with contextlib.suppress(Exception), torch.no_grad():  # whatever the user's code raises
        args, kwargs = _pytree.tree_map(lambda x: torch.cat([x, x[:1]]), (args, kwargs))
        module(*args, **kwargs)
    changed = [
        (each, name)
        for each, then in before
        for name, now in vars(each).items()
        if now is not then.get(name) and _kept(now) != _kept(then.get(name))
    ]
    for each, name in changed:
        vars(each)[name] = None
    return bool(changed)


def _kept(value: Any) -> Any:
    return value.shape if isinstance(value, Tensor) else value


def _reason(error: Exception) -> str:
    lines = [line.strip(" -") for line in str(error).splitlines() if "specialized" in line]
    return lines[0].split(". If you")[0] if lines else "torch.export found it constant"


def _convert(program: torch.export.ExportedProgram, opset: int) -> onnx.ModelProto:
    asked = max(opset, NATIVE)
    try:
        with _one_registry():
            made = torch.onnx.export(program, dynamo=True, opset_version=asked, verbose=False, optimize=True)
        assert made is not None
        model = whole_copy(made.model_proto)
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__:
            cause = cause.__cause__
        missing = re.search(r"No ONNX function found for <OpOverload\(op='(.+?)'", str(cause))
        why = f"there is no translation of {missing[1]}" if missing else first_line(cause)
        cure = "Replace that operator by ones that ONNX has."
        raise ModelError(f"torch cannot write this network as ONNX: {why}.", cure) from error
    written = opset_of(model)
    if written != asked:
        raise ModelError(f"torch wrote opset {written} where {asked} was requested.", "Choose another opset.")
    return model


def _with_equal_constants_once(model: onnx.ModelProto) -> onnx.ModelProto:
    """torch writes a tied weight once, but equal ones twice, and a simplifier merges only large ones."""
    whole = onnx_ir.from_proto(model)
    DeduplicateHashedInitializersPass()(whole)
    return onnx_ir.to_proto(whole)


def _simplified(
    model: onnx.ModelProto, example: Mapping[str, Array]
) -> tuple[onnx.ModelProto, str, tuple[str, ...]]:
    if not fits(model):
        return model, "nothing", ("simplifiers support no model over 2 GB",)
    notes: list[str] = []
    plain = runner(model)(example)
    for name, tool in (("onnxsim", _onnxsim), ("onnxslim", _onnxslim)):
        try:
            with _quiet():
                simple = tool(model)
            # Nodes that the simplifier made itself are called after what they compute.
            names = {node.output[0]: node.name for node in model.graph.node}
            for node in simple.graph.node:
                node.name = names.get(node.output[0], node.output[0])
            canonical.strip(simple, opset_of(model))
            if sorted(_imports(simple)) != sorted(_imports(model)):
                raise ValueError(f"it changed the opsets {_imports(model)} to {_imports(simple)}")
            for key, value in runner(simple)(example).items():
                limit = 1e-5 * max(float(np.abs(plain[key]).max(initial=0.0)), 1e-30)
                if not np.allclose(value, plain[key], rtol=0.0, atol=limit, equal_nan=True):
                    raise ValueError(f"it changed {key} by {np.abs(value - plain[key]).max():.3g}")
            return simple, name, tuple(notes)
        except Exception as error:  # a simplifier may fail in any way; the plain graph is always right
            notes.append(f"{name} was not used: {first_line(error)}")
    return model, "nothing", tuple(notes)


def _imports(model: onnx.ModelProto) -> list[tuple[str, int]]:
    return [(entry.domain, entry.version) for entry in model.opset_import]


def _onnxsim(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxsim

    # These rewrites replace a standard operator by several or by a fused one that older parsers lack, and
    # lose the layer's name.
    skipped = [
        "fuse_matmul_add_bias_into_gemm_batched",
        "fuse_qkv",
        "fuse_attention",
        "fuse_gqa",
        "fuse_gelu",
        "fuse_layer_norm",
    ]
    simple, passed = onnxsim.simplify(model, skipped_optimizers=skipped)
    if not passed:
        raise ValueError("its check failed")
    return whole_copy(simple)


def _onnxslim(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxslim

    simple = onnxslim.slim(model)
    if not isinstance(simple, onnx.ModelProto):
        raise ValueError("it returned nothing")
    return whole_copy(simple)


@functools.cache
def _registry_of(make: Callable[..., Any], opset_version: int) -> Any:
    return make(opset_version=opset_version)


@contextlib.contextmanager
def _one_registry() -> Iterator[None]:
    """Keeps torch's table of operators, which it would make anew in each export: half a second each."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        make = ONNXRegistry.from_torchlib
    except (ImportError, AttributeError):  # not public: another torch may have none
        yield
        return
    ONNXRegistry.from_torchlib = functools.partial(_registry_of, make)  # type: ignore[method-assign]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = make  # type: ignore[method-assign]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # torch's exporter prints progress and logs irrelevant messages.
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
