"""Protobuf's wire format: varints, tags, length-delimited fields.

Knows how bytes are framed and nothing of what they mean. `fields` walks one message in place,
`decode_varints` and `encode_varints` turn whole packed fields into arrays and back, `spread_varints` and
`pack` do the latter in two steps, between which other bytes can be put between the varints. Positions are
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
    "pack",
    "read_varint",
    "signed",
    "spread_varints",
    "varint",
]

#: What can be read from: indexing gives integers, slicing gives something that `bytes()` takes.
Buffer: TypeAlias = "bytes | memoryview"

VARINT = 0
FIXED64 = 1
LENGTH_DELIMITED = 2
_START_GROUP = 3
_END_GROUP = 4
FIXED32 = 5

# Nesting of unknown groups; the protobuf runtimes stop there too.
_MAX_DEPTH = 100
_UINT64 = (1 << 64) - 1
# Up to so many, a loop over Python integers is faster than any array operation.
_FEW = 64
# Elements encoded at a time: the working arrays of one round stay in the processor's cache.
_ROUND = 1 << 13
# Bytes packed at a time, likewise.
_PACKED = 1 << 16


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


def delimited(number: int, body: bytes) -> bytes:
    """`body` as the length-delimited field `number`: tag, length, body."""
    return varint(number << 3 | LENGTH_DELIMITED) + varint(len(body)) + body


def signed(value: int) -> int:
    """The int64 that the unsigned 64-bit `value` is the two's complement of."""
    return value - (1 << 64) if value >> 63 else value


def read_varint(data: Buffer, position: int, end: int) -> tuple[int, int]:
    """The unsigned 64-bit varint at `position`, and the position after it.

    Raises:
        DecodeError: it does not end before `end`, or is longer than ten bytes.
    """
    result = shift = 0
    while position < end:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & _UINT64, position
        shift += 7
        if shift == 70:
            raise DecodeError("a varint is longer than 10 bytes")
    raise DecodeError("a varint is truncated")


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
        position += 1
        if tag > 0x7F:
            tag, position = _read_short(data, position - 1, end)
        wire_type = tag & 7
        if tag < 8:
            raise DecodeError("field number 0")
        if wire_type == LENGTH_DELIMITED:
            # One-byte lengths are read here, without a call: most fields of most messages.
            length = data[position] if position < end else 0x80
            position += 1
            if length > 0x7F:
                length, position = _read_short(data, position - 1, end)
            stop = position + length
            if stop > end:
                raise DecodeError(f"field {tag >> 3} claims {length} bytes where {end - position} are left")
            yield tag, position, stop
            position = stop
        elif wire_type == VARINT:
            value, position = read_varint(data, position, end)
            yield tag, value, position
        elif wire_type in (FIXED32, FIXED64):
            stop = position + (4 if wire_type == FIXED32 else 8)
            if stop > end:
                raise DecodeError(f"field {tag >> 3} is truncated")
            yield tag, position, stop
            position = stop
        elif wire_type == _START_GROUP:
            position = _skip_group(data, position, end, tag >> 3)
        else:
            raise DecodeError(f"field {tag >> 3} has wire type {wire_type}, which cannot stand here")


def _read_short(data: Buffer, position: int, end: int) -> tuple[int, int]:
    """The varint of a tag or a length, which has 32 bits and so at most five bytes."""
    value, after = read_varint(data, position, end)
    if after - position > 5 or value > 0xFFFFFFFF:
        raise DecodeError("a field number or length is out of range")
    return value, after


def _skip_group(data: Buffer, position: int, end: int, number: int) -> int:
    """The position after the end of group `number`, whose start tag was read just now."""
    open_groups = [number]
    while open_groups:
        if len(open_groups) > _MAX_DEPTH:
            raise DecodeError(f"groups are nested deeper than {_MAX_DEPTH}")
        tag, position = _read_short(data, position, end)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == VARINT:
            _, position = read_varint(data, position, end)
        elif wire_type == LENGTH_DELIMITED:
            length, position = _read_short(data, position, end)
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
            raise DecodeError(f"field {number} has wire type {wire_type}, which does not exist")
        if position > end:
            raise DecodeError(f"field {number} is truncated")
    return position


def decode_varints(octets: np.ndarray) -> np.ndarray:
    """The varints that fill `octets`, an array of uint8, as a new array of uint64.

    Best when they are few, or nearly all one byte long: then it takes about 0.5 ns for a value of
    one byte and 50 ns for each byte that is followed by another.

    Raises:
        DecodeError: the last one is truncated, or one is longer than ten bytes.
    """
    if octets.size <= _FEW:
        return _decode_few(octets.tolist())
    ends = octets < 0x80
    values: np.ndarray = octets[ends].astype(np.uint64)
    continued = np.flatnonzero(~ends)
    if continued.size == 0:
        return values
    if continued[-1] == octets.size - 1:
        raise DecodeError("a packed field ends within a varint")
    # Neighbouring bytes that continue belong to one varint: runs first[i]..last[i] of `continued`.
    breaks = np.flatnonzero(np.diff(continued) != 1)
    first = np.concatenate(([0], breaks + 1))
    last = np.concatenate((breaks, [continued.size - 1]))
    lengths = last - first + 1
    if lengths.max() > 9:
        raise DecodeError("a varint in a packed field is longer than 10 bytes")
    shifts = 7 * (np.arange(continued.size) - np.repeat(first, lengths))
    low = (octets[continued] & 0x7F).astype(np.uint64) << shifts.astype(np.uint64)
    high = octets[continued[last] + 1].astype(np.uint64) << (7 * lengths).astype(np.uint64)
    # As many values come before a varint's last byte as there are bytes that do not continue.
    values[continued[last] - last] = np.add.reduceat(low, first) | high
    return values


def _decode_few(octets: list[int]) -> np.ndarray:
    values = []
    value = shift = 0
    for octet in octets:
        if octet < 0x80:
            values.append((value | octet << shift) & _UINT64)
            value = shift = 0
        else:
            value |= (octet & 0x7F) << shift
            shift += 7
            if shift == 70:
                raise DecodeError("a varint in a packed field is longer than 10 bytes")
    if shift:
        raise DecodeError("a packed field ends within a varint")
    return np.array(values, np.uint64)


def encode_varints(values: np.ndarray) -> bytes:
    """The varints of `values`, integers or bools of any shape, in C order; negative ones take ten bytes."""
    values = values.ravel()
    if values.dtype.kind == "b":
        return values.tobytes()
    if values.size <= _FEW:
        return b"".join(map(varint, values.tolist()))
    rounds = []
    for begin in range(0, values.size, _ROUND):
        octets, used = spread_varints(values[begin : begin + _ROUND])
        rounds.append(octets.tobytes() if used is None else pack(octets, used))
    return b"".join(rounds)


def spread_varints(values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """The varints of `values` at even distances: each starts a row, whose end may be unused.

    Args:
        values: integers in one dimension, at least one.

    Returns:
        The bytes, an array of uint8 of shape (values, width), width being at least the length of the
        longest varint; and which of them count, an array of bools of that shape, or None if all do.
    """
    low, high = int(values.min()), int(values.max())
    if low >= 0 and high < 0x80:
        return values.astype(np.uint8)[:, np.newaxis], None
    length = 10 if low < 0 else -(-high.bit_length() // 7)
    even = high < 0 or (low >= 0 and low >> 7 * (length - 1) > 0)
    if length > 8:
        octets, used = _spread_long(values)
    else:
        groups = _groups(values.astype(np.uint16 if length <= 2 else np.uint32 if length <= 4 else np.uint64))
        more = _continued(groups)
        groups |= more
        octets = _octets(groups)
        if not even:
            # A byte is used if the one before it continues, the first always.
            more <<= 1
            more |= 1
            used = _octets(more).view(np.bool_)
    if even:
        return octets[:, :length], None
    return octets, used


def pack(octets: np.ndarray, used: np.ndarray) -> bytes:
    """Those bytes of `octets` of which `used`, of the same shape and in C order too, says that they count."""
    octets, used = octets.reshape(-1), used.reshape(-1)
    # `compress` takes a fifth of the time of an index of bools, but eight bytes of memory for each byte.
    return b"".join(
        octets[begin : begin + _PACKED].compress(used[begin : begin + _PACKED]).data
        for begin in range(0, octets.size, _PACKED)
    )


# How groups of seven bits move apart, in halves, until each has its byte: which stay, which move, how far.
_SPREAD = {
    2: ((0x7F, 0x3F80, 1),),
    4: ((0x3FFF, 0xFFFC000, 2), (0x7F007F, 0x3F803F80, 1)),
    8: (
        (0xFFFFFFF, 0xFFFFFFF0000000, 4),
        (0x3FFF00003FFF, 0xFFFC0000FFFC000, 2),
        (0x7F007F007F007F, 0x3F803F803F803F80, 1),
    ),
}


def _groups(words: np.ndarray) -> np.ndarray:
    """`words`, unsigned and of at most 7 bits for each of their bytes, with 7 bits in each byte."""
    for stay, move, distance in _SPREAD[words.dtype.itemsize]:
        moved = words & move
        moved <<= distance
        words &= stay
        words |= moved
    return words


def _continued(groups: np.ndarray) -> np.ndarray:
    """0x80 in each byte of the words `groups` after which another is not 0, and 0 in the others."""
    width = groups.dtype.itemsize
    after = groups >> 8
    distance = 8
    while distance < 8 * (width - 1):
        after |= after >> distance
        distance *= 2
    # Bytes are 0 to 0x7f, so that adding reaches the uppermost bit of its byte, and never the next byte.
    after += int.from_bytes(b"\x7f" * width, "little")
    after &= int.from_bytes(b"\x80" * width, "little")
    return after


def _spread_long(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `spread_varints`, of integers of any length."""
    # Through int64, so that the sign of a narrower integer fills the upper bits.
    words = (values.astype(np.int64) if values.dtype.kind == "i" else values).astype(np.uint64)
    rest = (words >> 56).astype(np.uint16)  # 7 bits of the ninth byte, 1 of the tenth
    words &= (1 << 56) - 1
    low = _groups(words)
    more = _continued(low)
    more[rest != 0] = int.from_bytes(b"\x80" * 8, "little")
    low |= more
    more <<= 1
    more |= 1
    layout = np.dtype([("low", "<u8"), ("rest", "<u2")])
    octets, used = np.empty(values.size, layout), np.empty(values.size, layout)
    octets["low"], used["low"] = low, more
    tenth = rest >> 7 << 8
    # The lowest bit of the tenth byte is in its place to say that the ninth continues, too.
    octets["rest"] = rest | tenth
    used["rest"] = tenth | (rest != 0)
    return _octets(octets), _octets(used).view(np.bool_)


def _octets(words: np.ndarray) -> np.ndarray:
    """The bytes of each of `words`, the lowest first."""
    little = words.astype(words.dtype.newbyteorder("<"), copy=False)
    return little.view(np.uint8).reshape(words.size, words.dtype.itemsize)
