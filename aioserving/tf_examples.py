"""`tf.Example`s for Classify, Regress and MultiInference, made from Python values, arrays and tables.

Written straight into protobuf's wire format, a whole column at a time: a `Feature` object for every value
of a thousand rows costs more than the call that sends them. Nothing is guessed: what no feature holds,
what is missing, and a column of two types are refused, with the feature and the example that have it.

Which features a model needs is not known here, nor to any client: a signature says only that it takes
serialized Examples, and what it looks for in them is inside its graph. A required feature that is missing
is for the server to refuse. Framing is left to `wire`, sending to `client`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from aioserving import _proto
from aioserving._types import Array, TensorLike
from aioserving.errors import InvalidInputError
from aioserving.wire import delimited, encode_varints, pack, spread_varints, varint

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from aioserving.messages import View

__all__ = ["Context", "Examples", "Table", "encode_input", "serialize_examples"]


class Table(Protocol):
    """A pandas DataFrame or a pyarrow Table; neither library is imported here."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""

    def __getitem__(self, key: Any, /) -> Any:
        """A column."""


#: Examples: a dict of columns or of one example, a table, a serialized or ready `tf.Example`, or several.
Examples: TypeAlias = (
    "Mapping[str, TensorLike] | Table | bytes | Message | View"
    " | Iterable[Mapping[str, TensorLike] | bytes | Message | View]"
)

#: Features that all examples share: a dict, or a serialized or ready `tf.Example`.
Context: TypeAlias = "Mapping[str, TensorLike] | bytes | Message | View"

# The kinds of features, which are the numbers of their fields in `Feature`.
_NOTHING, _BYTES, _FLOATS, _INTEGERS = 0, 1, 2, 3

_KIND_OF_TYPE: dict[type, int] = {
    str: _BYTES,
    bytes: _BYTES,
    bytearray: _BYTES,
    float: _FLOATS,
    int: _INTEGERS,
    bool: _INTEGERS,
}
_KIND_OF_DTYPE = {"f": _FLOATS, "i": _INTEGERS, "u": _INTEGERS, "b": _INTEGERS}

_EXAMPLE = "tensorflow.Example"
_INPUT = "tensorflow.serving.Input"

_INT64 = np.iinfo(np.int64)

# Up to so many integers in all, and beyond so many in each row, they are encoded row by row.
_FEW = 64
_MANY = 4096
# Bytes of a row beyond which it does not pay to copy them once more along with those of integers.
_WIDE = 256
# Bytes put together at a time.
_PACKED = 1 << 16


def serialize_examples(examples: Examples) -> list[bytes]:
    """`examples` as serialized `tf.Example`s, for inputs of Predict that take them as strings.

    Values become what their type says: ``int`` and ``bool`` (and arrays of integers or bools of any width)
    an ``int64_list``, ``float`` (and arrays of any floats, bfloat16 too) a ``float_list``, which is of
    float32, ``str`` (as UTF-8) and ``bytes`` a ``bytes_list``. A value of several dimensions is flattened
    in C order; one without values is an empty list if its dtype says of what, else a feature without kind.
    Ints are not made floats, nor floats ints: a model that parses one kind refuses the other.

    What is missing is refused: None, a masked value, pandas' NA, pyarrow's null. NaN in an array of floats
    is a value like others, for pandas' columns of dtype float64 too; in a column of text it is refused.
    Dates and times have to be made numbers or text before.

    Args:
        examples: one of

            - a dict of columns, that is of arrays or lists with a common first axis: one example for each
              position (``{"age": [31, 52], "pixels": array_of_2_by_784}``);
            - a dict in which some value is no list or array: one example (``{"age": 31, "tags": ["a"]}``);
            - a list of such dicts, each of one example, which may leave features out; here a list is
              always one example's list (``[{"tags": ["a", "b"]}]``);
            - a pandas DataFrame, whose index is left out, or a pyarrow Table or RecordBatch; columns may
              be categorical or dictionary-encoded, nullable, chunked, or of lists. Their columns can also
              stand in a dict of columns;
            - a `tf.Example` message, or a view of one, or one that is serialized; or a list of them.

    Returns:
        One serialized Example for each row, in their order; none for no rows.

    Raises:
        InvalidInputError: a feature is missing, has None or another unsupported value, mixes types, is
            ragged within one example, or is out of the range of int64 or float32, or columns differ in
            length; the message names the feature and the example by its position.
    """
    kind = _message_kind(examples)
    if kind == _EXAMPLE:
        return [_serialized(examples, "the example", check=False)]
    if kind is not None:
        raise InvalidInputError(f"examples must be tf.Examples, got a {kind} message")
    if isinstance(examples, (bytes, bytearray, memoryview)):
        return [_serialized(examples, "the example", check=True)]
    encoded, count = _encode(examples, check=True)
    return encoded if isinstance(encoded, list) else _rows(encoded, count)


def encode_input(
    examples: Examples, context: Context | None = None, *, check: bool = True
) -> tuple[bytes, int]:
    """`examples` as what requests of Classify, Regress and MultiInference carry.

    Args:
        examples: as for `serialize_examples`; or an `Input` message or view.
        context: features that examples have unless they have one of that name themselves; lists in a dict
            are the lists of its features.
        check: False takes bytes for a serialized Example without looking at them, and no examples at all
            for what is wanted.

    Returns:
        A serialized `Input` message, and the number of examples in it.

    Raises:
        InvalidInputError: as `serialize_examples`; also when there are no examples, and for a context
            beside an `Input`, which has its own.
    """
    if _message_kind(examples) == _INPUT:
        return _ready_input(examples, context, check)
    encoded: _Block | list[bytes]
    if _message_kind(examples) is not None or isinstance(examples, (bytes, bytearray, memoryview)):
        encoded, count = [_serialized(examples, "the example", check)], 1
    else:
        encoded, count = _encode(examples, check)
    if count == 0 and check:
        raise InvalidInputError("there are no examples: the server needs at least one")
    body: bytes | memoryview
    if isinstance(encoded, list):
        heads = {size: _member_head(size) for size in set(map(len, encoded))}
        parts: list[bytes] = []
        for example in encoded:
            parts += (heads[len(example)], example)
        body = b"".join(parts)
    else:
        body = _put_together(_headed(encoded, count, _member_head), count)
    size = memoryview(body).nbytes
    if context is None:
        return b"".join((b"\x0a", varint(size), body)), count
    own = delimited(2, _encode_context(context, check))
    return b"".join((b"\x12", varint(size + len(own)), body, own)), count


def _ready_input(message: Any, context: object, check: bool) -> tuple[bytes, int]:
    if context is not None:
        raise InvalidInputError("an Input message carries its own context; give none beside it")
    pb = getattr(message, "pb", message)
    kind = pb.WhichOneof("kind")
    count = len(getattr(pb, kind).examples) if kind else 0
    if count == 0 and check:
        raise InvalidInputError("there are no examples: the server needs at least one")
    return pb.SerializeToString(), count


def _encode_context(context: Any, check: bool) -> bytes:
    if isinstance(context, Mapping) and _message_kind(context) is None:
        return _encode_rows([context], _context_place)[0]
    if _message_kind(context) is None and not isinstance(context, (bytes, bytearray, memoryview)):
        raise InvalidInputError(
            f"context must be a dict of features or a tf.Example, got {type(context).__name__}"
        )
    return _serialized(context, "the context", check)


# -- what was given -----------------------------------------------------------------------------------


def _message_kind(value: Any) -> str | None:
    """Full name of the protobuf message that `value` is or views, or None."""
    message = getattr(value, "pb", value)
    name: str | None = getattr(getattr(message, "DESCRIPTOR", None), "full_name", None)
    return name


def _serialized(value: Any, place: str, check: bool) -> bytes:
    """One serialized Example, from a message, a view, or bytes."""
    kind = _message_kind(value)
    if kind is not None:
        if kind != _EXAMPLE:
            raise InvalidInputError(f"{place} must be a tf.Example, got a {kind} message")
        serialized: bytes = getattr(value, "pb", value).SerializeToString()
        return serialized
    data = bytes(value)
    if check:
        from google.protobuf.message import DecodeError

        try:
            _proto.message_class(_EXAMPLE).FromString(data)
        except DecodeError:
            raise InvalidInputError(
                f"{place}: these {len(data)} bytes are no serialized tf.Example"
            ) from None
    return data


def _encode(examples: Any, check: bool) -> tuple[_Block | list[bytes], int]:
    """Serialized Examples, and how many they are."""
    if isinstance(examples, Mapping):
        if not examples:
            raise InvalidInputError("an empty dict: write [{}] for one example without features")
        if all(_is_column(value) for value in examples.values()):
            return _encode_columns(examples)
        return _encode_rows([examples], _only_place), 1
    if hasattr(examples, "column_names"):  # pyarrow
        return _encode_columns(_table_columns(examples, list(examples.column_names)))
    if hasattr(examples, "columns"):  # pandas
        return _encode_columns(_table_columns(examples, list(examples.columns)))
    if isinstance(examples, str) or not isinstance(examples, Iterable):
        raise InvalidInputError(
            "examples must be dicts of features, a dict of columns, a DataFrame or Table, or tf.Examples; "
            f"got {type(examples).__name__}"
        )
    if isinstance(examples, np.ndarray) and examples.dtype.kind == "S":
        raise InvalidInputError(
            f"an array of {examples.dtype} cuts the NUL bytes that serialized Examples may end in: "
            "use dtype=object"
        )
    rows = list(examples)
    places = [index for index, row in enumerate(rows) if isinstance(row, Mapping) and not hasattr(row, "pb")]
    if len(places) == len(rows):
        return _encode_rows(rows, _row_place), len(rows)
    encoded = dict(
        zip(places, _encode_rows([rows[i] for i in places], lambda i: _row_place(places[i])), strict=True)
    )
    for index, row in enumerate(rows):
        if index in encoded:
            continue
        if not isinstance(row, (bytes, bytearray, memoryview)) and _message_kind(row) is None:
            raise InvalidInputError(
                f"example {index} is {_what(row)}: "
                "an example is a dict of features, a tf.Example or its bytes"
            )
        encoded[index] = _serialized(row, f"example {index}", check)
    return [encoded[index] for index in range(len(rows))], len(rows)


def _is_column(value: Any) -> bool:
    if isinstance(value, (list, tuple, range)):
        return True
    if isinstance(value, (str, bytes, bytearray)):
        return False
    shape = getattr(value, "shape", None)
    return bool(shape) if shape is not None else isinstance(value, Sequence) or _is_arrow(value)


def _is_arrow(value: Any) -> bool:
    """Whether it is a pyarrow Array or ChunkedArray."""
    return hasattr(value, "null_count") and hasattr(value, "to_pylist")


def _what(value: Any) -> str:
    """What kind of thing `value` is, for messages."""
    if value is None:
        return "None"
    if isinstance(value, float) and math.isnan(value):
        return "NaN"  # which pandas puts for what is missing of a column of any type
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _table_columns(table: Any, names: list[Any]) -> dict[Any, Any]:
    if len(set(names)) < len(names):
        raise InvalidInputError("two columns of the table have the same name")
    return {name: table[name] for name in names}


def _row_place(row: int) -> str:
    return f"example {row}"


def _only_place(_: int) -> str:
    return "the example"


def _context_place(_: int) -> str:
    return "the context"


# -- columns ------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where a value stands, for messages."""

    feature: str
    #: Name of an example by its position.
    example: Any

    def error(self, row: int, what: str) -> InvalidInputError:
        return InvalidInputError(f"feature {self.feature!r} of {self.example(row)} {what}")

    def refused(self, row: int, what: str) -> InvalidInputError:
        """The error for what is of another kind than any feature."""
        return self.error(row, f"{what}: features hold int, float, bool, str or bytes")

    def missing(self, row: int, what: str) -> InvalidInputError:
        """The error for a value that is not there; `what` says how its library calls that."""
        return self.error(row, f"{what}: fill it, or give a list of dicts, which may leave features out")


class _Column(NamedTuple):
    """The values of one feature for all rows, flat."""

    kind: int
    #: float32 or integers in an array, or a list of bytes.
    values: Any
    #: Values of each row: the same for all, or one count for each.
    counts: int | list[int]


def _encode_columns(columns: Mapping[Any, Any]) -> tuple[_Block | list[bytes], int]:
    lengths = {name: len(column) for name, column in columns.items()}
    count = next(iter(lengths.values()), 0)
    if any(length != count for length in lengths.values()):
        told = ", ".join(f"{name!r}: {length}" for name, length in lengths.items())
        raise InvalidInputError(f"columns differ in length ({told}): each needs one entry for each example")
    encoded = [
        _encode_column(name, _read_column(column, _Place(name, _row_place)), count)
        for name, column in columns.items()
    ]
    return _join(encoded, count), count


def _encode_rows(rows: Sequence[Mapping[Any, Any]], place: Any) -> list[bytes]:
    """Examples from one dict for each; features may be missing."""
    count = len(rows)
    columns: list[_Block | list[bytes]] = []
    for name in dict.fromkeys(chain.from_iterable(rows)):
        present = [index for index, row in enumerate(rows) if name in row]
        values = [rows[index][name] for index in present]
        if len(present) == count:
            columns.append(_encode_column(name, _read_list(values, _Place(name, place)), count))
            continue
        where = _Place(name, lambda index, present=present: place(present[index]))
        found = _encode_column(name, _read_list(values, where), len(present))
        spread = [b""] * count
        encoded_rows = found if isinstance(found, list) else _rows(found, len(present))
        for index, encoded in zip(present, encoded_rows, strict=True):
            spread[index] = encoded
        columns.append(spread)
    joined = _join(columns, count)
    return joined if isinstance(joined, list) else _rows(joined, count)


def _read_column(column: Any, place: _Place) -> _Column:
    column = _plain(column, place, lambda index: index)
    if not hasattr(column, "dtype"):
        return _read_list(list(column), place)
    array = np.asarray(column)
    if array.dtype.kind in "OUST":
        return _read_list(array.tolist(), place)
    width = array.size // len(array) if len(array) else 0
    kind, values = _read_numbers(array, place, lambda index: index // width)
    return _Column(kind, values, width)


def _plain(values: Any, place: _Place, row_of: Callable[[int], int]) -> Any:
    """The arrays of numpy's masks, pandas and pyarrow as plain ones, or lists; everything else as it is.

    All of them would give something that is not what they hold for a missing value: what is under the
    mask, or NaN, and floats in place of the integers beside it.
    """
    if type(values) is np.ndarray:
        return values
    if isinstance(values, np.ndarray):
        mask = np.asarray(getattr(values, "mask", False))
        if mask.any():
            row = row_of(int(mask.reshape(len(values), -1).any(axis=1).argmax()) if values.ndim else 0)
            raise place.missing(row, "is or holds a masked value")
        return np.asarray(values)
    if _is_arrow(values):
        return _plain_arrow(values, place, row_of)
    dtype = getattr(values, "dtype", None)
    if dtype is None or isinstance(dtype, np.dtype):
        return values
    if not hasattr(values, "isna"):
        # polars and others that do as it does: they convert themselves, except for what is missing.
        if callable(getattr(values, "null_count", None)) and values.null_count():
            raise place.missing(row_of(int(np.asarray(values.is_null()).argmax())), "is null")
        return values
    missing = np.asarray(values.isna())
    if missing.any():
        raise place.missing(row_of(int(missing.argmax())), "is missing")
    if hasattr(dtype, "pyarrow_dtype"):
        return _plain_arrow(getattr(values, "array", values).__arrow_array__(), place, row_of)
    return values.to_numpy()


def _plain_arrow(column: Any, place: _Place, row_of: Callable[[int], int]) -> Any:
    if column.null_count:
        raise place.missing(row_of(column.is_null().to_pylist().index(True)), "is null")
    parts = column.chunks if hasattr(column, "chunks") else [column]
    if all(map(_is_plain_arrow, parts)):
        width = getattr(column.type, "list_size", 0)
        if width and parts:
            flat = [part.flatten().to_numpy(zero_copy_only=False) for part in parts]
            return np.concatenate(flat).reshape(len(column), -1)
        return column.to_numpy() if hasattr(column, "chunks") else column.to_numpy(zero_copy_only=False)
    values = column.to_pylist()
    for index, value in enumerate(values):
        if _holds_none(value):
            raise place.missing(row_of(index), "is or holds a null")
    return values


def _is_plain_arrow(part: Any) -> bool:
    """Whether a pyarrow Array is of values, or lists of them, among which there is no null."""
    if part.null_count or hasattr(part, "dictionary") or hasattr(part, "run_ends"):
        return False
    return not hasattr(part.type, "value_type") or _is_plain_arrow(part.flatten())


def _holds_none(value: Any) -> bool:
    return value is None or (isinstance(value, list) and any(map(_holds_none, value)))


def _read_list(values: list[Any], place: _Place) -> _Column:
    """A column from one value, or list of values, for each row."""
    types = set(map(type, values))
    if len(types) == 1:
        (kind,) = types
        if kind in _KIND_OF_TYPE:
            return _Column(_KIND_OF_TYPE[kind], _read_scalars(kind, values, place, range(len(values))), 1)
        if kind is np.ndarray and len({value.dtype for value in values}) == 1:
            dtype = values[0].dtype
            if dtype.kind not in "OUST":
                sizes = [value.size for value in values]
                rows = np.repeat(np.arange(len(values)), sizes)
                flat = np.concatenate([value.ravel() for value in values])
                number, numbers = _read_numbers(flat, place, lambda index: int(rows[index]))
                return _Column(number, numbers, _uniform(sizes))
    flattened = [_flatten(value, place, row) for row, value in enumerate(values)]
    sizes = list(map(len, flattened))
    flat_values: list[Any] = list(chain.from_iterable(flattened))
    row_of = _RowOf(sizes)
    types = set(map(type, flat_values))
    if not types:
        return _Column(_NOTHING, [], 0)
    if len(types) > 1 or next(iter(types)) not in _KIND_OF_TYPE:
        _check_types(flat_values, place, row_of)
    first = type(flat_values[0])
    column_type = bytes if types <= {str, bytes, bytearray} else first
    kind_number = _KIND_OF_TYPE.get(column_type) or _kind_by_base(column_type)
    return _Column(kind_number, _read_scalars(column_type, flat_values, place, row_of), _uniform(sizes))


def _uniform(sizes: list[int]) -> int | list[int]:
    return sizes[0] if sizes and len(set(sizes)) == 1 else sizes


class _RowOf(Sequence[int]):
    """The row of each of the values of several rows, found when it is asked for."""

    def __init__(self, sizes: list[int]) -> None:
        self._sizes = sizes
        self._rows: list[int] | None = None

    def __len__(self) -> int:
        return sum(self._sizes)

    def __getitem__(self, index: Any) -> Any:
        if self._rows is None:
            self._rows = [row for row, size in enumerate(self._sizes) for _ in range(size)]
        return self._rows[index]


def _flatten(value: Any, place: _Place, row: int) -> list[Any]:
    """One row's value as a flat list of Python's own scalars."""
    if type(value) is not list:
        value = _plain(value, place, lambda _: row)
    if hasattr(value, "dtype"):
        array = np.asarray(value)
        if array.dtype.kind in "OUST":
            value = array.tolist()
        elif array.dtype.kind in "iub" or array.dtype in (np.float32, np.float64):
            return array.ravel().tolist()  # type: ignore[no-any-return]
        else:
            return _read_numbers(array, place, lambda _: row)[1].tolist()  # type: ignore[no-any-return]
    if isinstance(value, (str, bytes, bytearray)) or not isinstance(value, (list, tuple, range)):
        return [value]
    items = list(value)
    nested = [isinstance(item, (list, tuple)) or bool(getattr(item, "shape", ())) for item in items]
    if not any(nested):
        if any(hasattr(item, "dtype") for item in items):
            return [scalar for item in items for scalar in _flatten(item, place, row)]
        return items
    if not all(nested) or len({len(item) for item in items}) > 1:
        raise place.error(row, "is ragged: nested lists of one example must have equal lengths")
    parts = [_flatten(item, place, row) for item in items]
    if len(set(map(len, parts))) > 1:
        raise place.error(row, "is ragged: nested lists of one example must have equal lengths")
    return list(chain.from_iterable(parts))


def _kind_by_base(kind: type) -> int:
    """For subclasses of Python's types, such as IntEnum."""
    return next((number for base, number in _KIND_OF_TYPE.items() if issubclass(kind, base)), _NOTHING)


def _check_types(values: list[Any], place: _Place, row_of: Sequence[int]) -> None:
    """Refuse values that no feature holds, and values of several kinds."""
    first: type | None = None
    for index, value in enumerate(values):
        kind = _KIND_OF_TYPE.get(type(value)) or _kind_by_base(type(value))
        row = row_of[index]
        if kind == _NOTHING:
            raise place.refused(row, f"is or holds {_what(value)}")
        if first is None:
            first, first_kind = type(value), kind
        elif kind != first_kind or (isinstance(value, bool) is not issubclass(first, bool)):
            raise place.error(
                row,
                f"is or holds {_what(value)}, but {place.example(row_of[0])} begins with {_what(values[0])}: "
                "all values of a feature must have one type",
            )


def _read_scalars(kind: type, values: list[Any], place: _Place, row_of: Sequence[int]) -> Any:
    """Values of one kind as an array of numbers, or a list of bytes."""
    number = _KIND_OF_TYPE.get(kind) or _kind_by_base(kind)
    if number == _BYTES:
        try:
            return [value.encode() if isinstance(value, str) else bytes(value) for value in values]
        except UnicodeEncodeError as error:
            row = next(row_of[index] for index, value in enumerate(values) if value is error.object)
            raise place.error(row, f"is no text that UTF-8 can hold: {error.reason}") from None
    if number == _FLOATS:
        return _read_numbers(np.array(values, np.float64), place, row_of.__getitem__)[1]
    try:
        return np.array(values, np.int64)
    except OverflowError:
        index = next(i for i, value in enumerate(values) if not _INT64.min <= value <= _INT64.max)
        raise place.error(row_of[index], f"is out of int64's range: {values[index]}") from None


def _is_small_float(dtype: np.dtype[Any]) -> bool:
    """Whether it is one of ml_dtypes' floats, of whose kind numpy knows nothing."""
    return dtype.kind == "V" and dtype.name.startswith(("bfloat", "float"))


def _read_numbers(array: Array, place: _Place, row_of: Any) -> tuple[int, Array]:
    """The kind of a column, and its values as float32 or integers, flat."""
    kind = _KIND_OF_DTYPE.get(array.dtype.kind, _NOTHING)
    if kind == _NOTHING and _is_small_float(array.dtype):
        kind = _FLOATS
    if kind == _NOTHING:
        raise place.refused(row_of(0) if array.size else 0, f"is of dtype {array.dtype}")
    flat = array.ravel()
    if kind == _FLOATS:
        with np.errstate(over="ignore"):
            floats = flat.astype("<f4", copy=False)
        if flat.dtype.itemsize > 4:
            lost = np.isinf(floats) & np.isfinite(flat)
            if lost.any():
                index = int(lost.argmax())
                raise place.error(row_of(index), f"is out of float32's range: {flat[index]!s}")
        return kind, floats
    if flat.dtype.kind == "u" and flat.dtype.itemsize == 8 and flat.size:
        index = int(flat.argmax())
        if flat[index] > _INT64.max:
            raise place.error(row_of(index), f"is out of int64's range: {flat[index]}")
    return kind, flat


# -- the wire -----------------------------------------------------------------------------------------


class _Heads:
    """What stands in an Example before the values of one feature, by the length of the values."""

    def __init__(self, name: Any, kind: int, packed: bool) -> None:
        if not isinstance(name, str):
            raise InvalidInputError(f"names of features are str, got {name!r}")
        try:
            self._key = delimited(1, name.encode())
        except UnicodeEncodeError:
            raise InvalidInputError(
                f"the name {name!r} of a feature is no text that UTF-8 can hold"
            ) from None
        self._kind = kind
        self._packed = packed
        self._made: dict[int, bytes] = {}

    def __call__(self, size: int) -> bytes:
        head = self._made.get(size)
        if head is None:
            head = self._made[size] = self._make(size)
        return head

    def _make(self, size: int) -> bytes:
        head = b""
        if self._kind != _NOTHING:
            if self._packed and size:
                head = b"\x0a" + varint(size)
            head = bytes((self._kind << 3 | 2,)) + varint(len(head) + size) + head
        head = b"\x12" + varint(len(head) + size) + head
        head = self._key + head
        return b"\x0a" + varint(len(head) + size) + head


class _Block(NamedTuple):
    """Bytes of all rows, of which nothing is put together before everything is there."""

    #: Bytes of each row, side by side: arrays of uint8 of shape (rows, width), or (1, width) where they are
    #: the same for all rows; and which of them count, arrays of bools of that shape, or None if all do.
    parts: list[tuple[Array, Array | None]]
    #: Bytes that count in each row: the same for all, or one number for each.
    sizes: int | Array

    @property
    def width(self) -> int:
        return sum(octets.shape[1] for octets, _ in self.parts)


def _headed(block: _Block, count: int, head_of: Callable[[int], bytes]) -> _Block:
    """`block` with a head before each row, which its size determines."""
    if isinstance(block.sizes, int):
        head = head_of(block.sizes)
        octets = np.frombuffer(head, np.uint8)[np.newaxis]
        return _Block([(octets, None), *block.parts], len(head) + block.sizes)
    sizes = block.sizes.tolist()
    heads = {size: head_of(size) for size in set(sizes)}
    lengths = {size: len(head) for size, head in heads.items()}
    width = max(lengths.values())
    if min(lengths.values()) == width:
        octets = np.frombuffer(b"".join([heads[size] for size in sizes]), np.uint8).reshape(count, width)
        return _Block([(octets, None), *block.parts], block.sizes + width)
    heads = {size: head.ljust(width) for size, head in heads.items()}
    octets = np.frombuffer(b"".join([heads[size] for size in sizes]), np.uint8).reshape(count, width)
    own = np.array([lengths[size] for size in sizes])
    used = np.arange(width) < own[:, np.newaxis]
    return _Block([(octets, used), *block.parts], block.sizes + own)


def _put_together(block: _Block, count: int) -> bytes | memoryview:
    """All bytes of all rows, one row after the other."""
    even = isinstance(block.sizes, int)
    # Some rows at a time where they are packed, so that what they are packed from stays in the
    # processor's cache. Arrays are in C order, which `np.concatenate` would take from its arguments.
    step = count if even else max(1, min(count, _PACKED // block.width))
    octets = np.empty((step, block.width), np.uint8)
    used = np.ones((0 if even else step, block.width), np.bool_)
    packed = []
    for first in range(0, count, step):
        size = min(step, count - first)
        begin = 0
        for part, own in block.parts:
            end = begin + part.shape[1]
            octets[:size, begin:end] = part[first : first + size] if len(part) == count else part
            if own is not None:
                used[:size, begin:end] = own[first : first + size]
            begin = end
        if not even:
            packed.append(pack(octets[:size], used[:size]))
    return octets.data if even else b"".join(packed)


def _rows(block: _Block, count: int) -> list[bytes]:
    data = bytes(_put_together(block, count))
    if isinstance(block.sizes, int):
        bounds = [*range(0, len(data) + 1, block.sizes)] if block.sizes else [0] * (count + 1)
    else:
        bounds = [0, *accumulate(block.sizes.tolist())]
    return [data[begin:end] for begin, end in pairwise(bounds)]


def _encode_column(name: Any, column: _Column, count: int) -> _Block | list[bytes]:
    """One feature of each row, as an entry of `Features`."""
    kind, values, counts = column
    heads = _Heads(name, kind, kind != _BYTES)
    if kind == _NOTHING:
        return _headed(_Block([], 0), count, heads)
    if kind == _BYTES:
        return _encode_bytes(heads, values, counts)
    if kind == _FLOATS:
        octets = values.view(np.uint8)
        if isinstance(counts, int) and count > 1:
            return _headed(_Block([(octets.reshape(count, 4 * counts), None)], 4 * counts), count, heads)
        data = octets.tobytes()
        bounds = _bounds(counts) if not isinstance(counts, int) else (0, values.size)
        return _with_heads([data[4 * begin : 4 * end] for begin, end in pairwise(bounds)], heads)
    if not isinstance(counts, int):
        octets = np.frombuffer(encode_varints(values), np.uint8)
        ends = np.concatenate(([0], np.flatnonzero(octets < 0x80) + 1))[_bounds(counts)].tolist()
        data = octets.tobytes()
        return _with_heads([data[begin:end] for begin, end in pairwise(ends)], heads)
    if values.size == 0:
        return _headed(_Block([], 0), count, heads)
    if values.dtype.kind == "b":
        return _headed(_Block([(values.view(np.uint8).reshape(count, counts), None)], counts), count, heads)
    if values.size <= _FEW or counts > _MANY or count == 1:
        return _with_heads(list(map(encode_varints, values.reshape(count, counts))), heads)
    octets, used = spread_varints(values)
    octets = octets.reshape(count, -1)
    if used is None:
        return _headed(_Block([(octets, None)], octets.shape[1]), count, heads)
    used = used.reshape(count, -1)
    sizes = used.view(np.uint8).sum(axis=1, dtype=np.int64)
    return _headed(_Block([(octets, used)], sizes), count, heads)


def _bounds(counts: list[int]) -> list[int]:
    return [*accumulate(counts, initial=0)]


def _with_heads(bodies: list[bytes], head_of: Callable[[int], bytes]) -> list[bytes]:
    """Each of `bodies` with the head before it that its length determines."""
    heads = {size: head_of(size) for size in set(map(len, bodies))}
    return [heads[len(body)] + body for body in bodies]


def _encode_bytes(heads: _Heads, values: list[bytes], counts: int | list[int]) -> list[bytes]:
    prefixes: dict[int, bytes] = {}
    if counts == 1:
        rows = []
        for value in values:
            size = len(value)
            prefix = prefixes.get(size)
            if prefix is None:
                own = b"\x0a" + varint(size)
                prefix = prefixes[size] = heads(len(own) + size) + own
            rows.append(prefix + value)
        return rows
    items = [delimited(1, value) for value in values]
    if isinstance(counts, int):
        bounds = [*range(0, len(items) + 1, counts)] if counts else []
    else:
        bounds = _bounds(counts)
    return _with_heads([b"".join(items[begin:end]) for begin, end in pairwise(bounds)], heads)


def _join(columns: list[_Block | list[bytes]], count: int) -> _Block | list[bytes]:
    """Examples out of their features."""
    if count == 0:
        return []
    blocks = [column for column in columns if isinstance(column, _Block)]
    lists = [column for column in columns if isinstance(column, list)]
    even = [block for block in blocks if isinstance(block.sizes, int)]
    uneven = [block for block in blocks if not isinstance(block.sizes, int)]
    if uneven and sum(block.width for block in even) > _WIDE:
        # Packing would look at each of their bytes, to keep all of them.
        lists.append(_rows(_beside(even), count))
        blocks = uneven
    if lists:
        if blocks:
            lists.insert(0, _rows(_beside(blocks), count))
        bodies = lists[0] if len(lists) == 1 else list(map(b"".join, zip(*lists, strict=True)))
        return _with_heads(bodies, _example_head)
    return _headed(_beside(blocks), count, _example_head)


def _beside(blocks: list[_Block]) -> _Block:
    parts = [part for block in blocks for part in block.parts]
    sizes: Any = sum(block.sizes for block in blocks)
    return _Block(parts, sizes)


def _example_head(size: int) -> bytes:
    # No field at all where every feature is missing, as protobuf writes an empty Example.
    return b"\x0a" + varint(size) if size else b""


def _member_head(size: int) -> bytes:
    """What stands before an Example in a list of them."""
    return b"\x0a" + varint(size)
