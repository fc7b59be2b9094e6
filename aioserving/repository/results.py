"""What a repository service answers, as plain frozen objects.

`client` gives them and `conversion` makes them from messages. Policies, events and the progress of fetches
have their own classes, which the controller uses, too: `policy.Policy`, `events.Event`,
`fetch.FetchProgress`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aioserving.repository.policy import Policy
from aioserving.status import VersionStatus

__all__ = [
    "DiskCopy",
    "FetchedVersion",
    "ModelInfo",
    "ModelVersions",
    "PlannedStep",
    "QuarantineInfo",
    "StoreCopy",
    "VersionInfo",
]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model that the store has, that is on disk, or that has a policy."""

    name: str
    #: None: nobody said what is to be served.
    policy: Policy | None = None
    #: The versions that serve well and are to go on, highest first.
    promoted: tuple[int, ...] = ()
    #: Where the version labels are to be.
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoreCopy:
    """A version in the store."""

    #: Where it is, without secrets.
    url: str
    #: Whether it is one archive instead of a folder.
    archive: bool = False
    #: Bytes in the store (packed, if an archive); None if unknown.
    size: int | None = None


@dataclass(frozen=True, slots=True)
class DiskCopy:
    """A complete version on disk."""

    #: Its folder, as the service sees it.
    path: str
    #: Bytes of its files.
    size: int
    #: Whether it is the very version that the store has now; None if that cannot be told.
    current: bool | None = None


@dataclass(frozen=True, slots=True)
class QuarantineInfo:
    """Why a version is not served, and since when."""

    reason: str
    #: Seconds since 1970.
    since: float


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One version, and where it is."""

    version: int
    #: None: the store does not have it.
    store: StoreCopy | None = None
    #: None: it is not on disk, or not complete.
    disk: DiskCopy | None = None
    #: How it is on each server that knows it, by the server's name.
    servers: Mapping[str, VersionStatus] = field(default_factory=dict)
    #: Labels that are on it.
    labels: tuple[str, ...] = ()
    #: Whether the policy wants it served.
    wanted: bool = False
    #: None: it is not in quarantine.
    quarantine: QuarantineInfo | None = None
    #: ``"promoted"``, ``"candidate"``, ``"canary"``, ``"quarantined"``, ``"retired"``, or empty.
    role: str = ""


@dataclass(frozen=True, slots=True)
class ModelVersions:
    """The versions of one model."""

    model: str
    #: Highest first.
    versions: tuple[VersionInfo, ...]
    #: None: nobody said what is to be served.
    policy: Policy | None = None
    #: What the service waits for before it goes on with the model, in words.
    waiting: tuple[str, ...] = ()

    def version(self, number: int) -> VersionInfo | None:
        """The version of that number, or None."""
        return next((item for item in self.versions if item.version == number), None)


@dataclass(frozen=True, slots=True)
class FetchedVersion:
    """A version that has been brought to disk."""

    model: str
    version: int
    #: Its folder, as the service sees it.
    path: str


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One thing that the service would do."""

    #: What it is, in a word.
    kind: str
    #: The same with the reason, in words.
    text: str
    model: str | None = None
    version: int | None = None
    #: Name of the server, if it is about one.
    server: str | None = None

    def __str__(self) -> str:
        return self.text
