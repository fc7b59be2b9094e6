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
from typing import TYPE_CHECKING, Any, ClassVar

from aioserving import _proto
from aioserving.errors import DecodeError
from aioserving.messages import _formats
from aioserving.messages._containers import DictMethods, G, K, ListMethods, T
from aioserving.messages._fields import READ_ONLY, AbsentField, Field, bind, field, write_setattr
from aioserving.messages._values import (
    NO_KEY,
    ContentElement,
    Element,
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
    from typing import TypeAlias, TypeVar

    import numpy.typing as npt
    from google.protobuf.message import Message
    from typing_extensions import Self, dataclass_transform

    from aioserving.messages._containers import Map, Repeated

    #: What stands for a message besides a view of it.
    MessageLike: TypeAlias = Message | Mapping[str, Any]
else:
    MessageLike = Any

    def dataclass_transform(**_: object) -> Callable[[type], type]:
        """Tell type checkers, and nobody else, that annotations make the constructor."""
        return lambda cls: cls


__all__ = ["DictView", "Field", "ListView", "MessageLike", "View", "field", "positional"]

#: Levels of messages that a repr opens.
DEPTH = 3
#: Characters of a repr.
LENGTH = 1000


_WRAPPERS = frozenset(
    f"google.protobuf.{kind}Value"
    for kind in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)

_views: dict[str, type[View]] = {}
_lock = threading.RLock()


def positional(*, default: Any = None, kw_only: bool = False) -> Any:
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


@dataclass_transform(eq_default=False, kw_only_default=True, field_specifiers=(positional,))
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
        ImportError: the installed `tensorflow-serving-api` does not have the message, or is missing.
    """

    __slots__ = ("__weakref__", "_inner", "_target", "pb")

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
    #: Whether there are fields that read as views, lists or maps.
    _is_compound: ClassVar[bool] = False
    _fields: ClassVar[dict[str, Any]] = {}

    __signature__: ClassVar[_SignatureOfView] = _SignatureOfView()

    if TYPE_CHECKING:
        pb: Field[Any, View | MessageLike | None] = positional(default=None, kw_only=False)

        @property
        def _target(self) -> Any:
            """The message where it may be changed, `READ_ONLY` where not."""

        @property
        def _inner(self) -> dict[str, Any]:
            """What messages, lists and maps read as, by field; only where the class has such fields."""

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
            if cls.__module__.startswith("aioserving.messages."):
                cls.__module__ = "aioserving.messages"
            cls._message_name, cls._module, cls._readonly = message, module, readonly
            cls._content, cls._as_value = content, as_value
            cls._message_class, cls._fields = None, {}
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
        _set_target(self, READ_ONLY if frozen else raw)
        if cls._is_compound:
            _set_inner(self, {})
        if fields:
            cls._fill_fields(raw, fields)

    @property
    def _frozen(self) -> bool:
        """Whether the view refuses changes."""
        return self._target is READ_ONLY

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
                with contextlib.suppress(ImportError):  # newer than what is installed
                    view_class._bind()

    @classmethod
    def _load(cls) -> Any:
        try:
            if not cls._module:
                return _proto.message_class(cls._message_name)
            loader = importlib.import_module if cls._module.startswith("google.") else _proto.load_module
            return getattr(loader(cls._module), cls._message_name.rpartition(".")[2])
        except AttributeError:
            raise ImportError(
                f"the installed tensorflow-serving-api has no {cls._message_name}; a newer one may"
            ) from None

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
            bound = bind(
                declared[name], descriptor, lambda inner, alone: _message_element(inner, alone, pending)
            )
            cls._fields[name] = bound
            setattr(cls, name, bound)
        for name, absent in declared.items():
            if name not in known:
                setattr(cls, name, AbsentField(absent))
        cls._is_compound = any(bound.keeps for bound in cls._fields.values())
        cls.__setattr__ = write_setattr(cls._fields.values(), View._assign)  # type: ignore[method-assign]

    @classmethod
    def _of(cls, pb: Any, frozen: bool) -> Self:
        """A view on a message of the right class; the class is bound already."""
        view = _new(cls)
        _set_pb(view, pb)
        _set_target(view, READ_ONLY if frozen or cls._readonly else pb)
        if cls._is_compound:
            _set_inner(view, {})
        return view  # type: ignore[no-any-return]

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
            self._assign(name, value)  # until the class is bound, and has one of its own

    def _assign(self, name: str, value: object) -> None:
        cls = type(self)
        found = cls._fields.get(name)
        if found is not None:
            if self._target is READ_ONLY:
                self._own(found.label, AttributeError)
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
                f"{what or type(self).__qualname__} is read-only, as everything in a response is; "
                "change a copy(), or .pb"
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
            if not isinstance(value, Mapping) or isinstance(value, View):
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
        if not isinstance(raw, self._message_class):
            return NotImplemented
        try:
            return bool(self.pb == raw)
        except KeyError:  # protobuf in Python, about a type packed in an Any that it does not know
            return bool(
                self.pb.SerializeToString(deterministic=True) == raw.SerializeToString(deterministic=True)
            )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        text = self._show(DEPTH)
        return text if len(text) <= LENGTH else text[: LENGTH - 3] + "..."

    def _show(self, depth: int) -> str:
        name = type(self).__qualname__
        if depth <= 0:
            return f"{name}(...)"
        return f"{name}({', '.join(f'{key}={text}' for key, text in self._shown(depth - 1))})"

    def _show_inside(self, depth: int) -> str:
        """The repr as a part of another one."""
        return self._show(depth)

    def _shown(self, depth: int) -> Iterable[tuple[str, str]]:
        """Names and short values of the fields that are set."""
        fields = type(self)._fields
        for descriptor, _ in self.pb.ListFields():
            if descriptor.name in fields:
                yield descriptor.name, fields[descriptor.name].show(self.pb, depth)

    def _repr_html_(self) -> str:
        from aioserving.messages import _show

        return _show.to_html(self, DEPTH)

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if not name.startswith("_")]

    def __copy__(self) -> Self:
        return self.copy()

    def __deepcopy__(self, memo: object) -> Self:
        return self.copy()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_bytes, (self.to_bytes(),)


_new: Callable[[type[Any]], Any] = object.__new__
_set_pb: Callable[[View, Any], None] = View.__dict__["pb"].__set__
_set_target: Callable[[View, Any], None] = View.__dict__["_target"].__set__
_set_inner: Callable[[View, dict[str, Any]], None] = View.__dict__["_inner"].__set__


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


def _message_element(descriptor: Any, alone: bool, pending: dict[type[View], Any]) -> Element:
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
        pb: PbOr[Iterable[Any]] = positional(default=None, kw_only=False)

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
        if isinstance(value, (str, bytes, bytearray, Mapping)) or not isinstance(value, Iterable):
            return False
        cls._fields[cls._content].fill(pb, value)
        return True

    def __eq__(self, other: object) -> bool:
        same = View.__eq__(self, other)
        return ListMethods.__eq__(self, other) if same is NotImplemented else same

    __hash__ = None

    def _plain(self) -> Any:
        # A second field beside the list would be lost in a list.
        return self._field.plain(self.pb) if self._is_plain() else self.to_dict()

    def _show(self, depth: int) -> str:
        return _show_content(self, self._show_inside(depth - 1)) if self._is_plain() else super()._show(depth)

    def _show_inside(self, depth: int) -> str:
        return self._field.show(self.pb, depth) if self._is_plain() else super()._show(depth)

    def _is_plain(self) -> bool:
        """Whether nothing but the list is set."""
        return all(descriptor.name == self._content for descriptor, _ in self.pb.ListFields())


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
        return _show_content(self, self._show_inside(depth - 1))

    def _show_inside(self, depth: int) -> str:
        return str(self._field.show(self.pb, depth))


def _show_content(view: View, content: str) -> str:
    return f"{type(view).__qualname__}({content})"


# ------------------------------------------------------- annotations of fields, for type checkers only

if TYPE_CHECKING:
    V = TypeVar("V", bound=View)
    E = TypeVar("E", bound=enum.IntEnum)

    #: What can be sent as a tensor.
    TensorLike: TypeAlias = npt.ArrayLike | Message

    PbOr: TypeAlias = Field[Any, View | MessageLike | G | None]
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
    ManyOr: TypeAlias = Field[Repeated[V, MessageLike | G], Iterable[V | MessageLike | G]]
    MapOf: TypeAlias = Field[Map[str, T, T], Mapping[str, T]]
    MapTo: TypeAlias = Field[Map[str, V, MessageLike], Mapping[str, V | MessageLike]]
    MapToOr: TypeAlias = Field[Map[str, V, MessageLike | G], Mapping[str, V | MessageLike | G]]
    Tensors: TypeAlias = Field[Map[str, npt.NDArray[Any], TensorLike], Mapping[str, TensorLike]]
