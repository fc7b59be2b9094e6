"""Examples from text and files."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("click", reason="needs the extra `cli`")

from aioserving.cli.failures import CommandError
from aioserving.cli.rows import parse_kinds, read_context, read_rows


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["x=1.5", "n=2", "name=bob", "tags=[1, 2]"], [{"x": 1.5, "n": 2, "name": "bob", "tags": [1, 2]}]),
        (['{"x": 1}'], [{"x": 1}]),
        (['[{"x": 1}, {"x": null, "y": 2}]'], [{"x": 1}, {"y": 2}]),
        (['{"x": 1}\n\n{"x": 2}\n'], [{"x": 1}, {"x": 2}]),
        (['{\n"x": 1,\n"y": 2\n}'], [{"x": 1, "y": 2}]),
        (['{"x": {"b64": "/w=="}}'], [{"x": b"\xff"}]),
        (['{"x": 1}', "x=2"], [{"x": 1}, {"x": 2}]),
    ],
)
def test_what_is_typed(arguments: list[str], expected: list[dict[str, Any]]) -> None:
    """Features by name, an object, a list of them, or one on each line."""
    assert read_rows(arguments) == expected


def test_csv(tmp_path: Path) -> None:
    """A column is of one kind as a whole, quotes are understood, an empty cell is no feature."""
    path = tmp_path / "rows.csv"
    path.write_bytes('\ufeffn,x,text,mixed\r\n1,1,"a,b",1\r\n2,2.5,,x\r\n,,c,1_0\r\n'.encode())
    assert read_rows([f"@{path}"]) == [
        {"n": 1, "x": 1.0, "text": "a,b", "mixed": "1"},
        {"n": 2, "x": 2.5, "mixed": "x"},
        {"text": "c", "mixed": "1_0"},
    ]
    assert read_rows([f"@{path}"], {"n": "float"}, ("n", "x"))[:2] == [
        {"n": 1.0, "x": 1.0},
        {"n": 2.0, "x": 2.5},
    ]
    tabs = tmp_path / "rows.tsv"
    tabs.write_text("a\tb\n1\t2\n")
    assert read_rows([f"@{tabs}"]) == [{"a": 1, "b": 2}]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON lines, as another program writes them."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'{"x": 1}\n{"x": 2}\n')))
    assert read_rows(["-"]) == [{"x": 1}, {"x": 2}]


def test_kinds_overrule_what_a_value_looks_like() -> None:
    """A model that parses floats gets floats, in lists too; what cannot be one is refused with its place."""
    kinds = parse_kinds(["x=float", "y=text", "z=int"])
    found = read_rows(['{"x": [1, 2], "y": 3, "z": 4.0}'], kinds)
    assert found == [{"x": [1.0, 2.0], "y": "3", "z": 4}]
    assert [type(item) for item in found[0]["x"]] == [float, float]
    with pytest.raises(CommandError, match=r"feature 'x' of example 1: 'a' is no float"):
        read_rows(['[{"x": 1}, {"x": "a"}]'], {"x": "float"})
    with pytest.raises(CommandError, match=r"2\.5 is no int"):
        read_rows(["x=2.5"], {"x": "int"})
    with pytest.raises(CommandError, match="write NAME=float"):
        parse_kinds(["x=double"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there are no examples"),
        (["[]"], "there are no examples"),
        (["[1]"], "example 0 is no object"),
        (['{"x": 1}\n{"x": '], "line 2.*is no JSON"),
        (["@short.csv"], "short.csv, line 3: 1 cells, and 2 columns"),
        (["@twice.csv"], "named twice"),
        (["@empty.csv"], "is empty"),
        (["@quote.csv"], "quote.csv, line"),
    ],
)
def test_what_is_wrong_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    """Every mistake says what and where."""
    monkeypatch.chdir(tmp_path)
    Path("short.csv").write_text("a,b\n1,2\n3\n")
    Path("twice.csv").write_text("a,a\n1,2\n")
    Path("empty.csv").write_text("")
    Path("quote.csv").write_text('a\n"b" c\n')
    with pytest.raises(CommandError, match=message):
        read_rows(arguments)


def test_a_column_that_is_nowhere_is_refused() -> None:
    """A misspelt column would be sent as nothing."""
    with pytest.raises(CommandError, match="no example has 'z'; there are 'x', 'y'"):
        read_rows(["x=1", "y=2"], columns=("z",))


def test_context() -> None:
    """An object of features, or none."""
    assert read_context(None) is None
    assert read_context('{"city": "Ghent"}') == {"city": "Ghent"}
    with pytest.raises(CommandError, match="a JSON object"):
        read_context("[1]")
