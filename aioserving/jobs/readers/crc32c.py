"""CRC-32C (Castagnoli) of many strings of bytes at once, with numpy alone.

TFRecord files have two checksums for every record. A loop over bytes in Python would take longer than the
model; here all records of a piece go through the same few numpy calls.

How: a CRC without its initial and final inversion is linear over GF(2), and leading zeros do not change it.
So the bytes of all records are put, right-aligned, into lanes of equal length, whose CRCs are computed side
by side; a lane that has k lanes behind it is moved by k lanes of zeros, which is a multiplication by a
matrix, for every k by at most log2(k) of them; and the lanes of a record are added up (xor). The inversion at
the beginning is an xor of the first four bytes.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["crc32c", "crc32c_many", "masked"]

#: The polynomial, bits reversed.
_POLYNOMIAL: Final = 0x82F63B78
#: Bytes of a lane; a multiple of eight.
_LANE: Final = 64
_ALL: Final = 0xFFFFFFFF
#: What TFRecord adds to a checksum, so that one of data that holds checksums is none of them.
_MASK: Final = 0xA282EAD8

_U32 = npt.NDArray[np.uint32]


@functools.cache
def _tables() -> _U32:
    """Eight tables of 256: entry b of table k is the CRC of byte b with k zeros behind it."""
    first = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        first = np.where(first & 1, (first >> 1) ^ np.uint32(_POLYNOMIAL), first >> 1)
    tables = np.empty((8, 256), np.uint32)
    tables[0] = first
    for k in range(1, 8):
        tables[k] = (tables[k - 1] >> 8) ^ first[tables[k - 1] & 0xFF]
    return tables


@functools.cache
def _shift(power: int) -> _U32:
    """Four tables of 256 that move a CRC by 2 ** power lanes of zeros, a byte of it each."""
    if power == 0:
        state = (
            np.arange(256, dtype=np.uint32)[None, :] << np.array([[0], [8], [16], [24]], np.uint32)
        ).astype(np.uint32)
        first = _tables()[0]
        for _ in range(_LANE):
            state = (state >> 8) ^ first[state & 0xFF]
        return state
    half = _shift(power - 1)
    return _apply(half, half.ravel()).reshape(4, 256)


def _apply(shift: _U32, state: _U32) -> _U32:
    moved: _U32 = (
        shift[0][state & 0xFF]
        ^ shift[1][(state >> 8) & 0xFF]
        ^ shift[2][(state >> 16) & 0xFF]
        ^ shift[3][state >> 24]
    )
    return moved


def crc32c_many(data: Any, starts: npt.ArrayLike, lengths: npt.ArrayLike) -> _U32:
    """The CRC-32C of parts of a buffer.

    Args:
        data: bytes.
        starts: where each part begins.
        lengths: bytes of each part.

    Returns:
        uint32, one for each part.
    """
    source = np.frombuffer(data, np.uint8)
    begin = np.asarray(starts, np.int64)
    size = np.asarray(lengths, np.int64)
    if not len(begin):
        return np.empty(0, np.uint32)
    # Parts of less than four bytes get zeros in front, which the inversion below turns into what it should be
    # only together with the bytes that follow: they are done one by one.
    short = np.flatnonzero(size < 4)
    lanes = np.maximum(1, -(-size // _LANE))
    last = np.cumsum(lanes)  # the lane behind each part's last
    padded = np.zeros(int(last[-1]) * _LANE, np.uint8)
    at = last * _LANE - size  # where each part begins, right-aligned
    for target, origin, count in zip(at.tolist(), begin.tolist(), size.tolist(), strict=True):
        padded[target : target + count] = source[origin : origin + count]
    long = np.flatnonzero(size >= 4)
    for k in range(4):
        padded[at[long] + k] ^= 0xFF
    state = _lanes(padded.reshape(-1, _LANE))
    behind = np.repeat(last, lanes) - 1 - np.arange(len(state))  # lanes of the same part behind each
    power = 0
    while (1 << power) <= int(lanes.max()) - 1:
        moved = np.flatnonzero(behind & (1 << power))
        state[moved] = _apply(_shift(power), state[moved])
        power += 1
    found: _U32 = np.bitwise_xor.reduceat(state, last - lanes) ^ np.uint32(_ALL)
    for index in short.tolist():
        found[index] = _few(source[begin[index] : begin[index] + size[index]].tobytes())
    return found


def _lanes(lanes: npt.NDArray[np.uint8]) -> _U32:
    """CRC of each row without inversions, eight bytes of all rows at a time."""
    tables = _tables()
    state = np.zeros(len(lanes), np.uint32)
    words = lanes.view("<u4")
    for column in range(0, words.shape[1], 2):
        low = state ^ words[:, column]
        high = words[:, column + 1]
        state = (
            tables[7][low & 0xFF]
            ^ tables[6][(low >> 8) & 0xFF]
            ^ tables[5][(low >> 16) & 0xFF]
            ^ tables[4][low >> 24]
            ^ tables[3][high & 0xFF]
            ^ tables[2][(high >> 8) & 0xFF]
            ^ tables[1][(high >> 16) & 0xFF]
            ^ tables[0][high >> 24]
        )
    return state


def _few(data: bytes) -> int:
    table = _tables()[0]
    state = _ALL
    for byte in data:
        state = (state >> 8) ^ int(table[(state ^ byte) & 0xFF])
    return state ^ _ALL


def crc32c(data: bytes) -> int:
    """The CRC-32C of `data`."""
    if len(data) < _LANE:
        return _few(data)
    return int(crc32c_many(data, [0], [len(data)])[0])


def masked(crc: _U32) -> _U32:
    """Checksums as TFRecord writes them."""
    turned: _U32 = ((crc >> 15) | (crc << 17)) + np.uint32(_MASK)
    return turned
