"""A network with camera input: uint8 pixels, and the normalization in the graph.

The first convolution takes the normalization into its weights where that is exact: all of it without
padding; with padding only the scale, since the border's zeros are zeros of the normalized image, and the mean
is subtracted before. In front of any other operator both are operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ...targets.board_file import read_toml
from ...targets.errors import ArtifactError, ModelError
from ...targets.plain import from_plain
from .float_input import with_initializers
from .graph import Array, OnnxModel, attribute_of, drop_unused, given_inputs, replace_nodes
from .run import runner
from .walk import all_names, unique

_COLOURS = ("rgb", "bgr", "gray")
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Preprocessing:
    """From a pixel of 0 to 255 to the network's input: (pixel * scale - mean) / std, of a channel or all."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1 / 255
    colour: str = "rgb"


def read_preprocessing(path: Path) -> Preprocessing:
    """Reads preprocessing.toml; an ArtifactError where a key or a value is wrong."""
    read = from_plain(Preprocessing, read_toml(path, ArtifactError), str(path), cure="Correct it there.")
    if (
        0 in (*read.std, read.scale)
        or read.colour not in _COLOURS
        or {len(read.mean), len(read.std)} - {1, 3}
    ):
        raise ArtifactError(
            f"{path} has mean {read.mean}, std {read.std}, scale {read.scale} and colour {read.colour!r}.",
            "mean and std are one number or three, std and scale are not 0, and colour is one of "
            f"{', '.join(_COLOURS)}.",
        )
    return read


def with_camera_input(model: OnnxModel, given: Preprocessing) -> tuple[OnnxModel, str]:
    """The model with uint8 pixels as its input, of the same name and shape, and what was folded.

    Raises:
        ModelError: its input is not one float32 image [batch, channels, height, width], or the outputs on
            random pixels differ by more than 0.1 %.
    """
    ends = given_inputs(model.graph)
    kind = ends[0].type.tensor_type
    sizes = [axis.dim_value for axis in kind.shape.dim]
    if len(ends) != 1 or kind.elem_type != TensorProto.FLOAT or len(sizes) != 4 or sizes[1] not in (1, 3):
        raise ModelError(
            f"{model.path} has no single float32 input [batch, 1 or 3 channels, height, width].",
            "Give the network that takes one normalized image.",
        )
    made = with_initializers(model).copy()
    mean, std = (np.broadcast_to(np.array(one, np.float64), sizes[1]) for one in (given.mean, given.std))
    factor, offset = given.scale / std, mean / given.scale  # input = (pixel - offset) * factor
    image, used = ends[0].name, all_names(made.graph)
    pixels, centred, scaled = (unique(f"{image}_{part}", used) for part in ("float", "centred", "scaled"))
    first = made.index.read_only_by(image, ("Conv",))
    weight = made.index.value(first.input[1]) if first is not None else None
    folds = (
        first is not None
        and weight is not None
        and weight.shape[1] == sizes[1]
        and len(made.index.readers[first.input[1]]) == 1
        and all(name in made.index.constants for name in first.input[2:])
    )
    padded = first is not None and (
        any(attribute_of(first, "pads", []))
        or attribute_of(first, "auto_pad", b"") in (b"SAME_UPPER", b"SAME_LOWER")
    )
    nodes = [helper.make_node("Cast", [image], [pixels], to=TensorProto.FLOAT, name=pixels)]
    inside = pixels
    changed: dict[str, Array] = {}
    if offset.any() and (padded or not folds):
        nodes.append(_beside("Sub", inside, centred, offset, made.graph))
        inside = centred
    if folds and first is not None and weight is not None:
        larger = weight * factor.reshape(1, -1, 1, 1)
        changed[first.input[1]] = larger.astype(np.float32)
        if not padded and offset.any():
            shift = (larger * offset.reshape(1, -1, 1, 1)).sum((1, 2, 3))
            bias = [made.index.value(name) for name in first.input[2:]] or [np.zeros(len(weight))]
            name = unique(f"{image}_bias", used)
            shifted = (np.asarray(bias[0]) - shift).astype(np.float32)
            made.graph.initializer.append(numpy_helper.from_array(shifted, name))
            first.input[2:] = [name]
    else:
        nodes.append(_beside("Mul", inside, scaled, factor, made.graph))
        inside = scaled
    for reader, place in made.index.readers[image]:
        reader.input[place] = inside
    for tensor in made.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(numpy_helper.from_array(changed[tensor.name], tensor.name))
    ends = given_inputs(made.graph)
    ends[0].type.tensor_type.elem_type = TensorProto.UINT8
    replace_nodes(made.graph, [*nodes, *made.graph.node])
    del made.graph.value_info[:]
    drop_unused(made.graph)
    result = model.derived(made.proto)
    _check(model, result, sizes, factor, offset)
    return result, "nothing" if not folds else "the scale" if padded and offset.any() else "scale and mean"


def _beside(op_type: str, source: str, to: str, values: Array, graph: onnx.GraphProto) -> onnx.NodeProto:
    name = f"{to}_by"
    graph.initializer.append(numpy_helper.from_array(values.reshape(1, -1, 1, 1).astype(np.float32), name))
    return helper.make_node(op_type, [source, name], [to], name=to)


def _check(before: OnnxModel, after: OnnxModel, sizes: list[int], factor: Array, offset: Array) -> None:
    """Compares both on random pixels: the arithmetic has another order, nothing else."""
    shape = [size or (1 if place == 0 else 64) for place, size in enumerate(sizes)]
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image = ((pixels - offset.reshape(1, -1, 1, 1)) * factor.reshape(1, -1, 1, 1)).astype(np.float32)
    name = given_inputs(before.graph)[0].name
    wanted, got = runner(before.proto)({name: image}), runner(after.proto)({name: pixels})
    for output, value in wanted.items():
        off = np.abs(got[output] - value).max() / max(np.abs(value).max(), 1e-30)
        if not off <= _TOLERANCE:
            raise ModelError(
                f"With camera input {output} of {before.path} is {100 * off:.2g} % off.",
                "This is a bug in deadweight: report it. The network was not written.",
            )
