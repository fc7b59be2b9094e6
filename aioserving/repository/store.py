"""What versions a blob store has, and their bytes.

    store = Store.open("s3://bucket/models")
    for version in await store.versions("mnist"):
        print(version.version, version.fingerprint)

A model is a folder of the store's root, a version what the model server takes for one: a folder below it
whose name is an integer, with `saved_model.pb` in it; or one archive, ``7.tar``, ``7.tar.gz`` or ``7.zip``.

When a version is complete
    Stores have no notion of a whole upload: files appear one by one. A version counts once it has its
    SavedModel, every shard of its variables that the names of the others tell of, and one of these:
    a manifest (``SHA256SUMS``, as ``sha256sum`` writes it) all of whose files are there; or two listings,
    `settle` seconds apart, that are equal; or no change within the last minute. So whoever uploads the
    manifest last is never misunderstood; without it, an upload that rests for longer than `settle` may be
    taken for whole, which the fetch then finds by what the SavedModel itself says that it needs.

What a listing costs
    One listing a model, with one request a thousand files; what did not change since the last one is not
    looked at again. `listings` asks for many models, and takes one listing of everything where that is
    fewer requests. Web servers have no such listings: there a version that was complete once is not looked
    into again until it is fetched.

Credentials that have run out are replaced once a call: the filesystem is opened anew, with what
`storage_options` gives then. What to do about a store that does not answer is left to the caller, and
bringing versions to disk to `fetch`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

from aioserving.repository.backends import Backend, Entry, PartSizes, Put, Sink, open_backend, public_url
from aioserving.repository.errors import (
    CorruptVersionError,
    IncompleteVersionError,
    InvalidNameError,
    LimitExceededError,
    NotInStoreError,
    StoreAccessError,
)
from aioserving.repository.names import (
    MANIFEST,
    MODEL_FILES,
    Limits,
    archive_version,
    check_members,
    check_model_name,
    is_model_name,
    version_number,
)

__all__ = ["Store", "StoredFile", "StoredVersion", "missing_shards", "parse_manifest"]

_T = TypeVar("_T")

logger = logging.getLogger("aioserving.repository")

#: Seconds without a change after which a version counts as complete when it is first seen.
_OLD: Final = 60.0
#: Files that a request of a listing gives at most, as S3, GCS and Azure have it.
_PAGE: Final = 1000
#: Manifests read at a time.
_AT_A_TIME: Final = 16


@dataclass(frozen=True)
class StoredFile:
    """One file of a version in the store."""

    #: Its path within the version, "/"-separated.
    path: str
    #: Its size in bytes; None where the store does not tell.
    size: int | None
    #: ``"md5:…"`` or ``"sha256:…"`` with the digest in hex; ``"etag:…"``, which only tells one content
    #: from another; or None.
    checksum: str | None = None
    #: What the listing told, by which a file that changed meanwhile is known.
    entry: Entry = field(default=Entry("", None, ""), repr=False)


@dataclass(frozen=True)
class StoredVersion:
    """One version in the store, complete as far as a listing shows."""

    model: str
    version: int
    #: Whether it is a folder or one archive.
    kind: Literal["directory", "archive"]
    #: Where it is, without secrets.
    url: str
    #: Another one when anything about the files changes.
    fingerprint: str
    #: Bytes of its files as they are in the store (packed, if an archive), or None if unknown.
    size: int | None

    @property
    def name(self) -> str:
        """What its folder or archive is called: ``"7"``, ``"007"``, ``"7.tar.gz"``."""
        return self.url.rpartition("/")[2]


@dataclass
class _Seen:
    """What is remembered of one version between listings."""

    entries: tuple[Entry, ...]
    found: StoredVersion
    #: When these entries were first listed, monotonic.
    since: float
    complete: bool = False
    #: Why it is not offered, if it has to be said.
    problem: str = ""


@dataclass
class _Known:
    """What is remembered of one model."""

    entries: list[Entry] = field(default_factory=list)
    seen: dict[str, _Seen] = field(default_factory=dict)
    offered: list[StoredVersion] = field(default_factory=list)
    unsettled: frozenset[int] = frozenset()


class Store:
    """A blob store of models: ``<root>/<model>/<version>/saved_model.pb``; made by `Store.open`.

    Safe to use from several tasks of one event loop. Also an async context manager.
    """

    def __init__(
        self,
        url: str,
        options: Callable[[], Mapping[str, Any]],
        limits: Limits,
        settle: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._options = options
        self.limits = limits
        self.settle = settle
        self._clock = clock
        self._backend: Backend | None = None
        self._generation = 0
        self._reopening = asyncio.Lock()
        self._known: dict[str, _Known] = {}
        self._foreign = 0  # files of the root that are of no model that was asked for
        self._closed = False

    @classmethod
    def open(
        cls,
        url: str,
        *,
        storage_options: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
        limits: Limits | None = None,
        settle: float = 0.5,
    ) -> Store:
        """The store at `url`; nothing is read yet.

        Args:
            url: an fsspec URL, such as ``s3://bucket/models``, or a path of this machine.
            storage_options: what fsspec's filesystem takes; called anew, if it can be called, when the store
                refuses the credentials that it gave last.
            limits: how large versions may be.
            settle: seconds between two listings that have to be equal before a version without a manifest
                counts as complete.

        Raises:
            ImportError: fsspec, or the package for such URLs, is not installed.
            StoreError: the URL or the options make no sense.
            ValueError: `settle` is negative.
        """
        if not 0 <= settle < math.inf:
            raise ValueError(f"settle must be a number of seconds, at least 0, got {settle!r}")
        if callable(storage_options):
            options = storage_options
        else:
            fixed = dict(storage_options or {})

            def options() -> Mapping[str, Any]:
                return fixed

        made = cls(url, options, limits or Limits(), settle)
        made._backend = open_backend(url, options())
        return made

    @property
    def url(self) -> str:
        """Where it is, without secrets."""
        return public_url(self._url).rstrip("/")

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return f"<Store {self.url}, {len(self._known)} models listed{state}>"

    async def __aenter__(self) -> Store:  # noqa: PYI034 - typing.Self is younger than Python 3.10
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # Listing

    async def models(self) -> list[str]:
        """Names of the models, sorted: one request. Folders that no model can be called are left out.

        Raises:
            StoreError: the store cannot be read.
        """
        names = await self._call(lambda backend: backend.folders())
        return [name for name in names if is_model_name(name)]

    async def versions(self, model: str) -> list[StoredVersion]:
        """Complete versions of a model, lowest first; none for a model that is not there.

        Takes one listing; a second one `settle` seconds later if there is a version whose completeness
        cannot be seen otherwise.

        Raises:
            InvalidNameError: no model can be called that.
            StoreError: the store cannot be read.
        """
        return (await self.listings([model]))[model]

    async def listings(self, models: Iterable[str]) -> dict[str, list[StoredVersion]]:
        """`versions` of many models, at the price of one listing where that is cheaper than one each.

        Raises:
            InvalidNameError: no model can be called one of them.
            StoreError: the store cannot be read.
        """
        names = list(dict.fromkeys(check_model_name(model) for model in models))
        await self._look(names)
        doubtful = [name for name in names if self._known[name].unsettled]
        if doubtful:
            await asyncio.sleep(self.settle)
            await self._look(doubtful)
        return {name: list(self._known[name].offered) for name in names}

    def unsettled(self) -> set[tuple[str, int]]:
        """Model and version of what seemed half uploaded in the last listings."""
        return {(model, version) for model, known in self._known.items() for version in known.unsettled}

    async def files(self, version: StoredVersion, *, fresh: bool = True) -> list[StoredFile]:
        """The files of a version, with the manifest's checksums if there is one.

        For an archive: the archive itself.

        Args:
            version: which one.
            fresh: whether to list it anew. Else the listing that `version` is of is enough, if it is still
                the last one of its model: whoever reads the files is told of those that changed, and has
                to ask afresh afterwards.

        Raises:
            NotInStoreError: it is not there any more.
            IncompleteVersionError: files are missing.
            CorruptVersionError: the manifest makes no sense, or files are none that can be taken.
            LimitExceededError: it is too large.
            StoreError: the store cannot be read.
        """
        model, name = check_model_name(version.model), version.name
        known = self._known[model].seen.get(name) if model in self._known else None
        if not fresh and known is not None and known.complete and known.found == version:
            entries = list(known.entries)
        elif version.kind == "archive":
            found = await self._call(lambda backend: backend.trees([model]))
            entries = [item for item in found[model] if item.path in (name, f"{name}.sha256")]
        else:
            found = await self._call(lambda backend: backend.trees([f"{model}/{name}"]))
            entries = found[f"{model}/{name}"]
        if not entries:
            raise NotInStoreError(f"{version.url} is not there")
        seen = _Seen(tuple(sorted(entries, key=_by_path)), version, self._clock())
        problem = self._problem(seen)
        if problem:
            raise _refusal(problem, seen)(problem, model=model, version=version.version)
        missing = _missing(seen)
        if missing:
            raise IncompleteVersionError(f"{missing} is missing", model=model, version=version.version)
        sums = await self._manifest(seen)
        missing = next((path for path in sums or () if path not in {entry.path for entry in entries}), "")
        if missing:
            raise IncompleteVersionError(
                f"{missing}, which its manifest names, is missing", model=model, version=version.version
            )
        return [
            StoredFile(
                entry.path,
                entry.size,
                f"sha256:{sums[entry.path]}" if sums and entry.path in sums else entry.checksum,
                entry,
            )
            for entry in seen.entries
            if version.kind == "directory" or entry.path == name
        ]

    # Reading

    async def read(
        self, version: StoredVersion, file: StoredFile, start: int, end: int | None, sink: Sink
    ) -> None:
        """Give the bytes of a file from `start` up to `end` (None: its end) to `sink`, in order.

        What comes may end early, where the store's answer does: whoever reads counts.

        Raises:
            ChangedError, NoRangesError: see `backends`.
            StoreError: it cannot be read.
        """
        path = self._path(version, file)
        given = 0

        def counted(pieces: Sequence[bytes | memoryview]) -> None:
            nonlocal given
            sink(pieces)
            given += sum(map(len, pieces))

        # Credentials may run out in the middle; what was given is not given again.
        await self._call(lambda backend: backend.read(path, file.entry, start + given, end, counted))

    @property
    def local(self) -> bool:
        """Whether its files are this machine's, so that `copy` works."""
        return self._backend is not None and self._backend.local

    async def copy(self, version: StoredVersion, file: StoredFile, put: Put) -> None:
        """Let `put` copy a file of a `local` store; see `backends.Backend.copy`.

        Raises:
            ChangedError: see `backends`.
            StoreError: it cannot be read.
        """
        path = self._path(version, file)
        await self._call(lambda backend: backend.copy(path, file.entry, put))

    async def is_md5(self, version: StoredVersion, file: StoredFile) -> bool:
        """Whether an MD5 among the checksums is one of the content, which some encrypted stores give not."""
        path = self._path(version, file)
        return await self._call(lambda backend: backend.is_md5(path, file.entry))

    async def parts(
        self, version: StoredVersion, file: StoredFile, *, every: bool = False
    ) -> PartSizes | None:
        """The sizes of the parts that a file was uploaded in; see `backends.Backend.parts`.

        Raises:
            StoreError: the store cannot be read.
        """
        path = self._path(version, file)
        return await self._call(lambda backend: backend.parts(path, file.entry, every=every))

    async def close(self) -> None:
        """Close connections; a second time does nothing."""
        self._closed = True
        backend, self._backend = self._backend, None
        if backend is not None:
            await backend.close()

    # Inside

    def _path(self, version: StoredVersion, file: StoredFile) -> str:
        folder = version.model if version.kind == "archive" else f"{version.model}/{version.name}"
        return f"{folder}/{file.path}"

    async def _call(self, ask: Callable[[Backend], Awaitable[_T]]) -> _T:
        """Ask the backend; if it is refused access, ask a new one, once."""
        if self._backend is None:
            raise StoreAccessError(f"{self!r} cannot be used any more")
        generation = self._generation
        try:
            return await ask(self._backend)
        except StoreAccessError as error:
            logger.info("%s; opening the store anew", error)
            async with self._reopening:
                if self._generation == generation and not self._closed:
                    # Those that still read from the old one go on with it, or are refused and come here:
                    # so its connections are left for its end to close.
                    self._backend = open_backend(self._url, self._options())
                    self._generation += 1
            if self._backend is None:
                raise
            return await ask(self._backend)

    async def _look(self, names: Sequence[str]) -> None:
        """List models, and decide anew what is complete where anything is another than before."""
        if self._backend is None:
            raise StoreAccessError(f"{self!r} cannot be used any more")
        listed: dict[str, list[Entry]] = {}
        if self._backend.flat and self._together(names):
            everything = (await self._call(lambda backend: backend.trees([""])))[""]
            listed = {name: [] for name in names}
            self._foreign = 0
            for entry in everything:
                model, _, path = entry.path.partition("/")
                if path and model in listed:
                    listed[model].append(entry._replace(path=path))
                else:
                    self._foreign += 1
        else:
            complete = {
                name: {folder for folder, seen in self._known[name].seen.items() if seen.complete}
                for name in names
                if name in self._known
            }
            listed = await self._call(lambda backend: backend.trees(names, complete))
        now = self._clock()
        for name in names:
            known = self._known.setdefault(name, _Known())
            entries = listed[name]
            if entries == known.entries and not known.unsettled:
                continue
            known.entries = entries
            await self._settle(name, known, now)

    def _together(self, names: Sequence[str]) -> bool:
        """Whether one listing of the root takes fewer requests than one of each of these models."""
        if len(names) < 2 or any(name not in self._known for name in names):
            return False
        each = [len(self._known[name].entries) for name in names]
        apart = sum(max(1, math.ceil(count / _PAGE)) for count in each)
        return math.ceil((sum(each) + self._foreign) / _PAGE) < apart

    async def _settle(self, model: str, known: _Known, now: float) -> None:
        by_name: dict[str, list[Entry]] = {}
        for entry in known.entries:
            head, _, rest = entry.path.partition("/")
            if rest or entry.path.endswith("/"):
                if version_number(head) is not None:
                    by_name.setdefault(head, []).append(entry._replace(path=rest))
            else:
                head = head.removesuffix(".sha256")
                if archive_version(head) is not None:
                    by_name.setdefault(head, []).append(entry)
        seen: dict[str, _Seen] = {}
        for name, entries in by_name.items():
            before = known.seen.get(name)
            if (
                before is not None
                and len(entries) == 1
                and entries[0].path in ("", name)
                and entries[0].tag == ""
            ):
                seen[name] = before  # left out of the listing, as it is complete
                continue
            ordered = tuple(sorted(entries, key=_by_path))
            if before is not None and before.entries == ordered:
                seen[name] = before
            else:
                seen[name] = _Seen(ordered, self._describe(model, name, ordered), now)
        known.seen = seen
        room = asyncio.Semaphore(_AT_A_TIME)
        waiting = [item for item in seen.values() if not item.complete]
        await asyncio.gather(*(self._judge(item, now, room) for item in waiting))
        known.offered = _offered(seen)
        there = {version.version for version in known.offered}
        known.unsettled = frozenset(
            item.found.version
            for item in seen.values()
            if not item.complete and not item.problem and item.found.version not in there
        )

    def _describe(self, model: str, name: str, entries: tuple[Entry, ...]) -> StoredVersion:
        archive = archive_version(name)
        number = archive[0] if archive is not None else version_number(name)
        assert number is not None
        digest = hashlib.sha256()
        for entry in entries:
            digest.update(f"{entry.path}\0{entry.size}\0{entry.tag}\0".encode("utf-8", "backslashreplace"))
        sizes = [entry.size for entry in entries if archive is None or entry.path == name]
        return StoredVersion(
            model,
            number,
            "directory" if archive is None else "archive",
            f"{self.url}/{model}/{name}",
            digest.hexdigest()[:32],
            None if None in sizes else sum(size for size in sizes if size is not None),
        )

    async def _judge(self, seen: _Seen, now: float, room: asyncio.Semaphore) -> None:
        """See whether a version is complete."""
        problem = self._problem(seen)
        if problem:
            if problem != seen.problem:
                logger.warning("%s is not offered: %s", seen.found.url, problem)
            seen.problem = problem
            return
        if _missing(seen):
            return
        async with room:
            try:
                sums = await self._manifest(seen)
            except NotInStoreError:
                return
            except CorruptVersionError as error:
                if not seen.problem:
                    logger.warning("%s", error)
                seen.problem = str(error)
                return
        if sums is not None:
            seen.complete = set(sums) <= {entry.path for entry in seen.entries}
            return
        rested = now - seen.since >= self.settle - 0.01  # timers may be early by their resolution
        changed = [entry.modified for entry in seen.entries]
        old = all(when is not None and when < time.time() - _OLD for when in changed)
        seen.complete = rested or old

    def _problem(self, seen: _Seen) -> str:
        """Why a version cannot be taken whatever is still to come, or an empty text."""
        bad = next((entry for entry in seen.entries if entry.problem), None)
        if bad is not None:
            return f"{bad.path!r} is {bad.problem}"
        if len(seen.entries) > self.limits.files:
            return f"it has {len(seen.entries)} files, the limit is {self.limits.files}"
        size = sum(entry.size or 0 for entry in seen.entries)
        if size > self.limits.bytes:
            return f"it has {size} bytes, the limit is {self.limits.bytes}"
        try:
            check_members(entry.path for entry in seen.entries)
        except InvalidNameError as error:
            return str(error)
        return ""

    async def _manifest(self, seen: _Seen) -> dict[str, str] | None:
        """SHA-256 by path, as the version's manifest has it; None without one."""
        version = seen.found
        archive = version.kind == "archive"
        name = f"{version.name}.sha256" if archive else MANIFEST
        entry = next((entry for entry in seen.entries if entry.path == name), None)
        if entry is None:
            return None

        def refuse(why: str) -> CorruptVersionError:
            return CorruptVersionError(f"{name} {why}", model=version.model, version=version.version)

        if (entry.size or 0) > self.limits.manifest_bytes:
            raise refuse(f"has more than {self.limits.manifest_bytes} bytes")
        data = bytearray()

        def sink(pieces: Sequence[bytes | memoryview]) -> None:
            for piece in pieces:
                data.extend(piece)
            if len(data) > self.limits.manifest_bytes:
                raise refuse(f"has more than {self.limits.manifest_bytes} bytes")

        await self.read(version, StoredFile(name, entry.size, entry=entry), 0, None, sink)
        try:
            sums = parse_manifest(bytes(data))
        except ValueError as error:
            raise refuse(f"cannot be read: {error}") from error
        return {version.name: next(iter(sums.values()))} if archive and len(sums) == 1 else sums


def _by_path(entry: Entry) -> str:
    return entry.path


def _refusal(problem: str, seen: _Seen) -> type[CorruptVersionError | LimitExceededError]:
    return LimitExceededError if "the limit is" in problem else CorruptVersionError


def _offered(seen: Mapping[str, _Seen]) -> list[StoredVersion]:
    """One complete version a number: a folder before an archive, then the last name, as the server has it."""
    best: dict[int, tuple[bool, str]] = {}
    for name, item in seen.items():
        if item.complete:
            rank = (item.found.kind == "directory", name)
            number = item.found.version
            other = best.get(number)
            if other is not None:
                logger.debug("version %d is there as %r and as %r", number, name, other[1])
            best[number] = rank if other is None else max(rank, other)
    return [seen[best[number][1]].found for number in sorted(best)]


def _missing(seen: _Seen) -> str:
    """A file that a version cannot be without and that is not there (yet), or an empty text."""
    paths = {entry.path for entry in seen.entries}
    if seen.found.kind == "archive":
        return "" if seen.found.name in paths else seen.found.name
    if not paths.intersection(MODEL_FILES):
        return MODEL_FILES[0]
    return missing_shards(paths)


_SHARD: Final = re.compile(r"(variables/variables)\.data-(\d{5})-of-(\d{5})\Z")


def missing_shards(paths: Iterable[str]) -> str:
    """A file of the variables that is not there though names of others tell of it; or an empty text."""
    there = set(paths)
    for path in sorted(there):
        shard = _SHARD.match(path)
        if shard is not None:
            if f"{shard[1]}.index" not in there:
                return f"{shard[1]}.index"
            for number in range(min(int(shard[3]), 100_000)):
                other = f"{shard[1]}.data-{number:05d}-of-{shard[3]}"
                if other not in there:
                    return other
    if "variables/variables.index" in there and not any(map(_SHARD.match, there)):
        return "variables/variables.data-00000-of-00001"
    return ""


_SUM: Final = re.compile(r"([0-9a-fA-F]{64})(?: [ *](.+))?\Z")


def parse_manifest(data: bytes) -> dict[str, str]:
    """SHA-256 in hex by path, from what ``sha256sum`` wrote; one digest alone has the path ``""``.

    Raises:
        ValueError: it is no such list, or names a file that no version can have, or one twice.
    """
    sums: dict[str, str] = {}
    names: list[str] = []
    for line in data.decode("utf-8").splitlines():
        if not line.strip():
            continue
        found = _SUM.match(line.rstrip())
        if found is None:
            raise ValueError(f"{line[:100]!r} is no SHA-256 and name of a file")
        name = (found[2] or "").removeprefix("./")
        if name or sums:
            names.append(name)
        sums[name] = found[1].lower()
    if not sums:
        raise ValueError("it names no file")
    check_members(names)
    return sums
