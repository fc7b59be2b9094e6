"""Tables, JSON and colours: what stands where."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest

pytest.importorskip("rich", reason="needs the extra `cli`")

from aioserving.cli.output import Output, dump_json, jsonable


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def table(output: Output) -> None:
    output.table(("model", "n"), [("digits", 10), ("a\nb", None)], right=("n",), styles={"digits": "green"})


def test_without_a_terminal_text_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    """One row a line, columns at the same place, nothing cut, no escapes: grep and awk work."""
    table(Output(environment={}))
    assert capsys.readouterr().out == "MODEL    N\ndigits  10\na b      -\n"


def test_on_a_terminal_tables_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """With colours, unless NO_COLOR or the option says otherwise; a dumb terminal gets plain text."""

    def drawn(environment: dict[str, str], color: bool | None = None) -> str:
        stream = Terminal()
        monkeypatch.setattr(sys, "stdout", stream)
        table(Output(color=color, environment=environment))
        return stream.getvalue()

    colored = drawn({})
    assert "─" in colored or "━" in colored
    assert "\x1b[32mdigits" in colored
    for plain in (drawn({"NO_COLOR": "1"}), drawn({}, color=False)):
        assert "\x1b[3" not in plain
        assert "digits" in plain
    assert drawn({"TERM": "dumb"}).startswith("MODEL")
    assert "\x1b[32m" in drawn({"NO_COLOR": "1"}, color=True)


def test_json_is_all_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    """With --json, tables and lines are silent, and notes go to standard error."""
    output = Output(as_json=True, environment={})
    table(output)
    output.line("hello")
    output.note("by the way")
    output.json({"a": [1, 2]})
    found = capsys.readouterr()
    assert json.loads(found.out) == {"a": [1, 2]}
    assert found.err == "by the way\n"


def test_progress_in_a_log_is_a_line_for_each_news(capsys: pytest.CaptureFixture[str]) -> None:
    """What stays the same is said once."""
    with Output(environment={}).progress("waiting") as progress:
        for text in ("waiting", "loading", "loading", "there"):
            progress.update(text)
    assert capsys.readouterr().err == "waiting\nloading\nthere\n"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.1), 0.1),
        (np.array([0.1, 1e-30], np.float32), [0.1, 1e-30]),
        (np.array([1 / 3]), [1 / 3]),
        (np.array([0.1], np.float16), [0.1]),
        (np.array([[1, 2]], np.uint8), [[1, 2]]),
        (np.array([True]), [True]),
        (np.array([1 + 2j], np.complex64), [[1.0, 2.0]]),
        (np.array([b"caf\xc3\xa9", b"\xff"], object), ["café", {"b64": "/w=="}]),
        (np.zeros((0, 3), np.float32), []),
        ({"a": (1, None)}, {"a": [1, None]}),
    ],
)
def test_values_of_json(value: object, expected: object) -> None:
    """Arrays become lists, float32 the shortest number that is the same float32, bytes text or base64."""
    found = jsonable(value)
    assert found == expected
    assert json.loads(dump_json(found)) == expected


def test_no_float32_is_lost_in_json() -> None:
    """What is read back is bit for bit what was written, of any magnitude, and so are NaN and infinities."""
    bits = np.random.default_rng(3).integers(0, 2**32, 2000, dtype=np.uint32)
    numbers = np.concatenate([bits.view(np.float32), np.array([np.nan, np.inf, -np.inf], np.float32)])
    back = np.array(json.loads(dump_json(jsonable(numbers))), np.float32)
    np.testing.assert_array_equal(back, numbers)


def test_lists_of_numbers_stay_on_a_line() -> None:
    """A matrix is a row a line, small objects a line each, and everything is still JSON."""
    data = {"rows": [[1, 2], [3, 4]], "specs": [{"a": 1}, {"a": 2}], "none": {}, "empty": []}
    text = dump_json(data)
    assert "    [1, 2],\n" in text
    assert '    {"a": 1},\n' in text
    assert json.loads(text) == data
