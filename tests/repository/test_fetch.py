"""Fetching: whatever the store, the network, the disk and the caller do, a version is whole or not there."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import json
import os
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fsspec", reason="needs the extra `repository`")

from aioserving.repository import (
    CorruptVersionError,
    Disk,
    Fetcher,
    IncompleteVersionError,
    NoRoomError,
    NotInStoreError,
    Store,
    StoreUnavailableError,
    UnsafeArchiveError,
    VersionChangedError,
)
from aioserving.repository import fetch as fetch_module
from aioserving.repository.fetch import Journal
from aioserving.repository.store import StoredFile, StoredVersion
from aioserving.testing.rules import version_number
from tests.repository.stores import (
    DATA,
    INDEX,
    Blobs,
    contents,
    manifest_of,
    version_files,
    web,
    write_version,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "disk")


@pytest.fixture
async def store(root: Path) -> AsyncIterator[Store]:
    async with Store.open(str(root), settle=0.0) as store:
        yield store


@pytest.fixture
def blobs() -> Iterator[Blobs]:
    pytest.importorskip("aiohttp", reason="fsspec's web filesystem needs aiohttp")
    blobs = Blobs()
    with web(blobs):
        yield blobs


async def only(store: Store, model: str = "m") -> StoredVersion:
    (version,) = await store.versions(model)
    return version


def leftovers(disk: Disk) -> list[Path]:
    return [path for path in disk.private.rglob("*") if path.is_file() and "records" not in path.parts]


# ----------------------------------------------------------------------------------------- the good case


async def test_a_version_comes_to_disk_as_it_is(root: Path, store: Store, disk: Disk) -> None:
    """All files are there, byte for byte, nothing else, and nothing is left of the way there."""
    files = version_files(1, 300_000)
    write_version(root / "m" / "007", files, manifest=True)
    async with Fetcher(store, disk, chunk_bytes=1 << 16) as fetcher:
        path = await fetcher.fetch(await only(store))
    assert path == disk.base / "m" / "7"
    assert contents(path) == {**files, "SHA256SUMS": manifest_of(files)}
    assert leftovers(disk) == []
    assert list(disk.versions()["m"]) == [7]


async def test_progress_is_told_to_its_end(root: Path, store: Store, disk: Disk) -> None:
    """Progress never goes back, ends with everything done, and the same fetch then gives its result."""
    write_version(root / "m" / "1", version_files(1, 5_000_000))
    async with Fetcher(store, disk, chunk_bytes=1 << 16) as fetcher:
        fetch = fetcher.fetch(await only(store))
        told = [progress async for progress in fetch]
        assert (await fetch).name == "1"
        assert fetch.done()
    done = [progress.bytes_done for progress in told]
    assert done == sorted(done)
    last = told[-1]
    assert (last.state, last.bytes_done, last.files_done) == ("done", last.bytes_total, last.files_total)
    assert {"fetching", "verifying"} <= {progress.state for progress in told}


async def test_servers_never_see_half_a_version(
    root: Path, store: Store, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the rename nothing below the base that is being written has a name that a server scans."""
    write_version(root / "m" / "1", version_files(1, 1_000_000))
    seen: list[set[str]] = []
    copy = fetch_module._kernel_copy

    def spy(*arguments: int) -> int:
        seen.append({path.name for path in (disk.base / "m").glob("*")})
        return copy(*arguments)

    monkeypatch.setattr(fetch_module, "_kernel_copy", spy)
    async with Fetcher(store, disk) as fetcher:
        await fetcher.fetch(await only(store))
    assert seen
    assert not any(seen)
    assert [name for name in os.listdir(disk.base) if version_number(name) is not None] == []


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="only /proc tells the names of open files")
async def test_what_is_published_was_synced_first(
    root: Path, store: Store, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file and every folder of a version is synced before the rename, and the model's folder after."""
    write_version(root / "m" / "1", version_files(1))
    events: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def name(descriptor: int) -> str:
        return os.readlink(f"/proc/self/fd/{descriptor}")

    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(("sync", name(fd))), fsync(fd))[1])
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append(("rename", str(b))), rename(a, b))[1])
    version = await only(store)
    async with Fetcher(store, disk) as fetcher:
        path = await fetcher.fetch(version)
    at = events.index(("rename", str(path)))
    staging = str(disk.staging("m", 1) / "files")
    before = {what for kind, what in events[:at] if kind == "sync"}
    assert {staging, f"{staging}/variables", *(f"{staging}/{file}" for file in version_files(1))} <= before
    assert ("sync", str(path.parent)) in events[at:]


async def test_what_is_on_disk_is_not_fetched_again(root: Path, store: Store, disk: Disk) -> None:
    """A version that is there is the answer at once; with other contents in the store it is refused."""
    write_version(root / "m" / "1", version_files(1))
    version = await only(store)
    async with Fetcher(store, disk) as fetcher:
        first = await fetcher.fetch(version)
        at = first.stat().st_mtime_ns
        assert await fetcher.fetch(version) == first
        assert first.stat().st_mtime_ns == at
        write_version(root / "m" / "1", version_files(2, 2000))
        with pytest.raises(VersionChangedError, match="a number means one content"):
            await fetcher.fetch(await only(store))
    assert contents(first) == version_files(1)


@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
async def test_archives_are_unpacked(root: Path, store: Store, disk: Disk, ending: str) -> None:
    """A single-archive version lies on disk as its files; what was around them in the archive does not."""
    (root / "m").mkdir()
    files = version_files(1, 200_000)
    with tarfile.open(root / "m" / f"3{ending}", "w:gz" if ending.endswith("gz") else "w") as tar:
        for path, data in files.items():
            member = tarfile.TarInfo(f"./{path}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    version = await only(store)
    assert version.kind == "archive"
    async with Fetcher(store, disk) as fetcher:
        path = await fetcher.fetch(version)
    assert contents(path) == files
    assert leftovers(disk) == []


async def test_archives_with_links_are_refused(root: Path, store: Store, disk: Disk) -> None:
    """An archive that tries to link out leaves nothing behind."""
    (root / "m").mkdir()
    with tarfile.open(root / "m" / "3.tar", "w") as tar:
        member = tarfile.TarInfo("variables")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(member)
    async with Fetcher(store, disk) as fetcher:
        with pytest.raises(UnsafeArchiveError, match="link"):
            await fetcher.fetch(await only(store))
    assert leftovers(disk) == []
    assert disk.versions() == {}


# ------------------------------------------------------------------------------------- sharing, stopping


async def test_callers_share_one_fetch(blobs: Blobs, disk: Disk) -> None:
    """Two requests for one version read it once, and both get it."""
    blobs.put("m/1", version_files(1, 100_000))
    async with Store.open(blobs.url, settle=0.0) as store, Fetcher(store, disk) as fetcher:
        version = await only(store)
        blobs.log.clear()
        one, two = await asyncio.gather(fetcher.fetch(version), fetcher.fetch(version))
    assert one == two
    assert len([1 for kind, path, _ in blobs.log if (kind, path) == ("GET", f"m/1/{DATA}")]) == 1


async def test_one_callers_cancel_leaves_the_others(blobs: Blobs, disk: Disk) -> None:
    """Cancelling one of two does not stop the fetch; the other's cancel does, and the next goes on."""
    blobs.put("m/1", version_files(1, 1 << 20))
    blobs.hang[f"m/1/{DATA}"] = 2
    async with Store.open(blobs.url, settle=0.0) as store:
        version = await only(store)
        async with Fetcher(store, disk, chunk_bytes=1 << 16, stall_timeout=2.0) as fetcher:
            first, second = fetcher.fetch(version), fetcher.fetch(version)
            impatient = asyncio.ensure_future(_await(first))
            async for progress in second:
                if progress.bytes_done > 1 << 18:
                    break
            impatient.cancel()
            with pytest.raises(asyncio.CancelledError):
                await impatient
            assert first.done()
            assert not second.done()
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            await asyncio.wait({second._job.task})
            assert second._job.task.cancelled()
            assert disk.versions() == {}
            third = fetcher.fetch(version)
            blobs.go_on.set()
            path = await third
            assert third.progress.bytes_resumed > 1 << 18
    assert contents(path) == version_files(1, 1 << 20)


async def test_joining_a_fetch_that_stops_begins_another(blobs: Blobs, disk: Disk) -> None:
    """Whoever comes while the last share's cancel is under way gets a fetch of his own after it."""
    blobs.put("m/1", version_files(1, 1 << 20))
    blobs.hang[f"m/1/{DATA}"] = 1
    async with Store.open(blobs.url, settle=0.0) as store, Fetcher(store, disk, stall_timeout=2.0) as fetcher:
        version = await only(store)
        first = fetcher.fetch(version)
        async for progress in first:
            if progress.bytes_done > 1 << 18:
                break
        first.cancel()
        path = await fetcher.fetch(version)
    assert contents(path) == version_files(1, 1 << 20)


async def test_closing_stops_what_is_under_way(blobs: Blobs, disk: Disk) -> None:
    """After `aclose` nothing runs and nothing is begun; waiting callers are cancelled."""
    blobs.put("m/1", version_files(1, 1 << 20))
    blobs.hang[f"m/1/{DATA}"] = 1
    async with Store.open(blobs.url, settle=0.0) as store:
        fetcher = Fetcher(store, disk)
        version = await only(store)
        waiting = asyncio.ensure_future(_await(fetcher.fetch(version)))
        await asyncio.sleep(0.05)
        await fetcher.aclose()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(RuntimeError, match="closed"):
            fetcher.fetch(version)


async def _await(fetch: Any) -> Path:
    path: Path = await fetch
    return path


# ------------------------------------------------------------------------------------------- bad stores


async def test_answers_that_break_off_are_taken_up(blobs: Blobs, disk: Disk) -> None:
    """After a truncated answer the rest is asked for, not the whole."""
    files = version_files(1, 1 << 20)
    blobs.put("m/1", files)
    blobs.truncate[f"m/1/{DATA}"] = 3
    async with Store.open(blobs.url, settle=0.0) as store, Fetcher(store, disk) as fetcher:
        version = await only(store)
        blobs.sent = 0
        path = await fetcher.fetch(version)
    assert contents(path) == files
    assert blobs.sent < 1.2 * sum(map(len, files.values()))
    assert any(asked for kind, _, asked in blobs.log)


async def test_stores_without_ranges_are_read_from_the_beginning(blobs: Blobs, disk: Disk) -> None:
    """A server that knows no ranges, and breaks off, is read again from the start."""
    files = version_files(1, 1 << 20)
    blobs.put("m/1", files)
    blobs.ranges = False
    blobs.truncate[f"m/1/{DATA}"] = 2
    async with Store.open(blobs.url, settle=0.0) as store, Fetcher(store, disk) as fetcher:
        path = await fetcher.fetch(await only(store))
    assert contents(path) == files


async def test_answers_that_stop_are_taken_up(blobs: Blobs, disk: Disk) -> None:
    """A blob that stalls is asked for anew after the stall timeout, from where it was."""
    files = version_files(1, 1 << 20)
    blobs.put("m/1", files)
    blobs.hang[f"m/1/{DATA}"] = 1
    async with (
        Store.open(blobs.url, settle=0.0) as store,
        Fetcher(store, disk, stall_timeout=0.3) as fetcher,
    ):
        path = await fetcher.fetch(await only(store))
    assert contents(path) == files


async def test_slow_blobs_are_waited_for(blobs: Blobs, disk: Disk) -> None:
    """A blob that trickles for longer than the stall timeout in all is no stalled one."""
    files = version_files(1, 1 << 19)
    blobs.put("m/1", files)
    blobs.delay[f"m/1/{DATA}"] = 0.1
    async with (
        Store.open(blobs.url, settle=0.0) as store,
        Fetcher(store, disk, stall_timeout=0.5, retries=0) as fetcher,
    ):
        path = await fetcher.fetch(await only(store))
    assert contents(path) == files


async def test_a_store_that_always_breaks_off_is_given_up(blobs: Blobs, disk: Disk) -> None:
    """A blob of which nothing comes fails after the retries, as a failure of the store."""
    blobs.put("m/1", {**version_files(1), DATA: b"x"})
    blobs.truncate[f"m/1/{DATA}"] = 1000
    async with Store.open(blobs.url, settle=0.0) as store, Fetcher(store, disk, retries=1) as fetcher:
        with pytest.raises(StoreUnavailableError):
            await fetcher.fetch(await only(store))
    assert disk.versions() == {}


async def test_flipped_bits_are_found_and_read_again(blobs: Blobs, disk: Disk) -> None:
    """A file that is not what the manifest says is read once more, and then right."""
    files = version_files(1, 100_000)
    blobs.put("m/1", {**files, "SHA256SUMS": manifest_of(files)})
    blobs.flip[f"m/1/{DATA}"] = 1
    async with Store.open(blobs.url, settle=0.0) as store, Fetcher(store, disk) as fetcher:
        path = await fetcher.fetch(await only(store))
    assert contents(path)[DATA] == files[DATA]


@pytest.mark.parametrize("times", [1, 1000])
async def test_a_wrong_bit_in_one_stripe_of_a_large_file(
    blobs: Blobs, disk: Disk, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Only that file is read again; if it stays wrong the error names it, and servers see nothing."""
    monkeypatch.setattr(fetch_module, "_STRIPE", 3 << 20)
    files = version_files(1, 11_000_000)
    blobs.put("m/1", {**files, "SHA256SUMS": manifest_of(files)})
    blobs.flip_at[f"m/1/{DATA}"] = (7_000_000, times)
    async with (
        Store.open(blobs.url, settle=0.0) as store,
        Fetcher(store, disk, chunk_bytes=1 << 20) as fetcher,
    ):
        version = await only(store)
        blobs.log.clear()
        fetch = fetcher.fetch(version)
        if times == 1:
            path = await fetch
            assert contents(path)[DATA] == files[DATA]
        else:
            with pytest.raises(CorruptVersionError, match=f"SHA-256: {DATA} has") as caught:
                await fetch
            assert (caught.value.model, caught.value.version) == ("m", 1)
            assert "version 1 of model 'm'" in str(caught.value)
            assert (disk.versions(), leftovers(disk)) == ({}, [])
            assert not (disk.base / "m").exists()
    gets = [path.removeprefix("m/1/") for kind, path, _ in blobs.log if kind == "GET" and path[-1] != "/"]
    assert gets.count(DATA) == 4 * (2 if times == 1 else 3)
    assert (gets.count("saved_model.pb"), gets.count(INDEX)) == (1, 1)


async def test_flipped_bits_that_stay_are_refused(root: Path, store: Store, disk: Disk) -> None:
    """A file that is wrong in the store itself is refused, and leaves nothing on disk."""
    files = version_files(1, 100_000)
    write_version(root / "m" / "1", files, manifest=True)
    (root / "m" / "1" / DATA).write_bytes(files[DATA][:-1] + b"?")
    async with Fetcher(store, disk) as fetcher:
        with pytest.raises(CorruptVersionError, match="SHA-256"):
            await fetcher.fetch(await only(store))
    assert disk.versions() == {}
    assert leftovers(disk) == []


async def test_a_truncated_saved_model_is_refused(root: Path, store: Store, disk: Disk) -> None:
    """A SavedModel that cannot be read never gets to where servers look."""
    files = version_files(1)
    write_version(root / "m" / "1", {**files, "saved_model.pb": files["saved_model.pb"][:-3]})
    async with Fetcher(store, disk) as fetcher:
        with pytest.raises(CorruptVersionError, match="no SavedModel"):
            await fetcher.fetch(await only(store))
    assert disk.versions() == {}


async def test_a_version_without_its_variables_is_not_taken(root: Path, store: Store, disk: Disk) -> None:
    """Half an upload that looks whole is found by what the SavedModel needs, and fetched when it is there."""
    files = version_files(1)
    write_version(root / "m" / "1", {"saved_model.pb": files["saved_model.pb"]})
    async with Fetcher(store, disk) as fetcher:
        with pytest.raises(IncompleteVersionError, match=INDEX):
            await fetcher.fetch(await only(store))
        assert disk.versions() == {}
        write_version(root / "m" / "1", files)
        path = await fetcher.fetch(await only(store))
    assert contents(path) == files


async def test_blobs_that_vanish_are_told(blobs: Blobs, disk: Disk) -> None:
    """A blob that is listed and cannot be read is no version; a version that is gone says so."""
    blobs.put("m/1", version_files(1))
    blobs.vanish.add(f"m/1/{DATA}")
    async with Store.open(blobs.url, settle=0.0) as store, Fetcher(store, disk) as fetcher:
        version = await only(store)
        with pytest.raises(VersionChangedError):
            await fetcher.fetch(version)
        blobs.files.clear()
        with pytest.raises(NotInStoreError):
            await fetcher.fetch(version)
    assert disk.versions() == {}


async def test_what_a_listing_told_is_not_asked_again(blobs: Blobs, disk: Disk) -> None:
    """A fetch lists the version once, at its end; if it changed since it was found, what it is now comes."""
    blobs.put("m/1", {**version_files(1), "assets/old": b"old"})
    blobs.put("m/2", version_files(2))
    async with Store.open(blobs.url, settle=0.0) as store, Fetcher(store, disk) as fetcher:
        first, second = await store.versions("m")
        blobs.log.clear()
        await fetcher.fetch(second)
        assert [path for _, path, _ in blobs.log].count("m/2/") == 1
        changed = {**version_files(3), "assets/new": b"new"}
        del blobs.files["m/1/assets/old"]
        blobs.put("m/1", changed)
        assert contents(await fetcher.fetch(first)) == changed


async def test_a_listing_that_changes_while_it_is_read(
    root: Path, store: Store, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are replaced or added while a version is read are in what comes to disk."""
    old, new = version_files(1, 100_000), {**version_files(2, 150_000), "assets/words": b"a b c"}
    write_version(root / "m" / "1", old)
    version = await only(store)
    copy = Store.copy
    changed = False

    async def change(self: Store, *arguments: Any) -> None:
        nonlocal changed
        await copy(self, *arguments)
        if not changed:
            changed = True
            write_version(root / "m" / "1", new, age=60)

    monkeypatch.setattr(Store, "copy", change)
    async with Fetcher(store, disk) as fetcher:
        path = await fetcher.fetch(version)
    assert changed
    assert contents(path) == new


async def test_a_version_that_never_rests_is_refused(
    root: Path, store: Store, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that change each time they are read end in an error, not in a mixture."""
    write_version(root / "m" / "1", version_files(1))
    version = await only(store)
    copy = Store.copy
    turn = 0

    async def change(self: Store, *arguments: Any) -> None:
        nonlocal turn
        await copy(self, *arguments)
        turn += 1
        write_version(root / "m" / "1", version_files(turn, 1000 + turn))

    monkeypatch.setattr(Store, "copy", change)
    async with Fetcher(store, disk) as fetcher:
        with pytest.raises(VersionChangedError, match="keep changing"):
            await fetcher.fetch(version)
    assert disk.versions() == {}


# ------------------------------------------------------------------------------------------ room on disk


async def test_the_quota_holds(root: Path, store: Store, tmp_path: Path) -> None:
    """Room is made by deleting what may go, the oldest first, and nothing else; else the fetch is refused."""
    for number in (1, 2, 3):
        write_version(root / "m" / str(number), version_files(number, 100_000))
    disk = Disk(tmp_path / "disk", quota_bytes=250_000)
    one, two, three = await store.versions("m")
    kept = {("m", 1), ("m", 2)}
    async with Fetcher(store, disk, keep=lambda: kept) as fetcher:
        await fetcher.fetch(one)
        await fetcher.fetch(two)
        with pytest.raises(NoRoomError):
            await fetcher.fetch(three)
        assert list(disk.versions()["m"]) == [1, 2]
        kept.discard(("m", 2))
        await fetcher.fetch(three)
        assert list(disk.versions()["m"]) == [1, 3]


async def test_without_a_keep_set_nothing_is_deleted(root: Path, store: Store, tmp_path: Path) -> None:
    """A fetcher that was not told what may go deletes nothing."""
    for number in (1, 2):
        write_version(root / "m" / str(number), version_files(number, 100_000))
    disk = Disk(tmp_path / "disk", quota_bytes=150_000)
    one, two = await store.versions("m")
    async with Fetcher(store, disk) as fetcher:
        await fetcher.fetch(one)
        with pytest.raises(NoRoomError):
            await fetcher.fetch(two)
    assert list(disk.versions()["m"]) == [1]


async def test_a_full_disk_is_told_and_the_fetch_goes_on_later(
    root: Path, store: Store, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No space in the middle of a file is a NoRoomError; with space the rest is fetched, no more."""
    files = version_files(1, 1 << 20)
    write_version(root / "m" / "1", files)
    copy = fetch_module._kernel_copy
    room = [500_000]

    def full(source: int, target: int, at: int, count: int) -> int:
        if at >= room[0]:
            raise OSError(28, "No space left on device")
        return copy(source, target, at, count)

    monkeypatch.setattr(fetch_module, "_kernel_copy", full)
    async with Fetcher(store, disk, chunk_bytes=1 << 16) as fetcher:
        version = await only(store)
        with pytest.raises(NoRoomError, match="full"):
            await fetcher.fetch(version)
        assert disk.versions() == {}
        room[0] = 1 << 30
        fetch = fetcher.fetch(version)
        path = await fetch
        assert fetch.progress.bytes_resumed > 400_000
    assert contents(path) == files


# -------------------------------------------------------------------------------------------- the journal


def test_the_journal_believes_the_disk_only(tmp_path: Path) -> None:
    """Chunks whose bytes are not those that were noted are read again, as after a power cut."""
    listed = [StoredFile("a", 30), StoredFile("b", 10)]
    journal, parts = Journal.open(tmp_path, listed)
    import zlib

    (tmp_path / "files" / "a").write_bytes(b"0123456789" * 3)
    for start in (0, 10, 20):
        journal.add(parts[0], start, start + 10, zlib.crc32(b"0123456789"))
    journal.close()
    with open(tmp_path / "files" / "a", "r+b") as file:
        file.seek(13)
        file.write(b"?")
    with open(tmp_path / "journal", "ab") as file:
        file.write(b"[1, 0, 1")  # a line that was cut off
    journal, parts = Journal.open(tmp_path, listed)
    journal.close()
    assert parts[0].done == {0: 10, 20: 30}
    assert parts[0].gaps(30) == [(10, 20)]
    assert parts[1].gaps(10) == [(0, 10)]


def test_the_journal_forgets_files_that_are_others_now(tmp_path: Path) -> None:
    """A file with another tag is begun anew, and files that are in the version no more are deleted."""
    journal, parts = Journal.open(tmp_path, [StoredFile("a", 4), StoredFile("b", 4)])
    import zlib

    for part in parts:
        part.path.write_bytes(b"aaaa")
        journal.add(part, 0, 4, zlib.crc32(b"aaaa"))
    journal.close()
    changed = StoredFile("a", 4, entry=fetch_module.StoredFile("a", 4).entry._replace(tag="new"))
    journal, parts = Journal.open(tmp_path, [changed])
    journal.close()
    assert parts[0].done == {}
    assert not (tmp_path / "files" / "b").exists()
    assert json.loads((tmp_path / "journal").read_text()) == [["a", 4, "new"]]


def test_checksums_are_those_of_the_files(tmp_path: Path) -> None:
    """MD5 and SHA-256 are compared with the bytes on disk; an ETag is not, as it is no checksum."""
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    for kind, right in (("md5", hashlib.md5(b"abc")), ("sha256", hashlib.sha256(b"abc"))):
        for checksum, fine in ((right.hexdigest(), True), ("0" * 32, False)):
            part = fetch_module._Part(StoredFile("a", 3, f"{kind}:{checksum}"), 0, path, {})
            assert (fetch_module._mismatch(part) == "") is fine
    assert fetch_module._mismatch(fetch_module._Part(StoredFile("a", 3, "etag:x"), 0, path, {})) == ""
    assert "instead of 4" in fetch_module._mismatch(fetch_module._Part(StoredFile("a", 4), 0, path, {}))


async def test_fetchers_refuse_settings_that_make_no_sense(store: Store, disk: Disk) -> None:
    """Numbers that would never fetch anything are refused where they are given, and reprs tell the state."""
    with pytest.raises(ValueError, match="more than 0"):
        Fetcher(store, disk, chunk_bytes=0)
    assert "0 under way" in repr(Fetcher(store, disk))


async def test_large_files_are_hashed_while_they_come(
    blobs: Blobs, disk: Disk, root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file that comes in several stripes, or is copied, the checksum is the whole file's."""
    monkeypatch.setattr(fetch_module, "_STRIPE", 3 << 20)
    files = version_files(1, 11_000_000)
    sums = {**files, "SHA256SUMS": manifest_of(files)}
    blobs.put("m/1", sums)
    async with (
        Store.open(blobs.url, settle=0.0) as served,
        Fetcher(served, disk, chunk_bytes=1 << 20) as fetcher,
    ):
        assert contents(await fetcher.fetch(await only(served))) == sums
    assert len([1 for kind, path, _ in blobs.log if (kind, path) == ("GET", f"m/1/{DATA}")]) == 4
    write_version(root / "n" / "1", files, manifest=True)
    async with Fetcher(store, disk) as fetcher:
        assert contents(await fetcher.fetch(await only(store, "n"))) == sums
    (root / "n" / "1" / DATA).write_bytes(files[DATA][:-1] + bytes([files[DATA][-1] ^ 1]))
    (root / "n" / "1").rename(root / "n" / "2")
    async with Fetcher(store, disk) as fetcher:
        with pytest.raises(CorruptVersionError, match="SHA-256"):
            await fetcher.fetch(await only(store, "n"))


@pytest.mark.parametrize("refused", [("copy_file_range",), ("copy_file_range", "sendfile")])
async def test_filesystems_that_cannot_copy_are_copied_from(
    root: Path, store: Store, disk: Disk, monkeypatch: pytest.MonkeyPatch, refused: tuple[str, ...]
) -> None:
    """Where the kernel refuses one way of copying, the next one gives the same bytes."""
    files = version_files(1, 700_000)
    write_version(root / "m" / "1", files)

    def refuse(*arguments: Any) -> int:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    for name in refused:
        monkeypatch.setattr(os, name, refuse, raising=False)
    async with Fetcher(store, disk, chunk_bytes=1 << 16) as fetcher:
        assert contents(await fetcher.fetch(await only(store))) == files


async def test_a_file_that_is_written_while_it_is_copied_is_copied_again(
    root: Path, store: Store, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change in the middle of a copy is noticed by the file's time, and nothing of the old one is kept."""
    old, new = version_files(1, 400_000), version_files(2, 400_000)
    folder = write_version(root / "m" / "1", old)
    version = await only(store)
    copy = fetch_module._kernel_copy
    changed: list[int] = []

    def change(source: int, target: int, at: int, count: int) -> int:
        if at and not changed:
            changed.append(at)
            write_version(folder, new, age=60)
        return copy(source, target, at, count)

    monkeypatch.setattr(fetch_module, "_kernel_copy", change)
    async with Fetcher(store, disk, chunk_bytes=1 << 16) as fetcher:
        path = await fetcher.fetch(version)
    assert changed
    assert contents(path) == new
