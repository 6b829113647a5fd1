"""Random networks whose memory is worth foretelling: one for each seed, the same on every machine.

They are made of what real networks are made of: plain and strided convolutions, depthwise ones, residual sums
with and without a projection, dense and inception-like concatenations, squeeze and excitation, decoders that
return to earlier sizes, long skips, stacks of linear layers with attention, several outputs, and a share of
Q/DQ graphs and of free batch axes. Weights are noise: memory does not depend on them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = ("chain", "residual", "dense", "inception", "decoder", "linear", "mixed")
BESIDE = ("encoder", "quantized")
"""Reported apart: attention and norms in a row, and Q/DQ."""
KINDS = (*FLOAT, *BESIDE)
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Made:
    """A model, the kind it is of, and the batch at which it is to be run."""

    model: onnx.ModelProto
    kind: str
    batch: int


@dataclass
class _Builder:
    """Nodes as they are added; `shapes` are those at the batch the model is run at."""

    draw: random.Random
    quantized: bool = False
    odd: bool = False
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)

    def add(self, operator: str, inputs: list[str], shape: Shape, **attributes: Any) -> str:
        """A node with one output of this shape; returns the output's name."""
        name = f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        self.shapes[name] = shape
        return name

    def constant(self, value: Any) -> str:
        """A constant of the graph."""
        name = f"k{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def noise(self, *shape: int) -> str:
        """A float32 constant of this shape. A short pattern is enough, and quicker to draw."""
        values = np.resize(np.linspace(-0.1, 0.1, 97, dtype=np.float32), shape)
        values = values + np.float32(self.draw.uniform(-0.01, 0.01))  # or equal branches would be merged
        return self.constant(values.astype(np.float32))

    def rounded(self, name: str) -> str:
        """The tensor through a pair of QuantizeLinear and DequantizeLinear."""
        if not self.quantized:
            return name
        scale, zero = self.constant(np.float32(0.02)), self.constant(np.int8(0))
        shape = self.shapes.get(name, ())
        whole = self.add("QuantizeLinear", [name, scale, zero], shape)
        return self.add("DequantizeLinear", [whole, scale, zero], shape)

    def conv(self, x: str, out: int, kernel: int = 3, stride: int = 1, *, depthwise: bool = False) -> str:
        """A convolution with same padding, and mostly a batch norm or an activation after it."""
        batch, channels, height, width = self.shapes[x]
        groups = channels if depthwise else 1
        out = channels if depthwise else out
        weight = self.rounded(self.noise(out, channels // groups, kernel, kernel))
        inputs = [self.rounded(x), weight, *([self.noise(out)] if self.draw.random() < 0.7 else [])]
        shape = (batch, out, -(-height // stride), -(-width // stride))
        pads = [kernel // 2] * 4
        y = self.add("Conv", inputs, shape, pads=pads, strides=[stride] * 2, group=groups)
        if self.draw.random() < 0.2:
            y = self.add(
                "BatchNormalization", [y, *(self.noise(out) for _ in range(3)), self.ones(out)], shape
            )
        return y

    def near(self, width: int, *factors: float, most: int = 96) -> int:
        """A width near `width`: a multiple of 16, as boards like it, except in the odd graphs."""
        wanted = min(width * self.draw.choice(factors or (0.5, 0.75, 1, 1, 1.5)), most)
        return max(8, int(wanted)) if self.odd else max(16, round(wanted / 16) * 16)

    def ones(self, *shape: int) -> str:
        """A constant of ones: a variance, for one."""
        return self.constant(np.ones(shape, np.float32))

    def act(self, x: str) -> str:
        """One of the usual activations."""
        kind = self.draw.choice(
            ("Relu", "Relu", "Relu", "Relu", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "SiLU")
        )
        if kind == "SiLU":
            return self.add("Mul", [x, self.add("Sigmoid", [x], self.shapes[x])], self.shapes[x])
        return self.add(kind, [x], self.shapes[x])

    def pool(self, x: str) -> str:
        """Half the height and width."""
        batch, channels, height, width = self.shapes[x]
        kind = self.draw.choice(("MaxPool", "AveragePool"))
        shape = (batch, channels, height // 2, width // 2)
        return self.add(kind, [x], shape, kernel_shape=[2, 2], strides=[2, 2])

    def concat(self, values: list[str]) -> str:
        """Values side by side in the channels."""
        first = self.shapes[values[0]]
        channels = sum(self.shapes[value][1] for value in values)
        return self.add("Concat", values, (first[0], channels, *first[2:]), axis=1)

    def residual(self, x: str) -> str:
        """Two convolutions and a sum; the short cut is projected where the shape changes."""
        channels = self.shapes[x][1]
        stride = self.draw.choice((1, 1, 1, 2)) if self.shapes[x][2] >= 16 else 1
        out = channels if stride == 1 and self.draw.random() < 0.7 else self.near(channels, 1.5, 2, most=128)
        inner = self.act(self.conv(x, self.draw.choice((channels, out)), self.draw.choice((1, 3)), stride))
        y = self.conv(inner, out)
        short = x if out == channels and stride == 1 else self.conv(x, out, 1, stride)
        return self.act(
            self.add("Add", [y, short] if self.draw.random() < 0.5 else [short, y], self.shapes[y])
        )

    def inverted(self, x: str) -> str:
        """A wide depthwise convolution between two narrow products, with or without excitation."""
        channels = self.shapes[x][1]
        wide = self.act(self.conv(x, channels * self.draw.choice((2, 3, 4)), 1))
        wide = self.act(self.conv(wide, 0, 3, depthwise=True))
        if self.draw.random() < 0.4:
            wide = self.excite(wide)
        y = self.conv(wide, channels, 1)
        return self.add("Add", [y, x], self.shapes[y])

    def excite(self, x: str) -> str:
        """Squeeze and excitation: every channel scaled by a small network on the channels' means."""
        batch, channels, *_ = self.shapes[x]
        small = self.add("GlobalAveragePool", [x], (batch, channels, 1, 1))
        small = self.add("Relu", [self.conv(small, max(channels // 4, 1), 1)], (batch, channels // 4, 1, 1))
        gate = self.add("Sigmoid", [self.conv(small, channels, 1)], (batch, channels, 1, 1))
        return self.add("Mul", [x, gate], self.shapes[x])

    def inception(self, x: str) -> str:
        """Two to four branches of different depth, side by side."""
        branches = []
        for _ in range(self.draw.randint(2, 4)):
            y = x
            for _ in range(self.draw.randint(1, 3)):
                y = self.act(self.conv(y, self.near(self.shapes[x][1]), self.draw.choice((1, 3, 5))))
            branches.append(y)
        return self.concat(branches)

    def linear(self, x: str, out: int) -> str:
        """A matrix product over the last axis, with a bias."""
        shape = (*self.shapes[x][:-1], out)
        y = self.add("MatMul", [self.rounded(x), self.rounded(self.noise(self.shapes[x][-1], out))], shape)
        return self.add("Add", [y, self.noise(out)], shape)

    def gemm(self, x: str, out: int) -> str:
        """A matrix product over rows, with a bias and an activation."""
        rows, width = self.shapes[x]
        y = self.add("Gemm", [x, self.noise(width, out), self.noise(out)], (rows, out))
        return self.act(y)

    def norm(self, x: str) -> str:
        """A layer norm over the last axis."""
        width = self.shapes[x][-1]
        return self.add(
            "LayerNormalization", [x, self.ones(width), self.noise(width)], self.shapes[x], axis=-1
        )

    def encoder(self, x: str) -> str:
        """Attention with one head, and a feed-forward part, each with its short cut."""
        batch, tokens, width = self.shapes[x]
        if self.draw.random() < 0.6:
            y = self.norm(x)
            query, key, value = (self.linear(y, width) for _ in range(3))
            turned = self.add("Transpose", [key], (batch, width, tokens), perm=[0, 2, 1])
            scores = self.add("MatMul", [query, turned], (batch, tokens, tokens))
            scores = self.add("Softmax", [scores], (batch, tokens, tokens), axis=-1)
            y = self.linear(self.add("MatMul", [scores, value], (batch, tokens, width)), width)
            x = self.add("Add", [x, y], (batch, tokens, width))
        wide = self.act(self.linear(self.norm(x), width * self.draw.choice((2, 4))))
        return self.add("Add", [x, self.linear(wide, width)], (batch, tokens, width))


def make(seed: int) -> Made:
    """The network of a seed."""
    draw = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    batch = draw.choice((1, 1, 1, 1, 2, 4))
    build = _Builder(draw, quantized=kind == "quantized", odd=draw.random() < 0.15)
    if kind == "linear":
        outputs = _linear(build, batch)
    else:
        outputs = _encoder(build, batch) if kind == "encoder" else _images(build, kind, batch)
    free = batch > 1
    graph = helper.make_graph(
        build.nodes,
        f"{kind}{seed}",
        [_value("x", build.shapes["x"], free=free)],
        [_value(name, build.shapes[name], free=free) for name in outputs],
        build.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Made(model, kind, batch)


def _encoder(build: _Builder, batch: int) -> list[str]:
    draw = build.draw
    build.shapes["x"] = (batch, draw.choice((128, 196, 256, 400)), draw.choice((128, 192, 256)))
    x = build.linear("x", draw.choice((128, 192, 256, 384)))
    for _ in range(draw.randint(1, 4)):
        x = build.encoder(x)
    return [build.linear(build.norm(x), draw.choice((10, 64, 256)))]


def _linear(build: _Builder, batch: int) -> list[str]:
    draw = build.draw
    build.shapes["x"] = (batch * draw.choice((512, 1024, 2048)), draw.choice((64, 128, 256)))
    x = build.gemm("x", build.near(draw.choice((128, 256, 384, 512)), 1, most=512))
    met = [x]
    for _ in range(draw.randint(2, 8)):
        part = draw.choice(("plain", "plain", "branches", "residual", "concat", "skip"))
        width = build.shapes[x][1]
        alike = [value for value in met if build.shapes[value] == build.shapes[x] and value != x]
        if part == "branches":
            x = build.concat([build.gemm(x, build.near(width, 0.5, most=256)) for _ in range(2)])
        elif part == "residual":
            x = build.add(
                "Add",
                [build.gemm(build.gemm(x, build.near(width, 1, 2, most=512)), width), x],
                build.shapes[x],
            )
        elif part == "concat" and width <= 384:
            x = build.concat([x, build.gemm(x, build.near(width, 0.25, 0.5, most=128))])
        elif part == "skip" and alike:
            x = build.add("Add", [x, draw.choice(alike)], build.shapes[x])
        else:
            x = build.gemm(x, build.near(width, 0.5, 1, 1, 1.5, most=512))
        met.append(x)
    return [build.gemm(x, draw.choice((10, 64)))]


def _images(build: _Builder, kind: str, batch: int) -> list[str]:
    draw = build.draw
    side = draw.choice((56, 64, 80, 96, 112, 128))
    build.shapes["x"] = (batch, draw.choice((1, 3, 3, 3, 8, 16)), side, side)
    x = build.act(
        build.conv("x", build.near(draw.choice((12, 16, 24, 32, 48, 64)), 1), draw.choice((3, 5, 7)))
    )
    met = [x]
    for _ in range(draw.randint(2, 8)):
        x = _block(build, kind, x, met)
        if build.shapes[x][1] > 160:
            x = build.act(build.conv(x, draw.choice((32, 48, 64)), 1))
        met.append(x)
    return _heads(build, x, met)


def _block(build: _Builder, kind: str, x: str, met: list[str]) -> str:
    """One more block, of the kind or of any kind, that goes on from `x` and may return to what was `met`."""
    draw = build.draw
    part = {"chain": "plain", "mixed": "any", "quantized": "any"}.get(kind, kind)
    if part == "any" or draw.random() < 0.2:
        part = draw.choice(("plain", "residual", "inverted", "dense", "inception", "decoder", "skip", "pool"))
    if part == "residual":
        return build.residual(x)
    if part == "inverted":
        return build.inverted(x)
    if part == "inception":
        return build.inception(x)
    if part == "dense":
        grown = build.act(build.conv(x, build.near(draw.choice((12, 16, 24, 32)), 1)))
        return build.concat([x, grown])
    if part == "decoder":
        return _return(build, x, met)
    if part == "skip":
        alike = [value for value in met if build.shapes[value] == build.shapes[x] and value != x]
        return build.add("Add", [x, draw.choice(alike)], build.shapes[x]) if alike else build.residual(x)
    if part == "pool" and build.shapes[x][2] >= 16:
        return build.pool(x)
    stride = draw.choice((1, 1, 1, 2)) if build.shapes[x][2] >= 16 else 1
    return build.act(build.conv(x, build.near(build.shapes[x][1]), draw.choice((1, 3, 3, 5)), stride))


def _return(build: _Builder, x: str, met: list[str]) -> str:
    """Down where nothing larger is near; else up to a size that was met, beside what stood there."""
    larger = [value for value in met if build.shapes[value][2] == 2 * build.shapes[x][2]]
    if not larger or build.draw.random() < 0.3:
        return build.act(build.conv(build.pool(x) if build.shapes[x][2] >= 16 else x, build.shapes[x][1]))
    batch, channels, height, width = build.shapes[x]
    scales = build.constant(np.array([1, 1, 2, 2], np.float32))
    mode = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    up = build.add("Resize", [x, "", scales], (batch, channels, 2 * height, 2 * width), **mode)
    both = build.concat([up, build.draw.choice(larger)])
    return build.act(build.conv(both, channels))


def _heads(build: _Builder, x: str, met: list[str]) -> list[str]:
    """What comes out: a classifier, a map, or a map and something from the middle."""
    draw = build.draw
    batch, channels, *_ = build.shapes[x]
    if draw.random() < 0.5:
        mean = build.add("GlobalAveragePool", [x], (batch, channels, 1, 1))
        flat = build.add("Flatten", [mean], (batch, channels))
        return [build.add("Gemm", [flat, build.noise(channels, 10), build.noise(10)], (batch, 10))]
    outputs = [build.conv(x, draw.choice((1, 4, 21)), 1)]
    if draw.random() < 0.4:
        outputs.append(build.conv(draw.choice(met), draw.choice((1, 4, 8)), 1))
    return outputs


def _value(name: str, shape: Shape, *, free: bool) -> onnx.ValueInfoProto:
    sizes: list[str | int | None] = ["batch", *shape[1:]] if free else [*shape]
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)
