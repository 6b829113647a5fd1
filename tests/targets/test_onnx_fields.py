"""Fields of a message, as protobuf's own encoder wrote them; and bytes that are none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from deadweight.targets.onnx_file import fields, varint


def test_fields_are_those_that_the_encoder_wrote() -> None:
    tensor = TensorProto(dims=[3, 70000], data_type=1, name="weight", raw_data=b"\x01\x02\x03")
    found = dict(fields(memoryview(tensor.SerializeToString())))
    assert found == {1: 70000, 2: 1, 8: b"weight", 9: b"\x01\x02\x03"}  # of the dims the last


@given(st.integers(0, 2**63 - 1), st.binary(max_size=3))
def test_a_number_is_read_back_whatever_follows_it(number: int, behind: bytes) -> None:
    rest, written = number, bytearray()
    while rest > 127:
        written.append(rest & 127 | 128)
        rest >>= 7
    written.append(rest)
    assert varint(memoryview(bytes(written) + behind), 0) == (number, len(written))


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a\x05ab",  # five bytes are announced, two are there
        b"\x0d\x00\x00",  # a float cut short
        b"\x0b",  # a group, which ONNX has not
        b"\x08" + b"\xff" * 11,  # a number without an end
        b"\x08\x80",  # and one cut short
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        list(fields(memoryview(data)))
