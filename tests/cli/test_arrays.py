"""Inputs from text, files and nothing; outputs to files."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("click", reason="needs the extra `cli`")

from aioserving import DataType, Signature, TensorSpec
from aioserving.cli.arrays import generate, parse_shapes, read_inputs, save_arrays, write_atomically
from aioserving.cli.failures import CommandError, ExitCode


def signature(**inputs: tuple[str, tuple[int, ...] | None]) -> Signature:
    specs = {
        name: TensorSpec(name, DataType[f"DT_{dtype.upper()}"], shape)
        for name, (dtype, shape) in inputs.items()
    }
    return Signature("serving_default", specs, {}, model="m")


PAIR = signature(a=("float", (-1,)), b=("float", (-1, 2)))
TEXT = signature(names=("string", (-1,)))


@pytest.mark.parametrize(
    ("arguments", "of", "expected"),
    [
        (["a=1.5", "b=[[1, 2]]"], PAIR, {"a": [1.5], "b": [[1, 2]]}),
        (["b=[1, 2]"], PAIR, {"b": [[1, 2]]}),
        (['{"a": [1], "b": [[1, 2]]}', "a=[7]"], PAIR, {"a": [7], "b": [[1, 2]]}),
        (["names=bob"], TEXT, {"names": ["bob"]}),
        (["names=5"], TEXT, {"names": ["5"]}),
        (['names=["x=y", "{"]'], TEXT, {"names": ["x=y", "{"]}),
        (['["x=y"]'], TEXT, {"names": ["x=y"]}),
        (['{"names": [{"b64": "/w=="}]}'], TEXT, {"names": [b"\xff"]}),
        (
            ['{"instances": [{"a": 1, "b": [1, 2]}, {"a": 2, "b": [3, 4]}]}'],
            PAIR,
            {"a": [1, 2], "b": [[1, 2], [3, 4]]},
        ),
        (['{"signature_name": "s", "instances": ["u", "v"]}'], TEXT, {"names": ["u", "v"]}),
        (['{"inputs": ["u"]}'], TEXT, {"names": ["u"]}),
        (['{"inputs": {"a": [1]}}'], PAIR, {"a": [1]}),
        (['{"inputs": ["u"]}'], signature(inputs=("string", (-1,))), {"inputs": ["u"]}),
        (["x=[1]"], None, {"x": [1]}),
    ],
)
def test_what_is_typed(arguments: list[str], of: Signature | None, expected: dict[str, Any]) -> None:
    """Names, JSON, bodies of REST requests; text for strings; a single row gets its batch axis."""
    assert read_inputs(arguments, of) == expected


def test_files(tmp_path: Path) -> None:
    """.npy is one array, .npz and .json are several, and either can be one input's."""
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.save(tmp_path / "b.npy", array)
    np.savez(tmp_path / "all.npz", a=array[:, 0], b=array)
    (tmp_path / "a.json").write_text("[1, 2, 3]")
    found = read_inputs([f"@{tmp_path}/all.npz", f"a=@{tmp_path}/a.json"], PAIR)
    assert found["a"] == [1, 2, 3]
    np.testing.assert_array_equal(found["b"], array)
    for text in (f"b=@{tmp_path}/b.npy", f"b=@{tmp_path}/all.npz"):
        np.testing.assert_array_equal(read_inputs([text], PAIR)["b"], array)
    row = read_inputs([f"b=@{tmp_path}/b.npy"], signature(b=("float", (-1, 3, 2))))["b"]
    assert row.shape == (1, 3, 2)


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON, or numpy's files as they are."""
    held = io.BytesIO()
    np.savez(held, a=np.ones(2, np.float32))
    for data, expected in ((b'{"a": [1, 1]}', [1, 1]), (held.getvalue(), [1, 1])):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        assert list(read_inputs(["-"], PAIR)["a"]) == expected


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["a=[1,"], r"input 'a': '\[1,' is no JSON: .* line 1, column 4", ExitCode.INVALID),
        (["[1]"], r"which input is it\? write NAME=..., the inputs are 'a', 'b'", ExitCode.INVALID),
        (["hello"], "the inputs: 'hello' is no JSON", ExitCode.INVALID),
        (['{"a": {"b64": "?"}}'], "'b64' is no base64", ExitCode.INVALID),
        (['{"instances": [{"a": 1}, {"b": 1}]}'], "different inputs", ExitCode.INVALID),
        (["@"], "@ is followed by", ExitCode.USAGE),
        (["@bad.npy"], "bad.npy: ", ExitCode.FILE),
        (["@pickled.npy"], "pickled.npy: .*allow_pickle", ExitCode.FILE),
        (["a=@two.npz"], "input 'a': two.npz has 'x', 'y'", ExitCode.INVALID),
    ],
)
def test_what_is_wrong_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str, code: ExitCode
) -> None:
    """Every mistake says what and where, and pickles are not loaded."""
    monkeypatch.chdir(tmp_path)
    Path("bad.npy").write_bytes(b"no")
    np.save("pickled.npy", np.array([{}], object), allow_pickle=True)
    np.savez("two.npz", x=np.ones(1), y=np.ones(1))
    with pytest.raises(CommandError, match=message) as caught:
        read_inputs(arguments, PAIR)
    assert caught.value.code == code


def test_generated_inputs() -> None:
    """They have the dtypes and shapes of the signature; the same seed gives the same values."""
    of = signature(
        f=("float", (-1, 3)), i=("int64", (-1,)), s=("string", (-1,)), b=("bool", (2,)), h=("half", (-1, -1))
    )
    zeros = generate(of, "zeros", batch=4)
    assert {name: array.shape for name, array in zeros.items()} == {
        "f": (4, 3), "i": (4,), "s": (4,), "b": (2,), "h": (4, 1)
    }  # fmt: skip
    assert not any(array.any() for array in zeros.values())
    first, second = (generate(of, "random", batch=4, seed=5) for _ in range(2))
    other = generate(of, "random", batch=4, seed=6)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
        assert array.dtype == zeros[name].dtype
        of.prepare({**zeros, name: array})
    assert (first["f"] != other["f"]).any()
    assert ((first["f"] >= 0) & (first["f"] < 1)).all()
    assert set(first["i"].tolist()) <= set(range(10))
    assert all(len(text) == 8 for text in first["s"])
    shaped = generate(of, "random", shapes=parse_shapes(["h=2,5", "f=1,3"]))
    assert (shaped["h"].shape, shaped["f"].shape) == ((2, 5), (1, 3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "is no shape"),
        ("x=a", "is no shape"),
        ("x=-1", "is no shape"),
        ("q=1", "no such input"),
        ("f=2,4", "does not fit"),
    ],
)
def test_shapes_that_are_none(text: str, message: str) -> None:
    """A shape is refused if it cannot be read, is for no input, or does not fit its spec."""
    with pytest.raises(CommandError, match=message):
        generate(signature(f=("float", (-1, 3))), "zeros", shapes=parse_shapes([text]))


def test_saving(tmp_path: Path) -> None:
    """Arrays come back as they were, an output called "file" too; strings as fixed-width bytes."""
    arrays = {"file": np.arange(3), "names": np.array([b"a", b"bcd"], object)}
    save_arrays(str(tmp_path / "all.npz"), arrays)
    with np.load(tmp_path / "all.npz", allow_pickle=False) as found:
        np.testing.assert_array_equal(found["file"], arrays["file"])
        assert found["names"].tolist() == [b"a", b"bcd"]
    save_arrays(str(tmp_path / "one.npy"), {"x": np.ones((2, 2), np.float16)})
    assert np.load(tmp_path / "one.npy").dtype == np.float16
    with pytest.raises(CommandError, match=r"2 outputs \(file, names\)"):
        save_arrays(str(tmp_path / "two.npy"), arrays)
    with pytest.raises(CommandError, match="NUL"):
        save_arrays(str(tmp_path / "nul.npz"), {"x": np.array([b"a\0"], object)})
    with pytest.raises(CommandError, match=r"\.npy, \.npz or \.json"):
        save_arrays(str(tmp_path / "x.csv"), arrays)
    assert sorted(os.listdir(tmp_path)) == ["all.npz", "one.npy"]


def test_a_file_is_replaced_whole_or_not(tmp_path: Path) -> None:
    """When writing fails, the old file stays and nothing else is left."""
    path = tmp_path / "x.npy"
    path.write_bytes(b"old")

    def fail(file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(str(path), fail)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.npy"]
