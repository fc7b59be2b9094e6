"""numpy arrays to the bytes of Predict messages and back, without a protobuf object in between.

Encoding copies tensor data once, from the array into the message (`tensor_content`). Decoding copies
nothing where the wire already has the array's layout: `tensor_content` and packed float, double and
complex fields become views on the message; variable-width integers are decoded in bulk.

Decoded arrays are read-only: most of them are the message's own bytes. Copy one to change it.

What is accepted, and what it means, is what the C++ runtime accepts (`Tensor::FromProto`): content
wins over typed fields, the last typed value is repeated, no value at all means zeros. As there, a
shape without the data to fill it is refused once the tensor is too big; here the bound is
`MAX_EXPANDED_BYTES`.

Which types exist is left to `aioserving.dtypes`, how bytes are framed to `aioserving.wire`, and what
a signature allows to `aioserving.signature`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from aioserving.dtypes import DataType, TypeInfo, data_type_of, numpy_dtype, short_name, type_info
from aioserving.errors import DecodeError, MessageTooLargeError, UnsupportedTypeError
from aioserving.wire import (
    FIXED32,
    FIXED64,
    LENGTH_DELIMITED,
    VARINT,
    Buffer,
    decode_varints,
    delimited,
    encode_varints,
    fields,
    varint,
)

__all__ = [
    "MAX_EXPANDED_BYTES",
    "MAX_MESSAGE_BYTES",
    "PredictRequestParts",
    "decode_model_spec",
    "decode_predict_request",
    "decode_predict_response",
    "decode_tensor",
    "encode_model_spec",
    "encode_predict_request",
    "encode_predict_response",
    "encode_tensor",
    "encode_tensor_typed",
]

#: The most that one protobuf message, and so one gRPC call, can carry.
MAX_MESSAGE_BYTES = (1 << 31) - 1

#: The largest tensor that fewer values than elements may stand for (the last one is repeated):
#: as large as one that a message could carry in full. A few bytes can claim 10^18 elements.
MAX_EXPANDED_BYTES = MAX_MESSAGE_BYTES

# Tags, `number << 3 | wire type`.
_DTYPE = 1 << 3 | VARINT
_SHAPE = 2 << 3 | LENGTH_DELIMITED
_VERSION_NUMBER = 3 << 3 | VARINT
_CONTENT = 4 << 3 | LENGTH_DELIMITED
_DIM = 2 << 3 | LENGTH_DELIMITED
_DIM_SIZE = 1 << 3 | VARINT
_DIM_NAME = 2 << 3 | LENGTH_DELIMITED
_KEY = 1 << 3 | LENGTH_DELIMITED
_VALUE = 2 << 3 | LENGTH_DELIMITED
_REQUEST_SPEC = 1 << 3 | LENGTH_DELIMITED
_REQUEST_INPUTS = 2 << 3 | LENGTH_DELIMITED
_REQUEST_FILTER = 3 << 3 | LENGTH_DELIMITED
_RESPONSE_OUTPUTS = 1 << 3 | LENGTH_DELIMITED
_RESPONSE_SPEC = 2 << 3 | LENGTH_DELIMITED
_SPEC_NAME = 1 << 3 | LENGTH_DELIMITED
_SPEC_VERSION = 2 << 3 | LENGTH_DELIMITED
_SPEC_SIGNATURE = 3 << 3 | LENGTH_DELIMITED
_SPEC_LABEL = 4 << 3 | LENGTH_DELIMITED
_INT64_VALUE = 1 << 3 | VARINT

_STRING_FIELD = 8
_FLOAT8_FIELD = 18
# Fields whose packed bytes are the array already.
_FIXED_FIELDS = {5: np.dtype("<f4"), 6: np.dtype("<f8"), 9: np.dtype("<c8"), 12: np.dtype("<c16")}
# Fields of varints, with the integer type the schema gives them (half_val has 32 bits, 16 are used).
_VARINT_FIELDS = {7: np.int32, 10: np.int64, 11: np.uint64, 13: np.uint16, 16: np.uint32, 17: np.uint64}
# How one value of a field is framed when it is not packed.
_UNPACKED_WIRE_TYPE = {
    5: FIXED32,
    6: FIXED64,
    9: FIXED32,
    12: FIXED64,
    **dict.fromkeys(_VARINT_FIELDS, VARINT),
}
# Value bits of the types narrower than a byte, and whether they have a sign.
_NARROW = {
    DataType.DT_INT4: (4, np.int8),
    DataType.DT_UINT4: (4, np.uint8),
    DataType.DT_INT2: (2, np.int8),
    DataType.DT_UINT2: (2, np.uint8),
}
# TensorFlow's own limit; numpy's is lower.
_MAX_DIMENSIONS = 254


class PredictRequestParts(NamedTuple):
    """A PredictRequest taken apart, its tensors still encoded."""

    #: Body of the ModelSpec, or None when the request has none.
    model_spec: bytes | None
    #: Input name -> body of its TensorProto, for `decode_tensor`.
    inputs: dict[str, memoryview]
    #: Names of the outputs asked for; empty means all.
    output_filter: list[str]


# ---------------------------------------------------------------- model spec


def encode_model_spec(
    name: str,
    *,
    version: int | None = None,
    version_label: str | None = None,
    signature_name: str | None = None,
) -> bytes:
    """The body of a ModelSpec.

    Raises:
        ValueError: both `version` and `version_label` are given, or `version` is not a 64-bit integer.
    """
    if version is not None and version_label is not None:
        raise ValueError("version and version_label exclude each other: give one of them")
    body = _text(1, name)
    if version is not None:
        if not -(1 << 63) <= version < 1 << 63:
            raise ValueError(f"version {version} does not fit 64 bits")
        body += delimited(2, bytes((_INT64_VALUE,)) + varint(version) if version else b"")
    if signature_name:
        body += _text(3, signature_name)
    if version_label is not None:
        # A member of a oneof is written even when it is empty.
        body += delimited(4, version_label.encode())
    return body


def decode_model_spec(data: bytes) -> tuple[str, int | None, str | None, str]:
    """The name, version, version label and signature name of a ModelSpec's body.

    Version and label are None when absent; they exclude each other, the later one counts.

    Raises:
        DecodeError: the bytes are no ModelSpec.
    """
    name = signature_name = ""
    version_body: bytes | None = None
    label: str | None = None
    for tag, start, stop in fields(data, 0, len(data)):
        if tag == _SPEC_NAME:
            name = _utf8(data, start, stop)
        elif tag == _SPEC_VERSION:
            version_body = (version_body or b"") + data[start:stop]
            label = None
        elif tag == _SPEC_SIGNATURE:
            signature_name = _utf8(data, start, stop)
        elif tag == _SPEC_LABEL:
            label = _utf8(data, start, stop)
            version_body = None
    version: int | None = None
    if version_body is not None:
        version = 0
        for tag, value, _ in fields(version_body, 0, len(version_body)):
            if tag == _INT64_VALUE:
                version = _signed(value)
    return name, version, label, signature_name


# ---------------------------------------------------------------- encoding


def encode_predict_request(
    inputs: Mapping[str, np.ndarray],
    *,
    model_spec: bytes,
    output_filter: Sequence[str] = (),
    data_types: Mapping[str, int] | None = None,
) -> bytes:
    """A whole PredictRequest, with each tensor's data copied once.

    Args:
        inputs: arrays of any shape, layout and byte order, by input name.
        model_spec: body of the ModelSpec, from `encode_model_spec`.
        output_filter: names of the outputs wanted; empty means all.
        data_types: types to send other than what an array's dtype says (see `encode_tensor`).

    Raises:
        UnsupportedTypeError: an array holds what no TensorProto can; the message names the input.
        MessageTooLargeError: the request would be larger than `MAX_MESSAGE_BYTES`.
    """
    parts: list[Any] = [delimited(1, model_spec)]
    size = len(parts[0]) + _append_tensors(parts, _REQUEST_INPUTS, "input", inputs, data_types)
    for name in output_filter:
        parts.append(delimited(3, name.encode()))
        size += len(parts[-1])
    _check_size(size, "the request")
    return b"".join(parts)


def encode_predict_response(
    outputs: Mapping[str, np.ndarray],
    *,
    model_spec: bytes,
    typed: bool = True,
    data_types: Mapping[str, int] | None = None,
) -> bytes:
    """A whole PredictResponse, as the C++ server writes it: outputs in the mapping's order, then the model spec.

    Args:
        outputs: arrays by output name.
        model_spec: body of the ModelSpec, from `encode_model_spec`.
        typed: whether values go into typed fields, the server's default, or into `tensor_content`
            (`--enable_serialization_as_tensor_content`).
        data_types: types to send other than what an array's dtype says (see `encode_tensor`).

    Raises:
        UnsupportedTypeError: an array holds what no TensorProto can; the message names the output.
        MessageTooLargeError: the response would be larger than `MAX_MESSAGE_BYTES`.
    """
    parts: list[Any] = []
    size = 0
    if typed:
        for name, array in outputs.items():
            try:
                body = encode_tensor_typed(array, data_type=data_types.get(name) if data_types else None)
            except UnsupportedTypeError as error:
                raise UnsupportedTypeError(f"output {name!r}: {error}") from None
            entry = _text(1, name) + delimited(2, body)
            parts.append(delimited(1, entry))
            size += len(parts[-1])
    else:
        size += _append_tensors(parts, _RESPONSE_OUTPUTS, "output", outputs, data_types)
    parts.append(delimited(2, model_spec))
    _check_size(size + len(parts[-1]), "the response")
    return b"".join(parts)


def encode_tensor(array: np.ndarray, *, data_type: int | None = None) -> bytes:
    """The body of a TensorProto with dtype, shape and `tensor_content`.

    Args:
        array: anything `data_type_of` knows; object arrays must hold ``bytes`` or ``str`` (sent as UTF-8).
        data_type: the type to send instead of what the dtype says. The array must then have the
            dtype of that type (``int8`` for DT_QINT8), or hold its raw bits in unsigned integers
            of the same size (``uint16`` for DT_BFLOAT16).

    Raises:
        UnsupportedTypeError: the array holds what no TensorProto can, or does not fit `data_type`.
        MessageTooLargeError: the tensor is larger than `MAX_MESSAGE_BYTES`.
    """
    array = np.asarray(array)
    info = _sent_as(array.dtype, data_type)
    payload = _content(array, info)
    size = payload.nbytes if isinstance(payload, np.ndarray) else len(payload)
    header = _tensor_header(info, array.shape)
    if size:
        header += bytes((_CONTENT,)) + varint(size)
    _check_size(len(header) + size, "the tensor")
    return b"".join((header, payload))


def encode_tensor_typed(array: np.ndarray, *, data_type: int | None = None) -> bytes:
    """The body of a TensorProto with dtype, shape and one value per element, byte for byte as the C++ server writes it.

    Args:
        array: as in `encode_tensor`.
        data_type: as in `encode_tensor`.

    Raises:
        UnsupportedTypeError: the array holds what no TensorProto can, or does not fit `data_type`.
        MessageTooLargeError: the tensor is larger than `MAX_MESSAGE_BYTES`.
    """
    array = np.asarray(array)
    info = _sent_as(array.dtype, data_type)
    header = _tensor_header(info, array.shape)
    if array.size == 0:
        return header
    if info.field == _STRING_FIELD:
        tag = varint(_STRING_FIELD << 3 | LENGTH_DELIMITED)
        body = b"".join([part for text in _strings(array) for part in (tag + varint(len(text)), text)])
    else:
        values = _values(array, info)
        if info.field in _VARINT_FIELDS:
            if info.field == 13:
                values = values.view(np.uint16)
            packed: Any = encode_varints(values)
        else:
            packed = values.tobytes()
        body = delimited(info.field, packed)
    _check_size(len(header) + len(body), "the tensor")
    return header + body


def _append_tensors(
    parts: list[Any],
    tag: int,
    noun: str,
    tensors: Mapping[str, np.ndarray],
    data_types: Mapping[str, int] | None,
) -> int:
    """Append the map entries of `tensors` to `parts`, as buffers to be joined; return their size in bytes."""
    total = 0
    for name, value in tensors.items():
        try:
            array = value if type(value) is np.ndarray else _as_array(value)
            info = _sent_as(array.dtype, data_types.get(name) if data_types else None)
            payload = _content(array, info)
        except UnsupportedTypeError as error:
            raise UnsupportedTypeError(f"{noun} {name!r}: {error}") from None
        size = payload.nbytes if isinstance(payload, np.ndarray) else len(payload)
        header = _entry_header(tag, name, info, array.shape, size)
        parts += (header, payload)
        total += len(header) + size
    return total


@lru_cache(maxsize=1024)
def _entry_header(tag: int, name: str, info: TypeInfo, shape: tuple[int, ...], size: int) -> bytes:
    """Everything of a map entry that comes before the tensor's data."""
    header = _tensor_header(info, shape)
    if size:
        header += bytes((_CONTENT,)) + varint(size)
    entry = _text(1, name) + bytes((_VALUE,)) + varint(len(header) + size) + header
    return bytes((tag,)) + varint(len(entry) + size) + entry


def _tensor_header(info: TypeInfo, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(delimited(2, bytes((_DIM_SIZE,)) + varint(size) if size else b"") for size in shape)
    # A scalar's shape is empty and still written: absent and empty are told apart by some readers.
    return bytes((_DTYPE,)) + varint(info.data_type) + delimited(2, dims)


def _as_array(value: object) -> np.ndarray:
    if isinstance(value, np.ma.MaskedArray):
        raise UnsupportedTypeError("a masked array cannot be sent; fill it first, array.filled(value)")
    return np.asarray(value)


def _sent_as(dtype: np.dtype, data_type: int | None) -> TypeInfo:
    """The type that arrays of `dtype` are sent as, `data_type` if it is given and fits."""
    natural = data_type_of(dtype)
    if data_type is None or data_type == natural:
        return type_info(natural)
    info, own = type_info(data_type), type_info(natural)
    raw_bits = dtype.kind == "u" and dtype.itemsize == info.item_size
    if own.numpy_name != info.numpy_name and not raw_bits:
        raise UnsupportedTypeError(f"an array of {dtype} cannot be sent as {short_name(data_type)}")
    return info


def _content(array: np.ndarray, info: TypeInfo) -> Any:
    """The tensor's `tensor_content`: a buffer that `bytes.join` takes, the array itself where possible."""
    if info.item_size == 0:
        strings = _strings(array)
        return encode_varints(np.fromiter(map(len, strings), np.int64, len(strings))) + b"".join(strings)
    return _values(array, info)


def _values(array: np.ndarray, info: TypeInfo) -> np.ndarray:
    """The elements, little-endian, one after the other, in a dtype that exports its buffer."""
    narrow = _NARROW.get(info.data_type)
    if narrow is not None and array.dtype.kind != "u":
        # The server keeps one sign-extended byte per element, ml_dtypes only the bits that count.
        array = array.astype(narrow[1])
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    array = np.ascontiguousarray(array)
    if array.dtype.kind == "V" or info.extended:
        array = array.reshape(-1).view(
            np.uint16 if info.item_size == 2 else array.dtype if narrow else np.uint8
        )
    return array


def _strings(array: np.ndarray) -> list[bytes]:
    """The elements of a string array as bytes, text encoded as UTF-8."""
    elements: list[Any] = array.ravel().tolist()
    kinds = set(map(type, elements))
    if kinds <= {bytes}:
        return elements
    try:
        if kinds == {str}:
            return [text.encode() for text in elements]
        return [text.encode() if isinstance(text, str) else _octets(text) for text in elements]
    except UnicodeEncodeError as error:
        raise UnsupportedTypeError(f"a string is not valid Unicode: {error}") from None


def _octets(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    raise UnsupportedTypeError(
        f"an object array may hold bytes and str, not {type(value).__name__}; "
        "give the array the dtype that its values have"
    )


# ---------------------------------------------------------------- decoding


def decode_predict_response(data: bytes) -> tuple[dict[str, np.ndarray], bytes]:
    """The outputs of a PredictResponse, in the order on the wire, and the body of its ModelSpec.

    The arrays are read-only and may be views on `data`. The body is empty when there is no ModelSpec.

    Raises:
        DecodeError: the bytes are no PredictResponse, or hold a tensor that the C++ runtime refuses.
        UnsupportedTypeError: a tensor's type has no numpy counterpart, or needs `ml_dtypes`.
    """
    outputs: dict[str, np.ndarray] = {}
    spec = b""
    for tag, start, stop in fields(data, 0, len(data)):
        if tag == _RESPONSE_OUTPUTS:
            name, body, body_start, body_stop = _entry(data, start, stop)
            outputs[name] = _tensor(body, body_start, body_stop, name)
        elif tag == _RESPONSE_SPEC:
            spec += data[start:stop]
    return outputs, spec


def decode_predict_request(data: bytes) -> PredictRequestParts:
    """Take a PredictRequest apart; the tensors are decoded by `decode_tensor`.

    Raises:
        DecodeError: the bytes are no PredictRequest.
    """
    view = memoryview(data)
    spec: bytes | None = None
    inputs: dict[str, memoryview] = {}
    output_filter: list[str] = []
    for tag, start, stop in fields(data, 0, len(data)):
        if tag == _REQUEST_SPEC:
            spec = (spec or b"") + data[start:stop]
        elif tag == _REQUEST_INPUTS:
            name, body, body_start, body_stop = _entry(data, start, stop)
            inputs[name] = (view if body is data else memoryview(body))[body_start:body_stop]
        elif tag == _REQUEST_FILTER:
            output_filter.append(_utf8(data, start, stop))
    return PredictRequestParts(spec, inputs, output_filter)


def decode_tensor(data: bytes | memoryview) -> np.ndarray:
    """The array that a TensorProto's body stands for; read-only, and a view on `data` where possible.

    Raises:
        DecodeError: the bytes are no TensorProto, or one that the C++ runtime refuses.
        UnsupportedTypeError: its type has no numpy counterpart, or needs `ml_dtypes`.
    """
    if not isinstance(data, bytes):
        data = memoryview(data).cast("B").toreadonly()
    return _tensor(data, 0, len(data), None)


def _entry(data: Buffer, start: int, stop: int) -> tuple[str, Buffer, int, int]:
    """A map entry's key, and where its value is: a buffer and a range in it."""
    key = ""
    value: tuple[Buffer, int, int] | None = None
    for tag, first, last in fields(data, start, stop):
        if tag == _KEY:
            key = _utf8(data, first, last)
        elif tag == _VALUE:
            value = _merged(value, data, first, last)
    return key, *(value or (b"", 0, 0))


def _merged(
    found: tuple[Buffer, int, int] | None, data: Buffer, start: int, stop: int
) -> tuple[Buffer, int, int]:
    """A message split over several occurrences: the bodies one after the other merge as protobuf merges."""
    if found is None:
        return data, start, stop
    before, first, last = found
    joined = bytes(before[first:last]) + bytes(data[start:stop])
    return joined, 0, len(joined)


class _Values:
    """The bytes of one repeated field, gathered from any number of packed and single occurrences."""

    __slots__ = ("_data", "_joined", "_start", "_stop")

    def __init__(self, data: Buffer, start: int, stop: int) -> None:
        self._data, self._start, self._stop = data, start, stop
        self._joined: bytearray | None = None

    def add(self, octets: Buffer) -> None:
        if self._joined is None:
            self._joined = bytearray(self._data[self._start : self._stop])
        self._joined += octets

    def span(self) -> tuple[Buffer, int, int]:
        if self._joined is None:
            return self._data, self._start, self._stop
        return bytes(self._joined), 0, len(self._joined)


def _tensor(data: Buffer, start: int, stop: int, name: str | None) -> np.ndarray:
    try:
        return _decode(data, start, stop)
    except (DecodeError, UnsupportedTypeError) as error:
        if name is None:
            raise
        raise type(error)(f"tensor {name!r}: {error}") from None


def _decode(data: Buffer, start: int, stop: int) -> np.ndarray:
    number = 0
    shape: list[int] = []
    content: tuple[int, int] | None = None
    strings: list[bytes] = []
    packed: dict[int, _Values] = {}
    for tag, first, last in fields(data, start, stop):
        if tag == _DTYPE:
            number = _signed(first) & 0xFFFFFFFF
        elif tag == _SHAPE:
            _read_shape(data, first, last, shape)
        elif tag == _CONTENT:
            content = first, last
        elif tag == _STRING_FIELD << 3 | LENGTH_DELIMITED:
            strings.append(bytes(data[first:last]))
        elif tag == _FLOAT8_FIELD << 3 | LENGTH_DELIMITED:
            packed[_FLOAT8_FIELD] = _Values(data, first, last)
        else:
            field, wire_type = tag >> 3, tag & 7
            if field not in _UNPACKED_WIRE_TYPE:
                continue
            if wire_type == LENGTH_DELIMITED:
                octets: Buffer = data[first:last]
            elif wire_type == _UNPACKED_WIRE_TYPE[field]:
                # A value on its own has the same bytes as in a packed field.
                octets = varint(first) if wire_type == VARINT else data[first:last]
            else:
                continue
            if field in packed:
                packed[field].add(octets)
            elif wire_type == VARINT:
                packed[field] = _Values(octets, 0, len(octets))
            else:
                packed[field] = _Values(data, first, last)
    if number not in _READABLE:
        raise DecodeError(f"a tensor of type {short_name(number)} holds no values")
    info = type_info(number)
    dtype = numpy_dtype(number)
    count = _elements(shape)
    try:
        if count == 0:
            return _read_only(np.empty(shape, dtype))
        if content is not None and content[0] < content[1]:
            return _from_content(data, *content, info, dtype, shape, count)
        if info.field == _STRING_FIELD:
            values = np.empty(min(len(strings), count), object)
            values[:] = strings[:count]
        else:
            found = packed.get(info.field)
            values = _from_values(*found.span(), info, dtype) if found else np.empty(0, dtype)
        return _filled(values, dtype, shape, count)
    except ValueError as error:
        if isinstance(error, DecodeError):
            raise
        raise DecodeError(f"numpy cannot hold a tensor of shape {tuple(shape)}: {error}") from None


# REF types and DT_INVALID are parse errors to the runtime; resources and variants are real types.
_READABLE = frozenset(DataType) - {DataType.DT_INVALID}


def _read_shape(data: Buffer, start: int, stop: int, shape: list[int]) -> None:
    for tag, first, last in fields(data, start, stop):
        if tag == _DIM:
            size = 0
            for dim_tag, value, end in fields(data, first, last):
                if dim_tag == _DIM_SIZE:
                    size = _signed(value)
                elif dim_tag == _DIM_NAME:
                    _utf8(data, value, end)
            shape.append(size)


def _elements(shape: list[int]) -> int:
    if len(shape) > _MAX_DIMENSIONS:
        raise DecodeError(f"a tensor of {len(shape)} dimensions; at most {_MAX_DIMENSIONS} are possible")
    count = 1
    for size in shape:
        if size < 0:
            raise DecodeError(f"a tensor of shape {tuple(shape)}: sizes cannot be negative")
        count *= size
        if count >= 1 << 63:
            raise DecodeError(f"a tensor of shape {tuple(shape)} has more elements than can be counted")
    return count


def _from_content(
    data: Buffer, start: int, stop: int, info: TypeInfo, dtype: np.dtype, shape: list[int], count: int
) -> np.ndarray:
    if info.item_size == 0:
        array = np.empty(count if count <= stop - start else 0, object)
        array[:] = _content_strings(data, start, stop, count)
        return _read_only(array.reshape(shape))
    if stop - start != count * info.item_size:
        raise DecodeError(
            f"tensor_content has {stop - start} bytes, shape {tuple(shape)} of {info.short_name} "
            f"needs {count * info.item_size}"
        )
    array = np.frombuffer(data, np.uint8, stop - start, start)
    if info.data_type == DataType.DT_BOOL and array.max() > 1:
        raise DecodeError("tensor_content of bool has a byte that is neither 0 nor 1")
    return array.view(dtype.newbyteorder("<") if dtype.kind in "iufc" else dtype).reshape(shape)


def _content_strings(data: Buffer, position: int, stop: int, count: int) -> list[bytes]:
    """`count` lengths as varints, then the strings themselves, and nothing else."""
    raise_short = DecodeError("tensor_content does not hold the strings that its shape calls for")
    if count > stop - position:
        raise raise_short
    lengths: list[int] = []
    for _ in range(count):
        length = shift = 0
        while True:
            if position >= stop or shift > 28:
                raise raise_short
            byte = data[position]
            position += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        lengths.append(length)
    if sum(lengths) != stop - position:
        raise raise_short
    strings: list[bytes] = []
    for length in lengths:
        strings.append(bytes(data[position : position + length]))
        position += length
    return strings


def _from_values(data: Buffer, start: int, stop: int, info: TypeInfo, dtype: np.dtype) -> np.ndarray:
    """The values of a typed field, flat: as many as there are."""
    fixed = _FIXED_FIELDS.get(info.field)
    if fixed is not None:
        part = fixed.itemsize // 2 if fixed.kind == "c" else fixed.itemsize
        if (stop - start) % part:
            raise DecodeError(f"a packed field of {info.short_name} has {stop - start} bytes")
        return np.frombuffer(data, fixed, (stop - start) // fixed.itemsize, start)
    if info.field == _FLOAT8_FIELD:
        return np.frombuffer(data, np.uint8, stop - start, start).view(dtype)
    values = decode_varints(data[start:stop])
    if info.data_type == DataType.DT_BOOL:
        return values != 0
    if info.item_size == 2 and info.field == 13:
        return values.astype(np.uint16).view(dtype)
    narrow = _NARROW.get(info.data_type)
    if narrow is not None:
        # Bits beyond the type's own are dropped, and the sign is spread over the byte.
        unused = np.uint8(8 - narrow[0])
        shifted = (values.astype(np.uint8) << unused).view(narrow[1]) >> narrow[1](unused)
        return shifted.view(dtype)
    return values.astype(dtype)


def _filled(values: np.ndarray, dtype: np.dtype, shape: list[int], count: int) -> np.ndarray:
    """`values` in `shape`: extra ones dropped, the last one repeated, zeros when there are none."""
    if len(values) >= count:
        return _read_only(values[:count].reshape(shape))
    if count * dtype.itemsize > MAX_EXPANDED_BYTES:
        raise DecodeError(
            f"a tensor of shape {tuple(shape)} with {len(values)} values would take "
            f"{count * dtype.itemsize} bytes"
        )
    if len(values) == 0:
        values = np.full(1, b"", object) if dtype == object else np.zeros(1, dtype)
    if len(values) == 1:
        # One value stands for all, and needs no more memory than one.
        return np.broadcast_to(values.reshape(()), shape)
    array = np.empty(count, dtype)
    array[: len(values)] = values
    array[len(values) :] = values[-1]
    return _read_only(array.reshape(shape))


# ---------------------------------------------------------------- small helpers


def _text(field: int, text: str) -> bytes:
    """A string field; protobuf leaves an empty one out."""
    return delimited(field, text.encode()) if text else b""


def _utf8(data: Buffer, start: int, stop: int) -> str:
    try:
        return str(data[start:stop], "utf-8")
    except UnicodeDecodeError as error:
        raise DecodeError(f"a string is not UTF-8: {error}") from None


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def _check_size(size: int, what: str) -> None:
    if size > MAX_MESSAGE_BYTES:
        raise MessageTooLargeError(f"{what} would have {size} bytes; protobuf's limit is {MAX_MESSAGE_BYTES}")
