"""Clients of a repository service: `AsyncRepositoryClient`, and `RepositoryClient` for blocking code.

    async with AsyncRepositoryClient("127.0.0.1:8510") as repository:
        await repository.rollout("digits", 7)
        async for event in repository.watch(model="digits"):
            print(event)

Methods give the frozen objects of `results`, policies, events and the progress of fetches; they raise the
errors of `aioserving.errors`. A service that is not there for a moment is waited for, so that its restart is
no failure; streams go on where they were. TLS and credentials are those of `aioserving.security`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import warnings
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from grpc import aio

from aioserving import errors
from aioserving._types import DEFAULT, DefaultType, Metadata, Timeout
from aioserving.deadline import deadline_after
from aioserving.repository import conversion
from aioserving.repository.events import Event
from aioserving.repository.v1 import model_repository_pb2 as pb
from aioserving.security import TLS, check_metadata, check_plaintext, connection_advice, obtain
from aioserving.shared_loop import OnSharedLoop
from aioserving.targets import parse_targets
from aioserving.transport import (
    ChannelOptions,
    Transport,
    check_fork,
    error_from_status,
    process_generation,
)

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from aioserving.repository.fetch import FetchProgress
    from aioserving.repository.policy import Policy
    from aioserving.repository.results import FetchedVersion, ModelInfo, ModelVersions, PlannedStep
    from aioserving.security import Credentials

__all__ = [
    "DEFAULT_TARGET",
    "AsyncRepositoryClient",
    "BlockingFetch",
    "BlockingWatch",
    "Position",
    "RemoteFetch",
    "RemoteWatch",
    "RepositoryClient",
]

_T = TypeVar("_T")

#: Where a service listens whose set-up file does not say.
DEFAULT_TARGET: Final = "127.0.0.1:8510"

_SERVICE: Final = "/aioserving.repository.v1.ModelRepository/"
#: Seconds between attempts to reach a service: the first, and the most after doubling.
_PAUSES: Final = (0.05, 1.0)


@dataclass(frozen=True, slots=True)
class Position:
    """How far a watcher has come; ``str`` of it can be kept, and `parse`d later."""

    #: Names the start of the service that counts the events.
    epoch: str
    #: Number of the last event that was seen.
    number: int

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read what ``str`` gave.

        Raises:
            ValueError: it is something else.
        """
        found = re.fullmatch(r"(\w+):(\d{1,18})", text)
        if found is None:
            raise ValueError(f"{text!r} is no position of a watcher: it is EPOCH:NUMBER")
        return cls(found[1], int(found[2]))

    def __str__(self) -> str:
        return f"{self.epoch}:{self.number}"


class _StreamingTransport(Transport):
    """A connection whose calls may also have a stream of answers."""

    def __init__(self, target: str, **options: Any) -> None:
        super().__init__(target, **options)
        #: Streams under way. Nobody may be reading one, so closing does not wait for their readers.
        self._streams: set[Any] = set()

    @property
    def busy(self) -> bool:
        """Whether a call or a stream is under way."""
        return bool(self._active or self._streams)

    async def close(self) -> None:
        """Cancel the calls and streams under way and close the connection; safe to call again."""
        for call in tuple(self._streams):
            call.cancel()
        await super().close()

    async def stream(
        self, method: str, request: bytes, timeout: float | None, metadata: Metadata
    ) -> AsyncGenerator[bytes, None]:
        """The serialized answers, as they come; ends when the call does well.

        Raises:
            RPCError: the call failed.
            ClientClosedError: this client was closed.
        """
        if self._closed:
            raise self._cut_off(method)
        begin: Any = self._channel.unary_stream(method)  # bytes in, bytes out: no (de)serializers
        call = begin(request, timeout=timeout, metadata=tuple(metadata))
        self._streams.add(call)
        try:
            while True:
                answer = await _read(call)
                if answer is aio.EOF:
                    break
                yield answer
            code = await call.code()
            if code.value[0] != 0:
                raise self._failure(call, code, await call.details() or "", method)
        except aio.AioRpcError as error:
            raise self._failure(error, error.code(), error.details() or "", method) from error
        except _LocallyCancelledError:
            raise self._cut_off(method) from None
        finally:
            call.cancel()
            self._streams.discard(call)

    def _failure(self, call: Any, code: Any, details: str, method: str) -> errors.RPCError:
        return error_from_status(
            code.name, details, endpoint=self.target, method=method, debug=call.debug_error_string() or ""
        )


class _LocallyCancelledError(Exception):
    """A call was cancelled by this process, and not by the task that waits for it."""


async def _read(call: Any) -> Any:
    """The next answer, or `grpc.aio.EOF`; cancelled with the task that waits, and only then."""
    reading = asyncio.ensure_future(call.read())
    try:
        await asyncio.wait((reading,))
    except asyncio.CancelledError:
        call.cancel()
        reading.cancel()
        raise
    try:
        return reading.result()
    except asyncio.CancelledError:
        raise _LocallyCancelledError from None


class AsyncRepositoryClient:
    """A client of a repository service for asyncio.

    Making one does no I/O. It binds to the event loop of its first call and belongs to that loop until it is
    closed. Cancelling a call at any point is safe.

    Args:
        target: where the service listens: ``host:port`` or ``unix:/path``.
        timeout: seconds that a call may take when it says nothing else; None for no limit. Watches and
            fetches have no limit unless they say so.
        tls: TLS, with the system's authorities if True; None for plaintext.
        credentials: what calls carry to say who makes them.
        metadata: gRPC metadata sent with every call.
        outage: seconds for which a service that does not answer, or a store that it cannot reach, is waited
            for before a call fails; within the call's own timeout.
        channel_options: gRPC channel arguments, over this library's own.

    Raises:
        ValueError: the target is malformed or several; or credentials would go out in plaintext.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout: float | None = 60.0,
        tls: TLS | bool | None = None,
        credentials: Credentials | None = None,
        metadata: Metadata = (),
        outage: float = 10.0,
        channel_options: ChannelOptions = (),
    ) -> None:
        parsed = parse_targets(target)
        if len(parsed) != 1:
            raise ValueError(f"a repository service has one target, got {target!r}")
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout must be a number of seconds, at least 0, or None; got {timeout!r}")
        if not outage >= 0:
            raise ValueError(f"outage must be a number of seconds, at least 0; got {outage!r}")
        self._target = parsed[0].address
        self._timeout = timeout
        self._tls = TLS() if tls is True else tls or None
        check_plaintext(credentials, secure=self._tls is not None)
        self._credentials = credentials
        self._metadata = check_metadata(tuple(metadata))
        self._outage = outage
        self._channel_options = channel_options
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._generation = -1
        self._transport: _StreamingTransport | None = None
        self._transport_tls = 0
        #: Connections with outdated credentials, which streams still use.
        self._former: list[_StreamingTransport] = []
        self._closing: set[asyncio.Future[None]] = set()

    # -- life -----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._connection()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel the calls under way and close the connection; safe to call again.

        Raises:
            EventLoopError: called from another loop than the one that the client is bound to.
        """
        self._closed = True
        if self._loop is None:
            return
        if self._generation != process_generation() or self._loop.is_closed():
            self._abandon()
            return
        if self._loop is not asyncio.get_running_loop():
            raise errors.EventLoopError(f"{self!r} belongs to another event loop")
        for transport in (self._transport, *self._former):
            if transport is not None:
                await transport.close()
        if self._closing:
            await asyncio.wait(self._closing)

    def _abandon(self) -> None:
        self._closed = True
        for transport in (self._transport, *self._former):
            if transport is not None:
                transport.abandon()

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if getattr(self, "_loop", None) is None or self._closed or self._generation != process_generation():
            return
        self._abandon()
        _warn(f"unclosed {self!r}: use 'async with' or await aclose()", ResourceWarning, stacklevel=2)

    def __repr__(self) -> str:
        transport = self._transport
        state = "closed" if self._closed else "not connected" if transport is None else transport.state
        return f"<{type(self).__name__} of {self._target}, {state}>"

    @property
    def target(self) -> str:
        """Where the service listens."""
        return self._target

    # -- models and versions --------------------------------------------------------------------------------

    async def models(self, *, timeout: Timeout = DEFAULT) -> tuple[ModelInfo, ...]:
        """The models that the store has, that are on disk, or that have a policy; by name.

        Args:
            timeout: seconds until the call fails; the client's own setting if not given.

        Raises:
            RPCError: the call failed.
        """
        answer = await self._call("ListModels", pb.ListModelsRequest(), pb.ListModelsResponse, timeout)
        return tuple(map(conversion.model_from_proto, answer.models))

    async def versions(self, model: str, *, timeout: Timeout = DEFAULT) -> ModelVersions:
        """The versions of a model: in the store, on disk, and how each is on every server.

        Args:
            model: name of the model.
            timeout: seconds until the call fails; the client's own setting if not given.

        Raises:
            NotFoundError: there is no such model.
            RPCError: the call failed in another way.
        """
        request = pb.ListVersionsRequest(model=model)
        answer = await self._call("ListVersions", request, pb.ListVersionsResponse, timeout, model=model)
        return conversion.report_from_proto(answer)

    def fetch(self, model: str, version: int | None = None, *, timeout: float | None = None) -> RemoteFetch:
        """Bring a version to the service's disk.

        Nothing happens until the result is awaited, for the `FetchedVersion`, or iterated, for the progress
        first. When the connection is lost, it goes on with the next one. It stops, with what it has kept for
        the next time, when nobody waits for it any more.

        Args:
            model: name of the model.
            version: the version; None: the highest that the store has.
            timeout: seconds until it fails; None for no limit.

        Raises:
            NotFoundError: the store has no such version. (This and the others by the result.)
            ResourceExhaustedError: the disk is full, or the version exceeds the service's limits.
            DataLossError: the version is corrupt.
            AbortedError: the version is not complete, or changes while it is read.
            PermissionDeniedError: the caller may only read.
            RPCError: it failed in another way.
        """
        return RemoteFetch(self, model, version, timeout)

    async def delete_version(self, model: str, version: int, *, timeout: Timeout = DEFAULT) -> None:
        """Remove a version from the disk; the store keeps it.

        Args:
            model: name of the model.
            version: the version.
            timeout: seconds until the call fails; the client's own setting if not given.

        Raises:
            NotFoundError: it is not on disk.
            FailedPreconditionError: a policy wants it, or a server has it loaded, or may have.
            PermissionDeniedError: the caller may only read.
            RPCError: the call failed in another way.
        """
        request = pb.DeleteVersionRequest(model=model, version=_number(version))
        await self._call(
            "DeleteVersion", request, pb.DeleteVersionResponse, timeout, model=model, repeatable=False
        )

    # -- what is to be served -------------------------------------------------------------------------------

    async def get_policy(self, model: str, *, timeout: Timeout = DEFAULT) -> Policy | None:
        """The policy of a model; None: nobody said what is to be served.

        Args:
            model: name of the model.
            timeout: seconds until the call fails; the client's own setting if not given.

        Raises:
            RPCError: the call failed.
        """
        request = pb.GetPolicyRequest(model=model)
        answer = await self._call("GetPolicy", request, pb.GetPolicyResponse, timeout, model=model)
        return _policy(answer)

    async def set_policy(
        self, model: str, policy: Policy | None, *, timeout: Timeout = DEFAULT
    ) -> Policy | None:
        """Say which versions of a model are to be served, from now on and after restarts.

        Args:
            model: name of the model.
            policy: the policy; None: the model is not to be served any more.
            timeout: seconds until the call fails; the client's own setting if not given.

        Returns:
            The policy in force.

        Raises:
            InvalidArgumentError: the policy makes no sense to the service.
            PermissionDeniedError: the caller may only read.
            RPCError: the call failed in another way.
        """
        request = pb.SetPolicyRequest(model=model)
        if policy is not None:
            request.policy.CopyFrom(conversion.policy_to_proto(policy))
        answer = await self._call("SetPolicy", request, pb.SetPolicyResponse, timeout, model=model)
        return _policy(answer)

    async def rollout(self, model: str, version: int | None = None, *, timeout: Timeout = DEFAULT) -> int:
        """Bring a version to the servers now, whatever the hours, and out of quarantine if it is there.

        Returns when the decision is on record; `watch` tells how it is carried out. What is served now goes
        on until the version serves well.

        Args:
            model: name of the model, which has a policy.
            version: the version; None: the newest of the store.
            timeout: seconds until the call fails; the client's own setting if not given.

        Returns:
            The version.

        Raises:
            NotFoundError: there is no such version.
            FailedPreconditionError: the model has no policy.
            PermissionDeniedError: the caller may only read.
            RPCError: the call failed in another way.
        """
        request = pb.RolloutRequest(model=model, version=None if version is None else _number(version))
        answer = await self._call("Rollout", request, pb.RolloutResponse, timeout, model=model)
        return answer.version

    async def rollback(self, model: str, version: int | None = None, *, timeout: Timeout = DEFAULT) -> int:
        """Go back to the version that served before; those above it go into quarantine.

        Args:
            model: name of the model, which has a policy.
            version: the version to go back to; None: the one before.
            timeout: seconds until the call fails; the client's own setting if not given.

        Returns:
            The version that it goes back to.

        Raises:
            NotFoundError: there is no version to go back to.
            FailedPreconditionError: the model has no policy.
            PermissionDeniedError: the caller may only read.
            RPCError: the call failed in another way.
        """
        request = pb.RollbackRequest(model=model, version=None if version is None else _number(version))
        # A second time it would go back further.
        answer = await self._call(
            "Rollback",
            request,
            pb.RollbackResponse,
            timeout,
            model=model,
            repeatable=version is not None,
        )
        return answer.version

    async def release_version(self, model: str, version: int, *, timeout: Timeout = DEFAULT) -> bool:
        """Take a version out of quarantine, so that policies may choose it again; `rollout` brings it now.

        Args:
            model: name of the model.
            version: the version.
            timeout: seconds until the call fails; the client's own setting if not given.

        Returns:
            Whether it was in quarantine.

        Raises:
            PermissionDeniedError: the caller may only read.
            RPCError: the call failed in another way.
        """
        request = pb.ReleaseVersionRequest(model=model, version=_number(version))
        # A second time it would say that it was not there.
        answer = await self._call(
            "ReleaseVersion", request, pb.ReleaseVersionResponse, timeout, model=model, repeatable=False
        )
        return answer.released

    async def plan(self, model: str | None = None, *, timeout: Timeout = DEFAULT) -> tuple[PlannedStep, ...]:
        """What the service would do next; nothing is done.

        Args:
            model: only what is about this model; None: everything.
            timeout: seconds until the call fails; the client's own setting if not given.

        Raises:
            RPCError: the call failed.
        """
        answer = await self._call("Plan", pb.PlanRequest(model=model), pb.PlanResponse, timeout, model=model)
        return tuple(map(conversion.step_from_proto, answer.steps))

    # -- events ---------------------------------------------------------------------------------------------

    def watch(
        self,
        *,
        model: str | None = None,
        after: Position | int | None = None,
        reconnect: bool = True,
        timeout: float | None = None,
    ) -> RemoteWatch:
        """What happens, as it happens; an async iterator of events that ends by `RemoteWatch.aclose`.

        Where events are missed, because this side was too slow or the service was started anew, an event of
        the kind ``"missed"`` says so in their place.

        Args:
            model: only events about this model, and those about none; None: all.
            after: what was seen already, as `RemoteWatch.position` told (or the number of an event of this
                start of the service; 0: all that it still has); None: only what happens from now on.
            reconnect: when the connection is lost, wait for the service to come back, however long that
                takes; else that is an `UnavailableError`.
            timeout: seconds until it ends with a `DeadlineExceededError`; None for no limit.
        """
        return RemoteWatch(self, model, after, reconnect, timeout)

    # -- calls ----------------------------------------------------------------------------------------------

    def _connection(self) -> _StreamingTransport:
        """The connection for a new call."""
        if self._closed:
            raise errors.ClientClosedError(f"{self!r} is closed")
        loop = asyncio.get_running_loop()
        if self._loop is None:
            check_fork()
            self._loop, self._generation = loop, process_generation()
        elif self._generation != process_generation():
            check_fork(self._generation)
        elif self._loop is not loop:
            raise errors.EventLoopError(f"{self!r} belongs to another event loop; make one client for each")
        generation = self._tls.generation if self._tls is not None else 0
        if self._transport is None or generation != self._transport_tls:
            if self._transport is not None:
                self._former.append(self._transport)
                self._close_former()
            credentials, options = None, list(self._channel_options)
            if self._tls is not None:
                credentials, extra, generation = self._tls.current(self._target)
                options = [*extra, *options]
            self._transport_tls = generation
            self._transport = _StreamingTransport(self._target, credentials=credentials, options=options)
        return self._transport

    def _close_former(self) -> None:
        """Close connections with outdated credentials that nobody uses any more."""
        for transport in [item for item in self._former if not item.busy]:
            self._former.remove(transport)
            closing = asyncio.ensure_future(transport.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _deadline(self, timeout: Timeout) -> float | None:
        given = self._timeout if isinstance(timeout, DefaultType) else timeout
        return deadline_after(given, asyncio.get_running_loop().time())

    async def _sent(self, deadline: float | None) -> Metadata:
        """What credentials add to a call."""
        if self._credentials is None:
            return ()
        found = self._credentials.metadata()
        if found is None:
            try:
                found = await asyncio.wait_for(obtain(self._credentials), _left(deadline))
            except asyncio.TimeoutError:
                raise errors.DeadlineExceededError("the credentials were not at hand in time") from None
        return found

    async def _call(
        self,
        name: str,
        request: Any,
        response: type[_T],
        timeout: Timeout,
        *,
        model: str | None = None,
        repeatable: bool = True,
    ) -> _T:
        """One call, made again while the service is away.

        Args:
            name: short name of the method.
            request: the message to send.
            response: class of the answer.
            timeout: as for the public methods.
            model: name of the model it is about, for errors.
            repeatable: whether a call that may have arrived can be made again.
        """
        data = request.SerializeToString()
        attempts = _Attempts(self, self._deadline(timeout), model, repeatable=repeatable)
        while True:
            try:
                transport = self._connection()
                sent = attempts.sent = await self._sent(attempts.deadline)
                answer = await transport.call(
                    _SERVICE + name, data, _left(attempts.deadline), (*self._metadata, *sent)
                )
            except errors.RPCError as error:
                await attempts.failed(error)
            else:
                return response.FromString(answer)  # type: ignore[attr-defined,no-any-return]

    async def _stream(
        self,
        name: str,
        request: Callable[[], Any],
        response: type[_T],
        timeout: float | None,
        *,
        model: str | None,
        endless: bool = False,
        resume: bool = True,
    ) -> AsyncGenerator[_T, None]:
        """The answers of a stream that is begun again where it breaks.

        Args:
            name: short name of the method.
            request: makes the message to send; asked anew each time.
            response: class of the answers.
            timeout: seconds for all of it, or None.
            model: name of the model it is about, for errors.
            endless: once it was there, wait for the service without an end.
            resume: begin again at all.
        """
        attempts = _Attempts(self, self._deadline(timeout), model, repeatable=resume)
        while True:
            try:
                transport = self._connection()
                sent = attempts.sent = await self._sent(attempts.deadline)
                stream = transport.stream(
                    _SERVICE + name,
                    request().SerializeToString(),
                    _left(attempts.deadline),
                    (*self._metadata, *sent),
                )
                async with contextlib.aclosing(stream):
                    async for answer in stream:
                        attempts.went_well(endless=endless and resume)
                        yield response.FromString(answer)  # type: ignore[attr-defined]
            except errors.RPCError as error:
                await attempts.failed(error)
            else:
                return

    def _explained(self, error: errors.RPCError, model: str | None) -> errors.RPCError:
        """`error`, told with what this client knows."""
        error.model = model
        if isinstance(error, errors.UnavailableError):
            advice = connection_advice(error.details, self._tls)
            if advice and advice not in error.details:
                error.details = f"{error.details}; {advice}"
        return error


class _Attempts:
    """Whether, and when, a call that failed is made again.

    Attributes:
        deadline: when it has to be over, on the loop's clock; None: never.
        sent: the credentials that the last attempt carried.
    """

    def __init__(
        self, client: AsyncRepositoryClient, deadline: float | None, model: str | None, *, repeatable: bool
    ) -> None:
        self._client = client
        self._model = model
        self._repeatable = repeatable
        self._endless = False
        self._pause = _PAUSES[0]
        self._since: float | None = None
        self._refused = False
        self.deadline = deadline
        self.sent: Metadata = ()

    def __repr__(self) -> str:
        return f"<_Attempts of {self._client!r}, {'failing' if self._since is not None else 'well'}>"

    def went_well(self, *, endless: bool) -> None:
        """The service has answered."""
        self._pause, self._since, self._refused = _PAUSES[0], None, False
        self._endless = endless

    async def failed(self, error: errors.RPCError) -> None:
        """Return when it is time for the next attempt.

        Raises:
            RPCError: `error`; there is no next attempt.
        """
        client = self._client
        if isinstance(error, errors.UnauthenticatedError):
            if self._refused or client._credentials is None or not client._credentials.invalidate(self.sent):
                raise client._explained(error, self._model)
            self._refused = True
            return
        if not isinstance(error, errors.UnavailableError) or not (self._repeatable or error.withdrawn):
            raise client._explained(error, self._model)
        now = asyncio.get_running_loop().time()
        if self._since is None:
            self._since = now
        ends = [] if self._endless else [self._since + client._outage]
        if self.deadline is not None:
            ends.append(self.deadline)
        if ends and now + self._pause > min(ends):
            raise client._explained(error, self._model)
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, _PAUSES[1])


def _left(deadline: float | None) -> float | None:
    """Seconds until `deadline`."""
    if deadline is None:
        return None
    return max(deadline - asyncio.get_running_loop().time(), 0.0)


def _number(version: int) -> int:
    if not isinstance(version, int) or isinstance(version, bool) or not -(2**63) <= version < 2**63:
        raise errors.InvalidArgumentError(f"a version is a signed 64-bit integer, got {version!r}")
    return version


def _policy(answer: Any) -> Policy | None:
    return conversion.policy_from_proto(answer.policy) if answer.HasField("policy") else None


# -- streams ------------------------------------------------------------------------------------------------


class RemoteFetch:
    """A fetch by a service; made by `AsyncRepositoryClient.fetch`.

    Awaited, it gives the `FetchedVersion`. Iterated, it gives `FetchProgress` and ends when the version is on
    disk; awaiting it afterwards tells where.

    Attributes:
        progress: the newest there is; None: nothing is known yet.
    """

    def __init__(
        self, client: AsyncRepositoryClient, model: str, version: int | None, timeout: float | None
    ) -> None:
        request = pb.FetchVersionRequest(model=model, version=None if version is None else _number(version))
        self._about = model if version is None else f"{model} {version}"
        self._news = client._stream(
            "FetchVersion", lambda: request, pb.FetchVersionResponse, timeout, model=model
        )
        self._result: FetchedVersion | None = None
        self.progress: FetchProgress | None = None

    def __repr__(self) -> str:
        state = "done" if self._result else self.progress.state if self.progress else "nothing known"
        return f"<RemoteFetch of {self._about}, {state}>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> FetchProgress:
        async for answer in self._news:
            if answer.WhichOneof("news") == "progress":
                self.progress = conversion.progress_from_proto(answer.progress)
                return self.progress
            if answer.WhichOneof("news") == "fetched":
                self._result = conversion.fetched_from_proto(answer.fetched)
        raise StopAsyncIteration

    def __await__(self) -> Generator[Any, None, FetchedVersion]:
        return self._wait().__await__()

    async def _wait(self) -> FetchedVersion:
        async for _ in self:
            pass
        if self._result is None:
            raise errors.UnknownError(f"{self!r} ended without a result")
        return self._result

    async def aclose(self) -> None:
        """Wait for it no longer; it goes on if somebody else waits. A second time does nothing."""
        await _aclose(self._news)


class RemoteWatch:
    """The events of a service; made by `AsyncRepositoryClient.watch`. An async iterator."""

    def __init__(
        self,
        client: AsyncRepositoryClient,
        model: str | None,
        after: Position | int | None,
        reconnect: bool,
        timeout: float | None,
    ) -> None:
        self._model = model
        self._epoch = after.epoch if isinstance(after, Position) else ""
        self._after = after.number if isinstance(after, Position) else after
        self._news = client._stream(
            "Watch",
            self._request,
            pb.WatchResponse,
            timeout,
            model=model,
            endless=True,
            resume=reconnect,
        )
        self._began = False

    def __repr__(self) -> str:
        about = "all models" if self._model is None else self._model
        return f"<RemoteWatch of {about}, {'at ' + str(self.position) if self.position else 'not begun'}>"

    @property
    def position(self) -> Position | None:
        """What has been seen, for another watch to go on from; None: the watch has not begun."""
        if not self._epoch or self._after is None:
            return None
        return Position(self._epoch, self._after)

    async def begin(self) -> None:
        """Return once the watch has begun: what happens from then on will be told, or said to be missed.

        Iterating begins it, too.

        Raises:
            RPCError: it could not begin.
        """
        if not self._began:
            await self._read()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while True:
            event = await self._read()
            if event is not None:
                return event

    def _request(self) -> pb.WatchRequest:
        return pb.WatchRequest(model=self._model, after=self._after, epoch=self._epoch)

    async def _read(self) -> Event | None:
        """The next event; None: something else came."""
        answer = await anext(self._news)
        self._began = True
        kind = answer.WhichOneof("news")
        if kind == "begun":
            self._epoch, self._after = answer.epoch, answer.begun.number
        elif kind == "missed":
            missed = answer.missed
            count = f"{missed.count} events: " if missed.HasField("count") else ""
            return Event(time.time(), "missed", f"{count}{missed.reason}", number=self._after or 0)
        elif kind == "event":
            event = conversion.event_from_proto(answer.event)
            self._after = event.number
            return event
        return None

    async def aclose(self) -> None:
        """Watch no longer; a second time does nothing."""
        await _aclose(self._news)


async def _aclose(generator: Any) -> None:
    await generator.aclose()


# -- for blocking code --------------------------------------------------------------------------------------


class RepositoryClient(OnSharedLoop[AsyncRepositoryClient]):
    """A client of a repository service for plain, blocking code.

    May be used from any number of threads, and where an event loop is running already (notebooks). Ctrl-C
    stops the call that it interrupts, and leaves the client usable. Methods, arguments and errors are those
    of `AsyncRepositoryClient`, the constructor's included.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout: float | None = 60.0,
        tls: TLS | bool | None = None,
        credentials: Credentials | None = None,
        metadata: Metadata = (),
        outage: float = 10.0,
        channel_options: ChannelOptions = (),
    ) -> None:
        super().__init__(
            AsyncRepositoryClient(
                target,
                timeout=timeout,
                tls=tls,
                credentials=credentials,
                metadata=metadata,
                outage=outage,
                channel_options=channel_options,
            )
        )

    @property
    def target(self) -> str:
        """Where the service listens."""
        return self._client.target

    # -- calls ----------------------------------------------------------------------------------------------

    def models(self, *, timeout: Timeout = DEFAULT) -> tuple[ModelInfo, ...]:
        """The models that there are; see `AsyncRepositoryClient.models`."""
        return self._run(self._client.models(timeout=timeout))

    def versions(self, model: str, *, timeout: Timeout = DEFAULT) -> ModelVersions:
        """The versions of a model; see `AsyncRepositoryClient.versions`."""
        return self._run(self._client.versions(model, timeout=timeout))

    def fetch(self, model: str, version: int | None = None, *, timeout: float | None = None) -> BlockingFetch:
        """Bring a version to the service's disk; see `AsyncRepositoryClient.fetch`.

        Iterate over the result for the progress; its `BlockingFetch.result` is the `FetchedVersion`.
        """
        return BlockingFetch(self._run, self._client.fetch(model, version, timeout=timeout))

    def delete_version(self, model: str, version: int, *, timeout: Timeout = DEFAULT) -> None:
        """Remove a version from the disk; see `AsyncRepositoryClient.delete_version`."""
        self._run(self._client.delete_version(model, version, timeout=timeout))

    def get_policy(self, model: str, *, timeout: Timeout = DEFAULT) -> Policy | None:
        """The policy of a model, or None; see `AsyncRepositoryClient.get_policy`."""
        return self._run(self._client.get_policy(model, timeout=timeout))

    def set_policy(self, model: str, policy: Policy | None, *, timeout: Timeout = DEFAULT) -> Policy | None:
        """Say which versions are to be served; see `AsyncRepositoryClient.set_policy`."""
        return self._run(self._client.set_policy(model, policy, timeout=timeout))

    def rollout(self, model: str, version: int | None = None, *, timeout: Timeout = DEFAULT) -> int:
        """Bring a version to the servers now; see `AsyncRepositoryClient.rollout`."""
        return self._run(self._client.rollout(model, version, timeout=timeout))

    def rollback(self, model: str, version: int | None = None, *, timeout: Timeout = DEFAULT) -> int:
        """Go back to the version that served before; see `AsyncRepositoryClient.rollback`."""
        return self._run(self._client.rollback(model, version, timeout=timeout))

    def release_version(self, model: str, version: int, *, timeout: Timeout = DEFAULT) -> bool:
        """Take a version out of quarantine; see `AsyncRepositoryClient.release_version`."""
        return self._run(self._client.release_version(model, version, timeout=timeout))

    def plan(self, model: str | None = None, *, timeout: Timeout = DEFAULT) -> tuple[PlannedStep, ...]:
        """What the service would do next; see `AsyncRepositoryClient.plan`."""
        return self._run(self._client.plan(model, timeout=timeout))

    def watch(
        self,
        *,
        model: str | None = None,
        after: Position | int | None = None,
        reconnect: bool = True,
        timeout: float | None = None,
    ) -> BlockingWatch:
        """What happens, as it happens; see `AsyncRepositoryClient.watch`."""
        watch = self._client.watch(model=model, after=after, reconnect=reconnect, timeout=timeout)
        return BlockingWatch(self._run, watch)


_Stream = TypeVar("_Stream", bound="RemoteFetch | RemoteWatch")


class _Blocking(Generic[_Stream]):
    """A stream whose items are waited for in the calling thread."""

    def __init__(self, run: Callable[[Coroutine[Any, Any, Any]], Any], stream: _Stream) -> None:
        self._run = run
        self._stream = stream

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self._stream!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait for no more; a second time does nothing."""
        self._run(self._stream.aclose())

    def _next(self) -> Any:
        found = self._run(_next_or_none(self._stream))
        if found is None:
            raise StopIteration
        return found


async def _next_or_none(stream: Any) -> Any:
    # A task cannot end with StopAsyncIteration.
    return await anext(stream, None)


class BlockingFetch(_Blocking[RemoteFetch]):
    """A fetch by a service, for blocking code; made by `RepositoryClient.fetch`. An iterator, too."""

    @property
    def progress(self) -> FetchProgress | None:
        """The newest there is; None: nothing is known yet."""
        return self._stream.progress

    def __iter__(self) -> Iterator[FetchProgress]:
        return self

    def __next__(self) -> FetchProgress:
        progress: FetchProgress = self._next()
        return progress

    def result(self) -> FetchedVersion:
        """Wait until the version is on disk.

        Raises:
            RPCError: see `AsyncRepositoryClient.fetch`.
        """
        fetched: FetchedVersion = self._run(self._stream._wait())
        return fetched


class BlockingWatch(_Blocking[RemoteWatch]):
    """The events of a service, for blocking code; made by `RepositoryClient.watch`. An iterator."""

    @property
    def position(self) -> Position | None:
        """What has been seen, for another watch to go on from; None: the watch has not begun."""
        return self._stream.position

    def begin(self) -> None:
        """Return once the watch has begun; see `RemoteWatch.begin`."""
        self._run(self._stream.begin())

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        event: Event = self._next()
        return event
