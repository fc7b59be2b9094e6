"""Examples, the input of Classify, Regress and MultiInference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from aioserving.messages._values import NO_KEY, Where, place, short, wrong_type
from aioserving.messages._view import DictView, ListView, MessageLike, View, field, positional

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy.typing as npt

    from aioserving.messages._view import Items, Many, MapToOr, PbOr, Sub, SubOr

    FeatureValue: TypeAlias = npt.ArrayLike | str | bytes | Iterable[Any]

__all__ = [
    "BytesList",
    "Example",
    "ExampleList",
    "ExampleListWithContext",
    "Feature",
    "Features",
    "FloatList",
    "Input",
    "Int64List",
]


class BytesList(ListView[bytes, bytes], message="tensorflow.BytesList", content="value"):
    """A list of byte strings."""

    __slots__ = ()

    value: Items[bytes] = field("The items.")


class FloatList(ListView[float, float], message="tensorflow.FloatList", content="value"):
    """A list of float32 numbers."""

    __slots__ = ()

    value: Items[float] = field("The items.")


class Int64List(ListView[int, int], message="tensorflow.Int64List", content="value"):
    """A list of int64 numbers."""

    __slots__ = ()

    value: Items[int] = field("The items.")


class Feature(View, message="tensorflow.Feature"):
    """One feature of an example: a list of bytes, of floats or of integers; or nothing at all.

    A value or a list of values stands for the feature that holds it. Its type decides: ``str``
    (sent as UTF-8) and ``bytes`` go to `bytes_list`, ``float`` to `float_list`, ``int`` and ``bool``
    to `int64_list`; arrays by their dtype. Dimensions beyond the first are flattened row by row.
    A list of several types is refused, as the server would refuse the example; so is a ragged one.
    """

    __slots__ = ()

    if TYPE_CHECKING:
        pb: PbOr[FeatureValue] = positional(default=None, kw_only=False)

    bytes_list: SubOr[BytesList, Iterable[bytes]] = field("Byte strings.")
    float_list: SubOr[FloatList, Iterable[float]] = field("float32 numbers.")
    int64_list: SubOr[Int64List, Iterable[int]] = field("int64 numbers.")

    @property
    def value(self) -> BytesList | FloatList | Int64List | None:
        """The list that is set, or None; assigning a value or list of values sets the one that fits."""
        kind = self.pb.WhichOneof("kind")
        return None if kind is None else getattr(self, kind)

    @value.setter
    def value(self, value: FeatureValue | None) -> None:
        pb = self._own("Feature.value", AttributeError)
        fresh = self._message_class()
        if value is not None:
            self._put(fresh, value, _VALUE, NO_KEY)
        pb.CopyFrom(fresh)

    @classmethod
    def _expected(cls) -> str:
        return "a Feature, or str, bytes, float or int values, one or a list"

    @classmethod
    def _take(cls, pb: Any, value: Any, where: Where, key: object) -> bool:
        if isinstance(value, (Mapping, View)) or hasattr(type(value), "DESCRIPTOR"):
            return False
        cls._put(pb, value, where, key)
        return True

    @classmethod
    def _put(cls, pb: Any, value: Any, where: Where, key: object) -> None:
        name, values = cls._sort(value, where, key)
        if name:
            inner = getattr(pb, name)
            inner.value.extend(values)
            inner.SetInParent()

    @classmethod
    def _sort(cls, value: Any, where: Where, key: object) -> tuple[str, list[Any]]:
        """The field for a value, and the values as it takes them."""
        dtype = getattr(value, "dtype", None)
        if isinstance(dtype, np.dtype):
            value = np.asarray(value)
            name = _BY_DTYPE.get(dtype.kind, "")
            if not name and dtype.kind != "O":
                raise TypeError(f"{place(where, key)}: no feature holds an array of {dtype}")
            values = value.ravel().tolist()
            if not values:
                return name, []
        elif isinstance(value, (str, bytes, bytearray)) or not isinstance(value, Iterable):
            values = [value]
        else:
            values = _flat(list(value), where, key)
        kinds = set(map(type, values))
        names = {_BY_TYPE.get(kind) or _by_base(kind) for kind in kinds}
        if "" in names:
            wrong = next(item for item in values if not (_BY_TYPE.get(type(item)) or _by_base(type(item))))
            raise wrong_type(where, key, cls._expected(), wrong)
        if len(names) > 1 or (bool in kinds and len(kinds) > 1):
            found = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise TypeError(
                f"{place(where, key)}: values of one feature must have one type, got {found}: {short(values)}"
            )
        if not names:
            return "", []
        name = names.pop()
        if name == "bytes_list":
            values = [item.encode() if isinstance(item, str) else bytes(item) for item in values]
        elif name == "int64_list":
            values = [int(item) for item in values]
        at = _Place(place(where, key))
        return name, cls._fields[name].element.view_class._fields["value"].element.prepare_all(values, at)


_BY_TYPE = {
    str: "bytes_list",
    bytes: "bytes_list",
    bytearray: "bytes_list",
    float: "float_list",
    int: "int64_list",
    bool: "int64_list",
}
_BY_DTYPE = {
    "f": "float_list",
    "i": "int64_list",
    "u": "int64_list",
    "b": "int64_list",
    "S": "bytes_list",
    "U": "bytes_list",
}


def _by_base(kind: type) -> str:
    """The field for numpy's scalars, and for subclasses of Python's."""
    for base, name in ((np.bool_, "int64_list"), (np.integer, "int64_list"), (np.floating, "float_list")):
        if issubclass(kind, base):
            return name
    return next((name for base, name in _BY_TYPE.items() if issubclass(kind, base)), "")


def _flat(values: list[Any], where: Where, key: object) -> list[Any]:
    """Nested lists of equal lengths as one list."""
    nested = [isinstance(item, (list, tuple, np.ndarray)) for item in values]
    if not any(nested):
        return values
    if not all(nested) or len({len(item) for item in values}) > 1:
        lengths = [len(item) if is_list else "a value" for item, is_list in zip(values, nested, strict=True)]
        raise ValueError(
            f"{place(where, key)}: ragged lists cannot be one feature; lengths are {short(lengths)}"
        )
    return _flat([inner for item in values for inner in item], where, key)


class _Place:
    def __init__(self, label: str) -> None:
        self.label = label


_VALUE = _Place("Feature.value")


class Features(
    DictView[str, Feature, "MessageLike | FeatureValue"], message="tensorflow.Features", content="feature"
):
    """The features of an example, by name: ``features["age"] = 42``."""

    __slots__ = ()

    feature: MapToOr[Feature, FeatureValue] = field("The features by name.")


class Example(View, message="tensorflow.Example"):
    """One example: ``Example(features={"age": 42, "name": "Ada", "pixels": array})``."""

    __slots__ = ()

    features: SubOr[Features, Mapping[str, FeatureValue]] = field("The features by name.")


class ExampleList(
    ListView[Example, MessageLike],
    message="tensorflow.serving.ExampleList",
    content="examples",
):
    """Examples."""

    __slots__ = ()

    examples: Many[Example] = field("The examples.")


class ExampleListWithContext(View, message="tensorflow.serving.ExampleListWithContext"):
    """Examples, and the features that are common to all of them."""

    __slots__ = ()

    examples: Many[Example] = field("The examples.")
    context: Sub[Example] = field("Features of every example that has none of that name itself.")


class Input(View, message="tensorflow.serving.Input"):
    """The examples of a request, with or without a common context; the two exclude each other."""

    __slots__ = ()

    example_list: SubOr[ExampleList, Iterable[Example | MessageLike]] = field("Examples.")
    example_list_with_context: Sub[ExampleListWithContext] = field("Examples and their context.")
