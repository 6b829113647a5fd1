"""The resolution of the images as a choice of a budget: the network resizes them first, beside the widths.

A resolution is one more group of the table, whose "widths" are heights in pixels. The network's inputs stay
as they are, so that every later stage, score and measurement reads the same data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import onnx
import torch
from torch import Tensor, nn

from ...export.onnx_graph.resize import Widths
from ...targets.errors import WorkloadError, users_code
from ..pruning.factors import relaid, relaying
from ..pruning.plan import record
from ..workload import Workload, example_batch
from .grids import Network

RESOLUTION = "images (resolution)"
_CURE = "Declare ascending heights in pixels, the last that of the example, e.g. resolutions = (48, 64)."


def resolutions_of(workload: Workload) -> list[tuple[int, int]]:
    """The heights and widths in pixels that a workload's attribute `resolutions` declares, ascending.

    It has heights of the images, the inputs of four axes; their widths follow in proportion.

    Raises:
        WorkloadError: there is no such attribute, or it does not fit the example.
    """
    images = {tuple(one.shape[2:]) for one in example_batch(workload).values() if one.dim() == 4}
    with users_code("resolutions was read"):
        declared: object = getattr(workload, "resolutions", None)
    if declared is None:
        raise WorkloadError("The workload has no attribute `resolutions`.", _CURE)
    if len(images) != 1:
        found = ", ".join(f"{height} x {width}" for height, width in sorted(images)) or "no input of 4 axes"
        raise WorkloadError(
            f"A budget chooses one resolution of all images, and the example has {found}.",
            'Leave "resolution" out of choose.',
        )
    ((height, width),) = images
    heights = [one for one in declared if isinstance(one, int)] if isinstance(declared, Sequence) else []
    if heights != sorted({*heights}) or len(heights) < 2 or heights[0] < 1 or heights[-1] != height:
        raise WorkloadError(f"resolutions is {declared!r}, and the example has {height} pixels.", _CURE)
    return [(one, max(1, round(width * one / height))) for one in heights]


def at_resolution(model: nn.Module, size: Sequence[int]) -> nn.Module:
    """The network with its images resized first, to this height and width in pixels; its plan has them."""
    plan = relaying(model, f"images are resized to {size[0]} x {size[1]} first", resized=tuple(size))
    return record(relaid(model, plan), plan, of=model)


def with_resolutions(
    network: Callable[[Callable[[nn.Module], nn.Module]], Network],
    model: nn.Module,
    workload: Workload,
) -> tuple[Network, dict[int, tuple[int, int]]]:
    """The network with its resolution as a group, and the sizes in pixels by height.

    Args:
        network: makes the network of which each file has been changed by a function.

    Raises:
        WorkloadError: the network does not take a resolution that the workload declares.
    """
    sizes = {size[0]: size for size in resolutions_of(workload)}
    *smaller, own = sizes
    for height in smaller:
        _check_taken(at_resolution(model, sizes[height]), example_batch(workload), sizes[height])
    whole = network(lambda cut: cut)
    files = {height: network(partial(at_resolution, size=sizes[height])).file_at for height in smaller}
    files[own] = whole.file_at

    def file_at(widths: Widths) -> onnx.ModelProto:
        return files[widths[RESOLUTION]]({name: one for name, one in widths.items() if name != RESOLUTION})

    levels = {**whole.levels, RESOLUTION: tuple(sizes)}
    return Network(file_at, levels, {**whole.dense, RESOLUTION: own}, whole.finer), sizes


def _check_taken(small: nn.Module, example: Mapping[str, Tensor], size: tuple[int, int]) -> None:
    try:
        with torch.no_grad():
            small(*example.values())
    except Exception as error:  # anything that the user's network raises
        raise WorkloadError(
            f"The network does not take images of {size[0]} x {size[1]} pixels, which resolutions declares: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}",
            "Declare the resolutions that it takes.",
        ) from error
