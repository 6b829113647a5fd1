"""TensorRT's calibration cache: the INT8 range of every tensor of a float network, as text.

Before TensorRT 11.4.1 DLA does not know Q/DQ pairs: it takes the float file and such a cache, as do other
programs (DeepStream, trtexec --calib). NVIDIA documents no format. These facts are from caches that TensorRT
wrote, in public repositories:

NVIDIA-AI-IOT/cuDLA-samples, data/model/qat2ptq.cache           TRT-8600, beside a YOLOv5 for DLA
NicolaSansoni/DeepStream-Yolo, calib.table                      TRT-8001
Data-Prodigy/cpp_chicken_tracking, calibration.cache            TRT-100300
dnth/DEIMKit, calibration.cache                                 TRT-100900

The first line is "TRT-VERSION-EntropyCalibration2", with major * 1000 + minor * 100 + patch before TensorRT
10 and major * 10000 from 10 on. Every other line is "TENSOR: HEX": the bits of the float32 scale, the largest
magnitude over 127 (a sigmoid's output has 3c010a14: 1.0002 over 127), big-endian, 0 as "0". The name is that
of the ONNX tensor; a constant that a layer reads directly is NAME_output. What only moves values has the
scale of its input.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
from onnx import TensorProto

from ...targets.errors import ModelError, TargetError
from ..onnx_graph.graph import WEIGHTED, OnnxModel, given_inputs
from .calibrate import Ranges
from .placement import MOVES
from .to_qdq import UNSEEN, symmetric

LAST = (11,)  # from here on there is no implicit quantization


def header(version: tuple[int, ...]) -> str:
    """The first line for a version of TensorRT, e.g. "TRT-100300-EntropyCalibration2" for 10.3.0.

    Raises:
        TargetError: that version takes no calibration cache.
    """
    if version >= LAST:
        raise TargetError(
            f"TensorRT {'.'.join(map(str, version))} takes no calibration cache: 10 was the last that did.",
            "Build the file with Q/DQ pairs, int8.onnx; from TensorRT 11.4.1 on DLA takes it, too.",
        )
    major, minor, patch = (*version, 0, 0)[:3]
    return f"TRT-{major * (10000 if major >= 10 else 1000) + minor * 100 + patch}-EntropyCalibration2"


def scales(source: OnnxModel, quantized: OnnxModel, ranges: Ranges) -> dict[str, float]:
    """The scale of every float tensor of a network that has a range, in the order of the graph.

    Args:
        quantized: the network with Q/DQ pairs, whose scales are taken where it has one.
        ranges: of `source`, for the other tensors.
    """
    found: dict[str, float] = {}
    pairs = {
        node.input[0]: float(scale)
        for node in quantized.graph.node
        if node.op_type == "QuantizeLinear"
        and (scale := quantized.index.value(node.input[1])) is not None
        and scale.size == 1
    }
    made_by = source.index.producer
    for name in (*(value.name for value in given_inputs(source.graph)), *source.float_names()):
        node = made_by.get(name)
        if name in pairs:
            found[name] = pairs[name]
        elif node is not None and node.op_type in MOVES and node.input[0] in found:
            found[name] = found[node.input[0]]
        elif name in ranges.tensors:
            measured = ranges.tensors[name]
            seen = measured if measured.low != 0.0 or measured.high != 0.0 else UNSEEN
            found[name] = float(symmetric(seen.low, seen.high)[0])
    for name, tensor in source.index.constants.items():
        readers = source.index.readers.get(name, ())
        beside = any(reader.op_type not in WEIGHTED for reader, _ in readers)
        value = source.index.value(name) if beside and tensor.data_type == TensorProto.FLOAT else None
        if value is not None and value.size:
            found[f"{name}_output"] = float(np.abs(value).max()) / 127.0
    return found


def as_text(found: Mapping[str, float], version: tuple[int, ...]) -> str:
    """The file's content; a TargetError if that version takes no calibration cache."""
    lines = [header(version)]
    for name, scale in found.items():
        (bits,) = struct.unpack(">I", struct.pack(">f", scale))
        lines.append(f"{name}: {bits:x}")
    return "\n".join(lines) + "\n"


def with_batch(model: OnnxModel, batch: int) -> OnnxModel:
    """The model with this batch, as DLA needs it; a ModelError if an input has another dynamic axis."""
    made = model.copy()
    free: set[str] = set()
    for value in given_inputs(made.graph):
        for place, axis in enumerate(value.type.tensor_type.shape.dim):
            if axis.HasField("dim_value"):
                continue
            if place:
                raise ModelError(
                    f"Axis {place} of the input {value.name!r} has no fixed size.",
                    "Export it with fixed sizes; only the batch can be chosen here.",
                )
            free.add(axis.dim_param)
            axis.dim_value = batch
    for value in made.graph.output:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param and axis.dim_param in free:
                axis.dim_value = batch
    del made.graph.value_info[:]
    return made
