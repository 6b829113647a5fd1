"""External data: weights in a separate file, for models above protobuf's limit.

A protobuf message has at most 2 GB, so neither a file nor a copy through bytes can be larger. ONNX allows a
weight to refer to another file. Ours has the hash of its content in its name, so that the hash of the small
file covers both, a new version never overwrites the old weights, and damage is detected.
"""

from __future__ import annotations

import hashlib
import math
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, helper

from ...targets.artifact import sha256_of, writing
from ...targets.errors import MISFITS, ArtifactError, ModelError, reported
from ...targets.onnx_file import damage
from .walk import all_graphs

INLINE_BYTES = 2**31 - 2**20  # protobuf's limit of a message, minus the graph without weights
SMALL = 1024  # numbers; constants for shapes stay in the graph, since inference needs their values
_OURS = re.compile(r"\.([0-9a-f]{16})\.weights$")
_ALIGNMENT = 4096  # a runtime may map the file into memory


def array_of(tensor: TensorProto) -> np.ndarray[Any, Any]:
    """A constant's values; a ModelError if they do not fit its shape and type."""
    what, cure = f"The constant {tensor.name!r} is damaged", "Export or copy the file again."
    with reported(ModelError, what, cure, *MISFITS):
        return onnx.numpy_helper.to_array(tensor)


def weight_bytes(model: onnx.ModelProto) -> int:
    """The size of a model's constants in bytes."""
    return sum(len(tensor.raw_data) or 8 * math.prod(tensor.dims) for tensor in model.graph.initializer)


def fits(model: onnx.ModelProto) -> bool:
    """Whether the model fits into one message."""
    return weight_bytes(model) <= INLINE_BYTES


def whole_copy(model: onnx.ModelProto, *, but: Collection[str] = ()) -> onnx.ModelProto:
    """A deep copy of any size, without the constants `but`."""
    copy = onnx.ModelProto()
    for source, to, later in ((model, copy, "graph"), (model.graph, copy.graph, "initializer")):
        for field, value in source.ListFields():
            if isinstance(value, (int, str)):
                setattr(to, field.name, value)
            elif field.name != later:
                getattr(to, field.name).extend(value)
    copy.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name not in but)
    return copy


def for_inference(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy for shape inference, in which large constants are inputs without values."""
    large = {one.name: one for one in model.graph.initializer if math.prod(one.dims) > SMALL}
    light = whole_copy(model, but=large)
    for given in light.graph.input:
        large.pop(given.name, None)
    values = [helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in large.values()]
    light.graph.input.extend(values)
    return light


def write_apart(model: onnx.ModelProto, path: Path) -> int:
    """Writes a model with external weights, each file whole or not at all; returns their bytes."""
    light = whole_copy(model, but={tensor.name for tensor in model.graph.initializer})
    digest = hashlib.sha256()
    waiting = Path(path).with_name(f"{Path(path).name}.weights")
    with writing(waiting) as beside, beside.open("wb") as file:
        for tensor in model.graph.initializer:
            if math.prod(tensor.dims) <= SMALL:
                light.graph.initializer.append(tensor)
                continue
            gap = bytes(-file.tell() % _ALIGNMENT)
            value = bytes(tensor.raw_data) or array_of(tensor).tobytes()
            bare = light.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            for key, entry in (("offset", file.tell() + len(gap)), ("length", len(value))):
                bare.external_data.add(key=key, value=str(entry))
            for part in (gap, value):
                file.write(part)
                digest.update(part)
    name = f"{Path(path).name}.{digest.hexdigest()[:16]}.weights"
    waiting.replace(waiting.with_name(name))
    for tensor in light.graph.initializer:
        if tensor.external_data:
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=name)
    with writing(Path(path)) as beside:
        size = beside.write_bytes(light.SerializeToString(deterministic=True))
    drop_weights(Path(path), but=name)
    return size + Path(path).with_name(name).stat().st_size


def drop_weights(path: Path, *, but: str = "") -> None:
    """Deletes the weight files of earlier models at this path, except one."""
    for old in path.parent.glob(f"{path.name}.*.weights"):
        if _OURS.search(old.name) and old.name != but:
            old.unlink()


def read_apart(model: onnx.ModelProto, path: Path) -> list[Path]:
    """Reads external weights into the model, and returns their files; an ArtifactError if one is damaged."""
    files = [_beside(path, name) for name in _locations(model.graph)]
    for file in files:
        found = _OURS.search(file.name)
        if found and not sha256_of(file).startswith(found.group(1)):
            raise ArtifactError(
                f"{file} is damaged: its hash is not the one in its name.", "Export or copy it again."
            )
    try:
        external_data_helper.load_external_data_for_model(model, str(Path(path).parent))
        for tensor in model.graph.initializer:
            tensor.ClearField("data_location")  # as before writing
    except Exception as error:  # its errors have no public base class
        raise ArtifactError(
            f"The weights of {path} cannot be read: {error}.", "Export or copy both files again."
        ) from error
    return files


def copy(path: Path, out_path: Path) -> None:
    """Copies a model and its external weights, the model last; an ArtifactError if one cannot be."""
    for name in (*names_beside(path), ""):
        source = Path(path).parent / name if name else Path(path)
        with writing(Path(out_path).parent / name if name else Path(out_path)) as beside:
            shutil.copyfile(source, beside)


def copy_as_one(path: Path, out_path: Path) -> None:
    """Copies a model into one file including its weights; as `copy` above 2 GB, and in its errors."""
    if names_beside(path):
        model = onnx.load(path, load_external_data=False)
        read_apart(model, path)
        if fits(model):
            with writing(Path(out_path)) as beside:
                beside.write_bytes(model.SerializeToString(deterministic=True))
            return
    copy(path, out_path)


def names_beside(path: Path) -> list[str]:
    """The external weight files of a model, relative to its folder; an ArtifactError if one is not there."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors have no public base class
        raise ArtifactError(*damage(path)) from error
    names = sorted(_locations(model.graph))
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ArtifactError(
                f"{path} has weights in {name}, outside its folder.",
                "Save it again with its weights beside it (onnx.save with save_as_external_data=True).",
            )
        _beside(path, name)
    return names


def drop_stale(folder: Path) -> None:
    """Deletes our weight files to which no model of a folder refers."""
    try:
        named = {name for path in folder.glob("*.onnx") for name in names_beside(path)}
    except ArtifactError:  # an unreadable model may refer to any of them
        return
    for other in folder.iterdir():
        if _OURS.search(other.name) and other.name not in named:
            other.unlink()


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for inner in all_graphs(graph):
        yield from inner.initializer
        yield from (one.t for node in inner.node for one in node.attribute if one.HasField("t"))


def _locations(graph: onnx.GraphProto) -> set[str]:
    apart = (tensor for tensor in _tensors(graph) if tensor.data_location == TensorProto.EXTERNAL)
    entries = (entry for tensor in apart for entry in tensor.external_data)
    return {str(entry.value) for entry in entries if entry.key == "location" and entry.value}


def _beside(path: Path, name: str) -> Path:
    file = Path(path).parent / name
    if not file.is_file():
        raise ArtifactError(
            f"{path} has weights in {name}, which is not beside it.", "Copy both files together."
        )
    return file
