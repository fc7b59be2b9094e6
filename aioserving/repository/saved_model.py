"""Whether a folder holds a SavedModel that can be loaded, as far as that shows without TensorFlow.

`check` reads ``saved_model.pb`` as protobuf and sees that the files which it needs are there: variables if
its graph has any, with all their shards, and its assets. What the graph computes, and whether a server
knows its operations, is left to the server.

Memory stays bounded: a message of more than `_WHOLE` bytes is not parsed in one piece. Then its framing is
walked on disk, down to where parts are small enough; the contents of larger ones (constants, mostly) are
bytes that cannot be wrong in themselves.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, BinaryIO, Final

from aioserving._proto import message_class
from aioserving.repository.names import MODEL_FILES
from aioserving.repository.store import missing_shards

__all__ = ["InvalidModelError", "MissingFileError", "check"]

#: Bytes of a message that is parsed in one piece: in memory it takes several times as much.
_WHOLE: Final = 4 << 20
_VARIABLE: Final = re.compile(r"VarHandleOp|Variable|VariableV2|AutoReloadVariable")


class InvalidModelError(ValueError):
    """What should be a SavedModel is none."""


class MissingFileError(ValueError):
    """A SavedModel needs a file that is not there."""


class _Findings:
    """What of a SavedModel matters here."""

    def __init__(self) -> None:
        self.meta_graphs = 0
        self.has_saver = False
        self.has_variables = False
        self.assets: set[str] = set()

    def meta_graph(self, meta_graph: Any) -> None:
        self.has_saver |= meta_graph.HasField("saver_def")
        self.assets.update(asset.filename for asset in meta_graph.asset_file_def)
        self.nodes(meta_graph.graph_def)

    def nodes(self, graph: Any) -> None:
        for node in graph.node:
            self.node(node)
        for function in graph.library.function:
            self.function(function)

    def function(self, function: Any) -> None:
        for node in function.node_def:
            self.node(node)

    def node(self, node: Any) -> None:
        if not self.has_variables and _VARIABLE.fullmatch(node.op):
            self.has_variables = True


def check(folder: str | os.PathLike[str], paths: Collection[str]) -> None:
    """See that the version in `folder`, whose files are `paths`, can be loaded; blocking.

    Raises:
        InvalidModelError: the SavedModel cannot be read.
        MissingFileError: a file that it needs is not there.
        OSError: the disk fails.
    """
    name = next((name for name in MODEL_FILES if name in paths), None)
    if name is None:
        raise MissingFileError(f"{MODEL_FILES[0]} is missing")
    found = _read(Path(folder, name))
    if not found.meta_graphs:
        raise InvalidModelError(f"{name} has no meta graph in it")
    if found.has_saver and found.has_variables and "variables/variables.index" not in paths:
        raise MissingFileError("variables/variables.index is missing: the graph has variables")
    missing = missing_shards(paths)
    if missing:
        raise MissingFileError(f"{missing} is missing")
    for asset in sorted(found.assets):
        if f"assets/{asset}" not in paths:
            raise MissingFileError(f"assets/{asset}, which {name} names, is missing")


def _read(path: Path) -> _Findings:
    from google.protobuf.message import DecodeError

    found = _Findings()
    size = path.stat().st_size
    try:
        if path.suffix == ".pbtxt":
            _read_text(path, size, found)
        elif size <= _WHOLE:
            saved_model: Any = message_class("tensorflow.SavedModel").FromString(path.read_bytes())
            found.meta_graphs = len(saved_model.meta_graphs)
            for meta_graph in saved_model.meta_graphs:
                found.meta_graph(meta_graph)
        else:
            with open(path, "rb") as file:
                _Walk(file, found).saved_model(size)
    except (DecodeError, _FramingError) as error:
        raise InvalidModelError(f"{path.name} is no SavedModel: {error}") from error
    return found


def _read_text(path: Path, size: int, found: _Findings) -> None:
    from google.protobuf import text_format

    if size > _WHOLE:
        raise InvalidModelError(
            f"{path.name} has {size} bytes: text of more than {_WHOLE} is not taken; write it as binary"
        )
    saved_model = message_class("tensorflow.SavedModel")()
    try:
        text_format.Parse(path.read_bytes(), saved_model)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise InvalidModelError(f"{path.name} is no SavedModel: {error}") from error
    found.meta_graphs = len(saved_model.meta_graphs)  # type: ignore[attr-defined]
    for meta_graph in saved_model.meta_graphs:  # type: ignore[attr-defined]
        found.meta_graph(meta_graph)


class _FramingError(Exception):
    """Bytes are not framed as a message."""


class _Walk:
    """Walks a SavedModel on disk, parsing those of its parts that are small."""

    def __init__(self, file: BinaryIO, found: _Findings) -> None:
        self.file = file
        self.found = found
        self.position = 0
        meta_graph: Any = message_class("tensorflow.MetaGraphDef").DESCRIPTOR
        graph = meta_graph.fields_by_name["graph_def"].message_type
        library = graph.fields_by_name["library"].message_type
        self.node_class = _class_of(graph.fields_by_name["node"].message_type)
        self.function_class = _class_of(library.fields_by_name["function"].message_type)
        self.saver_class = _class_of(meta_graph.fields_by_name["saver_def"].message_type)
        self.asset_class = _class_of(meta_graph.fields_by_name["asset_file_def"].message_type)

    def saved_model(self, size: int) -> None:
        def meta_graph(end: int) -> None:
            self.found.meta_graphs += 1
            self.fields(end, {2: self.graph, 3: self.saver, 6: self.asset})

        self.fields(size, {2: meta_graph})

    def graph(self, end: int) -> None:
        def library(end: int) -> None:
            self.fields(end, {1: self.function})

        self.fields(end, {1: self.node, 2: library})

    def node(self, end: int) -> None:
        if end - self.position <= _WHOLE:
            self.found.node(self.parsed(self.node_class, end))
            return

        def operation(end: int) -> None:
            if end - self.position <= 1000 and _VARIABLE.fullmatch(self.take(end).decode("utf-8", "replace")):
                self.found.has_variables = True

        self.fields(end, {2: operation})

    def function(self, end: int) -> None:
        if end - self.position <= _WHOLE:
            self.found.function(self.parsed(self.function_class, end))
        else:
            self.fields(end, {3: self.node})

    def saver(self, end: int) -> None:
        self.parsed(self.saver_class, end)
        self.found.has_saver = True

    def asset(self, end: int) -> None:
        self.found.assets.add(self.parsed(self.asset_class, end).filename)

    def parsed(self, kind: Any, end: int) -> Any:
        if end - self.position > _WHOLE:
            raise _FramingError(f"a part of {end - self.position} bytes where few belong")
        return kind.FromString(self.take(end))

    def take(self, end: int) -> bytes:
        data = self.file.read(end - self.position)
        if len(data) < end - self.position:
            raise _FramingError("it ends too early")
        self.position = end
        return data

    def fields(self, end: int, inside: dict[int, Callable[[int], None]]) -> None:
        """Walk the fields up to `end`; those whose number is in `inside` are read by what that gives."""
        while self.position < end:
            tag = self.varint(end)
            number, wire_type = tag >> 3, tag & 7
            if number == 0:
                raise _FramingError("a field has the number 0")
            if wire_type == 0:
                self.varint(end)
            elif wire_type in (1, 5):
                self.skip(8 if wire_type == 1 else 4, end)
            elif wire_type == 2:
                length = self.varint(end)
                stop = self.position + length
                if stop > end:
                    raise _FramingError(f"a field claims {length} bytes where {end - self.position} are left")
                if number in inside:
                    inside[number](stop)
                if self.position < stop:
                    self.skip(stop - self.position, stop)
            else:
                raise _FramingError(f"a field has wire type {wire_type}")

    def varint(self, end: int) -> int:
        value = shift = 0
        while self.position < end and shift < 70:
            data = self.file.read(1)
            if not data:
                raise _FramingError("it ends too early")
            self.position += 1
            value |= (data[0] & 0x7F) << shift
            if data[0] < 0x80:
                return value
            shift += 7
        raise _FramingError("a number has no end")

    def skip(self, count: int, end: int) -> None:
        if self.position + count > end:
            raise _FramingError("it ends too early")
        self.position += count
        self.file.seek(self.position)


def _class_of(descriptor: Any) -> Any:
    from google.protobuf import message_factory

    return message_factory.GetMessageClass(descriptor)
