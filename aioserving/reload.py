"""Reloads: sending a configuration to servers, one after the other, and waiting for what comes of it.

A server answers a reload when each *newly* named model has one version that is available, or failed;
of models that it had before it says nothing. `Reloads` knows what was sent last, asks GetModelStatus
for the rest, and moves labels in two steps. What the configuration is, and what is wrong with it, is
`configuration`'s; how to reach a server is its caller's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import warnings
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from aioserving import errors
from aioserving.configuration import ConfigWarning, check_config, kept_versions, label_steps
from aioserving.status import ModelStatus, State

if TYPE_CHECKING:
    from aioserving.messages import ModelServerConfig

__all__ = ["ModelLoad", "Port", "ReloadResult", "Reloads", "Verdict", "judge"]

logger = logging.getLogger("aioserving")

#: Seconds after which a reload that has not come back is looked into.
SUSPECT: Final = 3.0
#: Seconds for which a failure that was there before the reload is not believed, nor a version that was
#: available though nobody asked for it: a version that is wanted again is seen at the server's next look at
#: its disk (every second by default).
STALE: Final = 2.5
#: Seconds between two questions for the status, at first and at most.
PAUSE: Final = (0.02, 0.5)


class Port(Protocol):
    """How `Reloads` reaches servers; both raise `RPCError`."""

    async def reload(self, target: str, request: bytes, deadline: float | None) -> bytes:
        """Send a serialized ReloadConfigRequest; gives the response."""

    async def status(self, target: str, model: str, deadline: float | None) -> ModelStatus:
        """Ask for all versions of a model."""


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """How one model is on one server, after a reload that was waited for."""

    #: The address of the server.
    target: str
    status: ModelStatus

    def __str__(self) -> str:
        return f"{self.target}: {self.status}"


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """What came of a reload; `print` it."""

    #: The config that the servers have now.
    config: ModelServerConfig
    #: How the models are that were waited for, on every server; empty if nothing was.
    loads: tuple[ModelLoad, ...] = ()
    #: How much the metrics that were asked for have grown, by server.
    metrics: Mapping[str, Mapping[str, int | None]] = field(default_factory=dict)

    def __str__(self) -> str:
        names = ", ".join(model.name for model in self.config.model_config_list) or "no models"
        return "\n".join([f"serving {names}", *map(str, self.loads)])


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the status of a model means for somebody who waits for it."""

    #: What is still to come, in words; empty when there is nothing more to wait for.
    pending: str = ""
    #: The versions that failed, with the reason.
    failed: tuple[tuple[int, str], ...] = ()


def judge(
    model: Any,
    status: ModelStatus | None,
    stale: Collection[int] = (),
    leaving: Collection[int] = (),
) -> Verdict:
    """Whether a model is as its config asks: what is pending, and what failed.

    Versions that the config names (by policy or label) have to be available. Where it names none, one
    version has to be, and none may be on its way.

    Args:
        model: the ModelConfig message.
        status: what the server says of the model; None if it has found no version.
        stale: versions whose failure is from before the reload, and not believed yet.
        leaving: versions that may still be available only because they have not been unloaded yet.
    """
    policy = model.model_version_policy
    named = set(policy.specific.versions)
    if policy.HasField("specific") and not named:
        return Verdict()  # no version is what it asks for
    if status is None:
        return Verdict(f"the server has found no version of it under {model.base_path!r}")
    named |= set(model.version_labels.values())
    states = {item.version: item for item in status}
    failed = {item.version: item.error for item in status.failed if item.version not in stale}
    available = {item.version for item in status.available}
    missing = named - available.difference(leaving) - failed.keys()
    if missing:
        seen = [
            f"version {version} not found"
            if version not in states
            else f"{states[version]}{', and perhaps on its way out' * (version in available)}"
            for version in missing
        ]
        return Verdict(", ".join(sorted(seen)), _pairs(failed, named))
    if named and policy.HasField("specific"):
        return Verdict("", _pairs(failed, named))
    coming = [str(item) for item in status if item.state in (State.START, State.LOADING)]
    if coming:
        return Verdict(", ".join(coming))
    # Of versions that nobody named only a failure above what serves is news: a newer one did not make it.
    newer = {version for version in failed if version > max(available, default=-(2**63))}
    if available or newer:
        return Verdict("", _pairs(failed, newer | named))
    return Verdict(str(status))


def _pairs(failed: Mapping[int, str | None], wanted: Collection[int]) -> tuple[tuple[int, str], ...]:
    return tuple((version, failed[version] or "") for version in sorted(wanted) if version in failed)


class Reloads:
    """The reloads of one client: one at a time, each to one server after the other.

    Args:
        clock: seconds, on the clock that deadlines are on.
        sleep: waits for a number of seconds.
        suspect: seconds after which a reload that has not come back is looked into.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        suspect: float = SUSPECT,
    ) -> None:
        self.clock = clock
        self.sleep = sleep
        self.suspect = suspect
        #: The config that was applied last; None before the first.
        self.config: ModelServerConfig | None = None
        #: What reloads were still waiting for when their callers' deadlines passed, by server.
        self.unfinished: dict[str, str] = {}
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        models = "nothing" if self.config is None else f"{len(self.config.model_config_list)} models"
        return f"<Reloads: {models} applied{', one under way' if self._lock.locked() else ''}>"

    async def apply(
        self,
        change: Callable[[ModelServerConfig | None], ModelServerConfig],
        port: Port,
        targets: Sequence[str],
        deadline: float | None,
        *,
        wait_for: Callable[[str], bool] | None = None,
        metric_names: Sequence[str] = (),
        check: bool = True,
        known: ModelServerConfig | None = None,
        sees_files: Callable[[str], bool] = lambda target: False,
    ) -> ReloadResult:
        """Send what `change` makes of the config in force to every one of `targets`, in turn.

        Args:
            change: gives the new config; called when it is this reload's turn.
            port: how to reach the servers.
            targets: addresses of the servers.
            deadline: on `clock`; None for no limit.
            wait_for: which models to wait for, by name, after each reload; None for none.
            metric_names: metrics whose growth the servers are to report.
            check: refuse what the servers would refuse, and warn of what they would hang on.
            known: the config in force, as the caller knows it; the one that was applied last if None.
            sees_files: whether this process sees the files of a target.

        Raises:
            InvalidConfigError: a server would refuse the config.
            ModelLoadError: models that were waited for failed to load.
            DeadlineExceededError: not done in time; the message tells what was still to come.
            RPCError: what a server answered.
        """
        async with self._lock:
            old = known if known is not None else self.config
            new = change(old)
            if check:
                _check(new, old, look=any(map(sees_files, targets)))
            loads: list[ModelLoad] = []
            metrics: dict[str, Mapping[str, int | None]] = {}
            done: list[str] = []
            for target in targets:
                one = _OneServer(self, port, target, deadline, metric_names)
                try:
                    if wait_for is None:
                        metrics[target] = await one.send(new)
                    else:
                        names = [model.name for model in new.model_config_list if wait_for(model.name)]
                        found, metrics[target] = await one.step_by_step(old, new, names)
                        loads += found
                except errors.RPCError as error:
                    if done:
                        error.details += f" (servers that have the new config already: {', '.join(done)})"
                    raise
                done.append(target)
            return ReloadResult(new.copy(), tuple(loads), metrics if metric_names else {})


def _check(new: ModelServerConfig, old: ModelServerConfig | None, look: bool) -> None:
    problems = check_config(new, old=old, look=look)
    refused = [problem for problem in problems if problem.refused]
    if refused:
        raise errors.InvalidConfigError(refused)
    for problem in problems:
        warnings.warn(str(problem), ConfigWarning, stacklevel=2)


def _overcome(failure: errors.UnknownError, names: Sequence[str]) -> bool:
    """Whether a reload failed only for models that were found as they should be afterwards.

    A model that is added again while it is still being unloaded ends first, which the server takes for
    a failure, and is then loaded.
    """
    named = re.findall(r"\{name: (.*?) version: -?\d+\}", failure.details)
    return bool(named) and set(named) <= set(names)


class _OneServer:
    """One reload of one server."""

    def __init__(
        self, reloads: Reloads, port: Port, target: str, deadline: float | None, metric_names: Sequence[str]
    ) -> None:
        self._reloads = reloads
        self._port = port
        self._target = target
        self._deadline = deadline
        self._metric_names = metric_names

    async def step_by_step(
        self, old: ModelServerConfig | None, new: ModelServerConfig, names: Sequence[str]
    ) -> tuple[list[ModelLoad], Mapping[str, int | None]]:
        """Load, wait until the models called `names` are available, then label."""
        before = {name: await self._status(name) for name in names}
        available = {
            name: {item.version for item in status.available} if status else set()
            for name, status in before.items()
        }
        leaving: dict[str, set[int]] = {}
        if old is not None:
            models = {model.name: model for model in old.model_config_list}
            leaving = {name: vs - kept_versions(models.get(name), vs) for name, vs in available.items()}
        loads: list[ModelLoad] = []
        metrics: Mapping[str, int | None] = {}
        for step in label_steps(old, new, available):
            failure: errors.UnknownError | None = None
            try:
                metrics = await self.send(step)
            except errors.UnknownError as error:  # models failed; their status says which, and all of why
                failure = error
            loads = await self._wait(step, names, before, leaving)
            leaving = {}
            if failure is not None and not _overcome(failure, names):
                raise failure
        return loads, metrics

    async def send(self, config: ModelServerConfig) -> Mapping[str, int | None]:
        """The reload itself; says in the log, and in the error, what it is stuck on."""
        from aioserving.messages import ReloadConfigRequest, ReloadConfigResponse

        reloads, target = self._reloads, self._target
        request = ReloadConfigRequest(config=config, metric_names=self._metric_names).to_bytes()
        sending = asyncio.ensure_future(self._port.reload(target, request, self._deadline))
        stuck = ""
        try:
            await asyncio.wait({sending}, timeout=reloads.suspect)
            if not sending.done():
                stuck = await self._stuck(config)
                if stuck:
                    logger.warning("the reload of %s does not come back: %s", target, stuck)
            response = await sending
        except errors.DeadlineExceededError as error:
            stuck = stuck or reloads.unfinished.get(target, "")
            if stuck:
                error.details = f"{error.details}: {stuck}"
            reloads.unfinished[target] = stuck or "an earlier reload may still be under way"
            reloads.config = config.copy()  # the server goes on with it
            raise
        except errors.UnknownError:
            reloads.config = config.copy()  # what did load is served
            raise
        finally:
            if not sending.done():
                sending.cancel()
                with contextlib.suppress(asyncio.CancelledError, errors.ServingError):
                    await sending
        reloads.config = config.copy()
        reloads.unfinished.pop(target, None)
        answer = ReloadConfigResponse.from_bytes(response)
        return {metric.name: metric.int64_value_increase for metric in answer.metric}

    async def _stuck(self, config: ModelServerConfig) -> str:
        """What a reload that does not come back waits for, as far as the server tells."""
        missing = []
        for model in config.pb.model_config_list.config:
            with contextlib.suppress(errors.RPCError):
                if await self._status(model.name) is None:
                    missing.append(f"{model.name!r} under {model.base_path!r}")
        if missing:
            return (
                f"the server has found no version of {', '.join(missing)}; it goes on waiting for one, and "
                "no later reload gets through until there is one (or the server is restarted)"
            )
        return self._reloads.unfinished.get(self._target, "")

    async def _status(self, model: str) -> ModelStatus | None:
        """None if the server has found no version of the model."""
        patience = self._reloads.clock() + 5.0  # one unanswered question must not take up the whole wait
        deadline = patience if self._deadline is None else min(patience, self._deadline)
        try:
            return await self._port.status(self._target, model, deadline)
        except errors.NotFoundError:
            return None

    async def _wait(
        self,
        config: ModelServerConfig,
        names: Sequence[str],
        before: Mapping[str, ModelStatus | None],
        leaving: Mapping[str, set[int]],
    ) -> list[ModelLoad]:
        """Wait until the models called `names` are as `config` asks."""
        clock = self._reloads.clock
        models = {model.name: model for model in config.pb.model_config_list.config if model.name in names}
        old = {name: {item.version for item in status.failed} for name, status in before.items() if status}
        going = {name: set(versions) for name, versions in leaving.items()}
        believed_at = clock() + STALE
        loads: dict[str, ModelLoad] = {}
        failures: list[errors.LoadFailure] = []
        pending = dict.fromkeys(models, "no answer yet")
        pause = PAUSE[0]
        while True:
            for name in list(pending):
                try:
                    status = await self._status(name)
                except (errors.UnavailableError, errors.DeadlineExceededError) as error:
                    pending[name] = error.details
                    continue
                doubtful = clock() < believed_at
                if status is not None and name in going:
                    going[name] &= {item.version for item in status.available}  # else it was loaded anew
                verdict = judge(
                    models[name],
                    status,
                    old.get(name, ()) if doubtful else (),
                    going.get(name, ()) if doubtful else (),
                )
                if verdict.pending:
                    pending[name] = verdict.pending
                    continue
                del pending[name]
                failures += [
                    errors.LoadFailure(self._target, name, version, reason)
                    for version, reason in verdict.failed
                ]
                loads[name] = ModelLoad(self._target, status or ModelStatus(name, ()))
            if not pending:
                break
            if self._deadline is not None and self._deadline - clock() <= pause:
                waiting = "; ".join(f"{name!r}: {what}" for name, what in pending.items())
                raise errors.DeadlineExceededError(
                    f"not all models became available in time; still to come: {waiting}"
                    + "".join(f"; {failure}" for failure in failures),
                    endpoint=self._target,
                    method="GetModelStatus",
                )
            await self._reloads.sleep(pause)
            pause = min(pause * 1.5, PAUSE[1])
        if failures:
            raise errors.ModelLoadError(failures)
        return [loads[name] for name in models]
