"""Networks with a planted answer for the gate's benchmark: three sizes, and each a little slower in earnest.

A slow-down is real work, never a scaled number: a hidden layer is widened, or an operator is added. How many
per cent that costs depends on the machine, so a family of candidates is timed at length and the one nearest
to what is wanted is taken; what it truly costs is part of the record.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deadweight.targets.timing.clock import time_together
from deadweight.targets.timing.judge import judge
from deadweight.targets.timing.measurement import Protocol
from deadweight.targets.timing.sequential import slowdown

SIZES = ("small", "middle", "large")
"""About 0.05, 0.5 and 5 ms."""
_LENGTHY = Protocol(events=64, event_s=0.05)


def _weight(name: str, *shape: int) -> onnx.TensorProto:
    generator = np.random.default_rng(len(name))
    first, *rest = shape
    fan = int(np.prod(rest)) if len(rest) > 1 else first
    return numpy_helper.from_array((generator.standard_normal(shape) / fan**0.5).astype(np.float32), name)


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto],
    shape: tuple[int, ...],
    outputs: list[str],
) -> Path:
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))], made, weights
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def dense(path: Path, *, width: int = 512, added: int = 0) -> Path:
    """Four dense layers of 512; the second is `width` wide, and `added` outputs hang on the last."""
    widths = [512, 512, width, 512, 10]
    nodes, weights, value = [], [], "x"
    for at, (before, after) in enumerate(itertools.pairwise(widths)):
        weights.append(_weight(f"w{at}", before, after))
        nodes.append(helper.make_node("MatMul", [value, f"w{at}"], [f"m{at}"], name=f"dense{at}"))
        nodes.append(helper.make_node("Relu", [f"m{at}"], [f"r{at}"], name=f"relu{at}"))
        value = f"r{at}"
    outputs = [value]
    if added:
        weights.append(_weight("added", 512, added))
        nodes.append(helper.make_node("MatMul", ["r2", "added"], ["extra"], name="added"))
        outputs.append("extra")
    return _save(path, nodes, weights, (1, 512), outputs)


def chain(path: Path, *, widths: Sequence[int], size: int, added: int = 0) -> Path:
    """3x3 convolutions with ReLU between these widths; an added 1x1 on the last has `added` outputs."""
    nodes, weights, value = [], [], "x"
    for at, (before, after) in enumerate(itertools.pairwise(widths)):
        weights.append(_weight(f"w{at}", after, before, 3, 3))
        nodes.append(
            helper.make_node("Conv", [value, f"w{at}"], [f"c{at}"], name=f"conv{at}", pads=[1, 1, 1, 1])
        )
        nodes.append(helper.make_node("Relu", [f"c{at}"], [f"r{at}"], name=f"relu{at}"))
        value = f"r{at}"
    outputs, last = ["pool"], value
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pool"], name="pool"))
    if added:
        weights.append(_weight("added", added, widths[-1], 1, 1))
        nodes.append(helper.make_node("Conv", [last, "added"], ["wide"], name="added"))
        nodes.append(helper.make_node("GlobalAveragePool", ["wide"], ["extra"], name="extra"))
        outputs.append("extra")
    return _save(path, nodes, weights, (1, widths[0], size, size), outputs)


def convolutions(
    path: Path, *, channels: int, size: int, layers: int, width: int | None = None, added: int = 0
) -> Path:
    """A chain of equal layers; the last but one may have another width."""
    widths = [16] + [channels] * layers
    if width is not None:
        widths[-2] = width
    return chain(path, widths=widths, size=size, added=added)


_CHAINS = {"middle": (32, 28, 6), "large": (64, 56, 6)}


def base(folder: Path, size: str) -> Path:
    """The network of a size, as it is before anything was planted."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{size}.onnx"
    if path.exists():
        return path
    if size == "small":
        return dense(path)
    channels, pixels, layers = _CHAINS[size]
    return convolutions(path, channels=channels, size=pixels, layers=layers)


def candidates(folder: Path, size: str) -> dict[str, Path]:
    """The family of slower networks of a size, by what was done to it."""
    makers: dict[str, Callable[[Path], Path]] = {}
    if size == "small":
        for more in (32, 64, 96, 128):
            makers[f"a layer {more} units wider"] = _partial_dense(width=512 + more)
            makers[f"a layer of {more} units added"] = _partial_dense(added=more)
    else:
        channels, pixels, layers = _CHAINS[size]
        for more in (channels // 4, channels // 2):
            makers[f"a layer {more} channels wider"] = _partial_chain(
                channels, pixels, layers, width=channels + more
            )
        for more in (16, 32, 48, 64, 96, 128, 192, 256):
            makers[f"a 1x1 convolution of {more} channels added"] = _partial_chain(
                channels, pixels, layers, added=more
            )
    return {what: make(folder / f"{size}-{index}.onnx") for index, (what, make) in enumerate(makers.items())}


def _partial_dense(*, width: int = 512, added: int = 0) -> Callable[[Path], Path]:
    return lambda path: dense(path, width=width, added=added)


def _partial_chain(
    channels: int, pixels: int, layers: int, *, width: int | None = None, added: int = 0
) -> Callable[[Path], Path]:
    return lambda path: convolutions(
        path, channels=channels, size=pixels, layers=layers, width=width, added=added
    )


def plant(folder: Path, size: str, wanted: tuple[float, ...]) -> dict[str, dict[str, Any]]:
    """For each wanted slow-down (0.05 is "5") the nearest candidate: its path, what was done, its cost."""
    family = candidates(folder, size)
    timed = time_together({"base": base(folder, size), **family}, protocol=_LENGTHY)
    found = []
    for what, path in family.items():
        value, low, high = slowdown(judge(timed["base"], timed[what]))
        found.append({"path": str(path), "what": what, "slowdown": value, "low": low, "high": high})
    return {
        f"{100 * share:.0f}": min(found, key=lambda one: abs(one["slowdown"] - share)) for share in wanted
    }
