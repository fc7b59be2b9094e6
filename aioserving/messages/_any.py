"""A message of any type inside another message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

from aioserving.errors import DecodeError
from aioserving.messages._values import NO_KEY, Where, is_message, short
from aioserving.messages._view import View, _views, field

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from aioserving.messages._view import Scalar

__all__ = ["AnyMessage"]

V = TypeVar("V", bound=View)


class AnyMessage(View, message="google.protobuf.Any", module="google.protobuf.any_pb2"):
    """``google.protobuf.Any``: a serialized message and the name of its type.

    A view or message of any type stands for the AnyMessage that packs it:
    ``config.custom_model_config = my_message``.
    """

    __slots__ = ()

    type_url: Scalar[str] = field("The type: ``type.googleapis.com/`` and the full name of the message.")
    value: Scalar[bytes] = field("The message, serialized.")

    @property
    def type_name(self) -> str:
        """Full name of the type of the message inside; empty if there is none."""
        return str(self.pb.TypeName())

    def pack(self, message: View | Message) -> None:
        """Put a message of any type here."""
        self._own().Pack(message.pb if isinstance(message, View) else message)

    @overload
    def unpack(self) -> View: ...
    @overload
    def unpack(self, view_class: type[V]) -> V: ...
    def unpack(self, view_class: type[View] | None = None) -> View:
        """A view on the message inside; read-only, as it is a parsed copy: changes have to be packed again.

        Args:
            view_class: the class that the message must have; else the one for its type is found.

        Raises:
            TypeError: the message inside has another type, or there is no view for its type.
            DecodeError: the bytes are not of the type they are said to be.
        """
        found = _views.get(self.type_name) if view_class is None else view_class
        if found is None or found._message_name != self.type_name:
            wanted = "a message with a view" if found is None else f"a {found._message_name}"
            raise TypeError(f"expected {wanted} inside, got {self.type_name or 'nothing'}")
        try:
            return found.wrap(found.from_bytes(self.pb.value), readonly=True)
        except DecodeError as error:
            raise DecodeError(f"{type(self).__qualname__}: {error}") from error

    @classmethod
    def _expected(cls) -> str:
        return "a message of any type, to pack"

    @classmethod
    def _take(cls, pb: Any, value: Any, where: Where, key: object = NO_KEY) -> bool:
        raw = value.pb if isinstance(value, View) else value
        if not is_message(raw):
            return False
        pb.Pack(raw)
        return True

    def _shown(self, depth: int) -> Any:
        for descriptor, value in self.pb.ListFields():
            yield descriptor.name, f"<{len(value)} bytes>" if descriptor.name == "value" else short(value)
