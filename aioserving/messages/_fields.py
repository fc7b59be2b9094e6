"""Fields of views: as they are declared, and as they are once the DESCRIPTOR has told their kind.

A declared `Field` is a name with a docstring. `bind` makes of it the field for what the descriptor
says: a scalar, an optional scalar, an enum, a message, a value inside a message, a list or a map.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, overload

from aioserving.messages._containers import DictMethods, Map, Repeated, put, show_dict, show_list
from aioserving.messages._values import (
    NO_KEY,
    ContentElement,
    Element,
    EnumElement,
    FlagElement,
    TensorElement,
    ViewElement,
    scalar_element,
    wrong_type,
)

if TYPE_CHECKING:
    import enum

    from aioserving.messages._view import View

__all__ = ["READ_ONLY", "AbsentField", "Field", "bind", "field", "write_setattr"]

#: What a read-only view has instead of the message to set fields of.
READ_ONLY: Any = object()

Got = TypeVar("Got")
Given = TypeVar("Given")


class Field(property, Generic[Got, Given]):
    """One attribute of a `View`: reading gives a ``Got``, setting takes a ``Given``, ``del`` clears it.

    A property, because its reading is done in C then: a plain scalar costs little more than
    protobuf's own attribute. As declared it is a name with a docstring; `View._bind` puts one of the
    subclasses in its place, each made for one kind of field.
    """

    #: What one value of the field is.
    element: Element
    #: The oneof that the field belongs to, or None.
    oneof: str | None = None
    #: Whether what it reads as is kept by the view that it was read from.
    keeps: ClassVar[bool] = False

    def __init__(self, doc: str = "", convert: Callable[[Any], Any] | None = None) -> None:
        super().__init__(doc=doc)
        self.doc, self.convert = doc, convert
        self.name = ""
        self.owner: Any = None

    def __set_name__(self, owner: type[View], name: str) -> None:
        self.owner, self.name = owner, name

    @property
    def label(self) -> str:
        """The message and the field, for errors: ``"ModelSpec.version"``."""
        return f"{self.owner.__qualname__}.{self.name}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.label}>"

    if TYPE_CHECKING:

        @overload  # type: ignore[override]
        def __get__(self, view: None, owner: type) -> Field[Got, Given]: ...
        @overload
        def __get__(self, view: View, owner: type) -> Got: ...
        def __get__(self, view: Any, owner: Any) -> Any: ...
        def __set__(self, view: View, value: Given) -> None: ...


def field(doc: str, convert: Callable[[Any], Any] | None = None) -> Any:
    """Declare a field of a view; the annotation beside it says how it reads and what may be set.

    Args:
        doc: what the field means.
        convert: turns what else may be set (a path) into what the field takes; raises TypeError for
            what it does not know.
    """
    return Field(doc, convert)


class _Bound(Field[Any, Any]):
    """A field that knows its DESCRIPTOR. Its functions work on messages, `reader` on views."""

    def __init__(self, declared: Field[Any, Any], descriptor: Any, element: Element) -> None:
        name = declared.name
        property.__init__(self, self.reader(name, element), self._set, self._delete, declared.doc)
        self.doc, self.convert, self.name, self.owner = declared.doc, declared.convert, name, declared.owner
        self.descriptor, self.element = descriptor, element
        oneof = descriptor.containing_oneof
        # protobuf makes a oneof of one for each `optional` scalar; nothing is excluded by those.
        self.oneof = oneof.name if oneof is not None and len(oneof.fields) > 1 else None

    def reader(self, name: str, element: Element) -> Callable[[Any], Any]:
        """What reads the attribute of a view."""
        raise NotImplementedError

    def scalar(self) -> tuple[Element, str] | None:
        """The scalar that assignment sets, and where it is in the message; None if it sets more than that."""
        return None

    def _set(self, view: View, value: Any) -> None:
        view._assign(self.name, value)

    def _delete(self, view: View) -> None:
        view._own(self.label, AttributeError).ClearField(self.name)

    def has(self, pb: Any) -> bool:
        """Whether the field is set: present, not empty, or not zero, whichever applies."""
        return bool(pb.HasField(self.name))

    def assign(self, pb: Any, value: Any) -> None:
        """Set the field of a message in use: as a whole, or not at all."""
        raise NotImplementedError

    def fill(self, pb: Any, value: Any) -> None:
        """Set the field of a message that was just made, and is dropped should this fail."""
        self.assign(pb, value)

    def plain(self, pb: Any) -> Any:
        """The value for `to_dict`."""
        return self.element.plain(getattr(pb, self.name))

    def show(self, pb: Any, depth: int) -> str:
        """The value in a repr."""
        return self.element.show(getattr(pb, self.name), depth)


class _ScalarField(_Bound):
    """A number, string or bool that always has a value."""

    def reader(self, name: str, element: Element) -> Callable[[Any], Any]:
        return attrgetter(f"pb.{name}")

    def scalar(self) -> tuple[Element, str]:
        return self.element, self.name

    def has(self, pb: Any) -> bool:
        return bool(getattr(pb, self.name))

    def assign(self, pb: Any, value: Any) -> None:
        if self.convert is not None:
            with contextlib.suppress(TypeError):
                value = self.convert(value)
        setattr(pb, self.name, self.element.prepare(value, self))


class _EnumField(_ScalarField):
    """An enum that always has a value."""

    def reader(self, name: str, element: Element) -> Callable[[Any], Any]:
        assert isinstance(element, EnumElement)
        members, read = element.members, element.read

        def get(view: View) -> enum.IntEnum:
            number = getattr(view.pb, name)
            try:
                return members[number]
            except KeyError:
                return read(number, False)

        return get


class _OptionalField(_Bound):
    """A scalar or enum that may be absent: None then."""

    def reader(self, name: str, element: Element) -> Callable[[Any], Any]:
        read = element.read if isinstance(element, EnumElement) else None

        def get(view: View) -> Any:
            pb = view.pb
            value = getattr(pb, name)
            # Only a zero needs the second look.
            if not value and not pb.HasField(name):
                return None
            return value if read is None else read(value, False)

        return get

    def scalar(self) -> tuple[Element, str]:
        return self.element, self.name

    def assign(self, pb: Any, value: Any) -> None:
        if value is None:
            pb.ClearField(self.name)
        else:
            setattr(pb, self.name, self.element.prepare(value, self))


def _keeping(name: str, make: Callable[[Any, bool], Any]) -> Callable[[View], Any]:
    """Read a field as what `make` makes of it, which is kept for as long as it is what the message holds."""

    def get(view: View) -> Any:
        raw, inner = getattr(view.pb, name), view._inner
        made = inner.get(name)
        if made is None or made.pb is not raw:
            made = inner[name] = make(raw, view._target is READ_ONLY)
        return made

    return get


class _MessageField(_Bound):
    """A message that reads as a view, present or not; what is set through the view makes it present."""

    keeps = True

    element: ViewElement

    def reader(self, name: str, element: Element) -> Callable[[Any], Any]:
        assert isinstance(element, ViewElement)
        return _keeping(name, element.view_class._of)

    def assign(self, pb: Any, value: Any) -> None:
        if value is None:
            pb.ClearField(self.name)
            return
        prepared = self.element.prepare(value, self)
        # Into the message that is there, so views on it stay alive. `x.list += y` ends in `x.list = x.list`.
        inner = getattr(pb, self.name)
        if prepared is not inner:
            self.element.store(inner, prepared)
        inner.SetInParent()

    def fill(self, pb: Any, value: Any) -> None:
        inner = getattr(pb, self.name)
        self.element.fill(inner, value, self)
        inner.SetInParent()


class _ValueField(_Bound):
    """A message that reads as a Python value, or None when absent: a tensor."""

    def reader(self, name: str, element: Element) -> Callable[[Any], Any]:
        read = element.read

        def get(view: View) -> Any:
            pb = view.pb
            return read(getattr(pb, name), True) if pb.HasField(name) else None

        return get

    def assign(self, pb: Any, value: Any) -> None:
        prepared = None if value is None else self.element.prepare(value, self)
        if prepared is None:
            pb.ClearField(self.name)
        else:
            inner = getattr(pb, self.name)
            self.element.store(inner, prepared)  # type: ignore[attr-defined]  # a Composite
            inner.SetInParent()


class _ContentField(_ValueField):
    """A message that reads as the one scalar in it, or None when absent."""

    element: ContentElement

    def scalar(self) -> tuple[Element, str]:
        return self.element.scalar, f"{self.name}.{self.element.name}"

    def reader(self, name: str, element: Element) -> Callable[[Any], Any]:
        assert isinstance(element, ContentElement)
        inner = element.name

        def get(view: View) -> Any:
            pb = view.pb
            return getattr(getattr(pb, name), inner) if pb.HasField(name) else None

        return get


class _FlagField(_ValueField):
    """A message without fields: True when present."""

    def reader(self, name: str, element: Element) -> Callable[[Any], Any]:
        def get(view: View) -> bool:
            return bool(view.pb.HasField(name))

        return get


class _RepeatedField(_Bound):
    """A repeated field, which reads as a list."""

    keeps = True

    def reader(self, name: str, element: Element) -> Callable[[Any], Any]:
        return _keeping(name, lambda items, frozen: Repeated(items, self, frozen))

    @property
    def numpy_name(self) -> str:
        """The numpy dtype of the items."""
        return _NUMPY_NAMES.get(self.descriptor.type, "object")

    def has(self, pb: Any) -> bool:
        return len(getattr(pb, self.name)) > 0

    def assign(self, pb: Any, value: Any) -> None:
        current: Repeated[Any, Any] = Repeated(getattr(pb, self.name), self, False)
        if getattr(value, "pb", value) is not current.pb:
            current[:] = value

    def fill(self, pb: Any, value: Any) -> None:
        Repeated(getattr(pb, self.name), self, False).extend(value)

    def plain(self, pb: Any) -> list[Any]:
        return [self.element.plain(raw) for raw in getattr(pb, self.name)]

    def show(self, pb: Any, depth: int) -> str:
        return show_list(getattr(pb, self.name), self.element, depth)


class _MapField(_Bound):
    """A map field, which reads as a dict."""

    keeps = True

    def __init__(self, declared: Field[Any, Any], descriptor: Any, element: Element) -> None:
        super().__init__(declared, descriptor, element)
        self._key = scalar_element(descriptor.message_type.fields_by_name["key"])
        self.key_type = self._key.exact

    def reader(self, name: str, element: Element) -> Callable[[Any], Any]:
        return _keeping(name, lambda items, frozen: Map(items, self, frozen))

    def has(self, pb: Any) -> bool:
        return len(getattr(pb, self.name)) > 0

    def check_key(self, key: object) -> Any:
        """The key, if it is one for this map."""
        try:
            return self._key.prepare(key, self)
        except TypeError:
            raise wrong_type(self, NO_KEY, f"keys that are {self._key.expected}", key) from None

    def prepare_entries(self, value: Any) -> list[tuple[Any, Any]]:
        """Keys and prepared values of a mapping."""
        if not isinstance(value, Mapping):
            raise wrong_type(self, NO_KEY, f"a dict whose values are {self.element.expected}", value)
        return [
            (self.check_key(key), self.element.prepare(item, self, key))
            for key, item in (value._items if isinstance(value, DictMethods) else value).items()
        ]

    def assign(self, pb: Any, value: Any) -> None:
        items = getattr(pb, self.name)
        if getattr(value, "pb", value) is items:
            return
        entries = self.prepare_entries(value)
        items.clear()
        self._put_all(items, entries)

    def _put_all(self, items: Any, entries: Iterable[tuple[Any, Any]]) -> None:
        for key, prepared in entries:
            put(items, key, self.element, prepared)

    def fill(self, pb: Any, value: Any) -> None:
        self._put_all(getattr(pb, self.name), self.prepare_entries(value))

    def plain(self, pb: Any) -> dict[Any, Any]:
        items = getattr(pb, self.name)
        return {key: self.element.plain(items[key]) for key in items}

    def show(self, pb: Any, depth: int) -> str:
        return show_dict(getattr(pb, self.name), self.element, depth)


class AbsentField(Field[Any, Any]):
    """A declared field that the installed `tensorflow-serving-api` does not have."""

    def __init__(self, declared: Field[Any, Any]) -> None:
        super().__init__(declared.doc)
        property.__init__(self, self._refuse, self._refuse, self._refuse, declared.doc)
        self.name, self.owner = declared.name, declared.owner

    def _refuse(self, view: View, value: object = None) -> None:
        raise AttributeError(f"the installed tensorflow-serving-api has no {self.label}; a newer one may")


# FieldDescriptor.TYPE_* -> numpy dtype of a repeated field as an array
_NUMPY_NAMES = {
    1: "float64", 2: "float32", 3: "int64", 4: "uint64", 5: "int32", 6: "uint64", 7: "uint32", 8: "bool",
    13: "uint32", 14: "int32", 15: "int32", 16: "int64", 17: "int32", 18: "int64",
}  # fmt: skip


def bind(
    declared: Field[Any, Any], descriptor: Any, element_of_message: Callable[[Any, bool], Element]
) -> _Bound:
    """The field that a FieldDescriptor asks for.

    Args:
        declared: the field as its view declares it.
        descriptor: what protobuf knows of it.
        element_of_message: gives the element of a message type; its second argument says whether the
            message stands alone, in a singular field, where it may read as the value it holds.
    """
    message_type, repeated = descriptor.message_type, _is_repeated(descriptor)
    if message_type is None:
        element = scalar_element(descriptor)
        if repeated:
            return _RepeatedField(declared, descriptor, element)
        if descriptor.has_presence:
            return _OptionalField(declared, descriptor, element)
        kind = _EnumField if isinstance(element, EnumElement) else _ScalarField
        return kind(declared, descriptor, element)
    if repeated and message_type.GetOptions().map_entry:
        value = message_type.fields_by_name["value"]
        is_scalar = value.message_type is None
        element = scalar_element(value) if is_scalar else element_of_message(value.message_type, False)
        return _MapField(declared, descriptor, element)
    element = element_of_message(message_type, not repeated)
    if repeated:
        return _RepeatedField(declared, descriptor, element)
    kinds: Mapping[type[Element], type[_Bound]] = {
        ViewElement: _MessageField,
        ContentElement: _ContentField,
        FlagElement: _FlagField,
        TensorElement: _ValueField,
    }
    return kinds[type(element)](declared, descriptor, element)


def _is_repeated(descriptor: Any) -> bool:
    try:
        return bool(descriptor.is_repeated)
    except AttributeError:  # a protobuf older than the attribute
        return bool(descriptor.label == descriptor.LABEL_REPEATED)


def write_setattr(fields: Iterable[_Bound], otherwise: Callable[[Any, str, object], None]) -> Any:
    """Write the ``__setattr__`` of a view class: the shortest way for a scalar, `otherwise` for the rest.

    Between a value that is in order and the message stand the type of the value and one comparison.
    (Written out as source, as `dataclasses` does it: to look up what a field needs would take as long
    as the assignment.) Nothing may reach the message that protobuf refuses: the attempt would mark the
    message as present all the same.
    """
    lines = ["def __setattr__(self, name, value):", "    try:", "        pass"]
    names: dict[str, Any] = {"otherwise": otherwise}
    keyword = "if"
    for number, field in enumerate(fields):
        scalar = field.scalar()
        if scalar is not None:
            element, path = scalar
            names[f"type_{number}"] = element.exact
            lines += [
                f"        {keyword} name == {field.name!r}:",
                f"            if type(value) is type_{number} and {element.sure}:",
                f"                self._target.{path} = value",
                "                return",
            ]
            keyword = "elif"
    lines += ["    except AttributeError:  # read-only", "        pass", "    otherwise(self, name, value)"]
    exec("\n".join(lines), names)  # noqa: S102  # names and expressions of this library and of descriptors
    return names["__setattr__"]
