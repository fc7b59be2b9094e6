"""The mechanism of message views: `View`, its `Field`s, and how both are read from a DESCRIPTOR.

A view class names a protobuf message and declares its fields with their Python types:

    class ModelSpec(View, message="tensorflow.serving.ModelSpec"):
        name: Scalar[str] = field("Name of the model.")
        version: Maybe[int] = field("Its version; None for the latest one.")

That is all a message needs. What a field does (scalar, enum, wrapper, message, tensor, list, map) is
read from the message's DESCRIPTOR when the first view of the class is made, and only then are the
generated protobuf modules loaded. Fields that the installed `tensorflow-serving-api` has beyond the
declared ones are added on that occasion, without types.

The annotations are for editors and type checkers alone, which take constructors from them too.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
import types
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, overload

from aioserving import _proto
from aioserving.errors import DecodeError
from aioserving.messages import _formats, _show
from aioserving.messages._containers import (
    DictMethods,
    G,
    K,
    ListMethods,
    Map,
    Repeated,
    T,
    put,
    show_dict,
    show_list,
)
from aioserving.messages._values import (
    NO_KEY,
    ContentElement,
    Element,
    EnumElement,
    FlagElement,
    TensorElement,
    ViewElement,
    Where,
    is_message,
    scalar_element,
    wrong_type,
)

if TYPE_CHECKING:
    import enum
    import inspect
    from os import PathLike
    from typing import TypeAlias

    import numpy.typing as npt
    from google.protobuf.message import Message
    from typing_extensions import Self, dataclass_transform

    #: What stands for a message besides a view of it.
    MessageLike: TypeAlias = Message | Mapping[str, Any]
else:
    MessageLike = Any

    def dataclass_transform(**_: object) -> Callable[[type], type]:
        """Tell type checkers, and nobody else, that annotations make the constructor."""
        return lambda cls: cls


__all__ = ["DictView", "Field", "ListView", "MessageLike", "View", "field"]

Got = TypeVar("Got")
Given = TypeVar("Given")

#: Levels of messages that a repr opens.
DEPTH = 3
#: Characters of a repr.
LENGTH = 1000


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

    def __init__(self, doc: str = "", convert: Callable[[Any], Any] | None = None) -> None:
        super().__init__(doc=doc)
        self.doc, self.convert = doc, convert
        self.name = ""
        self.owner: type[View] = View

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

    def _set(self, view: View, value: Any) -> None:
        view._assign(self.name, value)

    def _delete(self, view: View) -> None:
        view._own().ClearField(self.name)

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

    def assign(self, pb: Any, value: Any) -> None:
        if value is None:
            pb.ClearField(self.name)
        else:
            setattr(pb, self.name, self.element.prepare(value, self))


class _MessageField(_Bound):
    """A message that reads as a view, present or not; what is set through the view makes it present."""

    element: ViewElement

    def reader(self, name: str, element: Element) -> Callable[[Any], Any]:
        assert isinstance(element, ViewElement)
        of = element.view_class._of

        def get(view: View) -> View:
            return of(getattr(view.pb, name), view._frozen)

        return get

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
    """A message that reads as a Python value, or None when absent: a wrapper, a tensor."""

    def reader(self, name: str, element: Element) -> Callable[[Any], Any]:
        read = element.read

        def get(view: View) -> Any:
            pb = view.pb
            return read(getattr(pb, name), True) if pb.HasField(name) else None

        if isinstance(element, ContentElement) and not isinstance(element.scalar, EnumElement):
            inner = element.name

            def get(view: View) -> Any:
                pb = view.pb
                return getattr(getattr(pb, name), inner) if pb.HasField(name) else None

        return get

    def assign(self, pb: Any, value: Any) -> None:
        prepared = None if value is None else self.element.prepare(value, self)
        if prepared is None:
            pb.ClearField(self.name)
        else:
            inner = getattr(pb, self.name)
            self.element.store(inner, prepared)  # type: ignore[attr-defined]  # a Composite
            inner.SetInParent()


class _FlagField(_ValueField):
    """A message without fields: True when present."""

    def reader(self, name: str, element: Element) -> Callable[[Any], Any]:
        def get(view: View) -> bool:
            return bool(view.pb.HasField(name))

        return get


class _RepeatedField(_Bound):
    """A repeated field, which reads as a list."""

    def reader(self, name: str, element: Element) -> Callable[[Any], Any]:
        def get(view: View) -> Repeated[Any, Any]:
            return Repeated(getattr(view.pb, name), self, view._frozen)

        return get

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

    def __init__(self, declared: Field[Any, Any], descriptor: Any, element: Element) -> None:
        super().__init__(declared, descriptor, element)
        self._key = scalar_element(descriptor.message_type.fields_by_name["key"])
        self.key_type = self._key.exact

    def reader(self, name: str, element: Element) -> Callable[[Any], Any]:
        def get(view: View) -> Map[Any, Any, Any]:
            return Map(getattr(view.pb, name), self, view._frozen)

        return get

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


class _AbsentField(Field[Any, Any]):
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

_WRAPPERS = frozenset(
    f"google.protobuf.{kind}Value"
    for kind in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)

_views: dict[str, type[View]] = {}
_lock = threading.RLock()


def _positional(*, default: Any, kw_only: bool) -> Any:
    """Mark, for type checkers, the one positional argument of constructors."""


class _SignatureOfView:
    """``__signature__`` of view classes, so that notebooks offer the field names."""

    def __get__(self, view: object, owner: type[View]) -> inspect.Signature:
        from inspect import Parameter, Signature

        return Signature(
            [
                Parameter("pb", Parameter.POSITIONAL_OR_KEYWORD, default=None),
                *(Parameter(name, Parameter.KEYWORD_ONLY, default=None) for name in owner._declared()),
            ]
        )


@dataclass_transform(eq_default=False, kw_only_default=True, field_specifiers=(_positional,))
class _Declarations:
    """What type checkers read constructors from."""

    __slots__ = ()


class View(_Declarations):
    """A protobuf message as a Python object: it holds the message and copies nothing.

    Fields are attributes. Messages inside read as views too, to any depth, whether they are set or
    not: reading changes nothing, the first assignment sets them. Repeated fields are lists, maps are
    dicts, wrappers such as Int64Value are values or None, enums are Python enums, tensors are numpy
    arrays (read-only). ``del view.name`` clears a field, and so does None where it may be absent.
    Assigning to a field copies what is assigned into the message, as protobuf does.

    Args:
        pb: a message or view of this type, which is then held itself; or a mapping of fields, from
            which a new message is made. A message or view of this type may stand wherever a value of
            this type is asked for, and so may a mapping of fields.
        fields: the fields of a new message; None stands for "not set".

    Attributes:
        pb: the message itself.

    Raises:
        TypeError: no such field (the nearest name is suggested), or a value of the wrong type.
        ValueError: a value out of range, or two fields that exclude each other (of one oneof).
    """

    __slots__ = ("__weakref__", "_frozen", "pb")

    #: Full name of the message.
    _message_name: ClassVar[str] = ""
    #: The generated module that defines it, where `_proto` does not know it.
    _module: ClassVar[str] = ""
    #: The generated class, once a view was made.
    _message_class: ClassVar[Any] = None
    #: Views of this class refuse changes.
    _readonly: ClassVar[bool] = False
    #: The field that the view behaves as, if it does.
    _content: ClassVar[str] = ""
    #: In a field of another message: reads as the value of `_content`, or as a bool without one.
    _as_value: ClassVar[bool] = False
    _fields: ClassVar[dict[str, Any]] = {}
    #: Type of the values that may go to protobuf unseen, by field.
    _fast: ClassVar[dict[str, type]] = {}

    __signature__: ClassVar[_SignatureOfView] = _SignatureOfView()

    if TYPE_CHECKING:
        pb: Field[Any, Message | View | Mapping[str, Any] | None] = _positional(default=None, kw_only=False)

        @property
        def _frozen(self) -> bool: ...

    def __init_subclass__(
        cls,
        *,
        message: str | None = None,
        module: str = "",
        readonly: bool = False,
        content: str = "",
        as_value: bool = False,
        **options: Any,
    ) -> None:
        super().__init_subclass__(**options)
        if message is not None:
            cls.__module__ = "aioserving.messages"
            cls._message_name, cls._module, cls._readonly = message, module, readonly
            cls._content, cls._as_value = content, as_value
            cls._message_class, cls._fields, cls._fast = None, {}, {}
            _views[message] = cls

    def __init__(self, pb: Any = None, **fields: Any) -> None:
        cls = type(self)
        message_class = cls._message_class or cls._bind()
        raw = pb.pb if isinstance(pb, View) else pb
        frozen = cls._readonly
        if raw is None:
            raw = message_class()
        elif isinstance(raw, message_class):
            if fields:
                raise TypeError(
                    f"{cls.__qualname__}() takes a message or fields, not both; its copy(...) takes changes"
                )
            frozen = frozen or (isinstance(pb, View) and pb._frozen)
        else:
            raw = message_class()
            cls._fill(raw, pb, _Constructor(cls))
        _set_pb(self, raw)
        _set_frozen(self, frozen)
        if fields:
            cls._fill_fields(raw, fields)

    # ------------------------------------------------------------------------------------- binding

    @classmethod
    def _declared(cls) -> dict[str, Field[Any, Any]]:
        """The fields as the class declares them, by name."""
        return {
            name: value
            for base in reversed(cls.__mro__)
            for name, value in vars(base).items()
            if isinstance(value, Field)
        }

    @classmethod
    def _bind(cls) -> Any:
        """Load the message class, and make every field of this and all messages inside what it is to be."""
        with _lock:
            if cls._message_class is None:
                bases: list[Any] = [base for base in cls.__mro__ if vars(base).get("_message_name")]
                owner = bases[0] if bases else None
                if owner is None:
                    raise TypeError(f"{cls.__qualname__} stands for no message; use one of its subclasses")
                pending: dict[type[View], Any] = {}
                owner._bind_fields(owner._load(), pending)
                # Nobody may see a class as bound before all the classes that it leads to are.
                for view_class, message_class in pending.items():
                    view_class._message_class = message_class
        return cls._message_class

    @staticmethod
    def _bind_all() -> None:
        """Load every message that there is a view for, so that protobuf can open what is packed in an Any."""
        for view_class in list(_views.values()):
            if view_class._message_class is None:
                view_class._bind()

    @classmethod
    def _load(cls) -> Any:
        if not cls._module:
            return _proto.message_class(cls._message_name)
        loader = importlib.import_module if cls._module.startswith("google.") else _proto.load_module
        return getattr(loader(cls._module), cls._message_name.rpartition(".")[2])

    @classmethod
    def _bind_fields(cls, message_class: Any, pending: dict[type[View], Any]) -> None:
        pending[cls] = message_class
        declared = cls._declared()
        known = message_class.DESCRIPTOR.fields_by_name
        for name, descriptor in known.items():
            if name not in declared:
                if hasattr(cls, name):
                    continue  # a newer field with the name of a method: within reach through .pb
                declared[name] = Field(f"Field {name} of {cls._message_name}.")
                declared[name].__set_name__(cls, name)
            bound = _bound_field(declared[name], descriptor, pending)
            cls._fields[name] = bound
            setattr(cls, name, bound)
            if isinstance(bound, (_ScalarField, _OptionalField)) and bound.element.exact is not None:
                cls._fast[name] = bound.element.exact
        for name, absent in declared.items():
            if name not in known:
                setattr(cls, name, _AbsentField(absent))

    @classmethod
    def _of(cls, pb: Any, frozen: bool) -> Self:
        """A view on a message of the right class; the class is bound already."""
        view = cls.__new__(cls)
        _set_pb(view, pb)
        _set_frozen(view, frozen or cls._readonly)
        return view

    @classmethod
    def wrap(cls, message: Message | View, *, readonly: bool = False) -> Self:
        """A view that holds `message` itself; ``View.wrap(message)`` finds the class that fits.

        Args:
            message: a message of this type, or a view of one.
            readonly: whether the view, and all that is reached through it, refuses changes.

        Raises:
            TypeError: the message is of another type, or there is no view for it.
        """
        frozen = readonly or (isinstance(message, View) and message._frozen)
        raw: Any = message.pb if isinstance(message, View) else message
        if not is_message(raw):
            raise TypeError(f"expected a protobuf message, got {type(message).__name__}")
        view_class = cls if cls._message_name else _views.get(raw.DESCRIPTOR.full_name)
        if view_class is None or not isinstance(raw, view_class._message_class or view_class._bind()):
            wanted = f"a {cls._message_name}" if cls._message_name else "a message of TensorFlow Serving"
            raise TypeError(f"expected {wanted}, got a {raw.DESCRIPTOR.full_name}")
        return view_class._of(raw, frozen)  # type: ignore[return-value]  # `cls`, or `cls` is View

    # ------------------------------------------------------------------------------------- setting

    if not TYPE_CHECKING:  # a checker that sees it would let any attribute be set

        def __setattr__(self, name: str, value: object) -> None:
            # The common case first, with nothing between the value and protobuf.
            if self._fast.get(name) is type(value) and not self._frozen:
                try:
                    setattr(self.pb, name, value)
                except ValueError:
                    pass  # out of range: `_assign` says it better
                else:
                    return
            self._assign(name, value)

    def _assign(self, name: str, value: object) -> None:
        cls = type(self)
        found = cls._fields.get(name)
        if found is not None:
            self._own(f"{cls.__qualname__}.{name}", AttributeError)
            found.assign(self.pb, value)
        elif isinstance(getattr(cls, name, None), property):
            object.__setattr__(self, name, value)
        elif name == "pb":
            raise AttributeError(
                f"the message of a {cls.__qualname__} is fixed; make another view, or pb.CopyFrom()"
            )
        else:
            raise AttributeError(cls._unknown(name))

    def _own(self, what: str = "", error: type[Exception] = TypeError) -> Any:
        """The message, if it may be changed through this view."""
        if self._frozen:
            raise error(
                f"{what or type(self).__qualname__} is part of a response, so it is read-only; "
                "take a copy(), or change .pb"
            )
        return self.pb

    @classmethod
    def _unknown(cls, name: object) -> str:
        from difflib import get_close_matches

        near = get_close_matches(str(name), cls._fields, n=1)
        advice = (
            f"did you mean {near[0]!r}?" if near else f"its fields are {', '.join(cls._fields) or '(none)'}"
        )
        return f"{cls.__qualname__} has no field {name!r}; {advice}"

    @classmethod
    def _expected(cls) -> str:
        """What errors say was expected where a value of this class was."""
        return f"a {cls.__qualname__} (or a dict of its fields)"

    @classmethod
    def _fill(cls, pb: Any, value: Any, where: Where, key: object = NO_KEY) -> None:
        """Put `value`, whatever stands for a message of this class, into the empty message `pb`."""
        raw = value.pb if isinstance(value, View) else value
        if isinstance(raw, cls._message_class):
            pb.CopyFrom(raw)
        elif not cls._take(pb, value, where, key):
            if not isinstance(value, Mapping):
                if is_message(raw):
                    raise TypeError(
                        f"{wrong_type(where, key, cls._expected(), value)}".partition(", got ")[0]
                        + f", got a {raw.DESCRIPTOR.full_name}"
                    )
                raise wrong_type(where, key, cls._expected(), value)
            cls._fill_fields(pb, value)

    @classmethod
    def _take(cls, pb: Any, value: Any, where: Where, key: object) -> bool:
        """Put a `value` of this class's own shorthand into `pb`, if it is one; for subclasses."""
        return False

    @classmethod
    def _fill_fields(cls, pb: Any, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            found = cls._fields.get(name)
            if found is None:
                raise TypeError(cls._unknown(name))
            if value is None:
                continue
            before = pb.WhichOneof(found.oneof) if found.oneof else None
            found.fill(pb, value)
            if before is not None and pb.WhichOneof(found.oneof) != before:
                raise ValueError(
                    f"{cls.__qualname__}: {before} and {name} exclude each other "
                    f"(oneof {found.oneof}); give one of them"
                )

    @classmethod
    def _field_named(cls, name: str) -> Any:
        found = cls._fields.get(name)
        if found is None:
            raise AttributeError(cls._unknown(name))
        return found

    # --------------------------------------------------------------------------- presence and change

    def has(self, name: str) -> bool:
        """Whether a field is set: present, or not empty, or not zero, whichever its kind can tell.

        Raises:
            AttributeError: there is no such field.
        """
        return bool(self._field_named(name).has(self.pb))

    def which(self, oneof: str) -> str | None:
        """The name of the field that is set of those that exclude each other, or None.

        Raises:
            AttributeError: the message has no oneof of that name.
        """
        try:
            found: str | None = self.pb.WhichOneof(oneof)
        except ValueError:
            names = ", ".join(self.pb.DESCRIPTOR.oneofs_by_name) or "(none)"
            raise AttributeError(
                f"{type(self).__qualname__} has no oneof {oneof!r}; its oneofs are {names}"
            ) from None
        return found

    def clear(self, *names: str) -> None:
        """Clear the named fields, or all of them."""
        pb = self._own()
        for name in names:
            self._field_named(name)
        for name in names:
            pb.ClearField(name)
        if not names:
            pb.Clear()

    def copy(self, **changes: Any) -> Self:
        """A view on a copy of the message, which may be changed, with `changes` made to it."""
        cls = type(self)
        fresh = cls._message_class()
        fresh.CopyFrom(self.pb)
        for name, value in changes.items():
            found = cls._fields.get(name)
            if found is None:
                raise TypeError(cls._unknown(name))
            found.assign(fresh, value)
        return cls._of(fresh, False)

    def merge(self, other: Message | View | Mapping[str, Any]) -> None:
        """Merge another message into this one: scalars are replaced, lists extended, messages merged."""
        pb = self._own()
        pb.MergeFrom(ViewElement(type(self)).prepare(other, _Constructor(type(self), "merge")))

    # ------------------------------------------------------------------------------- other notations

    def to_bytes(self, *, deterministic: bool = False) -> bytes:
        """The serialized message; `deterministic` puts map entries in a fixed order."""
        data: bytes = self.pb.SerializeToString(deterministic=deterministic)
        return data

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Self:
        """A view on a message parsed from its serialized form.

        Raises:
            DecodeError: the bytes are not such a message.
            TypeError: they are no bytes.
        """
        from google.protobuf.message import DecodeError as ProtobufDecodeError

        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"{cls.__qualname__}.from_bytes: expected bytes, got {type(data).__name__}")
        message_class = cls._message_class or cls._bind()
        try:
            return cls._of(message_class.FromString(bytes(data)), False)
        except (ProtobufDecodeError, UnicodeDecodeError) as error:
            raise DecodeError(f"not a {cls._message_name}: {error}") from error

    def to_text(self, path: str | PathLike[str] | None = None) -> str:
        """The message in protobuf's text format, written to the file `path` too if one is given."""
        return _formats.to_text(self, path)

    @classmethod
    def from_text(cls, source: str | PathLike[str]) -> Self:
        """A view on a message read from protobuf's text format.

        Args:
            source: the text, or the file it is in: a `pathlib.Path`, or a name. (A string that
                cannot be the text of a message, having none of ``: { <``, is taken as a name.)

        Raises:
            DecodeError: the text is not such a message; says the line, the column and what is wrong.
            OSError: the file cannot be read.
        """
        return _formats.from_text(cls, source)

    def to_json(self, *, indent: int | None = 2) -> str:
        """The message in protobuf's JSON notation, with the field names of the .proto files."""
        return _formats.to_json(self, indent)

    @classmethod
    def from_json(cls, source: str | bytes | PathLike[str]) -> Self:
        """A view on a message read from protobuf's JSON notation: text, or the `pathlib.Path` of a file.

        Raises:
            DecodeError: the text is no JSON, or not such a message.
            OSError: the file cannot be read.
        """
        return _formats.from_json(cls, source)

    def to_dict(self) -> dict[str, Any]:
        """The fields that are set, as plain Python: dicts, lists, numbers, strings, enums, arrays.

        What reads as a list or a value is one here; the constructor takes the dict back.
        """
        cls = type(self)
        return {
            descriptor.name: cls._fields[descriptor.name].plain(self.pb)
            for descriptor, _ in self.pb.ListFields()
            if descriptor.name in cls._fields
        }

    def _plain(self) -> Any:
        return self.to_dict()

    # -------------------------------------------------------------------------------- Python's hooks

    def byte_size(self) -> int:
        """The size of the serialized message."""
        return int(self.pb.ByteSize())

    def is_initialized(self) -> bool:
        """Whether all required fields are set; messages of proto3 have none, so it is True."""
        return bool(self.pb.IsInitialized())

    def __eq__(self, other: object) -> bool:
        raw = other.pb if isinstance(other, View) else other
        if isinstance(raw, self._message_class):
            return bool(self.pb == raw)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        text = self._show(DEPTH)
        return text if len(text) <= LENGTH else text[: LENGTH - 3] + "..."

    def _show(self, depth: int) -> str:
        name = type(self).__qualname__
        if depth <= 0:
            return f"{name}(...)"
        return f"{name}({', '.join(f'{key}={text}' for key, text in self._shown(depth - 1))})"

    def _shown(self, depth: int) -> Iterable[tuple[str, str]]:
        """Names and short values of the fields that are set."""
        fields = type(self)._fields
        for descriptor, _ in self.pb.ListFields():
            if descriptor.name in fields:
                yield descriptor.name, fields[descriptor.name].show(self.pb, depth)

    def _repr_html_(self) -> str:
        return _show.to_html(self, DEPTH)

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if not name.startswith("_")]

    def __copy__(self) -> Self:
        return self.copy()

    def __deepcopy__(self, memo: object) -> Self:
        return self.copy()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_bytes, (self.to_bytes(),)


_set_pb: Callable[[View, Any], None] = View.__dict__["pb"].__set__
_set_frozen: Callable[[View, bool], None] = View.__dict__["_frozen"].__set__


class _Constructor:
    """Where a value was given, if not to a field."""

    def __init__(self, view_class: type[View], method: str = "") -> None:
        self.label = f"{view_class.__qualname__}{'.' * bool(method)}{method}()"


def _view_of(descriptor: Any) -> type[View]:
    """The view class of a message type, made on the spot for one that no class is declared for."""
    found = _views.get(descriptor.full_name)
    if found is None:
        found = types.new_class(
            descriptor.name,
            (View,),
            {"message": descriptor.full_name},
            lambda namespace: namespace.update(__slots__=(), __doc__=f"The message {descriptor.full_name}."),
        )
    return found


def _bound_field(declared: Field[Any, Any], descriptor: Any, pending: dict[type[View], Any]) -> _Bound:
    """The field that a DESCRIPTOR asks for."""
    message_type = descriptor.message_type
    repeated = _is_repeated(descriptor)
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
        element = (
            scalar_element(value)
            if value.message_type is None
            else _message_element(value.message_type, pending, alone=False)
        )
        return _MapField(declared, descriptor, element)
    element = _message_element(message_type, pending, alone=not repeated)
    if repeated:
        return _RepeatedField(declared, descriptor, element)
    if isinstance(element, FlagElement):
        return _FlagField(declared, descriptor, element)
    return (_MessageField if isinstance(element, ViewElement) else _ValueField)(declared, descriptor, element)


def _is_repeated(descriptor: Any) -> bool:
    try:
        return bool(descriptor.is_repeated)
    except AttributeError:  # before protobuf 6.31, which deprecates what came before
        return bool(descriptor.label == descriptor.LABEL_REPEATED)


def _message_element(descriptor: Any, pending: dict[type[View], Any], *, alone: bool) -> Element:
    """The element of a message type; `alone` in a singular field, where it may read as a mere value."""
    from google.protobuf.message_factory import GetMessageClass

    message_class = GetMessageClass(descriptor)
    name = descriptor.full_name
    if name == "tensorflow.TensorProto":
        return TensorElement(message_class)
    if alone and name in _WRAPPERS:
        return ContentElement(message_class, "value", scalar_element(descriptor.fields_by_name["value"]))
    view_class = _view_of(descriptor)
    if view_class._message_class is None and view_class not in pending:
        view_class._bind_fields(message_class, pending)
    if alone and view_class._as_value:
        content = view_class._content
        if not content:
            return FlagElement(message_class)
        return ContentElement(message_class, content, scalar_element(descriptor.fields_by_name[content]))
    return ViewElement(view_class)


# -------------------------------------------------------------------------- views that are containers


class ListView(View, ListMethods[T, G]):
    """A message that behaves as the list it holds; its field is an attribute as well.

    A list of items stands for the message wherever one is asked for.
    """

    __slots__ = ()

    if TYPE_CHECKING:
        pb: Field[Any, Message | View | Mapping[str, Any] | Iterable[Any] | None] = _positional(
            default=None, kw_only=False
        )

    @property
    def _items(self) -> Any:
        return getattr(self.pb, self._content)

    @property
    def _field(self) -> Any:
        return self._fields[self._content]

    @classmethod
    def _expected(cls) -> str:
        return f"a {cls.__qualname__} (or a list, or a dict of its fields)"

    @classmethod
    def _take(cls, pb: Any, value: Any, where: Where, key: object) -> bool:
        if isinstance(value, (str, bytes, bytearray, Mapping)) or not hasattr(value, "__iter__"):
            return False
        cls._fields[cls._content].fill(pb, value)
        return True

    def __eq__(self, other: object) -> bool:
        same = View.__eq__(self, other)
        return ListMethods.__eq__(self, other) if same is NotImplemented else same

    __hash__ = None

    def _plain(self) -> Any:
        shown = self.to_dict()
        # A second field beside the list would be lost in a list.
        return shown.get(self._content, []) if shown.keys() <= {self._content} else shown

    def _show(self, depth: int) -> str:
        if depth <= 0 or any(descriptor.name != self._content for descriptor, _ in self.pb.ListFields()):
            return super()._show(depth)
        return f"{type(self).__qualname__}({self._fields[self._content].show(self.pb, depth - 1)})"


class DictView(View, DictMethods[K, T, G]):
    """A message that behaves as the dict it holds; its field is an attribute as well.

    A mapping stands for the message wherever one is asked for: of the dict's own content, or
    ``{name of the field: content}`` as protobuf would write it.
    """

    __slots__ = ()

    @property
    def _items(self) -> Any:
        return getattr(self.pb, self._content)

    @property
    def _field(self) -> Any:
        return self._fields[self._content]

    @classmethod
    def _expected(cls) -> str:
        return f"a {cls.__qualname__} (or a dict)"

    @classmethod
    def _take(cls, pb: Any, value: Any, where: Where, key: object) -> bool:
        if not isinstance(value, Mapping):
            return False
        found = cls._fields[cls._content]
        if list(value) == [cls._content] and isinstance(value[cls._content], Mapping):
            # Content first: {"feature": {"int64_list": [1]}} is one feature called "feature".
            inner = value[cls._content]
            if not set(inner) <= set(found.element.view_class._fields):
                value = inner
        found.fill(pb, value)
        return True

    def __eq__(self, other: object) -> bool:
        same = View.__eq__(self, other)
        return DictMethods.__eq__(self, other) if same is NotImplemented else same

    __hash__ = None

    def to_dict(self) -> dict[str, Any]:
        """The content, as plain Python."""
        content: dict[str, Any] = self._fields[self._content].plain(self.pb)
        return content

    def _show(self, depth: int) -> str:
        if depth <= 0:
            return super()._show(depth)
        return f"{type(self).__qualname__}({self._fields[self._content].show(self.pb, depth - 1)})"


# ------------------------------------------------------- annotations of fields, for type checkers only

if TYPE_CHECKING:
    V = TypeVar("V", bound=View)
    E = TypeVar("E", bound=enum.IntEnum)

    #: What can be sent as a tensor.
    TensorLike: TypeAlias = npt.ArrayLike | Message

    Scalar: TypeAlias = Field[T, T]
    Maybe: TypeAlias = Field[T | None, T | None]
    EnumOf: TypeAlias = Field[E, E | int | str]
    MaybeEnumOf: TypeAlias = Field[E | None, E | int | str | None]
    Flag: TypeAlias = Field[bool, bool | MessageLike | None]
    Wrapped: TypeAlias = Field[T | None, T | MessageLike | None]
    Tensor: TypeAlias = Field[npt.NDArray[Any] | None, TensorLike | None]
    Sub: TypeAlias = Field[V, V | MessageLike | None]
    SubOr: TypeAlias = Field[V, V | MessageLike | G | None]
    Items: TypeAlias = Field[Repeated[T, T], Iterable[T]]
    Many: TypeAlias = Field[Repeated[V, MessageLike], Iterable[V | MessageLike]]
    MapOf: TypeAlias = Field[Map[str, T, T], Mapping[str, T]]
    MapTo: TypeAlias = Field[Map[str, V, MessageLike], Mapping[str, V | MessageLike]]
    MapToOr: TypeAlias = Field[Map[str, V, MessageLike | G], Mapping[str, V | MessageLike | G]]
    Tensors: TypeAlias = Field[Map[str, npt.NDArray[Any], TensorLike], Mapping[str, TensorLike]]
