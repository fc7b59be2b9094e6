"""Which models a testing server has: configuration, versions on disk, loads and unloads, labels, states.

`ModelManager` answers two questions, `resolve` (which loaded version serves this request?) and
`status` (what became of every version?), and takes one order, `reload`. In between it lives as the real
server does:

    poll     every second, list each model's base path and note the versions that its policy wants
    manage   ten times a second, take one step: load the best new version, or unload one that is not
             wanted any more, so that a model stays available while it changes
    report   every step is a state of a version, kept for ever

What to do is decided in `rules`; this module lists folders, calls the loader in a thread and keeps the
books. Everything runs on one event loop, which is the only lock (but for the one that the real server
holds during a reload). Loading is not known here: `loader` turns a version's folder into a servable.

Models that exist only in this process live in a `CallableRegistry` under base paths of their own,
``/callable/NAME``, which a configuration can name like any folder.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from aioserving._proto import message_class
from aioserving.testing import rules
from aioserving.testing.options import ServerOptions
from aioserving.testing.rules import Phase, ServableId, Snapshot, State, VersionState
from aioserving.testing.status import StatusCode, StatusError

if TYPE_CHECKING:
    from types import TracebackType

    from aioserving.testing.servable import Servable

__all__ = ["CallableRegistry", "Lease", "Loader", "ModelManager", "StateLog"]

_T = TypeVar("_T")

#: Folder of one version -> the loaded model; blocks, and raises StatusError with the real texts.
Loader: TypeAlias = "Callable[[str, ServerOptions], Servable]"

logger = logging.getLogger("aioserving.testing")


class CallableRegistry:
    """Servables of this process, under base paths of their own: ``/callable/NAME``.

    A registered version is to the manager what a version folder is. Safe to use from any thread.
    The servables stay their owner's: unloading one does not close it, so that it can be loaded again.
    """

    PREFIX = "/callable/"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: dict[str, dict[int, Servable | StatusError]] = {}

    def add(self, model: str, version: int, servable: Servable | StatusError) -> str:
        """Register one version (or the error that loading it ends with); returns the base path.

        Raises:
            ValueError: `model` has that version already.
        """
        base_path = self.PREFIX + model
        with self._lock:
            versions = self._models.setdefault(base_path, {})
            if version in versions:
                raise ValueError(f"version {version} of {model!r} is registered already; remove it first")
            versions[version] = servable
        return base_path

    def remove(self, model: str, version: int) -> None:
        """Forget one version.

        Raises:
            KeyError: there is no such version.
        """
        with self._lock:
            del self._models[self.PREFIX + model][version]

    def children(self, base_path: str) -> list[str] | None:
        """The versions under `base_path`, as folder names, or None for a path that is not registered."""
        with self._lock:
            versions = self._models.get(base_path.rstrip("/"))
            return None if versions is None else [str(version) for version in versions]

    def find(self, path: str) -> Servable | StatusError | None:
        """What is registered for ``BASE_PATH/VERSION``, or None."""
        base_path, _, version = path.rpartition("/")
        with self._lock:
            return self._models.get(base_path.rstrip("/"), {}).get(int(version))

    def __repr__(self) -> str:
        with self._lock:
            paths = {path: sorted(versions) for path, versions in self._models.items()}
        return f"<CallableRegistry {paths}>"


class StateLog:
    """The last state of every version since the log began; versions are never forgotten."""

    def __init__(self) -> None:
        self.models: dict[str, dict[int, VersionState]] = {}

    def record(self, id_: ServableId, state: VersionState) -> None:
        """Note what happened to a version."""
        self.models.setdefault(id_.name, {})[id_.version] = state

    def versions(self, model: str) -> list[tuple[int, VersionState]]:
        """All versions of `model` and their states, the highest first; empty for an unknown model."""
        return sorted(self.models.get(model, {}).items(), reverse=True)

    def __repr__(self) -> str:
        shown = {
            model: {version: state.state.name for version, state in self.versions(model)}
            for model in self.models
        }
        return f"<StateLog {shown}>"


@dataclass(eq=False)
class _Managed:
    """One version under management."""

    id: ServableId
    path: str
    phase: Phase = Phase.NEW
    aspired: bool = True
    servable: Servable | None = None
    borrowed: bool = False
    hopeless: bool = False
    users: int = 0
    drained: asyncio.Event = field(default_factory=asyncio.Event)


class Lease:
    """The version that serves one request; it is not unloaded before `release`. Also a context manager.

    Take and release it on the manager's event loop.

    Attributes:
        servable: the loaded model.
        name: name of the model.
        version: the number that was resolved.
    """

    __slots__ = ("_managed", "name", "servable", "version")

    def __init__(self, managed: _Managed, servable: Servable) -> None:
        managed.users += 1
        self._managed: _Managed | None = managed
        self.servable = servable
        self.name = managed.id.name
        self.version = managed.id.version

    def release(self) -> None:
        """Give the version back; a second time does nothing."""
        managed, self._managed = self._managed, None
        if managed is not None:
            managed.users -= 1
            if not managed.users:
                managed.drained.set()

    def __enter__(self) -> Lease:  # noqa: PYI034 - typing.Self needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<Lease of {self.name} version {self.version}{'' if self._managed else ', released'}>"


@dataclass(frozen=True)
class _Source:
    """A model to look for on disk."""

    name: str
    base_path: str
    policy: Any


class ModelManager:
    """The models of one server, from configuration to unloading.

    Args:
        loader: loads the version in a folder; called in a thread.
        options: of the server; those on polling, loading and labels count here.
        registry: the models that exist only in this process.
        sleep: `asyncio.sleep`, or a test's own.
        run_blocking: runs a function in a thread and awaits it, or a test's own.

    Use it on one event loop: `start`, then `reload`, `resolve` and `status`, then `close`.
    """

    def __init__(
        self,
        loader: Loader,
        options: ServerOptions | None = None,
        *,
        registry: CallableRegistry | None = None,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
        run_blocking: Callable[[Callable[[], Any]], Awaitable[Any]] | None = None,
    ) -> None:
        self.options = options or ServerOptions()
        self.registry = registry or CallableRegistry()
        #: Every version that was ever seen.
        self.states = StateLog()
        self._loader = loader
        self._sleep = sleep
        self._run_blocking = run_blocking or self._in_thread
        self._threads: ThreadPoolExecutor | None = None
        self._config: Any = message_class("tensorflow.serving.ModelServerConfig")()
        self._labels: dict[str, dict[str, int]] | None = None
        self._sources: tuple[_Source, ...] | None = None
        self._managed: dict[str, dict[int, _Managed]] = {}
        self._serving: dict[str, dict[int, _Managed]] = {}
        self._pending: dict[str, dict[int, str]] = {}
        self._fresh: list[StateLog] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._poller: asyncio.Task[None] | None = None
        self._poll_error: str | None = None
        self._interval = self.options.testing_manage_state_interval_ms / 1000
        self._starting = False
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        # Bound to the loop on first use.
        self._config_lock = asyncio.Lock()
        self._changed = asyncio.Event()
        self._work = asyncio.Event()
        self._poll_now = asyncio.Event()
        self._loads = asyncio.Semaphore(max(1, self.options.num_load_threads))
        self._unloads = asyncio.Semaphore(max(1, self.options.num_unload_threads))

    # What a server asks

    def resolve(self, spec: Any) -> Lease:
        """The version that a request with this `ModelSpec` (or None) goes to.

        Raises:
            StatusError: INVALID_ARGUMENT for a missing spec or name, or an unknown label; NOT_FOUND
                for a model or version that is not available.
        """
        if spec is None:
            raise StatusError(StatusCode.INVALID_ARGUMENT, "Missing ModelSpec")
        name = spec.name
        if not name:
            raise StatusError(StatusCode.INVALID_ARGUMENT, "ModelSpec has no name specified.")
        versions = self._serving.get(name)
        choice = spec.WhichOneof("version_choice")
        if choice is None:
            if not versions:
                raise StatusError(StatusCode.NOT_FOUND, f"Servable not found for request: Latest({name})")
            managed = versions[max(versions)]
        else:
            number = spec.version.value if choice == "version" else self._labelled(name, spec.version_label)
            if versions is None or number not in versions:
                raise StatusError(
                    StatusCode.NOT_FOUND, f"Servable not found for request: Specific({name}, {number})"
                )
            managed = versions[number]
        assert managed.servable is not None  # what serves is loaded
        return Lease(managed, managed.servable)

    def _labelled(self, name: str, label: str) -> int:
        if self._labels is None:
            raise StatusError(StatusCode.UNAVAILABLE, f"Model labels does not init yet.{label}")
        version = self._labels.get(name, {}).get(label)
        if version is None:
            raise StatusError(StatusCode.INVALID_ARGUMENT, f"Unrecognized servable version label: {label}")
        return version

    def status(self, spec: Any) -> list[tuple[int, VersionState]]:
        """The versions that GetModelStatus reports for this `ModelSpec` (or None), the highest first.

        Raises:
            StatusError: INVALID_ARGUMENT for a missing spec; NOT_FOUND when there is nothing to report.
        """
        if spec is None:
            raise StatusError(StatusCode.INVALID_ARGUMENT, "Missing ModelSpec")
        versions = self.states.versions(spec.name)
        if spec.WhichOneof("version_choice") == "version":
            number = spec.version.value
            versions = [item for item in versions if item[0] == number]
            if not versions:
                raise StatusError(
                    StatusCode.NOT_FOUND, f"Could not find version {number} of model {spec.name}"
                )
        if not versions:
            raise StatusError(StatusCode.NOT_FOUND, f"Could not find any versions of model {spec.name}")
        return versions

    # Life

    async def start(self, config: Any = None) -> None:
        """Serve the models of `config` (a `ModelServerConfig`); returns once each has a version available.

        Waits for ever for a base path that does not exist.

        Raises:
            StatusError: the configuration is not legal, or a model cannot be loaded.
        """
        self._loop = asyncio.get_running_loop()
        self._spawn(self._manage(), "manage")
        if config is not None:
            await self.reload(config)

    async def reload(self, config: Any) -> None:
        """Replace the configuration; returns once every *newly named* model has a version available.

        A caller that is cancelled stops waiting, but the reload goes on, and while it does every
        later one queues behind it. Where the real server would wait for ever, so does this one.

        Raises:
            StatusError: the configuration is not legal, or a new model cannot be loaded.
        """
        task = self._spawn(self._reload(config), "reload")
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_outcome)  # the caller is gone; whoever reads the log may want to know
            raise

    async def close(self) -> None:
        """Stop polling and managing, and close every servable; a second time does nothing."""
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for versions in self._managed.values():
            for managed in versions.values():
                if not managed.users:  # a call that cannot be stopped keeps its model
                    await self._close_servable(managed)
        self._serving.clear()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def poll_soon(self) -> None:
        """Look for versions now instead of when the next poll is due (not where polling is off).

        From any thread.
        """
        if self._loop is not None and not self._closed:
            self._loop.call_soon_threadsafe(self._poll_now.set)

    def __repr__(self) -> str:
        shown = {
            name: {version: managed.phase.value for version, managed in sorted(versions.items())}
            for name, versions in sorted(self._managed.items())
        }
        return f"<ModelManager {shown}{' reloading' if self._config_lock.locked() else ''}>"

    # Configuration

    async def _reload(self, config: Any) -> None:
        async with self._config_lock:
            case = config.WhichOneof("config")
            if self._config.WhichOneof("config") is not None and case != "model_config_list":
                raise StatusError(
                    StatusCode.FAILED_PRECONDITION,
                    "Cannot transition to requested config. It is only legal to transition from one "
                    "ModelConfigList to another.",
                )
            if case is None:
                return  # nothing to do; a later reload may bring a configuration
            if case != "model_config_list":
                raise StatusError(
                    StatusCode.UNIMPLEMENTED, "ModelServer does not yet support custom model config."
                )
            models = config.model_config_list.config
            rules.check_config(models)
            rules.check_platforms(self._config.model_config_list.config, models)
            # From here on the new configuration is the stored one, whatever happens: a platform that is
            # refused below stays in it, as in the real server.
            self._config = type(config)()
            self._config.CopyFrom(config)
            models = self._config.model_config_list.config
            self._labels = rules.label_map(
                models,
                self.states.models,
                self._labels,
                allow_unavailable=self.options.allow_version_labels_for_unavailable_models,
            )
            rules.check_routes(models)
            sources = tuple(
                _Source(model.name, model.base_path, model.model_version_policy) for model in models
            )
            if self._sources is None:
                await self._first_load(sources)
            else:
                await self._change_sources(self._sources, sources)
            rules.check_logging(models)

    async def _first_load(self, sources: tuple[_Source, ...]) -> None:
        """Load the first models, several at a time, and count everything that the log has of them."""
        self._sources = sources
        self._starting = True
        self._poller = self._spawn(self._poll(), "poll")
        try:
            await self._until_available("servable", [source.name for source in sources], self.states)
        except BaseException:
            self._sources = None
            self._poller.cancel()
            raise
        finally:
            self._starting = False

    async def _change_sources(self, old: tuple[_Source, ...], new: tuple[_Source, ...]) -> None:
        """Drop the models that are gone at once; find the others at the next poll; await the new ones."""
        names = {source.name for source in new}
        old_names = {source.name for source in old}
        # A log of its own: a version that was unloaded long ago has ended, but not in this reload.
        log = StateLog()
        self._fresh.append(log)
        try:
            for name in sorted(old_names - names):
                self._aspire(name, {})
            # Noted at once: a reload that names such a model again soon must find it unwanted, so that it
            # is loaded anew.
            self._take_pending()
            self._sources = new
            if names - old_names:
                self._poll_now.set()  # somebody waits; other changes are found when the next poll is due
            await self._until_available("model", sorted(names - old_names), log)
        finally:
            self._fresh.remove(log)

    async def _until_available(self, noun: str, models: list[str], log: StateLog) -> None:
        while (found := rules.reached(models, log.models)) is None:
            self._changed.clear()
            await self._changed.wait()
        message = rules.unavailable_message(noun, found)
        if message is not None:
            raise StatusError(StatusCode.UNKNOWN, message)

    # Versions on disk

    async def _poll(self) -> None:
        period = self.options.file_system_poll_wait_seconds
        if period < 0:
            return
        while True:
            self._poll_now.clear()
            self._poll_once()
            if period == 0:
                return
            sleeping = asyncio.ensure_future(self._sleep(period))
            woken = asyncio.ensure_future(self._poll_now.wait())
            try:
                await asyncio.wait({sleeping, woken}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                sleeping.cancel()
                woken.cancel()

    def _poll_once(self) -> None:
        """One look at the disk. If a single base path is missing, nothing changes for any model."""
        wanted: dict[str, dict[int, str]] = {}
        try:
            for source in self._sources or ():
                chosen = rules.wanted_versions(source.policy, self._children(source))
                base = source.base_path.rstrip("/")
                wanted[source.name] = {version: f"{base}/{child}" for version, child in chosen.items()}
        except StatusError as error:
            if str(error) != self._poll_error:  # once, not every second
                self._poll_error = str(error)
                logger.error("polling for versions failed: %s", error.message)
            return
        self._poll_error = None
        for name, versions in wanted.items():
            self._aspire(name, versions)

    def _children(self, source: _Source) -> list[str]:
        registered = self.registry.children(source.base_path)
        if registered is not None:
            return registered
        try:
            return os.listdir(_local(source.base_path))
        except NotADirectoryError:
            return []
        except OSError as error:
            raise StatusError(
                StatusCode.INVALID_ARGUMENT,
                f"Could not find base path {source.base_path} for servable {source.name} with error "
                f"NOT_FOUND: {source.base_path} not found ({error.strerror})",
            ) from error

    def _aspire(self, name: str, versions: dict[int, str]) -> None:
        current = {
            version: managed.path
            for version, managed in self._managed.get(name, {}).items()
            if managed.aspired
        }
        if name not in self._pending and current.keys() == versions.keys():
            return  # what every poll finds when nothing changed
        self._pending[name] = versions
        self._work.set()

    # Loading and unloading

    async def _manage(self) -> None:
        """Take one step at a time, `_interval` apart; sleep while there is nothing to do."""
        while True:
            self._work.clear()
            self._forget_unwanted()
            self._take_pending()
            action = rules.choose(
                rules.next_action(name, _snapshots(versions)) for name, versions in self._managed.items()
            )
            if action is None:
                await self._work.wait()
                continue
            managed = self._managed[action.id.name][action.id.version]
            if action.kind == "load":
                await self._load_somewhere(managed)
            else:
                await self._unload_somewhere(managed)
            if not self._starting:
                await self._sleep(self._interval)

    def _forget_unwanted(self) -> None:
        done = (Phase.NEW, Phase.DISABLED, Phase.ERROR)
        for name, versions in list(self._managed.items()):
            for managed in list(versions.values()):
                if managed.phase in done and not managed.aspired:
                    del versions[managed.id.version]
            if not versions:
                del self._managed[name]

    def _take_pending(self) -> None:
        for name, wanted in list(self._pending.items()):
            versions = self._managed.get(name, {})
            if any(not managed.aspired and number in wanted for number, managed in versions.items()):
                continue  # wanted again while it goes: only once it is gone
            del self._pending[name]
            for number, managed in versions.items():
                if number not in wanted:
                    managed.aspired = False
            for number, path in wanted.items():
                if number not in versions:
                    managed = _Managed(ServableId(name, number), path)
                    self._managed.setdefault(name, {})[number] = managed
                    self._publish(managed.id, State.START)

    async def _load_somewhere(self, managed: _Managed) -> None:
        """Load now, or in the background where loads may overlap (always at start)."""
        managed.phase = Phase.LOADING
        if self._starting:
            self._spawn(self._load(managed), "load")
        elif self.options.num_load_threads > 0:
            self._spawn(self._limited(self._loads, self._load(managed)), "load")
        else:
            await self._load(managed)

    async def _unload_somewhere(self, managed: _Managed) -> None:
        managed.phase = Phase.UNLOADING
        if self.options.num_unload_threads > 0:
            self._spawn(self._limited(self._unloads, self._unload(managed)), "unload")
        else:
            await self._unload(managed)

    @staticmethod
    async def _limited(slots: asyncio.Semaphore, work: Coroutine[Any, Any, None]) -> None:
        async with slots:
            await work

    async def _load(self, managed: _Managed) -> None:
        self._publish(managed.id, State.LOADING)
        error = await self._attempt(managed)
        for attempt in range(1, self.options.max_num_load_retries + 1):
            if error is None or managed.hopeless or not managed.aspired:
                break
            if self.options.load_retry_interval_micros > 0:
                await self._sleep(self.options.load_retry_interval_micros / 1e6)
            logger.info("retrying load of %s, retry %d", managed.id, attempt)
            error = await self._attempt(managed)
        if error is None and not managed.aspired:
            await self._close_servable(managed)
            error = StatusError(StatusCode.CANCELLED, "Loading of servable cancelled")
        if error is None:
            managed.phase = Phase.READY
            self._serving.setdefault(managed.id.name, {})[managed.id.version] = managed
            self._publish(managed.id, State.AVAILABLE)
            logger.info("loaded %s", managed.id)
        else:
            managed.phase = Phase.ERROR
            logger.error("%s cannot be loaded: %s", managed.id, error)
            self._publish(managed.id, State.END, error)
        self._work.set()

    async def _attempt(self, managed: _Managed) -> StatusError | None:
        registered = self.registry.find(managed.path) if _registered(managed.path) else None
        if isinstance(registered, StatusError):
            return registered
        if registered is not None:
            managed.servable, managed.borrowed = registered, True
            return None
        try:
            path = _local(managed.path)
            managed.servable = await self._run_blocking(lambda: self._loader(path, self.options))
        except StatusError as error:
            return error
        except Exception as error:  # a loader's own bug must not stop the manager
            managed.hopeless = True
            logger.exception("the loader failed on %s", managed.path)
            return StatusError(StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
        return None

    async def _unload(self, managed: _Managed) -> None:
        self._publish(managed.id, State.UNLOADING)
        versions = self._serving[managed.id.name]
        del versions[managed.id.version]
        if not versions:
            del self._serving[managed.id.name]
        while managed.users:
            managed.drained.clear()
            await managed.drained.wait()
        await self._close_servable(managed)
        managed.phase = Phase.DISABLED
        self._publish(managed.id, State.END)
        logger.info("unloaded %s", managed.id)
        self._work.set()

    async def _close_servable(self, managed: _Managed) -> None:
        servable, managed.servable = managed.servable, None
        if servable is not None and not managed.borrowed:
            try:
                await self._run_blocking(servable.close)
            except Exception:
                logger.exception("closing %s failed", managed.id)

    def _publish(self, id_: ServableId, state: State, error: StatusError | None = None) -> None:
        for log in (self.states, *self._fresh):
            log.record(id_, VersionState(state, error))
        self._changed.set()

    # Plumbing

    def _spawn(self, work: Coroutine[Any, Any, _T], what: str) -> asyncio.Task[_T]:
        task = asyncio.get_running_loop().create_task(work, name=f"aioserving.testing {what}")
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, StatusError):  # those go to whoever awaits the task
            logger.error("%s failed", task.get_name(), exc_info=error)

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        if self._threads is None:
            workers = 4 * (os.cpu_count() or 1)
            self._threads = ThreadPoolExecutor(workers, "aioserving.testing load")
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)


def _log_outcome(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("reload failed, after its caller was gone: %s", error)


def _snapshots(versions: Mapping[int, _Managed]) -> list[Snapshot]:
    return [Snapshot(number, managed.phase, managed.aspired) for number, managed in versions.items()]


def _registered(path: str) -> bool:
    return path.startswith(CallableRegistry.PREFIX)


def _local(path: str) -> str:
    """A path of this machine for a ``file://`` URI; other paths as they are."""
    return path.removeprefix("file://")
