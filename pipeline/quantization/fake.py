"""Fake quantization: an exported float graph that is trained with the roundings of its INT8 file.

The graph is that of the file, with batch norms folded, and it rounds what `placement` names, at the readers
that it names: the writer of the file reads the same placement. Scales start at the calibrated ranges and are
learnt by "Learned Step Size Quantization" (Esser et al. 2020), with their logarithms as parameters, so that
a step changes them by a share of themselves; gradients pass a rounding unchanged within its range (the
straight-through estimator). Where the file's biases are int32, they are rounded here too.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...export.onnx_graph.graph import WEIGHTED, OnnxModel, given_inputs
from ...export.opened import opened, outputs_of
from ...export.quantization.calibrate import Ranges
from ...export.quantization.placement import Placement, Weight, clipped_at, rules_of
from ...export.quantization.to_qdq import (
    Parameters,
    Quantized,
    activation_parameters,
    placed_in,
    represented,
    rounded_weights,
    to_qdq,
)
from .torch_operators import Operator, operator


class _Round(torch.autograd.Function):
    """Rounds to scale * (integer - zero).

    The gradient of the logarithm of a scale that n values share is divided by scale ** 2 * sqrt(n * last): so
    a step of SGD changes the scale as in Esser et al. 2020, section 2.2.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: int, first: int, last: int, values: int) -> Tensor:
        steps = x / scale
        whole = torch.round(steps).add_(zero)
        integers = whole.clamp(first, last)
        inside = whole == integers
        integers.sub_(zero)
        slope = integers - torch.where(inside, steps, 0.0) if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(inside, scale, slope)
        ctx.gain = 1.0 / math.sqrt(values * last)
        return (integers * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inside, scale, slope = ctx.saved_tensors
        (gradient,) = gradients
        of_scale = None
        if slope is not None:
            of_scale = (gradient * slope).sum_to_size(scale.shape) * ctx.gain / scale.square()
        return gradient * inside, of_scale, None, None, None, None


class Rounding(nn.Module):
    """The rounding of a tensor, of tensors that share a scale, or of a weight by channel.

    Args:
        scale: the calibrated one, in a shape that broadcasts.
        ends: the first and the last integer.
        values: how many values share a scale; by default those of one sample.
        bound: the largest value that the scale may represent.
    """

    def __init__(
        self,
        name: str,
        scale: Tensor,
        zero: int,
        ends: tuple[int, int],
        *,
        values: int = 0,
        bound: float = math.inf,
        learnt: bool,
    ) -> None:
        super().__init__()
        self.name, self.zero, self.ends, self.values = name, zero, ends, values
        self.register_buffer("start", scale)
        self.change = nn.Parameter(torch.zeros_like(scale), requires_grad=learnt)
        self.most = math.inf if bound == math.inf else max(math.log(bound / (ends[1] * float(scale))), 0.0)

    @property
    def scale(self) -> Tensor:
        """The scale as it is now."""
        return self.get_buffer("start") * self.change.clamp(max=self.most).exp()

    def forward(self, x: Tensor) -> Tensor:
        values = self.values or max(x[0].numel(), 1)
        apply: Operator = _Round.apply
        rounded: Tensor = apply(x, self.scale, self.zero, *self.ends, values)
        return rounded


@dataclass(frozen=True)
class _Step:
    """One node: its function, what it reads ("" for nothing) and makes, and what nothing reads afterwards."""

    run: Operator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    over: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """The float network that is trained for INT8, and how it is rounded.

    Attributes:
        model, placed: as `placed_in` returns them.
        ranges: the calibrated ones.
        parameters: the scale and the zero point of each rounded tensor, from the ranges.
    """

    model: OnnxModel
    placed: Placement
    ranges: Ranges
    dialect: str
    skip: tuple[str, ...]
    bits: int
    parameters: Mapping[str, Parameters]

    @classmethod
    def of(
        cls, model: OnnxModel, ranges: Ranges, *, dialect: str, skip: Sequence[str] = (), bits: int = 8
    ) -> Source:
        """See `to_qdq`."""
        model, placed = placed_in(model, dialect, skip=skip)
        parameters = activation_parameters(model.index, placed, ranges, rules_of(dialect))
        return cls(model, placed, ranges, dialect, tuple(skip), bits, parameters)

    def roundings(self, *, learnt: bool) -> dict[str, tuple[str, Rounding]]:
        """The roundings by the name under which steps read the rounded tensor, with the tensor's own name."""
        found: dict[str, tuple[str, Rounding]] = {}
        shared: dict[tuple[str, ...], Rounding] = {}
        for name in self.placed.tensors:
            tied = self.placed.ties[name]
            if tied not in shared:
                scale, zero = self.parameters[name]
                kind = np.iinfo(zero.dtype)
                bounds = [_bound(self.model, one) for one in tied] if kind.min == 0 else [math.inf]
                shared[tied] = Rounding(
                    name,
                    torch.tensor(scale),
                    int(zero),
                    (kind.min, kind.max),
                    bound=max(bounds),
                    learnt=learnt,
                )
            found[_rounded(name)] = name, shared[tied]
        rules = rules_of(self.dialect)
        by_weight = rounded_weights(
            self.model, self.placed, self.parameters, rules, bits=self.bits, scales={}
        )
        last = 2 ** (self.bits - 1) - 1
        for weight, (integers, scales) in by_weight.items():
            shape = [-1 if at == weight.axis else 1 for at in range(integers.ndim)] if scales.ndim else []
            steps, values = torch.from_numpy(scales).reshape(shape), integers.size // scales.size
            one = Rounding(weight.name, steps, 0, (-last, last), values=values, learnt=learnt)
            found[_rounded(weight)] = _key(weight.name), one
        return found

    def written(self, net: FakeQuantized) -> tuple[OnnxModel, Ranges, Quantized]:
        """The trained float graph, the learnt ranges, and the file that rounds as the network does."""
        trained = self.model.copy()
        mine = dict(net.named_parameters(recurse=False))
        for tensor in trained.graph.initializer:
            if _key(tensor.name) in mine:
                value = mine[_key(tensor.name)].detach().numpy()
                tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        scales = {key: net.rounding(key).scale.detach() for key in net.roundings}
        learnt = {
            name: represented(float(scales[_rounded(name)]), self.parameters[name][1])
            for name in self.placed.tensors
        }
        ranges = replace(self.ranges, tensors={**self.ranges.tensors, **learnt})
        weights = dict.fromkeys(self.placed.weights.values())
        quantized = to_qdq(
            trained,
            ranges,
            dialect=self.dialect,
            skip=self.skip,
            weight_bits=self.bits,
            weight_scales={weight: scales[_rounded(weight)].numpy().reshape(-1) for weight in weights},
        )
        return trained, ranges, quantized


def _bound(model: OnnxModel, name: str) -> float:
    """The largest value that an unsigned range of the tensor has: that of the Clip that makes it."""
    node = model.index.producer.get(name)
    bound = None if node is None else clipped_at(node, model.index)
    return math.inf if bound is None else bound


class FakeQuantized(nn.Module):
    """The graph as a module, alike in training and eval mode, that returns what the original network returns.

    Args:
        like: what the network returned for some input.
        parameters: the constants that are trained beside the weights and biases of weighted operators.
        learnt: whether the scales are trained.

    Attributes:
        active: whether tensors are rounded.

    Raises:
        ModelError: an operator has no differentiable form.
    """

    def __init__(self, source: Source, like: Any, parameters: Collection[str], *, learnt: bool) -> None:
        super().__init__()
        graph, index, placed = source.model.graph, source.model.index, source.placed
        weighted = {name for node in graph.node if node.op_type in WEIGHTED for name in node.input}
        trained = weighted | set(parameters)
        for name, tensor in index.constants.items():
            value = torch.from_numpy(np.array(index.value(name)))
            if name in trained and tensor.data_type == TensorProto.FLOAT:
                self.register_parameter(_key(name), nn.Parameter(value))
            else:
                self.register_buffer(_key(name), value, persistent=False)
        roundings = source.roundings(learnt=learnt)
        kinds = list(dict.fromkeys(one for _, one in roundings.values()))
        self.kinds = nn.ModuleList(kinds)
        self.roundings = {key: (name, kinds.index(one)) for key, (name, one) in roundings.items()}
        self.active = True
        self._biases: dict[str, tuple[str, str, str]] = {}
        self._inputs = [value.name for value in given_inputs(graph)]

        def read(position: int, place: int, name: str) -> str:
            weight = placed.weights.get((position, place))
            if weight is not None:
                return _rounded(weight)
            if place == 2 and (units := _units_of_bias(source, position)):
                self._biases[f"bias {position}"] = _key(name), *units
                return f"bias {position}"
            rounded = placed.rounds(position, place, name)
            return _rounded(name) if rounded else _key(name) if name in index.constants else name

        steps = [
            _Step(
                operator(node),
                tuple(read(position, place, name) for place, name in enumerate(node.input)),
                tuple(node.output),
            )
            for position, node in enumerate(graph.node)
        ]
        shown = placed.ties if placed.everywhere else ()
        self._results = [_rounded(name) if name in shown else name for name in outputs_of(like)]
        self._steps = [replace(step, over=over) for step, over in zip(steps, self._over(steps), strict=True)]
        self._like = opened(like)

    def _over(self, steps: Sequence[_Step]) -> Iterator[tuple[str, ...]]:
        """By step, the tensors that no later step reads, which are freed then."""
        last: dict[str, int] = {}
        for at, names in enumerate([*(step.inputs for step in steps), self._results]):
            sources = [self.roundings[name][0] for name in names if name in self.roundings]
            last |= dict.fromkeys([*names, *sources], at)
        for at in range(len(steps)):
            yield tuple(name for name, end in last.items() if end == at)

    def forward(self, *inputs: Tensor) -> Any:
        known = {**dict(self.named_parameters(recurse=False)), **dict(self.named_buffers(recurse=False))}
        known.update(zip(self._inputs, inputs, strict=True))
        for step in self._steps:
            made = step.run(*(self._read(known, name) if name else None for name in step.inputs))
            known.update(zip(step.outputs, [made] if isinstance(made, Tensor) else made, strict=False))
            for name in step.over:
                known.pop(name, None)
        leaves, spec = pytree.tree_flatten(self._like)
        results = iter(self._results)
        made = [self._read(known, next(results)) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return pytree.tree_unflatten(made, spec)

    def rounding(self, key: str) -> Rounding:
        """The rounding behind a name of `roundings`."""
        found = self.kinds[self.roundings[key][1]]
        assert isinstance(found, Rounding)
        return found

    def suspect(self) -> str:
        """A sentence on the scale that is not finite, else on the one that moved most."""
        kinds = [self.rounding(key) for key in self.roundings]
        broken = next((one for one in kinds if not torch.isfinite(one.scale).all()), None)
        if broken is not None:
            return f"the scale of {broken.name!r} is not finite"
        most = max(kinds, key=lambda one: float(one.change.detach().abs().max()))
        share = float(most.change.detach().abs().max().exp())
        return f"the scale that moved most is that of {most.name!r}, by a factor of {share:.3g}"

    def _read(self, known: dict[str, Tensor], name: str) -> Tensor:
        if name in self._biases:
            bias, of_input, of_weight = self._biases[name]
            if not self.active:
                return known[bias]
            unit = (self.rounding(of_input).scale * self.rounding(of_weight).scale.reshape(-1)).detach()
            off = (torch.round(known[bias] / unit) * unit - known[bias]).detach()
            return known[bias] + off
        if name not in known:
            source, kind = self.roundings[name]
            known[name] = self.kinds[kind](known[source]) if self.active else known[source]
        return known[name]


def _units_of_bias(source: Source, position: int) -> tuple[str, str] | None:
    """The roundings of input and weight whose scales are the unit of a node's int32 bias; None if float.

    ONNX Runtime rounds the bias of a Conv with a rounded output; the writer of the file that of each Gemm.
    """
    index, placed, node = source.model.index, source.placed, source.model.graph.node[position]
    weight = placed.weights.get((position, 1))
    if rules_of(source.dialect).symmetric or weight is None or index.value(node.input[2]) is None:
        return None
    readers = index.readers.get(node.output[0], ())
    outputs = [*node.output, *(name for reader, _ in readers for name in reader.output)]
    if not placed.rounds(position, 0, node.input[0]):
        return None
    if node.op_type != "Gemm" and not any(name in placed.ties for name in outputs):
        return None
    return _rounded(node.input[0]), _rounded(weight)


def _key(constant: str) -> str:
    """The name of a constant among a module's parameters, which have no dot."""
    return f"network/{constant.replace('.', '/')}"


def _rounded(one: str | Weight) -> str:
    return f"rounded {one}"
