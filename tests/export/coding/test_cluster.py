from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.onnx_files import read_weights, sparse_weight, write_weights

from deadweight.export.coding.cluster import Start, cluster, cluster_file, shortened
from deadweight.export.coding.container import xz
from deadweight.targets.errors import ModelError


def laplacian(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).laplace(0, 0.05, shape).astype(np.float32)


def error(tensor: Any, bits: int, **options: Any) -> float:
    return float(np.square(tensor - cluster({"w": tensor}, bits, **options).values("w")).mean())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("start", ["linear", "density", "random"])
def test_every_weight_becomes_the_nearest_value_and_every_value_the_mean_of_its_weights(
    bits: int, start: Start
) -> None:
    weight = laplacian(40, 50)
    made = cluster({"w": weight}, bits, start=start)
    assert len(made.book) <= 1 << bits
    nearest = np.abs(weight[..., None] - made.book).argmin(axis=-1)
    assert (made.index["w"] - 1 == nearest).mean() > 0.999
    for entry in range(len(made.book)):
        members = weight[made.index["w"] == entry + 1]
        assert made.book[entry] == pytest.approx(members.mean(), rel=1e-4, abs=1e-6)


def test_k_means_beats_the_even_grid_that_it_starts_from() -> None:
    weight = laplacian(100, 100)
    even = np.linspace(weight.min(), weight.max(), 16)
    rounded = even[np.abs(weight[..., None] - even).argmin(axis=-1)]
    assert error(weight, 4) < 0.6 * np.square(weight - rounded).mean()


def test_zeros_stay_zero_and_need_no_entry() -> None:
    weight = sparse_weight(60, 60, 0.1)
    made = cluster({"w": weight}, 3)
    assert ((made.values("w") == 0) == (weight == 0)).all()
    assert len(made.book) == 8
    assert not (made.book == 0).any()


def test_weights_of_few_values_are_kept_as_they_are() -> None:
    weight = sparse_weight(30, 30, 0.5, values=6)
    assert np.array_equal(cluster({"w": weight}, 3).values("w"), weight)


def test_one_code_book_serves_several_tensors() -> None:
    tensors = {"a": laplacian(20, 30), "b": laplacian(40, 10, seed=1)}
    made = cluster(tensors, 4)
    values = np.concatenate([made.values(name).reshape(-1) for name in tensors])
    assert len(np.unique(values)) == len(made.book) <= 16
    assert {name: made.values(name).shape for name in tensors} == {"a": (20, 30), "b": (40, 10)}


def test_a_price_saves_more_bytes_than_fewer_bits_do_at_one_error() -> None:
    """At equal error, entropy-constrained values take fewer coded bytes than nearest ones."""
    weight = laplacian(200, 200)
    curve = []
    for bits in (3, 4, 5):
        made = cluster({"w": weight}, bits)
        coded = len(xz(made.index["w"].astype(np.uint8).tobytes()))
        curve.append((error(weight, bits), coded))
    priced = cluster({"w": weight}, 5, price=0.03)
    coded = len(xz(priced.index["w"].astype(np.uint8).tobytes()))
    lost = float(np.square(weight - priced.values("w")).mean())
    errors, sizes = zip(*reversed(curve), strict=True)
    bytes_there = np.interp(np.log(lost), np.log(errors), np.array(sizes))
    assert coded < 0.95 * bytes_there


def test_a_price_prunes_what_is_hardly_worth_its_bits_where_most_is_pruned() -> None:
    weight = sparse_weight(100, 100, 0.1)
    plain, priced = (cluster({"w": weight}, 4, price=price) for price in (0.0, 0.02))
    assert ((plain.values("w") == 0) == (weight == 0)).all()
    gone = (priced.values("w") == 0) & (weight != 0)
    assert 0.02 < gone.sum() / np.count_nonzero(weight) < 0.5
    assert np.abs(weight[gone]).max() < np.abs(weight[priced.values("w") != 0]).mean()
    dense = laplacian(50, 50)
    assert cluster({"w": dense}, 4, price=0.1).values("w").all()


def test_bfloat16_is_the_nearest_there_is() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -3.14159, 0.0, np.inf, -np.inf, 1e-40], np.float32)
    found = shortened(values)
    assert not (found.view(np.uint32) & 0xFFFF)[np.isfinite(values)].any()
    assert found[:3].tolist() == [1.0, 1.0, 1.015625]  # ties to even
    finite = np.isfinite(values) & (np.abs(values) > 1e-30)
    assert np.abs(found[finite] / values[finite] - 1).max(initial=0, where=values[finite] != 0) < 2**-8
    assert np.isnan(shortened(np.array([np.nan], np.float32)))[0]
    assert shortened(np.zeros((2, 3), np.float32)).shape == (2, 3)


def test_a_file_is_clustered_by_name_and_bits(tmp_path: Path) -> None:
    weights = {"a.weight": laplacian(40, 40), "b.weight": laplacian(40, 40, seed=1), "b.bias": laplacian(40)}
    path = write_weights(tmp_path / "m.onnx", weights)
    counts = cluster_file(path, tmp_path / "c.onnx", 4, bits_of={"b.weight": 3})
    found = read_weights(tmp_path / "c.onnx")
    assert 8 < counts["a.weight"] <= 16
    assert counts["b.weight"] <= 8
    assert {name: len(np.unique(found[name])) for name in counts} == counts
    assert np.array_equal(found["b.bias"], shortened(weights["b.bias"]))
    shared = cluster_file(path, tmp_path / "s.onnx", 4, shared=True)
    found = read_weights(tmp_path / "s.onnx")
    assert len(np.unique(np.concatenate([found[name] for name in shared]))) <= 16


def test_a_constant_that_does_not_fit_its_shape_is_refused(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "a.onnx", {"w": np.ones((4, 64), np.float32)})
    model = onnx.load(path)
    model.graph.initializer[0].dims[0] = 5
    onnx.save(model, path)
    with pytest.raises(ModelError, match="'w' is damaged"):
        cluster_file(path, tmp_path / "b.onnx", 3)


def test_what_cannot_be_clustered_is_refused_with_a_cure(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "m.onnx", {"w": laplacian(40, 40)})
    with pytest.raises(ModelError, match="9 bits"):
        cluster_file(path, tmp_path / "c.onnx", 9)
    with pytest.raises(ModelError, match="no weight 'v'") as caught:
        cluster_file(path, tmp_path / "c.onnx", 4, bits_of={"v": 4})
    assert "w" in caught.value.cure
    with pytest.raises(ModelError, match="no weights to cluster"):
        cluster_file(
            write_weights(tmp_path / "i.onnx", {"w": np.ones((9, 9), np.int8)}), tmp_path / "c.onnx", 4
        )
    with pytest.raises(ModelError, match="NaN"):
        cluster({"w": np.array([[np.nan, 1.0]])}, 4)
    assert not (tmp_path / "c.onnx").exists()
