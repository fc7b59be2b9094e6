"""What commands write: tables, lines and JSON, for people, pipes and programs.

On a terminal tables are drawn by `rich`; elsewhere they are aligned text, one row a line, nothing cut, no
colours, so that `grep` and `awk` find what they look for. With ``--json`` standard output is one JSON
document and nothing else. Notes and progress go to standard error.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Output", "Progress", "dump_json", "jsonable"]


def _wants_color(stream: IO[str], choice: bool | None, environment: Mapping[str, str]) -> bool:
    if choice is not None:
        return choice
    if environment.get("NO_COLOR"):
        return False
    return _is_terminal(stream, environment)


def _is_terminal(stream: IO[str], environment: Mapping[str, str]) -> bool:
    return stream.isatty() and environment.get("TERM") != "dumb"


class Output:
    """Where a command writes to.

    Args:
        as_json: write JSON and no text.
        color: whether to use colours; None: on terminals, unless ``NO_COLOR`` is set.
        environment: environment variables; the process's own if None.
    """

    def __init__(
        self,
        *,
        as_json: bool = False,
        color: bool | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.as_json = as_json
        self._environment = os.environ if environment is None else environment
        self._choice = color

    def __repr__(self) -> str:
        kind = "JSON" if self.as_json else "rich" if self.rich else "plain"
        return f"<Output {kind}>"

    @property
    def color(self) -> bool:
        """Whether standard output takes colours."""
        return _wants_color(sys.stdout, self._choice, self._environment)

    @property
    def rich(self) -> bool:
        """Whether tables are drawn: on a terminal, and where colours were asked for."""
        return _is_terminal(sys.stdout, self._environment) or self._choice is True

    @property
    def progress_on_terminal(self) -> bool:
        """Whether standard error is a terminal, where a line can be written over."""
        return _is_terminal(sys.stderr, self._environment)

    def console(self, *, stderr: bool = False) -> Console:
        """A console of `rich` on standard output or error, with the colours that were asked for."""
        from rich.console import Console

        stream = sys.stderr if stderr else sys.stdout
        color = _wants_color(stream, self._choice, self._environment)
        return Console(
            file=stream,
            force_terminal=True if color or _is_terminal(stream, self._environment) else None,
            no_color=not color,
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=False,
        )

    def line(self, text: str = "", *, style: str = "") -> None:
        """A line of text; nothing with ``--json``.

        Args:
            text: the line.
            style: of `rich`, such as ``"red"``, where there are colours.
        """
        if self.as_json:
            return
        if style and self.rich and self.color:
            from rich.text import Text

            self.console().print(Text(text, style=style), soft_wrap=True)
        else:
            sys.stdout.write(f"{text}\n")

    def note(self, text: str, *, style: str = "") -> None:
        """A line on standard error: beside the answer, also with ``--json``."""
        if style and _wants_color(sys.stderr, self._choice, self._environment):
            from rich.text import Text

            self.console(stderr=True).print(Text(text, style=style), soft_wrap=True)
        else:
            sys.stderr.write(f"{text}\n")

    def json(self, data: Any) -> None:
        """`data` as one JSON document, whatever the options say."""
        sys.stdout.write(dump_json(jsonable(data)) + "\n")

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[object]],
        *,
        title: str = "",
        right: Iterable[str] = (),
        styles: Mapping[str, str] | None = None,
    ) -> None:
        """A table; nothing with ``--json``.

        Args:
            columns: their headings.
            rows: a cell for each column; None is shown as ``-``.
            title: a line above.
            right: headings of the columns that are aligned to the right.
            styles: of `rich`, by the text of a cell: ``{"AVAILABLE": "green"}``.
        """
        if self.as_json:
            return
        cells = [["-" if cell is None else " ".join(str(cell).split()) for cell in row] for row in rows]
        to_right = set(right)
        if self.rich:
            self._draw(columns, cells, title, to_right, styles or {})
            return
        if title:
            sys.stdout.write(f"{title}\n")
        sys.stdout.writelines(f"{line}\n" for line in _aligned(columns, cells, to_right))

    def _draw(
        self,
        columns: Sequence[str],
        cells: Sequence[Sequence[str]],
        title: str,
        right: set[str],
        styles: Mapping[str, str],
    ) -> None:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title or None, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        for column in columns:
            table.add_column(column, justify="right" if column in right else "left", overflow="fold")
        for row in cells:
            table.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in row))
        self.console().print(table)

    @contextmanager
    def progress(self, text: str) -> Iterator[Progress]:
        """A line on standard error that tells what is being waited for."""
        if self.progress_on_terminal:
            from rich.text import Text

            with self.console(stderr=True).status(Text(text)) as status:
                yield Progress(lambda line: status.update(Text(line)))
        else:
            progress = Progress(self.note)
            progress.update(text)
            yield progress


class Progress:
    """A line that changes: written over on a terminal, a new line elsewhere, but only when it differs."""

    def __init__(self, write: Any) -> None:
        self._write = write
        self._last = ""

    def __repr__(self) -> str:
        return f"<Progress {self._last!r}>"

    def update(self, text: str) -> None:
        """Show `text` from now on."""
        if text != self._last:
            self._last = text
            self._write(text)


def _aligned(columns: Sequence[str], cells: Sequence[Sequence[str]], right: set[str]) -> Iterator[str]:
    widths = [max([len(column), *(len(row[index]) for row in cells)]) for index, column in enumerate(columns)]
    for row in ([column.upper() for column in columns], *cells):
        parts = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ]
        yield "  ".join(parts).rstrip()


# -- JSON ---------------------------------------------------------------------------------------------------


def jsonable(value: Any) -> Any:
    """`value` of what JSON knows: arrays as lists, bytes as text, or as ``{"b64": ...}`` if they are none.

    A float32 becomes the shortest number that reads back as the same float32; NaN and infinities stay, and
    are written as Python and TensorFlow Serving write them.
    """
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (bytes, bytearray, memoryview)):
        data = bytes(value)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return {"b64": base64.b64encode(data).decode()}
    if isinstance(value, (str, bool, int, float)) or value is None:
        return value
    if hasattr(value, "dtype"):
        return _array(value)
    if isinstance(value, (list, tuple, set, frozenset, Sequence)):
        return [jsonable(item) for item in value]
    return str(value)


def _array(value: Any) -> Any:
    import numpy as np

    array = np.asarray(value)
    if array.dtype.kind in "biu":
        return array.tolist()
    if array.dtype.kind == "f" and array.dtype.itemsize < 8:
        # numpy writes a narrow float with as many digits as it takes.
        return array.astype("U32").astype(np.float64).tolist()
    if array.dtype.kind == "f":
        return array.tolist()
    if array.dtype.kind == "c":
        return jsonable(np.stack([array.real, array.imag], axis=-1))
    if array.dtype.kind in "OSU":
        return jsonable(array.tolist())
    return jsonable(array.astype(np.float32))  # ml_dtypes' kinds


def dump_json(value: Any, *, width: int = 100) -> str:
    """JSON with an item a line where it does not fit on one; lists of numbers stay on one line."""
    return "".join(_json(value, "", width))


def _json(value: Any, indent: str, width: int) -> Iterator[str]:
    flat = isinstance(value, list) and not any(isinstance(item, (dict, list)) for item in value)
    inner = indent + "  "
    if isinstance(value, dict) and value:
        text = json.dumps(value, ensure_ascii=False) if len(value) <= 8 else ""
        if text and len(indent) + len(text) <= width and indent:
            yield text
            return
        yield "{\n"
        for number, (key, item) in enumerate(value.items()):
            yield f"{inner}{json.dumps(key, ensure_ascii=False)}: "
            yield from _json(item, inner, width)
            yield ",\n" if number + 1 < len(value) else "\n"
        yield indent + "}"
    elif isinstance(value, list) and value and not flat:
        yield "[\n"
        for number, item in enumerate(value):
            yield inner
            yield from _json(item, inner, width)
            yield ",\n" if number + 1 < len(value) else "\n"
        yield indent + "]"
    else:
        yield json.dumps(value, ensure_ascii=False)
