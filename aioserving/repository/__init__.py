"""From blob store to served model: versions are fetched, verified and rolled out by policy.

Names are loaded when they are first used, so that importing the package costs nothing; a store's own
package (s3fs, gcsfs, adlfs) is needed only where its URLs are.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aioserving.repository.disk import Disk as Disk
    from aioserving.repository.disk import DiskLock as DiskLock
    from aioserving.repository.disk import DiskVersion as DiskVersion
    from aioserving.repository.errors import AlreadyRunningError as AlreadyRunningError
    from aioserving.repository.errors import CorruptVersionError as CorruptVersionError
    from aioserving.repository.errors import IncompleteVersionError as IncompleteVersionError
    from aioserving.repository.errors import InvalidNameError as InvalidNameError
    from aioserving.repository.errors import LimitExceededError as LimitExceededError
    from aioserving.repository.errors import NoRoomError as NoRoomError
    from aioserving.repository.errors import NotInStoreError as NotInStoreError
    from aioserving.repository.errors import RepositoryError as RepositoryError
    from aioserving.repository.errors import StoreAccessError as StoreAccessError
    from aioserving.repository.errors import StoreError as StoreError
    from aioserving.repository.errors import StoreUnavailableError as StoreUnavailableError
    from aioserving.repository.errors import UnsafeArchiveError as UnsafeArchiveError
    from aioserving.repository.errors import VersionChangedError as VersionChangedError
    from aioserving.repository.errors import VersionError as VersionError
    from aioserving.repository.fetch import Fetch as Fetch
    from aioserving.repository.fetch import Fetcher as Fetcher
    from aioserving.repository.fetch import FetchProgress as FetchProgress
    from aioserving.repository.names import Limits as Limits
    from aioserving.repository.store import Store as Store
    from aioserving.repository.store import StoredFile as StoredFile
    from aioserving.repository.store import StoredVersion as StoredVersion

#: Where each public name is defined; the other modules of the package add theirs.
_NAMES = {
    name: module
    for module, names in {
        "disk": "Disk DiskLock DiskVersion",
        "errors": (
            "AlreadyRunningError CorruptVersionError IncompleteVersionError InvalidNameError "
            "LimitExceededError NoRoomError NotInStoreError RepositoryError StoreAccessError StoreError "
            "StoreUnavailableError UnsafeArchiveError VersionChangedError VersionError"
        ),
        "fetch": "Fetch FetchProgress Fetcher",
        "names": "Limits",
        "store": "Store StoredFile StoredVersion",
    }.items()
    for name in names.split()
}

__all__ = sorted(_NAMES)  # noqa: PLE0605 - a list, made of the table above


def __getattr__(name: str) -> Any:
    try:
        module = _NAMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
