"""`aioserving regress`."""

from __future__ import annotations

import pytest

pytest.importorskip("click", reason="needs the extra `cli`")

from .conftest import Run


def test_a_number_for_each_example(on: Run) -> None:
    """As a table, and as JSON."""
    arguments = ("regress", "-m", "graded", "-s", "regress", '[{"x": 1.0}, {"x": 2.0}]')
    assert [line.split() for line in on(*arguments).lines[2:]] == [["0", "2.5"], ["1", "3"]]
    assert on(*arguments, "--json").json == {
        "model": "graded",
        "version": 1,
        "signature": "regress",
        "results": [2.5, 3.0],
    }


def test_a_signature_that_cannot(on: Run) -> None:
    """It is refused with what one would need; --no-check lets the server say it."""
    found = on("regress", "-m", "graded", "-s", "classify", "x=1.0")
    assert found.code == 6
    assert "gives exactly one output" in found.err
    assert on("regress", "-m", "graded", "-s", "classify", "x=1.0", "--no-check").code != 0
