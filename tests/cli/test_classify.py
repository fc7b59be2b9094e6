"""`aioserving classify`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("click", reason="needs the extra `cli`")

from .conftest import Run

ARGUMENTS = ("classify", "-m", "graded", "-s", "classify")


def test_examples_from_everywhere(on: Run) -> None:
    """Typed, as JSON, JSON lines and CSV: one answer, in the order of the examples."""
    Path("rows.csv").write_text("id,x\na,0.25\nb,1\n")
    Path("rows.jsonl").write_text('{"x": 0.25}\n{"x": 1.0}\n')
    for arguments, text in (
        (('[{"x": 0.25}, {"x": 1.0}]',), None),
        (("@rows.csv", "--column", "x"), None),
        (("@rows.jsonl",), None),
        (("-",), '{"x": 0.25}\n{"x": 1.0}\n'),
        (('[{"x": 0.25}, {"x": 1}]', "--as", "x=float"), None),
        (('[{"x": 0.25}, {}]', "--context", '{"x": 1.0}'), None),
    ):
        found = on(*ARGUMENTS, *arguments, "--json", input=text)
        assert found.code == 0, found
        assert found.json["results"] == [
            [{"label": "low", "score": 0.75}, {"label": "high", "score": 0.25}],
            [{"label": "low", "score": 0.0}, {"label": "high", "score": 1.0}],
        ]


def test_the_table_has_the_best(on: Run) -> None:
    """The best class of each example, or as many as are asked for."""
    found = on(*ARGUMENTS, "x=0.25")
    assert found.lines[0] == "graded version 1, classify"
    assert [line.split() for line in found.lines[2:]] == [["0", "low", "0.75"]]
    found = on(*ARGUMENTS, "x=0.25", "--top", "2")
    assert [line.split() for line in found.lines[2:]] == [["0", "low", "0.75"], ["0", "high", "0.25"]]


def test_what_cannot_be_classified(on: Run) -> None:
    """No examples, a missing feature, a signature that cannot."""
    assert on(*ARGUMENTS).code == 2
    found = on(*ARGUMENTS, "y=1.0")
    assert found.code == 6
    assert "Feature: x" in found.err
    assert on("classify", "-m", "graded", "-s", "regress", "x=1.0").code == 6
