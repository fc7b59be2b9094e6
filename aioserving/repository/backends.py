"""How each kind of blob store is listed and read: one small class a kind, over fsspec.

`open_backend` gives the right one for a URL. All answer in the same terms: names below the store's root,
`Entry` for what a listing tells of a file, and errors of `aioserving.repository.errors`. What a version is,
what may be cached and when a call is made again is left to `store`.

Object stores list a whole tree with one request a thousand files; S3 is read as a stream, others in ranges.
Folders of this machine are listed and read without fsspec, which would take several times as long. Web
servers are asked for one page a folder and for the head of each file, so that what is known is left out.
"""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import contextlib
import datetime
import email.utils
import importlib
import os
import re
import stat
import threading
import urllib.parse
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from aioserving.repository.errors import (
    NotInStoreError,
    RepositoryError,
    StoreAccessError,
    StoreError,
    StoreUnavailableError,
)

__all__ = ["Backend", "ChangedError", "Entry", "NoRangesError", "Put", "Sink", "open_backend", "public_url"]

_T = TypeVar("_T")

#: Takes what was read, in order, as one or more pieces, which are good for the time of the call; called in
#: another thread than the event loop's, one call at a time.
Sink: TypeAlias = "Callable[[Sequence[bytes | memoryview]], None]"

#: Copies from an open file of this machine until it has all or the event is set; called in a thread.
Put: TypeAlias = "Callable[[int, threading.Event], None]"

#: Bytes handed on at a time, and of one request where a store cannot stream.
_PIECE: Final = 1 << 18
_REQUEST: Final = 4 << 20
#: Listings and heads under way at a time.
_AT_A_TIME: Final = 16


class Entry(NamedTuple):
    """What a listing tells of one file."""

    #: Path below what was listed; with "/" at the end: a folder that was left out as known.
    path: str
    size: int | None
    #: Another one when the content is another.
    tag: str
    #: Seconds since 1970 of the last change, or None if unknown.
    modified: float | None = None
    #: As `StoredFile.checksum`.
    checksum: str | None = None
    #: Why this is no file that can be taken, or empty.
    problem: str = ""


class PartSizes(NamedTuple):
    """The parts that a file was uploaded in."""

    sizes: tuple[int, ...]
    #: Whether the store tells them; else they are what uploads usually have.
    told: bool


class ChangedError(RepositoryError):
    """A file is not the one that was listed any more."""


class NoRangesError(RepositoryError):
    """The store gives files only from their beginning."""


class Backend:
    """One store; the base of all kinds, and the one for filesystems of fsspec without asyncio.

    Paths are relative to the store's root. Everything raises errors of the repository.
    """

    #: Whether a whole tree takes one request a thousand files, so that one listing can serve many models.
    flat = False
    #: Whether a listing costs a request for every folder and file, so that what is known should be left out.
    costly = False
    #: Whether its files are this machine's, which the kernel copies: `copy` works.
    local = False

    def __init__(self, fs: Any, root: str, url: str) -> None:
        self.fs = fs
        self.root = root.rstrip("/")
        self.url = url
        self._pool = concurrent.futures.ThreadPoolExecutor(32, "aioserving-store")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    async def folders(self) -> list[str]:
        """Names of the folders directly below the root; none if there is no root."""
        with _translated(self.url):
            return await self._thread(self._folders)

    async def trees(
        self, folders: Sequence[str], known: Mapping[str, Collection[str]] | None = None
    ) -> dict[str, list[Entry]]:
        """All files below each of `folders` (``""``: everything); none below one that is not there.

        Args:
            folders: names below the root.
            known: by folder, names of folders and files right below that need not be looked into, where
                that is `costly`: such a folder is one entry with a "/" at its end.
        """
        with _translated(self.url):
            return await self._thread(lambda: {folder: self._tree(folder) for folder in folders})

    async def read(self, path: str, entry: Entry, start: int, end: int | None, sink: Sink) -> None:
        """Give the bytes of a file from `start` up to `end` (None: its end) to `sink`.

        What comes may end early, where the store's answer does.

        Raises:
            ChangedError: the file is another one than `entry` says.
            NoRangesError: `start` is not 0, and the store can only begin there.
            NotInStoreError, StoreAccessError, StoreUnavailableError: it cannot be read.
        """
        stop = threading.Event()
        with _translated(f"{self.url}/{path}"):
            await self._thread(self._read, path, entry, start, end, sink, stop, stop=stop)

    async def copy(self, path: str, entry: Entry, put: Put) -> None:
        """Open a file where the store is `local`, and let `put` copy it.

        Raises:
            ChangedError: the file is another one than `entry` says, before or after.
            NotInStoreError, StoreAccessError, StoreUnavailableError: it cannot be read.
        """
        stop = threading.Event()
        with _translated(f"{self.url}/{path}"):
            await self._thread(self._copy, path, entry, put, stop, stop=stop)

    async def is_md5(self, path: str, entry: Entry) -> bool:
        """Whether the MD5 among `entry`'s checksums is certainly one of the content."""
        return True

    async def parts(self, path: str, entry: Entry, *, every: bool = False) -> PartSizes | None:
        """The sizes of the parts that a file was uploaded in; None: not known, or nothing to its tag.

        Args:
            path: of the file, below the root.
            entry: what the listing tells of it.
            every: ask for each of the parts; else they are taken to be as large as the first one, if that
                can be.
        """
        return None

    async def close(self) -> None:
        """Close connections."""
        self._pool.shutdown(wait=False)

    async def _thread(
        self, function: Callable[..., _T], *arguments: Any, stop: threading.Event | None = None
    ) -> _T:
        """`function` in a thread; whoever is cancelled waits until it is over, asking it to `stop`."""
        future = asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if stop is not None:
                stop.set()
                await asyncio.wait({future})
            with contextlib.suppress(asyncio.CancelledError, Exception):
                if future.done():
                    future.exception()  # so that nobody misses it
            raise

    def _full(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def _folders(self) -> list[str]:
        self.fs.invalidate_cache()
        return _folder_names(self.fs.ls(self.root, detail=True))

    def _tree(self, folder: str) -> list[Entry]:
        self.fs.invalidate_cache()
        try:
            found = self.fs.find(self._full(folder), detail=True)
        except FileNotFoundError:
            return []
        return list(_entries(found, self._full(folder)))

    def _read(
        self, path: str, entry: Entry, start: int, end: int | None, sink: Sink, stop: threading.Event
    ) -> None:
        full = self._full(path)
        if _entry("", self.fs.info(full)).tag != entry.tag:
            raise ChangedError(f"{self.url}/{path} has changed")
        end = entry.size if end is None else end
        while end is None or start < end:
            upto = start + _REQUEST if end is None else min(end, start + _REQUEST)
            data = self.fs.cat_file(full, start=start, end=upto)
            if not data or stop.is_set():
                return
            sink((data,))
            start += len(data)

    def _copy(self, path: str, entry: Entry, put: Put, stop: threading.Event) -> None:
        raise NotImplementedError(f"{self.url} is not of this machine")


class _Local(Backend):
    """Folders of this machine."""

    local = True

    def _folders(self) -> list[str]:
        try:
            with os.scandir(self.root) as found:
                return sorted(item.name for item in found if item.is_dir())
        except FileNotFoundError:
            return []

    def _tree(self, folder: str) -> list[Entry]:
        entries: list[Entry] = []
        self._walk(self._full(folder), "", entries, 0)
        return entries

    def _walk(self, folder: str, prefix: str, entries: list[Entry], depth: int) -> None:
        try:
            with os.scandir(folder) as found:
                items = list(found)
        except (FileNotFoundError, NotADirectoryError):
            return
        for item in items:
            path = prefix + item.name
            try:
                info = item.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # gone meanwhile
            if stat.S_ISLNK(info.st_mode):
                try:
                    info = item.stat()
                except OSError:
                    entries.append(Entry(path, None, "link", problem="a link that leads nowhere"))
                    continue
                inside = os.path.realpath(item.path).startswith(os.path.realpath(self.root) + os.sep)
                if not inside or not stat.S_ISREG(info.st_mode):
                    problem = "a link to a folder" if inside else "a link that leads out of the store"
                    entries.append(Entry(path, None, "link", problem=problem))
                    continue
            if stat.S_ISDIR(info.st_mode):
                if depth < 40:
                    self._walk(item.path, path + "/", entries, depth + 1)
            elif stat.S_ISREG(info.st_mode):
                entries.append(Entry(path, info.st_size, _stat_tag(info), info.st_mtime))
            else:
                entries.append(Entry(path, None, "special", problem="neither a file nor a folder"))

    def _read(
        self, path: str, entry: Entry, start: int, end: int | None, sink: Sink, stop: threading.Event
    ) -> None:
        with open(self._full(path), "rb", buffering=0) as file:
            self._check(path, entry, file.fileno())
            end = entry.size if end is None else end
            file.seek(start)
            buffer = memoryview(bytearray(_PIECE))  # one for all: the processor's cache has it
            while (end is None or start < end) and not stop.is_set():
                count = file.readinto(buffer if end is None else buffer[: end - start])
                if not count:
                    return
                sink((buffer[:count],))
                start += count

    def _copy(self, path: str, entry: Entry, put: Put, stop: threading.Event) -> None:
        descriptor = os.open(self._full(path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._check(path, entry, descriptor)
            put(descriptor, stop)
            # Who writes into a file while it is copied changes its time.
            self._check(path, entry, descriptor)
        finally:
            os.close(descriptor)

    def _check(self, path: str, entry: Entry, descriptor: int) -> None:
        if _stat_tag(os.fstat(descriptor)) != entry.tag:
            raise ChangedError(f"{self.url}/{path} has changed")


def _stat_tag(info: os.stat_result) -> str:
    return f"{info.st_mtime_ns:x}-{info.st_ino:x}-{info.st_size:x}"


class _Async(Backend):
    """Filesystems of fsspec that live on its own event loop: GCS, Azure and others."""

    flat = True

    async def folders(self) -> list[str]:
        async def ask() -> list[str]:
            self.fs.invalidate_cache()
            return _folder_names(await self.fs._ls(self.root, detail=True))

        try:
            with _translated(self.url):
                return await self._there(ask())
        except NotInStoreError:
            return []

    async def trees(
        self, folders: Sequence[str], known: Mapping[str, Collection[str]] | None = None
    ) -> dict[str, list[Entry]]:
        room = asyncio.Semaphore(_AT_A_TIME)

        async def one(folder: str) -> list[Entry]:
            async with room:
                try:
                    with _translated(f"{self.url}/{folder}"):
                        return await self._there(self._tree_there(folder, (known or {}).get(folder, ())))
                except NotInStoreError:
                    return []

        return dict(zip(folders, await _all(one(folder) for folder in folders), strict=True))

    async def read(self, path: str, entry: Entry, start: int, end: int | None, sink: Sink) -> None:
        with _translated(f"{self.url}/{path}"):
            await self._there(self._read_there(path, entry, start, end, sink))

    async def _tree_there(self, folder: str, known: Collection[str]) -> list[Entry]:
        self.fs.invalidate_cache()
        return list(_entries(await self.fs._find(self._full(folder), detail=True), self._full(folder)))

    async def _read_there(self, path: str, entry: Entry, start: int, end: int | None, sink: Sink) -> None:
        full = self._full(path)
        if _entry("", await self.fs._info(full)).tag != entry.tag:
            raise ChangedError(f"{self.url}/{path} has changed")
        end = entry.size if end is None else end
        while end is None or start < end:
            upto = start + _REQUEST if end is None else min(end, start + _REQUEST)
            data = await self.fs._cat_file(full, start=start, end=upto)
            if not data:
                return
            await self._hand_on(sink, (data,))
            start += len(data)

    async def _there(self, made: Awaitable[_T]) -> _T:
        """Await something on the filesystem's own event loop, which is in a thread of its own.

        Whoever is cancelled waits until it has stopped there, so that nothing is written afterwards.
        """
        over: concurrent.futures.Future[None] = concurrent.futures.Future()

        async def run() -> _T:
            try:
                return await made
            finally:
                over.set_result(None)

        future = asyncio.run_coroutine_threadsafe(run(), self.fs.loop)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.cancel()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(over)), 5.0)
            raise

    async def _hand_on(self, sink: Sink, pieces: Sequence[bytes]) -> None:
        """`sink` in a thread; on being cancelled, wait until it is through."""
        await _through(asyncio.get_running_loop().run_in_executor(self._pool, sink, pieces))

    async def _pump(self, body: Any, length: int | None, sink: Sink) -> None:
        """Hand on what the body of an answer gives, at once and in this thread.

        As fsspec's own copies do it: handing a piece to another thread costs more than writing it does.
        """
        anything = getattr(body, "readany", None)  # of aiohttp: what has come, without copying it together
        while length is None or length > 0:
            if anything is not None:
                data = await anything()
            else:
                data = await body.read(_PIECE if length is None else min(_PIECE, length))
            if not data:
                return
            if length is not None:
                data = data[:length]
                length -= len(data)
            sink((data,))


async def _through(future: asyncio.Future[None]) -> None:
    """Wait for what goes on in a thread, to its end even if this is cancelled meanwhile."""
    try:
        await asyncio.shield(future)
    except asyncio.CancelledError:
        if not future.done():
            await asyncio.wait({future})
        with contextlib.suppress(Exception):
            future.result()
        raise


class _S3(_Async):
    """S3 and what speaks its protocol, through s3fs."""

    async def _tree_there(self, folder: str, known: Collection[str]) -> list[Entry]:
        full = self._full(folder)
        bucket, key, _ = self.fs.split_path(full)
        prefix = f"{key}/" if key else ""
        entries: list[Entry] = []
        more: dict[str, str] = {}
        while True:
            answer = await self.fs._call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **more)
            for item in answer.get("Contents", ()):
                path = item["Key"][len(prefix) :]
                if path and not path.endswith("/"):  # else a placeholder for a folder
                    tag = item["ETag"].strip('"')
                    entries.append(
                        Entry(path, item["Size"], tag, item["LastModified"].timestamp(), _s3_checksum(tag))
                    )
            if not answer.get("IsTruncated"):
                return entries
            more = {"ContinuationToken": answer["NextContinuationToken"]}

    async def _read_there(self, path: str, entry: Entry, start: int, end: int | None, sink: Sink) -> None:
        bucket, key, _ = self.fs.split_path(self._full(path))
        some = {}
        if start or (end is not None and end != entry.size):
            some = {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        answer = await self.fs._call_s3("get_object", Bucket=bucket, Key=key, **some)
        body = answer["Body"]
        try:
            if answer["ETag"].strip('"') != entry.tag:
                raise ChangedError(f"{self.url}/{path} has changed")
            # What is checked against the ETag needs none of the client's own checksums beside, which
            # cost as much as writing it.
            raw = _raw(body) if (entry.checksum or "").startswith("md5:") else body
            await self._pump(raw, None if end is None else end - start, sink)
        finally:
            body.close()

    async def is_md5(self, path: str, entry: Entry) -> bool:
        """Whether the ETag is an MD5: not where the store encrypts with keys of its customer's."""
        return not _is_encrypted(await self._head(path))

    async def _head(self, path: str, **more: Any) -> Mapping[str, Any]:
        bucket, key, _ = self.fs.split_path(self._full(path))
        with _translated(f"{self.url}/{path}"):
            head: Mapping[str, Any] = await self._there(
                self.fs._call_s3("head_object", Bucket=bucket, Key=key, **more)
            )
        return head

    async def parts(self, path: str, entry: Entry, *, every: bool = False) -> PartSizes | None:
        """The sizes of the parts that a file was uploaded in, by the head of the first one or of each."""
        tag = _ETAG_OF_PARTS.match(entry.tag)
        count = int(tag[1]) if tag else 0
        if not entry.size or not 1 <= count <= min(_MOST_PARTS, entry.size):
            return None
        try:
            head = await self._head(path, PartNumber=1)
            if _is_encrypted(head):
                return None  # as `is_md5` has it
            if count > 1 and head.get("PartsCount") != count:
                return _usual_parts(entry.size, count)  # it knows no heads of parts
            found = _equal_parts(entry.size, count, int(head["ContentLength"]))
            if every or found is None:
                room = asyncio.Semaphore(_AT_A_TIME)

                async def size(number: int) -> int:
                    async with room:
                        return int((await self._head(path, PartNumber=number))["ContentLength"])

                sizes = tuple(await _all(size(number) for number in range(1, count + 1)))
                found = PartSizes(sizes, True) if sum(sizes) == entry.size else None
        except StoreError:
            return _usual_parts(entry.size, count)
        return found

    async def close(self) -> None:
        client = self.fs._s3
        if client is not None:
            self.fs._s3 = None
            with contextlib.suppress(Exception):
                await self._there(client.__aexit__(None, None, None))
        await super().close()


def _raw(body: Any) -> Any:
    """What aiohttp gives of the body of an answer, past what botocore does with it; or the body."""
    content = getattr(getattr(body, "raw_stream", None), "content", None)
    return content if hasattr(content, "readany") else body


_MD5: Final = re.compile(r"[0-9a-fA-F]{32}\Z")
#: The ETag of what was uploaded in parts: the MD5 of their MD5s, and how many there are.
_ETAG_OF_PARTS: Final = re.compile(r"[0-9a-fA-F]{32}-([1-9]\d{0,4})\Z")
#: Parts of an upload that each may be asked for.
_MOST_PARTS: Final = 10_000
#: Sizes of parts that clients have by default or are often told, in MiB.
_USUAL: Final = (5, 6, 8, 10, 15, 16, 20, 25, 32, 40, 50, 60, 64, 80, 100, 128, 200, 250, 256, 500, 512, 1024)


def _is_encrypted(head: Mapping[str, Any]) -> bool:
    """Whether a file has an ETag that is not of its content, as it is encrypted with keys of a customer's."""
    kms = str(head.get("ServerSideEncryption", "")).startswith("aws:kms")
    return kms or bool(head.get("SSECustomerAlgorithm"))


def _equal_parts(size: int, count: int, part: int, *, told: bool = True) -> PartSizes | None:
    """Parts of which all but the last have `part` bytes; None if there are not `count` of these in `size`."""
    last = size - part * (count - 1)
    return PartSizes((part,) * (count - 1) + (last,), told) if 0 < last <= part else None


def _usual_parts(size: int, count: int) -> PartSizes | None:
    """The parts of an upload by a usual client, if there is one way only to have so many."""
    if count == 1:
        return PartSizes((size,), True)
    fitting = [made for mib in _USUAL if (made := _equal_parts(size, count, mib << 20, told=False))]
    return fitting[0] if len(fitting) == 1 else None


def _s3_checksum(tag: str) -> str:
    return f"md5:{tag.lower()}" if _MD5.match(tag) else f"etag:{tag}"


class _Web(_Async):
    """Web servers that list a folder as a page of links."""

    flat = False
    costly = True

    def _full(self, path: str) -> str:
        return f"{self.root}/{urllib.parse.quote(path)}" if path else self.root

    async def folders(self) -> list[str]:
        try:
            with _translated(self.url):
                names = await self._there(self._page(self.root))
        except NotInStoreError:
            return []
        return sorted(name[:-1] for name in names if name.endswith("/"))

    async def _page(self, url: str) -> list[str]:
        """Names that the page of a folder links to, those of folders with "/" at the end."""
        base = url.rstrip("/") + "/"
        self.fs.invalidate_cache()
        names = []
        for link in await self.fs._ls(base, detail=False):
            name = link[len(base) :]
            if link.startswith(base) and not re.search(r"[?#]", name):
                name = urllib.parse.unquote(name)
                if name.rstrip("/") not in ("", ".", "..") and "/" not in name[:-1]:
                    names.append(name)
        return sorted(set(names))

    async def _tree_there(self, folder: str, known: Collection[str], prefix: str = "") -> list[Entry]:
        where = f"{folder}/{prefix}".strip("/") if folder else prefix.strip("/")
        if prefix.count("/") > 40:
            return []
        room = asyncio.Semaphore(_AT_A_TIME)

        async def one(name: str) -> list[Entry]:
            if name.rstrip("/") in known:
                return [Entry(prefix + name, None, "")]
            try:
                if name.endswith("/"):
                    return await self._tree_there(folder, (), prefix + name)
                async with room:
                    info = await self.fs._info(self._full(f"{where}/{name}".lstrip("/")))
            except FileNotFoundError:
                return []  # gone since its folder was listed, which does not make the others go
            return [_entry(prefix + name, info)]

        names = await self._page(self._full(where))
        return [entry for found in await _all(one(name) for name in names) for entry in found]

    async def _read_there(self, path: str, entry: Entry, start: int, end: int | None, sink: Sink) -> None:
        aiohttp = importlib.import_module("aiohttp")
        session = await self.fs.set_session()
        options = dict(self.fs.kwargs)
        headers = dict(options.pop("headers", None) or {})
        headers["Accept-Encoding"] = "identity"  # the bytes as they are stored
        if start or end not in (None, entry.size):
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        options["timeout"] = aiohttp.ClientTimeout(total=None)  # who waits for it does the watching
        url = self.fs.encode_url(self._full(path))
        async with session.get(url, headers=headers, **options) as answer:
            if answer.status == 404:
                raise FileNotFoundError(path)
            answer.raise_for_status()
            if start and answer.status != 206:
                raise NoRangesError(f"{self.url} gives no ranges of files")
            tag = _entry("", {"size": entry.size, **_validators(answer.headers)}).tag
            if tag != entry.tag:
                raise ChangedError(f"{self.url}/{path} has changed")
            await self._pump(answer.content, None if end is None else end - start, sink)

    async def close(self) -> None:
        session = self.fs._session
        if session is not None:
            self.fs._session = None
            with contextlib.suppress(Exception):
                await self._there(session.close())
        await super().close()


def _validators(headers: Mapping[str, str]) -> dict[str, str]:
    """What the head of an answer tells of the file, as fsspec's `info` of it does."""
    names = ("ETag", "Content-MD5", "Digest", "Last-Modified")
    return {name: headers[name] for name in names if headers.get(name)}


# ---------------------------------------------------------------------------------------------- opening


def open_backend(url: str, options: Mapping[str, Any]) -> Backend:
    """The store at `url`, an fsspec URL or a path; nothing is read yet.

    Args:
        url: where its root is.
        options: of the filesystem, as fsspec takes them.

    Raises:
        ImportError: fsspec, or the package that it needs for such URLs, is not installed.
        StoreError: the URL or the options make no sense.
    """
    try:
        fsspec_core = importlib.import_module("fsspec.core")
    except ImportError as error:
        raise ImportError("a store needs the fsspec package: pip install 'aioserving[repository]'") from error
    shown = public_url(url)
    scheme = url.partition("://")[0] if "://" in url else "file"
    made = {"skip_instance_cache": True, "use_listings_cache": False, **options}
    if scheme in ("http", "https"):
        made.setdefault("simple_links", False)
    if scheme in ("file", "local"):
        made.pop("skip_instance_cache")
    try:
        fs, root = fsspec_core.url_to_fs(url, **made)
    except ImportError as error:
        raise ImportError(f"{shown} needs a package that comes beside aioserving: {error}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{shown} cannot be opened: {error}") from error
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    kind = Backend
    if type(fs).__name__ == "LocalFileSystem" and "file" in protocols:
        kind = _Local
        root = os.path.abspath(root)
    elif protocols & {"s3", "s3a"} and hasattr(fs, "_call_s3"):
        kind = _S3
    elif protocols & {"http", "https"}:
        kind = _Web
    elif getattr(fs, "async_impl", False):
        kind = _Async
    return kind(fs, root, shown.rstrip("/"))


def public_url(url: str) -> str:
    """`url` without a user, a password and a query."""
    if "://" not in url:
        return "file://" + os.path.abspath(url)
    head, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    return f"{head}://{place.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


# --------------------------------------------------------------------------------------------- listings


def _folder_names(found: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted(
        item["name"].rstrip("/").rpartition("/")[2] for item in found if item["type"] == "directory"
    )


def _entries(found: Mapping[str, Mapping[str, Any]], root: str) -> Iterator[Entry]:
    """The files of an fsspec listing with details, relative to `root`."""
    prefix = root.lstrip("/") + "/" if root.strip("/") else ""
    for name, info in found.items():
        path = name.lstrip("/")
        if info.get("type") == "directory" or path.endswith("/") or not path.startswith(prefix):
            continue
        yield _entry(path[len(prefix) :], info)


def _entry(path: str, info: Mapping[str, Any]) -> Entry:
    """What fsspec's `info` tells of a file, whichever store it is of."""
    size = info.get("size")
    tag = next(
        (
            str(_seconds(info[key]) if isinstance(info[key], datetime.datetime) else info[key]).strip('"')
            for key in ("ETag", "etag", "generation", "Last-Modified", "last_modified", "mtime", "created")
            if info.get(key)
        ),
        "",
    )
    modified = next(
        (
            info[key]
            for key in ("LastModified", "last_modified", "updated", "Last-Modified", "mtime", "created")
            if info.get(key)
        ),
        None,
    )
    return Entry(path, size, f"{tag}-{size}", _seconds(modified), _checksum(info, tag))


def _checksum(info: Mapping[str, Any], tag: str) -> str | None:
    settings = info.get("content_settings") or {}
    found: object = (
        info.get("md5Hash")
        or info.get("Content-MD5")
        or info.get("content_md5")
        or (settings.get("content_md5") if isinstance(settings, Mapping) else None)
    )
    if isinstance(found, str):
        try:
            found = base64.b64decode(found, validate=True)
        except ValueError:
            found = None
    if isinstance(found, (bytes, bytearray)) and len(found) == 16:
        return f"md5:{bytes(found).hex()}"
    return f"etag:{tag}" if info.get("ETag") or info.get("etag") else None


def _seconds(when: object) -> float | None:
    if isinstance(when, datetime.datetime):
        return when.timestamp()
    if isinstance(when, (int, float)):
        return float(when)
    if isinstance(when, str):
        with contextlib.suppress(ValueError):
            return datetime.datetime.fromisoformat(when.replace("Z", "+00:00")).timestamp()
        with contextlib.suppress(ValueError, TypeError):
            return email.utils.parsedate_to_datetime(when).timestamp()
    return None


async def _all(made: Iterable[Awaitable[_T]]) -> list[_T]:
    """The results of all; the first failure ends the others, and is waited for."""
    tasks = [asyncio.ensure_future(item) for item in made]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        raise


# ----------------------------------------------------------------------------------------------- errors

#: Packages that stores are spoken to with, whose errors mean that a request failed.
_CLIENTS: Final = re.compile(
    r"(adlfs|aiobotocore|aiohttp|azure|botocore|fsspec|gcsfs|google|requests|s3fs|ssl|urllib3)\b"
)
#: Where errors have the status of an answer.
_CODES: Final = ("status", "status_code", "code")
#: What errors are called that say that there are no credentials, or none that hold.
_NO_ACCESS: Final = re.compile(
    r"NoCredentials|PartialCredentials|CredentialRetrieval|TokenRetrieval|UnauthorizedSSO|SSOTokenLoad"
    r"|RefreshError|DefaultCredentials|ClientAuthentication"
)
#: Codes of S3 for credentials that have run out, some of which s3fs takes for other errors.
_EXPIRED: Final = frozenset(
    ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken", "RequestExpired")
)


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """Raise what a filesystem raises as an error of the repository's."""
    try:
        yield
    except RepositoryError:
        raise
    except Exception as error:
        made = _translate(error, what)
        if made is None:
            raise
        raise made from error


def _translate(error: Exception, what: str) -> StoreError | None:
    words = str(error) or type(error).__name__
    codes = {
        # One of them only: aiohttp warns of another than the first.
        str(next((found for name in _CODES if (found := getattr(source, name, None)) is not None), ""))
        for source in (error, error.__cause__)
    }
    response = getattr(error.__cause__ or error, "response", None)
    if isinstance(response, Mapping):
        codes.add(str(response.get("Error", {}).get("Code", "")))
    if (
        isinstance(error, PermissionError)
        or codes & {"401", "403"}
        or codes & _EXPIRED
        or _NO_ACCESS.search(type(error).__name__)
    ):
        return StoreAccessError(f"{what}: access is refused: {words}")
    if isinstance(error, FileNotFoundError) or codes & {"404", "410"}:
        return NotInStoreError(f"{what} is not there")
    if isinstance(error, (OSError, asyncio.TimeoutError, EOFError)) or (
        _CLIENTS.match(type(error).__module__)
    ):
        return StoreUnavailableError(f"{what} cannot be read: {words}")
    return None
