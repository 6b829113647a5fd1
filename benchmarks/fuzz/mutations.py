"""Changes of files, by what they are: bytes, lines, JSON, an ONNX file's fields, an archive's members."""

from __future__ import annotations

import contextlib
import io
import json
import re
import struct
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import onnx

OUTSIDE = "../outside/secret"  # a file beside the folder of a try, which nothing may read
WORDS = (
    *("", " ", "x", "::error::planted", "##[error]planted", "\n::warning::planted", "\x1b[31mred", "a\x00b"),
    *(
        "\u202egnp",
        "\ud800",
        OUTSIDE,
        "/",
        "..",
        ".",
        "-",
        "~",
        "*",
        "a" * 300,
        "[bold]",
        "%s{0}",
        "nan",
        "Infinity",
    ),
    *("-1", "0", "9" * 5000, "1e999", "0x10", "1_000", "true", "null", "import os", "model.onnx", "$(id)"),
)
NUMBERS = (
    *(
        0,
        1,
        -1,
        2,
        3,
        7,
        127,
        255,
        256,
        65536,
        2**31 - 1,
        -(2**31),
        2**32,
        2**53 + 1,
        2**63 - 1,
        -(2**63),
        2**64,
    ),
    *(0.5, -0.0, 1e-310, 1e308, 1e999, float("nan"), 10**400),
)
VALUES: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"": {}}, [None], {"schema": 1}, *NUMBERS, *WORDS)


def changed(name: str, data: bytes, random: Random) -> bytes:
    """A file's bytes with one to four changes, most of them within its format."""
    ways = _BY_ENDING.get(name.rpartition(".")[2], (_bytes,))
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        way = random.choice((*ways, *ways, _bytes))
        with contextlib.suppress(Exception):
            data = way(data, random)  # what an earlier change broke is left as it is
    return data


def _bytes(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data) + 1)
    end = min(len(data), at + random.choice((1, 1, 2, 4, 8, 64, 1024)))
    new = random.choice(
        (
            lambda: b"",
            lambda: random.randbytes(end - at),
            lambda: data[at:end] * 2,
            lambda: random.choice((b"\x00", b"\xff", b"\x7f", b"\x80")) * (end - at),
            lambda: struct.pack("<Q", random.choice(NUMBERS[:16]) % 2**64),
            lambda: bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 : end] if at < end else b"",
        )
    )()
    return data[:at] if random.random() < 0.1 else data[:at] + new + data[end:]


def _text(data: bytes, random: Random) -> bytes:
    """A word, a number or a line is replaced, taken away or doubled."""
    text = data.decode("utf-8", "surrogateescape")
    if random.random() < 0.3:
        lines = text.splitlines(keepends=True)
        at = random.randrange(len(lines))
        lines[at : at + 1] = random.choice(([], lines[at : at + 1] * 2, [random.choice(WORDS) + "\n"]))
        return "".join(lines).encode("utf-8", "surrogatepass")
    spot = random.choice(list(re.finditer(r"\w+|[^\w\s]+", text)))
    new = random.choice((*WORDS, *map(str, NUMBERS[:-1]), "[" * 3000, "]", '"', "'", "{", "=", "\n"))
    text = text[: spot.start()] + new + text[spot.end() :]
    return text.encode("utf-8", "surrogateescape" if new != "\ud800" else "replace")


def _json(data: bytes, random: Random) -> bytes:
    return json.dumps(_other(json.loads(data), random)).encode()


def _json_line(data: bytes, random: Random) -> bytes:
    lines = data.splitlines()
    at = random.randrange(len(lines))
    lines[at] = _json(lines[at], random)
    return b"\n".join(lines) + b"\n"


def _other(value: Any, random: Random) -> Any:
    """A value of JSON with one node replaced, taken away, renamed or wrapped."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node if isinstance(node, dict) else range(len(node))):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    if not isinstance(value, (dict, list)) or not value or random.random() < 0.02:
        return random.choice(VALUES)
    walk(value)
    node, key = random.choice(places)
    act = random.random()
    if act < 0.6:
        node[key] = random.choice(VALUES)
    elif act < 0.75:
        del node[key]
    elif act < 0.85:
        node[key] = [node[key]]
    elif act < 0.9:
        for _ in range(2000):
            node[key] = [node[key]]
    elif isinstance(node, dict):
        node[random.choice(WORDS)] = node[key]
    else:
        node.insert(key, random.choice(node))
    return value


def _onnx(data: bytes, random: Random) -> bytes:
    """A field of one message, chosen at random, gets another value, is cleared, or doubled."""
    model = onnx.ModelProto.FromString(data)
    messages: list[Any] = []

    def walk(message: Any) -> None:
        messages.append(message)
        for field, value in message.ListFields():
            if field.message_type is not None:
                for each in value if field.is_repeated else [value]:
                    walk(each)

    walk(model)
    message = random.choice(messages)
    field = random.choice(message.DESCRIPTOR.fields)
    held = getattr(message, field.name)
    if random.random() < 0.2:
        message.ClearField(field.name)
    elif field.message_type is not None:
        same = [one for one in messages if field.message_type == one.DESCRIPTOR]
        data = random.choice(same).SerializeToString() if same and random.random() < 0.8 else b""
        (held.add() if field.is_repeated else held).ParseFromString(data)  # may be one that holds this one
    else:
        value = _fitting(field, random, model)
        if not field.is_repeated:
            setattr(message, field.name, value)
        elif held and random.random() < 0.7:
            held[random.randrange(len(held))] = value
        else:
            held.append(value)
    return bytes(model.SerializeToString())


def _fitting(field: Any, random: Random, model: onnx.ModelProto) -> Any:
    kind = field.cpp_type
    if kind == field.CPPTYPE_STRING:
        names = [name for node in model.graph.node for name in (*node.output, node.op_type)]
        word = random.choice((*WORDS, *names, *names)).replace("\ud800", "?")
        return word.encode() if field.type == field.TYPE_BYTES else word
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return float(random.choice(NUMBERS[:-1]))
    bits = 32 if kind in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32, field.CPPTYPE_ENUM) else 64
    number = random.choice((*map(int, NUMBERS[:17]), random.randrange(30), random.randrange(30)))
    number %= 2**bits
    signed = kind in (field.CPPTYPE_INT32, field.CPPTYPE_INT64, field.CPPTYPE_ENUM)
    return number - 2**bits if signed and number >= 2 ** (bits - 1) else number


def _archive(data: bytes, random: Random) -> bytes:
    """A member is renamed, taken away, doubled, or its bytes change."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        held = [(name, archive.read(name)) for name in archive.namelist()]
    at = random.randrange(len(held))
    name, body = held[at]
    act = random.random()
    if act < 0.2:
        held[at] = (random.choice(WORDS).replace("\ud800", "?") or "x", body)
    elif act < 0.3:
        del held[at]
    elif act < 0.6:
        size = random.choice((b"(-1,)", b"(999999999999, 9)", b"()", b"(0,)", b"(1, 4)", b"'x'"))
        held[at] = (name, re.sub(rb"\([0-9, ]*\)", size, body, count=1))
    elif act < 0.7:
        kind = random.choice((b"'|O'", b"'<f2'", b"'<i8'", b"'<U9'", b"'<c16'", b"'|b1'", b"[('a', '<f4')]"))
        held[at] = (name, re.sub(rb"'[<|>][a-z][0-9]+'", kind, body, count=1))
    else:
        held[at] = (name, _bytes(body, random))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, body in held:
            archive.writestr(name, body)
    return made.getvalue()


def _tensors(data: bytes, random: Random) -> bytes:
    """The JSON that a safetensors file begins with."""
    (size,) = struct.unpack("<Q", data[:8])
    head = _json(data[8 : 8 + size], random)
    return struct.pack("<Q", len(head)) + head + data[8 + size :]


_BY_ENDING: dict[str, tuple[Callable[[bytes, Random], bytes], ...]] = {
    "onnx": (_onnx, _onnx, _onnx),
    "json": (_json, _json, _text),
    "jsonl": (_json_line, _text),
    "toml": (_text,),
    "txt": (_text,),
    "npz": (_archive,),
    "pt": (_archive,),
    "safetensors": (_tensors,),
}
