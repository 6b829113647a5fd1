"""The quantized products of a Q/DQ file, read back from the file.

Bias correction and AdaRound start from the written file, not from how it was made, so they work for either
dialect, and skip what a placement has left in float.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from .float_input import as_float
from .graph import Array, OnnxModel, attribute_of, drop_unused


@dataclass(frozen=True)
class Product:
    """A weighted operator with rounded factors.

    Attributes:
        node: of the float graph; `weight` is its constant, of the shape of `integers`.
        steps: the scale of each weight, in a shape that broadcasts over it.
        scale, zero: of its rounded input; the type of `zero` is that of the integers.
    """

    node: onnx.NodeProto
    weight: Array
    integers: Array
    steps: Array
    scale: np.float32
    zero: Array

    @property
    def rounded(self) -> Array:
        """The dequantized weight, float32."""
        return np.asarray(self.integers * self.steps, np.float32)


def products(before: OnnxModel, after: OnnxModel) -> Iterator[Product]:
    """The operators of `before` that have a constant weight and rounded factors in `after`."""
    old, new = before.index, after.index
    originals = {node.name: node for node in before.graph.node}
    for node in after.graph.node:
        original = originals.get(node.name)
        producers = (new.producer.get(name) for name in node.input[:2])
        makers = [one for one in producers if one is not None and one.op_type == "DequantizeLinear"]
        if original is None or len(makers) < 2:
            continue
        data, weight = makers
        value, integers = old.value(original.input[1]), new.value(weight.input[0])
        steps, scale, zero = new.value(weight.input[1]), new.value(data.input[1]), new.value(data.input[2])
        if value is None or integers is None or steps is None or scale is None or zero is None:
            continue
        if integers.shape == value.shape and scale.size == 1:
            yield Product(
                original, value, integers, along(weight, steps, value.ndim), np.float32(scale.item()), zero
            )


def along(dequantize: onnx.NodeProto, scale: Array, dimensions: int) -> Array:
    """The scales of a weight in a shape that broadcasts over its axes."""
    if not scale.ndim:
        return scale
    axis = int(attribute_of(dequantize, "axis", 1)) % dimensions
    return scale.reshape([-1 if place == axis else 1 for place in range(dimensions)])


def restore(model: OnnxModel, base: OnnxModel, names: Collection[str]) -> OnnxModel:
    """The float network in which operators `names` have the weights and biases of `base`.

    Bias correction and AdaRound change constants for int8; an operator that stays in float needs its original
    ones.
    """
    base, made = as_float(base), as_float(model).copy()
    mine = {tensor.name: tensor for tensor in made.graph.initializer}
    theirs = base.index
    before = {node.name: node for node in base.graph.node}
    for node in made.graph.node:
        if node.name not in names or node.name not in before:
            continue
        for place, name in enumerate(before[node.name].input):
            if place and name in theirs.constants:
                if name not in mine:
                    mine[name] = made.graph.initializer.add()
                mine[name].CopyFrom(theirs.constants[name])
        node.input[:] = before[node.name].input
    drop_unused(made.graph)
    return made
