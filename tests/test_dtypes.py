"""Data types: TensorFlow's numbers and names, and what numpy dtype stands for each."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from aioserving import dtypes
from aioserving._proto import message_class
from aioserving.dtypes import (
    REF_OFFSET,
    TENSOR_TYPES,
    DataType,
    base_data_type,
    data_type_of,
    numpy_dtype,
    short_name,
    type_info,
)
from aioserving.errors import ServingError, UnsupportedTypeError

NATIVE = [number for number in TENSOR_TYPES if not type_info(number).extended]
EXTENDED = [number for number in TENSOR_TYPES if type_info(number).extended]


def _enum_values() -> dict[str, int]:
    enum = message_class("tensorflow.TensorProto").DESCRIPTOR.fields_by_name["dtype"].enum_type
    return {value.name: value.number for value in enum.values}


def test_names_and_numbers_are_tensorflows() -> None:
    """Every member of the installed `types.proto` is here under its own number, and nothing else is."""
    theirs = {name: number for name, number in _enum_values().items() if not name.endswith("_REF")}
    ours = {member.name: int(member) for member in DataType}
    # An older TensorFlow knows fewer types; it never gives one of ours another number.
    assert theirs.items() <= ours.items()
    assert {"DT_FLOAT", "DT_INT4", "DT_STRING"} <= theirs.keys()


def test_ref_types_are_offset_by_a_hundred() -> None:
    """A REF type is its base type's number plus 100, for every REF type that TensorFlow has."""
    refs = {name: number for name, number in _enum_values().items() if name.endswith("_REF")}
    assert refs
    for name, number in refs.items():
        assert base_data_type(number).name == name.removesuffix("_REF")
        assert number - REF_OFFSET == base_data_type(number)


def test_base_data_type_keeps_plain_numbers_and_refuses_unknown_ones() -> None:
    """A plain number is itself, DT_INVALID included; an unknown one is named in the error."""
    assert base_data_type(1) is DataType.DT_FLOAT
    assert base_data_type(101) is DataType.DT_FLOAT
    assert base_data_type(0) is DataType.DT_INVALID
    for number in (99, 100, 199, -1):
        with pytest.raises(UnsupportedTypeError, match=str(number)):
            base_data_type(number)


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (1, "float"),
        (2, "double"),
        (7, "string"),
        (19, "half"),
        (14, "bfloat16"),
        (11, "qint8"),
        (25, "float8_e4m3fn"),
        (101, "float_ref"),
        (0, "INVALID"),
        (99, "unknown dtype enum (99)"),
    ],
)
def test_short_name_is_the_one_in_the_servers_messages(number: int, name: str) -> None:
    """Short names are those of TensorFlow's `DataTypeString`, for REF and unknown numbers too."""
    assert short_name(number) == name


@pytest.mark.tensorflow
def test_short_names_equal_tensorflows() -> None:
    """Wherever TensorFlow's Python API has a data type, its name is ours."""
    tf = pytest.importorskip("tensorflow", reason="compares with TensorFlow's own names")
    compared = 0
    for number in TENSOR_TYPES:
        try:
            theirs = tf.as_dtype(int(number))
        except TypeError:
            continue  # a type that this TensorFlow does not have
        # Python says float32 where C++ says float.
        aliases = {"float": "float32", "double": "float64", "half": "float16"}
        assert aliases.get(short_name(number), short_name(number)) == theirs.name
        compared += 1
    assert compared > 20


@pytest.mark.parametrize("number", NATIVE, ids=lambda number: number.name)
def test_native_types_round_trip(number: DataType) -> None:
    """A numpy dtype is sent as the data type it came from; a quantized one as the integer that stores it."""
    dtype = numpy_dtype(number)
    back = data_type_of(dtype)
    if number.name.startswith("DT_Q"):
        assert back.name == number.name.replace("DT_Q", "DT_")
    else:
        assert back is number
    if number is not DataType.DT_STRING:
        assert dtype.itemsize == type_info(number).item_size


@pytest.mark.parametrize("number", EXTENDED, ids=lambda number: number.name)
def test_extended_types_come_from_ml_dtypes(number: DataType) -> None:
    """The types that numpy lacks are those of `ml_dtypes`, of the same size and name, both ways."""
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="numpy itself has no such type")
    info = type_info(number)
    dtype = numpy_dtype(number)
    assert dtype == np.dtype(getattr(ml_dtypes, info.numpy_name))
    assert dtype.itemsize == info.item_size
    assert data_type_of(dtype) is number


@pytest.mark.parametrize("number", EXTENDED, ids=lambda number: number.name)
def test_without_ml_dtypes_the_error_says_what_to_install(
    number: DataType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where `ml_dtypes` is missing, its types raise an error that names it and the extra that brings it."""
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    monkeypatch.setattr(dtypes, "_numpy_dtypes", {})
    with pytest.raises(
        UnsupportedTypeError, match=r"ml_dtypes.*pip install \"aioserving\[dtypes\]\""
    ) as caught:
        numpy_dtype(number)
    assert short_name(number) in str(caught.value)
    assert isinstance(caught.value, ServingError)


def test_an_ml_dtypes_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the installed `ml_dtypes` lacks a type, the error says to upgrade it."""

    class Old:
        __version__ = "0.0.1"

    monkeypatch.setitem(sys.modules, "ml_dtypes", Old)  # type: ignore[arg-type]
    monkeypatch.setattr(dtypes, "_numpy_dtypes", {})
    with pytest.raises(UnsupportedTypeError, match=r"newer ml_dtypes than the installed 0\.0\.1"):
        numpy_dtype(DataType.DT_FLOAT4_E2M1FN)


@pytest.mark.parametrize(
    "number",
    [0, 20, 21, 99, 101, 107, -1],
    ids=["invalid", "resource", "variant", "99", "ref", "str_ref", "-1"],
)
def test_types_without_values_are_refused_by_name(number: int) -> None:
    """DT_INVALID, resources, variants, REF and unknown types have no numpy dtype."""
    with pytest.raises(UnsupportedTypeError) as caught:
        numpy_dtype(number)
    assert short_name(number) in str(caught.value)


@pytest.mark.parametrize("dtype", [">f4", ">i8", ">c16", ">u2", ">f2"])
def test_byte_order_does_not_matter(dtype: str) -> None:
    """A big-endian dtype is sent as the same data type as its little-endian twin."""
    assert data_type_of(np.dtype(dtype)) is data_type_of(np.dtype(dtype).newbyteorder("<"))


@pytest.mark.parametrize("dtype", ["U3", "S3", "O", "U0", "S0"])
def test_text_is_string(dtype: str) -> None:
    """``str``, ``bytes`` and object arrays are sent as strings."""
    assert data_type_of(np.dtype(dtype)) is DataType.DT_STRING


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="numpy 1 has no StringDType")
def test_variable_width_text_is_string() -> None:
    """numpy 2's StringDType is sent as strings."""
    assert data_type_of(np.dtypes.StringDType()) is DataType.DT_STRING


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        ("M8[s]", "astype"),
        ("m8[ms]", "astype"),
        ("V8", "field"),
        ([("a", "f4"), ("b", "i4")], "field"),
        (np.dtype((np.float32, (2,))), ""),
        (np.longdouble, "astype"),
        (np.clongdouble, "astype"),
    ],
    ids=["datetime", "timedelta", "void", "structured", "subarray", "longdouble", "clongdouble"],
)
def test_other_dtypes_are_refused_by_name_with_advice(dtype: object, advice: str) -> None:
    """A dtype that TensorFlow lacks is named in the error, together with what to do instead."""
    refused = np.dtype(dtype)  # type: ignore[call-overload]
    with pytest.raises(UnsupportedTypeError) as caught:
        data_type_of(refused)
    assert str(refused) in str(caught.value)
    assert advice in str(caught.value)


def test_c_integer_aliases_are_the_sized_types() -> None:
    """``long long`` and the like are what their size says, whatever numpy calls them on this platform."""
    for code in "bhilqBHILQ":
        dtype = np.dtype(code)
        expected = f"DT_{'U' if dtype.kind == 'u' else ''}INT{8 * dtype.itemsize}"
        assert data_type_of(dtype).name == expected
