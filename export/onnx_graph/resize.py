"""A file at other widths, made from a few exports: trial networks to be timed, without tracing each anew.

Every size in a file (an axis of a weight, a number in a shape, an attribute) follows from the widths of the
network's groups. It is learnt from one export per group, in which only that group is narrower, and checked on
exports in which all are. A size that several groups change is a sum (a concatenation) or a product (heads by
their features) of what each of them does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx
from onnx import numpy_helper

from ...targets.errors import ModelError
from .external_data import array_of, whole_copy
from .graph import drop_unused

Widths = Mapping[str, int]
"""The number of units by group."""
Place = tuple[str, str, int]
"""An "axis" or "value" of a constant, or an "attribute" as node.name; and which of them."""

_SHAPE = 64
"""Integer constants of at most so many elements may be shapes: their values follow the widths too."""


@dataclass(frozen=True)
class Size:
    """A size of the dense file, and how much each group changes it for one unit more."""

    dense: int
    slopes: Mapping[str, Fraction]
    is_product: bool = False

    def at(self, fewer: Mapping[str, int]) -> Fraction:
        """The size when each group has so many units less."""
        changes = [slope * -fewer.get(group, 0) for group, slope in self.slopes.items()]
        if self.is_product:
            return self.dense * math.prod((1 + change / self.dense for change in changes), start=Fraction(1))
        return self.dense + sum(changes, start=Fraction(0))


@dataclass(frozen=True, eq=False)
class Resizable:
    """A file and its sizes as functions of the widths; `at` makes the file of other widths."""

    model: onnx.ModelProto
    dense: Widths
    sizes: Mapping[Place, Size]

    @classmethod
    def learnt(
        cls,
        exported: Callable[[Widths], onnx.ModelProto],
        dense: Widths,
        *,
        least: Widths,
        checks: Sequence[Widths],
    ) -> Resizable:
        """Learns the sizes from exports.

        Args:
            exported: the network's file at these widths of its groups.
            dense: all groups, with the widths of the whole network.
            least: a smaller width of each group, at which it is exported alone.
            checks: widths of all groups at once, two or more; the first tells sums from products.

        Raises:
            ModelError: the file at other widths has other operators, or a size is neither.
        """
        model = exported(dense)
        base = _sizes(model)
        slopes: dict[Place, dict[str, Fraction]] = {}
        for group, width in least.items():
            if width == dense[group]:
                continue
            for place, size in _same_places(base, _sizes(exported({**dense, group: width}))).items():
                if size != base[place]:
                    slope = Fraction(size - base[place], width - dense[group])
                    slopes.setdefault(place, {})[group] = slope
        sizes = {place: Size(base[place], by_group) for place, by_group in slopes.items()}
        for widths in checks:
            fewer = {group: dense[group] - width for group, width in widths.items()}
            for place, size in _same_places(base, _sizes(exported(widths))).items():
                own = sizes.get(place, Size(base[place], {}))
                if own.at(fewer) != size and own.dense:
                    own = sizes[place] = Size(own.dense, own.slopes, is_product=True)
                if own.at(fewer) != size:
                    raise ModelError(
                        f"A size of the exported file ({place[0]} {place[2]} of {place[1]}) is {size} where "
                        f"{float(own.at(fewer)):g} was expected from exports of one narrower group each.",
                        "The file cannot be resized; please report this network.",
                    )
        return cls(model, dense, {place: size for place, size in sizes.items() if size.slopes})

    def at(self, widths: Widths) -> onnx.ModelProto:
        """The file at these widths, for times: its weights are the first of the dense ones, or repeated."""
        fewer = {group: self.dense[group] - width for group, width in widths.items()}
        new = {place: int(size.at(fewer)) for place, size in self.sizes.items()}
        resized = {name for kind, name, _ in new if kind in ("axis", "value")}
        made = whole_copy(self.model, but=resized)
        del made.graph.value_info[:]
        for tensor in self.model.graph.initializer:
            if tensor.name not in resized:
                continue
            array = array_of(tensor)
            axes = [new.get(("axis", tensor.name, axis), size) for axis, size in enumerate(array.shape)]
            more = [(0, max(0, new - old)) for new, old in zip(axes, array.shape, strict=True)]
            array = array[tuple(map(slice, axes))]
            array = np.pad(array, more, mode="wrap") if any(map(any, more)) else array.copy(order="C")
            for at in range(array.size if array.size <= _SHAPE else 0):
                if ("value", tensor.name, at) in new:
                    array.flat[at] = new["value", tensor.name, at]
            made.graph.initializer.append(numpy_helper.from_array(array, tensor.name))
        for node in made.graph.node:
            for attribute in node.attribute:
                key = f"{node.name}.{attribute.name}"
                if attribute.type == onnx.AttributeProto.INT and ("attribute", key, 0) in new:
                    attribute.i = new["attribute", key, 0]
                for at in range(len(attribute.ints)):
                    attribute.ints[at] = new.get(("attribute", key, at), attribute.ints[at])
        drop_unused(made.graph)
        return made


def _sizes(model: onnx.ModelProto) -> dict[Place, int]:
    """Every size of a file that may follow a width; "node" entries are its operators, which must not."""
    found: dict[Place, int] = {}
    for tensor in model.graph.initializer:
        found |= {("axis", tensor.name, axis): size for axis, size in enumerate(tensor.dims)}
        if tensor.data_type == onnx.TensorProto.INT64 and math.prod(tensor.dims) <= _SHAPE:
            values = array_of(tensor).ravel().tolist()
            found |= {("value", tensor.name, at): value for at, value in enumerate(values)}
    for place, node in enumerate(model.graph.node):
        found["node", f"{node.op_type}({', '.join(node.input)})", place] = place
        for attribute in node.attribute:
            one = [attribute.i] if attribute.type == onnx.AttributeProto.INT else list(attribute.ints)
            found |= {("attribute", f"{node.name}.{attribute.name}", at): each for at, each in enumerate(one)}
    return found


def _same_places(dense: Mapping[Place, int], other: Mapping[Place, int]) -> Mapping[Place, int]:
    if dense.keys() != other.keys():
        kind, name, at = next(iter(dense.keys() ^ other.keys()))
        raise ModelError(
            f"At other widths the network is exported with other operators: {kind} {name} ({at}).",
            "The file cannot be resized; please report this network.",
        )
    return other
