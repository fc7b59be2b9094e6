"""The folder that the model servers scan: ``<base>/<model>/<version>/``."""

from __future__ import annotations

import os
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import final

__all__ = ["Disk", "DiskLock", "DiskVersion"]


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

    def release(self) -> None:
        """Let another process have the directory; a second time does nothing."""
        raise NotImplementedError

    def __enter__(self) -> DiskLock:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


class Disk:
    """The local base directory: ``Disk(base, quota_bytes=None)``."""

    def __init__(self, base: str | os.PathLike[str], *, quota_bytes: int | None = None) -> None:
        raise NotImplementedError

    #: The folder of the repository's own files (``<base>/.aioserving``), which no server looks into; the
    #: controller's state belongs here, too.
    private: Path

    def versions(self, model: str | None = None) -> dict[str, dict[int, DiskVersion]]:
        """Complete versions by model and number; blocking, but quick (no more than two listings a model)."""
        raise NotImplementedError

    def path(self, model: str) -> Path:
        """The model's folder, absolute: the `base_path` of a server's configuration."""
        raise NotImplementedError

    async def delete(self, model: str, version: int) -> bool:
        """Delete a version: out of sight of servers in one step, then for good. False: it was not there."""
        raise NotImplementedError

    async def room_for(self, size: int, keep: Container[tuple[str, int]]) -> list[DiskVersion]:
        """Make room for `size` more bytes; gives the versions deleted for it, none of them in `keep`.

        Raises:
            NoRoomError: there is not enough.
        """
        raise NotImplementedError

    def lock(self) -> DiskLock:
        """Be the one process that works on this directory.

        Raises:
            AlreadyRunningError: another one is; says which.
        """
        raise NotImplementedError
