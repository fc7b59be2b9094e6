"""Text of a set-up file -> checked values, with the place of everything that is wrong.

    root = read(text, "yaml")
    servers = root.section({"target", "timeout"})
    timeout = servers.take("timeout", seconds, 10.0)

Reading YAML and TOML, where in the text each value stands, and converters for the kinds of values that such
files hold: durations, sizes, secrets. All problems are gathered, each with the path of keys that leads to
it, so that a file is mended in one go. What the keys mean is left to `setup_file`.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeVar

__all__ = [
    "Entry",
    "Place",
    "Secret",
    "SetupProblem",
    "Unfit",
    "boolean",
    "choice",
    "count",
    "mapping_of",
    "read",
    "seconds",
    "secret",
    "size",
    "text",
]

T = TypeVar("T")

#: Where a value stands in the text: line and column, counted from 1.
Place: TypeAlias = "tuple[int, int]"

Keys: TypeAlias = "tuple[str | int, ...]"


@dataclass(frozen=True, slots=True)
class SetupProblem:
    """One thing that is wrong with a set-up file."""

    #: The keys that lead to it, as ``servers.a.timeout``; empty: the file as a whole.
    path: str
    #: What is wrong, and what would be right.
    text: str
    #: Line of the file, counted from 1; None where it is not known (TOML does not tell).
    line: int | None = None
    #: Column in that line, counted from 1, or None.
    column: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}, column {self.column}: " if self.line is not None else ""
        return f"{where}{self.path}: {self.text}" if self.path else where + self.text


class Unfit(ValueError):  # noqa: N818 - never leaves this package
    """A value is not what its key needs; the text says what would be."""


@dataclass(frozen=True)
class Secret:
    """A value that nothing shows: no repr, no log line, no error."""

    #: The value itself.
    value: str = field(repr=False)
    #: Where it came from: ``environment variable NAME`` or ``file PATH``.
    source: str
    #: The file, if it came from one.
    path: Path | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"<secret from {self.source}>"

    def read(self) -> str:
        """The value as its file has it now; `value`, if it came from no file.

        Raises:
            ValueError: the file cannot be read, or is empty.
        """
        return self.value if self.path is None else _read_secret(self.path)


@dataclass
class _Document:
    """What belongs to a whole file."""

    folder: Path
    environment: Mapping[str, str]
    places: dict[Keys, Place] = field(default_factory=dict)
    problems: list[SetupProblem] = field(default_factory=list)


class Entry:
    """One value of the file, and where it stands.

    Attributes:
        value: the value as YAML or TOML has it.
        path: the keys that lead to it.
    """

    __slots__ = ("_document", "_known", "path", "value")

    def __init__(self, value: Any, path: Keys, document: _Document) -> None:
        self.value = value
        self.path = path
        self._document = document
        self._known: frozenset[str] | None = None

    def __repr__(self) -> str:
        # Not the value: it may be a secret.
        return f"<Entry {_joined(self.path) or 'of the whole file'}, {_kind(self.value)}>"

    @property
    def name(self) -> str:
        """The last key that leads here."""
        return str(self.path[-1]) if self.path else ""

    @property
    def folder(self) -> Path:
        """The folder that relative paths of the file start from."""
        return self._document.folder

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment variables that secrets may come from."""
        return self._document.environment

    @property
    def problems(self) -> tuple[SetupProblem, ...]:
        """What has been found wrong with the file so far."""
        return tuple(self._document.problems)

    def report(self, problem: str, *keys: str | int) -> None:
        """Note that something is wrong with this value, or with the one below that `keys` lead to."""
        path = (*self.path, *keys)
        places = self._document.places
        place = places.get(path)
        for length in range(len(path) - 1, -1, -1):  # what is missing has no place; what it is missing in has
            if place is not None:
                break
            place = places.get(path[:length])
        line, column = place or (None, None)
        self._document.problems.append(SetupProblem(_joined(path), problem, line, column))

    def section(self, known: Iterable[str]) -> Entry:
        """This entry as a mapping whose keys are among `known`; what is not is reported."""
        self._known = frozenset(known)
        if self.value is None:
            self.value = {}
        if not isinstance(self.value, dict):
            self.report(f"expected a mapping with {_listed(sorted(self._known))}, got {_kind(self.value)}")
            self.value = {}
        for key in self.value:
            if key not in self._known:
                self.report(f"there is no such key{_meant(key, self._known)}", key)
        return self

    def items(self) -> Iterator[Entry]:
        """The values of a list, or of a mapping from names of the file's; else that is reported."""
        if self.value is None:
            return
        if isinstance(self.value, list):
            for number, value in enumerate(self.value):
                yield Entry(value, (*self.path, number), self._document)
            return
        if not isinstance(self.value, dict):
            self.report(f"expected a mapping from names, got {_kind(self.value)}")
            return
        for key, value in self.value.items():
            yield Entry(value, (*self.path, key), self._document)

    def __contains__(self, key: str) -> bool:
        return isinstance(self.value, dict) and key in self.value

    def below(self, key: str) -> Entry:
        """The value under `key`; one of None if there is none."""
        value = self.value.get(key) if isinstance(self.value, dict) else None
        return Entry(value, (*self.path, key), self._document)

    def take(self, key: str, convert: Callable[[Entry], T], default: T) -> T:
        """What is under `key`, converted; `default` if there is nothing, or if it is unfit and reported."""
        entry = self.below(key)
        if entry.value is None:
            return default
        return entry.convert(convert, default)

    def need(self, key: str, convert: Callable[[Entry], T], instead: T) -> T:
        """What is under `key`, converted; `instead` if it is missing or unfit, which is reported."""
        entry = self.below(key)
        if entry.value is None:
            self.report(f"{key!r} is missing")
            return instead
        return entry.convert(convert, instead)

    def convert(self, convert: Callable[[Entry], T], instead: T) -> T:
        """The value, converted; `instead` if it is unfit, which is reported."""
        try:
            return convert(self)
        except Unfit as error:
            self.report(str(error))
            return instead


# ------------------------------------------------------------------------------------------------ converters


def text(entry: Entry) -> str:
    """Text that is not empty."""
    if not isinstance(entry.value, str):
        advice = f"; in quotes: {str(entry.value)!r}" if isinstance(entry.value, int | float) else ""
        raise Unfit(f"expected text, got {_kind(entry.value)}{advice}")
    if not entry.value.strip():
        raise Unfit("the text is empty")
    return entry.value


def boolean(entry: Entry) -> bool:
    """True or false."""
    if not isinstance(entry.value, bool):
        raise Unfit(f"expected true or false, got {_kind(entry.value)}")
    return entry.value


def count(entry: Entry) -> int:
    """A whole number, at least 1."""
    if not isinstance(entry.value, int) or isinstance(entry.value, bool):
        raise Unfit(f"expected a whole number, got {_kind(entry.value)}")
    if entry.value < 1:
        raise Unfit(f"expected a whole number, at least 1, got {entry.value}")
    return entry.value


_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(entry: Entry) -> float:
    """A duration: a number of seconds, or text such as ``"250 ms"``, ``"1h30m"``."""
    value = entry.value
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 <= value < math.inf:
            raise Unfit(f"expected a duration of at least 0 seconds, got {value}")
        return float(value)
    if isinstance(value, str):
        parts = re.findall(r"\s*([\d.]+)\s*([a-z]+)\s*", value)
        if parts and "".join(f"{number}{unit}" for number, unit in parts) == re.sub(r"\s", "", value):
            try:
                return sum(float(number) * _UNITS[unit] for number, unit in parts)
            except (KeyError, ValueError):
                pass
        raise Unfit(f"expected seconds, or a duration such as 500ms, 10s, 5m or 1h30m, got {value!r}")
    raise Unfit(f"expected a duration (seconds, or text such as 10s or 5m), got {_kind(value)}")


_SIZES: Final[dict[str, int]] = {
    f"{prefix}{ending}": base**power
    for ending, base in (("", 1000), ("b", 1000), ("ib", 1024))
    for power, prefix in enumerate(("", "k", "m", "g", "t"))
    if prefix or ending != "ib"
}


def size(entry: Entry) -> int:
    """A number of bytes, or text such as ``"50GB"`` (1000 each) and ``"20 GiB"`` (1024 each)."""
    value = entry.value
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise Unfit(f"expected a number of bytes, at least 0, got {value}")
        return value
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
        if found and found[2].lower() in _SIZES:
            return round(float(found[1]) * _SIZES[found[2].lower()])
        raise Unfit(f"expected bytes, or a size such as 500MB, 50GB or 20GiB, got {value!r}")
    raise Unfit(f"expected a size (bytes, or text such as 50GB), got {_kind(value)}")


def choice(*names: str) -> Callable[[Entry], str]:
    """One of `names`."""

    def convert(entry: Entry) -> str:
        if entry.value not in names or not isinstance(entry.value, str):
            meant = _meant(entry.value, names) if isinstance(entry.value, str) else ""
            got = repr(entry.value) if isinstance(entry.value, str) else _kind(entry.value)
            raise Unfit(f"expected {_listed(names)}, got {got}{meant}")
        return entry.value

    return convert


def mapping_of(convert: Callable[[Entry], T]) -> Callable[[Entry], dict[str, T]]:
    """A mapping from names that the file chooses; unfit values are reported and left out."""

    def converted(entry: Entry) -> dict[str, T]:
        if not isinstance(entry.value, dict):
            raise Unfit(f"expected a mapping from names, got {_kind(entry.value)}")
        found = {}
        for item in entry.items():
            try:
                found[item.name] = convert(item)
            except Unfit as error:
                item.report(str(error))
        return found

    return converted


def secret(entry: Entry) -> Secret:
    """``{env: NAME}`` or ``{file: PATH}``; never the secret itself, which has no business in such a file."""
    value = entry.value
    advice = "{env: NAME} for an environment variable, or {file: PATH}"
    if not isinstance(value, dict):
        raise Unfit(f"a secret is not written here; say where it is: {advice}")
    if len(value) != 1 or not value.keys() <= {"env", "file"}:
        raise Unfit(f"a secret comes from one place: {advice}")
    [(kind, name)] = value.items()
    if not isinstance(name, str) or not name:
        raise Unfit(f"expected the name of {'a variable' if kind == 'env' else 'a file'}: {advice}")
    if kind == "env":
        found = entry.environment.get(name)
        source = f"environment variable {name}"
        if found is None:
            raise Unfit(f"the {source} is not set")
    else:
        path = entry.folder / os.path.expanduser(name)
        try:
            return Secret(_read_secret(path), f"file {path}", path)
        except ValueError as error:
            raise Unfit(str(error)) from None
    if not found:
        raise Unfit(f"the {source} is empty")
    return Secret(found, source)


def _read_secret(path: Path) -> str:
    try:
        found = path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"the file {path} cannot be read: {reason}") from None
    if not found:
        raise ValueError(f"the file {path} is empty")
    return found


# --------------------------------------------------------------------------------------------------- reading


def read(
    content: str,
    syntax: Literal["yaml", "toml"],
    *,
    folder: Path,
    environment: Mapping[str, str],
) -> Entry:
    """The whole file as an entry; what is wrong already is among its `problems`.

    Args:
        content: the text of the file.
        syntax: what it is written in.
        folder: where its relative paths start.
        environment: the variables that secrets may come from.

    Raises:
        ImportError: PyYAML, or tomli on Python 3.10, is not installed.
    """
    document = _Document(folder, environment)
    value = _read_yaml(content, document) if syntax == "yaml" else _read_toml(content, document)
    return Entry(value, (), document)


def _read_toml(content: str, document: _Document) -> Any:
    tomllib = _tomllib()
    try:
        return tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        found = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", str(error))
        problem = (
            SetupProblem("", f"not TOML: {found[1]}", int(found[2]), int(found[3]))
            if found
            else SetupProblem("", f"not TOML: {error}")
        )
        document.problems.append(problem)
        return None


def _tomllib() -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError:
            raise ImportError(
                "reading TOML on Python 3.10 needs tomli: pip install 'aioserving[repository]'"
            ) from None
    return tomllib


def _read_yaml(content: str, document: _Document) -> Any:
    try:
        import yaml
    except ImportError:
        raise ImportError("reading YAML needs PyYAML: pip install 'aioserving[repository]'") from None
    try:
        loader = yaml.SafeLoader(content)
        try:
            node = loader.get_single_node()
            return None if node is None else _Walk(loader, document).value(node, ())
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        said = getattr(error, "problem", None) or str(error)
        line, column = (None, None) if mark is None else (mark.line + 1, mark.column + 1)
        document.problems.append(SetupProblem("", f"not YAML: {said}", line, column))
        return None


class _Walk:
    """Nodes of YAML -> values, with the place of each; keys are text and come once."""

    #: Values in all, counting what aliases repeat: a few lines of aliases can stand for billions.
    LIMIT: Final = 100_000

    def __init__(self, loader: Any, document: _Document) -> None:
        self._loader = loader
        self._document = document
        self._count = 0

    def value(self, node: Any, path: Keys) -> Any:
        import yaml

        self._count += 1
        if self._count > self.LIMIT or len(path) > 50:
            raise yaml.MarkedYAMLError(problem="far more than any set-up", problem_mark=node.start_mark)
        place = (node.start_mark.line + 1, node.start_mark.column + 1)
        self._document.places.setdefault(path, place)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, number)) for number, item in enumerate(node.value)]
        return self._loader.construct_object(node, deep=True)

    def _mapping(self, node: Any, path: Keys) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            if key_node.tag == "tag:yaml.org,2002:merge":
                given = self.value(value_node, path)
                for item in given if isinstance(given, list) else [given]:
                    for name, value in item.items() if isinstance(item, dict) else ():
                        merged.setdefault(name, value)
                continue
            key = self._loader.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                written = getattr(key_node, "value", key)
                self._problem(path, place, f"the key {written} is {_kind(key)}; put it in quotes")
                continue
            if key in found:
                self._problem((*path, key), place, "the key is there twice")
                continue
            # A key's problems are told at the key; a value may begin lines below.
            below = (*path, key)
            self._document.places[below] = place
            found[key] = self.value(value_node, below)
        return {**merged, **found}

    def _problem(self, path: Keys, place: Place, problem: str) -> None:
        self._document.problems.append(SetupProblem(_joined(path), problem, *place))


# ----------------------------------------------------------------------------------------------------- words


def _joined(path: Keys) -> str:
    parts = ""
    for key in path:
        if isinstance(key, int):
            parts += f"[{key}]"
        else:
            shown = key if re.fullmatch(r"[\w-]+", key) else f'"{key}"'
            parts += f".{shown}" if parts else shown
    return parts


def _kind(value: object) -> str:
    """What a value is, in words that hold for both syntaxes; never the value."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    for kinds, word in (
        (str, "text"),
        (int, "a whole number"),
        (float, "a number"),
        (list, "a list"),
        (dict, "a mapping"),
    ):
        if isinstance(value, kinds):
            return word
    return f"a {type(value).__name__}"


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def _meant(name: object, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, 1, 0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; it may be {_listed(known)}" if known else ""
