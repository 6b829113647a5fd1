"""Precision as a choice of a budget: each layer is in FP32 or in INT8, beside its width.

A layer's bits are one more group of the table, with the "widths" 8 and 32. So a segment is timed in both, and
beside neighbours of both: what a border between precisions costs is in its entry.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch

from ...export.onnx_graph.graph import OnnxModel
from ...export.onnx_graph.resize import Widths
from ...export.onnx_graph.run import runner
from ...export.quantization.calibrate import Ranges, calibrate
from ...export.quantization.to_qdq import to_qdq
from ...targets.errors import ModelError, users_code
from ...targets.progress import Progress
from ..workload import Workload, example_batch, inputs_of, split_batches
from .grids import Network
from .resolutions import RESOLUTION

FLOAT, INT8 = 32, 8
_BITS = " (bits)"


def split(widths: Widths) -> tuple[dict[str, int], set[str]]:
    """Widths of groups alone, and the layers that are in INT8."""
    own = {name: width for name, width in widths.items() if not name.endswith(_BITS)}
    return own, {name[: -len(_BITS)] for name, bits in widths.items() if name not in own and bits == INT8}


def bits_of(layer: str) -> str:
    """The group of a layer's bits."""
    return f"{layer}{_BITS}"


def mixed(
    file: onnx.ModelProto, in_int8: Collection[str], layers: Iterable[str], ranges: Ranges, dialect: str
) -> onnx.ModelProto:
    """The file with these of its layers in INT8 and the others as they are."""
    present = {node.name for node in file.graph.node}  # not those of a dropped block
    if not present & set(in_int8):
        return file
    left = sorted(present & set(layers) - set(in_int8))
    return to_qdq(OnnxModel(file, Path()), ranges, dialect=dialect, skip=left).model.proto


def ranges_of(file: onnx.ModelProto, workload: Workload) -> Ranges:
    """The ranges of a file's tensors on the calibration split."""
    return calibrate(OnnxModel(file, Path()), inputs_of(workload, "calibration"))


def with_precision(network: Network, workload: Workload, dialect: str) -> tuple[Network, tuple[str, ...]]:
    """The network with the bits of each layer as groups, and the layers that can be in INT8.

    Raises:
        ModelError: none can.
    """
    dense = network.file_at(network.dense)
    ranges = ranges_of(dense, workload)
    for name in (name for name, own in network.levels.items() if own[0] == 0 or name == RESOLUTION):
        other = network.file_at({**network.dense, name: network.levels[name][0]})
        more = ranges_of(other, workload).tensors  # of a block's shortcut, of resized images
        ranges = replace(ranges, tensors={**more, **ranges.tensors})
    layers = to_qdq(OnnxModel(dense, Path()), ranges, dialect=dialect).in_int8

    def file_at(widths: Widths) -> onnx.ModelProto:
        own, in_int8 = split(widths)
        return mixed(network.file_at(own), in_int8, layers, ranges, dialect)

    bits = {bits_of(layer): (INT8, FLOAT) for layer in layers}
    dense_widths = {**network.dense, **dict.fromkeys(bits, FLOAT)}
    return Network(file_at, {**network.levels, **bits}, dense_widths, network.finer), tuple(layers)


def int8_damage(
    file: onnx.ModelProto,
    layers: tuple[str, ...],
    workload: Workload,
    dialect: str,
    *,
    batches: int | None = None,
    known: Mapping[str, float] = {},
    kept: Callable[[Mapping[str, float]], None] = lambda found: None,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, dict[int, float]]:
    """By group of bits, the rise of the validation loss with this layer alone in INT8, at least 0.

    Args:
        known: what an earlier, interrupted call measured, by layer; `kept` gets all so far.

    Raises:
        ModelError: the network has several outputs, of which its loss cannot be computed from a file.
    """
    found, ranges = dict(known), ranges_of(file, workload)
    for done, layer in enumerate(("", *layers)):
        progress(done, len(layers) + 1, f"budget: damage of {layer or 'nothing'} in INT8")
        if layer not in found:
            some = mixed(file, {layer} if layer else (), layers, ranges, dialect)
            found[layer] = _loss(some, workload, batches)
            kept(found)
    return {bits_of(layer): {INT8: max(0.0, found[layer] - found[""]), FLOAT: 0.0} for layer in layers}


def _loss(file: onnx.ModelProto, workload: Workload, batches: int | None) -> float:
    if len(file.graph.output) != 1:
        raise ModelError(
            f"The network has {len(file.graph.output)} outputs, and its loss cannot be computed from a file.",
            'Leave "precision" out of choose; the stage quantize measures the score of INT8.',
        )
    run, names = runner(file), list(example_batch(workload))
    total, count = 0.0, 0
    for batch in itertools.islice(split_batches(workload, "validation"), batches):
        feeds: dict[str, Any] = {name: batch[name].numpy() for name in names}
        output = torch.from_numpy(next(iter(run(feeds).values())))
        with users_code("loss() was called on a validation batch"):
            total += len(batch[names[0]]) * float(workload.loss(output, batch))
        count += len(batch[names[0]])
    return total / max(count, 1)
