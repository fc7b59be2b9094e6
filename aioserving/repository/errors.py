"""Every exception that aioserving.repository adds to those of `aioserving.errors`.

    ServingError
    └── RepositoryError                       anything the repository raises on purpose
        ├── InvalidNameError (ValueError)     a name of a model, version or file that is not taken
        ├── StoreError                        the blob store could not be read
        │   ├── StoreAccessError (PermissionError)    it refuses these credentials
        │   ├── StoreUnavailableError (ConnectionError)   it does not answer, or breaks off; later may do
        │   └── NotInStoreError (LookupError) it has no such model, version or file
        ├── VersionError                      a version cannot be brought to disk as it is
        │   ├── IncompleteVersionError        files are missing: an upload under way, or a broken one
        │   ├── VersionChangedError           its files changed while they were read, or since they were
        │   ├── CorruptVersionError           a file is not what its checksum, size or format says
        │   ├── UnsafeArchiveError            an archive with members that are not taken
        │   └── LimitExceededError            more files or bytes than the limits allow
        ├── NoRoomError                       the disk, or its quota, is full
        ├── AlreadyRunningError               another process works on the directory; names it
        ├── PolicyMissingError (LookupError)  the model has no policy, and needs one for this
        └── VersionInUseError                 a version that is served, or may be, cannot be deleted

Which of them may go away by themselves, so that the same can be tried again later, says
`RepositoryError.transient`.
"""

from __future__ import annotations

from typing import ClassVar

from aioserving.errors import ServingError

__all__ = [
    "AlreadyRunningError",
    "CorruptVersionError",
    "IncompleteVersionError",
    "InvalidNameError",
    "LimitExceededError",
    "NoRoomError",
    "NotInStoreError",
    "PolicyMissingError",
    "RepositoryError",
    "StoreAccessError",
    "StoreError",
    "StoreUnavailableError",
    "UnsafeArchiveError",
    "VersionChangedError",
    "VersionError",
    "VersionInUseError",
]


class RepositoryError(ServingError):
    """Anything that the repository raises on purpose."""

    #: Whether the same may succeed later though nobody mends anything.
    transient: ClassVar[bool] = False


class InvalidNameError(RepositoryError, ValueError):
    """A name of a model, a version or a file is not one that is taken."""


class StoreError(RepositoryError):
    """The blob store could not be read."""


class StoreAccessError(StoreError, PermissionError):
    """The store refuses the credentials, also after they were obtained anew."""


class StoreUnavailableError(StoreError, ConnectionError):
    """The store does not answer, or broke off more often than is put up with."""

    transient = True


class NotInStoreError(StoreError, LookupError):
    """The store has no such model, version or file; perhaps not any more."""


class VersionError(RepositoryError):
    """A version cannot be brought to disk as it is.

    Attributes:
        model: the model's name.
        version: the version's number.
    """

    def __init__(self, text: str, *, model: str, version: int) -> None:
        super().__init__(text)
        self.model = model
        self.version = version

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive Exception's own pickling.
        return _rebuild, (type(self), self.args[0], self.model, self.version)

    def __str__(self) -> str:
        return f"version {self.version} of model {self.model!r}: {self.args[0]}"


def _rebuild(kind: type[VersionError], text: str, model: str, version: int) -> VersionError:
    return kind(text, model=model, version=version)


class IncompleteVersionError(VersionError):
    """Files of the version are missing: its upload is under way, or broke off."""

    transient = True


class VersionChangedError(VersionError):
    """Files of the version keep changing while they are read, or are not those that are on disk."""

    transient = True


class CorruptVersionError(VersionError):
    """A file is not what its checksum, its size or its format says, also when it is read again."""


class UnsafeArchiveError(VersionError):
    """An archive holds what is not taken: links, devices, paths out of it, the same name twice."""


class LimitExceededError(VersionError):
    """A version has more files or bytes than `Limits` allows, or unpacks to too many times its size."""


class NoRoomError(RepositoryError):
    """The disk is full, or its quota, and nothing is left that may be deleted."""

    transient = True


class AlreadyRunningError(RepositoryError):
    """Another process works on the directory.

    Attributes:
        pid: number of that process, or None if it is not known.
        host: name of the machine that it runs on, or empty.
    """

    def __init__(self, text: str, *, pid: int | None = None, host: str = "") -> None:
        super().__init__(text)
        self.pid = pid
        self.host = host

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_running, (self.args[0], self.pid, self.host)


def _rebuild_running(text: str, pid: int | None, host: str) -> AlreadyRunningError:
    return AlreadyRunningError(text, pid=pid, host=host)


class PolicyMissingError(RepositoryError, LookupError):
    """The model has no policy, and needs one for what was asked."""


class VersionInUseError(RepositoryError):
    """The version is wanted by a policy, or a server has it, or may have it: it cannot be deleted."""
