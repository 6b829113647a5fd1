from __future__ import annotations

import numpy as np
import pytest

from deadweight.targets.coded import decode_symbols
from deadweight.targets.coded.rans import cumulative
from deadweight.targets.errors import ArtifactError

# Written by hand after the description at the head of targets/coded/streams.py.
RAW = bytes([0, 3, 7, 8, 9])
WIDE = bytes([16, 2, 1, 2, 3, 4])
CONSTANT = bytes([1, 200, 1, 5])


def test_a_raw_stream_is_its_symbols() -> None:
    assert decode_symbols(RAW).tolist() == [7, 8, 9]
    assert decode_symbols(WIDE).tolist() == [0x0201, 0x0403]


def test_a_constant_stream_is_one_symbol_so_many_times() -> None:
    assert decode_symbols(CONSTANT).tolist() == [5] * 200


def test_a_huffman_stream_of_an_older_version_is_refused_with_the_version_that_reads_it() -> None:
    with pytest.raises(ArtifactError, match="Huffman codes") as refused:
        decode_symbols(bytes([3, 4, 2, 0, 0b11000000, 1, 4, 0b01100000]))
    assert "deadweight 0.1.0" in refused.value.cure


def test_a_limit_is_held_before_memory_is_taken() -> None:
    bomb = bytes([1, 255, 255, 255, 127, 0])  # 268 million zeros in six bytes
    assert len(decode_symbols(CONSTANT, most=200)) == 200
    for data, limit in ((CONSTANT, 199), (bomb, 1 << 20)):
        with pytest.raises(ArtifactError, match="number of symbols"):
            decode_symbols(data, most=limit)


def test_few_bytes_cannot_keep_a_decoder_busy() -> None:
    # One symbol alone takes no bits, so the steps of a lane must be bounded.
    table = bytes([0, 0b11000000])  # one symbol, level 1
    head = bytes([2, *number(1 << 27), 5, 1, 1, 1, *table])
    with pytest.raises(ArtifactError, match="number of lanes is 1, not 4096"):
        decode_symbols(head + bytes([1, 0, 0, 0, 1, 0]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes([5, 0]),
        bytes([32, 0]),
        bytes([0, 4, 7, 8, 9]),
        bytes([0, 2, 7, 8, 9]),
        bytes([1, 3, 128]),
        bytes([1, 3, 128, 2]),
        bytes([4, 0]),
        bytes([0, *[255] * 10]),
        bytes([20, 1, 0, 1, 5, 16, 1, 0, 0]),
    ],
    ids=[
        "nothing",
        "a kind that is not there",
        "an unknown flag",
        "cut short",
        "something after the end",
        "a number cut short",
        "a symbol too large",
        "planes of bytes",
        "a number too long",
        "planes of words",
    ],
)
def test_what_cannot_have_been_written_is_refused_with_a_cure(data: bytes) -> None:
    with pytest.raises(ArtifactError, match="damaged") as caught:
        decode_symbols(data)
    assert caught.value.cure


def test_frequencies_add_up_and_leave_every_symbol_one() -> None:
    levels = [0, 1, 33, 0, 16, 1]
    found = np.diff(cumulative(levels, steps=2, bits=8))
    assert found.sum() == 256
    assert (found > 0).tolist() == [level > 0 for level in levels]
    wide = np.diff(cumulative([1, 3, 5], steps=2, bits=15))
    assert wide[1] / wide[0] == pytest.approx(2, rel=1e-2)
    assert wide[2] / wide[1] == pytest.approx(2, rel=1e-2)


def test_the_widest_table_does_not_overflow() -> None:
    found = cumulative([16 * 8] * 65536, steps=8, bits=16)
    assert (np.diff(found) == 1).all()


def number(value: int) -> bytes:
    made = []
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes([*made, value])
