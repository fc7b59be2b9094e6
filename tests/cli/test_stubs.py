"""`aioserving stubs`: what it writes, and when it says that a file does not fit any more."""

from __future__ import annotations

import ast
import os
import stat
from pathlib import Path

from .conftest import Run


def test_to_standard_output(on: Run) -> None:
    """Without a file, the module is standard output, and nothing else is."""
    found = on("stubs", "digits", "many", "--blocking")
    assert (found.code, found.err) == (0, "")
    names = {node.name for node in ast.parse(found.out).body if isinstance(node, ast.ClassDef)}
    assert {"Digits", "BlockingDigits", "Many", "BlockingMany", "ManyStringsResult"} <= names
    assert "aioserving stubs digits many --blocking\n" in found.out
    assert on("stubs", "digits", "--json").json["source"] == on("stubs", "digits").out


def test_file_and_check(on: Run, tmp_path: Path) -> None:
    """A file is written whole, left alone when it fits, and told to differ with a diff and exit code 1."""
    path = tmp_path / "digits_model.py"
    command = ("stubs", "digits", "--output", str(path))
    assert on(*command, "--check").code == 1
    assert not path.exists()
    found = on(*command)
    assert (found.code, found.out, found.err) == (0, "", f"{path}: written\n")
    text = path.read_text()
    before = path.stat().st_mtime_ns
    assert on(*command).err == f"{path}: up to date\n"
    assert on(*command, "--check").code == 0
    assert path.stat().st_mtime_ns == before
    path.write_text(text.replace("images", "pictures"))
    found = on(*command, "--check")
    assert found.code == 1
    assert "-        pictures: npt.NDArray[np.float32] | Floats," in found.out
    assert "+        images: npt.NDArray[np.float32] | Floats," in found.out
    assert "does not fit the signatures any more" in found.err
    assert len(found.err.splitlines()) == 1
    assert "aioserving stubs digits --output" in found.err
    assert on(*command, "--check", "--json").json["changed"] is True
    assert "pictures" in path.read_text()
    assert on(*command).code == 0
    assert path.read_text() == text
    assert os.listdir(tmp_path) == sorted(["digits_model.py", "here", "home"], key=os.listdir(tmp_path).index)


def test_mode_of_the_file(on: Run, tmp_path: Path) -> None:
    """A file that is written anew keeps its permissions; a new one has the usual."""
    path = tmp_path / "m.py"
    on("stubs", "digits", "-o", str(path))
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    path.write_text("")
    path.chmod(0o640)
    on("stubs", "digits", "-o", str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_what_cannot_be_done(on: Run, run: Run, tmp_path: Path) -> None:
    """Wrong usage, an unknown model, a folder that is not there: one line, and a code that says which."""
    assert on("stubs", "nobody").code == 5
    assert on("stubs").code == 2
    assert on("stubs", "digits", "--check").code == 2
    assert on("stubs", "digits", "--version", "1", "--label", "x").code == 2
    assert on("stubs", "digits", "-o", str(tmp_path / "no" / "m.py")).code == 11
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert on("stubs", "digits", "-o", str(tmp_path / "binary")).code == 11
    assert run("stubs", "digits", "-t", "127.0.0.1:1").code == 3


def test_one_version(on: Run) -> None:
    """Another version can be asked for, which the header then says."""
    assert "aioserving stubs digits --version 1\n" in on("stubs", "digits", "--version", "1").out
    assert on("stubs", "digits", "--version", "9").code == 5
