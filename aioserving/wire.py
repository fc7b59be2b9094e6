"""Protobuf's wire format: varints, tags, length-delimited fields.

Knows how bytes are framed and nothing of what they mean. `fields` walks one message in place,
`decode_varints` and `encode_varints` turn whole packed fields into arrays and back. Positions are
offsets into one buffer, so that nothing is copied on the way down to a nested message.

Malformed input raises `DecodeError` in the cases in which the protobuf runtime refuses it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np

from aioserving.errors import DecodeError

__all__ = [
    "FIXED32",
    "FIXED64",
    "LENGTH_DELIMITED",
    "VARINT",
    "Buffer",
    "decode_varints",
    "delimited",
    "encode_varints",
    "fields",
    "read_varint",
    "varint",
]

#: What can be read from: indexing gives integers, slicing gives something that `bytes()` takes.
Buffer: TypeAlias = bytes | memoryview

VARINT = 0
FIXED64 = 1
LENGTH_DELIMITED = 2
_START_GROUP = 3
_END_GROUP = 4
FIXED32 = 5

# Nesting of unknown groups; the protobuf runtimes stop there too.
_MAX_DEPTH = 100
_UINT64 = (1 << 64) - 1


def varint(value: int) -> bytes:
    """The varint of `value`; a negative number is its 64-bit two's complement, ten bytes long."""
    if 0 <= value < 0x80:
        return bytes((value,))
    value &= _UINT64
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def delimited(field: int, body: bytes) -> bytes:
    """`body` as the length-delimited field number `field`: tag, length, body."""
    return varint(field << 3 | LENGTH_DELIMITED) + varint(len(body)) + body


def read_varint(data: Buffer, position: int, end: int) -> tuple[int, int]:
    """The unsigned 64-bit varint at `position`, and the position after it.

    Raises:
        DecodeError: it does not end before `end`, or is longer than ten bytes.
    """
    result = shift = 0
    while True:
        if position >= end:
            raise DecodeError("truncated varint")
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & _UINT64, position
        shift += 7
        if shift == 70:
            raise DecodeError("varint longer than 10 bytes")


def fields(data: Buffer, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Walk the message in ``data[position:end]``: for each field its tag and where its value is.

    Yields:
        ``(tag, start, stop)``, tag being ``number << 3 | wire_type``. The payload of
        length-delimited and fixed-width fields is ``data[start:stop]``; for varints `start` is the
        unsigned value itself. Groups, which no message here has, are skipped.

    Raises:
        DecodeError: the bytes are no message.
    """
    while position < end:
        tag = data[position]
        if tag < 0x80:
            position += 1
        else:
            tag, position = _read_tag(data, position, end)
        if tag < 8:
            raise DecodeError("field number 0")
        wire_type = tag & 7
        if wire_type == LENGTH_DELIMITED:
            if position < end and data[position] < 0x80:
                length = data[position]
                position += 1
            else:
                length, position = read_varint(data, position, end)
            stop = position + length
            if stop > end:
                raise DecodeError(f"field {tag >> 3} claims {length} bytes, {end - position} are left")
            yield tag, position, stop
            position = stop
        elif wire_type == VARINT:
            value, position = read_varint(data, position, end)
            yield tag, value, position
        elif wire_type == FIXED32 or wire_type == FIXED64:
            stop = position + (4 if wire_type == FIXED32 else 8)
            if stop > end:
                raise DecodeError(f"field {tag >> 3} is truncated")
            yield tag, position, stop
            position = stop
        elif wire_type == _START_GROUP:
            position = _skip_group(data, position, end, tag >> 3)
        else:
            raise DecodeError(f"field {tag >> 3} has the impossible wire type {wire_type}")


def _read_tag(data: Buffer, position: int, end: int) -> tuple[int, int]:
    tag, after = read_varint(data, position, end)
    if after - position > 5 or tag > 0xFFFFFFFF:
        raise DecodeError("field number out of range")
    return tag, after


def _skip_group(data: Buffer, position: int, end: int, number: int) -> int:
    """The position after the end of group `number`, whose start tag was read just now."""
    open_groups = [number]
    while open_groups:
        if len(open_groups) > _MAX_DEPTH:
            raise DecodeError(f"groups nested deeper than {_MAX_DEPTH}")
        tag, position = _read_tag(data, position, end)
        number, wire_type = tag >> 3, tag & 7
        if number == 0:
            raise DecodeError("field number 0")
        if wire_type == VARINT:
            _, position = read_varint(data, position, end)
        elif wire_type == LENGTH_DELIMITED:
            length, position = read_varint(data, position, end)
            position += length
        elif wire_type == FIXED32:
            position += 4
        elif wire_type == FIXED64:
            position += 8
        elif wire_type == _START_GROUP:
            open_groups.append(number)
        elif wire_type == _END_GROUP:
            if open_groups.pop() != number:
                raise DecodeError(f"group {number} ends without having begun")
        else:
            raise DecodeError(f"field {number} has the impossible wire type {wire_type}")
        if position > end:
            raise DecodeError(f"field {number} is truncated")
    return position


def decode_varints(data: Buffer) -> np.ndarray:
    """All the varints of a packed field, as an array of uint64 (uint8, a view, where each is one byte).

    Raises:
        DecodeError: the last one is truncated, or one is longer than ten bytes.
    """
    octets = np.frombuffer(data, np.uint8)
    if octets.size == 0 or octets.max() < 0x80:
        return octets
    last = np.flatnonzero(octets < 0x80)
    if last.size == 0 or last[-1] != octets.size - 1:
        raise DecodeError("truncated varint in a packed field")
    first = np.empty_like(last)
    first[0] = 0
    first[1:] = last[:-1] + 1
    length = last - first + 1
    longest = int(length.max())
    if longest > 10:
        raise DecodeError("varint longer than 10 bytes")
    values = np.zeros(last.size, np.uint64)
    for index in range(longest):
        here = length > index
        part = (octets[first[here] + index] & 0x7F).astype(np.uint64)
        values[here] |= part << np.uint64(7 * index)
    return values


def encode_varints(values: np.ndarray) -> bytes:
    """The varints of `values` (any integer or bool array), one after the other; negative ones take ten bytes."""
    values = values.ravel()
    if values.size == 0:
        return b""
    if values.dtype.kind == "b" or (values.min() >= 0 and values.max() < 0x80):
        return values.astype(np.uint8).tobytes()
    unsigned = values.astype(np.int64 if values.dtype.kind == "i" else np.uint64).view(np.uint64)
    groups = max(1, -(-int(unsigned.max()).bit_length() // 7))
    shifted = unsigned[:, None] >> np.arange(0, 7 * groups, 7, dtype=np.uint64)
    octets = (shifted & np.uint64(0x7F)).astype(np.uint8)
    used = shifted != 0
    used[:, 0] = True
    octets[:, :-1][used[:, 1:]] |= 0x80
    return octets[used].tobytes()
