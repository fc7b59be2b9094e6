"""What one value of a protobuf field may be, and how it reads: scalars, enums, messages, tensors.

An *element* knows one kind of value, wherever it stands: in a singular field, in a repeated one or
as the value of a map. Fields and containers are built from elements and know nothing of kinds.
Elements of scalars hand protobuf a plain Python value; elements of messages write into a message.
"""

from __future__ import annotations

import enum
import operator
import reprlib
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TypeVar

import numpy as np

from aioserving import codec, dtypes
from aioserving.errors import UnsupportedTypeError

if TYPE_CHECKING:
    from aioserving.messages._view import View

__all__ = [
    "NO_KEY",
    "Composite",
    "ContentElement",
    "Element",
    "EnumElement",
    "FlagElement",
    "ProtoEnum",
    "TensorElement",
    "ViewElement",
    "Where",
    "enum_of",
    "is_message",
    "place",
    "scalar_element",
    "short",
    "wrong_type",
]

#: Stands for "the field itself, not an item in it".
NO_KEY: Final = object()

E = TypeVar("E", bound=enum.IntEnum)


class Where(Protocol):
    """Names a field for error messages."""

    @property
    def label(self) -> str:
        """The message and the field: ``"ModelSpec.version"``."""


class _Short(reprlib.Repr):
    """`repr` of at most a line, whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 60
        self.maxlist = self.maxdict = self.maxtuple = 4
        self.maxlevel = 2

    def repr_ndarray(self, array: np.ndarray, level: int) -> str:
        return f"<{array.dtype} array of shape {array.shape}>"

    def repr_instance(self, value: Any, level: int) -> str:
        raw = getattr(value, "pb", value)
        if is_message(raw):  # whose own repr is the whole of it
            return f"a {raw.DESCRIPTOR.full_name}"
        return super().repr_instance(value, level)

    def repr_bytes(self, data: bytes, level: int) -> str:
        return repr(data) if len(data) <= 40 else f"{data[:24]!r}... <{len(data)} bytes>"


#: One line that stands for any value, used in errors and reprs.
short: Callable[[object], str] = _Short().repr


def wrong_type(where: Where, key: object, expected: str, value: object) -> TypeError:
    """The error for a value of a type that the field does not take."""
    got = (
        short(value)
        if is_message(getattr(value, "pb", value))
        else f"{short(value)} ({type(value).__name__})"
    )
    return TypeError(f"{place(where, key)}: expected {expected}, got {got}")


def place(where: Where, key: object) -> str:
    """The field, and the item in it if `key` is given."""
    return where.label if key is NO_KEY else f"{where.label}[{key!r}]"


def is_message(value: object) -> bool:
    """Whether `value` is a protobuf message, found out without importing protobuf."""
    return hasattr(type(value), "DESCRIPTOR") and hasattr(value, "SerializeToString")


class Element:
    """One kind of value."""

    #: What errors say was expected.
    expected: str
    #: The type that values have as a rule, and have to have for `sure`; None for messages.
    exact: type | None = None
    #: An expression that is true of a `value` of type `exact` only if protobuf is sure to take it.
    sure: ClassVar[str] = "True"
    #: Whether the value is a message on protobuf's side.
    composite: ClassVar[bool] = False
    #: Whether the value reads as it is stored.
    as_stored: ClassVar[bool] = True

    def read(self, raw: Any, frozen: bool) -> Any:
        """The value as Python sees it; `frozen` makes views of messages read-only."""
        return raw

    def plain(self, raw: Any) -> Any:
        """The value for `to_dict`: no views in it."""
        return raw

    def show(self, raw: Any, depth: int) -> str:
        """The value in a repr; `depth` says how many levels of messages may still be opened."""
        return short(raw)

    def prepare(self, value: Any, where: Where, key: object = NO_KEY) -> Any:
        """What protobuf is to be given for `value`.

        For messages: a message, or whatever `store` of the same element takes.

        Raises:
            TypeError: the value has the wrong type.
            ValueError: it is out of range.
        """
        raise NotImplementedError

    def prepare_all(self, values: Iterable[Any], where: Where) -> list[Any]:
        """`prepare` for each value; errors say which one."""
        return [self.prepare(value, where, index) for index, value in enumerate(values)]

    def same(self, raw: Any, value: object) -> bool:
        """Whether what is stored equals `value`."""
        return bool(self.read(raw, True) == value)


class Composite(Element):
    """A kind of value that is a message on protobuf's side."""

    composite = True
    as_stored = False

    def fill(self, pb: Any, value: Any, where: Where, key: object = NO_KEY) -> None:
        """Put `value` into the empty message `pb`; after an error `pb` may be half filled."""
        self.store(pb, self.prepare(value, where, key))

    def store(self, pb: Any, prepared: Any) -> None:
        """Let the message `pb` be what `prepare` returned."""
        pb.CopyFrom(prepared)


class _Text(Element):
    expected = "a str"
    exact = str
    sure = "value.isascii()"

    def prepare(self, value: Any, where: Where, key: object = NO_KEY) -> str:
        if not isinstance(value, str):
            raise wrong_type(where, key, self.expected, value)
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{place(where, key)}: {short(value)} is no valid Unicode: {error}") from None
        return value


class _Bytes(Element):
    expected = "bytes"
    exact = bytes

    def prepare(self, value: Any, where: Where, key: object = NO_KEY) -> bytes:
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise wrong_type(where, key, self.expected, value)
        return bytes(value)

    def prepare_all(self, values: Iterable[Any], where: Where) -> list[Any]:
        values = list(values)
        return values if set(map(type, values)) <= {bytes} else super().prepare_all(values, where)


class _Bool(Element):
    expected = "a bool"
    exact = bool

    def prepare(self, value: Any, where: Where, key: object = NO_KEY) -> bool:
        if not isinstance(value, (bool, np.bool_)):
            raise wrong_type(where, key, self.expected, value)
        return bool(value)


class _Integer(Element):
    expected = "an int"
    exact = int
    # In the range of every integer type, and compared fastest.
    sure = f"0 <= value <= {2**30 - 1}"

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high

    def prepare(self, value: Any, where: Where, key: object = NO_KEY) -> int:
        # A bool is an int to Python, yet a version called True is a slip.
        if isinstance(value, (bool, np.bool_)):
            raise wrong_type(where, key, self.expected, value)
        try:
            number = operator.index(value)
        except TypeError:
            raise wrong_type(where, key, self.expected, value) from None
        if not self.low <= number <= self.high:
            raise ValueError(
                f"{place(where, key)}: expected an int from {self.low} to {self.high}, got {short(number)}"
            )
        return number

    def prepare_all(self, values: Iterable[Any], where: Where) -> list[Any]:
        values = values.tolist() if isinstance(values, np.ndarray) else list(values)
        if set(map(type, values)) <= {int} and (
            not values or (self.low <= min(values) and max(values) <= self.high)
        ):
            return values
        return super().prepare_all(values, where)


class _Double(Element):
    expected = "a float"
    exact = float

    def prepare(self, value: Any, where: Where, key: object = NO_KEY) -> float:
        if isinstance(value, (str, bytes, bytearray, bool, np.bool_)) or not hasattr(value, "__float__"):
            raise wrong_type(where, key, self.expected, value)
        try:
            return float(value)
        except OverflowError:
            raise self.out_of_range(value, where, key) from None
        except (TypeError, ValueError):  # an array of several values, for one
            raise wrong_type(where, key, self.expected, value) from None

    def out_of_range(self, value: object, where: Where, key: object) -> ValueError:
        return ValueError(f"{place(where, key)}: {short(value)} is out of the range of the field")

    def prepare_all(self, values: Iterable[Any], where: Where) -> list[Any]:
        values = values.tolist() if isinstance(values, np.ndarray) else list(values)
        return values if set(map(type, values)) <= {float} else super().prepare_all(values, where)


class _Float(_Double):
    # protobuf would turn a number beyond float32 into infinity without a word.
    sure = f"value * value < {3.4e38**2!r}"
    _pack = struct.Struct("<f").pack

    def prepare(self, value: Any, where: Where, key: object = NO_KEY) -> float:
        number = super().prepare(value, where, key)
        try:
            self._pack(number)
        except OverflowError:
            raise self.out_of_range(value, where, key) from None
        return number

    def prepare_all(self, values: Iterable[Any], where: Where) -> list[Any]:
        values = values.tolist() if isinstance(values, np.ndarray) else list(values)
        if set(map(type, values)) <= {float}:
            try:
                struct.pack(f"<{len(values)}f", *values)
            except OverflowError:
                pass  # the slow way finds out which one it is
            else:
                return values
        return [self.prepare(value, where, index) for index, value in enumerate(values)]


_SCALARS: Mapping[int, Element] = {
    # The keys are FieldDescriptor.TYPE_*: numbers of descriptor.proto, fixed for ever.
    1: _Double(),
    2: _Float(),
    3: _Integer(-(2**63), 2**63 - 1),
    4: _Integer(0, 2**64 - 1),
    5: _Integer(-(2**31), 2**31 - 1),
    6: _Integer(0, 2**64 - 1),
    7: _Integer(0, 2**32 - 1),
    8: _Bool(),
    9: _Text(),
    12: _Bytes(),
    13: _Integer(0, 2**32 - 1),
    14: _Integer(-(2**31), 2**31 - 1),  # an enum newer than this library
    15: _Integer(-(2**31), 2**31 - 1),
    16: _Integer(-(2**63), 2**63 - 1),
    17: _Integer(-(2**31), 2**31 - 1),
    18: _Integer(-(2**63), 2**63 - 1),
}


def scalar_element(descriptor: Any) -> Element:
    """The element of a field that is neither a message nor a group."""
    if descriptor.enum_type is not None and descriptor.enum_type.full_name in _enums:
        return EnumElement(_enums[descriptor.enum_type.full_name])
    return _SCALARS[descriptor.type]


# --------------------------------------------------------------------------------------------- enums

_enums: dict[str, type[enum.IntEnum]] = {"tensorflow.DataType": dtypes.DataType}


class ProtoEnum(enum.IntEnum):
    """A protobuf enum in Python; numbers that a newer server may send read as ``UNRECOGNIZED_<number>``."""

    @classmethod
    def _missing_(cls, value: object) -> ProtoEnum | None:
        return unknown_member(cls, value) if isinstance(value, int) and -(2**31) <= value < 2**31 else None


def enum_of(full_name: str) -> Callable[[type[E]], type[E]]:
    """Class decorator: fields of the protobuf enum `full_name` read as this Python enum."""

    def register(python_enum: type[E]) -> type[E]:
        _enums[full_name] = python_enum
        return python_enum

    return register


def unknown_member(python_enum: type[E], number: int) -> E:
    """A member for a number that has none: protobuf enums are open."""
    member = int.__new__(python_enum, number)
    base = number - dtypes.REF_OFFSET
    is_reference = python_enum is dtypes.DataType and base in dtypes.DataType._value2member_map_
    member._name_ = f"{dtypes.DataType(base).name}_REF" if is_reference else f"UNRECOGNIZED_{number}"
    member._value_ = number
    return member


class EnumElement(Element):
    """A number that reads as a member of an `IntEnum`; a member, its number or its name may be given."""

    as_stored = False

    def __init__(self, python_enum: type[enum.IntEnum]) -> None:
        self.enum = self.exact = python_enum
        self.members: Mapping[int, enum.IntEnum] = {int(member): member for member in python_enum}
        self.expected = f"a {python_enum.__qualname__}"

    def read(self, raw: Any, frozen: bool) -> enum.IntEnum:
        try:
            return self.members[raw]
        except KeyError:
            return unknown_member(self.enum, raw)

    def plain(self, raw: Any) -> enum.IntEnum:
        return self.read(raw, True)

    def show(self, raw: Any, depth: int) -> str:
        return f"{self.enum.__name__}.{self.read(raw, True).name}"

    def prepare(self, value: Any, where: Where, key: object = NO_KEY) -> int:
        if isinstance(value, self.enum):
            return int(value)
        if isinstance(value, str):
            found = self.enum.__members__.get(value)
            if found is None:
                raise ValueError(f"{place(where, key)}: {self._choice()}, got {short(value)}")
            return int(found)
        # Members of another enum are ints too, and would be misunderstood.
        if isinstance(value, (bool, np.bool_, enum.Enum)):
            raise wrong_type(where, key, self.expected, value)
        try:
            number = operator.index(value)
        except TypeError:
            raise wrong_type(where, key, self.expected, value) from None
        if number not in self.members and unknown_member(self.enum, number).name.startswith("UNREC"):
            raise ValueError(f"{place(where, key)}: {self._choice()}, got {short(number)}")
        return number

    def _choice(self) -> str:
        names = [f"{member.name} ({number})" for number, member in self.members.items()]
        return "expected one of " + ", ".join(names[:8] + ["..."] * (len(names) > 8))


# ------------------------------------------------------------------------------------------ messages


class ViewElement(Composite):
    """A message that reads as a `View`; also takes a message, a dict or the class's shorthand."""

    def __init__(self, view_class: type[View]) -> None:
        self.view_class = view_class
        self.expected = view_class._expected()
        self.read = view_class._of  # type: ignore[assignment,method-assign]

    def plain(self, raw: Any) -> Any:
        return self.view_class._of(raw, True)._plain()

    def show(self, raw: Any, depth: int) -> str:
        return self.view_class._of(raw, True)._show_inside(depth)

    def prepare(self, value: Any, where: Where, key: object = NO_KEY) -> Any:
        raw = getattr(value, "pb", value)
        if isinstance(raw, self.view_class._message_class):
            return raw
        fresh = self.view_class._message_class()
        self.view_class._fill(fresh, value, where, key)
        return fresh

    def fill(self, pb: Any, value: Any, where: Where, key: object = NO_KEY) -> None:
        self.view_class._fill(pb, value, where, key)


class ContentElement(Composite):
    """A message that reads as the one scalar in it, such as Int64Value."""

    def __init__(self, message_class: Any, name: str, scalar: Element) -> None:
        self.message_class, self.name, self.scalar = message_class, name, scalar
        self.expected = f"{scalar.expected} or None"

    def read(self, raw: Any, frozen: bool) -> Any:
        return self.scalar.read(getattr(raw, self.name), frozen)

    def plain(self, raw: Any) -> Any:
        return self.read(raw, True)

    def show(self, raw: Any, depth: int) -> str:
        return self.scalar.show(getattr(raw, self.name), depth)

    def prepare(self, value: Any, where: Where, key: object = NO_KEY) -> Any:
        raw = getattr(value, "pb", value)
        if isinstance(raw, self.message_class):
            return raw
        fresh = self.message_class()
        if isinstance(value, Mapping) and set(value) <= {self.name}:
            if not value:
                return fresh
            value = value[self.name]
        try:
            setattr(fresh, self.name, self.scalar.prepare(value, where, key))
        except TypeError:
            raise wrong_type(where, key, self.expected, value) from None
        return fresh


class FlagElement(Composite):
    """A message without fields: it is there or it is not."""

    expected = "a bool"

    def __init__(self, message_class: Any) -> None:
        self.message_class = message_class

    def read(self, raw: Any, frozen: bool) -> bool:
        return True

    def plain(self, raw: Any) -> bool:
        return True

    def show(self, raw: Any, depth: int) -> str:
        return "True"

    def prepare(self, value: Any, where: Where, key: object = NO_KEY) -> Any:
        """The message, or None for False."""
        raw = getattr(value, "pb", value)
        if isinstance(raw, self.message_class):
            return raw
        if isinstance(value, Mapping) and not value:
            return self.message_class()
        if not isinstance(value, (bool, np.bool_)):
            raise wrong_type(where, key, self.expected, value)
        return self.message_class() if value else None


class TensorElement(Composite):
    """A TensorProto that reads as a numpy array, read-only; anything numpy converts may be given."""

    expected = "an array, or what numpy makes one of"

    def __init__(self, message_class: Any) -> None:
        self.message_class = message_class

    def read(self, raw: Any, frozen: bool) -> np.ndarray:
        array = codec.decode_tensor(raw.SerializeToString())
        # Writing into it would not reach the message.
        array.flags.writeable = False
        return array

    def plain(self, raw: Any) -> np.ndarray:
        return self.read(raw, True)

    def show(self, raw: Any, depth: int) -> str:
        number = raw.dtype
        try:
            name = str(dtypes.numpy_dtype(number)) if number != dtypes.DataType.DT_STRING else "string"
        except UnsupportedTypeError:
            name = dtypes.short_name(number)
        if raw.tensor_shape.unknown_rank:
            return f"<{name} of unknown rank>"
        sizes = [str(dim.size) for dim in raw.tensor_shape.dim[:9]]
        return f"<{name} [{', '.join(sizes if len(sizes) < 9 else [*sizes[:8], '...'])}]>"

    def prepare(self, value: Any, where: Where, key: object = NO_KEY) -> Any:
        """The message if one was given, else the bytes of one."""
        if isinstance(value, self.message_class):
            return value
        if value is None or isinstance(value, Mapping) or is_message(getattr(value, "pb", value)):
            raise wrong_type(where, key, self.expected, value)
        try:
            return codec.encode_tensor(np.asarray(value))
        except ValueError as error:  # numpy's, about nested lists of different lengths
            raise ValueError(f"{place(where, key)}: {error}") from None
        except UnsupportedTypeError as error:
            raise UnsupportedTypeError(f"{place(where, key)}: {error}") from None

    def store(self, pb: Any, prepared: Any) -> None:
        if isinstance(prepared, bytes):
            pb.ParseFromString(prepared)
        else:
            pb.CopyFrom(prepared)

    def same(self, raw: Any, value: object) -> bool:
        if isinstance(value, self.message_class):
            return bool(raw == value)
        stored, given = self.read(raw, True), np.asarray(value)
        given = given.astype(object if stored.dtype == object else given.dtype.newbyteorder("="))
        return stored.dtype == given.dtype and np.array_equal(stored, given)
