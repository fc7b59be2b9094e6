"""Files that appear whole, and one job at a time: on this machine and on stores that fsspec reaches."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fsspec", reason="needs the extra `batch`")

import fsspec

from aioserving.jobs import storage
from aioserving.jobs.errors import OutputError, OutputLockedError
from aioserving.jobs.storage import Storage, open_storage


@pytest.fixture(params=["local", "memory", "object store"])
def place(
    request: pytest.FixtureRequest, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Storage]:
    """A storage of each kind, empty."""
    monkeypatch.setattr(storage, "LEASE", 0.6)
    if request.param == "local":
        found = open_storage(tmp_path / "out")
    else:
        if request.param == "object store":
            monkeypatch.setattr(storage, "_OBJECT_STORES", frozenset({"memory"}))
        found = open_storage("memory://jobs/out")
    yield found
    found.close()
    memory = fsspec.filesystem("memory")
    if memory.exists("/jobs"):
        memory.rm("/jobs", recursive=True)


def put(place: Storage, name: str, data: bytes) -> None:
    with open(place.scratch(name), "wb") as file:
        file.write(data)
    place.commit(name)


def test_a_file_appears_with_all_of_its_content(place: Storage) -> None:
    """What was written is there under its name, replaces what was there, and nothing else is left."""
    assert place.read("part-00000.bin") is None
    put(place, "part-00000.bin", b"first")
    put(place, "part-00000.bin", b"second")
    place.write("_aioserving/manifest.json", b"{}")
    place.write("_aioserving/bad-rows/part-00000.jsonl", b"bad")
    assert place.read("part-00000.bin") == b"second"
    assert place.names() == [
        "_aioserving/bad-rows/part-00000.jsonl",
        "_aioserving/manifest.json",
        "part-00000.bin",
    ]
    place.remove("part-00000.bin")
    place.remove("part-00000.bin")
    assert place.read("part-00000.bin") is None


def test_what_was_not_committed_does_not_appear(place: Storage) -> None:
    """A part that was being written is not seen under its name, and can be discarded."""
    with open(place.scratch("part-00000.bin"), "wb") as file:
        file.write(b"half of")
    assert "part-00000.bin" not in place.names()
    place.discard("part-00000.bin")
    place.discard("part-00000.bin")
    assert not os.path.exists(place.scratch("part-00000.bin"))
    assert [name for name in place.names() if "part" in name] == []


def test_two_jobs_cannot_have_the_lock(place: Storage) -> None:
    """The second is told who has it; when the first gives it up the next one gets it."""
    first = place.lock()
    with pytest.raises(OutputLockedError, match=f"pid {os.getpid()}") as caught:
        place.lock()
    assert caught.value.holder["pid"] == os.getpid()
    assert "token" not in caught.value.holder
    first.check()
    first.release()
    first.release()
    with place.lock() as second:
        second.check()
        assert "held" in repr(second)
    assert "given up" in repr(second)


HOLD = """
import sys, time
from aioserving.jobs.storage import open_storage
lock = open_storage(sys.argv[1]).lock()
print("held", flush=True)
time.sleep(60)
"""


def test_the_lock_of_a_killed_process_is_free(tmp_path: pathlib.Path) -> None:
    """While its process lives a lock is held; once that is killed, without a word, it is not."""
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(OutputLockedError, match=f"pid {child.pid}"):
            open_storage(tmp_path).lock()
    finally:
        child.kill()
        child.communicate()
    open_storage(tmp_path).lock().release()


def test_a_lease_that_is_not_renewed_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock of a job elsewhere that died is waited for, then taken; a job that lost it may not write."""
    monkeypatch.setattr(storage, "LEASE", 0.3)
    place = open_storage("memory://lease/out")
    try:
        monkeypatch.setattr(storage._LeaseLock, "_renew", lambda self: None)  # as if it had died
        monkeypatch.setattr(storage.socket, "gethostname", lambda: "elsewhere")
        dead = place.lock()
        monkeypatch.undo()
        monkeypatch.setattr(storage, "LEASE", 0.3)
        began = time.monotonic()
        living = place.lock()
        assert time.monotonic() - began > 0.25
        with pytest.raises(OutputLockedError, match=f"pid {os.getpid()}"):
            dead.check()
        dead.release()
        living.check()
        living.release()
        assert place.names() == []
    finally:
        place.close()


def test_a_lease_of_a_dead_process_here_is_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of this machine that is there no more is not waited for."""
    place = open_storage("memory://dead/out")
    try:
        done = subprocess.Popen([sys.executable, "-c", ""])
        done.wait()
        holder = {**storage._holder(), "pid": done.pid, "lease": 60.0, "beat": 7}
        place.write("_aioserving/lock", json.dumps(holder).encode())
        began = time.monotonic()
        lock = place.lock()
        assert time.monotonic() - began < 5
        lock.release()
    finally:
        place.close()


def test_a_lease_is_renewed_while_it_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the holder writes changes several times per lease, so that others see that it lives."""
    monkeypatch.setattr(storage, "LEASE", 0.3)
    place = open_storage("memory://renewed/out")
    try:
        with place.lock():
            seen = set()
            end = time.monotonic() + 10
            while len(seen) < 3 and time.monotonic() < end:
                seen.add(place.read("_aioserving/lock"))
                threading.Event().wait(0.02)
            assert len(seen) >= 3
    finally:
        place.close()


def test_an_output_that_is_a_file_is_refused(tmp_path: pathlib.Path) -> None:
    """The output of a job is a folder; a file of that name is not touched."""
    (tmp_path / "out.parquet").write_bytes(b"precious")
    with pytest.raises(OutputError, match="is a file"):
        open_storage(tmp_path / "out.parquet")
    assert (tmp_path / "out.parquet").read_bytes() == b"precious"


def test_a_folder_that_cannot_be_made_is_told(tmp_path: pathlib.Path) -> None:
    """Where the folder cannot be, the error says so in one line."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be made"):
        open_storage(tmp_path / "file" / "out")


def test_a_failed_write_leaves_what_was_there(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the disk refuses, the old content stays, and no scratch file is left behind."""
    place = open_storage(tmp_path)
    place.write("_aioserving/manifest.json", b"old")

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        place.write("_aioserving/manifest.json", b"new")
    assert place.read("_aioserving/manifest.json") == b"old"
    assert place.names() == ["_aioserving/manifest.json"]
    assert "_LocalStorage" in repr(place)
