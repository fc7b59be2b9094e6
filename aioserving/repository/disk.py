"""The folder that the model servers scan, ``<base>/<model>/<version>/``, and who may change it.

A model server takes every child of a model's folder whose whole name is an integer for a version, whatever
is in it, and loads it within a second. So nothing is ever written there: what is being fetched or deleted
lies in ``<base>/.aioserving``, which no server looks into (it lists ``<base>/<model>`` and nothing else),
which can be no model's folder (no name of a model begins with a dot) and which is on the same filesystem,
so that a version comes and goes with one rename.

    disk = Disk("/models", quota_bytes=200 << 30)
    with disk.lock():
        print(disk.versions())

`fetch` brings versions here. Which may be deleted is for those to say who know what is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import socket
import stat
import threading
import uuid
from collections.abc import Collection, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, final

from aioserving.repository.errors import AlreadyRunningError, NoRoomError, RepositoryError
from aioserving.repository.names import (
    MODEL_FILES,
    PRIVATE,
    check_model_name,
    is_model_name,
    version_number,
)

__all__ = ["Disk", "DiskLock", "DiskVersion", "sync_folder"]

logger = logging.getLogger("aioserving.repository")


@dataclass(frozen=True)
class DiskVersion:
    """One complete version on disk."""

    model: str
    version: int
    path: Path
    #: Bytes of its files.
    size: int
    #: `StoredVersion.fingerprint` of what it was fetched from; None if it came by other means.
    fingerprint: str | None


@final
class DiskLock:
    """The lock on a `Disk`, held until `release` or the end of the process. Also a context manager."""

    def __init__(self, file: IO[str], path: Path) -> None:
        self._file: IO[str] | None = file
        self.path = path

    def release(self) -> None:
        """Let another process have the directory; a second time does nothing."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.truncate(0)
            file.close()

    def __repr__(self) -> str:
        return f"<DiskLock {self.path}{'' if self._file is not None else ', released'}>"

    def __enter__(self) -> DiskLock:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


class Disk:
    """The local base directory, which is made if it is not there.

    Args:
        base: the folder that holds the models' folders.
        quota_bytes: how much versions, and what is being fetched, may take; None: what the disk has.

    Attributes:
        base: the folder, absolute.
        private: the repository's own folder in it, where no server looks; what the controller has to
            remember belongs here, too.
        quota_bytes: as given.

    Raises:
        OSError: the folder cannot be made.
        ValueError: the quota is not more than 0.
    """

    def __init__(self, base: str | os.PathLike[str], *, quota_bytes: int | None = None) -> None:
        if quota_bytes is not None and quota_bytes <= 0:
            raise ValueError(f"quota_bytes must be more than 0, got {quota_bytes!r}")
        self.base = Path(os.path.abspath(base))
        self.private = self.base / PRIVATE
        self.quota_bytes = quota_bytes
        self._fetching = self.private / "fetching"
        self._deleted = self.private / "deleted"
        self._records = self.private / "records"
        for folder in (self._fetching, self._deleted, self._records):
            folder.mkdir(parents=True, exist_ok=True)
        #: Versions being fetched, and the bytes that each still needs.
        self._claims: dict[tuple[str, int], int] = {}
        self._sizes: dict[Path, tuple[tuple[int, int], int]] = {}
        self._making_room = asyncio.Lock()
        self._guard = threading.Lock()

    def __repr__(self) -> str:
        quota = "" if self.quota_bytes is None else f", quota {self.quota_bytes} bytes"
        return f"<Disk {self.base}{quota}, {len(self._claims)} being fetched>"

    def path(self, model: str) -> Path:
        """The model's folder, absolute: the `base_path` of a server's configuration. Perhaps not there.

        Raises:
            InvalidNameError: no model can be called that.
        """
        return self.base / check_model_name(model)

    def versions(self, model: str | None = None) -> dict[str, dict[int, DiskVersion]]:
        """Complete versions by model and number; blocking, but quick.

        Those that came by other means than `fetch` count if a SavedModel is in them. Models without
        versions are left out.
        """
        names = [check_model_name(model)] if model is not None else _names(self.base)
        found: dict[str, dict[int, DiskVersion]] = {}
        for name in names:
            if not is_model_name(name):
                continue
            for child in sorted(_names(self.base / name)):  # of two for one number the server takes the last
                number = version_number(child)
                if number is None:
                    continue
                path = self.base / name / child
                record = self._record(name, child)
                if record is None and not any((path / file).is_file() for file in MODEL_FILES):
                    continue
                if not path.is_dir():
                    continue
                size = record["size"] if record is not None else self._size(path)
                fingerprint = record["fingerprint"] if record is not None else None
                found.setdefault(name, {})[number] = DiskVersion(name, number, path, size, fingerprint)
        return {name: dict(sorted(versions.items())) for name, versions in found.items()}

    async def delete(self, model: str, version: int) -> bool:
        """Delete a version: out of sight of servers in one step, then for good.

        Returns:
            False if it was not there.

        Raises:
            OSError: it cannot be deleted.
        """
        return await asyncio.to_thread(self._delete, check_model_name(model), version)

    async def room_for(
        self, size: int, keep: Container[tuple[str, int]], *, fetching: tuple[str, int] | None = None
    ) -> list[DiskVersion]:
        """Make room for `size` bytes, in the quota and on the disk, and hold it for a fetch.

        First goes what broken-off fetches left, then versions, those that were fetched longest ago first.

        Args:
            size: bytes.
            keep: model and number of the versions that stay.
            fetching: the version that the bytes are for, which may have some of them already; they count
                until `settled`.

        Returns:
            The versions that were deleted.

        Raises:
            NoRoomError: there is not enough; nothing was deleted then.
        """
        async with self._making_room:
            if fetching is not None:
                self._claims[fetching] = 0
            try:
                deleted = await asyncio.to_thread(self._make_room, size, keep, fetching)
            except OSError as error:
                raise NoRoomError(f"no room can be made in {self.base}: {error}") from error
            if fetching is not None:
                self._claims[fetching] = size
            return deleted

    def lock(self) -> DiskLock:
        """Be the one process that works on this directory; what others left half deleted is removed.

        The lock is the kernel's (flock), so that it ends with the process however that ends.

        Raises:
            AlreadyRunningError: another process is; says which.
        """
        try:
            import fcntl
        except ImportError as error:  # Windows
            raise RepositoryError("locking the directory needs flock, which this system lacks") from error
        path = self.private / "lock"
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - the lock keeps it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = _holder(file.read())
            file.close()
            pid, host = holder.get("pid"), holder.get("host", "")
            who = f"process {pid} on {host}" if pid is not None else "another process"
            raise AlreadyRunningError(f"{who} works on {self.base} already", pid=pid, host=host) from error
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n")
        file.flush()
        for name in _names(self._deleted):
            shutil.rmtree(self._deleted / name, ignore_errors=True)
        return DiskLock(file, path)

    # For `fetch`

    def staging(self, model: str, version: int) -> Path:
        """The folder in which a version is put together."""
        return self._fetching / check_model_name(model) / str(version)

    def publish(self, model: str, version: int, folder: Path, *, size: int, fingerprint: str) -> Path:
        """Rename `folder`, whose contents are on disk for good, to where servers see it; blocking.

        Raises:
            OSError: the disk fails, or the version is there.
        """
        target = self.path(model) / str(version)
        record = self._records / model / f"{version}.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        new = record.with_suffix(".new")
        with open(new, "w", encoding="utf-8") as file:
            json.dump({"fingerprint": fingerprint, "size": size}, file)
            file.flush()
            os.fsync(file.fileno())
        # First the record: without its version it means nothing.
        os.replace(new, record)
        sync_folder(record.parent)
        target.parent.mkdir(exist_ok=True)
        sync_folder(self.base)
        if os.path.lexists(target):
            raise FileExistsError(f"{target} is there already")
        os.rename(folder, target)
        sync_folder(target.parent)
        return target

    def begin(self, model: str, version: int) -> None:
        """A version is being fetched: what there is of it stays until `settled`."""
        self._claims[model, version] = 0

    def settled(self, model: str, version: int) -> None:
        """The fetch of a version is over, or rests: the room held for it is free."""
        self._claims.pop((model, version), None)

    def discard(self, folder: Path) -> None:
        """Delete a folder of this disk: away in one step, then for good; blocking."""
        away = self._deleted / f"{folder.name}-{uuid.uuid4().hex}"
        try:
            os.rename(folder, away)
        except FileNotFoundError:
            return
        shutil.rmtree(away, ignore_errors=True)

    # Inside

    def _delete(self, model: str, version: int) -> bool:
        there = False
        for child in _names(self.base / model):
            if version_number(child) == version:
                there = True
                self.discard(self.base / model / child)
                (self._records / model / f"{child}.json").unlink(missing_ok=True)
        if there:
            sync_folder(self.base / model)
        return there

    def _make_room(
        self, size: int, keep: Container[tuple[str, int]], fetching: tuple[str, int] | None
    ) -> list[DiskVersion]:
        missing = self._missing(size, fetching)
        if missing <= 0:
            return []
        under_way = {self.staging(*key) for key in self._claims}
        # What was begun and is not under way can be fetched again at any time.
        stale = [path for path in self._stagings() if path not in under_way]
        going: list[DiskVersion] = []
        gain = sum(self._size(path, fresh=True) for path in stale)
        for version in sorted(self._all(), key=lambda item: item.path.stat().st_mtime_ns):
            if gain >= missing:
                break
            if (version.model, version.version) not in keep:
                going.append(version)
                gain += version.size
        if gain < missing:
            raise NoRoomError(
                f"{size} bytes have no room in {self.base}: {missing} are missing, and {gain} could be freed "
                "without deleting what is in use"
            )
        for path in stale:
            self.discard(path)
        for version in going:
            logger.info("deleting version %d of %r to make room", version.version, version.model)
            self._delete(version.model, version.version)
        return going

    def _missing(self, size: int, fetching: tuple[str, int] | None) -> int:
        """Bytes that are too few for `size`."""
        claims = dict(self._claims)
        if fetching is not None:
            claims[fetching] = size
            size = 0
        here = {self.staging(*key): claim for key, claim in claims.items()}
        to_come = sum(max(0, claim - self._size(path, fresh=True)) for path, claim in here.items())
        missing = size + to_come - shutil.disk_usage(self.base).free
        if self.quota_bytes is not None:
            used = sum(version.size for version in self._all())
            used += sum(self._size(path, fresh=True) for path in self._stagings() if path not in here)
            missing = max(missing, used + sum(claims.values()) + size - self.quota_bytes)
        return missing

    def _all(self) -> Iterator[DiskVersion]:
        for versions in self.versions().values():
            yield from versions.values()

    def _stagings(self) -> list[Path]:
        return [
            self._fetching / model / name
            for model in _names(self._fetching)
            for name in _names(self._fetching / model)
        ]

    def _record(self, model: str, child: str) -> dict[str, Any] | None:
        try:
            with open(self._records / model / f"{child}.json", encoding="utf-8") as file:
                found = json.load(file)
            return {"fingerprint": str(found["fingerprint"]), "size": int(found["size"])}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _size(self, path: Path, *, fresh: bool = False) -> int:
        """Bytes of the files below `path`; remembered while the folder is the same."""
        try:
            info = path.stat()
        except FileNotFoundError:
            return 0
        key = (info.st_ino, info.st_mtime_ns)
        known = self._sizes.get(path)
        if not fresh and known is not None and known[0] == key:
            return known[1]
        size = 0
        for folder, _, files in os.walk(path):
            for name in files:
                with contextlib.suppress(FileNotFoundError):
                    there = os.lstat(os.path.join(folder, name))
                    # What is being fetched has holes: files of their full length, of which little is there.
                    size += min(there.st_size, there.st_blocks * 512) if fresh else there.st_size
        with self._guard:
            self._sizes[path] = (key, size)
        return size


def _names(folder: Path) -> Collection[str]:
    """Names in a folder; none if it is not there, or none."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _holder(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
        return {"pid": int(found["pid"]), "host": str(found["host"])}
    except (ValueError, KeyError, TypeError):
        return {}


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Bring to disk which names a folder has; blocking."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
