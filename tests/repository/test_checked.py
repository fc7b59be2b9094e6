"""aioserving.repository._checked: kinds of values in set-up files, and places of problems."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml", reason="needs the extra `repository`")

from aioserving.repository import _checked
from aioserving.repository._checked import Entry, SetupProblem, Unfit


def entry(value: Any, key: str = "key") -> Entry:
    root = _checked.read("", "yaml", folder=Path("/folder"), environment={"NAME": "value", "EMPTY": ""})
    root.value = {key: value}
    return root.below(key)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (0, 0.0),
        (2.5, 2.5),
        ("250ms", 0.25),
        ("10 s", 10.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("2d", 172800.0),
    ],
)
def test_durations(given: Any, seconds: float) -> None:
    """Numbers are seconds; text has units, which may follow each other."""
    assert _checked.seconds(entry(given)) == seconds


@pytest.mark.parametrize(
    "given", [-1, float("nan"), True, "", "10", "5 parsecs", "s", "1.2.3s", "5m!", None, [1]]
)
def test_what_is_no_duration(given: Any) -> None:
    """Anything else is refused rather than guessed."""
    with pytest.raises(Unfit, match="duration|seconds"):
        _checked.seconds(entry(given))


@pytest.mark.parametrize(
    ("given", "size"),
    [(0, 0), (10, 10), ("10", 10), ("1kB", 1000), ("1.5 MB", 1_500_000), ("2GiB", 2 << 30), ("1T", 10**12)],
)
def test_sizes(given: Any, size: int) -> None:
    """kB is a thousand bytes and KiB 1024, as the standards have it."""
    assert _checked.size(entry(given)) == size


@pytest.mark.parametrize("given", [-1, 1.5, True, "", "many", "5 XB", "5 ib", None])
def test_what_is_no_size(given: Any) -> None:
    """Anything else is refused rather than guessed."""
    with pytest.raises(Unfit, match="size|bytes"):
        _checked.size(entry(given))


def test_other_kinds() -> None:
    """Each kind says what it takes, and what it got, but not the value where that may be a secret."""
    assert _checked.text(entry("x")) == "x"
    assert _checked.boolean(entry(False)) is False
    assert _checked.count(entry(3)) == 3
    assert _checked.choice("a", "b")(entry("b")) == "b"
    for convert, value, expected in (
        (_checked.text, 5, "expected text, got a whole number; in quotes: '5'"),
        (_checked.text, " ", "the text is empty"),
        (_checked.boolean, "yes", "expected true or false, got text"),
        (_checked.count, 0, "at least 1, got 0"),
        (_checked.count, 1.0, "expected a whole number, got a number"),
        (_checked.count, True, "got true or false"),
        (_checked.choice("read", "operate"), "raed", "did you mean 'read'?"),
        (_checked.choice("read"), [], "expected read, got a list"),
        (_checked.mapping_of(_checked.text), [1], "expected a mapping from names, got a list"),
    ):
        with pytest.raises(Unfit) as caught:
            convert(entry(value))  # type: ignore[operator]
        assert expected in str(caught.value)


def test_secrets(tmp_path: Path) -> None:
    """A secret comes from a variable or a file, and no repr shows it."""
    assert _checked.secret(entry({"env": "NAME"})).value == "value"
    (tmp_path / "secret").write_text("hush\r\n")
    found = _checked.secret(entry({"file": str(tmp_path / "secret")}))
    assert (found.value, "hush" in repr(found) + str(found)) == ("hush", False)
    (tmp_path / "binary").write_bytes(b"\xff")
    for value, expected in (
        ({"env": "EMPTY"}, "variable EMPTY is empty"),
        ({"env": "OTHER"}, "variable OTHER is not set"),
        ({"env": 5}, "expected the name of a variable"),
        ({"file": str(tmp_path / "binary")}, "it is not UTF-8 text"),
        ({"file": str(tmp_path)}, "Is a directory"),
        ("hush", "a secret is not written here"),
        ({"vault": "x"}, "a secret comes from one place"),
    ):
        with pytest.raises(Unfit, match=expected) as caught:
            _checked.secret(entry(value))
        assert "hush" not in str(caught.value)


def test_places_of_problems() -> None:
    """A problem is told at its key; what is missing, at what it is missing in."""
    root = _checked.read("a:\n  b: 1\n  'c d': [x, y]\n", "yaml", folder=Path(), environment={})
    root.below("a").report("one", "b")
    root.below("a").report("two", "c d", 1)
    root.below("a").report("three", "missing", "below")
    assert root.problems == (
        SetupProblem("a.b", "one", 2, 3),
        SetupProblem('a."c d"[1]', "two", 3, 14),
        SetupProblem("a.missing.below", "three", 1, 1),
    )
    assert str(root.problems[0]) == "line 2, column 3: a.b: one"
    assert "1" not in repr(root.below("a").below("b"))


@pytest.mark.parametrize(("syntax", "package"), [("yaml", "yaml"), ("toml", "tomli")])
def test_a_missing_package_is_named_with_its_extra(
    syntax: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who lacks a package is told how to get it."""
    if syntax == "toml" and sys.version_info >= (3, 11):
        pytest.skip("TOML is part of Python from 3.11 on")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'aioserving\[repository\]'"):
        _checked.read("", syntax, folder=Path(), environment={})
