from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper
from support.int8_files import to_qdq
from support.onnx_files import read_weights, sparse_weight, weights_model, write_weights

from deadweight.export.coding.container import pack, pack_file
from deadweight.export.onnx_graph.external_data import write_apart
from deadweight.targets.coded.container import unpack, unpack_file
from deadweight.targets.errors import ArtifactError, ModelError
from deadweight.targets.protobuf import to_varint

Nets = Callable[[str], Any]
PATH = Path("model.onnx")


def ways(data: bytes) -> dict[str, str]:
    return {name: way for name, _, _, way in pack(data, PATH).tensors}


@pytest.mark.parametrize(
    ("name", "dialect"),
    [
        ("mlp", "float"),
        ("depthwise", "x86"),
        ("residual", "tensorrt"),
    ],
)
def test_every_network_comes_back_byte_for_byte_and_smaller(
    net: Nets, name: str, dialect: Any, tmp_path: Path
) -> None:
    path = net(name).path
    if dialect != "float":
        to_qdq(path, net(name).ranges, tmp_path / "q.onnx", dialect=dialect)
        path = tmp_path / "q.onnx"
    packed = pack_file(path, tmp_path / "m.dwz")
    assert unpack_file(tmp_path / "m.dwz", tmp_path / "back.onnx").read_bytes() == path.read_bytes()
    assert len(packed.data) == (tmp_path / "m.dwz").stat().st_size
    assert len(packed.data) < min(path.stat().st_size, len(zlib.compress(path.read_bytes(), 9)))


def test_few_values_and_zeros_are_reported_as_such(tmp_path: Path) -> None:
    weights = {
        "sparse": sparse_weight(200, 300, 0.05, values=16),
        "clustered": np.round(np.random.default_rng(1).normal(size=(100, 100)) + 4).astype(np.float32),
        "free": np.random.default_rng(2).normal(size=(50, 50)).astype(np.float32),
    }
    weights["again"] = weights["free"].copy()
    data = write_weights(tmp_path / "m.onnx", weights).read_bytes()
    packed = pack(data, PATH)
    assert unpack(packed.data) == data
    found = {name: (size, way) for name, _, size, way in packed.tensors}
    assert found["sparse"][1] in ("mask", "gaps", "book")  # zero may be one more entry of the book
    assert (
        found["sparse"][0] < 1.05 * 60_000 * (0.31 + 0.05 * 3) / 8
    )  # places at their entropy, 3 bits a value
    assert found["clustered"][1] == "book"
    assert found["free"][1] == "planes"
    assert found["again"][1] == "same"
    assert found["again"][0] < 12


def test_layers_that_share_values_share_a_code_book(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=200).astype(np.float32)
    generator = np.random.default_rng(1)
    drawn = {f"w{layer}": values[generator.integers(0, 200, (60, 60))] for layer in range(4)}
    own = {name: (array + np.float32(layer)) for layer, (name, array) in enumerate(drawn.items())}
    shared, apart = (
        len(pack(write_weights(tmp_path / "m.onnx", each).read_bytes(), PATH).data) for each in (drawn, own)
    )
    assert shared < apart - 3 * 200 * 2


def test_a_code_book_serves_numbers_of_its_own_width_alone(tmp_path: Path) -> None:
    weights = {"wide": np.zeros((4, 16), np.float32), "narrow": np.zeros((8, 16), np.float16)}
    data = write_weights(tmp_path / "m.onnx", weights).read_bytes()
    assert unpack(pack(data, PATH).data) == data


def test_a_pruned_input_costs_next_to_nothing(tmp_path: Path) -> None:
    """Rows and columns are classes: what is known of a column is not repeated in each row."""
    weight = sparse_weight(256, 256, 1.0)
    weight[:, 64:] = 0
    weight[:, :64][weight[:, :64] == 0] = 0.5
    shuffled = weight[:, np.random.default_rng(0).permutation(256)]
    data = write_weights(tmp_path / "m.onnx", {"w": shuffled}).read_bytes()
    dense = write_weights(tmp_path / "d.onnx", {"w": weight[:, :64]}).read_bytes()
    assert len(pack(data, PATH).data) < len(pack(dense, PATH).data) + 256


def test_numbers_in_typed_fields_and_in_constant_nodes_are_packed_too(tmp_path: Path) -> None:
    weight = sparse_weight(80, 80, 0.1)
    typed = write_weights(tmp_path / "t.onnx", {"w": weight}, raw=False).read_bytes()
    node = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(weight, "w"))
    out = helper.make_tensor_value_info("c", TensorProto.FLOAT, weight.shape)
    model = helper.make_model(helper.make_graph([node], "g", [], [out]))
    for data in (typed, model.SerializeToString()):
        packed = pack(data, PATH)
        assert unpack(packed.data) == data
        assert len(packed.data) < len(data) / 5
        assert len(packed.tensors) == 1


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float16, np.int8, np.uint8, np.int16, np.int32, np.int64, np.bool_]
)
def test_every_type_comes_back(dtype: Any, tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).normal(0, 20, (40, 30))
    data = write_weights(tmp_path / "m.onnx", {"w": drawn.astype(dtype)}).read_bytes()
    assert unpack(pack(data, PATH).data) == data


def test_nan_infinity_and_negative_zero_come_back(tmp_path: Path) -> None:
    weight = sparse_weight(40, 40, 0.3)
    weight[0, :4] = [np.nan, np.inf, -np.inf, -0.0]
    data = write_weights(tmp_path / "m.onnx", {"w": weight}).read_bytes()
    assert unpack(pack(data, PATH).data) == data


TENSORS = hnp.arrays(
    dtype=st.sampled_from([np.float32, np.float16, np.int8, np.int32]),
    shape=hnp.array_shapes(min_dims=0, max_dims=4, max_side=10),
    elements=st.integers(-100, 100),
    fill=st.just(0),
)


@settings(max_examples=25, deadline=None)
@given(TENSORS, TENSORS)
def test_any_tensors_come_back(one: Any, other: Any) -> None:
    data = weights_model({"a": one, "b": other}).SerializeToString()
    assert unpack(pack(data, PATH).data) == data


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(TENSORS, TENSORS)
def test_a_thousand_models_come_back(one: Any, other: Any) -> None:
    data = weights_model({"a": one, "b": other}).SerializeToString()
    assert unpack(pack(data, PATH).data) == data


@pytest.fixture
def small(tmp_path: Path) -> bytes:
    """A packed file with a code book, a mask, planes and a repeated tensor."""
    weights = {"w": sparse_weight(20, 30, 0.2, values=4), "b": np.linspace(0, 1, 20, dtype=np.float32)}
    weights["again"] = weights["b"].copy()
    return pack(write_weights(tmp_path / "m.onnx", weights).read_bytes(), PATH).data


def test_every_flip_of_every_byte_is_refused(small: bytes) -> None:
    for place in range(len(small)):
        for flip in range(1, 256, 1 if place < 48 else 42):
            wrong = bytearray(small)
            wrong[place] ^= flip
            with pytest.raises(ArtifactError):
                unpack(bytes(wrong))


def test_every_truncation_and_every_longer_file_is_refused(small: bytes) -> None:
    for length in range(len(small)):
        with pytest.raises(ArtifactError):
            unpack(small[:length])
    with pytest.raises(ArtifactError):
        unpack(small + b"\0")


def test_behind_a_right_checksum_damage_is_an_error_with_a_cure_or_another_model(small: bytes) -> None:
    """Who can write a checksum can write anything; nothing of it may crash, hang or grow."""
    refused = 0
    for place in range(36, len(small)):
        body = bytearray(small[36:])
        body[place - 36] ^= (0x01, 0x40, 0xFF)[place % 3]
        try:
            assert len(unpack(sealed(bytes(body)))) < 1 << 24
        except ArtifactError:
            refused += 1
    assert refused > (len(small) - 36) / 2


def sealed(body: bytes) -> bytes:
    return b"DWZ1" + hashlib.sha256(body).digest() + body


def bomb(total: int, *rest: bytes) -> bytes:
    empty = zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    head = [to_varint(total), to_varint(0), to_varint(len(empty)), empty, to_varint(0)]
    return sealed(b"".join([*head, *rest]))


def test_bombs_are_refused_before_they_grow() -> None:
    constant = bytes([0, 0, 0, 1, *to_varint(1 << 28), 0])
    many = to_varint(1) + to_varint(0) + to_varint(1 << 28) + b"\x01" + constant
    cases = {
        "allowed for this file": bomb(1 << 28, many),
        "larger than the model": bomb(1 << 20, to_varint(1), bytes([0, *to_varint(1 << 19), 4])),
        "numbers of a tensor": bomb(1 << 20, to_varint(1), bytes([0]), to_varint(1 << 40), b"\x01"),
        "number of code books": sealed(
            b"".join([*map(to_varint, (9, 0, 2)), b"\x03\x00", to_varint(1 << 20)])
        ),
        "the skeleton": sealed(deflated(1 << 26, declared=1 << 20)),
    }
    for words, data in cases.items():
        with pytest.raises(ArtifactError, match=words):
            unpack(data)


def deflated(size: int, *, declared: int) -> bytes:
    deflating = zlib.compressobj(9, zlib.DEFLATED, -15)
    held = deflating.compress(bytes(size)) + deflating.flush()
    return b"".join([to_varint(declared), to_varint(declared), to_varint(len(held)), held])


def test_a_limit_of_the_caller_holds(small: bytes) -> None:
    size = len(unpack(small))
    assert len(unpack(small, most=size)) == size
    with pytest.raises(ArtifactError, match="are allowed"):
        unpack(small, most=size - 1)


def test_a_board_unpacks_with_numpy_alone(small: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.dwz").write_bytes(small)
    program = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxruntime', 'scipy', 'typer'): sys.modules[name] = None\n"
        "from deadweight.targets.agent import main\n"
        "sys.exit(main(['unpack', *sys.argv[1:]]))\n"
    )
    asked = [sys.executable, "-c", program, str(tmp_path / "m.dwz"), str(tmp_path / "back.onnx")]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["result"]["bytes"] == len(unpack(small))
    assert (tmp_path / "back.onnx").read_bytes() == unpack(small)
    (tmp_path / "m.dwz").write_bytes(small[:-1])
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "damaged" in json.loads(done.stdout)["error"]["what"]


def test_other_files_are_refused_with_a_cure(tmp_path: Path) -> None:
    (tmp_path / "a.dwz").write_bytes(b"PK\x03\x04 something")
    with pytest.raises(ArtifactError, match=r"a\.dwz: This is not a \.dwz file"):
        unpack_file(tmp_path / "a.dwz", tmp_path / "a.onnx")
    with pytest.raises(ArtifactError, match="cannot be read"):
        unpack_file(tmp_path / "none.dwz", tmp_path / "a.onnx")
    with pytest.raises(ModelError, match="cannot be read"):
        pack_file(tmp_path / "none.onnx", tmp_path / "a.dwz")
    for words in (b"PK\x03\x04 something", b"", bytes([0x3A, 200]), bytes(range(256))):
        with pytest.raises(ModelError, match="ONNX file"):
            pack(words, tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.dwz"]


def test_a_file_with_its_weights_beside_it_is_refused_with_a_cure(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "m.onnx", {"w": sparse_weight(80, 80, 0.5)})
    model = onnx.load(path)
    write_apart(model, path)
    with pytest.raises(ModelError, match="in another file") as caught:
        pack_file(path, tmp_path / "m.dwz")
    assert "one file" in caught.value.cure
    assert not (tmp_path / "m.dwz").exists()


def test_read_weights_reads_what_write_model_wrote(tmp_path: Path) -> None:
    weight = sparse_weight(5, 6, 0.5)
    assert np.array_equal(read_weights(write_weights(tmp_path / "m.onnx", {"w": weight}))["w"], weight)
