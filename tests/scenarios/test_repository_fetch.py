"""Fetching under what processes and machines do: kills at any point, full disks, bounded memory."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("fsspec", reason="needs the extra `repository`")

from aioserving.repository import AlreadyRunningError, Disk
from aioserving.testing.rules import version_number
from tests.repository.stores import DATA, Blobs, contents, manifest_of, version_files, web, write_version

ROOT = Path(__file__).parents[2]

FETCH = """
import asyncio, resource, sys
from aioserving.repository import Disk, Fetcher, Store, NoRoomError

async def main(url, base, chunk, limit):
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    disk = Disk(base)
    with disk.lock():
        async with Store.open(url, settle=0.0) as store, Fetcher(store, disk, chunk_bytes=chunk) as fetcher:
            (version,) = await store.versions("m")
            print("begin", flush=True)
            fetch = fetcher.fetch(version)
            try:
                await fetch
            except NoRoomError as error:
                print("full", flush=True)
                raise SystemExit(3)
            print("resumed", fetch.progress.bytes_resumed, flush=True)

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
"""

# The same, copying from this machine; killed in the middle of a piece.
KILLED_COPY = (
    """
import errno, os, signal, sys
from aioserving.repository import fetch

def refuse(*arguments):
    raise OSError(errno.EXDEV, "Invalid cross-device link")

def copy_or_die(source, target, at, count):
    global left
    left -= 1
    if not left:
        copy(source, target, at, count // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    return copy(source, target, at, count)

fetch._SYNC = 1 << 18
copy, left = fetch._kernel_copy, int(sys.argv[5])
fetch._kernel_copy = copy_or_die
if sys.argv[6] == "sendfile":
    os.copy_file_range = refuse
"""
    + FETCH
)

MEMORY = """
import asyncio, sys
import fsspec, aiohttp
from aioserving.repository import Disk, Fetcher, Store
import aioserving.repository.archive, aioserving.repository.backends, aioserving.repository.saved_model
from aioserving._proto import message_class

message_class("tensorflow.SavedModel")

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))

async def main(url, base):
    fsspec.filesystem("file"), fsspec.filesystem("http")
    before = peak()
    disk = Disk(base)
    async with Store.open(url, settle=0.0) as store, Fetcher(store, disk) as fetcher:
        (version,) = await store.versions("m")
        await fetcher.fetch(version)
    print(peak() - before, flush=True)

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def assert_whole_or_nothing(base: Path, files: dict[str, bytes]) -> bool:
    """Whether the version is there; if anything is where a server looks, it is all of it."""
    folder = base / "m"
    seen = [
        name for name in (os.listdir(folder) if folder.is_dir() else []) if version_number(name) is not None
    ]
    assert seen in ([], ["1"])
    if seen:
        assert contents(folder / "1") == files
    return bool(seen)


def kill_many(tmp_path: Path, rounds: int, size: int, seed: int) -> None:
    pytest.importorskip("aiohttp", reason="fsspec's web filesystem needs aiohttp")
    chance = random.Random(seed)
    files = version_files(seed, size)
    files["SHA256SUMS"] = manifest_of(files)
    blobs = Blobs()
    blobs.put("m/1", files)
    blobs.delay[f"m/1/{DATA}"] = 0.004
    killed, resumed, versions = 0, 0, 0
    with web(blobs):
        base = tmp_path / "disk0"
        while killed < rounds or not assert_whole_or_nothing(base, files):
            with start(FETCH, blobs.url, base, 1 << 16, 0) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == "begin\n"
                blobs.sent = 0
                if killed < rounds:
                    time.sleep(chance.uniform(0.0, 0.3))
                    process.send_signal(signal.SIGKILL)
                    killed += 1
                rest = process.stdout.read().split()
            if rest:
                resumed = max(resumed, int(rest[1]))
                assert blobs.sent < sum(map(len, files.values())) - int(rest[1]) + (1 << 18)
            if assert_whole_or_nothing(base, files) and killed < rounds:
                versions += 1
                base = tmp_path / f"disk{versions}"
    assert resumed > 0, "the last fetch went on where those before it were killed"


def test_kills_at_any_point_end_in_the_same_bytes(tmp_path: Path) -> None:
    """However often a fetch is killed, servers see nothing or all of it, and what was fetched is kept."""
    kill_many(tmp_path, 4, 4 << 20, 1)


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="the kernel of this system copies nothing")
@pytest.mark.parametrize("way", ["copy_file_range", "sendfile"])
def test_kills_while_the_kernel_copies(tmp_path: Path, way: str) -> None:
    """What a killed copy had synced is kept, the rest is copied again; until then servers see nothing."""
    files = version_files(3, 4 << 20)
    write_version(tmp_path / "store" / "m" / "1", files, manifest=way == "sendfile")
    base, chunk = tmp_path / "disk", 1 << 16
    for pieces in (10, 14, 22):
        with start(KILLED_COPY, tmp_path / "store", base, chunk, 0, pieces, way) as process:
            assert process.stdout is not None
            assert process.stdout.read() == "begin\n"
        assert process.returncode == -signal.SIGKILL
        assert not assert_whole_or_nothing(base, files)
    with start(KILLED_COPY, tmp_path / "store", base, chunk, 0, 0, way) as process:
        assert process.stdout is not None
        said = process.stdout.read().split()
    assert said[:2] == ["begin", "resumed"]
    # Of 46 pieces, those of small files and four that were not synced at each kill may be lost.
    assert (46 - 3 * (4 + 4)) * chunk <= int(said[2]) < 46 * chunk
    if way == "sendfile":
        files["SHA256SUMS"] = manifest_of(files)
    assert assert_whole_or_nothing(base, files)


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_two_hundred_kills(tmp_path: Path) -> None:
    """As above, two hundred times."""
    kill_many(tmp_path, 200, 4 << 20, 2)


def test_a_file_too_large_for_the_disk(tmp_path: Path) -> None:
    """A disk that takes no more (here: no larger file) is told as such, and later the rest is fetched."""
    files = version_files(1, 1 << 20)
    write_version(tmp_path / "store" / "m" / "1", files)
    for limit, code, said in ((600_000, 3, "full"), (0, 0, "resumed")):
        with start(FETCH, tmp_path / "store", tmp_path / "disk", 1 << 16, limit) as process:
            assert process.stdout is not None
            lines = process.stdout.read().split()
        assert (process.returncode, lines[:2]) == (code, ["begin", said])
        assert assert_whole_or_nothing(tmp_path / "disk", files) is (code == 0)


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    """While one process works on a directory another is told which; once that is killed, it is free."""
    script = (
        "import sys, time; from aioserving.repository import Disk; lock = Disk(sys.argv[1]).lock(); "
        "print('locked', flush=True); time.sleep(60)"
    )
    disk = Disk(tmp_path)
    with start(script, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        try:
            with pytest.raises(AlreadyRunningError, match=f"process {process.pid} on") as caught:
                disk.lock()
            assert caught.value.pid == process.pid
        finally:
            process.send_signal(signal.SIGKILL)
    with disk.lock() as lock:
        assert "released" not in repr(lock)


def fetched_in(tmp_path: Path, url: object) -> int:
    """Bytes of memory above what is imported that fetching the only version of ``m`` takes."""
    with start(MEMORY, url, tmp_path / "disk") as process:
        assert process.stdout is not None
        text = process.stdout.read()
    assert process.returncode == 0
    return int(text)


def sparse(tmp_path: Path, size: int) -> Path:
    """A local store with a version of `size` bytes, in two files."""
    folder = write_version(tmp_path / "store" / "m" / "1", version_files())
    for shard in range(2):
        with open(folder / f"variables/variables.data-{shard:05d}-of-00002", "wb") as file:
            file.writelines(
                hashlib.sha256(at.to_bytes(8, "little")).digest() * (1 << 15)
                for at in range(0, size // 2, 1 << 20)
            )
    (folder / DATA).unlink()
    then = time.time() - 3600
    for path in folder.rglob("*"):
        os.utime(path, (then, then))
    return tmp_path / "store"


def digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(path.name.encode())
        with open(path, "rb") as file:
            while data := file.read(1 << 20):
                total.update(data)
    return total.hexdigest()


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")


@needs_proc
@pytest.mark.parametrize("kind", ["local", "web"])
def test_memory_does_not_grow_with_the_version(tmp_path: Path, kind: str) -> None:
    """A version of 256 MB is fetched in far less memory than it has."""
    if kind == "local":
        store = sparse(tmp_path, 256 << 20)
        assert fetched_in(tmp_path, store) < 64 << 20
        assert digest(tmp_path / "disk" / "m" / "1") == digest(store / "m" / "1")
        return
    pytest.importorskip("aiohttp", reason="fsspec's web filesystem needs aiohttp")
    files = version_files(1, 192 << 20)
    blobs = Blobs()
    blobs.put("m/1", files)
    with web(blobs):
        assert fetched_in(tmp_path, blobs.url) < 64 << 20
    assert contents(tmp_path / "disk" / "m" / "1") == files


@needs_proc
@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_two_gigabytes_in_a_hundred_megabytes(tmp_path: Path) -> None:
    """A version of 2 GB is fetched in at most 100 MB above what is imported, and is the same."""
    store = sparse(tmp_path, 2 << 30)
    used = fetched_in(tmp_path, store)
    assert used <= 100_000_000
    assert digest(tmp_path / "disk" / "m" / "1") == digest(store / "m" / "1")
