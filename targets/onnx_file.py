"""A reader of an ONNX file's nodes without the onnx package, which a board and a CI gate do not have.

It reads nodes with names, operators and tensors, the shapes of weights, inputs and outputs with their types,
and the names of external weight files, which belong to the model (torch's exporter writes model.onnx.data).
The file is protobuf; the numbers below are those of the fields in onnx.proto (ModelProto.graph is 7, and so
on), which never change. Everything else is skipped.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Tuple, Union

from .artifact import sha256_of
from .errors import ModelError

_GRAPH, _NODE, _INITIALIZER, _EXTERNAL = 7, 1, 5, 13
_ATTRIBUTE = 5
_HALVES = {10, 16}
"""TensorProto's FLOAT16 and BFLOAT16."""
_INPUT, _OUTPUT = 11, 12
# fmt: off
_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}
# fmt: on
"""TensorProto.DataType, with numpy's names."""


@dataclass(frozen=True)
class Node:
    """A node of the graph, as in the file."""

    name: str
    op_type: str
    inputs: Tuple[str, ...]
    outputs: Tuple[str, ...]


@dataclass(frozen=True)
class End:
    """An input or output of the graph. `shape` has -1 for a dynamic dimension; `dtype` is "" if unknown."""

    name: str
    dtype: str
    shape: Tuple[int, ...]


@dataclass(frozen=True)
class Nodes:
    """All nodes in the file's order, the shapes of weights by tensor name, and the ends of the graph."""

    nodes: Tuple[Node, ...]
    shapes: Dict[str, Tuple[int, ...]]
    half: bool = False
    """Whether a weight is in FP16 or BF16, or a node casts to it."""
    inputs: Tuple[End, ...] = ()
    """Without the initializers."""
    outputs: Tuple[End, ...] = ()

    @property
    def quantized(self) -> bool:
        """Whether it has Q/DQ nodes."""
        return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in self.nodes)

    def weight_of(self, node: Node) -> Tuple[int, ...]:
        """The shape of a node's weight, also behind a DequantizeLinear; () without a weight."""
        for name in node.inputs[1:] + node.inputs[:1]:
            if len(self.shapes.get(name, ())) > 1:
                return self.shapes[name]
            for maker in self.nodes:
                if name in maker.outputs and maker.op_type == "DequantizeLinear":
                    stored = self.shapes.get(maker.inputs[0], ())
                    if len(stored) > 1:
                        return stored
        return ()


def read_nodes(path: Path) -> Nodes:
    """Reads a model file; a ModelError if it is missing, or is not an ONNX file."""
    try:
        content = memoryview(Path(path).read_bytes())
    except OSError as error:
        what = f"{path} is a folder." if Path(path).is_dir() else f"There is no model at {path}."
        raise ModelError(what, "Check the path.") from error
    try:
        nodes = list(_messages(content, _GRAPH, _NODE))
        weights = list(_messages(content, _GRAPH, _INITIALIZER))
        shapes = {_text(one, 8): tuple(_numbers(one, 1)) for one in weights}
        types = {kind for one in weights for kind in _numbers(one, 2)}
        # Cast has one other attribute, `saturate`, which is 0 or 1.
        casts = [one for one in nodes if _text(one, 4) == "Cast"]
        types |= {
            kind for one in casts for value in _messages(one, _ATTRIBUTE) for kind in _numbers(value, 3)
        }
        inputs, outputs = (tuple(map(_end, _messages(content, _GRAPH, side))) for side in (_INPUT, _OUTPUT))
        found = Nodes(
            tuple(map(_node, nodes)),
            shapes,
            half=bool(types & _HALVES),
            inputs=tuple(end for end in inputs if end.name not in shapes),
            outputs=outputs,
        )
    except (ValueError, IndexError) as error:
        raise ModelError(*damage(path)) from error
    if not nodes:
        raise ModelError(f"{path} is not an ONNX file, or has no nodes.", "Export the model again.")
    return found


def files_of(path: Path) -> Tuple[Path, ...]:
    """The model's file, and its external weight files in the order of their names.

    Missing files are left out, and a file that is not ONNX has none: opening it raises the error.
    """
    path = Path(path)
    beside = [path.parent / name for name in weight_names(path)]
    return (path, *(each for each in beside if each.is_file()))


def weight_names(path: Path) -> Tuple[str, ...]:
    """The names of the external weight files, relative to the model's folder, as stored in the model.

    A file may be missing, or outside that folder. A file that is not ONNX has none.
    """
    try:
        content = memoryview(Path(path).read_bytes())
        names = {_location(one) for one in _messages(content, _GRAPH, _INITIALIZER)}
    except (OSError, ValueError, IndexError):
        return ()
    return tuple(sorted(names - {""}))


def model_sha256(path: Path) -> str:
    """The SHA-256 of a model's file; with external weights, that of the hashes of all its files."""
    hashes = [sha256_of(each) for each in files_of(path)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def damage(path: Path) -> Tuple[str, str]:
    """What a file is that cannot be read as ONNX, and the cure."""
    with Path(path).open("rb") as file:
        first = file.read(60).split(b"\n")[0]
    if first.startswith(b"version https://git-lfs"):
        return f"{path} is a pointer of Git LFS, not the model.", "Fetch the model: git lfs pull."
    if first and first.isascii() and first.decode().isprintable():
        return f"{path} is text, not an ONNX file: {first.decode()}", "Export or download the model again."
    return f"{path} is a truncated or damaged ONNX file.", "Export or copy the model again."


def _node(message: memoryview) -> Node:
    inputs, outputs = (tuple(_texts(message, field)) for field in (1, 2))
    return Node(_text(message, 3), _text(message, 4), inputs, outputs)


def _end(message: memoryview) -> End:
    """A ValueInfoProto: name 1, type 2 > tensor_type 1 > elem_type 1 and shape 2 > dim 1 > dim_value 1."""
    kinds = [kind for tensor in _messages(message, 2, 1) for kind in _numbers(tensor, 1)]
    sizes = [max(_numbers(size, 1), default=0) or -1 for size in _messages(message, 2, 1, 2, 1)]
    return End(_text(message, 1), _TYPES.get(kinds[0], "") if kinds else "", tuple(sizes))


def _location(message: memoryview) -> str:
    """The name of a weight's external file; empty where the weight is in the model's file."""
    pairs = {_text(entry, 1): _text(entry, 2) for entry in _messages(message, _EXTERNAL)}
    return pairs.get("location", "")


def _messages(message: memoryview, *path: int) -> Iterator[memoryview]:
    """The messages inside, by the numbers of their fields from outside in."""
    for field, value in fields(message):
        if field == path[0] and isinstance(value, memoryview):
            yield from _messages(value, *path[1:]) if path[1:] else (value,)


def _texts(message: memoryview, field: int) -> List[str]:
    return [bytes(value).decode("utf-8", "replace") for value in _messages(message, field)]


def _text(message: memoryview, field: int) -> str:
    """The text of a field, of which the last one counts; "" without one."""
    return "".join(_texts(message, field)[-1:])


def _numbers(message: memoryview, wanted: int) -> List[int]:
    """The integers of a field, one by one or packed."""
    found: List[int] = []
    for field, value in fields(message):
        if field == wanted and isinstance(value, int):
            found.append(value)
        elif field == wanted and isinstance(value, memoryview):
            at = 0
            while at < len(value):
                number, at = varint(value, at)
                found.append(number)
    return found


def fields(message: memoryview) -> Iterator[Tuple[int, Union[int, memoryview]]]:
    """The fields of a protobuf message in order: their numbers, and a varint's number or the bytes.

    Raises:
        ValueError, IndexError: the bytes are not a message, or are truncated.
    """
    at = 0
    while at < len(message):
        key, at = varint(message, at)
        kind = key & 7
        if kind == 0:
            number, at = varint(message, at)
            yield key >> 3, number
            continue
        if kind == 2:
            size, at = varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + size > len(message):
            raise ValueError("truncated")
        yield key >> 3, message[at : at + size]
        at += size


def varint(data: memoryview, at: int) -> Tuple[int, int]:
    """The number at an offset, and the offset after it."""
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
        if shift > 63:
            raise ValueError("not a number")
