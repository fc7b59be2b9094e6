"""From blob store to served model: versions are fetched, verified and rolled out by policy.

Names are loaded when they are first used, so that importing the package costs nothing; a store's own
package (s3fs, gcsfs, adlfs) is needed only where its URLs are.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aioserving.repository.client import AsyncRepositoryClient as AsyncRepositoryClient
    from aioserving.repository.client import Position as Position
    from aioserving.repository.client import RepositoryClient as RepositoryClient
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
    from aioserving.repository.results import DiskCopy as DiskCopy
    from aioserving.repository.results import FetchedVersion as FetchedVersion
    from aioserving.repository.results import ModelInfo as ModelInfo
    from aioserving.repository.results import ModelVersions as ModelVersions
    from aioserving.repository.results import PlannedStep as PlannedStep
    from aioserving.repository.results import StoreCopy as StoreCopy
    from aioserving.repository.results import VersionInfo as VersionInfo
    from aioserving.repository.service import RepositoryService as RepositoryService
    from aioserving.repository.service import authentication as authentication
    from aioserving.repository.service import open_controller as open_controller
    from aioserving.repository.service import serve as serve
    from aioserving.repository.service import server_credentials as server_credentials
    from aioserving.repository.setup_file import Setup as Setup
    from aioserving.repository.setup_file import SetupError as SetupError
    from aioserving.repository.setup_file import SetupProblem as SetupProblem
    from aioserving.repository.setup_file import load_setup as load_setup
    from aioserving.repository.setup_file import read_setup as read_setup
    from aioserving.repository.store import Store as Store
    from aioserving.repository.store import StoredFile as StoredFile
    from aioserving.repository.store import StoredVersion as StoredVersion

#: Where each public name is defined; the other modules of the package add theirs.
_NAMES = {
    name: module
    for module, names in {
        "client": "AsyncRepositoryClient Position RepositoryClient",
        "disk": "Disk DiskLock DiskVersion",
        "errors": (
            "AlreadyRunningError CorruptVersionError IncompleteVersionError InvalidNameError "
            "LimitExceededError NoRoomError NotInStoreError RepositoryError StoreAccessError StoreError "
            "StoreUnavailableError UnsafeArchiveError VersionChangedError VersionError"
        ),
        "fetch": "Fetch FetchProgress Fetcher",
        "names": "Limits",
        "results": "DiskCopy FetchedVersion ModelInfo ModelVersions PlannedStep StoreCopy VersionInfo",
        "service": "RepositoryService authentication open_controller serve server_credentials",
        "setup_file": "Setup SetupError SetupProblem load_setup read_setup",
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
