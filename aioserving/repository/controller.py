"""The controller: looks, plans and acts until every server serves what the policies want."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aioserving.repository.events import Watch
from aioserving.repository.plan import Plan
from aioserving.repository.policy import Policy
from aioserving.repository.state import LabelChange, Quarantine, State, StateFile
from aioserving.status import VersionStatus

if TYPE_CHECKING:
    from types import TracebackType

    from aioserving.client import AsyncClient
    from aioserving.configuration import ModelConfigs
    from aioserving.repository.disk import Disk, DiskVersion
    from aioserving.repository.fetch import Fetch, Fetcher
    from aioserving.repository.store import Store, StoredVersion

__all__ = ["Controller", "ModelReport", "VersionReport"]


@dataclass(frozen=True, slots=True)
class VersionReport:
    """One version of a model: where it is, and what it is to the controller."""

    version: int
    #: What the store has; None if it is not there.
    stored: StoredVersion | None
    #: What is on disk; None if it is not there.
    disk: DiskVersion | None
    #: What each server says of it, by the server's name; servers that know nothing of it are missing.
    servers: Mapping[str, VersionStatus]
    #: ``"promoted"``, ``"candidate"``, ``"canary"``, ``"quarantined"``, ``"retired"``, or empty.
    role: str = ""
    #: Labels that are on it.
    labels: tuple[str, ...] = ()
    #: Why it is in quarantine, or None.
    quarantine: Quarantine | None = None
    #: Whether the policy wants it.
    wanted: bool = False


@dataclass(frozen=True, slots=True)
class ModelReport:
    """One model: its policy and its versions."""

    model: str
    policy: Policy | None
    #: Highest version first.
    versions: tuple[VersionReport, ...]
    labels: Mapping[str, int] = field(default_factory=dict)
    #: Where the labels were, the last change last.
    history: tuple[LabelChange, ...] = ()
    #: What the controller waits for, in words.
    waiting: tuple[str, ...] = ()


class Controller:
    """Keeps servers at what policies want.

    Args:
        store: where versions come from.
        disk: where the servers read them; the controller locks it.
        fetcher: brings them from the one to the other.
        servers: a client of each server, by a name for it; each client has that one server as its target.
        state: the file that survives restarts; None: ``state.json`` in the disk's own folder.
        poll_period: seconds between two looks at the store, and at servers where nothing happens.
        max_concurrent_loads: versions that may be loading on all servers together; None: no limit.
        max_concurrent_fetches: versions that may be fetched at once.
        server_grace: seconds for which rollouts wait for a server that does not answer; after that they
            go on without it, and it follows when it is back.
        base_path: the base path that the servers are told for a model, where they see the disk under
            another path; None: as this process sees it.
        extra_models: models that the servers serve beside those of the repository, as for
            `AsyncClient.reload_config`; every reload names them, too.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        store: Store,
        disk: Disk,
        fetcher: Fetcher,
        servers: Mapping[str, AsyncClient],
        state: StateFile | None = None,
        *,
        poll_period: float = 10.0,
        max_concurrent_loads: int | None = None,
        max_concurrent_fetches: int = 2,
        server_grace: float = 30.0,
        base_path: Callable[[str], str] | None = None,
        extra_models: ModelConfigs = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Controller:
        """Lock the disk, read the state and begin to work in the background.

        Raises:
            AlreadyRunningError: another controller works on this disk.
            StateError: the state on disk cannot be read.
        """
        raise NotImplementedError

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def run(self) -> None:
        """Work until cancelled; for who does not use ``async with``."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Stop working and unlock the disk; what the servers serve stays. Store and clients stay open."""
        raise NotImplementedError

    async def plan(self) -> Plan:
        """What would be done next; nothing is done."""
        raise NotImplementedError

    async def step(self) -> Plan:
        """One turn: look, plan, act, and wait until that is done."""
        raise NotImplementedError

    async def wait_converged(self, timeout: float | None = None) -> None:
        """Wait until there is nothing left to do.

        Raises:
            TimeoutError: with what is left.
        """
        raise NotImplementedError

    @property
    def state(self) -> State:
        """What is remembered, as of now."""
        raise NotImplementedError

    @property
    def policies(self) -> dict[str, Policy]:
        """The policies, by model."""
        return self.state.policies

    def get_policy(self, model: str) -> Policy | None:
        """The policy of a model, or None."""
        raise NotImplementedError

    async def set_policy(self, model: str, policy: Policy) -> None:
        """Set or change what is wanted of a model; it is on disk when this returns.

        Raises:
            InvalidNameError: no model can have this name.
        """
        raise NotImplementedError

    async def remove_policy(self, model: str) -> bool:
        """Serve the model no more; its versions stay on disk. False: there was no policy."""
        raise NotImplementedError

    async def rollout(self, model: str, version: int | None = None) -> int:
        """Bring a version to the servers now, whatever the hours; out of quarantine, if it is there.

        The policy is pinned to it if it would choose another.

        Args:
            model: name of the model; it has a policy.
            version: the version; None: the newest of the store.

        Returns:
            The version.

        Raises:
            NotInStoreError: there is no such version, in the store or on disk.
            PolicyMissingError: the model has no policy.
        """
        raise NotImplementedError

    async def rollback(self, model: str, version: int | None = None) -> int:
        """Go back to the version before, or to `version`; those above it go into quarantine.

        Returns:
            The version that it goes back to.

        Raises:
            NotInStoreError: there is no version to go back to.
            PolicyMissingError: the model has no policy.
        """
        raise NotImplementedError

    async def release(self, model: str, version: int) -> bool:
        """Take a version out of quarantine. False: it was not there."""
        raise NotImplementedError

    async def delete_version(self, model: str, version: int) -> bool:
        """Delete a version from disk. False: it was not there.

        Raises:
            VersionInUseError: a policy wants it, or a server has it, or may have it.
        """
        raise NotImplementedError

    async def fetch(self, model: str, version: int | None = None) -> Fetch:
        """Fetch a version (None: the newest) that no policy need want; see `Fetcher.fetch`.

        Raises:
            NotInStoreError: the store has no such version.
        """
        raise NotImplementedError

    async def models(self) -> list[str]:
        """Names of the models that the store, the disk or a policy has, sorted."""
        raise NotImplementedError

    async def status(self, model: str) -> ModelReport:
        """How a model and its versions are, in the store, on disk and on the servers, as of now."""
        raise NotImplementedError

    def watch(self, *, since: int | None = None) -> Watch:
        """What happens from now on; `since`: after the event of that number, as far as kept."""
        raise NotImplementedError

    def in_use(self) -> frozenset[tuple[str, int]]:
        """Versions that must not be deleted: for the fetcher's ``keep``."""
        raise NotImplementedError
