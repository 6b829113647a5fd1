from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coding_models import read_weights, write_model

from deadweight.export.coding.container import pack
from deadweight.export.coding.dictionary import dictionary_file, learned
from deadweight.targets.coded.container import unpack
from deadweight.targets.errors import ModelError


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
    path = write_model(tmp_path / "m.onnx", {"w": combined(), "odd": combined(1)[:, :79], "b": np.ones(5)})
    told = dictionary_file(path, tmp_path / "d.onnx", block=8, atoms=32, chosen=2)
    assert sorted(told) == ["odd", "w"]
    data = (tmp_path / "d.onnx").read_bytes()
    packed = pack(data, path, told=told)
    assert unpack(packed.data) == data
    assert {name: way for name, _, _, way in packed.tensors} == {"w": "atoms", "odd": "atoms"}
    assert len(packed.data) < 0.15 * len(data)
    assert len(pack(data, path).data) > 2 * len(packed.data)
    assert np.square(read_weights(tmp_path / "d.onnx")["w"] - combined()).mean() < 0.02


def test_what_cannot_be_learned_is_refused_with_a_cure(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="64 atoms"):
        learned(np.ones((4, 4)))
    with pytest.raises(ModelError, match="no weight large enough"):
        dictionary_file(write_model(tmp_path / "m.onnx", {"w": np.ones((4, 4))}), tmp_path / "d.onnx")
