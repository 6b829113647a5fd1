"""The coders of benchmarks/ that the product's is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.onnx_files import read_weights, sparse_weight, write_weights

from benchmarks.compression.dictionary import dictionary_file, learned, stored
from benchmarks.compression.huffman import in_place_of_rans
from deadweight.export.coding.container import pack
from deadweight.export.coding.entropy import encode_symbols
from deadweight.targets.coded import decode_symbols
from deadweight.targets.coded.container import unpack
from deadweight.targets.errors import ArtifactError, ModelError


def combined(seed: int = 0, *, noise: float = 0.0) -> Any:
    """Blocks of 8 that are sums of 2 of 16 directions."""
    generator = np.random.default_rng(seed)
    atoms = generator.standard_normal((16, 8))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    used = np.zeros((1200, 16))
    for row in used:
        row[generator.choice(16, 2, replace=False)] = generator.normal(0, 1, 2)
    blocks = used @ atoms + noise * generator.standard_normal((1200, 8))
    return blocks.reshape(120, 80).astype(np.float32)


def error(weight: Any, **settings: Any) -> float:
    found = learned(weight, **settings).values()
    return float(np.square(weight - found).mean() / np.square(weight).mean())


def test_directions_that_are_there_are_found() -> None:
    weight = combined()
    found = error(weight, block=8, atoms=32, chosen=2)
    assert found < 0.05
    assert error(np.random.default_rng(0).permuted(weight, axis=1), block=8, atoms=32, chosen=2) > 3 * found


def test_more_atoms_a_block_are_nearer() -> None:
    weight = combined(noise=0.3)
    errors = [error(weight, block=8, atoms=32, chosen=chosen) for chosen in (1, 2, 4)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < errors[0] / 2


def test_a_file_of_sums_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "m.onnx", {"w": combined(), "odd": combined(1)[:, :79], "b": np.ones(5)})
    told = dictionary_file(path, tmp_path / "d.onnx", block=8, atoms=32, chosen=2)
    assert sorted(told) == ["odd", "w"]
    data = (tmp_path / "d.onnx").read_bytes()
    with stored(told):
        packed = pack(data, path)
        assert unpack(packed.data) == data
    with pytest.raises(ArtifactError, match="a dictionary's atoms"):
        unpack(packed.data)
    assert {name: way for name, _, _, way in packed.tensors} == {"w": "atoms", "odd": "atoms"}
    assert len(packed.data) < 0.15 * len(data)
    assert len(pack(data, path).data) > 2 * len(packed.data)
    assert np.square(read_weights(tmp_path / "d.onnx")["w"] - combined()).mean() < 0.02


def test_what_cannot_be_learned_is_refused_with_a_cure(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="64 atoms"):
        learned(np.ones((4, 4)))
    with pytest.raises(ModelError, match="no weight large enough"):
        dictionary_file(write_weights(tmp_path / "m.onnx", {"w": np.ones((4, 4))}), tmp_path / "d.onnx")


@pytest.mark.parametrize("different", [2, 40, 256, 3000])
def test_symbols_in_huffman_codes_come_back(different: int) -> None:
    generator = np.random.default_rng(different)
    shares = np.arange(1, different + 1) ** -1.5
    symbols = generator.choice(different, size=5000, p=shares / shares.sum()).astype(np.uint16)
    with in_place_of_rans():
        data = encode_symbols(symbols)
        assert np.array_equal(decode_symbols(data), symbols)
    assert len(data) < symbols.nbytes


def test_a_huffman_code_takes_a_bit_at_least() -> None:
    symbols = (np.random.default_rng(0).random(50_000) < 0.01).astype(np.uint8)
    with in_place_of_rans():
        assert len(encode_symbols(symbols)) >= 50_000 / 8


def test_a_packed_file_in_huffman_codes_is_read_by_them_alone(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "m.onnx", {"w": sparse_weight(80, 90, 0.2, values=16)})
    with in_place_of_rans():
        packed = pack(path.read_bytes(), path).data
        assert unpack(packed) == path.read_bytes()
    with pytest.raises(ArtifactError, match=r"only deadweight 0\.1\.0"):
        unpack(packed)
