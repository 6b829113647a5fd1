from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from deadweight.export.coding import parts as sparse
from deadweight.export.coding.parts import within
from deadweight.targets.coded.reading import Reader
from deadweight.targets.coded.records import PLANES, Numbers
from deadweight.targets.protobuf import to_varint


def read(places: bytes, count: int, numbers: Any) -> Any:
    record = places + bytes([PLANES, 0]) + within(numbers)
    reader = Reader(record)
    found = Numbers(reader).read(count, 1)
    reader.done("a record")
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 700), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_places_come_back_in_every_way(rows: int, columns: int, share: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    kept = generator.random(rows * columns) < share
    numbers = generator.integers(1, 200, int(kept.sum())).astype(np.uint8)
    wanted = np.zeros(len(kept), np.uint8)
    wanted[kept] = numbers
    result = [places for places, _ in sparse.places_of(kept, rows)]
    result += [sparse.gaps(kept, span) for span in (1, 255)]
    for places in result:
        assert np.array_equal(read(places, len(kept), numbers), wanted)


def test_each_way_has_places_that_it_tells_best() -> None:
    generator = np.random.default_rng(0)
    clusters = np.zeros((100, 200), bool)
    clusters[:, generator.choice(200, 20, replace=False)] = generator.random((100, 20)) < 0.9
    steady = np.zeros(20_000, bool)
    steady[np.cumsum(generator.integers(14, 17, 1200))] = True
    few = generator.random(200_000) < 0.0004
    for smallest, (kept, rows) in enumerate([(clusters.reshape(-1), 100), (steady, 100), (few, 200)]):
        sizes = [len(places) for places, _ in sparse.places_of(kept, rows)]
        assert sizes[smallest] < 0.97 * min(size for way, size in enumerate(sizes) if way != smallest)


def test_whole_rows_without_weights_are_cheapest_as_rows_or_by_their_class() -> None:
    kept = np.zeros((400, 100), bool)
    kept[::8] = np.random.default_rng(0).random((50, 100)) < 0.5
    mask, gaps, _ = (len(places) for places, _ in sparse.places_of(kept.reshape(-1), 400))
    assert mask < 0.9 * gaps
    assert mask < 50 * 100 / 8 + 120  # a kept row is noise: one bit a place


def test_gaps_as_published_use_a_filler_for_each_wide_gap() -> None:
    kept = np.zeros(40, bool)
    kept[[0, 10, 39]] = True
    coded = sparse.gaps(kept, 7)
    assert coded[1] == 7
    assert coded[2:3] == to_varint(1 + 2 + 5)  # 0 | filler, 2 | four fillers, 0
    assert read(coded, 40, np.array([1, 2, 3], np.uint8)).nonzero()[0].tolist() == [0, 10, 39]
