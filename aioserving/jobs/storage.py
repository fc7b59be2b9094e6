"""Where a job's output lives: a folder on this machine, or below any fsspec URL.

    Storage   whole files in, whole files out: a file is there with all of its content, or not at all
    Lock      one job at a time; see `Storage.lock`

What each kind of place promises:

* A local folder: a file is written under another name, flushed to the disk (fsync), and renamed; then the
  folder is flushed. The lock is one of the operating system's (``flock``), which ends with its holder however
  that ends.
* Object stores (S3, GCS, Azure): an object appears when its upload is complete, and replaces an older one at
  once; nothing is renamed. The lock is an object that its holder renews; one that was not renewed for
  `LEASE` seconds is taken over. Where the store can create an object only if there is none (S3, GCS), two
  jobs cannot get the lock at once; elsewhere the later of two within a second wins, and the other one notices
  before it writes.
* Anything else that fsspec knows: written under another name, then moved, which is as atomic as the place's
  own move; the lock is as with object stores.

All of it blocks, and is for a worker thread. What the files mean is `aioserving.jobs.manifest`'s business.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import os
import pathlib
import shutil
import socket
import sys
import tempfile
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from aioserving.jobs.errors import OutputError, OutputLockedError

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["BOOKKEEPING", "LEASE", "Lock", "Storage", "open_storage"]

logger = logging.getLogger("aioserving")

#: The folder below the output that has everything but results. What reads folders of Parquet files (pyarrow,
#: Spark, DuckDB's globs) passes names over that begin with an underscore.
BOOKKEEPING: Final = "_aioserving"

#: Seconds after which the lock of a remote place counts as left by a dead job, if it was not renewed.
LEASE: Final = 60.0

_LOCK: Final = f"{BOOKKEEPING}/lock"

#: Protocols of stores where an object appears when it is complete.
_OBJECT_STORES: Final = frozenset(
    {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "r2", "oss", "oci"}
)


class Storage(ABC):
    """A folder of files that appear whole.

    Attributes:
        url: the folder, for messages.
    """

    url: str

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is none."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Make a file, or replace it as a whole."""

    @abstractmethod
    def scratch(self, name: str) -> str:
        """A local path where the file of that name can be written, to be given to `commit`."""

    @abstractmethod
    def commit(self, name: str) -> None:
        """Make the file that was written to `scratch` appear under its name, replacing any other."""

    @abstractmethod
    def discard(self, name: str) -> None:
        """Forget what was written to `scratch`, if anything."""

    @abstractmethod
    def names(self) -> list[str]:
        """Names of all files, also those in folders below (with slashes)."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    @abstractmethod
    def lock(self) -> Lock:
        """Take the lock.

        Raises:
            OutputLockedError: another job has it.
        """

    @abstractmethod
    def close(self) -> None:
        """Remove what was only for this run."""


class Lock(ABC):
    """That this job, and no other, writes to a place."""

    @abstractmethod
    def check(self) -> None:
        """See that it is still held.

        Raises:
            OutputLockedError: another job has taken it over.
        """

    @abstractmethod
    def release(self) -> None:
        """Give it up; safe to call again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def open_storage(output: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Storage:
    """The folder `output`, made if it is not there.

    Args:
        output: a path, or any URL that fsspec knows.
        storage_options: arguments of the fsspec filesystem.

    Raises:
        ImportError: fsspec, or the package for the URL's protocol, is not installed.
        OutputError: there is a file of that name, or the folder cannot be made.
    """
    text = os.fspath(output)
    try:
        import fsspec
    except ImportError as error:
        raise ImportError(
            "jobs over files need pyarrow and fsspec: pip install 'aioserving[batch]'"
        ) from error
    filesystem, path = fsspec.url_to_fs(text, **(storage_options or {}))
    protocols = {filesystem.protocol} if isinstance(filesystem.protocol, str) else set(filesystem.protocol)
    if protocols & {"file", "local"}:
        return _LocalStorage(pathlib.Path(path))
    return _RemoteStorage(filesystem, path.rstrip("/"), text, bool(protocols & _OBJECT_STORES))


# -- on this machine ----------------------------------------------------------------------------------


class _LocalStorage(Storage):
    def __init__(self, folder: pathlib.Path) -> None:
        self.url = str(folder)
        self._folder = folder
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file; the output of a job is a folder, of one file per part")
        try:
            (folder / BOOKKEEPING).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"the folder {folder} cannot be made: {error}") from error

    def read(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        path = pathlib.Path(self.scratch(name))
        try:
            path.write_bytes(data)
            self.commit(name)
        except BaseException:
            self.discard(name)
            raise

    def scratch(self, name: str) -> str:
        return str(self._folder / BOOKKEEPING / f"{name.replace('/', '.')}.tmp")

    def commit(self, name: str) -> None:
        target = self._folder / name
        target.parent.mkdir(exist_ok=True)
        scratch = self.scratch(name)
        _flush(scratch)
        os.replace(scratch, target)
        _flush(target.parent)

    def discard(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.scratch(name))

    def names(self) -> list[str]:
        return sorted(
            path.relative_to(self._folder).as_posix() for path in self._folder.rglob("*") if path.is_file()
        )

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._folder / name)

    def lock(self) -> Lock:
        return _FileLock(self._folder / _LOCK, self.url)

    def close(self) -> None:
        pass


def _flush(path: str | os.PathLike[str]) -> None:
    """Have a file's content, or a folder's entries, on the disk and not only on the way there."""
    if os.name == "nt" and os.path.isdir(path):
        return  # Windows has no such thing
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _FileLock(Lock):
    """A lock of the operating system on a file that says who has it.

    The file stays when the lock is given up: to remove it would let two jobs have one each of two files of
    the same name.
    """

    def __init__(self, path: pathlib.Path, output: str) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        try:
            if not _try_lock(self._descriptor):
                raise OutputLockedError(output, _shown(_read_holder(path.read_bytes())))
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, json.dumps(_holder()).encode())
        except BaseException:
            os.close(self._descriptor)
            self._descriptor = -1
            raise

    def __repr__(self) -> str:
        return f"<lock {self._path}, {'held' if self._descriptor >= 0 else 'given up'}>"

    def check(self) -> None:
        """It cannot be lost."""

    def release(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
            os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    if sys.platform == "win32":
        import msvcrt

        try:
            # A byte that nobody writes, so that others can read who has the lock.
            os.lseek(descriptor, 1 << 30, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# -- elsewhere ----------------------------------------------------------------------------------------


class _RemoteStorage(Storage):
    def __init__(self, filesystem: Any, folder: str, url: str, appears_whole: bool) -> None:
        self.url = url
        self._fs = filesystem
        self._folder = folder
        self._appears_whole = appears_whole
        self._scratch = tempfile.mkdtemp(prefix="aioserving-job-")

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}" if self._folder else name

    def read(self, name: str) -> bytes | None:
        self._fs.invalidate_cache()
        try:
            data: bytes = self._fs.cat_file(self._path(name))
        except FileNotFoundError:
            return None
        return data

    def write(self, name: str, data: bytes) -> None:
        path = self._path(name)
        if self._appears_whole:
            self._fs.pipe_file(path, data)
            return
        self._make_folder(path)
        self._fs.pipe_file(f"{path}.tmp", data)
        self._fs.mv(f"{path}.tmp", path)

    def _make_folder(self, path: str) -> None:
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)

    def scratch(self, name: str) -> str:
        return os.path.join(self._scratch, name.replace("/", "."))

    def commit(self, name: str) -> None:
        path = self._path(name)
        if self._appears_whole:
            self._fs.put_file(self.scratch(name), path)
        else:
            self._make_folder(path)
            self._fs.put_file(self.scratch(name), f"{path}.tmp")
            self._fs.mv(f"{path}.tmp", path)
        self.discard(name)

    def discard(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.scratch(name))

    def names(self) -> list[str]:
        self._fs.invalidate_cache()
        try:
            found = self._fs.find(self._folder)
        except FileNotFoundError:
            return []
        root = self._folder.lstrip("/")
        return sorted(path.lstrip("/")[len(root) :].lstrip("/") for path in found)

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def lock(self) -> Lock:
        return _LeaseLock(self)

    def create(self, name: str, data: bytes) -> bool:
        """Make a file if there is none; False if there is one."""
        path = self._path(name)
        if not self._appears_whole:
            self._make_folder(path)
        try:
            self._fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except (TypeError, NotImplementedError, ValueError):
            # The filesystem cannot do it in one step.
            if self.read(name) is not None:
                return False
            self._fs.pipe_file(path, data)
        return True

    def close(self) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)


class _LeaseLock(Lock):
    """An object that says who has the lock, and that its holder writes anew from time to time."""

    def __init__(
        self,
        storage: _RemoteStorage,
        *,
        lease: float | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._storage = storage
        self._lease = LEASE if lease is None else lease
        self._holder = _holder()
        self._lost: Mapping[str, object] | None = None
        self._ended = threading.Event()
        self._writing = threading.Lock()
        self._beat = 0
        self._take(sleep)
        self._thread = threading.Thread(target=self._renew, name="aioserving-job-lock", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        state = "given up" if self._ended.is_set() else "lost" if self._lost is not None else "held"
        return f"<lock of {self._storage.url}, {state}>"

    def _content(self) -> bytes:
        self._beat += 1
        return json.dumps({**self._holder, "beat": self._beat, "lease": self._lease}).encode()

    def _take(self, sleep: Callable[[float], None]) -> None:
        while not self._storage.create(_LOCK, self._content()):
            found = self._storage.read(_LOCK)
            if found is None:
                continue
            holder = _read_holder(found)
            if not _is_dead(holder):
                # Its clock may differ from ours: whether it lives shows only in whether it renews the lock.
                lease = holder.get("lease")
                waited = float(lease) if isinstance(lease, (int, float)) else self._lease
                logger.info("waiting %g s to see whether %s is still written to", waited, self._storage.url)
                steps = 10
                for _ in range(steps):
                    sleep(waited / steps)
                    now = self._storage.read(_LOCK)
                    if now != found:
                        break
                if now is None:
                    continue
                if now != found:
                    raise OutputLockedError(self._storage.url, _shown(_read_holder(now)))
            logger.warning("taking over the output %s from %s", self._storage.url, _shown(holder))
            self._storage.remove(_LOCK)
        # Where two could create it at once, the later one's is what is there.
        sleep(min(0.2, self._lease / 100))
        self._look()
        if self._lost is not None:
            raise OutputLockedError(self._storage.url, _shown(self._lost))

    def _look(self) -> None:
        found = self._storage.read(_LOCK)
        holder = _read_holder(found or b"")
        if holder.get("token") != self._holder["token"]:
            self._lost = holder

    def check(self) -> None:
        with self._writing:
            if self._lost is None and not self._ended.is_set():
                self._look()
        if self._lost is not None:
            raise OutputLockedError(self._storage.url, _shown(self._lost))

    def _renew(self) -> None:
        while not self._ended.wait(self._lease / 6):
            try:
                with self._writing:
                    if self._ended.is_set():
                        return
                    self._look()
                    if self._lost is not None:
                        return
                    self._storage.write(_LOCK, self._content())
            except Exception:
                logger.warning("the lock of %s could not be renewed", self._storage.url, exc_info=True)

    def release(self) -> None:
        with self._writing:
            if self._ended.is_set():
                return
            self._ended.set()
            try:
                if self._lost is None:
                    self._look()
                if self._lost is None:
                    self._storage.remove(_LOCK)
            except Exception:
                logger.warning("the lock of %s could not be removed", self._storage.url, exc_info=True)
        self._thread.join()


def _holder() -> dict[str, Any]:
    """This process, as others are to know it."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        user = "unknown"
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "processes": _process_namespace(),
        "user": user,
        "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": " ".join(sys.argv)[:200],
        "token": uuid.uuid4().hex,
    }


def _read_holder(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _shown(holder: Mapping[str, Any]) -> dict[str, object]:
    return {key: value for key, value in holder.items() if key in ("host", "pid", "user", "since", "command")}


def _process_namespace() -> str:
    """What tells the process ids of this container from those of another one on the same host."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _is_dead(holder: Mapping[str, Any]) -> bool:
    """Whether it was a process of this machine that is there no more."""
    pid = holder.get("pid")
    here = (socket.gethostname(), _process_namespace())
    if (holder.get("host"), holder.get("processes")) != here or not isinstance(pid, int) or os.name == "nt":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
