"""Tensors and Predict messages: as protobuf, TensorFlow and the real server have them, whatever the input."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError as RuntimeDecodeError
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aioserving import codec, dtypes
from aioserving._proto import message_class
from aioserving.codec import (
    ResponseDecoder,
    decode_model_spec,
    decode_predict_request,
    decode_predict_response,
    decode_tensor,
    encode_model_spec,
    encode_predict_request,
    encode_predict_response,
    encode_tensor,
    encode_tensor_typed,
)
from aioserving.dtypes import TENSOR_TYPES, DataType, data_type_of, numpy_dtype, type_info
from aioserving.errors import DecodeError, MessageTooLargeError, UnsupportedTypeError
from aioserving.wire import LENGTH_DELIMITED, VARINT, delimited, fields, varint

try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None

TensorProto: Any = message_class("tensorflow.TensorProto")
PredictRequest: Any = message_class("tensorflow.serving.PredictRequest")
PredictResponse: Any = message_class("tensorflow.serving.PredictResponse")
ModelSpec: Any = message_class("tensorflow.serving.ModelSpec")

GOLDEN = Path(__file__).parent / "golden"
SPEC = encode_model_spec("digits", version=3, signature_name="serving_default")

#: The types that this environment has arrays for.
USABLE = [number for number in TENSOR_TYPES if ml_dtypes is not None or not type_info(number).extended]
NUMERIC = [number for number in USABLE if number is not DataType.DT_STRING]
#: Those that `data_type_of` answers, so that no `data_type` needs to be given.
NATURAL = [number for number in NUMERIC if data_type_of(numpy_dtype(number)) is number]
#: Numbers of the fields of a TensorProto that hold varints.
VARINT_FIELDS = {7, 10, 11, 13, 16, 17}
NARROW = {DataType.DT_INT4: 4, DataType.DT_UINT4: 4, DataType.DT_INT2: 2, DataType.DT_UINT2: 2}

# Messages of many parts are large and slow to make, which is what they are for; and machines that run
# tests have other things to do, so that no example has a deadline.
PATIENT = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large],
)

shapes = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)


# ------------------------------------------------------------------ arrays of any kind


@st.composite
def values_of(draw: st.DrawFn, number: DataType, shape: tuple[int, ...]) -> np.ndarray:
    """An array of the type, of any bit patterns, NaNs of all kinds among them."""
    dtype = numpy_dtype(number)
    if dtype == np.bool_:
        return draw(hnp.arrays(np.bool_, shape))
    count = math.prod(shape)
    octets = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    if number in NARROW:
        # What `ml_dtypes` makes itself: no bits beyond the value's own.
        mask = (1 << NARROW[number]) - 1
        octets = bytes(octet & mask for octet in octets)
    return np.frombuffer(octets, dtype).reshape(shape)


def _strided(array: np.ndarray) -> np.ndarray:
    wide = np.repeat(array, 2, axis=-1) if array.ndim else array
    return wide[..., ::2] if array.ndim else wide


def _unaligned(array: np.ndarray) -> np.ndarray:
    octets = np.frombuffer(b"\0" + array.tobytes(), np.uint8)[1:]
    return octets.view(array.dtype).reshape(array.shape)


#: Layouts with the same elements in the same order.
LAYOUTS = {
    "c": lambda array: array,
    "fortran": lambda array: np.array(array, order="F"),
    "reversed": lambda array: np.ascontiguousarray(array[..., ::-1])[..., ::-1] if array.ndim else array,
    "strided": _strided,
    "transposed": lambda array: np.array(array.T, order="C").T,
    "unaligned": _unaligned,
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "subclass": lambda array: array.view(np.memmap) if array.ndim else array,
}


def little_endian(array: np.ndarray) -> bytes:
    """The elements as the wire wants them."""
    if array.dtype.isbuiltin == 1 or array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    if ml_dtypes is not None and array.dtype in (ml_dtypes.int4, ml_dtypes.int2):
        array = array.astype(np.int8)  # the server extends the sign over the byte
    return array.tobytes()


def assert_same(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal in dtype, shape and every bit (strings: every element)."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    if expected.dtype.kind == "O":
        assert actual.tolist() == expected.tolist()
    elif actual.dtype.name in ("int4", "uint4", "int2", "uint2"):
        # Of these bytes just the low bits count.
        assert actual.astype(np.int8).tolist() == expected.astype(np.int8).tolist()
    else:
        assert actual.tobytes() == expected.tobytes()


def assert_equal(actual: np.ndarray, expected: np.ndarray) -> None:
    """As `assert_same`, but any NaN equals any: values that pass through Python floats lose their kind."""
    if expected.dtype.kind in "fc" and expected.dtype.isbuiltin == 1:
        assert actual.shape == expected.shape
        assert actual.dtype == expected.dtype
        with np.errstate(invalid="ignore"):  # numpy 2.2, Python 3.10's last, warns of NaN in complex64
            np.testing.assert_array_equal(actual, expected)
    else:
        assert_same(actual, expected)


texts = st.binary(max_size=12) | st.binary(min_size=120, max_size=140)


# ------------------------------------------------------------------ what a TensorProto means, spelt out


class RefusedError(Exception):
    """The C++ runtime, or numpy, has no such tensor."""


def reference(message: Any, limit: int = codec.MAX_EXPANDED_BYTES) -> np.ndarray:
    """The array of a parsed TensorProto by `Tensor::FromProto`'s rules, one value at a time."""
    if message.dtype not in set(TENSOR_TYPES):
        raise RefusedError("no such type")
    info = type_info(message.dtype)
    try:
        dtype = numpy_dtype(message.dtype)
    except UnsupportedTypeError:
        raise RefusedError("ml_dtypes is missing") from None
    count = 1
    for dim in message.tensor_shape.dim:
        count *= dim.size
        if dim.size < 0 or count >= 2**63:
            raise RefusedError("bad shape")
    shape = [dim.size for dim in message.tensor_shape.dim]
    try:
        if count == 0:
            return np.empty(shape, dtype)
        np.broadcast_to(np.int8(0), shape)
    except ValueError:
        raise RefusedError("too many dimensions for numpy") from None
    if message.tensor_content:
        return _reference_content(message.tensor_content, info, dtype, shape, count)
    values = _reference_values(message, info, dtype)[:count]
    if len(values) < count and count * (dtype.itemsize) > limit:
        raise RefusedError("too large")
    last = values[-1] if values else (b"" if dtype.kind == "O" else bytes(dtype.itemsize))
    if count > 1 << 22:
        raise AssertionError("the test means to fill up more than it should")
    values = values + [last] * (count - len(values))
    if dtype.kind == "O":
        array = np.empty(count, object)
        array[:] = values
    else:
        array = np.frombuffer(b"".join(values), dtype)
    return array.reshape(shape)


def _reference_content(
    content: bytes, info: dtypes.TypeInfo, dtype: np.dtype, shape: list[int], count: int
) -> np.ndarray:
    if dtype.kind != "O":
        if len(content) != count * info.item_size or (dtype.kind == "b" and max(content) > 1):
            raise RefusedError("bad content")
        return np.frombuffer(content, dtype).reshape(shape)
    position, lengths = 0, []
    for _ in range(min(count, len(content) + 1)):
        length = shift = 0
        while True:
            if position >= len(content) or shift > 28:
                raise RefusedError("bad lengths")
            octet = content[position]
            position += 1
            length |= (octet & 0x7F) << shift
            shift += 7
            if octet < 0x80:
                break
        lengths.append(length & 0xFFFFFFFF)
    if sum(lengths) != len(content) - position:
        raise RefusedError("bad lengths")
    strings = []
    for length in lengths:
        strings.append(content[position : position + length])
        position += length
    array = np.empty(count, object)
    array[:] = strings
    return array.reshape(shape)


def _reference_values(message: Any, info: dtypes.TypeInfo, dtype: np.dtype) -> list[bytes]:
    """The values of the type's own field, each as its bytes in memory."""
    field = message.DESCRIPTOR.fields_by_number[info.field].name
    values = getattr(message, field)
    if info.field == 8:
        return list(values)
    if info.field == 18:
        return [bytes((octet,)) for octet in values]
    if info.field in (5, 6, 9, 12):
        part = np.array(values, "<f4" if info.field in (5, 9) else "<f8").tobytes()
        size = dtype.itemsize
        return [part[at : at + size] for at in range(0, len(part) - size + 1, size)]
    size = dtype.itemsize
    if dtype.kind == "b":
        return [bytes((bool(value),)) for value in values]
    if info.data_type in NARROW:
        bits = NARROW[info.data_type]
        sign = 1 << (bits - 1) if not info.numpy_name.startswith("u") else 0
        return [(((int(value) % 2**bits) ^ sign) - sign & 0xFF).to_bytes(1, "little") for value in values]
    return [(int(value) % 256**size).to_bytes(size, "little") for value in values]


# ------------------------------------------------------------------ encoding, read by protobuf


@given(st.data(), st.sampled_from(NUMERIC), shapes, st.sampled_from(sorted(LAYOUTS)))
@PATIENT
def test_content_of_every_dtype_shape_and_layout_is_read_by_protobuf(
    data: st.DataObject, number: DataType, shape: tuple[int, ...], layout: str
) -> None:
    """Whatever an array's dtype, shape and memory layout, protobuf finds its elements in `tensor_content`."""
    array = data.draw(values_of(number, shape))
    assume(layout != "big-endian" or array.dtype.isbuiltin == 1)
    laid_out = LAYOUTS[layout](array)
    expected = TensorProto(dtype=number, tensor_content=little_endian(array))
    expected.tensor_shape.SetInParent()
    for size in shape:
        expected.tensor_shape.dim.add(size=size)
    data_type = None if number in NATURAL else number
    assert encode_tensor(laid_out, data_type=data_type) == expected.SerializeToString(deterministic=True)
    request = PredictRequest.FromString(
        encode_predict_request({"x": laid_out}, model_spec=SPEC, data_types={"x": number})
    )
    assert request.inputs["x"] == expected
    response = encode_predict_response(
        {"x": laid_out}, model_spec=SPEC, typed=False, data_types={"x": number}
    )
    assert PredictResponse.FromString(response).outputs["x"] == expected
    assert_same(decode_tensor(encode_tensor(laid_out, data_type=number)), array)


@given(st.data(), st.sampled_from(NUMERIC), shapes, st.sampled_from(sorted(LAYOUTS)))
@PATIENT
def test_typed_fields_of_every_dtype_shape_and_layout_are_read_by_protobuf(
    data: st.DataObject, number: DataType, shape: tuple[int, ...], layout: str
) -> None:
    """Typed fields hold one value per element, and decoding them gives the array again."""
    array = data.draw(values_of(number, shape))
    assume(layout != "big-endian" or array.dtype.isbuiltin == 1)
    body = encode_tensor_typed(LAYOUTS[layout](array), data_type=number)
    message = TensorProto.FromString(body)
    assert message.SerializeToString(deterministic=True) == body
    assert message.dtype == number
    assert message.HasField("tensor_shape")
    assert [dim.size for dim in message.tensor_shape.dim] == list(shape)
    assert not message.tensor_content
    assert_equal(reference(message), array)
    assert_same(decode_tensor(body), array)


@given(shapes, st.data())
@PATIENT
def test_strings_of_every_shape_round_trip_in_both_encodings(
    shape: tuple[int, ...], data: st.DataObject
) -> None:
    """Byte strings of any length and content survive, typed, as content, and in requests."""
    count = math.prod(shape)
    array = np.empty(count, object)
    array[:] = data.draw(st.lists(texts, min_size=count, max_size=count))
    array = array.reshape(shape)
    for body in (encode_tensor(array), encode_tensor_typed(array)):
        assert_same(decode_tensor(body), array)
        assert_same(reference(TensorProto.FromString(body)), array)
    assert list(TensorProto.FromString(encode_tensor_typed(array)).string_val) == array.ravel().tolist()
    request = PredictRequest.FromString(encode_predict_request({"x": array}, model_spec=SPEC))
    assert list(request.inputs["x"].string_val) == array.ravel().tolist()
    assert_same(reference(request.inputs["x"]), array)


@pytest.mark.parametrize("count", [1, 64, 65, 1000])
@pytest.mark.parametrize("length", [0, 1, 127, 128, 2000])
def test_few_and_many_short_and_long_strings_are_the_same_bytes(count: int, length: int) -> None:
    """Which way strings are written and read depends on number and length; the bytes and values do not."""
    strings = [bytes((index % 256,)) * length for index in range(count)]
    array = np.array([*strings, b""], object)[:count]
    expected = TensorProto(dtype=7, string_val=strings)
    expected.tensor_shape.dim.add(size=count)
    body = encode_tensor_typed(array)
    assert body == expected.SerializeToString()
    assert decode_tensor(body).tolist() == strings
    assert decode_tensor(encode_tensor(array)).tolist() == strings


def _text_arrays() -> dict[str, np.ndarray]:
    texts = ["", "a", "grün", "日本", "x" * 200]
    arrays = {
        "str": np.array(texts),
        "object of str": np.array(texts, object),
        "object of both": np.array([*texts[:3], *(text.encode() for text in texts[3:])], object),
        "object of numpy strings": np.array([np.str_(texts[0]), *map(np.str_, texts[1:])], object),
        "object of bytes": np.array([text.encode() for text in texts], object),
        "bytes": np.array([text.encode() for text in texts]),
        "big-endian str": np.array(texts).astype(">U200"),
        "strided": np.repeat(np.array(texts), 2)[::2],
    }
    arrays["object of numpy bytes"] = np.array([np.bytes_(text.encode()) for text in texts] + [None], object)[
        :-1
    ]
    if hasattr(np.dtypes, "StringDType"):
        arrays["StringDType"] = np.array(texts, np.dtypes.StringDType())
    return arrays


@pytest.mark.parametrize("kind", _text_arrays())
def test_numpy_string_arrays_go_in(kind: str) -> None:
    """Every kind of string array is sent as strings, text as UTF-8."""
    array = _text_arrays()[kind]
    expected = ["", "a", "grün", "日本", "x" * 200]
    request = PredictRequest.FromString(encode_predict_request({"t": array}, model_spec=SPEC))
    assert [text.decode() for text in request.inputs["t"].string_val] == expected
    assert request.inputs["t"].dtype == DataType.DT_STRING
    assert [text.decode() for text in decode_tensor(encode_tensor(array))] == expected


class _Odd:
    pass


REFUSED = {
    "datetime": (np.array(["2026-01-01"], "M8[D]"), "datetime64"),
    "timedelta": (np.array([3], "m8[s]"), "timedelta64"),
    "structured": (np.zeros(2, [("a", "f4")]), "'a'"),
    "void": (np.zeros(2, "V4"), "V4"),
    "long double": (np.zeros(2, np.longdouble), "float128|longdouble"),
    "complex long double": (np.zeros(2, np.clongdouble), "complex256|clongdouble"),
    "object of float": (np.array([b"a", 1.5], object), "float"),
    "object of None": (np.array([None, b"a"], object), "NoneType"),
    "object of instances": (np.array([_Odd()], object), "_Odd"),
    "object of lists": (np.array([[1], [1, 2]], object), "list"),
    "None": (None, "NoneType"),
    "ragged list": ([[1, 2], [3]], "inhomogeneous"),
    "masked": (np.ma.array([1, 2], mask=[True, False]), "masked"),
    "surrogate": (np.array(["\ud800"]), "Unicode"),
    "surrogate in object": (np.array(["\ud800", b"a"], object), "Unicode"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_tensor_can_hold_is_refused_by_name(name: str) -> None:
    """An array without counterpart raises an error that names its type and, in a message, the tensor."""
    array, pattern = REFUSED[name]
    for encode in (encode_tensor, encode_tensor_typed):
        with pytest.raises(UnsupportedTypeError, match=pattern):
            encode(array)
    with pytest.raises(UnsupportedTypeError, match=rf"input 'images': .*({pattern})"):
        encode_predict_request({"images": array}, model_spec=SPEC)
    with pytest.raises(UnsupportedTypeError, match=rf"output 'scores': .*({pattern})"):
        encode_predict_response({"scores": array}, model_spec=SPEC)


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="numpy 1 has no StringDType")
def test_missing_strings_are_refused() -> None:
    """A missing entry of a StringDType array is no string."""
    array = np.array(["a", None], np.dtypes.StringDType(na_object=None))
    with pytest.raises(UnsupportedTypeError, match="NoneType"):
        encode_tensor(array)


@pytest.mark.parametrize(
    ("array", "data_type", "typed_field", "values"),
    [
        (np.array([-1, 5], np.int8), DataType.DT_QINT8, "int_val", [-1, 5]),
        (np.array([7], np.uint16), DataType.DT_QUINT16, "int_val", [7]),
        (np.array([-7], np.int32), DataType.DT_QINT32, "int_val", [-7]),
        (np.array([0x3F80], np.uint16), DataType.DT_BFLOAT16, "half_val", [0x3F80]),
        (np.array([0x3C00], np.int16), DataType.DT_HALF, "half_val", [0x3C00]),
        (np.array([-2, 7], np.int8), DataType.DT_INT4, "int_val", [-2, 7]),
        (np.array([0xF8], np.uint8), DataType.DT_INT4, "int_val", [-8]),
        (np.array([3], np.uint8), DataType.DT_UINT2, "int_val", [3]),
        (np.array([1, 255], np.uint8), DataType.DT_FLOAT8_E5M2, "float8_val", b"\x01\xff"),
    ],
)
def test_data_type_overrides_what_the_dtype_says(
    array: np.ndarray, data_type: DataType, typed_field: str, values: object
) -> None:
    """Quantized types and raw bits are sent from the integers that store them, also without `ml_dtypes`."""
    content = TensorProto.FromString(encode_tensor(array, data_type=data_type))
    assert content.dtype == data_type
    assert content.tensor_content == array.tobytes()
    typed = TensorProto.FromString(encode_tensor_typed(array, data_type=data_type))
    found = getattr(typed, typed_field)
    assert (found if isinstance(values, bytes) else list(found)) == values
    request = encode_predict_request({"x": array}, model_spec=SPEC, data_types={"x": data_type})
    assert PredictRequest.FromString(request).inputs["x"] == content


@pytest.mark.parametrize(
    ("array", "data_type"),
    [
        (np.zeros(1, np.float32), DataType.DT_INT32),
        (np.zeros(1, np.int8), DataType.DT_QUINT8),
        (np.zeros(1, np.uint8), DataType.DT_BOOL),
        (np.zeros(1, np.uint32), DataType.DT_BFLOAT16),
        (np.zeros(1, np.uint16), DataType.DT_FLOAT8_E5M2),
        (np.zeros(1, object), DataType.DT_FLOAT),
        (np.zeros(1, np.float32), DataType.DT_STRING),
        (np.zeros(1, np.float32), DataType.DT_RESOURCE),
        (np.zeros(1, np.float32), 101),
    ],
)
def test_a_data_type_that_does_not_fit_is_refused(array: np.ndarray, data_type: int) -> None:
    """No value is converted on the quiet: an array that does not hold the type's values is refused."""
    with pytest.raises(UnsupportedTypeError):
        encode_tensor(array, data_type=data_type)
    with pytest.raises(UnsupportedTypeError, match="input 'x'"):
        encode_predict_request({"x": array}, model_spec=SPEC, data_types={"x": data_type})


def test_a_request_is_what_protobuf_writes() -> None:
    """Field order, names, filter and model spec of a whole request are the runtime's, byte for byte."""
    arrays = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "": np.array(True),
        "ünï": np.array([b"x", b""], object),
        "empty": np.zeros((0, 4), np.int64),
        "t": np.arange(6.0).reshape(2, 3).T,
    }
    body = encode_predict_request(arrays, model_spec=SPEC, output_filter=["y", "zä"])
    parsed = PredictRequest.FromString(body)
    assert parsed.model_spec.SerializeToString() == SPEC
    assert list(parsed.output_filter) == ["y", "zä"]
    assert parsed.inputs.keys() == arrays.keys()
    for name, array in arrays.items():
        assert_same(reference(parsed.inputs[name]), array)
    # The runtime's own order of map entries is not ours; of a single entry there is one order.
    for name, array in arrays.items():
        single = encode_predict_request({name: array}, model_spec=SPEC, output_filter=["y"])
        assert PredictRequest.FromString(single).SerializeToString() == single
        answer = encode_predict_response({name: array}, model_spec=SPEC)
        assert PredictResponse.FromString(answer).SerializeToString() == answer


def test_a_repeated_shape_is_encoded_afresh() -> None:
    """What is remembered of a shape is its header: equal shapes, dtypes and names never mix up their data."""
    for dtype in (np.float32, np.int32, np.uint32):
        for name in ("a", "b"):
            for value in (1, 2):
                array = np.full((2, 2), value, dtype)
                parsed = PredictRequest.FromString(encode_predict_request({name: array}, model_spec=SPEC))
                assert_same(reference(parsed.inputs[name]), array)
    # Equal as dictionary keys, and yet not the same.
    for other in (np.array([True]), np.array([1.0]), np.array([1], np.int8), np.array([1], ">i4")):
        parsed = PredictRequest.FromString(encode_predict_request({"a": other}, model_spec=SPEC))
        assert_same(reference(parsed.inputs["a"]), other.astype(other.dtype.newbyteorder("=")))


def test_messages_beyond_two_gib_are_refused_before_anything_is_copied() -> None:
    """More than protobuf can carry is a MessageTooLargeError that names the tensor, at no cost in memory."""
    huge = np.broadcast_to(np.float32(0), (1 << 15, 1 << 14))
    many = np.broadcast_to(np.int8(0), (1 << 16, 1 << 16))
    tracemalloc.start()
    try:
        with pytest.raises(MessageTooLargeError, match=r"input 'x'.*2147483647"):
            encode_predict_request({"x": huge}, model_spec=SPEC)
        for array in (huge, many):
            for encode in (encode_tensor, encode_tensor_typed):
                with pytest.raises(MessageTooLargeError):
                    encode(array)
        with pytest.raises(MessageTooLargeError, match="output 'y'"):
            encode_predict_response({"y": huge}, model_spec=SPEC)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_many_tensors_that_are_too_large_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds for the sum of the tensors, as it does for each."""
    monkeypatch.setattr(codec, "MAX_MESSAGE_BYTES", 1000)
    array = np.zeros(100, np.float32)
    encode_predict_request({"a": array, "b": array}, model_spec=SPEC)
    with pytest.raises(MessageTooLargeError, match="the request"):
        encode_predict_request({"a": array, "b": array, "c": array}, model_spec=SPEC)
    with pytest.raises(MessageTooLargeError, match="the response"):
        encode_predict_response({"a": array, "b": array, "c": array}, model_spec=SPEC)


# ------------------------------------------------------------------ model spec


names = st.text(max_size=20)


@given(names, st.none() | st.integers(-(2**63), 2**63 - 1), names, names)
@PATIENT
def test_model_spec_with_version_is_protobufs(
    name: str, version: int | None, label: str, signature: str
) -> None:
    """A ModelSpec with a version, a label or neither is written and read as the runtime does."""
    for kwargs in ({"version": version}, {"version_label": label}):
        body = encode_model_spec(name, signature_name=signature, **kwargs)  # type: ignore[arg-type]
        expected = ModelSpec(name=name, signature_name=signature)
        if "version_label" in kwargs:
            expected.version_label = label
        elif version is not None:
            expected.version.value = version
            expected.version.SetInParent()
        assert body == expected.SerializeToString()
        assert decode_model_spec(body) == (
            name,
            kwargs.get("version"),
            kwargs.get("version_label"),
            signature,
        )


def test_model_spec_refuses_version_with_label_and_versions_beyond_64_bits() -> None:
    """A oneof holds one of the two; a version is an int64."""
    with pytest.raises(ValueError, match="exclude each other"):
        encode_model_spec("m", version=1, version_label="stable")
    for version in (2**63, -(2**63) - 1):
        with pytest.raises(ValueError, match="64 bits"):
            encode_model_spec("m", version=version)


@given(st.permutations(["name", "version 1", "label", "version 2", "signature", "no version", "name 2"]))
@PATIENT
def test_model_spec_in_any_order_is_merged_as_by_protobuf(order: list[str]) -> None:
    """Of a oneof the last member counts; a version in two parts is one, unless a label comes between."""
    parts = {
        "name": b"\x0a\x01m",
        "name 2": b"\x0a\x01n",
        "version 1": b"\x12\x02\x08\x05",
        "version 2": b"\x12\x04\x08\x07\x10\x01",
        "no version": b"\x12\x00",
        "label": b"\x22\x01s",
        "signature": b"\x1a\x01g",
    }
    body = b"".join(parts[part] for part in order)
    expected = ModelSpec.FromString(body)
    choice = expected.WhichOneof("version_choice")
    assert decode_model_spec(body) == (
        expected.name,
        expected.version.value if choice == "version" else None,
        expected.version_label if choice == "version_label" else None,
        expected.signature_name,
    )


# ------------------------------------------------------------------ decoding, written by protobuf


@st.composite
def messages(draw: st.DrawFn) -> Any:
    """A TensorProto such as no server sends: any type, any number of values, also in wrong fields."""
    message = TensorProto(dtype=draw(st.sampled_from([*USABLE, *USABLE, 0, 20, 21, 99, 101, -1])))
    known = message.dtype in set(TENSOR_TYPES)
    own = type_info(message.dtype).field if known else 5
    if draw(st.integers(0, 9)):
        for size in draw(st.lists(st.integers(0, 4), max_size=4)):
            message.tensor_shape.dim.add(size=size, name=draw(st.sampled_from(["", "batch"])))
        message.tensor_shape.unknown_rank = draw(st.integers(0, 9)) == 0
        if draw(st.integers(0, 19)) == 0:
            message.tensor_shape.dim.add(size=draw(st.sampled_from([-1, 2**40, 2**62, -(2**63)])))
    for field in {own, draw(st.sampled_from([5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 17, 18]))}:
        _fill(draw, message, field)
    if draw(st.integers(0, 3)) == 0:
        count = math.prod(dim.size for dim in message.tensor_shape.dim)
        size = count * type_info(message.dtype).item_size if known else 8
        size = size if 0 <= size < 5000 else 8
        message.tensor_content = draw(
            st.binary(min_size=size, max_size=size)
            | st.binary(max_size=12)
            | st.lists(st.booleans()).map(bytes)
        )
    return message


def _fill(draw: st.DrawFn, message: Any, field: int) -> None:
    descriptor = message.DESCRIPTOR.fields_by_number[field]
    kind = descriptor.cpp_type
    bits = {descriptor.CPPTYPE_INT32: 32, descriptor.CPPTYPE_INT64: 64}.get(kind)
    unsigned = {descriptor.CPPTYPE_UINT32: 32, descriptor.CPPTYPE_UINT64: 64}.get(kind)
    if field == 18:
        message.float8_val = draw(st.binary(max_size=20))
        return
    if bits:
        values: Any = st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) | st.integers(-5, 300)
    elif unsigned:
        values = st.integers(0, 2**unsigned - 1) | st.integers(0, 300)
    elif kind == descriptor.CPPTYPE_BOOL:
        values = st.booleans()
    elif kind == descriptor.CPPTYPE_STRING:
        values = st.binary(max_size=8)
    else:
        values = st.floats(width=32, allow_nan=False)
    getattr(message, descriptor.name).extend(draw(st.lists(values, max_size=12)))


def outcome(body: bytes) -> np.ndarray | str:
    """The decoded array, or that it was refused."""
    try:
        array = decode_tensor(body)
    except (DecodeError, UnsupportedTypeError) as error:
        return f"refused: {error}"
    assert not array.flags.writeable
    return array


def expected_outcome(message: Any, limit: int = codec.MAX_EXPANDED_BYTES) -> np.ndarray | str:
    try:
        return reference(message, limit)
    except RefusedError:
        return "refused"


def assert_same_outcome(actual: np.ndarray | str, expected: np.ndarray | str) -> None:
    if isinstance(expected, str) or isinstance(actual, str):
        assert isinstance(expected, str), f"refused, but protobuf and the rules give {expected!r}"
        assert isinstance(actual, str), f"{actual!r}, but by the rules there is no such tensor"
    else:
        assert_equal(actual, expected)


@given(messages())
@settings(PATIENT, max_examples=300)
def test_any_tensor_of_protobufs_is_decoded_by_the_rules(message: Any) -> None:
    """Content first, last value repeated, extra dropped, none means zeros: the C++ runtime's rules."""
    assert_same_outcome(outcome(message.SerializeToString()), expected_outcome(message))


def _records(body: bytes) -> list[tuple[int, bytes]]:
    """The top-level fields of a message: tag and the whole field's bytes."""
    found = []
    for tag, start, stop in fields(body, 0, len(body)):
        if tag & 7 == VARINT:
            found.append((tag, varint(tag) + varint(start)))
        elif tag & 7 == LENGTH_DELIMITED:
            found.append((tag, varint(tag) + varint(stop - start) + body[start:stop]))
        else:
            found.append((tag, varint(tag) + body[start:stop]))
    return found


UNKNOWN = [
    b"\xa0\x06\x05",  # varint
    b"\xa1\x0612345678",
    b"\xa2\x06\x03abc",
    b"\xa5\x061234",
    b"\xa3\x06\x08\x01\x12\x01x\xa4\x06",  # group 100, with fields that look like the tensor's own
    b"\x0d1234",  # dtype in the wrong wire type
    b"\x10\x07",  # shape as a varint
    b"\x3d1234",  # int_val as fixed32
]
SINGLES = {5: 4, 6: 8, 9: 4, 12: 8}


def _scramble(draw: st.DrawFn, body: bytes) -> bytes:
    """The same message written otherwise: other order, packed fields in parts, strangers between."""
    pieces: list[bytes] = []
    for tag, record in _records(body):
        number = tag >> 3
        payload = record[len(varint(tag)) :]
        if tag & 7 == LENGTH_DELIMITED and number in {5, 6, 7, 9, 10, 11, 12, 13, 16, 17}:
            ((_, start, stop),) = fields(record, 0, len(record))
            payload = record[start:stop]
            values = _split_values(number, payload)
            while values:
                take = draw(st.integers(0, len(values)))
                pieces.append(delimited(number, b"".join(values[:take])))
                values = values[take:]
                if values and draw(st.booleans()):
                    wire_type = VARINT if number not in SINGLES else 5 if SINGLES[number] == 4 else 1
                    pieces.append(varint(number << 3 | wire_type) + values.pop(0))
        elif tag == 2 << 3 | LENGTH_DELIMITED and draw(st.booleans()):
            ((_, start, stop),) = fields(record, 0, len(record))
            for _, dim in _records(record[start:stop]):
                pieces.append(delimited(2, dim))
        else:
            pieces.append(record)
        while draw(st.integers(0, 3)) == 0:
            pieces.append(draw(st.sampled_from(UNKNOWN)))
    if draw(st.booleans()):
        # Whole fields change places; the parts of one field keep theirs among each other.
        order = draw(st.permutations(sorted({piece[:1] for piece in pieces})))
        pieces.sort(key=lambda piece: order.index(piece[:1]))
    return b"".join(pieces)


def _split_values(number: int, payload: bytes) -> list[bytes]:
    if number in SINGLES:
        return [payload[at : at + SINGLES[number]] for at in range(0, len(payload), SINGLES[number])]
    values, begin = [], 0
    for at, octet in enumerate(payload):
        if octet < 0x80:
            values.append(payload[begin : at + 1])
            begin = at + 1
    return values


@given(st.data())
@settings(PATIENT, max_examples=300)
def test_the_same_tensor_in_any_wire_form_is_the_same(data: st.DataObject) -> None:
    """Order, packing, parts, unknown fields and groups change nothing that protobuf would not see."""
    body = data.draw(messages()).SerializeToString()
    scrambled = data.draw(st.composite(_scramble)(body))
    assert_same_outcome(outcome(scrambled), expected_outcome(TensorProto.FromString(scrambled)))


@given(messages(), messages())
@PATIENT
def test_tensors_in_several_parts_are_merged_as_by_protobuf(first: Any, second: Any) -> None:
    """A tensor in several parts, a key met twice, entries without key or value: as protobuf reads them."""
    one, two = first.SerializeToString(), second.SerializeToString()
    split = delimited(1, b"x") + delimited(2, one) + delimited(2, two)
    value_first = delimited(2, two) + delimited(1, b"y")
    entries = [split, value_first, delimited(2, one), delimited(1, b"x") + delimited(2, two), split]
    for chosen in (entries[:1], entries[1:2], entries[2:3], entries[:1] + entries[3:4], entries[3:]):
        inputs = b"".join(delimited(2, entry) for entry in chosen)
        request = delimited(1, b"\x0a\x01m") + inputs + delimited(1, b"\x1a\x01g") + delimited(3, b"y")
        parsed = PredictRequest.FromString(request)
        parts = decode_predict_request(request)
        assert parts.inputs.keys() == parsed.inputs.keys()
        for name, body in parts.inputs.items():
            assert_same_outcome(outcome(bytes(body)), expected_outcome(parsed.inputs[name]))
            assert_same_outcome(outcome(body), expected_outcome(parsed.inputs[name]))  # type: ignore[arg-type]
        assert decode_model_spec(parts.model_spec or b"") == ("m", None, None, "g")
        assert parts.output_filter == ["y"]
        response = b"".join(delimited(1, entry) for entry in chosen) + delimited(2, SPEC)
        answers = PredictResponse.FromString(response)
        expected = {name: expected_outcome(answers.outputs[name]) for name in answers.outputs}
        if any(isinstance(array, str) for array in expected.values()):
            continue  # one tensor that is refused refuses the whole
        outputs, spec = decode_predict_response(response)
        assert spec == SPEC
        assert outputs.keys() == expected.keys()
        for name, array in expected.items():
            assert isinstance(array, np.ndarray)
            assert_same(outputs[name], array)


def test_unknown_fields_in_map_entries_are_skipped() -> None:
    """An entry with a field of a later version counts, as in C++ (Python's runtime drops the whole entry)."""
    entry = b"\xa0\x06\x05" + delimited(1, b"y") + b"\xa0\x06\x05" + delimited(2, encode_tensor(np.ones(2)))
    assert decode_predict_response(delimited(1, entry))[0]["y"].tolist() == [1, 1]
    assert list(decode_predict_request(delimited(2, entry)).inputs) == ["y"]


def test_outputs_keep_the_wires_order_and_absent_parts_are_told() -> None:
    """Outputs come in the wire's order; without model spec a response has an empty one, a request None."""
    arrays = {name: np.float32(index) for index, name in enumerate("zamb")}
    body = encode_predict_response(arrays, model_spec=SPEC)  # type: ignore[arg-type]
    outputs, spec = decode_predict_response(body)
    assert list(outputs) == list("zamb")
    assert spec == SPEC
    assert decode_predict_response(b"") == ({}, b"")
    assert decode_predict_request(b"") == (None, {}, [])
    assert decode_predict_request(b"\x0a\x00").model_spec == b""


@pytest.mark.parametrize("number", NUMERIC, ids=lambda number: number.name)
def test_content_and_packed_fixed_width_fields_are_views(number: DataType) -> None:
    """Where the wire has the array's layout nothing is copied, and nobody can write into the message."""
    array = np.zeros(1000, numpy_dtype(number))
    typed = type_info(number).field in (5, 6, 9, 12, 18)
    for body in (
        encode_predict_response({"y": array}, model_spec=SPEC, typed=False, data_types={"y": number}),
        *(
            [encode_predict_response({"y": array}, model_spec=SPEC, data_types={"y": number})]
            if typed
            else []
        ),
    ):
        view = decode_predict_response(body)[0]["y"]
        assert np.shares_memory(view.view(np.uint8), np.frombuffer(body, np.uint8))
        assert not view.flags.writeable
        with pytest.raises(ValueError, match=r"read-only|WRITEABLE"):
            view.flags.writeable = True


def test_writable_buffers_are_not_written_through() -> None:
    """A tensor decoded from a writable buffer is as read-only as any other."""
    buffer = bytearray(encode_tensor(np.arange(5.0)))
    array = decode_tensor(memoryview(buffer))
    assert not array.flags.writeable
    assert array.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "number", [number for number in NUMERIC if type_info(number).field in VARINT_FIELDS], ids=lambda n: n.name
)
def test_one_integer_is_decoded_like_many(number: DataType) -> None:
    """A tensor of one element, which has a road of its own, is that element whatever its varint says."""
    for value in (*range(20), 64, 127, 128, 300, 1 << 31, (1 << 64) - 1):
        for shape in ((), (1,), (1, 1)):
            body = bytes((0x08, number)) + _shape(*shape) + delimited(type_info(number).field, varint(value))
            array = decode_tensor(body)
            assert_same(array, reference(TensorProto.FromString(body)))
            assert not array.flags.writeable


@pytest.mark.parametrize("count", [3, 70, 5000, 40_000])
@pytest.mark.parametrize("kind", ["below 128", "some two-byte", "all lengths", "negative", "few negative"])
@pytest.mark.parametrize(
    "number",
    [
        DataType.DT_INT32,
        DataType.DT_INT64,
        DataType.DT_INT8,
        DataType.DT_UINT8,
        DataType.DT_UINT64,
        DataType.DT_UINT32,
        DataType.DT_BOOL,
        DataType.DT_HALF,
    ],
    ids=lambda number: number.name,
)
def test_integers_are_decoded_alike_by_every_road(number: DataType, kind: str, count: int) -> None:
    """A loop, array operations and the protobuf runtime read packed integers; all of them give the same."""
    random = np.random.default_rng(count)
    values = random.integers(0, 128, count)
    if kind == "some two-byte":
        values[:: max(1, count // 50)] = 300
    elif kind == "all lengths":
        values = random.integers(-(2**63), 2**63 - 1, count) >> random.integers(0, 64, count)
    elif kind == "negative":
        values = -values - 1
    elif kind == "few negative":
        values[:: max(1, count // 20)] = -1
    info = type_info(number)
    packed = codec.encode_varints(values)
    body = (
        bytes((0x08, number))
        + delimited(2, delimited(2, b"\x08" + varint(count)))
        + delimited(info.field, packed)
    )
    assert_same(decode_tensor(body), reference(TensorProto.FromString(body)))
    with pytest.raises(DecodeError):
        decode_tensor(
            body[: -len(packed) - len(varint(len(packed)))] + varint(len(packed)) + packed[:-1] + b"\x80"
        )


@pytest.mark.parametrize("count", [1, 64, 65, 66, 200])
@pytest.mark.parametrize("late_type", [False, True])
def test_strings_are_read_wherever_the_type_stands(count: int, late_type: bool) -> None:
    """Few or many strings, before or after dtype and shape, with a long one among them."""
    strings = [b"s%d" % index for index in range(count)]
    strings[count // 2] = b"long" * 300
    values = TensorProto(string_val=strings).SerializeToString()
    head = b"\x08\x07" + delimited(2, delimited(2, b"\x08" + varint(count)))
    body = values + head if late_type else head + values
    assert decode_tensor(body).tolist() == strings
    # A type that comes last still decides: these strings are no values of a float tensor.
    assert decode_tensor(body + b"\x08\x01").tolist() == [0.0] * count


def test_values_in_the_wrong_field_are_not_seen() -> None:
    """Values of another type's field leave the tensor all zeros, as in the C++ runtime."""
    message = TensorProto(dtype=1, int_val=[1, 2], string_val=[b"a"] * 100)
    message.tensor_shape.dim.add(size=3)
    assert decode_tensor(message.SerializeToString()).tolist() == [0.0, 0.0, 0.0]


# ------------------------------------------------------------------ hostile input


def _shape(*sizes: int) -> bytes:
    return delimited(2, b"".join(delimited(2, b"\x08" + varint(size)) for size in sizes))


HOSTILE = {
    "10^18 elements without values": b"\x08\x01" + _shape(10**18),
    "10^18 elements and two values": b"\x08\x01" + _shape(10**9, 10**9) + delimited(5, bytes(8)),
    "10^18 strings": b"\x08\x07" + _shape(10**18) + delimited(8, b"a"),
    "10^18 strings in content": b"\x08\x07" + _shape(10**18) + delimited(4, b"\x01a"),
    "more elements than 63 bits": b"\x08\x01" + _shape(2**62, 4),
    "overflow before a zero": b"\x08\x01" + _shape(2**62, 4, 0),
    "negative dimension": b"\x08\x01" + _shape(-1) + delimited(5, bytes(8)),
    "most negative dimension": b"\x08\x01" + _shape(-(2**63), 2),
    "255 dimensions": b"\x08\x01" + _shape(*[1] * 255),
    "100 dimensions, more than numpy has": b"\x08\x01" + _shape(*[1] * 100),
    "no elements, 100 dimensions": b"\x08\x01" + _shape(0, *[1] * 99),
    "a million dimensions": b"\x08\x01" + delimited(2, b"\x12\x00" * 1_000_000),
    "short content": b"\x08\x01" + _shape(3) + delimited(4, bytes(8)),
    "long content": b"\x08\x01" + _shape(3) + delimited(4, bytes(16)),
    "bool content of 2": b"\x08\x0a" + _shape(3) + delimited(4, b"\x01\x02\x00"),
    "string content cut short": b"\x08\x07" + _shape(2) + delimited(4, b"\x05\x02ab"),
    "string content left over": b"\x08\x07" + _shape(1) + delimited(4, b"\x01ab"),
    "string content of long lengths": b"\x08\x07" + _shape(2) + delimited(4, b"\x80\x80\x80\x80\x80\x00\x00"),
    "length that lies": b"\x08\x01" + _shape(3) + b"\x22\xff\xff\xff\xff\x07abc",
    "packed floats of 3 bytes": b"\x08\x01" + _shape(1) + delimited(5, bytes(3)),
    "packed floats of 3 bytes in parts": b"\x08\x01"
    + _shape(1)
    + delimited(5, bytes(3))
    + delimited(5, bytes(5)),
    "varints in parts, one cut": b"\x08\x03" + _shape(2) + delimited(7, b"\x80") + delimited(7, b"\x01"),
    "packed varint of 11 bytes": b"\x08\x03" + _shape(1) + delimited(7, b"\xff" * 10 + b"\x01"),
    "a varint without end": b"\x08\x03" + _shape(1) + delimited(7, b"\xff" * 300_000),
    "many varints, then one without end": b"\x08\x03"
    + _shape(70_000)
    + delimited(7, b"\xff\x01" * 70_000 + b"\xff" * 20 + b"\x01"),
    "dimension name that is not UTF-8": b"\x08\x01" + delimited(2, delimited(2, b"\x12\x01\xff")),
    "DT_INVALID": _shape(1),
    "REF type": b"\x08\x65" + _shape(1),
    "unknown type": b"\x08\x63" + _shape(1),
    "negative type": b"\x08" + varint(-1) + _shape(1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tensors_are_refused_in_bounded_memory(name: str) -> None:
    """A tensor that cannot be is a DecodeError that costs no more memory than the message's own order."""
    body = HOSTILE[name]
    response = delimited(1, delimited(1, b"y") + delimited(2, body))
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            decode_tensor(body)
        with pytest.raises(DecodeError, match="output 'y'"):
            decode_predict_response(response)
        assert tracemalloc.get_traced_memory()[1] < 100_000 + 10 * len(body)
    finally:
        tracemalloc.stop()


def test_one_value_for_many_elements_takes_the_memory_of_one() -> None:
    """A large tensor of equal values, which is small on the wire, is small in memory too."""
    tracemalloc.start()
    try:
        for body in (
            b"\x08\x01" + _shape(10_000, 10_000) + delimited(5, np.float32(2.5).tobytes()),
            b"\x08\x07" + _shape(100_000_000) + delimited(8, b"abc"),
            b"\x08\x02" + _shape(10_000, 10_000),
        ):
            array = decode_tensor(body)
            assert array.size == 100_000_000
            assert not array.flags.writeable
            assert len({array[(0,) * array.ndim], array[(-1,) * array.ndim]}) == 1
            del array
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_filling_up_stops_at_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor is filled up to `MAX_EXPANDED_BYTES` and no further; one sent in full always passes."""
    monkeypatch.setattr(codec, "MAX_EXPANDED_BYTES", 400)
    values = delimited(5, np.array([1, 2], "<f4").tobytes())
    assert decode_tensor(b"\x08\x01" + _shape(100) + values)[1:].tolist() == [2.0] * 99
    with pytest.raises(DecodeError, match="404 bytes"):
        decode_tensor(b"\x08\x01" + _shape(101) + values)
    assert decode_tensor(encode_tensor_typed(np.ones(101))).sum() == 101


RESPONSE_FAULTS = {
    "key that is not UTF-8": delimited(1, delimited(1, b"\xff")),
    "entry cut short": b"\x0a\x05\x0a\x01",
    "tensor longer than its entry": delimited(1, b"\x0a\x01y\x12\x7f\x08\x01"),
    "entry without value": delimited(1, delimited(1, b"y")),
    "garbage": b"\xff\xff\xff\xff",
    "field number 0": b"\x02\x00",
    "model spec cut short": b"\x12\x05\x0a\x01",
}


@pytest.mark.parametrize("name", RESPONSE_FAULTS)
def test_malformed_responses_are_refused(name: str) -> None:
    """Bytes that are no PredictResponse, or an entry without a tensor, are a DecodeError."""
    with pytest.raises(DecodeError):
        decode_predict_response(RESPONSE_FAULTS[name])


@pytest.mark.parametrize(
    "data", [b"\x0a\x01\xff", b"\x1a\x01\xff", b"\x22\x01\xff", b"\x12\x01\x08", b"\x12\x05", b"\x0f"]
)
def test_malformed_model_specs_are_refused(data: bytes) -> None:
    """Bytes that are no ModelSpec are a DecodeError; so are names that are not UTF-8."""
    with pytest.raises(RuntimeDecodeError):
        ModelSpec.FromString(data)
    with pytest.raises(DecodeError):
        decode_model_spec(data)


def test_output_filter_that_is_not_utf8_is_refused() -> None:
    """Names in a request's output filter are text."""
    with pytest.raises(DecodeError, match="UTF-8"):
        decode_predict_request(b"\x1a\x01\xff")


@pytest.mark.parametrize("number", [DataType.DT_RESOURCE, DataType.DT_VARIANT])
def test_resources_and_variants_are_named(number: DataType) -> None:
    """A tensor of a real type that numpy cannot hold is refused by name, not called malformed."""
    with pytest.raises(UnsupportedTypeError, match=dtypes.short_name(number)):
        decode_tensor(bytes((0x08, number)) + _shape(1))


def test_without_ml_dtypes_a_response_names_the_output_and_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where `ml_dtypes` is missing, a bfloat16 output says so; the other types work as ever."""
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    monkeypatch.setattr(dtypes, "_numpy_dtypes", {1: np.dtype("f4")})
    monkeypatch.setattr(codec, "_CONVERTERS", codec._converters())
    array = np.array([0x3F80], np.uint16)
    body = encode_predict_response({"y": array}, model_spec=SPEC, data_types={"y": DataType.DT_BFLOAT16})
    with pytest.raises(UnsupportedTypeError, match=r"output 'y': .*bfloat16.*ml_dtypes"):
        decode_predict_response(body)
    decode_predict_response(encode_predict_response({"y": np.float32(1)}, model_spec=SPEC))  # type: ignore[dict-item]


def test_a_message_in_very_many_parts_is_merged_in_linear_time() -> None:
    """Splitting a message into a hundred thousand parts costs a hundred thousand small steps."""
    part = delimited(2, delimited(2, b"\x08\x01"))
    spec = delimited(2, b"\x0a\x04name") * 100_000
    entry = delimited(1, b"y") + delimited(2, b"\x08\x01" + b"\xa0\x06\x05" * 30) * 50_000
    outputs, merged = decode_predict_response(delimited(1, entry) + spec)
    assert outputs["y"].tolist() == 0.0
    assert len(merged) == 600_000
    with pytest.raises(DecodeError, match="dimensions"):
        decode_tensor(b"\x08\x01" + part * 100_000)
    floats = b"\x08\x01" + _shape(100_000) + (b"\x2d" + np.float32(1).tobytes()) * 100_000
    assert decode_tensor(floats).sum() == 100_000


# ------------------------------------------------------------------ fuzzing


def _valid_responses() -> list[bytes]:
    random = np.random.default_rng(7)
    samples: dict[str, tuple[np.ndarray, int | None]] = {
        "f": (random.random((2, 3), np.float32), None),
        "i": (random.integers(-300, 300, (3, 2)), None),
        "s": (np.array([b"ab", b"", b"cde" * 50], object), None),
        "b": (np.array([True, False]), None),
        "c": (np.array([1 + 2j, 3j], np.complex64), None),
        "q": (np.array([-1, 2], np.int8), DataType.DT_QINT8),
        "u": (np.array(2**64 - 1, np.uint64), None),
        "h": (np.array([1.5, -2], np.float16), None),
        "many": (np.array([b"s%d" % index for index in range(70)], object), None),
        "ids": (random.integers(0, 1000, 80), None),
    }
    found = []
    for typed in (True, False):
        for names in (["f", "i"], ["s", "b"], ["c"], ["q", "u", "h"], ["many"], ["ids"]):
            chosen = {name: samples[name][0] for name in names}
            kinds = {name: kind for name in names if (kind := samples[name][1])}
            found.append(encode_predict_response(chosen, model_spec=SPEC, typed=typed, data_types=kinds))
    return found


RESPONSES = _valid_responses()
LIMIT = 1 << 16


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid response with bytes changed, cut out, put in, doubled or swapped."""
    body = bytearray(draw(st.sampled_from(RESPONSES)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(body) - 1)) if body else 0
        to = min(len(body), at + draw(st.integers(1, 12)))
        action = draw(st.sampled_from(["change", "flip", "cut", "insert", "double", "truncate"]))
        if action == "change" and body:
            body[at] = draw(st.integers(0, 255))
        elif action == "flip" and body:
            body[at] ^= 1 << draw(st.integers(0, 7))
        elif action == "cut":
            del body[at:to]
        elif action == "insert":
            body[at:at] = draw(st.sampled_from(UNKNOWN) | st.binary(min_size=1, max_size=6))
        elif action == "double":
            body[at:at] = body[at:to]
        elif action == "truncate":
            del body[to:]
    return bytes(body)


def check_like_protobuf(body: bytes) -> None:
    """Decode as `PredictResponse` and compare with the runtime's parse and the rules; other errors escape."""
    try:
        outputs, spec = decode_predict_response(body)
    except (DecodeError, UnsupportedTypeError):
        outputs = None
    try:
        parsed = PredictResponse.FromString(body)
    except RuntimeDecodeError:
        # Fields that do not matter to a tensor are not looked into, so ours may accept it.
        return
    entries = [
        {tag: body[first:last] for tag, first, last in fields(body, start, stop)}
        for tag, start, stop in fields(body, 0, len(body))
        if tag == 1 << 3 | LENGTH_DELIMITED
    ]
    if any(not entry.keys() <= {10, 18} for entry in entries):
        return  # unknown fields in a map entry, see above: the runtime drops what C++ and we keep
    expected = {name: expected_outcome(parsed.outputs[name], LIMIT) for name in parsed.outputs}
    if outputs is None:
        assert any(isinstance(array, str) for array in expected.values()), "refused what the rules accept"
        return
    assert outputs.keys() == expected.keys()
    for name, array in expected.items():
        assert_same_outcome(outputs[name], array)
    assert ModelSpec.FromString(spec) == parsed.model_spec


@given(mutated())
@settings(PATIENT, max_examples=600)
def test_damaged_responses_are_decoded_like_protobuf_or_refused(body: bytes) -> None:
    """Whatever is done to a response: a DecodeError, or what protobuf and the rules make of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "MAX_EXPANDED_BYTES", LIMIT)
        check_like_protobuf(body)


@given(st.binary(max_size=60))
@settings(PATIENT, max_examples=400)
def test_arbitrary_bytes_never_crash(body: bytes) -> None:
    """Any bytes given to any decoder give a result or a DecodeError, never another exception."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "MAX_EXPANDED_BYTES", LIMIT)
        check_like_protobuf(body)
        for decode in (decode_tensor, decode_predict_request, decode_model_spec):
            with contextlib.suppress(DecodeError, UnsupportedTypeError):
                decode(body)  # type: ignore[operator]


@pytest.mark.parametrize("index", range(len(RESPONSES)))
def test_every_truncation_is_refused_or_a_shorter_message(index: int) -> None:
    """A response cut anywhere is refused exactly where protobuf refuses it."""
    body = RESPONSES[index]
    for end in range(len(body)):
        try:
            parsed = PredictResponse.FromString(body[:end])
        except RuntimeDecodeError:
            with pytest.raises(DecodeError):
                decode_predict_response(body[:end])
        else:
            outputs, _ = decode_predict_response(body[:end])
            assert outputs.keys() == parsed.outputs.keys()


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@given(mutated())
@settings(PATIENT, max_examples=100_000)
def test_damaged_responses_at_length(body: bytes) -> None:
    """The short fuzzing above, a hundred thousand times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "MAX_EXPANDED_BYTES", LIMIT)
        check_like_protobuf(body)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@given(st.data())
@settings(PATIENT, max_examples=50_000)
def test_wire_forms_at_length(data: st.DataObject) -> None:
    """Any tensor in any wire form, fifty thousand times."""
    body = data.draw(messages()).SerializeToString()
    scrambled = data.draw(st.composite(_scramble)(body))
    assert_same_outcome(outcome(scrambled), expected_outcome(TensorProto.FromString(scrambled)))


# ------------------------------------------------------------------ responses of a known layout


def _odd_responses() -> list[bytes]:
    """Responses as no server writes them and the parser takes them."""
    floats = encode_tensor_typed(np.arange(4, dtype=np.float32))
    ids = encode_tensor_typed(np.array([3], np.int64))
    key = delimited(1, b"x")
    return [
        # A name met twice: the second tensor counts, the first is not looked into.
        delimited(1, key + delimited(2, floats)) + delimited(1, key + delimited(2, ids)) + delimited(2, SPEC),
        # The same around another output, so that the order of names is not that of the wire.
        delimited(1, key + delimited(2, ids))
        + delimited(1, delimited(1, b"y") + delimited(2, floats))
        + delimited(1, key + delimited(2, floats)),
        # A tensor in two parts, which are merged.
        delimited(1, key + delimited(2, floats[:2]) + delimited(2, floats[2:])),
        # No tensor at all, no outputs, nothing, a model spec in two parts.
        delimited(1, key),
        delimited(2, SPEC),
        delimited(2, SPEC[:8]) + delimited(1, key + delimited(2, ids)) + delimited(2, SPEC[8:]),
        # Fields of other types beside the values, unknown fields, fewer and more values than elements.
        delimited(1, key + delimited(2, floats + delimited(10, b"\1\2"))),
        delimited(1, key + delimited(2, floats + delimited(99, b"abc"))) + delimited(98, b"de"),
        delimited(1, key + delimited(2, b"\x08\x01" + _shape(2, 3) + delimited(5, bytes(8)))),
        delimited(1, key + delimited(2, b"\x08\x01" + _shape(2) + delimited(5, bytes(12)))),
        delimited(1, key + delimited(2, b"\x08\x09" + _shape(5) + delimited(10, b"\1\2\3"))),
        # Values one by one, and in several runs.
        delimited(1, key + delimited(2, b"\x08\x09" + _shape(3) + b"\x50\1\x50\2\x50\3")),
        delimited(1, key + delimited(2, b"\x08\x09" + _shape(3) + b"\x52\1\1\x52\2\2\3")),
        # Scalars and empty tensors.
        encode_predict_response({"a": np.array(7), "b": np.zeros((0, 3), np.float32)}, model_spec=SPEC),
        encode_predict_response({"a": np.array(True), "b": np.array(b"text", object)}, model_spec=SPEC),
    ]


KNOWN = RESPONSES + _odd_responses()


def response_outcome(
    decode: Callable[[bytes], tuple[dict[str, np.ndarray], bytes]], body: bytes
) -> tuple[object, ...]:
    """Everything that can be told apart of what `decode` makes of `body`, errors and their texts among it."""
    try:
        outputs, spec = decode(body)
    except (DecodeError, UnsupportedTypeError) as error:
        return type(error), str(error)
    assert not any(array.flags.writeable for array in outputs.values())
    return spec, *(
        (name, array.dtype, array.shape, array.tolist() if array.dtype.kind == "O" else array.tobytes())
        for name, array in outputs.items()
    )


def taught(*bodies: bytes) -> ResponseDecoder:
    """A decoder that knows the layouts of `bodies` as far as they can be known."""
    decoder = ResponseDecoder()
    for body in bodies:
        for _ in range(16):  # more than it takes, whatever has been of this length before
            with contextlib.suppress(DecodeError, UnsupportedTypeError):
                decoder.decode(body)
    return decoder


@pytest.mark.parametrize("index", range(len(KNOWN)))
def test_every_byte_of_a_known_layout_counts(index: int) -> None:
    """A response that differs from a known one in any one byte gives what the full parser gives."""
    known = KNOWN[index]
    decoder = taught(known)
    learned = dict(decoder._known)
    assert response_outcome(decoder.decode, known) == response_outcome(decode_predict_response, known)
    step = 1 if len(known) < 300 else 3
    for at in range(0, len(known), step):
        for change in (0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xFF):
            body = known[:at] + bytes((known[at] ^ change,)) + known[at + 1 :]
            expected = response_outcome(decode_predict_response, body)
            decoder._known = dict(learned)  # the layouts of damaged responses may displace this one
            assert response_outcome(decoder.decode, body) == expected
    assert response_outcome(decoder.decode, known) == response_outcome(decode_predict_response, known)


@given(st.lists(mutated() | st.sampled_from(KNOWN), min_size=1, max_size=6), st.data())
@settings(PATIENT, max_examples=300)
def test_whatever_a_decoder_has_learned_it_decodes_as_the_full_parser(
    bodies: list[bytes], data: st.DataObject
) -> None:
    """Whatever was decoded before, how often and in whatever order: the same result, or the same error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "MAX_EXPANDED_BYTES", LIMIT)
        decoder = taught(*bodies)
        for body in data.draw(st.lists(st.sampled_from(bodies) | mutated(), max_size=20)):
            expected = response_outcome(decode_predict_response, body)
            assert response_outcome(decoder.decode, body) == expected


@given(st.data(), st.sampled_from(NUMERIC), shapes, st.booleans())
@PATIENT
def test_other_values_in_a_known_layout_are_read(
    data: st.DataObject, number: DataType, shape: tuple[int, ...], typed: bool
) -> None:
    """Of every dtype and shape, in both encodings, a decoder gives each response's own values."""
    first, second = data.draw(values_of(number, shape)), data.draw(values_of(number, shape))
    other = data.draw(values_of(number, shape))
    bodies = [
        encode_predict_response(
            {"x": array, "other": other},
            model_spec=SPEC,
            typed=typed,
            data_types={"x": number, "other": number},
        )
        for array in (first, second)
    ]
    decoder = taught(bodies[0])
    for array, body in zip((first, second), bodies, strict=True):
        outputs, spec = decoder.decode(body)
        assert list(outputs) == ["x", "other"]
        assert spec == SPEC
        assert_same(outputs["x"], array)
        assert_same(outputs["other"], other)
        assert response_outcome(decoder.decode, body) == response_outcome(decode_predict_response, body)


def test_a_response_of_a_known_layout_is_not_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the third response on, tags and lengths are compared and not read, and floats are views."""
    outputs = {"scores": np.arange(10, dtype=np.float32), "class": np.array([7]), "sure": np.array([True])}
    decoder = taught(encode_predict_response(outputs, model_spec=SPEC))
    outputs["scores"] = outputs["scores"] + 1
    outputs["class"] = np.array([5])
    body = encode_predict_response(outputs, model_spec=SPEC)
    monkeypatch.setattr(codec, "fields", None)
    found, spec = decoder.decode(body)
    assert spec == SPEC
    for name, array in outputs.items():
        assert_same(found[name], array)
    assert np.shares_memory(found["scores"], np.frombuffer(body, np.uint8))
    assert repr(decoder) == "<ResponseDecoder of 1 layouts>"


def test_a_new_version_is_learned_soon() -> None:
    """When a model's answers change for good, its decoder knows the new ones after a few."""
    outputs = {"scores": np.arange(10, dtype=np.float32)}
    specs = [encode_model_spec("digits", version=version) for version in range(1, 8)]
    decoder = ResponseDecoder()
    for spec in specs:
        body = encode_predict_response(outputs, model_spec=spec)
        for _ in range(10):
            decoder.decode(body)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(codec, "fields", None)
            assert decoder.decode(body)[1] == spec


def test_what_a_decoder_keeps_is_bounded() -> None:
    """However many lengths, layouts and large messages a decoder sees, it keeps little, and no response."""
    decoder = ResponseDecoder()
    array = np.zeros(1, np.float32)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for length in range(2000):
            body = encode_predict_response({"x" * length: array}, model_spec=SPEC)
            decoder.decode(body)
            decoder.decode(body)
        del body
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 1 <= len(decoder._known) <= 256
    assert kept < 1 << 20
    # One length, ever another name.
    for name in range(1000):
        decoder.decode(encode_predict_response({f"{name:05}": array}, model_spec=b""))
    assert all(len(layouts) <= 4 for _, layouts in decoder._known.values())
    # Values are not part of a layout, a long name is.
    large = encode_predict_response({"x": np.zeros(1 << 20, np.float32)}, model_spec=SPEC)
    assert sum(len(octets) for _, _, octets in taught(large)._known[len(large)][1][0].fixed) < 100
    long_name = encode_predict_response({"x" * 5000: array}, model_spec=SPEC)
    assert taught(long_name)._known[len(long_name)][1] == ()


@pytest.mark.nightly
@given(st.lists(mutated() | st.sampled_from(KNOWN), min_size=1, max_size=6), st.data())
@settings(PATIENT, max_examples=20_000)
def test_decoders_that_learn_at_length(bodies: list[bytes], data: st.DataObject) -> None:
    """As `test_whatever_a_decoder_has_learned_it_decodes_as_the_full_parser`, for longer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "MAX_EXPANDED_BYTES", LIMIT)
        decoder = taught(*bodies)
        for body in data.draw(st.lists(st.sampled_from(bodies) | mutated(), max_size=20)):
            expected = response_outcome(decode_predict_response, body)
            assert response_outcome(decoder.decode, body) == expected


# ------------------------------------------------------------------ the real server's recordings


def _golden() -> list[str]:
    """Every Predict that the real server answered with OK, in both of its encodings."""
    index = json.loads((GOLDEN / "INDEX.json").read_text())
    return [
        case["path"]
        for case in index
        if case["method"].endswith("/Predict")
        and case["code"] == "OK"
        and case["path"].split("/")[0] in ("A_main", "B_tensor_content")
        # 254 dimensions: more than numpy has. Refused, which `HOSTILE` tests.
        and case["path"] != "A_main/float_rank_255"
    ]


def _needs_ml_dtypes(response: Any) -> bool:
    kinds = [type_info(tensor.dtype) for tensor in response.outputs.values()]
    return ml_dtypes is None and any(kind.extended for kind in kinds)


@pytest.mark.parametrize("path", _golden())
def test_recorded_responses_are_decoded_and_written_again_byte_for_byte(path: str) -> None:
    """Our reading of a recorded answer is protobuf's, and our writing of that is the server's own bytes."""
    body = (GOLDEN / f"{path}.response.bin").read_bytes()
    parsed = PredictResponse.FromString(body)
    if _needs_ml_dtypes(parsed):
        pytest.skip("needs ml_dtypes, which is not installed here")
    outputs, spec = decode_predict_response(body)
    assert outputs.keys() == parsed.outputs.keys()
    for name, array in outputs.items():
        assert_same(array, reference(parsed.outputs[name]))
    kinds = {name: parsed.outputs[name].dtype for name in outputs}
    typed = not path.startswith("B_")
    assert encode_predict_response(outputs, model_spec=spec, typed=typed, data_types=kinds) == body
    name, version, label, signature = decode_model_spec(spec)
    assert (name, version, label) == (parsed.model_spec.name, parsed.model_spec.version.value, None)
    assert encode_model_spec(name, version=version, signature_name=signature) == spec


@pytest.mark.parametrize("path", [path for path in _golden() if "/dtype_" in path])
def test_recorded_requests_to_an_identity_model_decode_to_its_answers(path: str) -> None:
    """The answer of an identity model says what the request's tensor was: ours decodes to the same."""
    answer = PredictResponse.FromString((GOLDEN / f"{path}.response.bin").read_bytes())
    if _needs_ml_dtypes(answer):
        pytest.skip("needs ml_dtypes, which is not installed here")
    parts = decode_predict_request((GOLDEN / f"{path}.request.bin").read_bytes())
    ((_, body),) = parts.inputs.items()
    ((_, tensor),) = answer.outputs.items()
    assert_same(decode_tensor(body), reference(tensor))


def test_recorded_refusals_of_tensors_are_refused_here() -> None:
    """Every request that the real server called a tensor parsing error has a tensor that we refuse."""
    index = json.loads((GOLDEN / "INDEX.json").read_text())
    paths = [
        case["path"]
        for case in index
        if case["message"].startswith("tensor parsing error") and case["path"].startswith("A_main/")
    ]
    assert len(paths) > 10
    for path in paths:
        parts = decode_predict_request((GOLDEN / f"{path}.request.bin").read_bytes())
        refused = 0
        for body in parts.inputs.values():
            try:
                decode_tensor(body)
            except DecodeError:
                refused += 1
        assert refused, path


def test_recorded_unparsable_requests_are_refused_here() -> None:
    """Every Predict request that protobuf's C++ parser refused is a DecodeError."""
    index = json.loads((GOLDEN / "INDEX.json").read_text())
    paths = [
        case["path"]
        for case in index
        if case["path"].startswith("A_main/wire_") and case["code"] == "INTERNAL"
    ]
    paths = [path for path in paths if "garbage" not in path or path.endswith("Predict")]
    assert len(paths) == 4
    for path in paths:
        body = (GOLDEN / f"{path}.request.bin").read_bytes()
        with pytest.raises(DecodeError):
            decode_model_spec(decode_predict_request(body).model_spec or b"")


# ------------------------------------------------------------------ TensorFlow itself


@pytest.fixture(scope="module")
def tf() -> Any:
    """TensorFlow, imported for the tests that compare with it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("tensorflow", reason="compares with TensorFlow itself")


# TensorFlow's C++ runtime has the others too; its make_tensor_proto and make_ndarray do not.
KNOWN_TO_PYTHON = [number for number in NATURAL if not number.name.endswith("FNUZ")]


@pytest.mark.tensorflow
@pytest.mark.timeout(300)
@given(data=st.data(), number=st.sampled_from(KNOWN_TO_PYTHON), shape=shapes)
@PATIENT
def test_tensorflow_and_we_read_each_other(
    tf: Any, data: st.DataObject, number: DataType, shape: tuple[int, ...]
) -> None:
    """`tf.make_ndarray` reads what we write, and we read what `tf.make_tensor_proto` writes."""
    array = data.draw(values_of(number, shape))
    theirs = tf.make_tensor_proto(array, dtype=tf.as_dtype(int(number)))
    assert_equal(decode_tensor(theirs.SerializeToString()), array)
    assert_same(tf.make_ndarray(TensorProto.FromString(encode_tensor(array))), array)
    assert_equal(tf.make_ndarray(TensorProto.FromString(encode_tensor_typed(array))), array)


@pytest.mark.tensorflow
def test_tensorflow_and_we_read_each_others_strings(tf: Any) -> None:
    """Strings of a request, in `string_val`, are what `tf.make_ndarray` reads, and the other way round."""
    array = np.array([[b"a", b"", b"\xff\x00"], [b"x" * 300, b"d", b"e"]], object)
    request = PredictRequest.FromString(encode_predict_request({"s": array}, model_spec=SPEC))
    assert tf.make_ndarray(request.inputs["s"]).tolist() == array.tolist()
    assert_same(decode_tensor(tf.make_tensor_proto(array).SerializeToString()), array)


@pytest.mark.tensorflow
@pytest.mark.timeout(300)
@given(message=messages())
@settings(PATIENT, max_examples=200)
def test_the_cpp_runtime_and_we_agree_on_every_tensor(tf: Any, message: Any) -> None:
    """TensorFlow's own `Tensor::FromProto` accepts what we accept, with equal values, and nothing else."""
    try:
        kind = tf.as_dtype(message.dtype)
        assume(message.dtype in set(TENSOR_TYPES))
    except TypeError:
        assume(False)
    body = message.SerializeToString()
    try:
        theirs = tf.io.parse_tensor(body, kind)
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
        assert isinstance(outcome(body), str)
        return
    ours = outcome(body)
    if isinstance(ours, str):
        # TensorFlow has empty tensors whose other sizes numpy refuses to multiply.
        assert theirs.shape.num_elements() == 0
        assert ours.startswith("refused: numpy cannot hold")
        return
    values = np.asarray(theirs.numpy())
    if ours.dtype.kind == "O":
        assert values.shape == ours.shape
        assert values.ravel().tolist() == ours.ravel().tolist()
    else:
        # TensorFlow has dtypes of its own for quantized types, of the same bytes.
        assert_same(ours, values.view(ours.dtype) if values.dtype.names else values)


# ------------------------------------------------------------------ cost


def test_importing_the_codec_loads_neither_protobuf_nor_ml_dtypes() -> None:
    """Importing the codec alone loads numpy and nothing heavier; a plain response needs nothing more."""
    code = f"""
import sys, types
package = types.ModuleType("aioserving")
package.__path__ = [{str(Path(codec.__file__).parent)!r}]
sys.modules["aioserving"] = package
import numpy as np
from aioserving import codec
body = codec.encode_predict_response({{"y": np.arange(4.0)}}, model_spec=codec.encode_model_spec("m"))
codec.decode_predict_response(body)
codec.encode_predict_request({{"x": np.arange(4)}}, model_spec=b"")
print(sorted({{"google.protobuf", "ml_dtypes", "grpc", "asyncio", "tensorflow"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_tensor_data_is_copied_once() -> None:
    """Encoding a large array takes the memory of one message, decoding it takes none."""
    array = np.ones((1000, 1000), np.float32)
    encode_predict_request({"x": array}, model_spec=SPEC)
    tracemalloc.start()
    try:
        body = encode_predict_request({"x": array}, model_spec=SPEC)
        assert tracemalloc.get_traced_memory()[1] < array.nbytes + 100_000
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        tensor = decode_predict_request(body).inputs["x"]
        assert decode_tensor(tensor).sum() == 1_000_000
        assert tracemalloc.get_traced_memory()[1] - before < 100_000
    finally:
        tracemalloc.stop()
