"""numpy arrays to the bytes of Predict messages and back, without protobuf objects in between.

Encoding copies tensor data once, from the array into the message (`tensor_content`). Decoding copies
nothing where the wire already has the array's layout: `tensor_content` and packed float, double and
complex fields become views on the message. Packed integers are decoded in bulk.

Decoded arrays are read-only, since most of them are the message's own bytes: copy one to change it.

What is accepted and what it means follows the C++ runtime (`Tensor::FromProto`): content wins over
typed fields, the last typed value is repeated, no value at all means zeros. As there, a tensor much
larger than its message is refused; the bound here is `MAX_EXPANDED_BYTES`. Framing errors are found
in everything that is read; the inside of fields that do not matter to the tensor is not looked at.

The protobuf runtime is asked for help where it measured faster: packed fields of mostly multi-byte
integers, and tensors of many short strings.

Which types exist is left to `aioserving.dtypes`, how bytes are framed to `aioserving.wire`, and what
a signature allows to `aioserving.signature`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from aioserving.dtypes import (
    TENSOR_TYPES,
    DataType,
    TypeInfo,
    data_type_of,
    numpy_dtype,
    short_name,
    type_info,
)
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
    read_varint,
    signed,
    varint,
)

__all__ = [
    "MAX_EXPANDED_BYTES",
    "MAX_MESSAGE_BYTES",
    "PredictRequestParts",
    "ResponseDecoder",
    "decode_model_spec",
    "decode_predict_request",
    "decode_predict_response",
    "decode_tensor",
    "encode_model_spec",
    "encode_predict_request",
    "encode_predict_response",
    "encode_tensor",
    "encode_tensor_typed",
    "model_spec_field",
    "plain_input_head",
]

#: The most that one protobuf message, and so one gRPC call, can carry.
MAX_MESSAGE_BYTES = (1 << 31) - 1

#: The largest tensor that fewer values than elements may stand for (the last one is repeated): as
#: large as one that a message could carry in full. A few bytes can claim 10^18 elements.
MAX_EXPANDED_BYTES = MAX_MESSAGE_BYTES

# Tags: `field number << 3 | wire type`.
_DTYPE = 1 << 3 | VARINT  # of TensorProto
_SHAPE = 2 << 3 | LENGTH_DELIMITED
_CONTENT = 4 << 3 | LENGTH_DELIMITED
_STRING_VAL = 8 << 3 | LENGTH_DELIMITED
_DIM = 2 << 3 | LENGTH_DELIMITED  # of TensorShapeProto
_DIM_SIZE = 1 << 3 | VARINT
_DIM_NAME = 2 << 3 | LENGTH_DELIMITED
_KEY = 1 << 3 | LENGTH_DELIMITED  # of map entries
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

# TensorFlow's own limit; numpy's is lower (64, or 32 before numpy 2).
_MAX_DIMENSIONS = 254

# `decode_varints` beats the protobuf runtime when there are few bytes, or many of which at most one
# in `_SPARSE` is followed by another of the same value.
_FEW_BYTES = 64
_MANY_BYTES = 1 << 14
_SPARSE = 16
_SAMPLE_BYTES = 1 << 12
# How much is given to the runtime at a time.
_PART_BYTES = 1 << 17
# The runtime takes and gives strings faster than a loop when they are many and short; it copies
# them more often, which costs more when they are long.
_MANY_STRINGS = 64
_SHORT_STRING = 512

# Of so many lengths of responses, and of so many responses of one length, does a `ResponseDecoder`
# remember the layout, if all but the values is not larger than this many bytes.
_LENGTHS = 256
_LAYOUTS = 4
_LAYOUT_BYTES = 1 << 11
# A layout is made of one in so many responses that were none of those known, the second being the first:
# answers that never repeat cost nothing more, those that change for good are soon known again.
_LEARN_EVERY = 8

# Subclasses (masked arrays, memory maps) are looked at more closely.
_ndarray = np.ndarray

#: Pieces of a message, to be joined: ``bytes``, or arrays whose memory is what the wire wants.
_Pieces: TypeAlias = "list[Any]"


class PredictRequestParts(NamedTuple):
    """A PredictRequest taken apart, its tensors still encoded."""

    #: Body of the ModelSpec, or None when the request has none.
    model_spec: bytes | None
    #: Input name -> body of its TensorProto, for `decode_tensor`.
    inputs: dict[str, memoryview]
    #: Names of the outputs asked for; empty means all.
    output_filter: list[str]


# ------------------------------------------------------------------ model spec


def encode_model_spec(
    name: str,
    *,
    version: int | None = None,
    version_label: str | None = None,
    signature_name: str | None = None,
) -> bytes:
    """The body of a ModelSpec.

    Raises:
        ValueError: both `version` and `version_label` are given, or `version` is no 64-bit integer.
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

    Version and label are None when absent; they exclude each other, and the later one counts.

    Raises:
        DecodeError: the bytes are no ModelSpec.
    """
    name = signature_name = ""
    version_body: bytes | bytearray | None = None
    label: str | None = None
    for tag, start, stop in fields(data, 0, len(data)):
        if tag == _SPEC_NAME:
            name = _utf8(data, start, stop)
        elif tag == _SPEC_VERSION:
            version_body = _merged(version_body, data[start:stop])
            label = None
        elif tag == _SPEC_SIGNATURE:
            signature_name = _utf8(data, start, stop)
        elif tag == _SPEC_LABEL:
            label = _utf8(data, start, stop)
            version_body = None
    version: int | None = None
    if version_body is not None:
        version = 0
        for tag, value, _ in fields(bytes(version_body), 0, len(version_body)):
            if tag == _INT64_VALUE:
                version = signed(value)
    return name, version, label, signature_name


# ------------------------------------------------------------------ encoding


def encode_predict_request(
    inputs: Mapping[str, np.ndarray],
    *,
    model_spec: bytes,
    output_filter: Sequence[str] = (),
    data_types: Mapping[str, int] | None = None,
) -> bytes:
    """A whole PredictRequest, with each tensor's data copied once.

    Numbers travel as `tensor_content`, strings in `string_val`, which every reader understands.

    Args:
        inputs: arrays of any shape, layout and byte order, by input name.
        model_spec: body of the ModelSpec, from `encode_model_spec`.
        output_filter: names of the outputs wanted; empty means all.
        data_types: types to send other than what an array's dtype says (see `encode_tensor`).

    Raises:
        UnsupportedTypeError: an array holds what no TensorProto can; the message names the input.
        MessageTooLargeError: the request would be larger than `MAX_MESSAGE_BYTES`.
    """
    if len(inputs) == 1 and not (output_filter or data_types):
        # What most models are called with: one look-up.
        [name] = inputs
        array = inputs[name]
        if type(array) is _ndarray and array.flags.c_contiguous:
            before = _before_data(model_spec, name, array.dtype, array.shape)
            if before is not None:
                return b"".join((before, array))  # type: ignore[arg-type]  # arrays are buffers
    pieces: _Pieces = [model_spec_field(1, model_spec)]
    size = len(pieces[0])
    for name, array in inputs.items():
        data_type = data_types.get(name) if data_types else None
        if type(array) is _ndarray and array.flags.c_contiguous:
            entry = plain_input_head(name, array.dtype, array.shape, data_type)
            if entry is not None:
                pieces += (entry[0], array)
                size += entry[1]
                continue
        size += _append_entry(pieces, _REQUEST_INPUTS, "input", name, array, data_type, strings_typed=True)
    for name in output_filter:
        pieces.append(delimited(3, name.encode()))
        size += len(pieces[-1])
    _check_size(size, "the request")
    return b"".join(pieces)


def encode_predict_response(
    outputs: Mapping[str, np.ndarray],
    *,
    model_spec: bytes,
    typed: bool = True,
    data_types: Mapping[str, int] | None = None,
) -> bytes:
    """A whole PredictResponse as the C++ server writes it: outputs in the mapping's order, model spec last.

    Args:
        outputs: arrays by output name.
        model_spec: body of the ModelSpec, from `encode_model_spec`.
        typed: whether values go into typed fields, which is the server's default, or into
            `tensor_content` (its flag `--enable_serialization_as_tensor_content`).
        data_types: types to send other than what an array's dtype says (see `encode_tensor`).

    Raises:
        UnsupportedTypeError: an array holds what no TensorProto can; the message names the output.
        MessageTooLargeError: the response would be larger than `MAX_MESSAGE_BYTES`.
    """
    pieces: _Pieces = []
    size = 0
    for name, array in outputs.items():
        data_type = data_types.get(name) if data_types else None
        size += _append_entry(pieces, _RESPONSE_OUTPUTS, "output", name, array, data_type, typed, typed)
    pieces.append(model_spec_field(2, model_spec))
    _check_size(size + len(pieces[-1]), "the response")
    return b"".join(pieces)


def encode_tensor(array: np.ndarray, *, data_type: int | None = None) -> bytes:
    """The body of a TensorProto with dtype, shape and `tensor_content`.

    Args:
        array: of any dtype that `data_type_of` knows, and any layout and byte order; object arrays
            must hold ``bytes`` or ``str``, which is sent as UTF-8.
        data_type: the type to send instead of what the dtype says. The array must have the dtype of
            that type (``int8`` for DT_QINT8), or hold its raw bits in integers of the same size
            (``uint16`` for DT_BFLOAT16 or DT_HALF, ``uint8`` for the 8-bit and smaller types).

    Raises:
        UnsupportedTypeError: the array holds what no TensorProto can, or does not fit `data_type`.
        MessageTooLargeError: the tensor would be larger than `MAX_MESSAGE_BYTES`.
    """
    return _join_tensor(*_tensor_pieces(array, data_type, typed=False, strings_typed=False))


def encode_tensor_typed(array: np.ndarray, *, data_type: int | None = None) -> bytes:
    """The body of a TensorProto with dtype, shape and one typed value per element.

    These are the bytes that the C++ server writes: the shape is there for scalars too, nothing is
    compressed, and a tensor without elements has no values.

    Args:
        array: as in `encode_tensor`.
        data_type: as in `encode_tensor`.

    Raises:
        UnsupportedTypeError: the array holds what no TensorProto can, or does not fit `data_type`.
        MessageTooLargeError: the tensor would be larger than `MAX_MESSAGE_BYTES`.
    """
    return _join_tensor(*_tensor_pieces(array, data_type, typed=True, strings_typed=True))


def _join_tensor(pieces: _Pieces, size: int) -> bytes:
    _check_size(size, "the tensor")
    return b"".join(pieces)


@lru_cache(maxsize=1024)
def _before_data(model_spec: bytes, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> bytes | None:
    """All of a request for one input that precedes the array's memory; None where that memory will not do.

    Models are called with the same name, dtype and shape again and again: this is all the work on a
    request that does not depend on the values, done once.
    """
    entry = plain_input_head(name, dtype, shape, None)
    before = model_spec_field(1, model_spec)
    # Too large a request is left to the general path, which says so.
    return None if entry is None or len(before) + entry[1] > MAX_MESSAGE_BYTES else before + entry[0]


@lru_cache(maxsize=1024)
def plain_input_head(
    name: str, dtype: np.dtype, shape: tuple[int, ...], data_type: int | None = None
) -> tuple[bytes, int] | None:
    """What precedes the memory of a C-contiguous array in a PredictRequest, in which it is an input.

    Args:
        name: of the input.
        dtype: of the array.
        shape: of the array.
        data_type: the type to send other than what the dtype says (see `encode_tensor`).

    Returns:
        The bytes, and the size in bytes of them and the array together; None if the array's memory is not
        what the wire wants (strings, other byte orders, dtypes that numpy lacks or TensorFlow does not know).
    """
    try:
        info = _sent_as(dtype, data_type)
    except UnsupportedTypeError:
        return None  # the general path says what is wrong, and with which input
    if not _is_plain(dtype, info):
        return None
    size = dtype.itemsize
    for length in shape:
        size *= length
    header = _tensor_header(info.data_type, shape) + _content_header(size)
    entry = _entry_header(_REQUEST_INPUTS, name, len(header) + size) + header
    return entry, len(entry) + size


def _is_plain(dtype: np.dtype, info: TypeInfo) -> bool:
    """Whether the memory of a contiguous array of `dtype` is the `tensor_content` as it stands."""
    return dtype.type.__module__ == "numpy" and info.item_size > 0 and dtype == dtype.newbyteorder("<")


def _append_entry(
    pieces: _Pieces,
    tag: int,
    noun: str,
    name: str,
    array: np.ndarray,
    data_type: int | None,
    typed: bool = False,
    strings_typed: bool = False,
) -> int:
    """Append a map entry to `pieces`; return its size in bytes."""
    try:
        body, size = _tensor_pieces(array, data_type, typed=typed, strings_typed=strings_typed)
    except (UnsupportedTypeError, MessageTooLargeError) as error:
        raise type(error)(f"{noun} {name!r}: {error}") from None
    header = _entry_header(tag, name, size)
    pieces.append(header)
    pieces += body
    return len(header) + size


def _tensor_pieces(
    value: object, data_type: int | None, *, typed: bool, strings_typed: bool
) -> tuple[_Pieces, int]:
    """A TensorProto in pieces, and its size; `strings_typed` is `typed` for string tensors."""
    array = _as_array(value)
    info = _sent_as(array.dtype, data_type)
    header = _tensor_header(info.data_type, array.shape)
    if array.size == 0:
        return [header], len(header)
    converter = _CONVERTERS[info.data_type]
    # Before anything is copied; a broadcast array can be larger than memory. Varints and strings take
    # at least a byte each.
    as_is = not typed or isinstance(converter, _Fixed)
    _check_size(array.size * (info.item_size if as_is and info.item_size else 1), "the tensor")
    if isinstance(converter, _Strings):
        body = converter.typed_pieces(array) if strings_typed else converter.content_pieces(array)
    else:
        values = _values(array, info)
        if typed:
            packed = converter.typed(values)
            body = [varint(converter.packed_tag) + varint(_size(packed)), packed]
        else:
            body = [_content_header(_size(values)), values]
    return [header, *body], len(header) + sum(map(_size, body))


def _size(piece: Any) -> int:
    return piece.nbytes if isinstance(piece, np.ndarray) else len(piece)


@lru_cache(maxsize=1024)
def _tensor_header(data_type: int, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(
        [delimited(2, bytes((_DIM_SIZE,)) + varint(length) if length else b"") for length in shape]
    )
    # A scalar's shape is empty and yet written, as the server does.
    return bytes((_DTYPE,)) + varint(data_type) + delimited(2, dims)


def _content_header(size: int) -> bytes:
    return bytes((_CONTENT,)) + varint(size) if size else b""


def _entry_header(tag: int, name: str, tensor_size: int) -> bytes:
    """What precedes the TensorProto in a map entry."""
    # Map entries write key and value even when they are empty.
    entry = delimited(1, name.encode()) + bytes((_VALUE,)) + varint(tensor_size)
    return bytes((tag,)) + varint(len(entry) + tensor_size) + entry


@lru_cache(maxsize=256)
def model_spec_field(number: int, model_spec: bytes) -> bytes:
    """The ModelSpec of that body as field `number`: 1 of a PredictRequest, 2 of a PredictResponse."""
    return delimited(number, model_spec)


def _as_array(value: object) -> np.ndarray:
    if type(value) is _ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise UnsupportedTypeError("a masked array has no counterpart; fill it first, array.filled(value)")
    try:
        return np.asarray(value)
    except ValueError as error:  # ragged lists
        raise UnsupportedTypeError(f"cannot be made an array: {error}") from None


def _sent_as(dtype: np.dtype, data_type: int | None) -> TypeInfo:
    """The type that arrays of `dtype` are sent as: `data_type` if it is given and fits."""
    natural = type_info(data_type_of(dtype))
    if data_type is None or data_type == natural.data_type:
        return natural
    info = type_info(data_type)
    holds_bits = info.extended or info.data_type == DataType.DT_HALF
    if natural.numpy_name != info.numpy_name and not (
        holds_bits and dtype.kind in "iu" and dtype.itemsize == info.item_size
    ):
        raise UnsupportedTypeError(f"an array of {dtype} cannot be sent as {short_name(data_type)}")
    return info


def _values(array: np.ndarray, info: TypeInfo) -> np.ndarray:
    """The elements in the order and the bytes of `tensor_content`, in a dtype that exports its memory."""
    if not _is_plain(array.dtype, info):
        array = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
        converter = _CONVERTERS[info.data_type]
        if isinstance(converter, _Narrow):
            # `ml_dtypes` may leave the bits of a byte that do not count as they come.
            array = array.astype(converter.stored)
        elif info.extended:
            array = np.ascontiguousarray(array).view(f"u{info.item_size}")
    return np.ascontiguousarray(array)


# ------------------------------------------------------------------ decoding


def decode_predict_response(data: bytes) -> tuple[dict[str, np.ndarray], bytes]:
    """The outputs of a PredictResponse, in the order on the wire, and the body of its ModelSpec.

    The arrays are read-only and may be views on `data`. The body is empty when there is no ModelSpec.

    Raises:
        DecodeError: the bytes are no PredictResponse, or hold a tensor that the C++ runtime refuses.
        UnsupportedTypeError: a tensor's type has no numpy counterpart, or needs `ml_dtypes`.
    """
    return _predict_response(data, None)


def _predict_response(data: bytes, places: list[_Place] | None) -> tuple[dict[str, np.ndarray], bytes]:
    """As `decode_predict_response`; adds to `places` where the values of each output are."""
    tensors: dict[str, tuple[bytes, int, int]] = {}
    spec: bytes | bytearray | None = None
    for tag, start, stop in fields(data, 0, len(data)):
        if tag == _RESPONSE_OUTPUTS:
            name, span = _entry(data, start, stop)
            tensors[name] = span
        elif tag == _RESPONSE_SPEC:
            spec = _merged(spec, data[start:stop])
    outputs: dict[str, np.ndarray] = {}
    # Not before all is read: of a name met twice only the last tensor counts, the first may be anything.
    for name, (body, start, stop) in tensors.items():
        values: list[_Values] | None = None if places is None else []
        try:
            outputs[name] = _tensor(body, start, stop, places=values)
        except (DecodeError, UnsupportedTypeError) as error:
            raise type(error)(f"output {name!r}: {error}") from None
        if places is not None:
            # A tensor in several parts was put together in a buffer of its own: it has no place in `data`.
            places.append(_Place(name, start, stop, values[0] if values else None, body is data))
    return outputs, bytes(spec or b"")


#: How values are read that are no view, where they stop, and how many elements the tensor has.
_Read: TypeAlias = "tuple[_Reader, int, int]"
_Reader: TypeAlias = "Callable[[Buffer, int, int, tuple[int, ...], int], np.ndarray]"


class _Values(NamedTuple):
    """The one field that holds a tensor's values, and how they are read."""

    read: _Reader
    #: The dtype, if the bytes are the array's memory as they stand, else None.
    view: np.dtype | None
    start: int
    stop: int
    shape: tuple[int, ...]
    elements: int


class _Place(NamedTuple):
    """Where an output is in a response."""

    name: str
    #: Range of the TensorProto.
    start: int
    stop: int
    #: Its values; None if they are not all in one place.
    values: _Values | None
    in_place: bool


class _Layout(NamedTuple):
    """What responses have in common that differ in nothing but the values of tensors."""

    #: Ranges and what is in them: every byte that is not in `outputs`.
    fixed: tuple[tuple[int, int, bytes], ...]
    #: Of each output its name, dtype, shape and where its values start; and if they are no view, `_Read`.
    outputs: tuple[tuple[str, np.dtype | None, tuple[int, ...], int, _Read | None], ...]
    model_spec: bytes


class ResponseDecoder:
    """Decodes the PredictResponses of one model: as `decode_predict_response`, faster where they repeat.

    A model answers with the same outputs, dtypes and shapes again and again, so that most of a response's
    bytes are those of one before. They are compared, each of them, with what was parsed then; if they are
    the same, so is where the values lie, and just these are read. Every other response is parsed in full.

    For one thread at a time. Keeps the layouts of at most 256 lengths of responses, four of each length,
    of about 2 KB each at most; never a response.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        #: By length: how many responses of it were of no known layout; and the layouts, the newest first.
        self._known: dict[int, tuple[int, tuple[_Layout, ...]]] = {}

    def __repr__(self) -> str:
        layouts = sum(len(layouts) for _, layouts in self._known.values())
        return f"<ResponseDecoder of {layouts} layouts>"

    def decode(self, data: bytes) -> tuple[dict[str, np.ndarray], bytes]:
        """The outputs of a PredictResponse, in the order on the wire, and the body of its ModelSpec.

        The arrays are read-only and may be views on `data`. The body is empty when there is no ModelSpec.

        Raises:
            DecodeError: the bytes are no PredictResponse, or hold a tensor that the C++ runtime refuses.
            UnsupportedTypeError: a tensor's type has no numpy counterpart, or needs `ml_dtypes`.
        """
        known = self._known.get(len(data))
        if known is None:
            if len(self._known) >= _LENGTHS:
                self._known.clear()  # those in use are back after two responses each
            self._known[len(data)] = 1, ()
            return _predict_response(data, None)
        for fixed, places, model_spec in known[1]:
            for start, stop, octets in fixed:
                if data[start:stop] != octets:
                    break
            else:
                outputs = {}
                try:
                    for name, dtype, shape, begin, values in places:
                        if values is None:
                            outputs[name] = _ndarray(shape, dtype, data, begin)
                        else:
                            read, end, count = values
                            outputs[name] = read(data, begin, end, shape, count)
                except (DecodeError, UnsupportedTypeError, ValueError):
                    break  # the full parser finds it, too, and says in which output
                return outputs, model_spec
        return self._decode_unknown(data, *known)

    def _decode_unknown(
        self, data: bytes, misses: int, layouts: tuple[_Layout, ...]
    ) -> tuple[dict[str, np.ndarray], bytes]:
        misses += 1
        if misses % _LEARN_EVERY != 2:
            self._known[len(data)] = misses, layouts
            return _predict_response(data, None)
        places: list[_Place] = []
        outputs, model_spec = _predict_response(data, places)
        layout = _layout(data, places, model_spec)
        if layout is not None:
            layouts = layout, *layouts[: _LAYOUTS - 1]
        self._known[len(data)] = misses, layouts
        return outputs, model_spec


def _layout(data: bytes, places: list[_Place], model_spec: bytes) -> _Layout | None:
    """The layout of a response that was parsed just now; None if it is not worth keeping."""
    outputs: list[tuple[str, np.dtype | None, tuple[int, ...], int, _Read | None]] = []
    variable: list[tuple[int, int]] = []
    for place in places:
        if not place.in_place:
            return None
        values = place.values
        if values is None:
            # Nothing but the range is taken as given, and the tensor parsed as ever.
            values = _Values(_read_tensor, None, place.start, place.stop, (), 0)
        # Compared are the dtype, the shape and all tags and lengths, the one before the values among them.
        variable.append((values.start, values.stop))
        rest = None if values.view is not None else (values.read, values.stop, values.elements)
        outputs.append((place.name, values.view, values.shape, values.start, rest))
    fixed: list[tuple[int, int, bytes]] = []
    position = 0
    size = 0
    # In the order of the wire, which is not that of `places` where a name was met twice.
    for start, stop in [*sorted(variable), (len(data), len(data))]:
        if start > position:
            size += start - position
            if size > _LAYOUT_BYTES:
                return None
            fixed.append((position, start, data[position:start]))
        position = stop
    return _Layout(tuple(fixed), tuple(outputs), model_spec)


def _read_tensor(data: Buffer, start: int, stop: int, shape: tuple[int, ...], count: int) -> np.ndarray:
    """The tensor that is ``data[start:stop]``, whatever its shape."""
    return _tensor(data, start, stop)


def decode_predict_request(data: bytes) -> PredictRequestParts:
    """Take a PredictRequest apart; its tensors are left to `decode_tensor`.

    Raises:
        DecodeError: the bytes are no PredictRequest.
    """
    view = memoryview(data)
    spec: bytes | bytearray | None = None
    inputs: dict[str, memoryview] = {}
    output_filter: list[str] = []
    for tag, start, stop in fields(data, 0, len(data)):
        if tag == _REQUEST_SPEC:
            spec = _merged(spec, data[start:stop])
        elif tag == _REQUEST_INPUTS:
            name, (body, first, last) = _entry(data, start, stop)
            inputs[name] = (view if body is data else memoryview(body))[first:last]
        elif tag == _REQUEST_FILTER:
            output_filter.append(_utf8(data, start, stop))
    return PredictRequestParts(None if spec is None else bytes(spec), inputs, output_filter)


def decode_tensor(data: bytes | memoryview) -> np.ndarray:
    """The array that a TensorProto's body stands for; read-only, and a view on `data` where possible.

    Raises:
        DecodeError: the bytes are no TensorProto, or one that the C++ runtime refuses.
        UnsupportedTypeError: its type has no numpy counterpart, or needs `ml_dtypes`.
    """
    if not isinstance(data, bytes):
        data = memoryview(data).toreadonly().cast("B")
    return _tensor(data, 0, len(data))


def _entry(data: bytes, start: int, stop: int) -> tuple[str, tuple[bytes, int, int]]:
    """A map entry's key, and where its value is: a buffer and a range in it."""
    key = ""
    value = 0, 0
    several: bytes | bytearray | None = None
    for tag, first, last in fields(data, start, stop):
        if tag == _KEY:
            key = _utf8(data, first, last)
        elif tag == _VALUE:
            if value != (0, 0):
                several = _merged(several or data[value[0] : value[1]], data[first:last])
            value = first, last
    if several is not None:
        return key, (bytes(several), 0, len(several))
    return key, (data, *value)


def _merged(found: bytes | bytearray | None, body: Buffer) -> bytes | bytearray:
    """The body of a message that comes in several parts: one after the other, they are the merged message."""
    if found is None:
        return bytes(body)
    # A bytearray grows in place; adding up bytes would take quadratic time for many parts.
    found = found if isinstance(found, bytearray) else bytearray(found)
    found += body
    return found


def _tensor(
    data: Buffer,
    start: int,
    stop: int,
    strings: list[bytes] | None = None,
    places: list[_Values] | None = None,
) -> np.ndarray:
    """The array of the TensorProto in ``data[start:stop]``.

    Args:
        data: holds it.
        start: of it.
        stop: of it.
        strings: its values, taken out before.
        places: to add to where the values are, if they are in one field whose inside does not say how
            anything else is read.
    """
    number = 0
    shape_body: bytes | bytearray | None = None
    content_start = content_stop = 0
    collected: list[bytes] = []
    many = False
    # Where values are, by tag. Whether they matter shows when the type is known for good.
    spans: dict[int, tuple[int, int]] = {}
    scattered = False
    for tag, first, last in fields(data, start, stop):
        if tag == _DTYPE:
            number = first & 0xFFFFFFFF
        elif tag == _SHAPE:
            shape_body = _merged(shape_body, data[first:last])
        elif tag == _CONTENT:
            content_start, content_stop = first, last
        elif tag == _STRING_VAL:
            if number == DataType.DT_STRING:
                if len(collected) >= _MANY_STRINGS and last - first <= _SHORT_STRING:
                    many = True
                    break
                collected.append(bytes(data[first:last]))
            else:
                many = True  # the type comes later, if these count at all
        elif tag in _VALUE_TAGS:
            scattered = scattered or tag in spans
            spans[tag] = first, last
    converter = _CONVERTERS.get(number)
    if converter is None:
        raise _no_values(number)
    if many and number == DataType.DT_STRING:
        return _many_strings(bytes(data[start:stop]))
    body = bytes(shape_body or b"")
    shape, count = _shape(body) if len(body) <= _CACHED_SHAPE else _read_shape(body)
    try:
        if count == 0:
            return _read_only(np.empty(shape, converter.dtype))
        if content_start < content_stop:
            if places is not None:
                view = converter.content_view
                places.append(
                    _Values(converter.from_content, view, content_start, content_stop, shape, count)
                )
            return converter.from_content(data, content_start, content_stop, shape, count)
        if isinstance(converter, _Strings):
            return _filled(converter.array((strings or collected)[:count]), shape, count)
        if converter.repeated and (scattered or converter.single_tag in spans):
            data = _gathered(data, start, stop, converter)
            return converter.from_values(data, 0, len(data), shape, count)
        first, last = spans.get(converter.packed_tag, (0, 0))
        if places is not None and first < last:
            view = converter.packed_view(last - first, count)
            places.append(_Values(converter.from_values, view, first, last, shape, count))
        return converter.from_values(data, first, last, shape, count)
    except ValueError as error:
        if isinstance(error, DecodeError):
            raise
        raise DecodeError(f"numpy cannot hold a tensor of {len(shape)} dimensions: {error}") from None


def _no_values(number: int) -> DecodeError | UnsupportedTypeError:
    if number in (DataType.DT_RESOURCE, DataType.DT_VARIANT):
        return UnsupportedTypeError(f"a tensor of type {short_name(number)} has no numpy counterpart")
    return DecodeError(f"a tensor cannot have the type {short_name(number)}")


def _many_strings(body: bytes) -> np.ndarray:
    """A tensor with many strings: the protobuf runtime takes them out, the rest goes the usual way."""
    message = _runtime_tensor(body)
    strings = message.string_val[:]
    message.ClearField("string_val")
    rest = message.SerializeToString()
    return _tensor(rest, 0, len(rest), strings)


def _gathered(data: Buffer, start: int, stop: int, converter: _Converter) -> bytes:
    """The values of a repeated field that is not one packed run, made one."""
    octets = bytearray()
    for tag, first, last in fields(data, start, stop):
        if tag == converter.packed_tag:
            converter.check_packed(data, first, last)
            octets += data[first:last]
        elif tag == converter.single_tag:
            # A value on its own has the bytes that it would have in a packed field.
            octets += varint(first) if tag & 7 == VARINT else data[first:last]
    return bytes(octets)


def _read_shape(body: bytes) -> tuple[tuple[int, ...], int]:
    """The sizes in a TensorShapeProto, and their product."""
    sizes = []
    for tag, start, stop in fields(body, 0, len(body)):
        if tag == _DIM:
            size = 0
            for dim_tag, value, end in fields(body, start, stop):
                if dim_tag == _DIM_SIZE:
                    size = signed(value)
                elif dim_tag == _DIM_NAME:
                    _utf8(body, value, end)
            sizes.append(size)
            if len(sizes) > _MAX_DIMENSIONS:
                raise DecodeError(f"a tensor of more than {_MAX_DIMENSIONS} dimensions")
    shape = tuple(sizes)
    count = 1
    for size in shape:
        if size < 0:
            raise DecodeError(f"a tensor of shape {shape}: sizes cannot be negative")
        count *= size
        if count >= 1 << 63:
            raise DecodeError(f"a tensor of shape {shape} has more elements than can be counted")
    return shape, count


#: The same few shapes come again and again; longer bodies are not worth keeping.
_shape = lru_cache(maxsize=1024)(_read_shape)
_CACHED_SHAPE = 256


def _filled(values: np.ndarray, shape: tuple[int, ...], count: int) -> np.ndarray:
    """The flat `values` in `shape`: extra ones dropped, the last one repeated, zeros if there are none."""
    if values.size >= count:
        return _read_only((values if values.size == count else values[:count]).reshape(shape))
    size = count * values.dtype.itemsize
    if size > MAX_EXPANDED_BYTES:
        raise DecodeError(
            f"a tensor of shape {shape} with {values.size} values would take {size} bytes; "
            f"at most {MAX_EXPANDED_BYTES} are filled up"
        )
    if values.size == 0:
        values = np.array([b""], object) if values.dtype.kind == "O" else np.zeros(1, values.dtype)
    if values.size == 1:
        # One value stands for all of them and takes the memory of one.
        return np.broadcast_to(values.reshape(()), shape)
    array = np.empty(count, values.dtype)
    array[: values.size] = values
    array[values.size :] = values[-1]
    return _read_only(array.reshape(shape))


# ------------------------------------------------------------------ converters


class _Converter:
    """How the values of one data type lie in `tensor_content` and in their typed field.

    Attributes:
        info: the data type.
        packed_tag: tag of the typed field when it holds all values.
        single_tag: tag of the typed field when it holds one value.
        wire_type: how one value is framed on its own.
        repeated: whether values may be spread over several occurrences of the field.
    """

    wire_type = LENGTH_DELIMITED
    repeated = True

    def __init__(self, info: TypeInfo) -> None:
        self.info = info
        self.packed_tag = info.field << 3 | LENGTH_DELIMITED
        self.single_tag = info.field << 3 | self.wire_type

    def __repr__(self) -> str:
        return f"<{type(self).__name__} for {self.info.short_name}>"

    @cached_property
    def dtype(self) -> np.dtype:
        """The dtype of arrays, in the wire's byte order; looked up late, since `ml_dtypes` may be absent."""
        dtype = numpy_dtype(self.info.data_type)
        return dtype if self.info.extended else dtype.newbyteorder("<")

    @property
    def content_view(self) -> np.dtype | None:
        """The dtype of arrays whose memory any `tensor_content` of the right size is; None if not any."""
        return self.dtype

    def packed_view(self, size: int, count: int) -> np.dtype | None:
        """The dtype of arrays whose memory any packed field of `size` bytes is; None if not any.

        Args:
            size: bytes in the field.
            count: elements of the array.
        """
        return None

    def from_content(
        self, data: Buffer, start: int, stop: int, shape: tuple[int, ...], count: int
    ) -> np.ndarray:
        """The array whose `tensor_content` is ``data[start:stop]``: a view on it."""
        if stop - start != count * self.info.item_size:
            raise DecodeError(
                f"tensor_content has {stop - start} bytes where shape {shape} of {self.info.short_name} "
                f"takes {count * self.info.item_size}"
            )
        array: np.ndarray = np.ndarray(shape, self.dtype, data, start)
        return array

    def from_values(
        self, data: Buffer, start: int, stop: int, shape: tuple[int, ...], count: int
    ) -> np.ndarray:
        """The array whose packed typed field is ``data[start:stop]``."""
        raise NotImplementedError

    def check_packed(self, data: Buffer, start: int, stop: int) -> None:
        """Raise DecodeError if ``data[start:stop]`` does not hold whole values."""

    def typed(self, values: np.ndarray) -> Any:
        """The packed typed field of `values`, which come from `_values`, as a buffer."""
        return values


class _Fixed(_Converter):
    """Floats and complex numbers: the packed field is the array already."""

    def __init__(self, info: TypeInfo) -> None:
        # Complex numbers are written as pairs of numbers of half their size; an odd last one is no pair.
        self.width = info.item_size // 2 if info.numpy_name.startswith("complex") else info.item_size
        self.wire_type = FIXED32 if self.width == 4 else FIXED64
        super().__init__(info)

    def packed_view(self, size: int, count: int) -> np.dtype | None:
        return self.dtype if size // self.info.item_size >= count else None

    def from_values(
        self, data: Buffer, start: int, stop: int, shape: tuple[int, ...], count: int
    ) -> np.ndarray:
        self.check_packed(data, start, stop)
        found = (stop - start) // self.info.item_size
        array: np.ndarray = np.ndarray(shape if found >= count else found, self.dtype, data, start)
        return array if found >= count else _filled(array, shape, count)

    def check_packed(self, data: Buffer, start: int, stop: int) -> None:
        if (stop - start) % self.width:
            raise DecodeError(f"{stop - start} bytes are no packed numbers of {self.width} bytes each")


class _Octets(_Converter):
    """8-bit floats: one `bytes` field, of which the last occurrence counts."""

    repeated = False

    def from_values(
        self, data: Buffer, start: int, stop: int, shape: tuple[int, ...], count: int
    ) -> np.ndarray:
        return _filled(np.ndarray(stop - start, self.dtype, data, start), shape, count)


class _Integers(_Converter):
    """Integers as varints. Bits beyond the type's own are dropped, as by a cast in C++."""

    wire_type = VARINT
    #: Whether a varint below 128 with zeros after it is the element's memory.
    widens = True

    def from_values(
        self, data: Buffer, start: int, stop: int, shape: tuple[int, ...], count: int
    ) -> np.ndarray:
        if stop - start == 1 == count and self.widens and data[start] < 0x80:
            # One class id, one version: a third of the time.
            array: np.ndarray = np.ndarray(
                shape, self.dtype, data[start].to_bytes(self.info.item_size, "little")
            )
            return array
        values = self.convert(
            _varints(data, start, stop, self.info.field, count),
            numpy_dtype(self.info.data_type),
        )
        return _filled(values, shape, count)

    def convert(self, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Integers as they were on the wire, made the type's own."""
        return values.view(dtype) if values.itemsize == dtype.itemsize else values.astype(dtype)

    def check_packed(self, data: Buffer, start: int, stop: int) -> None:
        if start < stop and data[stop - 1] > 0x7F:
            raise DecodeError("a packed field ends within a varint")

    def typed(self, values: np.ndarray) -> Any:
        return encode_varints(values)


class _Bools(_Integers):
    widens = False

    @property
    def content_view(self) -> np.dtype | None:
        return None

    def from_content(
        self, data: Buffer, start: int, stop: int, shape: tuple[int, ...], count: int
    ) -> np.ndarray:
        array = super().from_content(data, start, stop, shape, count)
        if array.view(np.uint8).max() > 1:
            raise DecodeError("tensor_content of a bool tensor has a byte that is neither 0 nor 1")
        return array

    def convert(self, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
        nonzero: np.ndarray = np.not_equal(values, 0)
        return nonzero


class _Halves(_Integers):
    """16-bit floats: each one's bit pattern as an integer."""

    widens = False

    def convert(self, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
        return values.astype(np.uint16).view(dtype)

    def typed(self, values: np.ndarray) -> Any:
        return encode_varints(values.view(np.uint16))


class _Narrow(_Integers):
    """Integers of less than a byte, of which every byte holds one."""

    widens = False

    def __init__(self, info: TypeInfo) -> None:
        super().__init__(info)
        #: What the server keeps: the value in a whole byte, its sign extended.
        self.stored = np.dtype(info.numpy_name.rstrip("24") + "8")
        self._unused = 8 - int(info.numpy_name[-1])

    def convert(self, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
        # Up and down again: what lies beyond the value's bits falls off, its sign fills the byte.
        octets: np.ndarray = np.left_shift(values.astype(np.uint8), self._unused).view(self.stored)
        octets >>= self._unused
        return octets.view(dtype)

    def typed(self, values: np.ndarray) -> Any:
        return encode_varints(values.view(self.stored))


class _Strings(_Converter):
    """Strings: one field each, or in `tensor_content` all their lengths and then all their bytes."""

    @property
    def content_view(self) -> np.dtype | None:
        return None

    def from_content(
        self, data: Buffer, start: int, stop: int, shape: tuple[int, ...], count: int
    ) -> np.ndarray:
        lengths, position = self._lengths(data, start, stop, count)
        if sum(lengths) != stop - position:
            raise DecodeError(f"tensor_content does not hold the {count} strings of shape {shape}")
        strings = []
        for length in lengths:
            strings.append(bytes(data[position : position + length]))
            position += length
        return _filled(self.array(strings), shape, count)

    def _lengths(self, data: Buffer, position: int, stop: int, count: int) -> tuple[Sequence[int], int]:
        if count > stop - position:
            raise DecodeError(f"tensor_content has {stop - position} bytes, too few for {count} strings")
        first = bytes(data[position : position + count])
        if first.isascii():
            return first, position + count
        lengths = []
        for _ in range(count):
            begin = position
            length, position = read_varint(data, position, stop)
            if position - begin > 5:
                raise DecodeError("tensor_content has a string length of more than 5 bytes")
            lengths.append(length & 0xFFFFFFFF)
        return lengths, position

    def array(self, strings: list[bytes]) -> np.ndarray:
        return np.fromiter(strings, object, len(strings))

    def content_pieces(self, array: np.ndarray) -> _Pieces:
        """The `tensor_content` field of a string array."""
        strings = _elements(array)
        lengths = encode_varints(np.fromiter(map(len, strings), np.int64, len(strings)))
        header = _content_header(len(lengths) + sum(map(len, strings)))
        return [header, lengths, *strings]

    def typed_pieces(self, array: np.ndarray) -> _Pieces:
        """The `string_val` fields of a string array."""
        strings = _elements(array)
        size = sum(map(len, strings))
        if len(strings) > _MANY_STRINGS and size <= _SHORT_STRING * len(strings):
            return [_tensor_class()(string_val=strings).SerializeToString()]
        tag = bytes((_STRING_VAL,))
        return [piece for text in strings for piece in (tag + varint(len(text)), text)]


def _converters() -> dict[int, _Converter]:
    by_field = {
        5: _Fixed,
        6: _Fixed,
        7: _Integers,
        8: _Strings,
        9: _Fixed,
        10: _Integers,
        11: _Bools,
        12: _Fixed,
        13: _Halves,
        16: _Integers,
        17: _Integers,
        18: _Octets,
    }
    narrow = {DataType.DT_INT4, DataType.DT_UINT4, DataType.DT_INT2, DataType.DT_UINT2}
    return {
        info.data_type: (_Narrow if info.data_type in narrow else by_field[info.field])(info)
        for info in map(type_info, TENSOR_TYPES)
    }


_CONVERTERS = _converters()
_VALUE_TAGS = frozenset(
    tag for converter in _CONVERTERS.values() for tag in (converter.packed_tag, converter.single_tag)
)
# Names and integer types of the fields that hold varints.
_VARINT_FIELDS = {
    7: ("int_val", np.int32),
    10: ("int64_val", np.int64),
    11: ("bool_val", np.bool_),
    13: ("half_val", np.int32),
    16: ("uint32_val", np.uint32),
    17: ("uint64_val", np.uint64),
}


def _varints(data: Buffer, start: int, stop: int, field: int, count: int) -> np.ndarray:
    """The varints of a packed field: as uint8 if all are below 128, as uint64, or in the field's own type.

    All of them are read; beyond the first `count`, some may be left out of the result.
    """
    size = stop - start
    if size < _MANY_BYTES:
        few = bytes(data[start:stop])
        octets = np.frombuffer(few, np.uint8)
        if few.isascii():  # all below 128, found without the fixed cost of an array operation
            return octets
        if size <= _FEW_BYTES:
            return decode_varints(octets)
    else:
        octets = np.frombuffer(data, np.uint8, size, start)
        sample = octets[:: size // _SAMPLE_BYTES]
        if sample.max() < 0x80 and octets.max() < 0x80:
            return octets
        if np.count_nonzero(sample > 0x7F) * _SPARSE <= sample.size:
            return decode_varints(octets)
    return _runtime_varints(memoryview(data)[start:stop], field, count)


def _runtime_varints(packed: memoryview, field: int, count: int) -> np.ndarray:
    """What the protobuf runtime reads from a packed field, in parts that fit the processor's cache."""
    name, kind = _VARINT_FIELDS[field]
    tag = varint(field << 3 | LENGTH_DELIMITED)
    values: np.ndarray = np.empty(min(count, len(packed)), kind)
    filled = begin = 0
    while begin < len(packed):
        end = min(begin + _PART_BYTES, len(packed))
        while end < len(packed) and packed[end - 1] > 0x7F:
            end += 1
            if end - begin > _PART_BYTES + 10:
                raise DecodeError("a varint in a packed field is longer than 10 bytes")
        message = _runtime_tensor(b"".join((tag, varint(end - begin), packed[begin:end])))
        part = getattr(message, name)
        if filled < values.size:
            # Older runtimes have no `__array__`; an iterator is then what numpy reads fastest.
            found = np.asarray(part) if hasattr(part, "__array__") else np.fromiter(part, kind, len(part))
            room = values[filled : filled + found.size]
            room[:] = found[: room.size]
            filled += room.size
        begin = end
    return values[:filled]


def _runtime_tensor(body: bytes) -> Any:
    """`body` parsed by the protobuf runtime."""
    from google.protobuf.message import DecodeError as RuntimeDecodeError

    try:
        return _tensor_class().FromString(body)
    except RuntimeDecodeError as error:
        raise DecodeError(str(error)) from None


def _tensor_class() -> Any:
    from aioserving._proto import message_class

    return message_class("tensorflow.TensorProto")


# ------------------------------------------------------------------ small helpers


def _elements(array: np.ndarray) -> list[bytes]:
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
        return bytes(value)
    raise UnsupportedTypeError(
        f"an object array may hold bytes and str, not {type(value).__name__}; "
        "numbers need an array with a numeric dtype"
    )


def _text(number: int, text: str) -> bytes:
    """A string field; protobuf leaves an empty one out."""
    return delimited(number, text.encode()) if text else b""


def _utf8(data: Buffer, start: int, stop: int) -> str:
    try:
        return str(data[start:stop], "utf-8")
    except UnicodeDecodeError as error:
        raise DecodeError(f"a string is not UTF-8: {error}") from None


def _read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


def _check_size(size: int, what: str) -> None:
    if size > MAX_MESSAGE_BYTES:
        raise MessageTooLargeError(f"{what} would have {size} bytes; protobuf's limit is {MAX_MESSAGE_BYTES}")
