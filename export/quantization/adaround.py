"""AdaRound: rounding of weights up or down for the least error of the layer's output.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (ICML 2020). The error of a
layer's output is a quadratic form of the rounding errors of one output channel; its matrix, the second
moments of the layer's input (equation 13), is all that is stored of the calibration data. The direction is
relaxed to a number between 0 and 1, which a growing penalty drives to an end (equations 21 to 24). Where that
is not better than rounding to nearest on the same data, rounding to nearest is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional as F

from ...targets.errors import WorkloadError
from ..onnx_graph.float_input import as_float
from ..onnx_graph.graph import Array, OnnxModel, attribute_of
from ..onnx_graph.readback import Product, products
from ..onnx_graph.run import pieces, runner, samples_in

ITERATIONS = 400
WARM = 0.2  # share of the iterations without the penalty
PENALTY = 3.0  # of all weights of an output channel together, whose error with plain rounding counts 1
STRETCH = (-0.1, 1.1)  # of the rectified sigmoid, equation 23
RATE = 0.05
SAMPLES = 64  # per layer; a convolution has a row for each position
LARGEST = 4608  # inputs of an output channel, the side of the matrix of second moments
AT_ONCE = 8  # layers whose inputs are in memory at a time


@dataclass(frozen=True)
class Gain:
    """The MSE of a layer's output as a share of that with rounding to nearest; number of `moved` weights."""

    error: float
    moved: int


def adaround(
    model: OnnxModel,
    quantized: OnnxModel,
    batches: Iterable[Mapping[str, Any]],
    *,
    iterations: int = ITERATIONS,
    samples: int = SAMPLES,
) -> tuple[OnnxModel, dict[str, Gain]]:
    """The float network with its weights on the steps of `quantized`, each rounded up or down.

    Quantize the result with the same ranges: rounding to nearest then does not change the weights.

    Args:
        model: the float network of `quantized`.
        batches: as for `calibrate`; the first `samples` samples are used.

    Returns:
        The network, and the gain by operator. Transposed convolutions and inputs, stacked matrices and very
        wide layers are unchanged.

    Raises:
        WorkloadError: there are no batches, or they do not fit.
        ModelError: ONNX Runtime refuses the model.
    """
    before = as_float(model)
    found = [product for product in products(before, quantized) if _is_served(product)]
    feeds = list(_first(pieces(before.proto, batches), samples))
    if not feeds:
        raise WorkloadError("There is no calibration data.", "Give at least one batch.")
    made = before.copy()
    constants = {tensor.name: tensor for tensor in made.graph.initializer}
    gains: dict[str, Gain] = {}
    done: set[str] = set()
    for start in range(0, len(found), AT_ONCE):
        part = found[start : start + AT_ONCE]
        for product, moments in zip(part, _moments(made.proto, part, feeds), strict=True):
            name = product.node.input[1]
            if name in done:  # two operators read it; the first one counts
                continue
            done.add(name)
            rounded, gains[product.node.name] = _rounded(product, moments, iterations)
            weight = (rounded * product.steps.astype(np.float64)).astype(np.float32)
            constants[name].CopyFrom(numpy_helper.from_array(weight, name))
    return made, gains


def _first(feeds: Iterator[dict[str, Array]], samples: int) -> Iterator[dict[str, Array]]:
    for piece in feeds:
        count = samples_in(piece)
        # Inputs without a batch axis come with every piece and are not cut.
        even = all(value.ndim and len(value) == count for value in piece.values())
        yield {name: value[:samples] for name, value in piece.items()} if even else piece
        samples -= count
        if samples <= 0:
            return


def _is_served(product: Product) -> bool:
    """Whether an output channel is one row of weights, of bounded length, times the operator's input."""
    node, weight = product.node, product.weight
    stacked = node.op_type == "MatMul" and weight.ndim > 2
    if stacked or node.op_type == "ConvTranspose" or attribute_of(node, "transA", 0):
        return False
    return bool(_by_output(weight, node).shape[-1] <= LARGEST)


def _by_output(weight: Array, node: onnx.NodeProto) -> Array:
    """[groups, outputs of a group, weights of an output]."""
    if node.op_type == "Conv":
        groups = int(attribute_of(node, "group", 1))
        return weight.reshape(groups, len(weight) // groups, -1)
    return (weight if node.op_type == "Gemm" and attribute_of(node, "transB", 0) else weight.T)[None]


def _back(rows: Array, node: onnx.NodeProto, shape: tuple[int, ...]) -> Array:
    if node.op_type == "Conv":
        return rows.reshape(shape)
    flat = rows[0]
    return np.asarray(flat if node.op_type == "Gemm" and attribute_of(node, "transB", 0) else flat.T)


def _moments(model: onnx.ModelProto, found: list[Product], feeds: list[dict[str, Array]]) -> list[Tensor]:
    """By operator, E[x x'] of the rounded values that an output channel reads: [groups, inputs, inputs]."""
    run = runner(model, list(dict.fromkeys(product.node.input[0] for product in found)), optimize=False)
    sums: list[Tensor] = []
    for piece in feeds:
        values = run(piece)
        parts = []
        for product in found:
            rows = _rows(torch.from_numpy(_rounded_input(values[product.node.input[0]], product)), product)
            parts.append(rows.transpose(1, 2) @ rows)
        sums = [old + new for old, new in zip(sums, parts, strict=True)] if sums else parts
    return sums


def _rounded_input(values: Array, product: Product) -> Array:
    kind = np.iinfo(product.zero.dtype)
    zero = float(product.zero.item())
    integers = np.clip(np.rint(values / product.scale) + zero, kind.min, kind.max)
    return np.asarray((integers - zero) * product.scale, np.float32)


def _rows(data: Tensor, product: Product) -> Tensor:
    """The inputs of the output channels of each group: [groups, rows, weights of an output]."""
    node = product.node
    if node.op_type != "Conv":
        return data.reshape(1, -1, data.shape[-1])
    groups = int(attribute_of(node, "group", 1))
    kernel = list(product.weight.shape[2:])
    axes = len(kernel)
    pads = list(attribute_of(node, "pads", [0] * 2 * axes))
    padded = F.pad(data, [int(p) for axis in reversed(range(axes)) for p in (pads[axis], pads[axis + axes])])
    strides, gaps = attribute_of(node, "strides", [1] * axes), attribute_of(node, "dilations", [1] * axes)
    for axis, (size, stride, gap) in enumerate(zip(kernel, strides, gaps, strict=True)):
        padded = padded.unfold(2 + axis, (size - 1) * gap + 1, stride)[..., ::gap]
    # [samples, channels, places..., kernel...] to [groups, samples and places, weights of an output]
    samples, channels = padded.shape[:2]
    split = padded.reshape(samples, groups, channels // groups, *padded.shape[2:])
    ordered = split.permute(1, 0, *range(3, 3 + axes), 2, *range(3 + axes, 3 + 2 * axes))
    return ordered.reshape(groups, -1, channels // groups * int(np.prod(kernel)))


def _rounded(product: Product, moments: Tensor, iterations: int) -> tuple[Array, Gain]:
    """The integers of a weight, and their gain over `product.integers`."""
    exact = torch.from_numpy(
        _by_output(np.asarray(product.weight / product.steps.astype(np.float64)), product.node).copy()
    ).float()
    plain = torch.from_numpy(_by_output(product.integers, product.node).copy()).float()
    limit = float(np.abs(product.integers).max())
    size = moments.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(1e-30)[:, None]
    matrix = moments / size[..., None]
    steps = _by_output(np.broadcast_to(product.steps, product.weight.shape), product.node)[..., 0]
    unit = size * torch.from_numpy(steps.astype(np.float32)) ** 2

    def error(rounded: Tensor) -> Tensor:
        off = rounded - exact
        return (off @ matrix * off).sum(-1)

    chosen = _relaxed(exact, matrix, error(plain).clamp_min(1e-12), limit, iterations)
    result = torch.where((error(chosen) < error(plain))[..., None], chosen, plain)
    share = float((unit * error(result)).sum() / (unit * error(plain)).sum().clamp_min(1e-30))
    rounded = _back(result.numpy(), product.node, product.weight.shape)
    return rounded, Gain(share, int((result != plain).sum()))


def _relaxed(exact: Tensor, matrix: Tensor, unit: Tensor, limit: float, iterations: int) -> Tensor:
    down = exact.floor()
    low, high = STRETCH
    logits = torch.logit(((exact - down).clamp(0.01, 0.99) - low) / (high - low)).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=RATE)
    warm = int(WARM * iterations)
    # A weight on a step stays there: the largest of a channel sets the scale.
    on_step = (exact - exact.round()).abs() < 1e-4
    with torch.enable_grad():
        for turn in range(iterations):
            up = (torch.sigmoid(logits) * (high - low) + low).clamp(0.0, 1.0)
            off = torch.where(on_step, torch.zeros_like(up), down + up - exact)
            loss = ((off @ matrix * off).sum(-1) / unit).sum()
            if turn >= warm:
                exponent = 20.0 - 18.0 * (turn - warm) / max(iterations - warm, 1)
                loss = loss + PENALTY * (1.0 - (2.0 * up - 1.0).abs().pow(exponent)).mean(-1).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    up = (torch.sigmoid(logits.detach()) * (high - low) + low) > 0.5
    return torch.where(on_step, exact.round(), down + up.float()).clamp(-limit, limit)
