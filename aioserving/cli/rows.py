"""Examples for Classify and Regress, from what is typed or from JSON, JSON lines and CSV files.

    x=1.5 label=cat             one example, feature by feature
    '{"x": 1.5}'                one example; a list of such, several
    @rows.jsonl @rows.csv -     one example a line

A model that parses floats refuses ints, and the other way round: what a value is by itself (1 is an int,
1.0 a float) is overruled by `Kinds`. Making `tf.Example`s of it is `aioserving.tf_examples`'s.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import click

from aioserving.cli.arrays import parse_json, read_source
from aioserving.cli.common import Command, connection_options, model_options, output_options
from aioserving.cli.failures import CommandError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["Kinds", "example_command", "parse_kinds", "read_context", "read_rows"]

Row: TypeAlias = "dict[str, Any]"

#: What a feature's values are made, by its name: ``"float"``, ``"int"`` or ``"text"``.
Kinds: TypeAlias = "Mapping[str, str]"

_NAMED: Final = re.compile(r"([^\s=\[{\"@][^=]*)=(.*)", re.DOTALL)
_CASTS: Final[Mapping[str, Callable[[Any], Any]]] = {"float": float, "int": int, "text": str}


def example_command(name: str, examples: str) -> Callable[[Callable[..., None]], click.Command]:
    """Make a function the command `name`, with the arguments and options that classify and regress share."""

    def decorate(function: Callable[..., None]) -> click.Command:
        for option in reversed(
            (
                click.argument("examples", nargs=-1, metavar="EXAMPLE..."),
                click.option(
                    "--as",
                    "kinds",
                    multiple=True,
                    metavar="NAME=KIND",
                    help="Make a feature float, int or text, whatever it looks like.",
                ),
                click.option(
                    "--column", "columns", multiple=True, metavar="NAME", help="Send this column only."
                ),
                click.option(
                    "--context", metavar="JSON", help="Features that all examples share; also @FILE."
                ),
                click.option("--no-check", is_flag=True, help="Send without asking for the signature."),
                model_options,
                connection_options,
                output_options,
            )
        ):
            function = option(function)
        return click.command(name, cls=Command, examples=examples)(function)

    return decorate


def parse_kinds(texts: Iterable[str]) -> dict[str, str]:
    """Kinds by feature, from ``NAME=float`` and the like.

    Raises:
        CommandError: a text is none.
    """
    kinds = {}
    for text in texts:
        name, _, kind = text.partition("=")
        if not name or kind not in _CASTS:
            raise CommandError(f"--as {text}: write NAME=float, NAME=int or NAME=text", ExitCode.USAGE)
        kinds[name] = kind
    return kinds


def read_rows(
    arguments: Sequence[str], kinds: Kinds | None = None, columns: Collection[str] = ()
) -> list[Row]:
    """The examples that a command line gives, in its order; ``NAME=VALUE`` arguments make one.

    Args:
        arguments: as the module's docstring shows them.
        kinds: see `Kinds`.
        columns: features to keep; all if none is named.

    Raises:
        CommandError: there are none, a file is not what it should be, a value is not of its kind, or a
            column is in none of the examples.
    """
    rows: list[Row] = []
    typed: Row = {}
    for argument in arguments:
        named = _NAMED.fullmatch(argument) if argument[:1] not in ("{", "[", "@", "-") else None
        if named is not None:
            typed[named[1]] = _typed(named[2])
        else:
            rows += _read(argument)
    if typed:
        rows.append(typed)
    if not rows:
        raise CommandError(
            "there are no examples",
            ExitCode.USAGE,
            advice="give NAME=VALUE, JSON, @FILE.csv, @FILE.jsonl or -",
        )
    for name in [*columns, *(kinds or {})]:
        if not any(name in row for row in rows):
            raise CommandError(
                f"no example has {name!r}; there are {', '.join(map(repr, rows[0]))}", ExitCode.INVALID
            )
    if columns:
        rows = [{name: row[name] for name in columns if name in row} for row in rows]
    for name, kind in (kinds or {}).items():
        for number, row in enumerate(rows):
            if name in row:
                row[name] = _cast(row[name], kind, name, number)
    return rows


def read_context(text: str | None) -> Row | None:
    """Features that all examples share, from JSON or ``@FILE.json``.

    Raises:
        CommandError: it is no object.
    """
    if text is None:
        return None
    found = read_source(text, "--context")
    if not isinstance(found, dict):
        raise CommandError("--context is a JSON object", ExitCode.INVALID)
    return found


def _typed(text: str) -> Any:
    """A value behind its name: JSON if it is some, else text."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return text
    return text if found is None or isinstance(found, dict) else found


def _cast(value: Any, kind: str, name: str, number: int) -> Any:
    if isinstance(value, list):
        return [_cast(item, kind, name, number) for item in value]
    try:
        if kind == "int" and isinstance(value, float) and value != int(value):
            raise ValueError
        return _CASTS[kind](value)
    except (ValueError, TypeError, OverflowError) as error:
        raise CommandError(
            f"feature {name!r} of example {number}: {value!r} is no {kind}", ExitCode.INVALID
        ) from error


def _read(argument: str) -> Iterator[Row]:
    if argument in ("-", "@-"):
        try:
            text = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError as error:
            raise CommandError(f"standard input: {error}", ExitCode.FILE) from error
        yield from _objects(text, "standard input")
    elif argument.startswith("@"):
        path = argument[1:]
        try:
            with open(path, encoding="utf-8-sig", newline="") as file:
                text = file.read()
        except UnicodeDecodeError as error:
            raise CommandError(f"{path}: {error}", ExitCode.FILE) from error
        yield from _table(text, path) if path.lower().endswith((".csv", ".tsv")) else _objects(text, path)
    else:
        yield from _objects(argument, "the examples")


def _objects(text: str, where: str) -> Iterator[Row]:
    """Examples from JSON: an object, a list of them, or one on each line."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    whole = text.lstrip()[:1] == "["
    if not whole and len(lines) > 1:
        try:
            found = [json.loads(text)]  # one object over several lines
            whole = True
        except json.JSONDecodeError:
            pass
    if whole or len(lines) <= 1:
        found = parse_json(text, where)
        for number, row in enumerate(found if isinstance(found, list) else [found]):
            yield _row(row, f"{where}: example {number}")
    else:
        for number, line in lines:
            yield _row(parse_json(line, f"{where}, line {number}"), f"{where}, line {number}")


def _row(found: Any, where: str) -> Row:
    if not isinstance(found, dict):
        raise CommandError(f"{where} is no object of features: {found!r:.40}", ExitCode.INVALID)
    # A feature that is null is one that the example does not have.
    return {name: value for name, value in found.items() if value is not None}


def _table(text: str, path: str) -> Iterator[Row]:
    """Examples from CSV: a column is int, float or text as a whole; an empty cell is no feature."""
    reader = csv.reader(
        io.StringIO(text), delimiter="\t" if path.lower().endswith(".tsv") else ",", strict=True
    )
    try:
        lines = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise CommandError(f"{path}, line {reader.line_num}: {error}", ExitCode.FILE) from error
    if not lines:
        raise CommandError(f"{path} is empty: its first line has the names", ExitCode.FILE)
    names = lines[0][1]
    if len(set(names)) < len(names):
        raise CommandError(f"{path}: a column is named twice", ExitCode.FILE)
    for number, cells in lines[1:]:
        if len(cells) != len(names):
            raise CommandError(
                f"{path}, line {number}: {len(cells)} cells, and {len(names)} columns", ExitCode.FILE
            )
    body = [cells for _, cells in lines[1:]]
    casts = [_cast_of(cells[index] for cells in body) for index in range(len(names))]
    for cells in body:
        yield {name: cast(cell) for name, cell, cast in zip(names, cells, casts, strict=True) if cell != ""}


def _cast_of(cells: Iterable[str]) -> Callable[[str], Any]:
    present = [cell for cell in cells if cell != ""]
    for cast in (int, float):
        try:
            for cell in present:
                if "_" in cell:  # Python's own
                    raise ValueError
                cast(cell)
        except ValueError:
            continue
        return cast
    return str
