"""Messages as protobuf's text format and JSON: to and from strings and files."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, Any, TypeVar

from aioserving.errors import DecodeError

if TYPE_CHECKING:
    from aioserving.messages._view import View

    V = TypeVar("V", bound=View)

__all__ = ["from_json", "from_text", "is_file_name", "to_json", "to_text"]


def to_text(view: View, path: str | os.PathLike[str] | None) -> str:
    """The text format of a view's message, also written to `path` if there is one."""
    from google.protobuf import text_format

    text: str = text_format.MessageToString(view.pb, as_utf8=True)
    if path is not None:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    return text


def from_text(view_class: type[V], source: str | os.PathLike[str]) -> V:
    """A view on the message that the text, or the file `source`, holds."""
    from google.protobuf import text_format

    name = "text"
    if isinstance(source, os.PathLike) or is_file_name(source):
        name, text = os.fspath(source), _read(source)
    else:
        text = source
    _load_packed_types(text)
    message = _new(view_class)
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        line, column = error.GetLine(), error.GetColumn()
        reason = re.sub(r"^\d+:\d+ ?: ", "", str(error))
        where = f", line {line}, column {column}" if line is not None else ""
        raise DecodeError(f"{name}{where}: {reason}{_advice(reason)}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:  # what the parser lets through
        raise DecodeError(f"{name}: not a {view_class._message_name}: {error}") from error
    return view_class._of(message, False)


def to_json(view: View, indent: int | None) -> str:
    """The JSON notation of a view's message."""
    from google.protobuf import json_format

    def write() -> str:
        return json_format.MessageToJson(view.pb, preserving_proto_field_name=True, indent=indent)

    try:
        return write()
    except TypeError:  # a message packed in an Any, of a type that was not loaded yet
        view_class = type(view)
        view_class._bind_all()
    try:
        return write()
    except TypeError as error:
        raise ValueError(f"{view_class.__qualname__} has no JSON form: {error}") from error


def from_json(view_class: type[V], source: str | bytes | os.PathLike[str]) -> V:
    """A view on the message that the JSON text, or the file `source`, holds."""
    from google.protobuf import json_format

    name = "JSON"
    if isinstance(source, os.PathLike):
        name, text = os.fspath(source), _read(source)
    else:
        text = source if isinstance(source, str) else _decode(source, name)
    _load_packed_types(text)
    message = _new(view_class)
    try:
        json_format.Parse(text, message)
    except (json_format.Error, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DecodeError(f"{name}: not a {view_class._message_name}: {error}") from error
    return view_class._of(message, False)


def _new(view_class: type[View]) -> Any:
    return (view_class._message_class or view_class._bind())()


def is_file_name(source: str) -> bool:
    """Whether a string has nothing that the text of a message must have; nor is it empty or a comment."""
    text = source.strip()
    return bool(text) and not text.startswith("#") and not any(sign in text for sign in ":{<\n")


def _read(path: str | os.PathLike[str]) -> str:
    with open(path, "rb") as file:
        return _decode(file.read(), os.fspath(path))


def _decode(data: bytes, name: str) -> str:
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"expected text or the path of a file, got {type(data).__name__}")
    try:
        return bytes(data).decode()
    except UnicodeDecodeError as error:
        before = bytes(data[: error.start])
        line, column = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        raise DecodeError(f"{name}, line {line}, column {column}: not UTF-8: {error.reason}") from error


def _load_packed_types(text: str) -> None:
    """Make the types named in `text`, of messages packed in an Any, known to protobuf."""
    from aioserving.messages import _view

    for full_name in set(re.findall(r"[\w.-]+/((?:\w+\.)+\w+)", text)):
        found = _view._views.get(full_name)
        if found is not None and found._message_class is None:
            with contextlib.suppress(ImportError):  # newer than what is installed
                found._bind()


def _advice(reason: str) -> str:
    """The near name, when the parser complains of a field that does not exist."""
    found = re.search(r'Message type "([\w.]+)" has no field named "(\w+)"', reason)
    if found is None:
        return ""
    from aioserving.messages import _view

    view_class = _view._views.get(found[1])
    if view_class is None or view_class._message_class is None:
        return ""
    return f" ({view_class._unknown(found[2]).partition('; ')[2]})"
