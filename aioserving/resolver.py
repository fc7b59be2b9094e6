"""Names that stand for several servers: looked up before the first call, and again and again after it.

gRPC looks a name up when a connection drops, and not before 30 seconds have passed since the last time: a
new replica gets nothing until then. A `Resolver` looks names up periodically, sooner when the pool says that
an endpoint fails, and tells what was added and what removed. It keeps what it knows: addresses are
replaced by an answer that has others, never removed because a lookup failed, took too long or came
back empty.

When a name is looked up is a function of what happened and of the clock (`Schedule`); what follows from
the answers is another one (`endpoints_of`); the `Resolver` does the waiting and asking around them.
What connects to endpoints, and lets calls to removed ones end, is the pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import ipaddress
import logging
import math
import random as random_module
import socket
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias, TypeVar

from aioserving import errors
from aioserving.targets import Target

__all__ = ["Lookup", "OnChange", "Resolver", "ResolverOptions", "Schedule", "SystemLookup", "endpoints_of"]

#: ``await lookup(host, port)`` gives the IP addresses of a host.
Lookup: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]

#: ``on_change(added, removed)`` is told what became of the endpoints.
OnChange: TypeAlias = Callable[[Sequence[Target], Sequence[Target]], None]

_T = TypeVar("_T")

logger = logging.getLogger("aioserving.resolver")


@dataclass(frozen=True, kw_only=True)
class ResolverOptions:
    """How often names are looked up."""

    #: Seconds from one successful lookup to the next.
    interval: float = 30.0
    #: By how much of itself every delay is longer or shorter, at random, so that the clients of a fleet do
    #: not ask all at once.
    jitter: float = 0.2
    #: Seconds between two lookups of a name, however much a new one is wished for.
    min_interval: float = 1.0
    #: Seconds after which a lookup counts as failed.
    timeout: float = 5.0
    #: Seconds from the first failed lookup to the next; doubled with every further one.
    backoff: float = 1.0
    #: What that is doubled up to.
    max_backoff: float = 30.0
    #: Gives the IP addresses of a host and port, where it is not the system that knows them.
    lookup: Lookup | None = None

    def __post_init__(self) -> None:
        for name in ("interval", "timeout", "backoff", "max_backoff"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be a number of seconds above 0, got {value!r}")
        if not 0 <= self.min_interval < math.inf:
            raise ValueError(
                f"min_interval must be a number of seconds, at least 0, got {self.min_interval!r}"
            )
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter must be at least 0 and below 1, got {self.jitter!r}")
        if self.max_backoff < self.backoff:
            raise ValueError(f"max_backoff, {self.max_backoff!r}, is less than backoff, {self.backoff!r}")


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a name is looked up next; every method gives the schedule that follows from what happened."""

    #: When the next lookup is due.
    due: float = -math.inf
    #: When the last one ended.
    ended: float = -math.inf
    #: How many have failed since the last that succeeded.
    failures: int = 0

    def succeeded(self, now: float, options: ResolverOptions, draw: float) -> Schedule:
        """After a lookup with an answer.

        Args:
            now: the time at which it ended.
            options: how often to look up.
            draw: a random number from 0 to 1, for the jitter.
        """
        return Schedule(now + _jittered(options.interval, options, draw), now)

    def failed(self, now: float, options: ResolverOptions, draw: float) -> Schedule:
        """After a lookup without one; arguments as of `succeeded`."""
        doublings = min(self.failures, 64)  # beyond which it is the maximum for certain
        delay = min(options.backoff * 2.0**doublings, options.max_backoff)
        return Schedule(now + _jittered(delay, options, draw), now, self.failures + 1)

    def requested(self, now: float, options: ResolverOptions, *, anyway: bool = False) -> Schedule:
        """After a wish for a new answer.

        Args:
            now: the time of the wish.
            options: how often to look up at most.
            anyway: also while the name is left alone because lookups failed.
        """
        if self.failures and not anyway:
            return self
        return replace(self, due=min(self.due, max(now, self.ended + options.min_interval)))


def _jittered(delay: float, options: ResolverOptions, draw: float) -> float:
    return max(delay * (1 + options.jitter * (2 * draw - 1)), options.min_interval)


def endpoints_of(
    targets: Sequence[Target], answers: Mapping[Target, Sequence[str]], current: Iterable[Target] = ()
) -> tuple[Target, ...]:
    """The endpoints that targets stand for.

    Args:
        targets: endpoints, and names that stand for several.
        answers: the addresses of names; a name that has none yet is missing.
        current: the endpoints in use. An address that several names have in common goes by the name that
            it goes by now, as long as that has it; a new one by the first name.

    Returns:
        The endpoints, in the order of the targets and of their answers, each address once. What is given as
        an address itself goes before what a name was resolved to.
    """
    in_use = {endpoint.key: endpoint for endpoint in current}
    chosen: dict[str, Target] = {target.key: target for target in targets if not target.to_resolve}
    order: dict[str, None] = {}
    for target in targets:
        if not target.to_resolve:
            order[target.key] = None
            continue
        for ip in answers.get(target, ()):
            endpoint = target.at(ip)
            key = endpoint.key
            order[key] = None
            if key not in chosen or in_use.get(key) == endpoint:
                chosen[key] = endpoint
    return tuple(chosen[key] for key in order)


class SystemLookup:
    """Looks names up as the system does, with all their A and AAAA records: `loop.getaddrinfo`.

    A lookup that nobody waits for any longer goes on in its thread, which nothing can stop; so the next one
    for the same name joins it, and however long the system hangs, a name takes one thread of the loop's
    executor at most.
    """

    def __init__(self) -> None:
        self._running: dict[tuple[str, int], asyncio.Future[list[Any]]] = {}

    def __repr__(self) -> str:
        return f"<SystemLookup, {len(self._running)} under way>"

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """The IP addresses of a host, each once.

        Raises:
            OSError: the system cannot tell.
        """
        key = (host, port)
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = _background(_getaddrinfo(host, port))
            task.add_done_callback(lambda done: self._forget(key, done))
        await asyncio.wait((task,))  # cancelled, this leaves the task alone
        return list(dict.fromkeys(str(sockaddr[0]) for _, _, _, _, sockaddr in task.result()))

    def _forget(self, key: tuple[str, int], task: asyncio.Future[list[Any]]) -> None:
        if self._running.get(key) is task:
            del self._running[key]
        if not task.cancelled():
            task.exception()  # seen, even if nobody waits for it any longer

    async def aclose(self) -> None:
        """Wait for nothing that is under way any longer."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def _getaddrinfo(host: str, port: int) -> list[Any]:
    return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)


class _Name:
    """A name, and what is known of it."""

    __slots__ = (
        "answer",
        "error",
        "host",
        "looking",
        "port",
        "round",
        "schedule",
        "sleeper",
        "target",
        "task",
    )

    def __init__(self, target: Target) -> None:
        self.target = target
        self.host = target.host
        self.port = target.port or 0
        self.schedule = Schedule()
        #: The last good answer.
        self.answer: tuple[str, ...] = ()
        #: Why the last lookup failed; None if it did not.
        self.error: str | None = None
        #: Whether a lookup is under way.
        self.looking = False
        #: Done when the next lookup has ended.
        self.round: asyncio.Future[None] | None = None
        self.task: asyncio.Future[None] | None = None
        self.sleeper: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Have the schedule looked at again."""
        if self.sleeper is not None:
            self.sleeper.cancel()


class Resolver:
    """Keeps the endpoints that targets stand for up to date.

    It lives on one event loop, from `start`, or the first `first`, until `aclose`. Several names are looked
    up independently of each other. Endpoints that are no names are in `endpoints` from the beginning.

    Args:
        targets: endpoints, and names that stand for several (`Target.to_resolve`).
        on_change: told of endpoints that were added and removed, on the event loop, after `endpoints` has
            changed. Where an address goes by another name now, it is in both. If it is a method, its object
            is not kept alive by it.
        options: how often to look up.
        lookup: gives the IP addresses of a host; the system's if not given. Any exception means that it
            could not, and an empty answer is one too.
        clock: seconds, monotonic; the loop's own if not given.
        sleep: waits for a number of seconds on that clock.
        random: gives a random number from 0 to 1.

    Raises:
        ValueError: there is no target.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        on_change: OnChange | None = None,
        *,
        options: ResolverOptions | None = None,
        lookup: Lookup | None = None,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        self.options = options or ResolverOptions()
        self._targets = tuple(targets)
        if not self._targets:
            raise ValueError("at least one target is needed")
        # Loop, timer, task, resolver: whatever this held would live, and could not be missed, until `aclose`.
        self._on_change: Callable[[], OnChange | None] = lambda: on_change
        if inspect.ismethod(on_change):
            self._on_change = weakref.WeakMethod(on_change)
        lookup = lookup or self.options.lookup
        self._system = SystemLookup() if lookup is None else None
        self._lookup: Lookup = self._system or lookup  # type: ignore[assignment]
        self._clock = clock
        self._sleep = sleep
        self._random = random
        self._names = [_Name(target) for target in self._targets if target.to_resolve]
        #: The endpoints known now.
        self.endpoints = endpoints_of(self._targets, {})
        self._started = False
        self._closed = False

    def __repr__(self) -> str:
        names = ", ".join(f"{name.host}:{name.port}" for name in self._names[:3])
        names += ", …" if len(self._names) > 3 else ""
        if self._closed:
            state = "closed"
        elif not self._started:
            state = "not started"
        else:
            states = []
            looking = sum(name.looking for name in self._names)
            if looking:
                states.append(f"{looking} being looked up")
            failing = [name for name in self._names if name.error is not None]
            if failing:
                states.append(
                    f"{failing[0].host} failed {failing[0].schedule.failures} times: {failing[0].error}"
                )
            state = "; ".join(states) or "up to date"
        return f"<Resolver of {names or 'no names'}: {len(self.endpoints)} endpoints, {state}>"

    @property
    def has_names(self) -> bool:
        """Whether there is anything to look up."""
        return bool(self._names)

    @property
    def failures(self) -> dict[str, str]:
        """By target, why the last lookup of its name failed; those whose last one succeeded are missing."""
        return {name.target.address: name.error for name in self._names if name.error is not None}

    def start(self) -> None:
        """Begin to look names up, on the running loop; no matter if it has begun.

        Raises:
            ClientClosedError: it was closed.
        """
        if self._closed:
            raise errors.ClientClosedError(_CLOSED)
        if self._started:
            return
        loop = asyncio.get_running_loop()
        if self._clock is None:
            self._clock = loop.time
        self._started = True
        for name in self._names:
            name.round = loop.create_future()
            # In a context of its own: the one of whoever came first would live as long as the task.
            name.task = contextvars.Context().run(_background, self._watch(name))

    async def aclose(self) -> None:
        """Stop; whoever waits for an answer gets a `ClientClosedError`. Safe to call again."""
        self._closed = True
        tasks = [name.task for name in self._names if name.task is not None]
        for task in tasks:
            task.cancel()
        for name in self._names:
            if name.round is not None and not name.round.done():
                name.round.set_result(None)
        if tasks:
            await asyncio.wait(tasks)
        if self._system is not None:
            await self._system.aclose()

    def abandon(self) -> None:
        """Stop without waiting for it, from wherever, also after the loop was closed."""
        self._closed = True
        for name in self._names:
            if name.task is None or name.task.done():
                continue
            loop = name.task.get_loop()
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the task will never end
                loop.call_soon_threadsafe(name.task.cancel)

    def request(self) -> None:
        """Look names up soon, because an endpoint failed; plain, cheap, and limited by `min_interval`.

        Names whose last lookup failed are left alone until their time has come.
        """
        self._bring_forward(anyway=False)

    async def first(self, deadline: float | None = None) -> tuple[Target, ...]:
        """The endpoints, as soon as there is at least one.

        Returns at once where there are any. Any number of callers wait for the same lookups; cancelling one
        does not affect the others.

        Args:
            deadline: point on the clock until which to wait; None waits until the lookups have ended.

        Raises:
            UnavailableError: all names were looked up, now or less than `min_interval` ago, and
                none has an address; the text has the names and the reasons.
            DeadlineExceededError: the deadline passed before.
            ClientClosedError: it was closed, now or while waiting.
        """
        self.start()
        if self.endpoints:
            return self.endpoints
        self._bring_forward(anyway=True)
        while not self.endpoints:
            now = self._now()
            pending = [name for name in self._names if name.looking or name.schedule.due <= now]
            if not pending:
                raise self._nothing()
            await self._wait_for_any(pending, deadline)
        return self.endpoints

    async def resolve_now(self, deadline: float | None = None) -> tuple[Target, ...]:
        """Look all names up, however recently they were, and give the endpoints known after that.

        A name that is being looked up is not looked up twice. One that cannot be keeps the addresses it had;
        `failures` has the reason.

        Args:
            deadline: as of `first`.

        Raises:
            UnavailableError: there is still no endpoint.
            DeadlineExceededError: the deadline passed before.
            ClientClosedError: it was closed, now or while waiting.
        """
        self.start()
        rounds = {name: name.round for name in self._names}
        now = self._now()
        for name in self._names:
            name.schedule = replace(name.schedule, due=min(now, name.schedule.due))
            name.wake()
        while pending := [name for name in self._names if name.round is rounds[name]]:
            await self._wait_for_any(pending, deadline)
        if not self.endpoints:
            raise self._nothing()
        return self.endpoints

    # -- waiting and asking -------------------------------------------------------------------------

    def _now(self) -> float:
        assert self._clock is not None, "only after start()"
        return self._clock()

    def _bring_forward(self, *, anyway: bool) -> None:
        if not self._started or self._closed:
            return
        now = self._now()
        for name in self._names:
            sooner = name.schedule.requested(now, self.options, anyway=anyway)
            if sooner.due < name.schedule.due:
                name.schedule = sooner
                name.wake()

    async def _wait_for_any(self, names: Sequence[_Name], deadline: float | None) -> None:
        """Wait until one of the lookups has ended."""
        waiting = [name.round for name in names if name.round is not None]
        if deadline is None:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        elif (left := deadline - self._now()) > 0:
            await _either([_background(self._sleep(left))], waiting)
        if self._closed:
            raise errors.ClientClosedError(_CLOSED)
        if not any(future.done() for future in waiting):
            names_ = ", ".join(repr(name.host) for name in names)
            raise errors.DeadlineExceededError(f"the deadline passed while {names_} was being looked up")

    async def _watch(self, name: _Name) -> None:
        """Look one name up whenever it is due."""
        while True:
            delay = name.schedule.due - self._now()
            if delay > 0:
                name.sleeper = _background(self._sleep(delay))
                await _either([name.sleeper])  # a cancelled sleeper is a reason to look again
                name.sleeper = None
                continue
            name.looking = True
            try:
                await self._look_up(name)
            finally:
                name.looking = False
            finished, name.round = name.round, asyncio.get_running_loop().create_future()
            if finished is not None and not finished.done():
                finished.set_result(None)

    async def _look_up(self, name: _Name) -> None:
        asking = _background(self._ask(name))
        await _either([asking, _background(self._sleep(self.options.timeout))])
        answer: tuple[str, ...] = ()
        if asking.cancelled():
            reason = f"no answer within {self.options.timeout:g} s"
        elif (error := asking.exception()) is not None:
            reason = _reason(error)
        else:
            answer, reason = asking.result(), "it has no addresses"
        now = self._now()
        if answer:
            if name.error is not None:
                logger.info("%r is resolved again, after %d failures", name.host, name.schedule.failures)
            changed = frozenset(answer) != frozenset(name.answer)  # DNS servers rotate their answers
            name.answer, name.error = answer, None
            name.schedule = name.schedule.succeeded(now, self.options, self._random())
            if changed:
                self._update()
            return
        if name.error is None:
            kept = f"; its {len(name.answer)} addresses stay in use" if name.answer else ""
            logger.warning("%r cannot be resolved: %s%s", name.host, reason, kept)
        name.error = reason
        name.schedule = name.schedule.failed(now, self.options, self._random())

    async def _ask(self, name: _Name) -> tuple[str, ...]:
        found = await self._lookup(name.host, name.port)
        for ip in found:
            ipaddress.ip_address(ip)  # a ValueError here is a failed lookup
        return tuple(dict.fromkeys(found))

    def _update(self) -> None:
        """Tell the difference that the answers make."""
        before = self.endpoints
        after = endpoints_of(self._targets, {name.target: name.answer for name in self._names}, before)
        old, new = frozenset(before), frozenset(after)
        added = tuple(endpoint for endpoint in after if endpoint not in old)
        removed = tuple(endpoint for endpoint in before if endpoint not in new)
        if not added and not removed:
            return  # other names, or a target, have those addresses, too
        self.endpoints = after
        logger.info("endpoints: %d added, %d removed, %d now", len(added), len(removed), len(after))
        on_change = self._on_change()
        if on_change is not None:
            try:
                on_change(added, removed)
            except Exception:
                logger.exception("on_change failed")

    def _nothing(self) -> errors.UnavailableError:
        failed = [name for name in self._names if name.error is not None]
        reasons = "; ".join(f"{name.host!r} cannot be resolved: {name.error}" for name in failed[:3])
        if len(failed) > 3:
            reasons += f"; and {len(failed) - 3} more names"
        endpoint = failed[0].target.address if len(failed) == 1 else None
        return errors.UnavailableError(f"{reasons}. {_ADVICE}", endpoint=endpoint)


_CLOSED: Final = "the client is closed, and looks up no names"
_ADVICE: Final = (
    "Is the name right, and known where this program runs? (A headless service of Kubernetes has addresses "
    "only while some of its pods are ready.)"
)


def _background(work: Awaitable[_T]) -> asyncio.Future[_T]:
    """A task that nobody misses where its loop is closed before it has ended."""
    task = asyncio.ensure_future(work)
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    return task


async def _either(own: Sequence[asyncio.Future[Any]], others: Sequence[asyncio.Future[Any]] = ()) -> None:
    """Wait until one of them is done; then, or if cancelled, end those that are the caller's own."""
    try:
        await asyncio.wait((*own, *others), return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:  # and not finally: nothing can be awaited where a loop was closed
        await _end(own)
        raise
    await _end(own)


async def _end(futures: Sequence[asyncio.Future[Any]]) -> None:
    for future in futures:
        future.cancel()
    await asyncio.wait(futures)


def _reason(error: BaseException) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return text or type(error).__name__
