"""The controller: looks, plans and acts until every server serves what the policies want.

    async with Controller(store, disk, fetcher, {"a": AsyncClient(...), "b": AsyncClient(...)}) as controller:
        await controller.set_policy("digits", Policy(labels={"stable": Label()}))

`plan` decides; this module looks at store, disk and servers, remembers what was decided (`state`) and takes
the steps: fetches, reloads, probes and deletions, each in a task of its own, so that a slow one holds up no
other. While nothing happens it looks at the store once a period and asks each server for a part of its
models, all in turn, as one answer is enough to notice a restart.

What servers were told is not known after a start; they are told again, which takes nothing away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, cast

from aioserving.configuration import PLATFORM, check_config, with_models
from aioserving.errors import (
    AbortedError,
    CancelledError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    InvalidConfigError,
    MessageTooLargeError,
    NotFoundError,
    ResourceExhaustedError,
    ServingError,
    UnavailableError,
    UnknownError,
    VersionNotFoundError,
)
from aioserving.repository import plan as planning
from aioserving.repository.errors import (
    NotInStoreError,
    PolicyMissingError,
    RepositoryError,
    VersionInUseError,
)
from aioserving.repository.events import EventKind, Events, Watch
from aioserving.repository.names import check_model_name
from aioserving.repository.plan import Plan
from aioserving.repository.policy import Policy, Probe
from aioserving.repository.state import LabelChange, ModelState, Quarantine, State, StateFile
from aioserving.status import ModelStatus, VersionStatus
from aioserving.status import State as ServerState

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from aioserving.client import AsyncClient
    from aioserving.configuration import ModelConfigs
    from aioserving.messages import ModelServerConfig
    from aioserving.repository.disk import Disk, DiskLock, DiskVersion
    from aioserving.repository.fetch import Fetch, Fetcher
    from aioserving.repository.store import Store, StoredVersion

__all__ = ["Controller", "ModelReport", "VersionReport"]

logger = logging.getLogger("aioserving")

#: Seconds between two turns while something is awaited, at first and at most.
_PAUSE: Final = (0.03, 0.5)
#: Seconds after which a look at the disk is repeated, though nothing of ours changed it.
_DISK_PERIOD: Final = 60.0
#: Seconds between two looks at a server that does not answer.
_LOOK_AGAIN: Final = 0.5
#: Seconds after which a version that seemed half uploaded is looked at again.
_UNSETTLED: Final = 1.0
#: Parts in which the models of a server at rest are asked for, one part a period.
_SLICES: Final = 20
#: Questions to one server at a time.
_AT_ONCE: Final = 16
#: Seconds that a server has for the status of a model, and for a reload.
_STATUS_TIMEOUT: Final = 3.0
_RELOAD_TIMEOUT: Final = 60.0
#: Seconds after which a reload that failed, and a probe without an answer, is tried again.
_RELOAD_AGAIN: Final = 1.0
_PROBE_AGAIN: Final = 1.0
#: Seconds after which a fetch that failed is tried again, at first and at most; it doubles every time.
_FETCH_AGAIN: Final = (2.0, 300.0)
#: Seconds for which a failure from before a version was asked for again is not believed: the server looks
#: at its disk every second.
_STALE: Final = 2.5


class _Server:
    """What is known of one server."""

    def __init__(self, name: str, client: AsyncClient) -> None:
        self.name = name
        self.client = client
        #: Whether it answers; not known at first.
        self.reachable = False
        self.since = 0.0
        self.look_at = 0.0
        self.retry_at = 0.0
        self.config: planning.ServerConfig | None = None
        self.sending: planning.ServerConfig | None = None
        self.versions: dict[str, dict[int, planning.VersionFound]] = {}
        #: When versions that had ended were asked for again, and how they were then.
        self.asked: dict[tuple[str, int], tuple[float, tuple[ServerState, str | None]]] = {}

    def __repr__(self) -> str:
        return f"<server {self.name}: {'up' if self.reachable else 'down'}, {len(self.versions)} models>"

    def forget(self) -> None:
        """It is another process than before."""
        self.config = self.sending = None
        self.versions = {}
        self.asked = {}
        self.retry_at = 0.0

    def found(self) -> planning.ServerFound:
        """The same for a plan; it does not change any more."""
        return planning.ServerFound(
            self.reachable, self.since, self.config, self.sending, self.retry_at, dict(self.versions)
        )


@dataclass(frozen=True, slots=True)
class _FetchFailures:
    reason: str
    retry_at: float
    count: int
    fingerprint: str


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
        if not poll_period > 0:
            raise ValueError(f"poll_period must be a number of seconds above 0, got {poll_period!r}")
        for name, value in (
            ("max_concurrent_loads", max_concurrent_loads),
            ("max_concurrent_fetches", max_concurrent_fetches),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value!r}")
        self.store = store
        self.disk = disk
        self.fetcher = fetcher
        self.poll_period = poll_period
        self.settings = planning.Settings(max_concurrent_loads, server_grace)
        self.events = Events()
        self._file = state if state is not None else StateFile(disk.private / "state.json")
        self._servers = {name: _Server(name, client) for name, client in servers.items()}
        self._base_path = base_path
        self._extra = extra_models
        self._clock = clock
        self._max_fetches = max_concurrent_fetches
        self._state: State | None = None
        self._disk_lock: DiskLock | None = None
        self._loop_task: asyncio.Task[None] | None = None
        self._tasks: dict[tuple[object, ...], asyncio.Task[None]] = {}
        self._deciding = asyncio.Lock()
        self._looking = asyncio.Lock()
        self._closing = False
        self._wake = asyncio.Event()
        self._turned = asyncio.Event()
        #: Versions in the store when it was looked at last, by model.
        self._stored: dict[str, dict[int, StoredVersion]] = {}
        self._store_problem = ""
        self._store_due = 0.0
        self._on_disk: dict[str, dict[int, DiskVersion]] = {}
        self._disk_due = 0.0
        self._fetching: set[tuple[str, int]] = set()
        self._deleting: set[tuple[str, int]] = set()
        self._probing: dict[tuple[str, int, str], float] = {}
        self._fetch_failures: dict[tuple[str, int], _FetchFailures] = {}
        self._plan = Plan()
        #: Models whose versions are looked at in every turn, as something happens to them.
        self._active: set[str] = set()
        self._slice = 0
        self._pause = _PAUSE[0]

    def __repr__(self) -> str:
        up = sum(server.reachable for server in self._servers.values())
        policies = len(self._state.policies) if self._state is not None else 0
        return (
            f"<Controller of {policies} models, {up} of {len(self._servers)} servers up, "
            f"{len(self._plan.actions)} steps and {len(self._plan.waits)} waits in the last plan>"
        )

    # -- life

    async def __aenter__(self) -> Self:
        """Lock the disk, read the state and begin to work in the background.

        Raises:
            AlreadyRunningError: another controller works on this disk.
            StateError: the state on disk cannot be read.
        """
        await self._open()
        self._loop_task = asyncio.create_task(self._work(), name="aioserving repository controller")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def run(self) -> None:
        """Work until cancelled; for who does not use ``async with``.

        Raises:
            AlreadyRunningError: another controller works on this disk.
            StateError: the state on disk cannot be read.
        """
        try:
            await self._open()
            await self._work()
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Stop working and unlock the disk; what the servers serve stays. Store and clients stay open."""
        loop_task, self._loop_task = self._loop_task, None
        tasks = [*self._tasks.values(), *([loop_task] if loop_task is not None else [])]
        self._closing = True
        waiting = set(tasks)
        while waiting:
            # Again and again: `asyncio.wait_for` may lose a cancellation (Python < 3.12).
            for task in waiting:
                task.cancel()
            _, waiting = await asyncio.wait(waiting, timeout=0.2)
        self._tasks.clear()
        lock, self._disk_lock = self._disk_lock, None
        if lock is not None:
            lock.release()
            self._tell("stopped", "")
        self.events.close()

    async def _open(self) -> None:
        if self._disk_lock is not None:
            return
        self._disk_lock = self.disk.lock()
        try:
            await self._load()
        except BaseException:
            self._disk_lock.release()
            self._disk_lock = None
            raise
        self._tell("started", f"{len(self.policies)} models, {len(self._servers)} servers")
        if self._file.recovered:
            self._tell("problem", self._file.recovered)

    async def _load(self) -> None:
        self._state = await asyncio.to_thread(self._file.load)

    async def _work(self) -> None:
        while not self._closing:
            try:
                await self._turn(store=self._clock() >= self._store_due)
            except Exception as error:
                logger.exception("a turn of the repository's controller failed")
                self._tell("problem", f"a turn failed: {type(error).__name__}: {error}")
                await asyncio.sleep(1.0)
            self._turned.set()
            self._turned = asyncio.Event()
            await self._rest()

    async def _rest(self) -> None:
        """Wait until something has happened, or the time has come to look again."""
        now = self._clock()
        pause = self._store_due - now
        if self._plan.actions:
            self._pause = _PAUSE[0]
            pause = min(pause, self._pause)
        elif self._plan.waits:
            pause = min(pause, self._pause)
            self._pause = min(self._pause * 1.3, _PAUSE[1])
        else:
            self._pause = _PAUSE[0]
        for server in self._servers.values():
            if not server.reachable:
                pause = min(pause, max(server.look_at - now, _PAUSE[0]))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._wake.wait(), max(pause, 0.0))
        self._wake.clear()

    # -- one turn

    async def plan(self, policies: Mapping[str, Policy] | None = None) -> Plan:
        """What would be done next; nothing is done, and another controller may be at work.

        Args:
            policies: policies that replace those that were set, for what they would lead to.

        Raises:
            StateError: the state on disk cannot be read.
        """
        if self._state is None:
            await self._load()
        await self._look(store=True, all_models=True, more=(policies or {}).keys())
        found = self._found()
        unseen = (policies or {}).keys() - found.store.keys()  # the store was not asked for those
        if unseen:
            listed = await self.store.listings(sorted(unseen))
            versions = {model: {item.version for item in items} for model, items in listed.items()}
            found = replace(found, store={**found.store, **versions})
        for model, policy in (policies or {}).items():
            remembered = replace(found.state.model(model), policy=policy)
            found = replace(found, state=found.state.with_model(model, remembered))
        return planning.plan(self.settings, found)

    async def preview(self, policies: Mapping[str, Policy]) -> None:
        """Read the state, and let `plan`, `status` and `get_policy` show how these policies would change it.

        Nothing is written, and another controller may be at work. It ends when this one begins to.

        Raises:
            RuntimeError: this one is at work.
            StateError: the state on disk cannot be read.
        """
        if self._disk_lock is not None:
            raise RuntimeError(f"{self!r} is at work; set the policies, or give them to plan()")
        await self._load()
        for model, policy in policies.items():
            self._state = self.state.with_model(model, replace(self.state.model(model), policy=policy))

    async def step(self) -> Plan:
        """One turn: look, plan, act, and wait until that is done. Not while it works by itself.

        Raises:
            AlreadyRunningError: another controller works on this disk.
            RuntimeError: this one is at work.
        """
        if self._loop_task is not None:
            raise RuntimeError(f"{self!r} is at work; it takes its turns by itself")
        await self._open()
        made = await self._turn(store=True, all_models=True)
        while self._tasks:
            await asyncio.wait(self._tasks.values())
            await asyncio.sleep(0)
        return made

    async def wait_converged(self, timeout: float | None = None) -> None:
        """Wait until there is nothing left to do, by a look at the store that begins now.

        Raises:
            TimeoutError: with what is left.
        """
        deadline = None if timeout is None else self._clock() + timeout
        self._store_due = 0.0
        self._active |= self.policies.keys()
        asked = self._clock()
        while True:
            turned = self._turned
            self._wake.set()
            left = None if deadline is None else deadline - self._clock()
            try:
                await asyncio.wait_for(turned.wait(), left)
            except asyncio.TimeoutError:
                raise TimeoutError(f"not converged after {timeout:g} s:\n{self._plan}") from None
            if not self._plan and not self._tasks and self._store_due > asked:
                return
            if self._plan:
                await asyncio.sleep(_PAUSE[0])

    async def _turn(self, *, store: bool = False, all_models: bool = False) -> Plan:
        await self._look(store=store, all_models=all_models)
        async with self._deciding:
            made = self._plan = planning.plan(self.settings, self._found())
            if made.state != self._state:
                await self._save(made.state)
            self._active = {
                model for step in made.steps if (model := getattr(step, "model", None)) is not None
            }
        for step in made.actions:
            self._act(step)
        return made

    def _found(self) -> planning.Found:
        now = self._clock()
        self._probing = {key: until for key, until in self._probing.items() if until > now}
        return planning.Found(
            now=now,
            state=self.state,
            store={model: versions.keys() for model, versions in self._stored.items()},
            disk={model: versions.keys() for model, versions in self._on_disk.items()},
            servers={name: server.found() for name, server in self._servers.items()},
            fetching=self._fetching,
            fetch_failures={
                key: planning.FetchFailure(failures.reason, failures.retry_at)
                for key, failures in self._fetch_failures.items()
            },
            probing=self._probing.keys(),
            deleting=self._deleting,
        )

    # -- looking

    async def _look(self, *, store: bool, all_models: bool = False, more: Collection[str] = ()) -> None:
        async with self._looking:
            if store:
                await self._look_at_store(more)
            if all_models or self._clock() >= self._disk_due:
                self._on_disk = await asyncio.to_thread(self.disk.versions)
                self._disk_due = self._clock() + _DISK_PERIOD
            # Whether a server is there is told by any answer, also that it knows no such model.
            names = sorted({*self.state.models, *more}) or ["-"]
            chosen = names if all_models else self._chosen(names, rotate=store)
            await asyncio.gather(*(self._look_at(server, names, chosen) for server in self._servers.values()))

    def _chosen(self, names: list[str], *, rotate: bool) -> list[str]:
        """The models to ask servers for: those with something going on, and now and then each other one."""
        chosen = self._active.intersection(names)
        if rotate and names:
            size = -(-len(names) // _SLICES)
            self._slice %= _SLICES
            chosen.update(names[self._slice * size : (self._slice + 1) * size] or names[:1])
            self._slice += 1
        return sorted(chosen)

    async def _look_at_store(self, more: Collection[str] = ()) -> None:
        # Never later than a period, so that a new version is found within one.
        self._store_due = self._clock() + self.poll_period * random.uniform(0.9, 1.0)  # noqa: S311
        names = sorted({*self.policies, *more})
        try:
            listed = await self.store.listings(names)
        except (RepositoryError, OSError) as error:
            if str(error) != self._store_problem:
                self._store_problem = str(error)
                self._tell("problem", f"the store cannot be read: {error}")
            return
        self._store_problem = ""
        for model, versions in listed.items():
            fresh = {stored.version: stored for stored in versions}
            before = self._stored.get(model)
            if before is not None:
                for version in sorted(fresh.keys() - before.keys()):
                    self._tell("found", fresh[version].url, model=model, version=version)
            for version, stored in fresh.items():
                known = self._fetch_failures.get((model, version))
                if known is not None and known.fingerprint != stored.fingerprint:
                    del self._fetch_failures[model, version]  # it was mended
            self._stored[model] = fresh
        if self.store.unsettled():
            self._store_due = min(self._store_due, self._clock() + _UNSETTLED)

    async def _look_at(self, server: _Server, names: list[str], chosen: list[str]) -> None:
        now = self._clock()
        if not server.reachable:
            if now < server.look_at:
                return
            chosen = names
        elif server.config is None and server.sending is None:
            chosen = names
        try:
            if await self._ask(server, chosen):
                server.forget()
                self._tell("server restarted", "it has forgotten what it was told", server=server.name)
                await self._ask(server, names)
        except ServingError as error:
            if server.reachable or not server.since:
                server.reachable, server.since = False, now
                self._tell("server down", str(error), server=server.name)
            server.look_at = self._clock() + _LOOK_AGAIN
            return
        if not server.reachable:
            server.reachable = True
            if server.since:
                server.since = 0.0
                self._tell("server up", "", server=server.name)

    async def _ask(self, server: _Server, names: list[str]) -> bool:
        """Ask a server for models; gives whether it is another process than before.

        Raises:
            ServingError: it cannot be reached, or refuses.
        """
        restarted = False
        for start in range(0, len(names), _AT_ONCE):
            part = names[start : start + _AT_ONCE]
            answers = await asyncio.gather(
                *(_status(server.client, name) for name in part), return_exceptions=True
            )
            for answer in answers:
                if isinstance(answer, BaseException):
                    raise answer
            for name, answer in zip(part, answers, strict=True):
                restarted |= self._note(server, name, cast("ModelStatus | None", answer))
        return restarted

    def _note(self, server: _Server, model: str, status: ModelStatus | None) -> bool:
        """Keep what a server says of a model; gives whether it has forgotten something."""
        now = self._clock()
        before = server.versions.get(model, {})
        after: dict[int, planning.VersionFound] = {}
        for item in status or ():
            state, error = item.state, item.error
            asked = server.asked.get((model, item.version))
            if asked is not None:
                if asked[1] == (state, error) and now < asked[0] + _STALE:
                    state, error = ServerState.START, None  # from before it was asked for
                else:
                    del server.asked[model, item.version]
            old = before.get(item.version)
            same = old is not None and (old.state, old.error) == (state, error)
            found = old if same and old is not None else planning.VersionFound(state, error, now)
            after[item.version] = found
            if not same:
                self._pause = _PAUSE[0]
                if found.available:
                    self._tell("available", "", model=model, version=item.version, server=server.name)
                elif found.failed:
                    self._tell(
                        "load failed", error or "", model=model, version=item.version, server=server.name
                    )
        server.versions[model] = after
        return not before.keys() <= after.keys()

    # -- acting

    def _act(self, step: planning.Step) -> None:
        if isinstance(step, planning.Fetch):
            if len(self._fetching) < self._max_fetches:
                self._fetching.add((step.model, step.version))
                self._start(("fetch", step.model, step.version), self._fetch(step))
        elif isinstance(step, planning.Reload):
            server = self._servers[step.server]
            server.sending = step.config
            self._start(("reload", step.server), self._reload(step, server))
        elif isinstance(step, planning.Probe):
            self._probing[step.model, step.version, step.server] = math.inf
            self._start(("probe", step.model, step.version, step.server), self._probe(step))
        elif isinstance(step, planning.Delete):
            self._deleting.add((step.model, step.version))
            self._start(("delete", step.model, step.version), self._delete(step))
        else:
            self._tell_decision(step)

    def _start(self, key: tuple[object, ...], work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=f"aioserving repository {' '.join(map(str, key))}")
        self._tasks[key] = task

        def ended(task: asyncio.Task[None]) -> None:
            if self._tasks.get(key) is task:
                del self._tasks[key]
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("%s failed", task.get_name(), exc_info=error)
                self._tell("problem", f"{' '.join(map(str, key))}: {type(error).__name__}: {error}")
            self._wake.set()

        task.add_done_callback(ended)

    async def _fetch(self, step: planning.Fetch) -> None:
        key = step.model, step.version
        stored = self._stored[step.model][step.version]
        self._tell("fetching", stored.url, model=step.model, version=step.version)
        began = self._clock()
        try:
            await self.fetcher.fetch(stored)
        except RepositoryError as error:
            failures = self._fetch_failures.get(key)
            count = failures.count + 1 if failures is not None else 1
            pause = min(_FETCH_AGAIN[0] * 2 ** (count - 1), _FETCH_AGAIN[1])
            self._fetch_failures[key] = _FetchFailures(
                str(error), self._clock() + pause, count, stored.fingerprint
            )
            self._tell(
                "fetch failed", f"{error}; again in {pause:g} s", model=step.model, version=step.version
            )
        else:
            self._fetch_failures.pop(key, None)
            text = f"in {self._clock() - began:.2f} s"
            self._tell("fetched", text, model=step.model, version=step.version)
        finally:
            self._fetching.discard(key)
            self._disk_due = 0.0

    async def _reload(self, step: planning.Reload, server: _Server) -> None:
        outcome: planning.ServerConfig | None = None
        now = self._clock()
        try:
            config = self._server_config(step.config)
            # The last line of defence: nothing goes out that a server would refuse, or hang on. (Whatever
            # else there is to remark concerns the models that people add themselves.)
            old = server.client.config if server.config is not None else None
            problems = check_config(config, old=old, look=self._base_path is None)
            problems = [item for item in problems if item.refused or "without end" in item.text]
            if problems:
                raise InvalidConfigError(problems)
            for model, version in step.loads:
                found = server.versions.get(model, {}).get(version)
                if found is not None and found.state == ServerState.END:
                    server.asked[model, version] = now, (found.state, found.error)
            self._tell("reload", str(step).partition(": ")[2], server=server.name)
            await server.client.reload_config(config, check=False, timeout=_RELOAD_TIMEOUT)
            outcome = step.config
        except UnknownError:
            outcome = step.config  # models failed to load; their status says which, and why
        except ServingError as error:
            if not step.config and isinstance(error, (InvalidArgumentError, FailedPreconditionError)):
                outcome = step.config  # one that takes no empty list: it begins with whatever comes next
            self._disk_due = 0.0
            server.retry_at = self._clock() + _RELOAD_AGAIN
            self._tell("reload failed", str(error), server=server.name)
        finally:
            if server.sending is step.config:  # else it has restarted meanwhile
                server.config, server.sending = outcome, None
            self._active.update(model for model, _ in (*step.loads, *step.unloads))
            self._active.update(model for model, _, _ in step.labels)

    def _server_config(self, config: planning.ServerConfig) -> ModelServerConfig:
        models: list[dict[str, Any]] = [
            {
                "name": name,
                "base_path": str(self._base_path(name) if self._base_path else self.disk.path(name)),
                "model_platform": PLATFORM,
                "model_version_policy": {"specific": sorted(served.versions)},
                "version_labels": dict(served.labels),
            }
            for name, served in config.items()
        ]
        return with_models(self._extra, models)

    async def _probe(self, step: planning.Probe) -> None:
        key = step.model, step.version, step.server
        policy = self.state.model(step.model).policy
        probe = policy.probe if policy is not None else None
        again = 0.0
        if probe is not None:
            problem = await _ask_probe(self._servers[step.server].client, step.model, step.version, probe)
            if problem is None:
                again = self._clock() + _PROBE_AGAIN
            else:
                await self._probed(step, problem)
        self._probing[key] = again

    async def _probed(self, step: planning.Probe, problem: str) -> None:
        async with self._deciding:
            remembered = self.state.model(step.model)
            candidate = remembered.candidates.get(step.version)
            if candidate is None:
                return  # it was withdrawn meanwhile
            now = self._clock()
            about: dict[str, Any] = {"model": step.model, "version": step.version, "server": step.server}
            if problem:
                candidate = replace(candidate, problem=f"{step.server}: {problem}", probed_at=now)
                self._tell("probe failed", problem, **about)
            else:
                passed = {**candidate.passed, step.server: candidate.passed.get(step.server, 0) + 1}
                candidate = replace(candidate, passed=passed, probed_at=now)
                self._tell("probed", "", **about)
            remembered = remembered.with_candidate(step.version, candidate)
            await self._save(self.state.with_model(step.model, remembered))

    async def _delete(self, step: planning.Delete) -> None:
        key = step.model, step.version
        try:
            await self.disk.delete(*key)
            async with self._deciding:
                await self._save(planning.decide(self.state, step, self._clock()))
            self._tell("deleted", "", model=step.model, version=step.version)
        finally:
            self._on_disk.get(step.model, {}).pop(step.version, None)
            self._deleting.discard(key)
            self._disk_due = 0.0

    async def _save(self, state: State) -> None:
        """Remember it on disk, then here."""
        saving = asyncio.ensure_future(asyncio.to_thread(self._file.save, state))
        try:
            await asyncio.shield(saving)
        except asyncio.CancelledError:
            # Whoever saves next must not meet this one half way.
            await asyncio.wait({saving})
            raise
        self._state = state

    # -- telling

    def _tell(self, kind: EventKind, text: str, **about: Any) -> None:
        event = self.events.publish(self._clock(), kind, text, **about)
        logger.info("%s", event)

    def _tell_decision(self, step: planning.Step) -> None:
        kinds: dict[type, EventKind] = {
            planning.Adopt: "promoted",
            planning.Begin: "rollout",
            planning.Promote: "promoted",
            planning.Unload: "unloaded",
            planning.Quarantined: "quarantined",
            planning.SetLabel: "label",
        }
        text = getattr(step, "reason", "")
        if isinstance(step, planning.SetLabel):
            text = f"{step.label} {'to ' + str(step.version) if step.version is not None else 'taken away'}"
        elif isinstance(step, planning.Adopt):
            text = "it is served already"
        self._tell(
            kinds[type(step)],
            text,
            model=getattr(step, "model", None),
            version=getattr(step, "version", None),
        )

    # -- what people ask for

    @property
    def state(self) -> State:
        """What is remembered, as of now."""
        return self._state if self._state is not None else State()

    @property
    def policies(self) -> dict[str, Policy]:
        """The policies, by model."""
        return self.state.policies

    def get_policy(self, model: str) -> Policy | None:
        """The policy of a model, or None."""
        return self.state.model(model).policy

    async def set_policy(self, model: str, policy: Policy) -> None:
        """Set or change what is wanted of a model; it is on disk when this returns.

        Raises:
            InvalidNameError: no model can have this name.
            OSError: it cannot be written.
        """
        check_model_name(model)
        await self._change(model, lambda remembered: replace(remembered, policy=policy))
        self._tell("policy", str(policy), model=model)
        self._look_soon(model)

    async def remove_policy(self, model: str) -> bool:
        """Serve the model no more; its versions stay on disk. False: there was no policy."""
        if self.get_policy(model) is None:
            return False
        await self._change(model, lambda old: ModelState(quarantine=old.quarantine, history=old.history))
        self._tell("policy", "removed", model=model)
        self._look_soon(model)
        return True

    async def rollout(self, model: str, version: int | None = None) -> int:
        """Bring a version to the servers now, whatever the hours; out of quarantine, if it is there.

        The policy is pinned to it if it would choose another; a version that the policy was pinned to
        before is let go.

        Args:
            model: name of the model; it has a policy.
            version: the version; None: the newest of the store.

        Returns:
            The version.

        Raises:
            NotInStoreError: there is no such version, in the store or on disk.
            PolicyMissingError: the model has no policy.
        """
        policy = self._policy_of(model)
        stored, on_disk = await self._whereabouts(model)
        if version is None:
            if not stored:
                raise NotInStoreError(f"the store has no version of model {model!r}")
            version = max(stored)
        elif version not in stored and version not in on_disk:
            raise NotInStoreError(
                f"there is no version {version} of model {model!r}, in the store or on disk"
            )
        chosen = version

        def change(remembered: ModelState) -> ModelState:
            remembered = remembered.with_quarantine(chosen, None)
            free = replace(policy, pinned=None)
            known = (stored.keys() | remembered.good) - remembered.quarantine.keys()
            pinned = None if chosen in free.select(known) else chosen
            return replace(
                remembered,
                policy=replace(policy, pinned=pinned),
                urgent=remembered.urgent | {chosen} if chosen not in remembered.good else remembered.urgent,
            )

        await self._change(model, change)
        self._fetch_failures.pop((model, chosen), None)
        self._tell("policy", f"rollout of version {chosen} asked for", model=model, version=chosen)
        self._look_soon(model)
        return chosen

    async def rollback(self, model: str, version: int | None = None) -> int:
        """Go back to the version before, or to `version`; those above it go into quarantine.

        Args:
            model: name of the model; it has a policy.
            version: the version to go back to; None: the one that was promoted before.

        Returns:
            The version that it goes back to.

        Raises:
            NotInStoreError: there is no version to go back to.
            PolicyMissingError: the model has no policy.
        """
        policy = self._policy_of(model)
        stored, on_disk = await self._whereabouts(model)
        remembered = self.state.model(model)
        there = (stored.keys() | on_disk.keys()) - remembered.quarantine.keys()
        current = max(remembered.good, default=None)
        if version is None:
            if current is None:
                raise NotInStoreError(f"no version of model {model!r} has been promoted")
            earlier = [item for item in reversed(remembered.retired) if item < current and item in there]
            below = sorted((item for item in there if item < current), reverse=True)
            version = next(iter((*earlier, *below)), None)
            if version is None:
                raise NotInStoreError(f"there is no version of model {model!r} to go back to from {current}")
        elif version not in stored and version not in on_disk:
            raise NotInStoreError(
                f"there is no version {version} of model {model!r}, in the store or on disk"
            )
        goal = version

        def change(old: ModelState) -> ModelState:
            reason = Quarantine(f"rolled back to {goal}", self._clock())
            above = {item for item in (*stored, *on_disk, *old.good, *old.candidates) if item > goal}
            new = old.with_quarantine(goal, None)
            for item in sorted(above - new.quarantine.keys()):
                new = new.with_quarantine(item, reason)
            for item in above & new.candidates.keys():
                new = new.with_candidate(item, None)
            free = replace(policy, pinned=None)
            known = (stored.keys() | new.good) - new.quarantine.keys()
            pinned = None if goal in free.select(known) else goal
            return replace(new, policy=replace(policy, pinned=pinned), urgent=new.urgent | {goal})

        await self._change(model, change)
        self._tell("policy", f"rollback to version {goal} asked for", model=model, version=goal)
        self._look_soon(model)
        return goal

    async def release(self, model: str, version: int) -> bool:
        """Take a version out of quarantine. False: it was not there."""
        if version not in self.state.model(model).quarantine:
            return False
        await self._change(model, lambda remembered: remembered.with_quarantine(version, None))
        self._tell("released", "", model=model, version=version)
        self._look_soon(model)
        return True

    async def delete_version(self, model: str, version: int) -> bool:
        """Delete a version from disk. False: it was not there.

        Raises:
            VersionInUseError: a policy wants it, or a server has it, or may have it.
        """
        async with self._deciding:
            if (model, version) in self.in_use():
                raise VersionInUseError(
                    f"version {version} of model {model!r} is wanted by a policy, or a server has it or may "
                    "have it; change the policy first"
                )
            self._deleting.add((model, version))
        try:
            deleted = await self.disk.delete(model, version)
        finally:
            self._deleting.discard((model, version))
            self._disk_due = 0.0
            self._wake.set()
        if deleted:
            self._tell("deleted", "asked for", model=model, version=version)
        return deleted

    async def fetch(self, model: str, version: int | None = None) -> Fetch:
        """Fetch a version (None: the newest) that no policy need want; see `Fetcher.fetch`.

        Raises:
            NotInStoreError: the store has no such version.
            StoreError: the store cannot be read.
        """
        stored = {item.version: item for item in await self.store.versions(check_model_name(model))}
        if not stored or (version is not None and version not in stored):
            what = "no version" if version is None else f"no version {version}"
            raise NotInStoreError(f"the store has {what} of model {model!r}")
        return self.fetcher.fetch(stored[max(stored) if version is None else version])

    async def models(self) -> list[str]:
        """Names of the models that the store, the disk or a policy has, sorted."""
        names = set(self.policies)
        names.update(await asyncio.to_thread(self.disk.versions))
        names.update(await self.store.models())
        return sorted(names)

    async def status(self, model: str) -> ModelReport:
        """How a model and its versions are, in the store, on disk and on the servers, as of now.

        Servers that do not answer are left out.

        Raises:
            StoreError: the store cannot be read.
        """
        check_model_name(model)
        stored, on_disk = await self._whereabouts(model)
        answers = await asyncio.gather(
            *(_status(server.client, model) for server in self._servers.values()), return_exceptions=True
        )
        on: dict[int, dict[str, VersionStatus]] = {}
        silent = []
        for name, answer in zip(self._servers, answers, strict=True):
            if isinstance(answer, ServingError):
                silent.append(f"no answer from {name}: {answer}")
                continue
            if isinstance(answer, BaseException):
                raise answer
            for item in answer or ():
                on.setdefault(item.version, {})[name] = item
        remembered = self.state.model(model)
        policy = remembered.policy
        known = (stored.keys() | remembered.good) - remembered.quarantine.keys()
        wanted = policy.select(known) if policy is not None else frozenset()
        numbers = {
            *stored, *on_disk, *on, *remembered.good, *remembered.candidates, *remembered.quarantine,
            *remembered.retired,
        }  # fmt: skip
        versions = tuple(
            VersionReport(
                number,
                stored.get(number),
                on_disk.get(number),
                on.get(number, {}),
                _role(remembered, number),
                tuple(sorted(label for label, place in remembered.labels.items() if place == number)),
                remembered.quarantine.get(number),
                number in wanted,
            )
            for number in sorted(numbers, reverse=True)
        )
        waiting = tuple(str(step) for step in self._plan.waits if step.model == model)
        return ModelReport(
            model, policy, versions, remembered.labels, remembered.history, (*waiting, *silent)
        )

    def watch(self, *, since: int | None = None) -> Watch:
        """What happens from now on; `since`: after the event of that number, as far as kept."""
        return self.events.watch(since=since)

    def in_use(self) -> frozenset[tuple[str, int]]:
        """Versions that must not be deleted: for the fetcher's ``keep``."""
        used: set[tuple[str, int]] = set()
        for name, remembered in self.state.models.items():
            versions = {*remembered.good, *remembered.candidates, *remembered.labels.values()}
            if remembered.policy is not None:
                known = self._stored.get(name, {}).keys() | remembered.good
                versions |= remembered.policy.select(known - remembered.quarantine.keys())
            used.update((name, version) for version in versions)
        for server in self._servers.values():
            for config in (server.config, server.sending):
                for name, served in (config or {}).items():
                    used.update((name, version) for version in served.versions)
            for name, found in server.versions.items():
                used.update((name, number) for number, item in found.items() if item.state != ServerState.END)
            if server.config is None and server.sending is None:
                # It may have anything that it was ever told.
                for name, remembered in self.state.models.items():
                    used.update((name, version) for version in remembered.retired)
        used.update(self._fetching)
        return frozenset(used)

    # -- helpers

    def _policy_of(self, model: str) -> Policy:
        policy = self.get_policy(model)
        if policy is None:
            raise PolicyMissingError(f"model {model!r} has no policy; set one first")
        return policy

    async def _whereabouts(self, model: str) -> tuple[dict[int, StoredVersion], dict[int, DiskVersion]]:
        stored = {item.version: item for item in await self.store.versions(model)}
        on_disk = await asyncio.to_thread(self.disk.versions, model)
        return stored, on_disk.get(model, {})

    async def _change(self, model: str, change: Callable[[ModelState], ModelState]) -> None:
        if self._disk_lock is None:
            await self._open()
        async with self._deciding:
            await self._save(self.state.with_model(model, change(self.state.model(model))))

    def _look_soon(self, model: str) -> None:
        self._active.add(model)
        self._store_due = 0.0
        self._wake.set()


def _role(remembered: ModelState, version: int) -> str:
    if version in remembered.quarantine:
        return "quarantined"
    if version in remembered.good:
        return "promoted"
    candidate = remembered.candidates.get(version)
    if candidate is not None:
        return "canary" if candidate.canary_since is not None else "candidate"
    return "retired" if version in remembered.retired else ""


async def _status(client: AsyncClient, model: str) -> ModelStatus | None:
    """What a server says of a model; None if it has found no version of it."""
    try:
        return await client.get_model_status(model, timeout=_STATUS_TIMEOUT)
    except NotFoundError:
        return None


async def _ask_probe(client: AsyncClient, model: str, version: int, probe: Probe) -> str | None:
    """What was wrong with the answer to a probe; empty if nothing; None if the server gave none."""
    try:
        if probe.request is not None:
            result = await client.predict(probe.message(model, version), timeout=probe.timeout)
        else:
            result = await client.predict(
                model,
                dict(probe.inputs or {}),
                version=version,
                signature_name=probe.signature_name,
                timeout=probe.timeout,
            )
        return probe.difference(result)
    except DeadlineExceededError as error:
        try:  # the version may hang, or all of the server
            await _status(client, model)
        except ServingError:
            return None
        return f"no answer within {probe.timeout:g} s: {error}"
    except MessageTooLargeError as error:
        return str(error)
    except (UnavailableError, ResourceExhaustedError, CancelledError, VersionNotFoundError, AbortedError):
        return None  # the server is down, has restarted or is too busy: that is not the version's fault
    except ServingError as error:
        return str(error)
