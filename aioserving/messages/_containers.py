"""Repeated fields as lists and map fields as dicts, on the message's own container.

Nothing is copied to read: an item that is a message is a view on the message in the list. What is
put in is copied, as protobuf copies it: the list or map owns its messages.

The behaviour is written once, in `ListMethods` and `DictMethods`; `Repeated` and `Map` add it to a
bare container, `aioserving.messages._view` to the views that behave as the list or dict they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, MutableSequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

from aioserving.messages._values import NO_KEY, Element, short, wrong_type

if TYPE_CHECKING:
    from typing import TypeGuard

    import numpy as np
    from typing_extensions import Self

    from aioserving.messages._view import Field

__all__ = ["DictMethods", "ListMethods", "Map", "Repeated"]

T = TypeVar("T")  # what reading an item gives
G = TypeVar("G")  # what else may be given for one
K = TypeVar("K")

#: Items of a list or dict that a repr shows.
SHOWN = 6


def read_only(label: str) -> TypeError:
    """The error for changing a container that belongs to a response."""
    return TypeError(f"{label} is read-only, as everything in a response is; change a copy(), or .pb")


class ListMethods(MutableSequence[T], Generic[T, G]):
    """A list over a protobuf repeated field.

    Where items are messages, views, messages and dicts of fields may be given, and are copied in.
    """

    __slots__ = ()

    if TYPE_CHECKING:
        # What the methods work with: protobuf's container, its field, and whether it may be changed.
        @property
        def _items(self) -> Any: ...
        @property
        def _field(self) -> Any: ...
        @property
        def _frozen(self) -> bool: ...

    def _writable(self) -> Any:
        if self._frozen:
            raise read_only(self._field.label)
        return self._items

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        read, frozen = self._field.element.read, self._frozen
        if isinstance(index, slice):
            return [read(raw, frozen) for raw in self._items[index]]
        return read(self._items[index], frozen)  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[T]:
        element, frozen = self._field.element, self._frozen
        if element.as_stored:
            return iter(self._items)
        return (element.read(raw, frozen) for raw in self._items)

    @overload
    def __setitem__(self, index: int, value: T | G) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: Iterable[T | G]) -> None: ...
    def __setitem__(self, index: int | slice, value: Any) -> None:
        items, element = self._writable(), self._field.element
        if not isinstance(index, slice):
            if element.composite:
                items[index].CopyFrom(element.prepare(value, self._field, index))
            else:
                items[index] = element.prepare(value, self._field, index)
            return
        prepared = self._prepare_all(value)
        slots = range(len(items))[index]
        if element.composite:
            # They may be items of this very list: their content is taken before any of them moves.
            prepared = [_copy(message) for message in prepared]
        if slots.step == 1:
            start, stop = slots.start, max(slots.start, slots.stop)
            if not element.composite:
                items[start:stop] = prepared
                return
            for _ in range(len(prepared) - (stop - start)):
                items.insert(stop, type(prepared[0])())
            del items[start + len(prepared) : stop]
            slots = range(start, start + len(prepared))
        elif len(slots) != len(prepared):
            raise ValueError(
                f"attempt to assign sequence of size {len(prepared)} to extended slice of size {len(slots)}"
            )
        for slot, item in zip(slots, prepared, strict=True):
            if element.composite:
                items[slot].CopyFrom(item)
            else:
                items[slot] = item

    def __delitem__(self, index: int | slice) -> None:
        items = self._writable()
        if not isinstance(index, slice):
            del items[index]
            return
        # protobuf 7 crashes on, or takes the wrong items of, some slices with a step.
        doomed = range(len(items))[index]
        if doomed.step == 1:
            del items[doomed.start : max(doomed.start, doomed.stop)]
        else:
            for position in sorted(doomed, reverse=True):
                del items[position]

    def insert(self, index: int, value: T | G) -> None:
        """Put `value` before the item at `index`."""
        self._writable().insert(index, self._field.element.prepare(value, self._field, index))

    def append(self, value: T | G) -> None:
        """Put `value` at the end."""
        items = self._writable()
        items.append(self._field.element.prepare(value, self._field, len(items)))

    def extend(self, values: Iterable[T | G]) -> None:
        """Put all `values` at the end, or none if one of them does not fit."""
        items = self._writable()
        items.extend(self._prepare_all(values))

    def add(self, **fields: Any) -> T:
        """Put a new message with these fields at the end, and return it.

        Raises:
            TypeError: the items are no messages, or have no such field.
        """
        items = self._writable()
        element = self._field.element
        if not element.composite:
            raise TypeError(f"{self._field.label} holds no messages; append() takes its values")
        items.append(element.prepare(fields, self._field, len(items)))
        return self[-1]

    def __iadd__(self, values: Iterable[T | G]) -> Self:
        self.extend(values)
        return self

    def __add__(self, other: Iterable[T]) -> list[T]:
        return [*self, *other] if isinstance(other, (list, ListMethods)) else NotImplemented

    def __radd__(self, other: Iterable[T]) -> list[T]:
        return [*other, *self] if isinstance(other, list) else NotImplemented

    def pop(self, index: int = -1) -> T:
        """Take the item at `index` out and return it."""
        items = self._writable()
        if not items:
            raise IndexError(f"pop from empty {self._field.label}")
        # protobuf takes the last item where there is none at `index`.
        index = range(len(items))[index]
        return self._field.element.read(items.pop(index), False)  # type: ignore[no-any-return]

    def clear(self) -> None:
        """Take all items out."""
        del self._writable()[:]

    def reverse(self) -> None:
        """Reverse the order in place."""
        self._writable().reverse()

    def sort(self, *, key: Callable[[T], Any] | None = None, reverse: bool = False) -> None:
        """Sort in place and stably, as `list.sort`; items that are messages need a `key`."""
        items, element = self._writable(), self._field.element
        if key is None and element.composite:
            raise TypeError(f"{self._field.label} holds messages, which have no order; give a key")
        by = key
        items.sort(key=None if by is None else (lambda raw: by(element.read(raw, True))), reverse=reverse)

    def __contains__(self, value: object) -> bool:
        return any(item == value for item in self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (list, ListMethods)) and not _is_raw_list(other):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        import numpy as np

        if copy is False:
            raise ValueError(f"{self._field.label} cannot become an array without a copy")
        array: np.ndarray = np.array(self._items[:], dtype=dtype or self._field.numpy_name)
        return array

    def _prepare_all(self, values: Any) -> list[Any]:
        field = self._field
        if isinstance(values, (str, bytes, bytearray, Mapping)) or not isinstance(values, Iterable):
            raise wrong_type(field, NO_KEY, f"a list whose items are {field.element.expected}", values)
        if isinstance(values, ListMethods):
            values = values._items
        prepared: list[Any] = field.element.prepare_all(values, field)
        return prepared


def _copy(message: Any) -> Any:
    fresh = type(message)()
    fresh.CopyFrom(message)
    return fresh


def _is_raw_list(value: object) -> TypeGuard[MutableSequence[Any]]:
    """Whether `value` is protobuf's own container."""
    return isinstance(value, MutableSequence) and type(value).__module__.startswith("google.")


class Repeated(ListMethods[T, G]):
    """A repeated field as a list: every operation of `list`, on the message's own items.

    Attributes:
        pb: protobuf's own container.
    """

    __slots__ = ("_field", "_frozen", "pb")

    pb: Any
    _items: Any
    _field: Any
    _frozen: bool

    def __init__(self, items: Any, field: Field[Any, Any], frozen: bool) -> None:
        self.pb, self._field, self._frozen = items, field, frozen

    def copy(self) -> list[T]:
        """A list of the items; the same items, where they are messages."""
        return list(self)

    def __repr__(self) -> str:
        return show_list(self._items, self._field.element, 3)

    def __copy__(self) -> list[T]:
        return list(self)

    def __deepcopy__(self, memo: object) -> list[T]:
        return [item.copy() for item in self] if self._field.element.composite else list(self)  # type: ignore[attr-defined]

    def __reduce__(self) -> tuple[Any, ...]:
        # A bare container has no life without its message: what travels is a list.
        return list, (list(self),)


# The container, under the name that the methods know.
Repeated._items = Repeated.__dict__["pb"]


class DictMethods(MutableMapping[K, T], Generic[K, T, G]):
    """A dict over a protobuf map field.

    Where values are messages, views, messages and dicts of fields may be given, and are copied in.
    Unlike protobuf's own map, reading a missing key is a KeyError and adds nothing. The order of
    keys is protobuf's, which keeps none.
    """

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def _items(self) -> Any: ...
        @property
        def _field(self) -> Any: ...
        @property
        def _frozen(self) -> bool: ...

    def _writable(self) -> Any:
        if self._frozen:
            raise read_only(self._field.label)
        return self._items

    def _has(self, key: object) -> bool:
        # Asking protobuf for a key of another type is an error in some of its implementations.
        return isinstance(key, self._field.key_type) and key in self._items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __contains__(self, key: object) -> bool:
        return self._has(key)

    def __getitem__(self, key: K) -> T:
        items, field = self._items, self._field
        if isinstance(key, field.key_type) and key in items:
            return field.element.read(items[key], self._frozen)  # type: ignore[no-any-return]
        raise KeyError(key)

    def __setitem__(self, key: K, value: T | G) -> None:
        items, field = self._writable(), self._field
        checked = field.check_key(key)
        put(items, checked, field.element, field.element.prepare(value, field, key))

    def __delitem__(self, key: K) -> None:
        items = self._writable()
        if not self._has(key):
            raise KeyError(key)
        del items[key]

    def clear(self) -> None:
        """Take all entries out."""
        self._writable().clear()

    @overload
    def setdefault(self, key: K) -> T: ...
    @overload
    def setdefault(self, key: K, default: T | G) -> T: ...
    def setdefault(self, key: K, default: Any = None) -> T:
        """The value of `key`, after putting `default` there if it was missing.

        Where values are messages the default is an empty one, so
        ``platforms.setdefault("tensorflow").source_adapter_config = config`` works.
        """
        if not self._has(key):
            self[key] = cast("G", {}) if default is None and self._field.element.composite else default
        return self[key]

    def update(self, other: Any = (), /, **values: Any) -> None:
        """Put all entries of a mapping, or pairs, here; none of them if one does not fit."""
        items, field = self._writable(), self._field
        for key, prepared in field.prepare_entries({**dict(other), **values}):
            put(items, key, field.element, prepared)

    def __ior__(self, other: Mapping[K, T | G]) -> Self:
        self.update(other)
        return self

    def __or__(self, other: Mapping[K, T]) -> dict[K, T]:
        return {**self, **other} if isinstance(other, Mapping) else NotImplemented

    def __ror__(self, other: Mapping[K, T]) -> dict[K, T]:
        return {**other, **self} if isinstance(other, Mapping) else NotImplemented

    def __eq__(self, other: object) -> bool:
        if isinstance(other, DictMethods):
            return bool(self._items == other._items)
        if not isinstance(other, Mapping):
            return NotImplemented
        same = self._field.element.same
        return len(self) == len(other) and all(
            self._has(key) and same(self._items[key], value) for key, value in other.items()
        )

    __hash__ = None  # type: ignore[assignment]


class Map(DictMethods[K, T, G]):
    """A map field as a dict: every operation of `dict`, on the message's own entries.

    Attributes:
        pb: protobuf's own container.
    """

    __slots__ = ("_field", "_frozen", "pb")

    pb: Any
    _items: Any
    _field: Any
    _frozen: bool

    def __init__(self, items: Any, field: Field[Any, Any], frozen: bool) -> None:
        self.pb, self._field, self._frozen = items, field, frozen

    def copy(self) -> dict[K, T]:
        """A dict of the entries; the same values, where they are messages."""
        return dict(self)

    def __repr__(self) -> str:
        return show_dict(self._items, self._field.element, 3)

    def __copy__(self) -> dict[K, T]:
        return dict(self)

    def __deepcopy__(self, memo: object) -> dict[K, T]:
        from copy import deepcopy

        return {key: deepcopy(value) for key, value in self.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


Map._items = Map.__dict__["pb"]


def put(items: Any, key: Any, element: Element, prepared: Any) -> None:
    """Set one entry of protobuf's map."""
    if element.composite:
        element.store(items[key], prepared)  # type: ignore[attr-defined]  # a Composite
    else:
        items[key] = prepared


def show_list(items: Any, element: Element, depth: int) -> str:
    """A repeated field in a repr: its first items."""
    parts = [element.show(raw, depth) for raw in items[:SHOWN]]
    if len(items) > SHOWN:
        parts.append(f"... {len(items) - SHOWN} more")
    return f"[{', '.join(parts)}]"


def show_dict(items: Any, element: Element, depth: int) -> str:
    """A map field in a repr: its first entries by key."""
    keys = sorted(items) if len(items) <= 1000 else list(islice(items, SHOWN))
    parts = [f"{short(key)}: {element.show(items[key], depth)}" for key in keys[:SHOWN]]
    if len(items) > SHOWN:
        parts.append(f"... {len(items) - SHOWN} more")
    return f"{{{', '.join(parts)}}}"
