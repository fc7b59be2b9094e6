"""Versions from a store to disk, verified, so that a model server never sees half of one.

    async with Fetcher(store, disk) as fetcher:
        fetch = fetcher.fetch(version)
        async for progress in fetch:
            print(progress.state, progress.bytes_done)
        folder = await fetch

How a version comes to disk
    Its files are listed, room is made, and they are read a few at a time, large ones in stripes, into
    ``<base>/.aioserving/fetching/<model>/<version>``, where no server looks (`disk` says why). Each chunk
    that was written is noted in a journal with its checksum. A fetch that was killed finds the journal,
    reads those chunks again from disk, keeps the ones that are what the journal says, whatever a power cut
    made of them, and reads the others from the store. Then every file is checked: its size, its MD5 (that of
    the parts of an upload, too) or SHA-256 if the store or the manifest tells one, and the SavedModel
    (`saved_model`); the store is listed once more, and what changed meanwhile is read again. The files and
    folders are synced, and one rename puts the version where servers look.

    A store on this machine is copied by the kernel, file by file. Its bytes are not seen here, and so have
    no checksum of their own in the journal: they are noted once they are synced, every 64 MB and when a copy
    ends for whatever reason but a kill. MD5 and SHA-256 of a large file are computed while it comes, of what
    is there without a gap.

Memory holds a few pieces of a chunk for every read under way, whatever the size of the version.

A version number means one content for ever, to the model server too: a version that is on disk is not
fetched again, and one that is there with other contents is refused. Which versions are fetched, and
what may be deleted to make room (`keep`), is left to the caller.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import logging
import os
import sys
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable, Container, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar

from aioserving.repository import archive, saved_model
from aioserving.repository.backends import ChangedError, NoRangesError, PartSizes
from aioserving.repository.disk import Disk, sync_folder
from aioserving.repository.errors import (
    CorruptVersionError,
    IncompleteVersionError,
    LimitExceededError,
    NoRoomError,
    NotInStoreError,
    RepositoryError,
    StoreUnavailableError,
    UnsafeArchiveError,
    VersionChangedError,
    VersionError,
)
from aioserving.repository.store import Store, StoredFile, StoredVersion

__all__ = ["Fetch", "FetchProgress", "Fetcher"]

_T = TypeVar("_T")

State: TypeAlias = Literal["waiting", "listing", "fetching", "verifying", "unpacking", "done"]

logger = logging.getLogger("aioserving.repository")

#: Bytes of a file that are read as one stream.
_STRIPE: Final = 128 << 20
#: Bytes that the kernel copies at a time, and those after which they are synced and noted.
_COPY: Final = 8 << 20
_SYNC: Final = 64 << 20
#: Bytes of a file that is hashed while it comes, and that are hashed at a time.
_LARGE: Final = 8 << 20
_HASHED: Final = 32 << 20
#: Seconds between two notices of progress.
_OFTEN: Final = 0.05
#: How often a version is listed anew because files changed, and a file read anew because it is corrupt.
_ROUNDS: Final = 5
_AGAIN: Final = 2
#: Bytes read from disk at a time, and those that are then hashed, where few visits count for more.
_PIECE: Final = 1 << 18
_DIGESTED: Final = 1 << 20
_NOT_MD5: Final = "another MD5"
_NOT_PARTS: Final = "another ETag"
#: What filesystems and systems say that cannot copy from one to another in this way.
_CANNOT: Final = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY}
)
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True)
class FetchProgress:
    """How far a fetch is."""

    model: str
    version: int
    #: What is being done now; ``"done"`` is the last.
    state: State
    #: Bytes that are on disk, those of an earlier fetch that was killed among them.
    bytes_done: int
    #: None while it is not known.
    bytes_total: int | None
    files_done: int
    files_total: int | None
    #: Bytes that were there from an earlier fetch and did not have to be read from the store again.
    bytes_resumed: int = 0


class Fetch:
    """One caller's share in the fetch of a version; made by `Fetcher.fetch`.

    Awaited, it gives the version's folder. Iterated, it gives `FetchProgress`, the newest there is each
    time, and ends when the fetch does; what that failed with is raised. Whoever is cancelled while he waits
    gives up his share, and so does `cancel`; the fetch stops when nobody has one any more.
    """

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._held = True
        job.shares.add(self)

    @property
    def progress(self) -> FetchProgress:
        """How far it is."""
        return self._job.progress

    def done(self) -> bool:
        """Whether it is over: done, failed, or given up."""
        return not self._held or self._job.task.done()

    def __repr__(self) -> str:
        at = self.progress
        state = at.state if self._held else "given up"
        size = f"{at.bytes_done} of {at.bytes_total} bytes"
        return f"<Fetch of {at.model!r} version {at.version}: {state}, {size}>"

    def __await__(self) -> Generator[Any, None, Path]:
        return self._wait().__await__()

    async def __aiter__(self) -> AsyncIterator[FetchProgress]:
        seen: FetchProgress | None = None
        while True:
            changed = self._job.changed
            if self._job.progress is not seen:
                seen = self._job.progress
                yield seen
            elif self._job.task.done() or not self._held:
                await self._wait()
                return
            else:
                await self._hold(changed.wait())

    def cancel(self) -> None:
        """Give up this share; a second time does nothing."""
        if self._held:
            self._held = False
            self._job.released(self)

    async def _wait(self) -> Path:
        if not self._held:
            raise asyncio.CancelledError("this share of the fetch was given up")
        await self._hold(asyncio.wait({self._job.task}))
        return self._job.task.result()

    async def _hold(self, waiting: Any) -> None:
        try:
            await waiting
        except asyncio.CancelledError:
            self.cancel()
            raise


class Fetcher:
    """Fetches versions from a store to disk. Belongs to one event loop; also an async context manager.

    Args:
        store: where from.
        disk: where to; whoever fetches holds its lock.
        max_concurrent_files: reads from the store at a time, of one version each.
        chunk_bytes: what is noted as done at a time, and so how much of each read a kill costs.
        keep: gives the versions, model and number, that may not be deleted to make room; asked when room
            is short. Not given: all of them.
        stall_timeout: seconds after which a read that brings nothing is begun anew.
        retries: how often a read that fails is begun anew, where it was, before the fetch fails; progress
            in between counts the times from 0 again.

    Raises:
        ValueError: a number makes no sense.
    """

    def __init__(
        self,
        store: Store,
        disk: Disk,
        *,
        max_concurrent_files: int = 8,
        chunk_bytes: int = 8 << 20,
        keep: Callable[[], Container[tuple[str, int]]] | None = None,
        stall_timeout: float = 30.0,
        retries: int = 4,
    ) -> None:
        if max_concurrent_files < 1 or chunk_bytes < 1 or retries < 0 or not stall_timeout > 0:
            raise ValueError(
                "max_concurrent_files, chunk_bytes and stall_timeout must be more than 0, retries at least 0"
            )
        self.store = store
        self.disk = disk
        self.keep = keep
        self.max_concurrent_files = max_concurrent_files
        self.chunk_bytes = chunk_bytes
        self.stall_timeout = stall_timeout
        self.retries = retries
        self._jobs: dict[tuple[str, int], _Job] = {}
        self._closed = False

    def __repr__(self) -> str:
        return f"<Fetcher from {self.store.url} to {self.disk.base}, {len(self._jobs)} under way>"

    async def __aenter__(self) -> Fetcher:  # noqa: PYI034 - typing.Self is younger than Python 3.10
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def fetch(self, version: StoredVersion) -> Fetch:
        """Fetch a version, or join its fetch if that is under way; one that is on disk is done at once.

        It begins now, awaited or not. What it raises, when it is awaited:

        Raises:
            NotInStoreError: the version is not in the store (any more).
            StoreError: the store cannot be read.
            VersionError: what is in the store is incomplete, corrupt, too large, unsafe or keeps changing,
                or the version is on disk with other contents.
            NoRoomError: the disk or its quota is full.
            RuntimeError: the fetcher is closed.
        """
        if self._closed:
            raise RuntimeError(f"{self!r} is closed")
        key = (version.model, version.version)
        job = self._jobs.get(key)
        # A job that is being stopped is left to stop, and the next one waits for that.
        if job is None or job.stopping or job.task.done():
            job = self._jobs[key] = _Job(self, version, after=job)
            job.task.add_done_callback(lambda _, key=key, job=job: self._over(key, job))  # type: ignore[misc]
        return Fetch(job)

    async def aclose(self) -> None:
        """Stop all fetches, and wait until they have stopped; what they have stays for the next one."""
        self._closed = True
        tasks = {job.task for job in self._jobs.values()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _over(self, key: tuple[str, int], job: _Job) -> None:
        if self._jobs.get(key) is job:
            del self._jobs[key]
        if not job.task.cancelled():
            error = job.task.exception()  # which is thereby known, also if nobody waits
            if error is not None:
                logger.info("fetching version %d of %r failed: %s", key[1], key[0], error)
        job.changed.set()


@dataclass
class _Part:
    """One file under way."""

    file: StoredFile
    number: int
    #: Where it is written.
    path: Path
    #: Chunks that are on disk: first byte -> byte after the last.
    done: dict[int, int]
    #: Whether it is read from its beginning in one stream, as the store can do no other.
    whole: bool = False
    #: Why it is not what it should be, once it was read; empty if it is.
    mismatch: str = ""
    #: Its checksum as far as it was computed while it came.
    hashing: _Hashing | None = None
    #: The parts that it was uploaded in, where its checksum is made of theirs.
    sizes: PartSizes | None = None

    @property
    def checksum(self) -> str:
        """What `digest` should come to, in hex; empty if there is nothing to compare with."""
        kind, _, expected = (self.file.checksum or "").partition(":")
        known = kind in ("md5", "sha256") or (kind == "etag" and self.sizes is not None)
        return expected.lower() if known else ""

    def digest(self) -> _Digest:
        """What computes its checksum; there has to be one."""
        kind = (self.file.checksum or "").partition(":")[0]
        if kind != "etag":
            return hashlib.new(kind, usedforsecurity=False)
        assert self.sizes is not None
        return _PartsMD5(self.sizes.sizes)

    def gaps(self, size: int) -> list[tuple[int, int]]:
        """What is still to be read."""
        gaps = []
        at = 0
        for start, end in sorted(self.done.items()):
            if start > at:
                gaps.append((at, start))
            at = max(at, end)
        if at < size:
            gaps.append((at, size))
        return gaps


class _Job:
    """The fetch of one version, whoever waits for it."""

    def __init__(self, fetcher: Fetcher, version: StoredVersion, after: _Job | None) -> None:
        self.fetcher = fetcher
        self.store = fetcher.store
        self.disk = fetcher.disk
        self.version = version
        self.shares: set[Fetch] = set()
        self.stopping = False
        self.changed = asyncio.Event()
        self.progress = FetchProgress(version.model, version.version, "waiting", 0, version.size, 0, None)
        self._progress = self.progress
        self._told = 0.0
        self._room = asyncio.Semaphore(fetcher.max_concurrent_files)
        self.staging = self.disk.staging(version.model, version.version)
        self.files = self.staging / "files"
        self._journal: Journal | None = None
        #: What was wrong with files whose ETags are made of parts, when they were read last.
        self._readings: dict[str, str] = {}
        #: Files that are still to be read, and the listing that begins when there are none.
        self._unread = 0
        self._after: asyncio.Future[list[StoredFile]] | None = None
        self.task = asyncio.ensure_future(self._run(after))

    def released(self, share: Fetch) -> None:
        """A caller gave up."""
        self.shares.discard(share)
        if not self.shares and not self.task.done():
            self.stopping = True
            self.task.cancel()

    def tell(self, *, now: bool = False, **changes: Any) -> None:
        """Note progress; those who wait hear of it now or soon."""
        self._progress = replace(self._progress, **changes)
        moment = time.monotonic()
        if now or moment - self._told >= _OFTEN:
            self._told = moment
            self.progress = self._progress
            changed, self.changed = self.changed, asyncio.Event()
            changed.set()

    def count(self, more: int) -> None:
        """Note bytes that came to disk."""
        self.tell(bytes_done=self._progress.bytes_done + more)

    # The way of a version

    async def _run(self, after: _Job | None) -> Path:
        if after is not None and not after.task.done():
            await asyncio.wait({after.task})
        model, number = self.version.model, self.version.version
        there = (await asyncio.to_thread(self.disk.versions, model)).get(model, {}).get(number)
        if there is not None:
            if there.fingerprint not in (None, self.version.fingerprint):
                raise self._refuse(
                    VersionChangedError,
                    f"the store has other contents than {there.path}; a number means one content: upload "
                    "it under a new one, or delete it from disk first",
                )
            self.tell(now=True, state="done", bytes_done=there.size, bytes_total=there.size)
            return there.path
        self.disk.begin(model, number)
        try:
            path = await self._bring()
        except OSError as error:
            if isinstance(error, RepositoryError):
                raise
            raise _disk_error(error, self.disk) from error
        finally:
            if self._journal is not None:
                self._journal.close()
            self.disk.settled(model, number)
        self.tell(now=True, state="done")
        return path

    async def _bring(self) -> Path:
        try:
            return await self._bring_once_it_rests()
        finally:
            await self._listing_of_no_use()

    async def _bring_once_it_rests(self) -> Path:
        corrupt: dict[str, int] = {}
        before: list[StoredFile] | None = None
        fresh = False  # the listing that showed the version will do, as reads tell what changed since
        for _ in range(_ROUNDS):
            self.tell(now=True, state="listing")
            listed = before if before is not None else await self._listed(fresh=fresh)
            fresh = True
            try:
                parts = await self._read_all(listed)
                self.tell(now=True, state="verifying")
                bad = await self._verify(parts)
                for part, why in bad:
                    corrupt[part.file.path] = corrupt.get(part.file.path, 0) + 1
                    if corrupt[part.file.path] > _AGAIN:
                        await asyncio.to_thread(self._forget)
                        raise self._refuse(CorruptVersionError, why)
                    logger.warning(
                        "version %d of %r: %s; reading it again",
                        self.version.version,
                        self.version.model,
                        why,
                    )
                if bad:
                    before = None
                    continue
            except (ChangedError, NotInStoreError) as error:
                logger.info(
                    "version %d of %r changed while it was read: %s",
                    self.version.version,
                    self.version.model,
                    error,
                )
                before = None
                await asyncio.sleep(0.05)
                continue
            listing, self._after = self._after, None
            before = await (listing or self._listed())
            if [file.entry for file in before] == [file.entry for file in listed]:
                return await self._finish(parts)
        raise self._refuse(VersionChangedError, "its files keep changing while they are read")

    async def _listed(self, *, fresh: bool = True) -> list[StoredFile]:
        """The version's files; whether they are still the same is not asked."""
        found: list[StoredFile] = await self._patiently(lambda: self.store.files(self.version, fresh=fresh))
        return found

    def _was_read(self) -> None:
        """Note that a file was read; after the last one, while that is checked, the store is listed again."""
        self._unread -= 1
        if not self._unread:
            self._after = asyncio.ensure_future(self._listed())

    async def _listing_of_no_use(self) -> None:
        """End the listing after the last file, if nobody took it."""
        listing, self._after = self._after, None
        if listing is not None:
            listing.cancel()
            await asyncio.gather(listing, return_exceptions=True)

    async def _patiently(self, ask: Callable[[], Any]) -> Any:
        """Ask the store, and again if it does not answer."""
        for attempt in range(self.fetcher.retries + 1):
            try:
                return await asyncio.wait_for(ask(), 10 * self.fetcher.stall_timeout)
            except (StoreUnavailableError, asyncio.TimeoutError) as error:
                if attempt == self.fetcher.retries:
                    if isinstance(error, StoreUnavailableError):
                        raise
                    raise StoreUnavailableError(f"{self.store.url} does not answer") from error
                await asyncio.sleep(_pause(attempt))
        raise AssertionError("the last attempt returns or raises")

    async def _read_all(self, listed: list[StoredFile]) -> list[_Part]:
        """Bring all files to the staging folder, whole."""
        total = sum(file.size or 0 for file in listed)
        if self._journal is not None:
            self._journal.close()
        opened = await _in_thread(
            lambda: Journal.open(self.staging, listed), undo=lambda opened: opened[0].close()
        )
        self._journal, parts = opened
        have = sum(end - start for part in parts for start, end in part.done.items())
        self.tell(
            now=True,
            state="fetching",
            bytes_total=total,
            files_total=len(listed),
            bytes_done=have,
            bytes_resumed=have,
            files_done=0,
        )
        keep = self.fetcher.keep
        # What is unpacked beside an archive has at least its size.
        needed = 2 * total if self.version.kind == "archive" else total
        key = (self.version.model, self.version.version)
        await self._listing_of_no_use()
        self._unread = len(parts)
        await self.disk.room_for(needed, keep() if keep is not None else _Everything(), fetching=key)
        # The largest first, so that none of them is under way alone at the end.
        ordered = sorted(parts, key=lambda part: -(part.file.size or 0))
        await _workers(
            [lambda part=part: self._read_file(part) for part in ordered],  # type: ignore[misc]
            self.fetcher.max_concurrent_files,
        )
        return parts

    async def _read_file(self, part: _Part) -> None:
        size = part.file.size
        if (part.file.checksum or "").startswith("etag:"):
            part.sizes = await self._patiently(lambda: self.store.parts(self.version, part.file))
        if self.store.local and size is not None:
            await self._copy_file(part, size)
        else:
            descriptor = await _in_thread(lambda: _open_part(part.path, size), undo=os.close)
            try:
                if size is None:
                    await self._read_unsized(part, descriptor)
                else:
                    await self._hashed(part, descriptor, self._read_sized(part, descriptor, size))
                self._was_read()
                # While other files are still being read, this one is checked and goes to disk.
                part.mismatch = await _in_thread(lambda: _settle(part, descriptor))
            finally:
                os.close(descriptor)
        self.tell(files_done=self._progress.files_done + 1)

    async def _hashed(self, part: _Part, descriptor: int, reading: Coroutine[Any, Any, None]) -> None:
        """Await `reading`, and hash what comes meanwhile, if there is something to compare that with."""
        part.hashing = None
        if not part.checksum or (part.file.size or 0) < _LARGE:
            await reading
            return
        part.hashing = hashing = _Hashing(part.digest(), part.done, asyncio.get_running_loop())
        task = asyncio.ensure_future(hashing.run(descriptor))
        try:
            await reading
        finally:
            # What is left then is hashed by whoever settles the file.
            hashing.ended()
            await asyncio.wait({task})
            await _ended(task)
        task.result()

    async def _read_sized(self, part: _Part, descriptor: int, size: int) -> None:
        gaps = (
            []
            if part.whole
            else [
                (at, min(at + _STRIPE, end))
                for start, end in part.gaps(size)
                for at in range(start, end, _STRIPE)
            ]
        )
        try:
            if len(gaps) == 1:
                await self._read_gap(part, descriptor, *gaps[0])
            else:
                await _workers(
                    [
                        lambda start=start, end=end: self._read_gap(part, descriptor, start, end)  # type: ignore[misc]
                        for start, end in gaps
                    ],
                    max(2, self.fetcher.max_concurrent_files // 2),
                )
        except NoRangesError:
            part.whole = True
        if part.whole:
            part.hashing = None  # it may have seen what is overwritten now
        if part.whole and part.gaps(size):
            await self._read_gap(part, descriptor, 0, size)

    async def _copy_file(self, part: _Part, size: int) -> None:
        """Have the kernel copy what is missing of a file of this machine, check it and sync it."""
        assert self._journal is not None
        copy = _KernelCopy(part, size, self._journal, self.fetcher.chunk_bytes, self.disk, self._counter())

        async def copied() -> None:
            async with self._room:
                failures = 0
                while True:
                    at = copy.at
                    try:
                        await self._watched(lambda: self.store.copy(self.version, part.file, copy), copy)
                        return
                    except StoreUnavailableError as error:
                        failures = 0 if copy.at > at else failures + 1
                        if failures > self.fetcher.retries:
                            raise StoreUnavailableError(f"{error}; tried {failures} times") from error
                        await asyncio.sleep(_pause(failures))

        try:
            if part.checksum and size >= _LARGE:
                copy.settles = False
                await _in_thread(copy.open)
                await self._hashed(part, copy.descriptor, copied())
                self._was_read()
                part.mismatch = await _in_thread(lambda: _settle(part, copy.descriptor))
            else:
                # All in one visit to a thread: for small files, the visits would take longest.
                await copied()
                self._was_read()
        finally:
            copy.close()

    async def _read_unsized(self, part: _Part, descriptor: int) -> None:
        """A file whose size nobody knows: from its beginning to its end."""
        size = await self._read_gap(part, descriptor, 0, None)
        part.file = replace(part.file, size=size)

    async def _read_gap(self, part: _Part, descriptor: int, start: int, end: int | None) -> int:
        """Read a stretch of a file, however often that breaks off; gives where it ended."""
        async with self._room:
            return await self._read_patiently(part, descriptor, start, end)

    async def _read_patiently(self, part: _Part, descriptor: int, start: int, end: int | None) -> int:
        assert self._journal is not None
        limit = self.fetcher.store.limits.bytes
        writer = _ChunkWriter(
            descriptor, part, self._journal, start, end, self.fetcher.chunk_bytes, limit, self.disk
        )
        failures = 0
        count = self._counter()

        def sink(pieces: Sequence[bytes | memoryview]) -> None:
            count(writer.write(pieces))

        while True:
            at = writer.at
            try:
                await self._watched(
                    lambda: self.store.read(self.version, part.file, writer.at, end, sink), writer
                )
                if end is None or writer.at >= end:
                    if writer.unnoted:
                        await asyncio.to_thread(writer.finish)
                    count(0, True)
                    return writer.at
                raise StoreUnavailableError(
                    f"{self.version.url}/{part.file.path} ends after {writer.at} bytes of {part.file.size}"
                )
            except (StoreUnavailableError, NoRangesError) as error:
                again = isinstance(error, NoRangesError) or end is None
                if again and not (part.whole or end is None):
                    raise
                failures = 0 if writer.at > at and not again else failures + 1
                if failures > self.fetcher.retries:
                    raise StoreUnavailableError(f"{error}; tried {failures} times") from error
                if again:
                    writer.restart()
                await asyncio.sleep(_pause(failures))

    def _counter(self) -> Callable[..., None]:
        """What counts bytes from another thread: at once if its second argument is true."""
        loop = asyncio.get_running_loop()
        untold, told = 0, time.monotonic()

        def count(more: int, now: bool = False) -> None:
            nonlocal untold, told
            untold += more
            moment = time.monotonic()
            # Waking the event loop for each piece would cost more than writing it.
            if untold and (now or moment - told >= _OFTEN):
                loop.call_soon_threadsafe(self.count, untold)
                untold, told = 0, moment

        return count

    async def _watched(self, read: Callable[[], Any], writer: _ChunkWriter | _KernelCopy) -> None:
        """Let a read go on for as long as it brings something."""
        task = asyncio.ensure_future(read())
        try:
            while True:
                at = writer.at
                done, _ = await asyncio.wait({task}, timeout=self.fetcher.stall_timeout)
                if done:
                    break
                if writer.at == at:
                    raise StoreUnavailableError(
                        f"{self.version.url} has sent nothing for {self.fetcher.stall_timeout:g} seconds"
                    )
        finally:
            await _ended(task)
        task.result()

    async def _verify(self, parts: list[_Part]) -> list[tuple[_Part, str]]:
        """Files that are not what they should be, and why; these are forgotten."""
        bad: list[tuple[_Part, str]] = []

        async def one(part: _Part) -> None:
            why = part.mismatch
            if (
                why.startswith(_NOT_MD5)
                # Of some encrypted objects S3 gives what only looks like an MD5.
                and not await self._patiently(lambda: self.store.is_md5(self.version, part.file))
            ):
                why = ""
            if why.startswith(_NOT_PARTS):
                why = await self._doubt(part, why)
            if why:
                bad.append((part, why))
                assert self._journal is not None
                await asyncio.to_thread(self._journal.forget, part)

        await _workers([lambda part=part: one(part) for part in parts if part.mismatch], 2)  # type: ignore[misc]
        return bad

    async def _doubt(self, part: _Part, why: str) -> str:
        """Why a file is not taken whose ETag is not made of its parts as usual; empty if it is taken.

        No good file is refused because its store makes such tags in another way: one that comes twice as the
        same bytes is what the store has.
        """
        if part.sizes is None or not part.sizes.told:
            return ""
        sizes = await self._patiently(lambda: self.store.parts(self.version, part.file, every=True))
        if sizes is None or not sizes.told:
            return ""
        if sizes != part.sizes:
            part.sizes = sizes
            why = await _in_thread(lambda: _mismatch(part))
        if why and self._readings.get(part.file.path) == why:
            logger.warning(
                "version %d of %r: %s, and the same when it was read again: its store seems to make ETags in "
                "a way of its own; a manifest would tell whether the file is good",
                self.version.version,
                self.version.model,
                why,
            )
            return ""
        self._readings[part.file.path] = why
        return why

    async def _finish(self, parts: list[_Part]) -> Path:
        """Unpack, look at the SavedModel, and publish."""
        folder = self.files
        paths: dict[str, int] = {part.file.path: part.file.size or 0 for part in parts}
        if self.version.kind == "archive":
            self.tell(now=True, state="unpacking")
            folder = self.staging / "unpacked"
            stopped = threading.Event()
            paths = await _in_thread(
                lambda: self._unpack(parts[0].path, self.staging / "unpacked", stopped), stop=stopped.set
            )
        try:
            await asyncio.to_thread(saved_model.check, folder, paths)
        except saved_model.MissingFileError as error:
            raise self._refuse(IncompleteVersionError, str(error)) from error
        except saved_model.InvalidModelError as error:
            await asyncio.to_thread(self._forget)
            raise self._refuse(CorruptVersionError, str(error)) from error
        # Nobody can stop this in the middle.
        return await _in_thread(lambda: self._publish(folder, paths))

    def _unpack(self, packed: Path, folder: Path, stopped: threading.Event) -> dict[str, int]:
        def check(_: int) -> None:
            if stopped.is_set():
                raise _StoppedError

        if folder.exists():
            self.disk.discard(folder)
        folder.mkdir()
        try:
            return archive.unpack(packed, folder, self.store.limits, check=check)
        except archive.DamagedArchiveError as error:
            self._forget()
            raise self._refuse(CorruptVersionError, str(error)) from error
        except archive.UnsafeMemberError as error:
            self._forget()
            raise self._refuse(UnsafeArchiveError, str(error)) from error
        except archive.OversizeArchiveError as error:
            self._forget()
            raise self._refuse(LimitExceededError, str(error)) from error
        except OSError:
            self.disk.discard(folder)
            raise

    def _publish(self, folder: Path, paths: dict[str, int]) -> Path:
        folders = {folder}
        for path in paths:
            if folder != self.files:  # else it was synced when it was checked
                with open(folder / path, "rb") as file:
                    os.fsync(file.fileno())
            parent = (folder / path).parent
            while parent not in folders:
                folders.add(parent)
                parent = parent.parent
        for parent in sorted(folders, key=lambda item: len(item.parts), reverse=True):
            sync_folder(parent)
        target = self.disk.publish(
            self.version.model,
            self.version.version,
            folder,
            size=sum(paths.values()),
            fingerprint=self.version.fingerprint,
        )
        self._forget()
        return target

    def _forget(self) -> None:
        """Delete what was fetched; blocking."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        self.disk.discard(self.staging)

    def _refuse(self, kind: type[VersionError], why: str) -> VersionError:
        return kind(why, model=self.version.model, version=self.version.version)


class _StoppedError(Exception):
    """Nobody wants what a thread works at any more."""


class _Everything:
    """Contains everything."""

    def __contains__(self, item: object) -> bool:
        return True


async def _in_thread(
    work: Callable[[], _T],
    *,
    stop: Callable[[], None] | None = None,
    undo: Callable[[_T], object] | None = None,
) -> _T:
    """The result of `work` in a thread; whoever is cancelled waits for it to end, lest it goes on alone.

    Args:
        work: what to do.
        stop: called on being cancelled, so that `work` ends early.
        undo: what to do with the result if nobody gets it.
    """
    future = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if stop is not None:
            stop()
        if not future.done():
            await asyncio.wait({future})
        if future.exception() is None and undo is not None:
            undo(future.result())
        raise


async def _ended(task: asyncio.Future[Any]) -> None:
    """Wait for `task` to end, cancelled if it goes on; what it raised is known thereby, if nobody asks."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


def _pause(attempt: int) -> float:
    return float(min(5.0, 0.1 * 2**attempt))


def _disk_error(error: OSError, disk: Disk) -> RepositoryError:
    if error.errno in _FULL:
        return NoRoomError(f"{disk.base} is full: {error}")
    return RepositoryError(f"{disk.base} cannot be written: {error}")


async def _workers(work: Sequence[Callable[[], Any]], at_a_time: int) -> None:
    """Do all of `work`, some at a time; the first failure ends the others, and is waited for."""
    waiting = iter(work)

    async def worker() -> None:
        for item in waiting:
            await item()

    tasks = [asyncio.ensure_future(worker()) for _ in range(min(at_a_time, len(work)))]
    try:
        for task in asyncio.as_completed(tasks):
            await task
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)


# ------------------------------------------------------------------------------------------ on disk


class Journal:
    """What of a version is on disk already: a file of lines, one for each chunk, that a kill cannot spoil.

    The first line says of which files; a version whose files are others begins anew with those that are
    the same. Lines are added after their chunks were written, and may be lost together with them or
    without: what counts is that a chunk on disk has the checksum of its line. A line without one is of
    what was synced before it was added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    def __repr__(self) -> str:
        return f"<Journal {self.path}{'' if self._descriptor >= 0 else ', closed'}>"

    @classmethod
    def open(cls, staging: Path, listed: Sequence[StoredFile]) -> tuple[Journal, list[_Part]]:
        """The journal in `staging`, made or continued, and the files as they are there; blocking.

        Raises:
            OSError: the disk fails.
        """
        files = staging / "files"
        files.mkdir(parents=True, exist_ok=True)
        journal = cls(staging / "journal")
        known = journal._read()
        parts = []
        for number, file in enumerate(listed):
            path = files / file.path
            chunks = known.get((file.path, file.size, file.entry.tag), {})
            good = {} if file.size is None else _intact(path, chunks, file.size)
            parts.append(_Part(file, number, path, {start: end for start, (end, _) in good.items()}))
        wanted = {part.path for part in parts}
        for folder, _, names in os.walk(files):
            for name in names:
                if Path(folder, name) not in wanted:
                    os.unlink(Path(folder, name))
        # Written anew, under another name first: a kill leaves the one or the other.
        new = journal.path.with_suffix(".new")
        with open(new, "w", encoding="utf-8") as text:
            text.write(json.dumps([[file.path, file.size, file.entry.tag] for file in listed]) + "\n")
            for part in parts:
                old = known.get((part.file.path, part.file.size, part.file.entry.tag), {})
                text.writelines(
                    json.dumps([part.number, start, end, old[start][1]]) + "\n"
                    for start, end in part.done.items()
                )
        os.replace(new, journal.path)
        journal._descriptor = os.open(journal.path, os.O_WRONLY | os.O_APPEND)
        return journal, parts

    def add(self, part: _Part, start: int, end: int, crc: int | None) -> None:
        """Note a chunk that was written; from any thread. Without a checksum it must be synced."""
        part.done[start] = end
        if part.hashing is not None:
            part.hashing.arrived(start, end)
        line = json.dumps([part.number, start, end, crc]) + "\n"
        os.write(self._descriptor, line.encode())  # one write, appended: lines stay whole

    def forget(self, part: _Part) -> None:
        """Take back all of a file; blocking."""
        part.done.clear()
        os.write(self._descriptor, (json.dumps([part.number, 0, 0, 0]) + "\n").encode())
        part.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close it; a second time does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _read(self) -> dict[tuple[str, int | None, str], dict[int, tuple[int, int | None]]]:
        """Chunks by file: first byte -> byte after the last, checksum. What cannot be read ends it."""
        found: dict[tuple[str, int | None, str], dict[int, tuple[int, int | None]]] = {}
        try:
            with open(self.path, encoding="utf-8", errors="replace") as text:
                files = [(str(path), size, str(tag)) for path, size, tag in json.loads(text.readline())]
                for line in text:
                    number, start, end, crc = json.loads(line)
                    chunks = found.setdefault(files[number], {})
                    if end > start:
                        chunks[start] = (end, crc)
                    else:
                        chunks.clear()
        except (OSError, ValueError, TypeError, IndexError):
            pass
        return found


def _intact(
    path: Path, chunks: dict[int, tuple[int, int | None]], size: int
) -> dict[int, tuple[int, int | None]]:
    """Those chunks that are on disk as they were written."""
    good: dict[int, tuple[int, int | None]] = {}
    try:
        with open(path, "rb", buffering=0) as file:
            there = os.fstat(file.fileno()).st_size
            for start, (end, crc) in chunks.items():
                if 0 <= start < end <= min(size, there):
                    if crc is None:
                        good[start] = (end, crc)
                        continue
                    file.seek(start)
                    found, left = 0, end - start
                    while left:
                        data = file.read(min(left, _PIECE))
                        if not data:
                            break
                        found = zlib.crc32(data, found)
                        left -= len(data)
                    if not left and found == crc:
                        good[start] = (end, crc)
    except OSError:
        return {}
    return good


class _ChunkWriter:
    """Writes what comes of a stretch of a file, and notes its chunks in the journal."""

    def __init__(
        self,
        descriptor: int,
        part: _Part,
        journal: Journal,
        start: int,
        end: int | None,
        chunk: int,
        limit: int,
        disk: Disk,
    ) -> None:
        self.descriptor = descriptor
        self.part = part
        self.journal = journal
        self.chunk = chunk
        self.limit = limit
        self.disk = disk
        self.begin = start
        self.end = end
        #: How far it is written.
        self.at = start
        self._from = start  # where the current chunk begins
        self._crc = 0

    def write(self, pieces: Sequence[bytes | memoryview]) -> int:
        """Write `pieces` after what was written before; in a thread. Gives the number of bytes."""
        written = 0
        if self.at + sum(map(len, pieces)) > self.limit:
            raise RepositoryError(f"{self.part.file.path} has more than {self.limit} bytes")
        try:
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    room = self._from + self.chunk - self.at
                    count = os.pwrite(self.descriptor, view[:room], self.at)
                    self._crc = zlib.crc32(view[:count], self._crc)
                    self.at += count
                    written += count
                    view = view[count:]
                    if self.at - self._from == self.chunk or self.at == self.end:
                        self._note()
        except OSError as error:
            # As what it is here, lest it be taken for a failure of the store.
            raise _disk_error(error, self.disk) from error
        return written

    @property
    def unnoted(self) -> bool:
        """Whether `finish` has something to do."""
        return self.at > self._from

    def finish(self) -> None:
        """Note the last chunk, which may be a short one, where nobody knew that it is the last."""
        if self.unnoted:
            self._note()

    def restart(self) -> None:
        """Begin anew."""
        self.at = self._from = self.begin
        self._crc = 0
        self.part.done.clear()
        self.part.hashing = None  # it may have seen what is overwritten now

    def _note(self) -> None:
        self.journal.add(self.part, self._from, self.at, self._crc)
        self._from, self._crc = self.at, 0


def _open_part(path: Path, size: int | None) -> int:
    """The file that a part is written to, open, of its full length; blocking."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.ftruncate(descriptor, size or 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class _KernelCopy:
    """Copies what is missing of a file of this machine; called with its descriptor, in a thread."""

    def __init__(
        self, part: _Part, size: int, journal: Journal, chunk: int, disk: Disk, count: Callable[..., None]
    ) -> None:
        self.part = part
        self.size = size
        self.journal = journal
        self.piece = min(chunk, _COPY)
        self.disk = disk
        self.count = count
        self.descriptor = -1
        #: Whether the file is checked and synced in the same visit to a thread.
        self.settles = True
        #: Bytes copied, by which a copy that stalls is known.
        self.at = 0

    def __repr__(self) -> str:
        return f"<_KernelCopy of {self.part.file.path}: {self.at} bytes>"

    def open(self) -> None:
        """Open what is copied to; a second time does nothing."""
        if self.descriptor < 0:
            try:
                self.descriptor = _open_part(self.part.path, self.size)
            except OSError as error:
                raise _disk_error(error, self.disk) from error

    def close(self) -> None:
        """Close it; a second time does nothing."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __call__(self, source: int, stop: threading.Event) -> None:
        self.open()
        gaps = self.part.gaps(self.size)
        for start, end in gaps:
            self._stretch(source, start, end, stop)
        if stop.is_set():
            return
        if self.part.gaps(self.size):
            raise StoreUnavailableError(f"{self.part.file.path} ends before its {self.size} bytes")
        if self.settles:
            try:
                self.part.mismatch = _mismatch(self.part)
                if not gaps:
                    os.fsync(self.descriptor)
            except OSError as error:
                raise _disk_error(error, self.disk) from error

    def _stretch(self, source: int, start: int, end: int, stop: threading.Event) -> None:
        at = noted = start
        try:
            while at < end and not stop.is_set():
                count = _kernel_copy(source, self.descriptor, at, min(self.piece, end - at))
                if not count:
                    return
                if self.part.hashing is not None:
                    self.part.hashing.arrived(at, at + count)
                at += count
                self.at += count
                self.count(count)
                if at - noted >= _SYNC:
                    self._note(noted, at)
                    noted = at
        except OSError as error:
            if error.errno in _FULL:
                raise _disk_error(error, self.disk) from error
            raise
        finally:
            if at > noted:
                self._note(noted, at)
            self.count(0, True)

    def _note(self, start: int, end: int) -> None:
        """Sync what was copied, and note it: in this order, as it has no checksum."""
        try:
            os.fsync(self.descriptor)
            self.journal.add(self.part, start, end, None)
        except OSError as error:
            raise _disk_error(error, self.disk) from error


def _kernel_copy(source: int, target: int, at: int, count: int) -> int:
    """Copy bytes between files, without bringing them here if the system can; gives how many."""
    if sys.platform == "linux":
        try:
            # Which copies nothing at all on filesystems that can share blocks.
            copied = os.copy_file_range(source, target, count, at, at)
            if copied:
                return copied
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
        try:
            os.lseek(target, at, os.SEEK_SET)
            return os.sendfile(target, source, at, count)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
    return os.pwrite(target, os.pread(source, min(count, _PIECE), at), at)


class _Digest(Protocol):
    """What hashlib makes."""

    @property
    def name(self) -> str:
        """Which checksum it is."""
        ...

    def update(self, data: memoryview, /) -> None:
        """Go on with `data`."""
        ...

    def hexdigest(self) -> str:
        """The checksum of all data."""
        ...


class _PartsMD5:
    """The ETag of what was uploaded in parts: the MD5 of the parts' MD5s, and how many there are."""

    name: Final = "etag"

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = tuple(sizes)
        self._digests: list[bytes] = []
        self._begin()

    def __repr__(self) -> str:
        return f"<_PartsMD5, {len(self._digests)} of {len(self._sizes)} parts>"

    def update(self, data: memoryview) -> None:
        """Go on with `data`."""
        while data and len(self._digests) < len(self._sizes):
            now, data = data[: self._left], data[self._left :]
            self._md5.update(now)
            self._left -= len(now)
            if not self._left:
                self._digests.append(self._md5.digest())
                self._begin()

    def hexdigest(self) -> str:
        """The ETag, once all parts were there."""
        digest = hashlib.md5(b"".join(self._digests), usedforsecurity=False)
        return f"{digest.hexdigest()}-{len(self._digests)}"

    def _begin(self) -> None:
        self._md5 = hashlib.md5(usedforsecurity=False)
        number = len(self._digests)
        self._left = self._sizes[number] if number < len(self._sizes) else 0


class _Hashing:
    """The checksum of a file, computed in threads while it comes: of what is there from its beginning on.

    Args:
        digest: what computes it.
        done: what is there already: first byte -> byte after the last.
        loop: the one that `run` is awaited in; not given: only `hash` is used.
    """

    def __init__(
        self,
        digest: _Digest,
        done: Mapping[int, int] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.digest = digest
        #: How much of the file is in the digest.
        self.at = 0
        self._front = 0
        self._there = dict(done or {})
        self._more = asyncio.Event()
        self._loop = loop
        self._ended = False
        self._arrived(0, 0)

    def __repr__(self) -> str:
        return f"<_Hashing {self.digest.name}, {self.at} of {self._front} bytes>"

    def arrived(self, start: int, end: int) -> None:
        """Bytes were written; from any thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._arrived, start, end)

    def ended(self) -> None:
        """Nothing is read any more: `run` ends soon, wherever it is."""
        self._ended = True
        self._more.set()

    async def run(self, descriptor: int) -> None:
        """Hash what comes, until it has `ended`."""
        while not self._ended:
            if self.at < self._front:
                upto = min(self._front, self.at + _HASHED)
                await _in_thread(lambda upto=upto: self.hash(descriptor, upto))  # type: ignore[misc]
            else:
                self._more.clear()
                await self._more.wait()

    def hash(self, descriptor: int, upto: int | None = None) -> None:
        """Hash as far as `upto` or, if that is None, the end of the file; blocking."""
        buffer = memoryview(bytearray(_DIGESTED))
        while upto is None or self.at < upto:
            room = buffer if upto is None else buffer[: upto - self.at]
            count = os.preadv(descriptor, [room], self.at)
            if not count:
                return
            self.digest.update(room[:count])
            self.at += count

    def _arrived(self, start: int, end: int) -> None:
        if end > start:
            self._there[start] = max(end, self._there.get(start, 0))
        for begin, upto in sorted(self._there.items()):
            if begin > self._front:
                break
            self._front = max(self._front, upto)
            del self._there[begin]
        self._more.set()


def _settle(part: _Part, descriptor: int) -> str:
    """Bring a file to disk for good, and say why it is not what it should be; blocking."""
    why = _mismatch(part)
    os.fsync(descriptor)
    return why


def _mismatch(part: _Part) -> str:
    """Why a file on disk is not what it should be, or an empty text; blocking."""
    size = part.path.stat().st_size
    if size != part.file.size:
        return f"{part.file.path} has {size} bytes instead of {part.file.size}"
    expected = part.checksum
    if not expected:
        return ""
    hashing, part.hashing = part.hashing or _Hashing(part.digest()), None
    with open(part.path, "rb", buffering=0) as file:
        hashing.hash(file.fileno())
    found = hashing.digest.hexdigest()
    if found != expected:
        what = {"md5": _NOT_MD5, "etag": _NOT_PARTS}.get(hashing.digest.name, "another SHA-256")
        return f"{what}: {part.file.path} has {found} instead of {expected}"
    return ""
