"""TensorFlow's data types and the numpy dtypes that hold them.

One table says, for every `DataType`, its numpy dtype, the size of an element and the field of a
TensorProto that carries its values. `numpy_dtype` and `data_type_of` translate between the two
worlds; turning arrays into bytes and back is left to `aioserving.codec`.

Types that numpy lacks (bfloat16, the float8 family, 4-bit and 2-bit integers) come from `ml_dtypes`,
which is imported when the first of them is met; without it they raise an error that names it.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import numpy as np

from aioserving.errors import UnsupportedTypeError

__all__ = [
    "REF_OFFSET",
    "TENSOR_TYPES",
    "DataType",
    "TypeInfo",
    "base_data_type",
    "data_type_of",
    "numpy_dtype",
    "short_name",
    "type_info",
]

#: A reference type (a TF1 variable, as metadata may declare it) is its base type's number plus this.
REF_OFFSET = 100


class DataType(enum.IntEnum):
    """TensorFlow's `DataType` enum: the names and numbers of `types.proto`, without the REF types."""

    DT_INVALID = 0
    DT_FLOAT = 1
    DT_DOUBLE = 2
    DT_INT32 = 3
    DT_UINT8 = 4
    DT_INT16 = 5
    DT_INT8 = 6
    DT_STRING = 7
    DT_COMPLEX64 = 8
    DT_INT64 = 9
    DT_BOOL = 10
    DT_QINT8 = 11
    DT_QUINT8 = 12
    DT_QINT32 = 13
    DT_BFLOAT16 = 14
    DT_QINT16 = 15
    DT_QUINT16 = 16
    DT_UINT16 = 17
    DT_COMPLEX128 = 18
    DT_HALF = 19
    DT_RESOURCE = 20
    DT_VARIANT = 21
    DT_UINT32 = 22
    DT_UINT64 = 23
    DT_FLOAT8_E5M2 = 24
    DT_FLOAT8_E4M3FN = 25
    DT_FLOAT8_E4M3FNUZ = 26
    DT_FLOAT8_E4M3B11FNUZ = 27
    DT_FLOAT8_E5M2FNUZ = 28
    DT_INT4 = 29
    DT_UINT4 = 30
    DT_INT2 = 31
    DT_UINT2 = 32
    DT_FLOAT4_E2M1FN = 33


class TypeInfo(NamedTuple):
    """What is known of one data type."""

    data_type: DataType
    #: Name of the numpy dtype, or of the scalar type in `ml_dtypes`.
    numpy_name: str
    #: Bytes per element in `tensor_content`; 0 for strings, which vary.
    item_size: int
    #: Number of the TensorProto field that carries the values one by one.
    field: int
    #: Whether the numpy dtype comes from `ml_dtypes`.
    extended: bool

    @property
    def short_name(self) -> str:
        """The name in TensorFlow's own messages: ``"float"``, ``"int32"``, ``"qint8"``, ``"string"``."""
        return self.data_type.name[3:].lower()


# numpy name, item size, TensorProto field
_PLAIN = {
    DataType.DT_FLOAT: ("float32", 4, 5),
    DataType.DT_DOUBLE: ("float64", 8, 6),
    DataType.DT_INT32: ("int32", 4, 7),
    DataType.DT_UINT8: ("uint8", 1, 7),
    DataType.DT_INT16: ("int16", 2, 7),
    DataType.DT_INT8: ("int8", 1, 7),
    DataType.DT_STRING: ("object", 0, 8),
    DataType.DT_COMPLEX64: ("complex64", 8, 9),
    DataType.DT_INT64: ("int64", 8, 10),
    DataType.DT_BOOL: ("bool", 1, 11),
    DataType.DT_UINT16: ("uint16", 2, 7),
    DataType.DT_COMPLEX128: ("complex128", 16, 12),
    DataType.DT_HALF: ("float16", 2, 13),
    DataType.DT_UINT32: ("uint32", 4, 16),
    DataType.DT_UINT64: ("uint64", 8, 17),
    # Quantized: raw integers, the scale is not part of the tensor. After the plain integers, which
    # are what `data_type_of` answers.
    DataType.DT_QINT8: ("int8", 1, 7),
    DataType.DT_QUINT8: ("uint8", 1, 7),
    DataType.DT_QINT16: ("int16", 2, 7),
    DataType.DT_QUINT16: ("uint16", 2, 7),
    DataType.DT_QINT32: ("int32", 4, 7),
}
_EXTENDED = {
    DataType.DT_BFLOAT16: ("bfloat16", 2, 13),
    DataType.DT_FLOAT8_E5M2: ("float8_e5m2", 1, 18),
    DataType.DT_FLOAT8_E4M3FN: ("float8_e4m3fn", 1, 18),
    DataType.DT_FLOAT8_E4M3FNUZ: ("float8_e4m3fnuz", 1, 18),
    DataType.DT_FLOAT8_E4M3B11FNUZ: ("float8_e4m3b11fnuz", 1, 18),
    DataType.DT_FLOAT8_E5M2FNUZ: ("float8_e5m2fnuz", 1, 18),
    DataType.DT_INT4: ("int4", 1, 7),
    DataType.DT_UINT4: ("uint4", 1, 7),
    DataType.DT_INT2: ("int2", 1, 7),
    DataType.DT_UINT2: ("uint2", 1, 7),
    DataType.DT_FLOAT4_E2M1FN: ("float4_e2m1fn", 1, 18),
}
_INFO: dict[int, TypeInfo] = {
    number: TypeInfo(number, *row, extended)
    for table, extended in ((_PLAIN, False), (_EXTENDED, True))
    for number, row in table.items()
}
#: The data types whose values a tensor can carry, which leaves out resources and variants.
TENSOR_TYPES: tuple[DataType, ...] = tuple(info.data_type for info in _INFO.values())

# What arrays of a numpy dtype are sent as; plain integers come before the quantized ones and win.
_BY_NAME: dict[str, DataType] = {}
for _info in _INFO.values():
    _BY_NAME.setdefault(_info.numpy_name, _info.data_type)

# What to do about dtypes that have no counterpart, by `numpy.dtype.kind`.
_ADVICE = {
    "M": "send an integer count, such as array.astype('datetime64[s]').astype('int64')",
    "m": "send an integer count, such as array.astype('timedelta64[s]').astype('int64')",
    "f": "convert it, such as array.astype('float64')",
    "c": "convert it, such as array.astype('complex128')",
    "V": "send each field as an input of its own, such as array['field']",
}

_numpy_dtypes: dict[int, np.dtype] = {
    number: np.dtype(info.numpy_name) for number, info in _INFO.items() if not info.extended
}


def base_data_type(number: int) -> DataType:
    """The data type of `number`, with the REF types (101 and up) reduced to what they refer to.

    Raises:
        UnsupportedTypeError: TensorFlow's enum, as far as this version knows it, has no such number.
    """
    try:
        return DataType(number - REF_OFFSET if number > REF_OFFSET else number)
    except ValueError:
        raise UnsupportedTypeError(f"data type number {number} is not one that aioserving knows") from None


def short_name(data_type: int) -> str:
    """TensorFlow's short name of a data type: ``"float"``, ``"half"``, ``"string"``, ``"float_ref"``.

    Numbers that the enum does not have are named as TensorFlow's own messages name them.
    """
    try:
        name = base_data_type(data_type).name
    except UnsupportedTypeError:
        return f"unknown dtype enum ({data_type})"
    if data_type == DataType.DT_INVALID:
        return "INVALID"
    return name[3:].lower() + ("_ref" if data_type > REF_OFFSET else "")


def type_info(data_type: int) -> TypeInfo:
    """The table's row for `data_type`.

    Raises:
        UnsupportedTypeError: `data_type` is not a type whose values a client can send or read
            (DT_INVALID, REF types, resources, variants, unknown numbers).
    """
    info = _INFO.get(data_type)
    if info is None:
        raise UnsupportedTypeError(f"tensors of type {short_name(data_type)} have no numpy counterpart")
    return info


def numpy_dtype(data_type: int) -> np.dtype:
    """The numpy dtype that holds tensors of `data_type`; ``object`` (of bytes) for strings.

    Quantized types are the integers they are stored as (DT_QINT8: int8).

    Raises:
        UnsupportedTypeError: there is none, or it needs `ml_dtypes`, which is not installed.
    """
    found = _numpy_dtypes.get(data_type)
    if found is None:
        info = type_info(data_type)
        found = _numpy_dtypes[data_type] = _extended_dtype(info)
    return found


def _extended_dtype(info: TypeInfo) -> np.dtype:
    try:
        import ml_dtypes
    except ImportError:
        raise UnsupportedTypeError(
            f'tensors of type {info.short_name} need the package ml_dtypes: pip install "aioserving[dtypes]"'
        ) from None
    try:
        dtype: np.dtype = np.dtype(getattr(ml_dtypes, info.numpy_name))
    except AttributeError:
        raise UnsupportedTypeError(
            f"tensors of type {info.short_name} need a newer ml_dtypes than the installed "
            f"{ml_dtypes.__version__}: pip install --upgrade ml_dtypes"
        ) from None
    return dtype


def data_type_of(dtype: np.dtype) -> DataType:
    """The data type that arrays of `dtype` are sent as, whatever their byte order.

    ``str``, ``bytes``, ``object`` and numpy's variable-width string arrays are DT_STRING; whether an
    object array really holds strings shows when it is encoded.

    Raises:
        UnsupportedTypeError: TensorFlow has no such type (dates, structures, long double …).
    """
    kind = dtype.kind
    if kind in "SUOT":
        return DataType.DT_STRING
    found = _BY_NAME.get(dtype.name) if dtype.names is None and dtype.subdtype is None else None
    if found is None:
        advice = _ADVICE.get(kind)
        raise UnsupportedTypeError(
            f"numpy dtype {dtype} has no TensorFlow counterpart" + (f"; {advice}" if advice else "")
        )
    return found
