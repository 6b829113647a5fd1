"""ONNX operators as differentiable torch functions: an exported graph can be trained as it is.

Each takes the node's attributes and its inputs. Only what our own export writes is here; `operator` refuses
the rest, and a network is compared with ONNX Runtime before it is trained.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor

from ...targets.errors import ModelError

Attributes = Mapping[str, Any]
Operator = Callable[..., Any]


def operator(node: onnx.NodeProto) -> Operator:
    """The function of a node's inputs; a missing input is None.

    Raises:
        ModelError: the operator has no differentiable form here.
    """
    if node.domain not in ("", "ai.onnx") or node.op_type not in _OPERATORS:
        raise ModelError(
            f"The operator {node.op_type} of {node.name or node.output[0]!r} cannot be trained as a graph.",
            "Use the stage quantize, with score_drop: the layers that cost most return to float.",
        )
    given = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    given["outputs"] = len(node.output)
    return functools.partial(_OPERATORS[node.op_type], given)


def _plain(function: Operator) -> Operator:
    return lambda a, *inputs: function(*inputs)


def _integers(value: Tensor | None, default: Sequence[int] | None = None) -> list[int] | None:
    return (
        list(default) if value is None and default is not None else None if value is None else value.tolist()
    )


def _reduce(function: Operator) -> Operator:
    def run(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        over = _integers(axes, a.get("axes"))
        if not over and a.get("noop_with_empty_axes"):
            return x
        result: Tensor = function(x, dim=over or list(range(x.dim())), keepdim=bool(a.get("keepdims", 1)))
        return result

    return run


def _convolution(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    axes = weight.dim() - 2
    x, padding = _padded(a, x, axes)
    steps = [a.get(name, [1] * axes) for name in ("strides", "dilations")]
    none = [0] * axes
    return torch.convolution(x, weight, bias, steps[0], padding, steps[1], False, none, a.get("group", 1))


def _transposed(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    axes = weight.dim() - 2
    steps = [a.get(name, [1] * axes) for name in ("strides", "dilations")]
    none, more = [0] * axes, a.get("output_padding", [0] * axes)
    whole = torch.convolution(x, weight, bias, steps[0], none, steps[1], True, more, a.get("group", 1))
    pads = a.get("pads", [0] * 2 * axes)
    for at in range(axes):
        whole = whole.narrow(2 + at, pads[at], whole.shape[2 + at] - pads[at] - pads[axes + at])
    return whole


def _padded(a: Attributes, x: Tensor, axes: int, fill: float = 0.0) -> tuple[Tensor, list[int]]:
    """The input and the padding of both sides; where these differ, the padded input and none."""
    pads = a.get("pads", [0] * 2 * axes)
    before, after = pads[:axes], pads[axes:]
    if before == after:
        return x, list(before)
    flat = [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair]
    return F.pad(x, flat, value=fill), [0] * axes


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    kernel = a["kernel_shape"]
    axes = len(kernel)
    x, padding = _padded(a, x, axes, -math.inf)
    pool: Operator = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[axes - 1]
    steps = [a.get(name, [1] * axes) for name in ("strides", "dilations")]
    result: Tensor = pool(x, kernel, steps[0], padding, steps[1], bool(a.get("ceil_mode", 0)))
    return result


def _average_pool(a: Attributes, x: Tensor) -> Tensor:
    kernel = a["kernel_shape"]
    axes = len(kernel)
    counts = bool(a.get("count_include_pad", 0))
    x, padding = _padded(a, x, axes)
    pool: Operator = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[axes - 1]
    result: Tensor = pool(
        x, kernel, a.get("strides", [1] * axes), padding, bool(a.get("ceil_mode", 0)), counts
    )
    return result


def _gemm(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x = x.T if a.get("transA") else x
    product: Tensor = F.linear(x, weight if a.get("transB") else weight.T) * a.get("alpha", 1.0)
    return product if bias is None else product.add(bias, alpha=a.get("beta", 1.0))


def _divide(one: Tensor, other: Tensor) -> Tensor:
    return one / other if one.is_floating_point() else torch.div(one, other, rounding_mode="trunc")


def _clip(a: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, min=low, max=high)


def _dtype(kind: int) -> torch.dtype:
    return torch.from_numpy(np.zeros(0, helper.tensor_dtype_to_np_dtype(kind))).dtype


def _constant_of_shape(a: Attributes, shape: Tensor) -> Tensor:
    value = torch.from_numpy(numpy_helper.to_array(a["value"]).copy()) if "value" in a else torch.zeros(1)
    return value.to(shape.device).expand(shape.tolist())


def _depth_to_space(a: Attributes, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = a["blocksize"]
    if a.get("mode", b"DCR") == b"CRD":
        return F.pixel_shuffle(x, b)
    parts = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // b**2, h * b, w * b)


def _gather(a: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis = a.get("axis", 0) % x.dim()
    chosen = x.index_select(axis, (indices % x.shape[axis]).reshape(-1))
    return chosen.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _layer_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    shape = x.shape[a.get("axis", -1) :]
    return F.layer_norm(x, shape, scale, bias, a.get("epsilon", 1e-5))


def _pad(a: Attributes, x: Tensor, pads: Tensor, value: Tensor | None = None) -> Tensor:
    sizes = pads.tolist()
    pairs = list(zip(sizes[: x.dim()], sizes[x.dim() :], strict=True))
    mode = {b"constant": "constant", b"edge": "replicate", b"reflect": "reflect"}[a.get("mode", b"constant")]
    if mode != "constant":
        pairs = pairs[2:]  # torch repeats the spatial axes alone
    flat = [int(size) for pair in reversed(pairs) for size in pair]
    return F.pad(x, flat, mode, 0.0 if value is None else float(value))


def _reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sizes = shape.tolist()
    if not a.get("allowzero"):
        sizes = [x.shape[at] if size == 0 else size for at, size in enumerate(sizes)]
    return x.reshape(sizes)


def _resize(
    a: Attributes,
    x: Tensor,
    _roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    by = None if scales is None or not scales.numel() else scales.tolist()[2:]
    to = None if sizes is None else sizes.tolist()[2:]
    mode = a.get("mode", b"nearest").decode()
    if mode == "nearest":
        return F.interpolate(x, to, by, "nearest")
    smooth = "bicubic" if mode == "cubic" else ("linear", "bilinear", "trilinear")[x.dim() - 3]
    corners = a.get("coordinate_transformation_mode", b"half_pixel") == b"align_corners"
    return F.interpolate(x, to, by, smooth, align_corners=corners)


def _slice(
    a: Attributes,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    first, last = starts.tolist(), ends.tolist()
    over = _integers(axes, range(len(first))) or []
    by = _integers(steps, [1] * len(first)) or []
    for start, end, axis, step in zip(first, last, over, by, strict=True):
        places = range(x.shape[axis])[start:end:step]
        if step == 1:
            x = x.narrow(axis, places.start if len(places) else 0, len(places))
        else:
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64, device=x.device))
    return x


def _split(a: Attributes, x: Tensor, sizes: Tensor | None = None) -> Sequence[Tensor]:
    axis = a.get("axis", 0)
    given = _integers(sizes)
    return torch.functional.split(x, given if given is not None else -(-x.shape[axis] // a["outputs"]), axis)


def _squeeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    over = _integers(axes)
    return x.squeeze() if over is None else x.squeeze(tuple(over))


def _unsqueeze(a: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    for axis in sorted(at % (x.dim() + axes.numel()) for at in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _triangle(a: Attributes, x: Tensor, k: Tensor | None = None) -> Tensor:
    cut: Operator = torch.triu if a.get("upper", 1) else torch.tril
    result: Tensor = cut(x, 0 if k is None else int(k))
    return result


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


_PLAIN: dict[str, Operator] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "And": torch.logical_and,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Div": _divide,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "HardSwish": F.hardswish,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "MatMul": torch.matmul,
    "Mish": F.mish,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "Pow": torch.pow,
    "Reciprocal": torch.reciprocal,
    "Relu": F.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softplus": F.softplus,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tanh": torch.tanh,
    "Where": torch.where,
    "Identity": lambda x: x,
    "Dropout": lambda x, *_: x,
    "PRelu": lambda x, slope: torch.where(x < 0, slope * x, x),
    "Max": lambda *x: functools.reduce(torch.maximum, x),
    "Min": lambda *x: functools.reduce(torch.minimum, x),
    "Expand": lambda x, shape: x.expand(np.broadcast_shapes(tuple(x.shape), tuple(shape.tolist()))),
    "Tile": lambda x, repeats: x.repeat(repeats.tolist()),
    "GlobalAveragePool": lambda x: x.mean(_spatial(x), keepdim=True),
    "GlobalMaxPool": lambda x: x.amax(_spatial(x), keepdim=True),
    "Range": lambda start, end, step: torch.arange(
        start.item(), end.item(), step.item(), device=start.device
    ),
}
_OPERATORS: dict[str, Operator] = {
    **{kind: _plain(function) for kind, function in _PLAIN.items()},
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMin": _reduce(torch.amin),
    "ReduceL2": _reduce(torch.linalg.vector_norm),
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "Gemm": _gemm,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "Clip": _clip,
    "ConstantOfShape": _constant_of_shape,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "Gather": _gather,
    "LayerNormalization": _layer_norm,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Trilu": _triangle,
    "BatchNormalization": lambda a, x, scale, bias, mean, variance: F.batch_norm(
        x, mean, variance, scale, bias, eps=a.get("epsilon", 1e-5)
    ),
    "InstanceNormalization": lambda a, x, scale, bias: F.instance_norm(
        x, weight=scale, bias=bias, eps=a.get("epsilon", 1e-5)
    ),
    "ArgMax": lambda a, x: x.argmax(a.get("axis", 0), keepdim=bool(a.get("keepdims", 1))),
    "Cast": lambda a, x: x.to(_dtype(a["to"])),
    "Concat": lambda a, *x: torch.cat(x, a["axis"]),
    "CumSum": lambda a, x, axis: x.cumsum(int(axis)),
    "Einsum": lambda a, *x: torch.einsum(a["equation"].decode(), *x),
    "Elu": lambda a, x: F.elu(x, a.get("alpha", 1.0)),
    "Flatten": lambda a, x: x.reshape(math.prod(x.shape[: a.get("axis", 1)]), -1),
    "GatherElements": lambda a, x, at: x.gather(a.get("axis", 0), at % x.shape[a.get("axis", 0)]),
    "Gelu": lambda a, x: F.gelu(x, approximate=a.get("approximate", b"none").decode()),
    "HardSigmoid": lambda a, x: (a.get("alpha", 0.2) * x + a.get("beta", 0.5)).clamp(0, 1),
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "LogSoftmax": lambda a, x: F.log_softmax(x, a.get("axis", -1)),
    "Mod": lambda a, x, y: torch.fmod(x, y) if a.get("fmod") else torch.remainder(x, y),
    "Shape": lambda a, x: torch.tensor(x.shape[a.get("start", 0) : a.get("end")], device=x.device),
    "Softmax": lambda a, x: F.softmax(x, a.get("axis", -1)),
    "TopK": lambda a, x, k: x.topk(int(k), a.get("axis", -1), bool(a.get("largest", 1))),
    "Transpose": lambda a, x: x.permute(a.get("perm", list(range(x.dim()))[::-1])),
}
