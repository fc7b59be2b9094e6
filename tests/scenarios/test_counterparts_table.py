"""The table of counterparts in `tests/README.md`: what it names exists, and nothing is left out."""

from __future__ import annotations

import ast
import functools
import json
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
#: Files whose tests are all counterparts.
COUNTERPARTS = ("scenarios/test_counterparts.py", "scenarios/test_counterparts_config.py")
TEXT = (TESTS / "README.md").read_text(encoding="utf-8")

#: "theirs" and "ours" of every row, by the heading that it stands under.
ROWS = [
    (heading, *re.fullmatch(r"\| (.*?) \| (.*) \|", line).groups())  # type: ignore[union-attr]
    for heading, section in re.findall(r"^### (.*?)\n(.*?)(?=^### |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    for line in section.splitlines()
    if line.startswith("| ") and not line.startswith(("| ---", "| theirs"))
]
NAMED = re.findall(r"`((?:golden|scenarios|testing)/[^`*]+)`", TEXT)


@functools.cache
def functions_of(file: str) -> dict[str, str]:
    """Name and source of every test function of a file."""
    source = (TESTS / file).read_text(encoding="utf-8")
    return {
        node.name: "\n".join(
            source.splitlines()[
                min([node.lineno, *(item.lineno for item in node.decorator_list)]) - 1 : node.end_lineno
            ]
        )
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


@functools.cache
def starts() -> frozenset[str]:
    """Names of the recorded starts."""
    return frozenset(
        item["name"] for item in json.loads((TESTS / "golden/S_startup/startup.json").read_text())
    )


def missing(reference: str) -> str | None:
    """What is wrong with a reference, or None."""
    if reference.startswith("golden/S_startup/"):
        return None if reference.rpartition("/")[2] in starts() else "no such recorded start"
    if reference.startswith("golden/"):
        return None if (TESTS / f"{reference}.json").is_file() else "no such recorded case"
    file, _, name = reference.partition("::")
    if not (TESTS / file).is_file():
        return "no such file"
    if not name:
        return None
    name, bracket, parameter = name.removesuffix("]").partition("[")
    if name not in functions_of(file):
        return "no such test"
    if bracket and f'"{parameter}"' not in (TESTS / file).read_text(encoding="utf-8"):
        return "no such parameter"
    return None


def test_there_are_rows() -> None:
    """The patterns find the table: the Python tests, and eleven files in C++."""
    assert len({heading for heading, *_ in ROWS}) == 12
    assert len(ROWS) > 100
    assert len(NAMED) > 150


def test_counterparts_exist() -> None:
    """Every test and every recorded case that the table names is there."""
    assert {name: wrong for name in NAMED if (wrong := missing(name)) is not None} == {}


def test_wrong_references_are_found() -> None:
    """The check itself can fail: in file, test, parameter and recorded case."""
    for reference in (
        "scenarios/test_nothing.py",
        "scenarios/test_counterparts.py::test_nothing",
        "scenarios/test_counterparts.py::test_classify[tf3]",
        "golden/A_main/nothing",
        "golden/S_startup/nothing",
    ):
        assert missing(reference) is not None


def test_every_row_has_a_counterpart_or_a_reason() -> None:
    """A test of theirs has one of ours, or the row says "not covered:" and why."""
    for heading, theirs, ours in ROWS:
        assert re.fullmatch(r"\w+(, \w+)*", theirs), (heading, theirs)
        if ours.startswith("not covered: "):
            assert len(ours) > len("not covered: ") + 20, (heading, theirs)
        else:
            assert "::" in ours or "`golden/" in ours, (heading, theirs)


@pytest.mark.parametrize("file", COUNTERPARTS)
def test_every_counterpart_is_in_the_table(file: str) -> None:
    """No test of the files of counterparts is left out."""
    named = {reference.partition("[")[0] for reference in NAMED}
    assert [name for name in functions_of(file) if f"{file}::{name}" not in named] == []


def test_no_test_of_theirs_is_listed_twice() -> None:
    """Each one has one row."""
    listed = [(heading, name) for heading, theirs, _ in ROWS for name in theirs.split(", ")]
    assert len(listed) == len(set(listed))
