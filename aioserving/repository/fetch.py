"""Versions from a store to disk, verified, so that a model server never sees half of one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Container, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aioserving.repository.disk import Disk
from aioserving.repository.store import Store, StoredVersion

__all__ = ["Fetch", "FetchProgress", "Fetcher"]


@dataclass(frozen=True)
class FetchProgress:
    """How far a fetch is."""

    model: str
    version: int
    #: What is being done now; ``"done"`` is the last.
    state: Literal["waiting", "listing", "fetching", "verifying", "unpacking", "done"]
    bytes_done: int
    #: None while it is not known.
    bytes_total: int | None
    files_done: int
    files_total: int | None


class Fetch:
    """One caller's share in the fetch of a version; made by `Fetcher.fetch`.

    Awaited, it gives the version's folder. Iterated, it gives `FetchProgress`, the newest there is each
    time, and ends when the fetch does; what that failed with is raised. Whoever is cancelled while he waits
    gives up his share, and so does `cancel`; the fetch stops when nobody has one any more.
    """

    def __await__(self) -> Generator[Any, None, Path]:
        raise NotImplementedError

    def __aiter__(self) -> AsyncIterator[FetchProgress]:
        raise NotImplementedError

    def cancel(self) -> None:
        """Give up this share; a second time does nothing."""
        raise NotImplementedError


class Fetcher:
    """Fetches versions from a store to disk."""

    def __init__(
        self,
        store: Store,
        disk: Disk,
        *,
        max_concurrent_files: int = 8,
        chunk_bytes: int = 8 << 20,
        keep: Callable[[], Container[tuple[str, int]]] | None = None,
    ) -> None:
        raise NotImplementedError

    def fetch(self, version: StoredVersion) -> Fetch:
        """Fetch a version, or join its fetch if that is under way; one that is on disk is done at once."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Stop all fetches; what they have stays for the next one."""
        raise NotImplementedError
