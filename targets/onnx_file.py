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
from .protobuf import fields, varint

_GRAPH, _NODE, _INITIALIZER, _EXTERNAL = 7, 1, 5, 13
_ATTRIBUTE = 5
_HALVES = (10, 16)
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
class Nodes:
    """All nodes in the file's order, and the shapes of weights by tensor name."""

    nodes: Tuple[Node, ...]
    shapes: Dict[str, Tuple[int, ...]]
    half: bool = False
    """Whether a weight is in FP16 or BF16, or a node casts to it."""

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


@dataclass(frozen=True)
class End:
    """An input or output of the graph. `shape` has -1 for a dynamic dimension; `dtype` is "" if unknown."""

    name: str
    dtype: str
    shape: Tuple[int, ...]


def read_ends(path: Path) -> Tuple[Tuple[End, ...], Tuple[End, ...]]:
    """The inputs, without initializers, and the outputs, in the file's order."""
    held = read_nodes(path).shapes
    ends: Dict[int, List[End]] = {_INPUT: [], _OUTPUT: []}
    try:
        for graph in _messages(memoryview(Path(path).read_bytes()), _GRAPH):
            for side, found in ends.items():
                found += [_end(one) for one in _messages(graph, side)]
    except (ValueError, IndexError) as error:
        raise ModelError(*damage(path)) from error
    return tuple(end for end in ends[_INPUT] if end.name not in held), tuple(ends[_OUTPUT])


def read_nodes(path: Path) -> Nodes:
    """Reads the nodes of a model file; a ModelError if it is missing, or is not an ONNX file."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        what = f"{path} is a folder." if Path(path).is_dir() else f"There is no model at {path}."
        raise ModelError(what, "Check the path.") from error
    nodes: List[Node] = []
    shapes: Dict[str, Tuple[int, ...]] = {}
    half = False
    try:
        for graph in _messages(memoryview(content), _GRAPH):
            for one in _messages(graph, _NODE):
                nodes.append(_node(one))
                half = half or (nodes[-1].op_type == "Cast" and _casts_to_half(one))
            for one in _messages(graph, _INITIALIZER):
                half = half or any((2, kind) in _numbers(one) for kind in _HALVES)
                shapes.update([_initializer(one)])
    except (ValueError, IndexError) as error:
        raise ModelError(*damage(path)) from error
    if not nodes:
        raise ModelError(f"{path} is not an ONNX file, or has no nodes.", "Export the model again.")
    return Nodes(tuple(nodes), shapes, half)


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
    names = set()
    try:
        for graph in _messages(memoryview(Path(path).read_bytes()), _GRAPH):
            names |= {_location(one) for one in _messages(graph, _INITIALIZER)}
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
    texts: Dict[int, List[str]] = {1: [], 2: [], 3: [], 4: []}
    for field, value in _fields(message):
        if field in texts and isinstance(value, memoryview):
            texts[field].append(_text(value))
    name, kind = ("".join(texts[field][-1:]) for field in (3, 4))
    return Node(name, kind, inputs=tuple(texts[1]), outputs=tuple(texts[2]))


def _casts_to_half(node: memoryview) -> bool:
    # Cast has one other attribute, `saturate`, which is 0 or 1.
    return any((3, kind) in _numbers(one) for one in _messages(node, _ATTRIBUTE) for kind in _HALVES)


def _numbers(message: memoryview) -> List[Tuple[int, int]]:
    return [(field, value) for field, value in _fields(message) if isinstance(value, int)]


def _initializer(message: memoryview) -> Tuple[str, Tuple[int, ...]]:
    sizes: List[int] = []
    name = ""
    for field, value in _fields(message):
        if field == 1 and isinstance(value, int):
            sizes.append(value)
        elif field == 1 and isinstance(value, memoryview):  # packed
            at = 0
            while at < len(value):
                size, at = varint(value, at)
                sizes.append(size)
        elif field == 8 and isinstance(value, memoryview):
            name = _text(value)
    return name, tuple(sizes)


def _end(message: memoryview) -> End:
    """A ValueInfoProto: name 1, type 2 > tensor_type 1 > elem_type 1 and shape 2 > dim 1 > dim_value 1."""
    name, kind = "", 0
    sizes: List[int] = []
    for field, value in _fields(message):
        if field == 1 and isinstance(value, memoryview):
            name = _text(value)
    for tensor in (one for type_ in _messages(message, 2) for one in _messages(type_, 1)):
        kind = next((value for field, value in _fields(tensor) if field == 1 and isinstance(value, int)), 0)
        for size in (one for shape in _messages(tensor, 2) for one in _messages(shape, 1)):
            known = [value for field, value in _fields(size) if field == 1 and isinstance(value, int)]
            sizes.append(known[0] if known and known[0] > 0 else -1)
    return End(name, _TYPES.get(kind, ""), tuple(sizes))


def _location(message: memoryview) -> str:
    """The name of a weight's external file; empty where the weight is in the model's file."""
    for entry in _messages(message, _EXTERNAL):
        pair = {field: _text(value) for field, value in _fields(entry) if isinstance(value, memoryview)}
        if pair.get(1) == "location":
            return pair.get(2, "")
    return ""


def _text(value: memoryview) -> str:
    return bytes(value).decode("utf-8", "replace")


def _messages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    for field, value in _fields(message):
        if field == wanted and isinstance(value, memoryview):
            yield value


def _fields(message: memoryview) -> Iterator[Tuple[int, Union[int, memoryview]]]:
    for field, number, start, stop in fields(message, 0, len(message)):
        yield field, message[start:stop] if number is None else number
