"""The state on disk: it comes back as it was, and damage is noticed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aioserving.repository.policy import Label, Policy
from aioserving.repository.state import (
    HISTORY,
    Candidate,
    ModelState,
    Quarantine,
    State,
    StateError,
    StateFile,
)

MODEL = ModelState(
    policy=Policy(labels={"stable": Label()}),
    good=frozenset({1, 2}),
    candidates={3: Candidate(5.0, {"a": 2}, 6.5, "", 6.0, 1)},
    retired=(0,),
    quarantine={4: Quarantine("bad graph", 7.0)},
    urgent=frozenset({3}),
).with_label("stable", 2, 8.0)
STATE = State({"m": MODEL})


def test_there_and_back(tmp_path: Path) -> None:
    """Everything survives; a file that is not there yet is an empty state."""
    file = StateFile(tmp_path / "new" / "state.json")
    assert file.load() == State()
    file.save(STATE)
    assert file.load() == STATE
    assert file.recovered == ""
    assert os.listdir(tmp_path / "new") == ["state.json"]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "zeros", "gone"])
def test_a_damaged_file(tmp_path: Path, damage: str) -> None:
    """Damage is noticed and told, and the copy from before the last change is used and kept."""
    file = StateFile(tmp_path / "state.json")
    file.save(State())
    file.save(STATE)
    file.save(State())
    data = file.path.read_bytes()
    if damage == "gone":
        file.path.unlink()
    else:
        broken = {
            "cut": data[:-10],
            "flip": data.replace(b"models", b"modelz"),
            "empty": b"",
            "zeros": bytes(len(data)),
        }
        file.path.write_bytes(broken[damage])
    again = StateFile(file.path)
    assert again.load() == STATE
    assert "the copy from before the last change is used" in again.recovered
    again.save(STATE)  # which must not put the damaged file in the good copy's place
    again.path.write_bytes(b"{")
    assert StateFile(file.path).load() == STATE


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    """A single changed byte anywhere in the content never becomes another state."""
    file = StateFile(tmp_path / "state.json")
    file.save(STATE)
    data = file.path.read_bytes()
    for place in range(0, len(data), 7):
        changed = bytearray(data)
        changed[place] ^= 4
        file.path.write_bytes(changed)
        with contextlib.suppress(StateError):
            assert StateFile(file.path).load() == STATE


def test_two_damaged_files(tmp_path: Path) -> None:
    """Without a good copy there is a clear error, and nothing is overwritten."""
    file = StateFile(tmp_path / "state.json")
    file.save(STATE)
    file.save(STATE)
    file.path.write_bytes(b"{")
    file.previous.write_bytes(b"[]")
    with pytest.raises(StateError, match="is torn or no JSON.*is no state of a repository.*begin anew"):
        file.load()
    assert file.path.read_bytes() == b"{"


def test_a_newer_format(tmp_path: Path) -> None:
    """A file by a later version is refused, not guessed at."""
    file = StateFile(tmp_path / "state.json")
    file.path.write_text('{"format": 99, "models": {}}')
    with pytest.raises(StateError, match="has format 99; this version of aioserving reads 1"):
        file.load()


def test_killed_while_writing(tmp_path: Path) -> None:
    """A process that is killed while it writes leaves one of the states that it wrote, whole."""
    code = (
        "import sys\n"
        "from aioserving.repository.state import State, StateFile, ModelState\n"
        "file, n = StateFile(sys.argv[1]), 0\n"
        "while True:\n"
        "    file.save(State({str(k): ModelState(good=frozenset({n})) for k in range(20)})); n += 1\n"
    )
    path = tmp_path / "state.json"
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)])
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        process.kill()
        process.wait()
        state = StateFile(path).load()
        assert len({model.good for model in state.models.values()}) == 1
        assert len(state.models) == 20


def test_history() -> None:
    """Label changes are remembered, up to a number."""
    model = ModelState()
    for version in range(HISTORY + 10):
        model = model.with_label("stable", version, float(version))
    assert len(model.history) == HISTORY
    assert model.labels == {"stable": HISTORY + 9}
    assert model.earlier_places("stable")[:3] == (HISTORY + 9, HISTORY + 8, HISTORY + 7)
    assert model.with_label("stable", None, 0.0).labels == {}
