"""Models larger than one file may be: weights in a file of their own beside the graph.

Protobuf holds at most 2 GB in one message, so neither a file nor a copy through bytes can be larger. ONNX
lets a weight name a place in another file instead. Ours is called after the hash of what it holds, so that
the hash of the small file speaks for both, a new version never overwrites the weights of the old one, and
damage is found.
"""

from __future__ import annotations

import hashlib
import math
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

import onnx
from onnx import TensorProto, external_data_helper, helper

from ...targets.artifact import sha256_of, writing
from ...targets.errors import ArtifactError

INLINE_BYTES = 2**31 - 2**20  # protobuf's limit on one message, less what a graph without weights may take
SMALL = 1024  # numbers; what a shape is computed from stays in the graph, for inference looks at its values
_OURS = re.compile(r"\.([0-9a-f]{16})\.weights$")
_ALIGNMENT = 4096  # a runtime may map the file into memory


def weight_bytes(model: onnx.ModelProto) -> int:
    """What the constants of a model take."""
    return sum(len(tensor.raw_data) or 8 * math.prod(tensor.dims) for tensor in model.graph.initializer)


def fits(model: onnx.ModelProto) -> bool:
    """Whether the model may be one message."""
    return weight_bytes(model) <= INLINE_BYTES


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that lacks the numbers of its constants; those of shapes are kept."""
    copy = onnx.ModelProto()
    for source, to, but in ((model, copy, "graph"), (model.graph, copy.graph, "initializer")):
        for field, value in source.ListFields():
            if isinstance(value, (int, str)):
                setattr(to, field.name, value)
            elif field.name != but:
                getattr(to, field.name).extend(value)
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= SMALL:
            copy.graph.initializer.append(tensor)
        else:
            copy.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    return copy


def whole_copy(model: onnx.ModelProto, *, but: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of everything but some constants, however large, that shares nothing with the original."""
    copy = without_weights(model)
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name not in but)
    return copy


def for_inference(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy for shape inference: constants without their numbers are inputs, of which it asks none."""
    light = without_weights(model)
    given = {value.name for value in light.graph.input}
    del light.graph.initializer[:]
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= SMALL:
            light.graph.initializer.append(tensor)
        elif tensor.name not in given:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            light.graph.input.append(value)
    return light


def write_apart(model: onnx.ModelProto, path: Path) -> int:
    """Writes a model with its weights in a file beside it, each whole or not at all; returns their bytes."""
    light = without_weights(model)
    places: dict[str, tuple[int, int]] = {}
    digest = hashlib.sha256()
    waiting = Path(path).with_name(f"{Path(path).name}.weights")
    with writing(waiting) as beside, beside.open("wb") as file:
        for tensor in model.graph.initializer:
            if math.prod(tensor.dims) <= SMALL:
                continue
            offset = file.tell()
            gap = bytes(-offset % _ALIGNMENT)
            value = bytes(tensor.raw_data) or onnx.numpy_helper.to_array(tensor).tobytes()
            for part in (gap, value):
                file.write(part)
                digest.update(part)
            places[tensor.name] = (offset + len(gap), len(value))
    name = f"{Path(path).name}.{digest.hexdigest()[:16]}.weights"
    waiting.replace(waiting.with_name(name))
    for tensor in light.graph.initializer:
        if tensor.name in places:
            offset, length = places[tensor.name]
            tensor.data_location = TensorProto.EXTERNAL
            for key, told in (("location", name), ("offset", offset), ("length", length)):
                tensor.external_data.add(key=key, value=str(told))
    with writing(Path(path)) as beside:
        size = beside.write_bytes(light.SerializeToString(deterministic=True))
    drop_weights(Path(path), but=name)
    return size + Path(path).with_name(name).stat().st_size


def drop_weights(path: Path, *, but: str = "") -> None:
    """Removes the files of weights that an earlier model at this path had, all but one."""
    for old in path.parent.glob(f"{path.name}.*.weights"):
        if _OURS.search(old.name) and old.name != but:
            old.unlink()


def read_apart(model: onnx.ModelProto, path: Path) -> list[Path]:
    """Reads the weights that a file names beside itself into the model; returns the files that hold them.

    Raises:
        ArtifactError: one of those files is missing, cut short, or not what was written.
    """
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
            tensor.ClearField("data_location")  # as it was before it was written
    except Exception as error:  # its errors share no public base class
        raise ArtifactError(
            f"The weights of {path} cannot be read: {error}.", "Export or copy both files again."
        ) from error
    return files


def copy(path: Path, out_path: Path) -> None:
    """Copies a model, and the weights beside it under their own names; the model appears last.

    Raises:
        ArtifactError: the weights are missing, lie outside of the model's folder, or cannot be written.
    """
    for name in (*names_beside(path), ""):
        source = Path(path).parent / name if name else Path(path)
        with writing(Path(out_path).parent / name if name else Path(out_path)) as beside:
            shutil.copyfile(source, beside)


def copy_as_one(path: Path, out_path: Path) -> None:
    """Copies a model into one file, its weights in it, for whoever takes a single file; above 2 GB as `copy`.

    Raises:
        ArtifactError: as `copy`.
    """
    if names_beside(path):
        model = onnx.load(path, load_external_data=False)
        read_apart(model, path)
        if fits(model):
            with writing(Path(out_path)) as beside:
                beside.write_bytes(model.SerializeToString(deterministic=True))
            return
    copy(path, out_path)


def names_beside(path: Path) -> list[str]:
    """The files, relative to its folder, in which a model keeps weights.

    Raises:
        ArtifactError: the model cannot be read, or one of these is missing or not in its folder.
    """
    try:
        held = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors share no public base class
        raise ArtifactError(
            f"{path} is not a whole ONNX file: {error}.", "Export or copy it again."
        ) from error
    names = sorted(_locations(held.graph))
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ArtifactError(
                f"{path} keeps its weights in {name}, outside of its own folder.",
                "Save it again with its weights beside it (onnx.save with save_as_external_data=True).",
            )
        _beside(path, name)
    return names


def drop_stale(folder: Path) -> None:
    """Removes files of weights, named as we name them, that no model of a folder names any more."""
    try:
        named = {name for path in folder.glob("*.onnx") for name in names_beside(path)}
    except ArtifactError:  # another's model that cannot be read may name any of them
        return
    for other in folder.iterdir():
        if _OURS.search(other.name) and other.name not in named:
            other.unlink()


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)


def _locations(graph: onnx.GraphProto) -> set[str]:
    apart = (tensor for tensor in _tensors(graph) if tensor.data_location == TensorProto.EXTERNAL)
    entries = (entry for tensor in apart for entry in tensor.external_data)
    return {str(entry.value) for entry in entries if entry.key == "location" and entry.value}


def _beside(path: Path, name: str) -> Path:
    file = Path(path).parent / name
    if not file.is_file():
        raise ArtifactError(
            f"{path} keeps its weights in {name}, which is not beside it.", "Copy both files together."
        )
    return file
