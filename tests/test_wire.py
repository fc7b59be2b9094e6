"""Protobuf framing: what is read and written is what the protobuf runtime reads and writes."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError as RuntimeDecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aioserving._proto import message_class
from aioserving.errors import DecodeError
from aioserving.wire import (
    FIXED32,
    FIXED64,
    LENGTH_DELIMITED,
    VARINT,
    decode_varints,
    delimited,
    encode_varints,
    fields,
    pack,
    read_varint,
    signed,
    spread_varints,
    varint,
)

TensorProto: Any = message_class("tensorflow.TensorProto")

# Other work on the machine makes single examples slow at times.
PATIENT = settings(deadline=None)

int64s = st.integers(-(2**63), 2**63 - 1)
uint64s = st.integers(0, 2**64 - 1)
# Varints of every length are equally likely, which plain integers are not.
any_length = st.integers(0, 64).flatmap(lambda bits: st.integers(0, 2**bits - 1))


def read(data: bytes) -> list[tuple[int, int, int]]:
    return list(fields(data, 0, len(data)))


@PATIENT
@given(int64s)
@example(-1)
@example(0)
@example(127)
@example(128)
@example(2**63 - 1)
@example(-(2**63))
def test_varint_is_protobufs(value: int) -> None:
    """A varint is written as protobuf writes an int64, negative ones in ten bytes, and read back."""
    theirs = TensorProto(int64_val=[value]).SerializeToString()
    assert delimited(10, varint(value)) == theirs
    number, position = read_varint(varint(value), 0, len(varint(value)))
    assert signed(number) == value
    assert position == len(varint(value))


@pytest.mark.parametrize(
    ("data", "value"),
    [(b"\x80\x00", 0), (b"\xff" * 9 + b"\x7f", 2**64 - 1), (b"\x81" + b"\x80" * 8 + b"\x00", 1)],
    ids=["padded", "bits beyond 64", "padded to ten"],
)
def test_overlong_varints_up_to_ten_bytes_are_read(data: bytes, value: int) -> None:
    """A varint longer than it has to be counts, and bits beyond the 64th fall off, as in protobuf."""
    assert read_varint(data, 0, len(data)) == (value, len(data))
    assert TensorProto.FromString(b"\x52" + varint(len(data)) + data).int64_val == [signed(value)]


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 9, b"\xff" * 10 + b"\x01", b"\xff" * 40])
def test_truncated_and_too_long_varints_are_refused(data: bytes) -> None:
    """A varint that does not end, or not within ten bytes, is a DecodeError."""
    with pytest.raises(DecodeError):
        read_varint(data, 0, len(data))


def test_varint_stops_at_the_end_of_its_message() -> None:
    """A varint may not reach beyond the message that holds it, even if the buffer goes on."""
    with pytest.raises(DecodeError):
        read_varint(b"\x80\x01", 0, 1)


def test_fields_of_all_wire_types() -> None:
    """Each field comes with its tag and its value or its place; groups and what is in them are skipped."""
    group = b"\x9b\x06" + b"\x08\x01" + b"\x12\x02ab" + b"\x1d0000" + b"\x2100000000" + b"\x9c\x06"
    data = (
        b"\x08\x96\x01" + b"\x12\x02hi" + group + b"\x1dabcd" + b"\x21abcdefgh" + b"\xf8\xff\xff\xff\x0f\x05"
    )
    found = read(data)
    assert [tag for tag, _, _ in found] == [
        1 << 3 | VARINT,
        2 << 3 | LENGTH_DELIMITED,
        3 << 3 | FIXED32,
        4 << 3 | FIXED64,
        (2**29 - 1) << 3 | VARINT,
    ]
    assert found[0][1] == 150
    assert [data[start:stop] for _, start, stop in found[1:4]] == [b"hi", b"abcd", b"abcdefgh"]
    assert found[4][1] == 5
    TensorProto.FromString(data)


@pytest.mark.parametrize("nested", [1, 99])
def test_nested_groups_are_skipped(nested: int) -> None:
    """Groups within groups are skipped to the matching end."""
    data = b"\x9b\x06" * nested + b"\x9c\x06" * nested + b"\x08\x01"
    assert read(data) == [(VARINT | 1 << 3, 1, len(data))]


MALFORMED = {
    "field number 0": b"\x00\x01",
    "field number 0, delimited": b"\x02\x00",
    "wire type 6": b"\x0e\x01",
    "wire type 7": b"\x0f\x01",
    "end of a group that never began": b"\x9c\x06",
    "group without end": b"\x9b\x06\x08\x01",
    "group that another ends": b"\x9b\x06\xa4\x06",
    "group with wire type 7": b"\x9b\x06\x0f\x9c\x06",
    "group whose field lies about its length": b"\x9b\x06\x12\x7f\x9c\x06",
    "groups nested too deep": b"\x9b\x06" * 200 + b"\x9c\x06" * 200,
    "tag alone": b"\x08",
    "delimited without length": b"\x12",
    "length beyond the end": b"\x12\x03ab",
    "length of 2 GiB": b"\x12\x80\x80\x80\x80\x08a",
    "length of 10 bytes": b"\x12\x81\x80\x80\x80\x80\x80\x80\x80\x80\x00a",
    "tag of 6 bytes": b"\x88\x80\x80\x80\x80\x00\x01",
    "tag beyond 32 bits": b"\x88\x80\x80\x80\x10\x01",
    "fixed32 cut short": b"\x1dabc",
    "fixed64 cut short": b"\x21abcdefg",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_framing_is_refused_as_protobuf_refuses_it(data: bytes) -> None:
    """What the runtime calls corrupt is a DecodeError here."""
    with pytest.raises(RuntimeDecodeError):
        TensorProto.FromString(data)
    with pytest.raises(DecodeError):
        read(data)


@PATIENT
@given(st.binary(max_size=40))
def test_framing_of_any_bytes_is_judged_as_by_protobuf(data: bytes) -> None:
    """Of arbitrary bytes, `fields` accepts those that the runtime accepts as a message of unknown fields."""
    # ReloadConfigResponse.metric is looked into by the runtime; Int64Value has one varint and nothing else.
    message: Any = message_class("tensorflow.serving.ModelSpec").DESCRIPTOR.fields_by_name["version"]
    from google.protobuf import message_factory

    int64_value = message_factory.GetMessageClass(message.message_type)
    try:
        int64_value.FromString(data)
    except RuntimeDecodeError:
        with pytest.raises(DecodeError):
            read(data)
    else:
        read(data)


@PATIENT
@given(st.lists(any_length, max_size=300), st.sampled_from([1, 10, 1000]))
def test_packed_varints_are_read_as_by_protobuf(numbers: list[int], repeat: int) -> None:
    """A packed field of any mix of lengths, few or many, gives the runtime's values."""
    numbers = numbers * repeat
    packed = TensorProto(uint64_val=numbers).SerializeToString()
    octets = np.frombuffer(packed, np.uint8)
    if numbers:
        ((_, start, stop),) = read(packed)
        octets = octets[start:stop]
    values = decode_varints(octets)
    assert values.dtype == np.uint64
    assert values.tolist() == numbers


@pytest.mark.parametrize("before", [0, 1, 100, 5000])
@pytest.mark.parametrize("bad", [b"\x80", b"\x80" * 10 + b"\x01", b"\x01" + b"\xff" * 9])
def test_broken_packed_varints_are_refused(before: int, bad: bytes) -> None:
    """A packed field that ends within a varint, or has one of more than ten bytes, is a DecodeError."""
    with pytest.raises(DecodeError):
        decode_varints(np.frombuffer(b"\x01" * before + bad, np.uint8))
    with pytest.raises(DecodeError):
        decode_varints(np.frombuffer(b"\x81\x01" * before + bad, np.uint8))


@PATIENT
@given(
    st.lists(int64s | st.integers(-200, 200), max_size=200),
    st.sampled_from([1, 60]),
    st.sampled_from(["int64", "int32", "int16", "int8", "uint64", "uint32", "uint8", "bool"]),
)
def test_packed_varints_are_written_as_by_protobuf(numbers: list[int], repeat: int, dtype: str) -> None:
    """Integers of every numpy width, positive or not, few or many, are packed as the runtime packs them."""
    array = np.array(numbers * repeat, np.int64).astype(dtype)
    message = TensorProto()
    # int64_val and uint64_val stand for all: a narrower integer has the varint of its 64-bit extension.
    if array.dtype.kind == "i":
        message.int64_val.extend(array.tolist())
        field = 10
    else:
        message.uint64_val.extend(map(int, array.tolist()))
        field = 17
    assert (delimited(field, encode_varints(array)) if array.size else b"") == message.SerializeToString()


def test_packed_varints_go_in_c_order() -> None:
    """An array of any layout is written row by row."""
    array = np.arange(200).reshape(10, 20).T
    assert encode_varints(array) == encode_varints(array.ravel()) != encode_varints(array.T)


@PATIENT
@given(
    st.lists(st.integers(1, 10), min_size=1, max_size=10, unique=True),
    st.sampled_from([65, 200, 9000]),
    st.integers(0, 1000),
)
def test_packed_varints_of_chosen_lengths(lengths: list[int], count: int, seed: int) -> None:
    """Varints of any mix of lengths are written one after the other, whatever the longest one is."""
    random = Random(seed)
    bounds = {length: (1 << 7 * (length - 1), (1 << 7 * length) - 1) for length in range(2, 10)}
    bounds |= {1: (0, 127), 10: (-(1 << 63), -1)}
    numbers = [
        random.choice((*bounds[length], random.randint(*bounds[length])))
        for length in random.choices(lengths, k=count)
    ]
    assert encode_varints(np.array(numbers, np.int64)) == b"".join(map(varint, numbers))


@pytest.mark.parametrize("dtype", [">i2", ">i4", ">i8", ">u4", ">u8"])
def test_packed_varints_of_either_byte_order(dtype: str) -> None:
    """Big-endian integers have the varints of their values, on any machine."""
    array = np.array([0, 1, 127, 128, 16383, 16384, 32767] * 20, dtype)
    assert encode_varints(array) == b"".join(map(varint, array.tolist()))


@PATIENT
@given(st.lists(uint64s | any_length, min_size=1, max_size=30))
def test_spread_varints_start_at_even_distances(numbers: list[int]) -> None:
    """Each row of what is spread holds one varint, at its beginning."""
    octets, used = spread_varints(np.array(numbers, np.uint64))
    if used is None:
        used = np.ones(octets.shape, np.bool_)
    assert octets.shape == used.shape
    assert [row[own].tobytes() for row, own in zip(octets, used, strict=True)] == list(map(varint, numbers))
    for row, own in zip(octets, used, strict=True):
        assert row[: own.sum()].tobytes() == row[own].tobytes()


def test_spread_varints_of_one_length_are_all_used() -> None:
    """Where nothing is to be left out, nothing has to be looked for."""
    for numbers in (
        [0, 127],
        [128, 16383],
        [1 << 28, (1 << 35) - 1],
        [-1, -(1 << 63)],
        [1 << 56, (1 << 63) - 1],
    ):
        octets, used = spread_varints(np.array(numbers))
        assert used is None
        assert octets.tobytes() == b"".join(map(varint, numbers))


@pytest.mark.parametrize("size", [0, 1, 1 << 16, (1 << 16) + 1, 1 << 18])
def test_packing_keeps_what_is_used(size: int) -> None:
    """Used bytes keep their order, whatever the size."""
    random = np.random.default_rng(size)
    octets = random.integers(0, 256, (size, 3)).astype(np.uint8)
    used = random.integers(0, 2, (size, 3)).astype(np.bool_)
    assert pack(octets, used) == octets[used].tobytes()
