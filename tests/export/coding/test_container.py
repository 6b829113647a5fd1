from __future__ import annotations

import json
import lzma
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

from deadweight.export.coding.container import pack, pack_file, xz
from deadweight.export.onnx_graph.external_data import write_apart
from deadweight.targets.coded.container import FILLER, HEAD, MAGIC, unpack, unpack_file
from deadweight.targets.errors import ArtifactError, ModelError

Nets = Callable[[str], Any]
PATH = Path("model.onnx")


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
    size = pack_file(path, tmp_path / "m.dwz")
    assert unpack_file(tmp_path / "m.dwz", tmp_path / "back.onnx").read_bytes() == path.read_bytes()
    assert size == (tmp_path / "m.dwz").stat().st_size
    assert size < min(path.stat().st_size, len(zlib.compress(path.read_bytes(), 9)))


def packed_size(folder: Path, **weights: Any) -> int:
    data = write_weights(folder / "m.onnx", weights).read_bytes()
    packed = pack(data, PATH)
    assert unpack(packed) == data
    return len(packed)


def test_pruned_weights_of_few_values_take_little_more_than_their_entropy(tmp_path: Path) -> None:
    """Of 60,000 weights 5 % are left, with 16 values: 0.29 bits for each place, and 4 for each value."""
    size = packed_size(tmp_path, w=sparse_weight(200, 300, 0.05, values=16))
    assert size < 1.08 * 60_000 * (0.29 + 0.05 * 4) / 8 + 256


def test_weights_of_few_values_take_little_more_than_their_entropy(tmp_path: Path) -> None:
    values = np.round(np.random.default_rng(1).normal(size=(200, 200)) + 4).astype(np.float32)
    shares = np.unique(values, return_counts=True)[1] / values.size
    assert packed_size(tmp_path, w=values) < 1.15 * -(shares * np.log2(shares)).sum() * 40_000 / 8 + 256


def test_a_repeated_tensor_costs_next_to_nothing(tmp_path: Path) -> None:
    free = np.random.default_rng(2).normal(size=(50, 50)).astype(np.float32)
    assert packed_size(tmp_path, a=free, b=free.copy()) < packed_size(tmp_path, a=free) + 100


def test_zeros_alone_are_packed_too(tmp_path: Path) -> None:
    assert packed_size(tmp_path, wide=np.zeros((4, 16), np.float32), narrow=np.zeros(4096, np.float16)) < 400


def test_numbers_in_typed_fields_and_in_constant_nodes_are_packed_too(tmp_path: Path) -> None:
    weight = sparse_weight(80, 80, 0.1)
    typed = write_weights(tmp_path / "t.onnx", {"w": weight}, raw=False).read_bytes()
    node = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(weight, "w"))
    out = helper.make_tensor_value_info("c", TensorProto.FLOAT, weight.shape)
    model = helper.make_model(helper.make_graph([node], "g", [], [out]))
    for data in (typed, model.SerializeToString()):
        packed = pack(data, PATH)
        assert unpack(packed) == data
        assert len(packed) < len(data) / 5


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float16, np.int8, np.uint8, np.int16, np.int32, np.int64, np.bool_]
)
def test_every_type_comes_back(dtype: Any, tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).normal(0, 20, (40, 30))
    data = write_weights(tmp_path / "m.onnx", {"w": drawn.astype(dtype)}).read_bytes()
    assert unpack(pack(data, PATH)) == data


def test_nan_infinity_and_negative_zero_come_back(tmp_path: Path) -> None:
    weight = sparse_weight(40, 40, 0.3)
    weight[0, :4] = [np.nan, np.inf, -np.inf, -0.0]
    data = write_weights(tmp_path / "m.onnx", {"w": weight}).read_bytes()
    assert unpack(pack(data, PATH)) == data


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
    assert unpack(pack(data, PATH)) == data


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(TENSORS, TENSORS)
def test_a_thousand_models_come_back(one: Any, other: Any) -> None:
    data = weights_model({"a": one, "b": other}).SerializeToString()
    assert unpack(pack(data, PATH)) == data


@pytest.fixture
def small(tmp_path: Path) -> bytes:
    """A packed file with gaps, a code book, and planes."""
    weights = {"w": sparse_weight(20, 30, 0.2, values=4), "b": np.linspace(0, 1, 20, dtype=np.float32)}
    weights["again"] = weights["b"].copy()
    return pack(write_weights(tmp_path / "m.onnx", weights).read_bytes(), PATH)


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
    content = lzma.decompress(small)
    refused = 0
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= (0x01, 0x40, 0xFF)[place % 3]
        try:
            assert len(unpack(xz(bytes(changed)))) < 1 << 24
        except ArtifactError:
            refused += 1
    assert refused > 50


def bomb(total: int, tensors: str, rest: bytes = b"") -> bytes:
    return xz(HEAD.pack(MAGIC, total, len(tensors)) + tensors.encode() + rest)


def test_bombs_are_refused_before_they_grow() -> None:
    cases = {
        "allowed for this file": bomb(1 << 28, "[]"),
        "larger than the model": bomb(1 << 20, f"[[0,{1 << 19},4,0,0,0]]"),
        "out of range": bomb(1 << 20, f"[[0,{1 << 40},1,0,0,0]]"),
        "unknown form": bomb(1 << 20, "[[0,64,3,0,0,0]]"),
        "gaps end outside": bomb(64, "[[0,64,1,0,2,0]]", bytes([FILLER, 0])),
        "outside its code book": bomb(64, "[[0,64,1,0,0,1]]", bytes([7, *range(64)])),
        "a list of": xz(HEAD.pack(MAGIC, 64, 1 << 30)),
        "does not end": bomb(1, "[]", bytes(1 << 26)),
    }
    for words, data in cases.items():
        with pytest.raises(ArtifactError, match=words):
            unpack(data)


def test_a_stream_that_wants_more_memory_than_ours_is_refused() -> None:
    greedy = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 28}]
    with pytest.raises(ArtifactError, match="damaged"):
        unpack(lzma.compress(b"DWZ2", lzma.FORMAT_XZ, filters=greedy))


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
    with pytest.raises(ArtifactError, match=r"before 0\.3") as caught:
        unpack(b"DWZ1" + bytes(100))
    assert "that version" in caught.value.cure
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
