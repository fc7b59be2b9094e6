"""`aioserving predict`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("click", reason="needs the extra `cli`")

from .conftest import Run


def test_inputs_from_everywhere_give_the_same(on: Run) -> None:
    """Typed, as JSON, from files and from standard input: one answer."""
    inputs = {"a": [1.0, 2.0], "b": [3.0, 5.0]}
    Path("in.json").write_text(json.dumps(inputs))
    np.savez("in.npz", a=np.array(inputs["a"], np.float32), b=np.array(inputs["b"], np.float32))
    np.save("b.npy", np.array(inputs["b"]))
    rows = json.dumps({"instances": [{"a": 1, "b": 3}, {"a": 2, "b": 5}]})
    ways: list[tuple[tuple[str, ...], str | None]] = [
        (("a=[1,2]", "b=[3,5]"), None),
        ((json.dumps(inputs),), None),
        (("@in.json",), None),
        (("@in.npz",), None),
        (("a=[1,2]", "b=@b.npy"), None),
        (("-",), json.dumps(inputs)),
        (("-",), rows),
    ]
    for arguments, text in ways:
        found = on("predict", "-m", "many", *arguments, "--json", input=text)
        assert found.code == 0, found
        assert found.json["outputs"] == {"difference": [-2.0, -3.0], "sum": [4.0, 7.0]}
        assert (found.json["model"], found.json["version"], found.json["signature"]) == (
            "many",
            1,
            "serving_default",
        )


def test_the_table(on: Run) -> None:
    """A row for each row of the batch; outputs without one apart; long answers are cut, and say so."""
    found = on("predict", "-m", "digits", "--zeros", "--batch", "25", "--version", "1", "--rows", "2")
    assert found.lines[0].startswith("digits version 1, serving_default, ")
    assert [line.split() for line in found.lines[1:4]] == [["ROW", "SCORES"], ["0", "0"], ["1", "0"]]
    assert found.lines[4].startswith("... 23 more rows")
    assert found.lines[5] == "version: int64 (): 1"
    assert len(on("predict", "-m", "digits", "--zeros", "--batch", "25", "--rows", "0").lines) == 2 + 25 + 1
    found = on("predict", "-m", "many", "-s", "strings", "names=bob")
    assert found.lines[2].split() == ["0", "hello", "bob"]
    assert on("predict", "-m", "many", "-s", "ticks").lines[1] == "tick: int32 (): 1"


def test_made_up_inputs_are_the_same_for_a_seed(on: Run) -> None:
    """And fill in for inputs that are not given."""
    first, second, other = (
        on("predict", "-m", "digits", "--random", "--seed", seed, "--json", "--output", "scores").json[
            "outputs"
        ]
        for seed in ("1", "1", "2")
    )
    assert first == second != other
    found = on("predict", "-m", "many", "--zeros", "--shape", "b=1", "a=5", "--json").json["outputs"]
    assert found == {"difference": [5.0], "sum": [5.0]}


def test_outputs_to_files(on: Run) -> None:
    """.npz has them all, .npy one, .json what --json has; nothing is written when the call fails."""
    arguments = ("predict", "-m", "many", "a=[1,2]", "b=[3,5]")
    found = on(*arguments, "--out", "all.npz")
    assert found.lines == ["all.npz: difference float32 (2,), sum float32 (2,)"]
    with np.load("all.npz") as arrays:
        np.testing.assert_array_equal(arrays["sum"], np.array([4, 7], np.float32))
    assert on(*arguments, "--out", "one.npy").code == 2
    assert on(*arguments, "--out", "one.npy", "--output", "sum").code == 0
    assert np.load("one.npy").tolist() == [4, 7]
    found = on(*arguments, "--out", "all.json", "--json")
    assert json.loads(Path("all.json").read_text()) == found.json
    assert on(*arguments, "--out", "no/such/x.npz").code == 11
    assert on(*arguments, "--out", "x.csv").code == 2
    assert on("predict", "-m", "many", "a=1", "--out", "failed.npz").code == 6
    assert not Path("failed.npz").exists()


def test_what_does_not_fit_is_told_before_it_is_sent(on: Run) -> None:
    """With the signature, and the command that shows it."""
    found = on("predict", "-m", "many", "a=1", "c=1")
    assert found.code == 6
    assert "unknown input 'c'; missing input 'b'; many/serving_default takes 'a': float32 (-1,)" in found.err
    assert "'aioserving metadata many'" in found.err
    found = on("predict", "-m", "many")
    assert found.code == 2
    assert "no inputs; many/serving_default takes a: float32 (-1,), b: float32 (-1,)" in found.err
    assert on("predict", "-m", "many", "a=1", "--shape", "b=1").code == 2
    assert on("predict", "-m", "many", "--zeros", "--no-check").code == 2


def test_unchecked_the_server_answers_itself(on: Run) -> None:
    """--no-check sends what there is, so the refusal is the server's own."""
    found = on("predict", "-m", "many", "a=[1.0]", "--no-check")
    assert found.code == 6
    assert "input size does not match signature" in found.err
