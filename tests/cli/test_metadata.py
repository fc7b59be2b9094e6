"""`aioserving metadata`."""

from __future__ import annotations

import pytest

pytest.importorskip("click", reason="needs the extra `cli`")

from .conftest import Run


def test_signatures_as_a_table(on: Run) -> None:
    """A line for each input and output, of every signature or of one."""
    found = on("metadata", "digits")
    assert found.code == 0
    assert found.lines[0] == "digits version 2"
    assert [line.split()[:4] for line in found.lines[2:]] == [
        ["serving_default", "input", "images", "float32"],
        ["serving_default", "output", "scores", "float32"],
        ["serving_default", "output", "version", "int64"],
    ]
    assert "(-1, 784)" in found.out
    assert {line.split()[0] for line in on("metadata", "many").lines[2:]} == {
        "serving_default",
        "strings",
        "ticks",
    }
    assert {line.split()[0] for line in on("metadata", "many", "-s", "strings").lines[2:]} == {"strings"}


def test_signatures_for_programs(on: Run) -> None:
    """The same as JSON, with shapes as lists."""
    found = on("metadata", "-m", "digits", "--version", "1", "--json").json
    assert (found["model"], found["version"]) == ("digits", 1)
    images = found["signatures"]["serving_default"]["inputs"]["images"]
    assert (images["dtype"], images["shape"]) == ("float32", [-1, 784])


def test_what_is_not_there(on: Run) -> None:
    """A model, version, label or signature that the server does not have is exit code 5, with what to do."""
    for arguments in (
        ("nobody",),
        ("digits", "--version", "9"),
        ("digits", "--label", "gold"),
        ("many", "-s", "strngs"),
    ):
        found = on("metadata", *arguments)
        assert found.code == 5, found
        assert "aioserving status" in found.err or "aioserving metadata" in found.err
    assert "did you mean 'strings'?" in on("metadata", "many", "-s", "strngs").err
    assert on("metadata").code == 2
