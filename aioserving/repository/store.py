"""What versions a blob store has, and their bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from aioserving.repository.names import Limits

__all__ = ["Store", "StoredFile", "StoredVersion"]


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


class Store:
    """A blob store of models: ``<root>/<model>/<version>/saved_model.pb``; made by `Store.open`."""

    @classmethod
    def open(
        cls,
        url: str,
        *,
        storage_options: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
        limits: Limits | None = None,
        settle: float = 0.5,
    ) -> Store:
        """A store at an fsspec URL. Nothing is read yet."""
        raise NotImplementedError

    async def models(self) -> list[str]:
        """Names of the models, sorted."""
        raise NotImplementedError

    async def versions(self, model: str) -> list[StoredVersion]:
        """Complete versions of a model, lowest first; none for a model that is not there."""
        raise NotImplementedError

    async def listings(self, models: Iterable[str]) -> dict[str, list[StoredVersion]]:
        """`versions` of many models, at the price of one listing where that is cheaper than one each."""
        raise NotImplementedError

    def unsettled(self) -> set[tuple[str, int]]:
        """Versions seen in the last listings that may be half uploaded: look again in `settle` seconds."""
        raise NotImplementedError

    async def files(self, version: StoredVersion) -> list[StoredFile]:
        """The files of a version, from a fresh listing; for an archive, the archive itself."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close connections."""
        raise NotImplementedError
