"""The channels of a file, found from its graph: which sizes change together when a layer has fewer of them.

Forward over the graph, every axis of every tensor is a sum of channels, each some times. The rows of a weight
are new channels, its columns those of its input; adding tensors makes their channels one. Where no rule knows
what an operator does to an axis, its channels keep their number. `resize` then makes the file of other
widths, for timing: it has the sizes of a pruned network, not its weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from onnx import GraphProto, NodeProto

from ...targets.errors import ModelError
from .counts import Shapes
from .graph import OnnxModel, attribute_of, lift_constants
from .resize import Place, Resizable, Size

Axis = tuple[tuple[int, int], ...]
"""A sum of channels: the number of each in `_Sums.sizes`, and how many times it is there."""
Axes = list[Axis]

_ELEMENTWISE = (
    "Abs Add Cast Ceil Clip Cos Div Dropout Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity "
    "LayerNormalization LeakyRelu Log LogSoftmax Max Min Mish Mul Neg Pow PRelu Reciprocal Relu Round Selu "
    "Sigmoid Sign Sin Softmax Softplus Sqrt Sub Sum Tanh Where"
)
_BY_CHANNEL = "BatchNormalization InstanceNormalization DequantizeLinear QuantizeLinear"
_SAME_AXES = "MaxPool AveragePool GlobalAveragePool GlobalMaxPool Resize Upsample Pad Slice"


@dataclass(frozen=True)
class Channels:
    """Channels that change together: the layer that makes them first, how many, and the kinds of layers."""

    name: str
    size: int
    kinds: tuple[str, ...]


def channels_of(model: OnnxModel) -> tuple[tuple[Channels, ...], Resizable]:
    """The channels of a file whose number may change, and the file at other numbers of them.

    Raises:
        ModelError: there are none.
    """
    proto = model.copy().proto
    lift_constants(proto.graph)
    _own_constants(proto.graph)
    rules = _Rules(OnnxModel(proto, model.path))
    sums, names = rules.sums, dict[int, str]()
    for name, axis in rules.made:
        for one, _ in sums.now(axis):
            if one not in sums.fixed and sums.sizes[one] > 1:
                names.setdefault(one, name)
    sizes: dict[Place, Size] = {}
    for place, axis in rules.places.items():
        if slopes := {names[one]: Fraction(times) for one, times in sums.now(axis) if one in names}:
            sizes[place] = Size(sums.total(axis), slopes)
    kinds: dict[int, set[str]] = {}
    for kind, axis in rules.kinds:
        for one, _ in sums.now(axis):
            kinds.setdefault(one, set()).add(kind)
    found = tuple(Channels(name, sums.sizes[one], tuple(sorted(kinds[one]))) for one, name in names.items())
    if not found:
        raise ModelError(
            f"No layer of {model.path} has a width that could change without its inputs and outputs.",
            "Give the workload instead (FILE.py:NAME): more operators are known there.",
        )
    return found, Resizable(proto, {one.name: one.size for one in found}, sizes)


def _own_constants(graph: GraphProto) -> None:
    """Copies the targets of Reshapes, and constants behind an Identity, which exporters write for equal ones:
    layers that share one would have to be equally wide."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in [*graph.node]:
        shared = {"Reshape": node.input[1:2], "Identity": node.input[:1]}.get(node.op_type, [])
        for name in constants.keys() & {*shared}:
            own = graph.initializer.add()
            own.CopyFrom(constants[name])
            if node.op_type == "Reshape":
                own.name = node.input[1] = f"{node.output[0]}:shape"
            else:
                own.name = node.output[0]
                constants[own.name] = own
                graph.node.remove(node)


class _Sums:
    """Channels: which of them are the same, or some times others, and which keep their number."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.instead: dict[int, Axis] = {}
        self.fixed: set[int] = set()

    def new(self, size: int) -> Axis:
        self.sizes.append(size)
        return ((len(self.sizes) - 1, 1),)

    def kept(self, size: int) -> Axis:
        axis = self.new(size)
        self.fix(axis)
        return axis

    def now(self, axis: Axis) -> Axis:
        """The axis by the channels that stand for all that are the same."""
        while any(one in self.instead for one, _ in axis):
            parts = (
                ((inner, n * times) for inner, n in self.instead.get(one, ((one, 1),))) for one, times in axis
            )
            axis = tuple(itertools.chain.from_iterable(parts))
        return axis

    def total(self, axis: Axis) -> int:
        return sum(self.sizes[one] * times for one, times in axis)

    def fix(self, *axes: Axis) -> None:
        self.fixed.update(one for axis in axes for one, _ in self.now(axis))

    def same(self, first: Axis, *others: Axis) -> Axis:
        """Makes axes one; where they are other sums, all keep their size."""
        for other in others:
            pairs = list(itertools.zip_longest(self.now(first), self.now(other), fillvalue=(-1, 0)))
            fits = [self.sizes[one] * m == self.sizes[two] * n for (one, m), (two, n) in pairs]
            if not all(fits) or any(max(m, n) % max(min(m, n), 1) for (_, m), (_, n) in pairs):
                self.fix(first, other)
                continue
            for pair in pairs:
                [(one, m)], [(two, n)] = (self.now((each,)) for each in pair)
                if m < n:
                    one, two, m, n = two, one, n, m
                if one != two:
                    self.instead[two] = ((one, m // n),)
                    self.fixed |= {one} if two in self.fixed else set()
        return first

    def inner(self, axis: Axis, count: int) -> Axis:
        """The last axis where one axis is seen as `count` rows: the features of a head."""
        [(one, times), *more] = self.now(axis)
        if not more and times % count == 0:
            return ((one, times // count),)
        if more or count % times or self.sizes[one] % (count // times):
            self.fix(axis)
            return self.kept(self.total(axis) // count)
        inner = self.new(self.sizes[one] * times // count)
        if one in self.fixed:
            self.fix(inner)
        self.instead[one] = ((inner[0][0], count // times),)
        return inner


class _Rules:
    """One pass over a graph.

    Attributes:
        made: the layers in order, each with the channels that its weight makes.
        kinds: kinds of operators, each with the channels that it reads or makes.
        places: the channels of each size in the file that follows them.
    """

    def __init__(self, model: OnnxModel) -> None:
        self.sums, self.index = _Sums(), model.index
        self.shapes = Shapes.of(model.proto, 1).sizes
        self.made: list[tuple[str, Axis]] = []
        self.kinds: list[tuple[str, Axis]] = []
        self.places: dict[Place, Axis] = {}
        self.axes: dict[str, Axes] = {}
        for value in model.graph.input:
            if value.name in self.shapes:
                self.axes[value.name] = [*map(self.sums.kept, self.shapes[value.name])]
        by_name = {name: rule for names, rule in self._all().items() for name in names.split()}
        for node in model.graph.node:
            if node.op_type == "DequantizeLinear" and node.input[0] in self.index.constants:
                continue  # a weight, which its readers follow
            rule = by_name.get(node.op_type) if self._is_known(node) else None
            self.axes[node.output[0]] = self._checked(node, rule(node) if rule else None)
        for value in model.graph.output:
            self.sums.fix(*self.axes.get(value.name, ()))

    def _all(self) -> Mapping[str, Callable[[NodeProto], Axes | None]]:
        return {
            _ELEMENTWISE: self._elementwise,
            _BY_CHANNEL: self._by_channel,
            _SAME_AXES: self._same_axes,
            "Conv ConvTranspose": self._convolution,
            "Gemm": self._gemm,
            "MatMul": self._product,
            "Concat": self._concat,
            "Transpose": self._transpose,
            "Reshape Flatten Squeeze Unsqueeze": self._regrouped,
            "ReduceMean ReduceSum ReduceMax ReduceMin ReduceL2": self._reduced,
            "Gather": self._gather,
        }

    def _is_known(self, node: NodeProto) -> bool:
        """Whether the shapes of all that it reads and writes are known, and it writes one tensor."""
        outputs = [name for name in node.output if name]
        read = [name for name in self.index.computed(node) if not self._constant(name)]
        return outputs == [*node.output][:1] and outputs[0] in self.shapes and all(map(self.axes.get, read))

    def _checked(self, node: NodeProto, axes: Axes | None) -> Axes:
        """What a rule found; without one, everything that the operator reads and makes keeps its size."""
        shape = list(self.shapes.get(node.output[0], ()))
        if axes is not None and [self.sums.total(axis) for axis in axes] == shape:
            return axes
        for name in self.index.computed(node):
            self.sums.fix(*self.axes.get(name, ()))
        self.sums.fix(*(axis for name in node.input for axis in self._known(name)))
        return [*map(self.sums.kept, shape)]

    # Constants: their sizes follow the channels.

    def _constant(self, name: str) -> str:
        """The constant that a tensor is, stored or dequantized; "" if it is computed."""
        node = self.index.producer.get(name)
        if node is not None and node.op_type == "DequantizeLinear":
            name = node.input[0]
        return name if name in self.index.constants else ""

    def _dims(self, name: str) -> list[int]:
        constant = self._constant(name)
        return [*self.index.constants[constant].dims] if constant else [*self.shapes[name]]

    def _known(self, name: str) -> Axes:
        stored = self._constant(name)
        return [axis for (kind, at, _), axis in self.places.items() if kind != "attribute" and at == stored]

    def _use(self, name: str, at: int, axis: Axis) -> None:
        """Axis `at` of a constant has these channels; its scales, if it is dequantized, too."""
        constant = self._constant(name)
        if not constant:  # computed
            self.sums.same(axis, self.axes[name][at])
            return
        self._follow(("axis", constant, at), axis, self.index.constants[constant].dims[at])
        if constant != name:
            node = self.index.producer[name]
            for scale in node.input[1:]:
                if len(self.index.constants[scale].dims) == 1 and attribute_of(node, "axis", 1) == at:
                    self._follow(("axis", scale, 0), axis, self.index.constants[scale].dims[0])

    def _follow(self, place: Place, axis: Axis, size: int) -> None:
        if self.sums.total(axis) != size:
            axis = self.sums.same(axis, self.sums.kept(size))
        self.places[place] = self.sums.same(axis, *([self.places[place]] if place in self.places else []))

    # Rules: the axes of an operator's output; None where there is no rule for its form.

    def _elementwise(self, node: NodeProto) -> Axes | None:
        shape, found = self.shapes[node.output[0]], Axes()
        inputs = [name for name in node.input if name]
        for back in range(-len(shape), 0):
            size, axes, uses = shape[back], Axes(), []
            for name in inputs:
                dims = self._dims(name)
                if len(dims) < -back or dims[back] != size:
                    continue
                if self._constant(name):
                    uses.append((name, len(dims) + back))
                else:
                    axes.append(self.axes[name][back])
            if not axes:
                return None
            found.append(self.sums.same(*axes))
            for name, at in uses if size > 1 else ():
                self._use(name, at, found[-1])
        return found

    def _by_channel(self, node: NodeProto) -> Axes:
        axes = self.axes[node.input[0]]
        at = attribute_of(node, "axis", 1) if node.op_type.endswith("Linear") else 1
        for name in node.input[1:]:
            if name and self._dims(name) and self._dims(name) != [1]:
                self._use(name, 0, axes[at])
        return axes

    def _same_axes(self, node: NodeProto) -> Axes:
        axes, shape = self.axes[node.input[0]], self.shapes[node.output[0]]
        same = [self.sums.total(axis) == size for axis, size in zip(axes, shape, strict=True)]
        self.sums.fix(*(axis for axis, kept in zip(axes, same, strict=True) if not kept))
        sizes = node.input[3] if node.op_type == "Resize" and len(node.input) > 3 else ""
        for at, axis in enumerate(axes if sizes in self.index.constants else ()):
            if same[at]:
                self._follow(("value", sizes, at), axis, shape[at])
        return [axis if kept else self.sums.kept(n) for axis, kept, n in zip(axes, same, shape, strict=True)]

    def _convolution(self, node: NodeProto) -> Axes | None:
        x, weight = self.axes[node.input[0]], node.input[1]
        if not self._constant(weight):
            return None
        dims, groups = self._dims(weight), attribute_of(node, "group", 1)
        turned = int(node.op_type != "Conv")  # the rows of a transposed one are its inputs
        if groups == 1:
            made = self._layer(node, dims[turned], x[1], "conv")
            self._use(weight, turned, made)
            self._use(weight, 1 - turned, x[1])
        elif groups == dims[0] == self.sums.total(x[1]) and (dims[1] == 1 or not turned):
            made = x[1]
            self._use(weight, 0, made)
            self.kinds.append(("depthwise", made))
            self._follow(("attribute", f"{node.name}.group", 0), made, groups)
        else:
            return None
        if len(node.input) > 2 and node.input[2]:
            self._use(node.input[2], 0, made)
        return [x[0], made, *map(self.sums.kept, self.shapes[node.output[0]][2:])]

    def _layer(self, node: NodeProto, size: int, read: Axis, kind: str) -> Axis:
        made = self.sums.new(size)
        self.made.append((node.name, made))
        self.kinds += [(kind, made), (kind, read)]
        return made

    def _gemm(self, node: NodeProto) -> Axes | None:
        x, turned = self.axes.get(node.input[0]), attribute_of(node, "transB", 0)
        if not x or attribute_of(node, "transA", 0) or not self._constant(node.input[1]):
            return None
        made = self._layer(node, self._dims(node.input[1])[1 - turned], x[1], "linear")
        self._use(node.input[1], turned, x[1])
        self._use(node.input[1], 1 - turned, made)
        if len(node.input) > 2 and node.input[2]:
            self._use(node.input[2], len(self._dims(node.input[2])) - 1, made)
        return [x[0], made]

    def _product(self, node: NodeProto) -> Axes | None:
        x, y = (self.axes.get(name) for name in node.input)
        if x and y is None and len(self._dims(node.input[1])) == 2:
            kind = "linear" if len(x) == 2 else "matmul"
            made = self._layer(node, self._dims(node.input[1])[1], x[-1], kind)
            self._use(node.input[1], 0, x[-1])
            self._use(node.input[1], 1, made)
            return [*x[:-1], made]
        if not x or not y or len(x) != len(y) or len(x) < 2:
            return None
        self.sums.same(x[-1], y[-2])
        return [*(self.sums.same(one, two) for one, two in zip(x[:-2], y[:-2], strict=True)), x[-2], y[-1]]

    def _concat(self, node: NodeProto) -> Axes | None:
        inputs = [self.axes.get(name) for name in node.input]
        if not all(inputs):
            return None
        axes, at = [one for one in inputs if one], attribute_of(node, "axis", 0)
        return [
            tuple(itertools.chain.from_iterable(several))
            if place == at % len(axes[0])
            else self.sums.same(*several)
            for place, several in enumerate(zip(*axes, strict=True))
        ]

    def _transpose(self, node: NodeProto) -> Axes:
        axes = self.axes[node.input[0]]
        return [axes[at] for at in attribute_of(node, "perm", range(len(axes))[::-1])]

    def _regrouped(self, node: NodeProto) -> Axes | None:
        """Axes that are split or joined: of each part one follows the channels, the others stay."""
        axes, shape = self.axes[node.input[0]], list(self.shapes[node.output[0]])
        found, at, to = Axes(), 0, 0
        while to < len(shape) or at < len(axes):
            some, sizes = axes[at : at + 1], shape[to : to + 1]
            while (had := math.prod(map(self.sums.total, some))) != (made := math.prod(sizes)):
                if had < made:
                    some = axes[at : at + len(some) + 1]
                else:
                    sizes = shape[to : to + len(sizes) + 1]
            at, to = at + max(len(some), 1), to + max(len(sizes), 1)
            found += self._part(some, sizes)
        target = node.input[1] if node.op_type == "Reshape" else ""
        if target and target not in self.index.constants:
            return None
        for place, axis in enumerate(found if target else ()):
            if shape[place] > 1 and self._value(target, place) == shape[place]:
                self._follow(("value", target, place), axis, shape[place])
        return found

    def _part(self, some: Axes, sizes: Sequence[int]) -> Axes:
        wide = [axis for axis in some if self.sums.total(axis) > 1]
        places = [place for place, size in enumerate(sizes) if size > 1]
        found = [*map(self.sums.kept, sizes)]
        if len(wide) == 1 and places:
            rows = math.prod(sizes[:-1]) if len(places) > 1 else 1
            last = places[-1]
            found[last] = self.sums.inner(wide[0], math.prod(sizes) // sizes[last]) if rows > 1 else wide[0]
        elif len(places) == 1 and wide:
            follows = next(
                (a for a in wide if not self.sums.fixed.issuperset(dict(self.sums.now(a)))), wide[0]
            )
            self.sums.fix(*(axis for axis in wide if axis is not follows))
            times = math.prod(sizes) // self.sums.total(follows)
            found[places[0]] = tuple((one, n * times) for one, n in follows)
        else:
            self.sums.fix(*wide)
        return found

    def _value(self, name: str, at: int) -> int:
        value = self.index.value(name)
        return -1 if value is None or at >= value.size else int(value.flat[at])

    def _reduced(self, node: NodeProto) -> Axes | None:
        axes, shape = self.axes[node.input[0]], self.shapes[node.output[0]]
        stored = self.index.value(node.input[1]) if len(node.input) > 1 else None
        over = attribute_of(node, "axes", None if stored is None else stored.tolist())
        if over is None:
            return None
        gone = {at % len(axes) for at in over}
        if attribute_of(node, "keepdims", 1):
            return [self.sums.kept(1) if at in gone else axis for at, axis in enumerate(axes)]
        assert len(shape) == len(axes) - len(gone)
        return [axis for at, axis in enumerate(axes) if at not in gone]

    def _gather(self, node: NodeProto) -> Axes | None:
        axes, at = self.axes.get(node.input[0]), attribute_of(node, "axis", 0)
        chosen = self._dims(node.input[1])
        if axes is None:
            if not self._constant(node.input[0]) or at or len(self._dims(node.input[0])) != 2:
                return None
            made = self._layer(node, self._dims(node.input[0])[1], (), "embedding")
            self._use(node.input[0], 1, made)
            return [*map(self.sums.kept, chosen), made]
        at %= len(axes)
        self.sums.fix(axes[at])
        return [*axes[:at], *map(self.sums.kept, chosen), *axes[at + 1 :]]
