"""How metadata describes composite tensors (``struct.proto`` of TensorFlow)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aioserving.dtypes import DataType
from aioserving.messages._values import ProtoEnum, enum_of
from aioserving.messages._view import DictView, ListView, MessageLike, View, field

if TYPE_CHECKING:
    from aioserving.messages._metadata import TensorShapeProto
    from aioserving.messages._view import (
        EnumOf,
        Flag,
        Many,
        MapTo,
        Maybe,
        MaybeEnumOf,
        Scalar,
        Sub,
        Tensor,
    )

__all__ = [
    "BoundedTensorSpecProto",
    "DictValue",
    "ListValue",
    "NamedTupleValue",
    "NoneValue",
    "PairValue",
    "StructuredValue",
    "TensorSpecProto",
    "TupleValue",
    "TypeSpecProto",
]

_MODULE = "tensorflow.core.protobuf.struct_pb2"


class NoneValue(View, message="tensorflow.NoneValue", module=_MODULE, as_value=True):
    """Python's None; as a field of another message it reads as True where it is present."""

    __slots__ = ()


class TypeSpecProto(View, message="tensorflow.TypeSpecProto", module=_MODULE):
    """A ``tf.TypeSpec``."""

    __slots__ = ()

    @enum_of("tensorflow.TypeSpecProto.TypeSpecClass")
    class TypeSpecClass(ProtoEnum):
        """Kinds of ``tf.TypeSpec``."""

        UNKNOWN = 0
        SPARSE_TENSOR_SPEC = 1
        INDEXED_SLICES_SPEC = 2
        RAGGED_TENSOR_SPEC = 3
        TENSOR_ARRAY_SPEC = 4
        DATA_DATASET_SPEC = 5
        DATA_ITERATOR_SPEC = 6
        OPTIONAL_SPEC = 7
        PER_REPLICA_SPEC = 8
        VARIABLE_SPEC = 9
        ROW_PARTITION_SPEC = 10
        REGISTERED_TYPE_SPEC = 12
        EXTENSION_TYPE_SPEC = 13

    type_spec_class: EnumOf[TypeSpecClass] = field("The kind.")
    type_state: Sub[StructuredValue] = field("What the kind needs to be restored.")
    type_spec_class_name: Scalar[str] = field("Name of the Python class.")
    num_flat_components: Scalar[int] = field("Number of tensors it is made of.")


class StructuredValue(View, message="tensorflow.StructuredValue", module=_MODULE):
    """Any one of the values below; they exclude each other."""

    __slots__ = ()

    none_value: Flag = field("Whether it is None.")
    float64_value: Maybe[float] = field("A float.")
    int64_value: Maybe[int] = field("An int.")
    string_value: Maybe[str] = field("A str.")
    bool_value: Maybe[bool] = field("A bool.")
    tensor_shape_value: Sub[TensorShapeProto] = field("A ``tf.TensorShape``.")
    tensor_dtype_value: MaybeEnumOf[DataType] = field("A ``tf.DType``.")
    tensor_spec_value: Sub[TensorSpecProto] = field("A ``tf.TensorSpec``.")
    type_spec_value: Sub[TypeSpecProto] = field("A ``tf.TypeSpec``.")
    bounded_tensor_spec_value: Sub[BoundedTensorSpecProto] = field("A bounded ``tf.TensorSpec``.")
    list_value: Sub[ListValue] = field("A list.")
    tuple_value: Sub[TupleValue] = field("A tuple.")
    dict_value: Sub[DictValue] = field("A dict.")
    named_tuple_value: Sub[NamedTupleValue] = field("A named tuple.")
    tensor_value: Tensor = field("A tensor.")
    numpy_value: Tensor = field("A numpy array.")


class TensorSpecProto(View, message="tensorflow.TensorSpecProto", module=_MODULE):
    """A ``tf.TensorSpec``."""

    __slots__ = ()

    name: Scalar[str] = field("The name.")
    shape: Sub[TensorShapeProto] = field("The shape.")
    dtype: EnumOf[DataType] = field("The data type.")


class BoundedTensorSpecProto(View, message="tensorflow.BoundedTensorSpecProto", module=_MODULE):
    """A ``tf.TensorSpec`` with bounds."""

    __slots__ = ()

    name: Scalar[str] = field("The name.")
    shape: Sub[TensorShapeProto] = field("The shape.")
    dtype: EnumOf[DataType] = field("The data type.")
    minimum: Tensor = field("The lower bound.")
    maximum: Tensor = field("The upper bound.")


class ListValue(
    ListView[StructuredValue, MessageLike],
    message="tensorflow.ListValue",
    module=_MODULE,
    content="values",
):
    """A list."""

    __slots__ = ()

    values: Many[StructuredValue] = field("The items.")


class TupleValue(
    ListView[StructuredValue, MessageLike],
    message="tensorflow.TupleValue",
    module=_MODULE,
    content="values",
):
    """A tuple."""

    __slots__ = ()

    values: Many[StructuredValue] = field("The items.")


class DictValue(
    DictView[str, StructuredValue, MessageLike],
    message="tensorflow.DictValue",
    module=_MODULE,
    content="fields",
):
    """A dict with keys that are strings."""

    __slots__ = ()

    fields: MapTo[StructuredValue] = field("The entries.")


class PairValue(View, message="tensorflow.PairValue", module=_MODULE):
    """A key and a value."""

    __slots__ = ()

    key: Scalar[str] = field("The key.")
    value: Sub[StructuredValue] = field("The value.")


class NamedTupleValue(View, message="tensorflow.NamedTupleValue", module=_MODULE):
    """A named tuple."""

    __slots__ = ()

    name: Scalar[str] = field("Name of the class.")
    values: Many[PairValue] = field("The items and their names.")
