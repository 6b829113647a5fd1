"""Fields of a message and their places, as protobuf's own encoder wrote them; and bytes that are none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from deadweight.targets.protobuf import fields, varint


def test_fields_lie_where_the_encoder_put_them() -> None:
    tensor = TensorProto(dims=[3, 70000], data_type=1, name="weight", raw_data=b"\x01\x02\x03")
    data = tensor.SerializeToString()
    found = {field: place for field, *place in fields(data, 0, len(data))}
    assert found.keys() == {1, 2, 8, 9}
    assert [number for number, _, _ in found.values()] == [70000, 1, None, None]  # the last of the dims
    texts = {field: data[start:stop] for field, (_, start, stop) in found.items()}
    assert (texts[8], texts[9]) == (b"weight", b"\x01\x02\x03")


@given(st.integers(0, 2**63 - 1), st.binary(max_size=3))
def test_a_number_is_read_back_whatever_follows_it(number: int, behind: bytes) -> None:
    rest, written = number, bytearray()
    while rest > 127:
        written.append(rest & 127 | 128)
        rest >>= 7
    written.append(rest)
    assert varint(bytes(written) + behind, 0) == (number, len(written))


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
        list(fields(data, 0, len(data)))
