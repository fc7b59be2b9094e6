"""One gRPC channel: serialized request in, serialized response out, errors translated.

The only module that speaks grpc. A `Transport` is one HTTP/2 connection to one target; it knows no
models and no tensors, keeps no count of calls (the pool does) and never retries.

Two ways of making a call
    The public way, a grpc.aio multicallable, makes a task, a call object and three closures per call:
    about a fifth of the client's CPU time for a small one. The lean way awaits the call object of
    grpc's Cython core in the caller's own task, as `UnaryUnaryCall._invoke` does in its own. That
    core is not a public interface, so it is looked for when a channel is opened and the public way is
    taken where it is not as expected; both pass the same tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import os
import re
import time
import types
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import grpc
from grpc import aio

from aioserving import errors

if TYPE_CHECKING:
    from grpc import ChannelCredentials as ChannelCredentials  # noqa: PLC0414 - re-exported

    from aioserving._types import Metadata
    from aioserving.errors import RPCError

__all__ = [
    "ChannelOptions",
    "Compression",
    "Slot",
    "Transport",
    "check_fork",
    "compressed",
    "error_from_status",
    "process_generation",
]

ChannelOptions = Sequence[tuple[str, Any]]

#: How a request is compressed.
Compression: TypeAlias = "Literal['gzip', 'deflate']"

Call: TypeAlias = "Callable[..., Awaitable[bytes]]"

#: Defaults of every channel. Why each is there is said beside it; `options=` overrides any of them.
_OPTIONS: Final[dict[str, Any]] = {
    # gRPC shares one connection among channels with equal arguments; a pool wants separate ones.
    "grpc.use_local_subchannel_pool": 1,
    # The real server takes 2 GiB and sends without a limit; grpcio's own receive limit is 4 MiB.
    "grpc.max_send_message_length": -1,
    "grpc.max_receive_message_length": -1,
    # Servers that set nothing allow one ping in five minutes and drop the connection after two strikes.
    "grpc.keepalive_time_ms": 310_000,
    "grpc.keepalive_timeout_ms": 20_000,
    "grpc.keepalive_permit_without_calls": 0,
    # gRPC waits 1 s after the first refused connection and up to 120 s later on: far longer than a
    # server takes to restart.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1_000,
    # Larger writes to the socket: a tenth less CPU time for a message of 19 MB, no difference at 3 KB.
    "grpc.http2.write_buffer_size": 1024 * 1024,
    # No TXT look-ups for service configs: one DNS round trip less.
    "grpc.service_config_disable_resolution": 1,
    "grpc.primary_user_agent": "aioserving",
}

#: Seconds that calls which were cancelled may take to end.
_PATIENCE: Final = 5.0

#: Seconds beyond which a timeout is none: gRPC's own arithmetic overflows into a deadline in the past.
_ENDLESS: Final = 1e8

# gRPC does not survive a fork with live channels: a child that uses it hangs or crashes, and so may one
# that merely deallocates what it inherited; hence the list that keeps all of it until the child ends.
_live: weakref.WeakSet[Transport] = weakref.WeakSet()
_generation = 0
_inherited: list[object] = []


_LARGE: Final = 128 * 1024  # bytes from which glibc's malloc maps memory instead of keeping it
_blocks_are_kept = False


def _keep_large_blocks() -> None:
    """Have malloc reuse the memory of large messages instead of giving it back after every call.

    A large block is fresh memory from the kernel, and touching it faults in page by page: for a message
    of 19 MB, held once as Python bytes and once by gRPC, 9,400 faults and 17 ms of CPU time a call, more
    than twice what sending it takes. glibc raises its limits to what it has seen freed (mallopt(3),
    "dynamic mmap threshold"), up to 32 MiB; so one such block, never touched and freed at once, makes it
    keep up to 64 MiB. Harmless where malloc works otherwise.
    """
    global _blocks_are_kept
    _blocks_are_kept = True
    bytes(32 * 1024 * 1024 - 64 * 1024)


def _after_fork_in_child() -> None:
    global _generation
    _generation += 1
    for transport in _live:
        _inherited.append((transport._channel, transport._core, transport._callables))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def process_generation() -> int:
    """A number that is another one in a forked child; cheaper to compare than a process id."""
    return _generation


def check_fork(generation: int | None = None) -> None:
    """Refuse to go on in a forked process in which gRPC would hang or crash.

    Args:
        generation: the `process_generation()` in which the caller made its channels; None if it has none.

    Raises:
        ForkError: `generation` is another process's, or a channel was open when this process was forked.
    """
    if _inherited or (generation is not None and generation != _generation):
        raise errors.ForkError(
            "this process was forked while a gRPC channel was open, and gRPC cannot be used in it "
            "(calls would hang or crash). Close every client before forking, create clients in the "
            "child only (gunicorn: in post_fork or the application's lifespan, without preloading a "
            "connected client), or start processes with multiprocessing's 'spawn' or 'forkserver' method"
        )


def compressed(metadata: Metadata, compression: Compression) -> Metadata:
    """`metadata` that has gRPC compress a request; the server need not be told otherwise.

    It pays on slow networks and for data that repeats itself: one-hot rows shrink to nothing, for six times
    the client's CPU time. Random floats shrink by 7 %, for 45 times the CPU time, pixels to two fifths, for
    200 times (`bench/bench_compression.py`). So nothing is compressed unless it is asked for.

    Raises:
        ValueError: gRPC knows no such compression.
    """
    if compression not in ("gzip", "deflate"):
        raise ValueError(f"compression must be 'gzip', 'deflate' or None, got {compression!r}")
    return (*metadata, ("grpc-internal-encoding-request", compression))


class Slot:
    """A call under way that somebody else than its caller can end."""

    __slots__ = ("_call", "superseded")

    def __init__(self) -> None:
        self._call: Any = None
        #: Whether it was ended because another attempt had answered.
        self.superseded = False

    def __repr__(self) -> str:
        return f"<Slot: {'superseded' if self.superseded else 'no call' if self._call is None else 'a call'}>"

    def supersede(self) -> None:
        """End the call with `errors.CancelledError`, at once, or as soon as it begins."""
        self.superseded = True
        if self._call is not None:
            _end(self._call)


class Transport:
    """One HTTP/2 connection to `target`, opened lazily by gRPC at the first call.

    Must be made on a running event loop, and used and closed on that same loop.

    Args:
        target: gRPC target: ``"host:port"``, ``"dns:///name:port"``, ``"unix:/path"``.
        credentials: TLS credentials (`grpc.ssl_channel_credentials(...)`), or None for plaintext.
        options: gRPC channel arguments; they override this library's defaults.
        lean: take the shorter way into gRPC's core where this grpcio has it.
    """

    def __init__(
        self,
        target: str,
        *,
        credentials: ChannelCredentials | None = None,
        options: ChannelOptions = (),
        lean: bool = True,
    ) -> None:
        check_fork()
        self.target = target
        merged = {**_OPTIONS, **dict(options)}
        if target.startswith("dns:"):
            # Plain gRPC sends everything to the first address of a name.
            merged.setdefault("grpc.service_config", '{"loadBalancingConfig":[{"round_robin":{}}]}')
        arguments = list(merged.items())
        if credentials is None:
            self._channel = aio.insecure_channel(target, options=arguments)
        else:
            self._channel = aio.secure_channel(target, credentials, options=arguments)
        self._closed = False
        self._given_up = ""  # why, if it was
        self._active: set[Any] = set()  # calls under way
        self._drained: asyncio.Event | None = None  # made by `close`, set when `_active` is empty
        self._callables: dict[str, Callable[..., Any]] = {}
        self._handles: dict[str, tuple[bytes, int]] = {}
        self._core = _lean_core(self._channel) if lean else None
        #: ``call(method, request, timeout, metadata, slot)`` gives the serialized response.
        #: `timeout` is in seconds, or None; it travels to the server as the gRPC deadline.
        self.call: Call = self._call_public if self._core is None else self._call_lean
        _live.add(self)

    def __repr__(self) -> str:
        return f"<Transport to {self.target}, {self.state}>"

    @property
    def state(self) -> str:
        """Connectivity as gRPC names it, in lower case (``"ready"``, ``"idle"``, …), or ``"closed"``."""
        if self._closed:
            return "closed"
        return str(self._channel.get_state().name).lower()

    async def _call_lean(
        self,
        method: str,
        request: bytes,
        timeout: float | None,
        metadata: Metadata,
        slot: Slot | None = None,
    ) -> bytes:
        if not _blocks_are_kept and len(request) >= _LARGE:
            _keep_large_blocks()
        if self._closed or self._given_up:
            raise self._cut_off(method)
        handle = self._handles.get(method)
        try:
            if handle is None:
                name = method.encode()
                handle = self._handles[method] = (name, self._core.get_registered_call_handle(name))  # type: ignore[union-attr]
            call = self._core.call(  # type: ignore[union-attr]
                handle[0],
                None if timeout is None or timeout > _ENDLESS else time.time() + timeout,
                None,
                None,
                handle[1],
            )
        except cygrpc.UsageError as error:
            raise errors.ClientClosedError("the connection was closed") from error
        except (TypeError, AttributeError):  # another grpcio's core: nothing was sent yet
            self.call = self._call_public
            return await self._call_public(method, request, timeout, metadata, slot)
        active = self._active
        active.add(call)
        if slot is not None:
            slot._call = call
        try:
            response = await _to_the_end(call.unary_unary(request, tuple(metadata) if metadata else ()))
        except asyncio.CancelledError:
            if not call.done():
                call.cancel("cancelled by the caller")
            raise
        finally:
            active.discard(call)
            if self._drained is not None and not active:
                self._drained.set()
        if call.is_ok():
            if not _blocks_are_kept and len(response) >= _LARGE:
                _keep_large_blocks()
            return response
        if call.is_locally_cancelled():
            raise self._cut_off(method, slot)
        status = await call.status()
        failure = error_from_status(
            _CODE_NAMES.get(status.code(), "UNKNOWN"),
            status.details() or "",
            endpoint=self.target,
            method=method,
            debug=status.debug_error_string() or "",
        )
        failure.pushback = _pushback(status.trailing_metadata())
        raise failure

    async def _call_public(
        self,
        method: str,
        request: bytes,
        timeout: float | None,
        metadata: Metadata,
        slot: Slot | None = None,
    ) -> bytes:
        if not _blocks_are_kept and len(request) >= _LARGE:
            _keep_large_blocks()
        if self._closed or self._given_up:
            raise self._cut_off(method)
        function = self._callables.get(method)
        if function is None:
            function = self._callables[method] = self._unary_unary(method)
        if timeout is not None and timeout > _ENDLESS:
            timeout = None
        try:
            call = function(request, timeout=timeout, metadata=tuple(metadata) if metadata else None)
        except cygrpc.UsageError as error:
            raise errors.ClientClosedError("the connection was closed") from error
        active = self._active
        active.add(call)
        if slot is not None:
            slot._call = call
        # Awaited directly, the call would answer a cancellation of this task with a CancelledError of its
        # own, without the message by which anyio's cancel scopes know theirs on Python 3.10.
        waiting = asyncio.ensure_future(call)
        try:
            await asyncio.wait((waiting,))
        except asyncio.CancelledError:
            call.cancel()
            raise
        finally:
            active.discard(call)
            if self._drained is not None and not active:
                self._drained.set()
        try:
            response: bytes = waiting.result()
        except asyncio.CancelledError:
            raise self._cut_off(method, slot) from None
        except aio.AioRpcError as error:
            translated = error_from_status(
                error.code().name,
                error.details() or "",
                endpoint=self.target,
                method=method,
                debug=error.debug_error_string() or "",
            )
            translated.pushback = _pushback(error.trailing_metadata())
            raise translated from error
        if not _blocks_are_kept and len(response) >= _LARGE:
            _keep_large_blocks()
        return response

    def _cut_off(self, method: str, slot: Slot | None = None) -> errors.ServingError:
        """Why a call ended, or could not begin, on this side."""
        if slot is not None and slot.superseded:
            return errors.CancelledError("another attempt had answered", endpoint=self.target)
        if self._given_up:
            short = method.rpartition("/")[2]
            withdrawn = errors.UnavailableError(self._given_up, endpoint=self.target, method=short)
            withdrawn.withdrawn = True
            return withdrawn
        return errors.ClientClosedError("the client was closed while the call was under way")

    def _unary_unary(self, method: str) -> Callable[..., Any]:
        return self._channel.unary_unary(method)  # bytes in, bytes out: no (de)serializers

    async def wait_ready(self) -> None:
        """Connect, and return once the connection is ready; runs until then, so bound it with a timeout."""
        await self._channel.channel_ready()

    async def close(self) -> None:
        """Cancel the calls under way and close the connection; safe to call again."""
        if self._closed:
            return
        self._closed = True
        try:
            for call in tuple(self._active):
                _end(call)
            if self._active:  # their cancellations complete in the callers' tasks
                self._drained = asyncio.Event()
                # A KeyboardInterrupt that strikes inside gRPC can lose the end of a call.
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._drained.wait(), _PATIENCE)
        finally:
            await self._channel.close()
            self._let_go()

    def give_up(self, reason: str) -> int:
        """End the calls under way with `UnavailableError`, and take no more; gives how many there were."""
        self._given_up = reason
        calls = tuple(self._active)
        for call in calls:
            _end(call)
        return len(calls)

    def abandon(self) -> None:
        """Let go of the connection without a loop (it was closed, or nobody closed the client)."""
        if not self._closed:
            self._closed = True
            self._let_go()

    def _let_go(self) -> None:
        # Only when the last channel *object* of the process is gone does grpc.aio end its poller thread,
        # and only then is the process safe to fork. Deallocating one closes its sockets, too.
        self._callables = {}
        del self._channel, self._core
        _live.discard(self)


try:
    from grpc._cython import cygrpc  # type: ignore[attr-defined]
except ImportError:  # pragma: no cover - every known grpcio has it
    cygrpc = Any


def _end(call: Any) -> None:
    """Cancel a call of either kind."""
    if isinstance(call, aio.Call):
        call.cancel()
    else:
        call.cancel("ended on this side")


class _Shield:
    """A future as a task sees it, whose cancellation reaches the task but not the future.

    Unlike `asyncio.shield` it costs no further turn of the event loop where nothing is cancelled.
    """

    __slots__ = ("_asyncio_future_blocking", "_callback", "_context", "_future")

    def __init__(self, future: asyncio.Future[None]) -> None:
        self._asyncio_future_blocking = True  # by which a task knows a future that is awaited
        self._future = future

    def __repr__(self) -> str:
        return f"<_Shield of {self._future!r}>"

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._future.get_loop()

    def add_done_callback(
        self, callback: Callable[[asyncio.Future[None]], object], *, context: contextvars.Context
    ) -> None:
        self._callback = callback
        self._context = context
        self._future.add_done_callback(callback, context=context)

    def cancel(self, msg: Any = None) -> bool:
        future = self._future
        if not future.remove_done_callback(self._callback):
            return False
        loop = future.get_loop()
        cancelled: asyncio.Future[None] = loop.create_future()
        cancelled.cancel(msg)
        loop.call_soon(self._callback, cancelled, context=self._context)
        return True


@types.coroutine
def _to_the_end(work: Coroutine[Any, None, bytes]) -> Generator[Any, None, bytes]:
    """Await a coroutine of gRPC's core that goes on when its caller is cancelled.

    One that is cut off while it waits for its operations never gets to free them: gRPC loses a kilobyte
    with every call that is cancelled, also with its public interface.
    """
    try:
        future = work.send(None)
        while True:
            try:
                yield _Shield(future)
            except asyncio.CancelledError:
                future.add_done_callback(functools.partial(_go_on, work))
                raise
            future = work.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def _go_on(work: Coroutine[Any, None, bytes], _: asyncio.Future[None]) -> None:
    """The next step of a call that nobody waits for any more."""
    with contextlib.suppress(StopIteration, asyncio.CancelledError, Exception):
        work.send(None).add_done_callback(functools.partial(_go_on, work))


def _lean_core(channel: aio.Channel) -> Any | None:
    """The Cython channel beneath `channel` if it is as the lean way expects it, else None."""
    core = getattr(channel, "_channel", None)
    if not callable(getattr(core, "call", None)) or not hasattr(channel, "_get_registered_call_handle"):
        return None
    needed = ("unary_unary", "is_ok", "is_locally_cancelled", "status", "cancel", "done")
    call_type = getattr(cygrpc, "_AioCall", None)
    return core if call_type is not None and all(hasattr(call_type, name) for name in needed) else None


_CODE_NAMES: Final[dict[int, str]] = {code.value[0]: code.name for code in grpc.StatusCode}

_ERRORS: Final[dict[str, type[RPCError]]] = {
    kind.default_code: kind
    for kind in (
        errors.CancelledError,
        errors.UnknownError,
        errors.InvalidArgumentError,
        errors.DeadlineExceededError,
        errors.NotFoundError,
        errors.AlreadyExistsError,
        errors.PermissionDeniedError,
        errors.UnauthenticatedError,
        errors.ResourceExhaustedError,
        errors.FailedPreconditionError,
        errors.AbortedError,
        errors.OutOfRangeError,
        errors.UnimplementedError,
        errors.InternalError,
        errors.UnavailableError,
        errors.DataLossError,
    )
}

# The server's texts are the only thing that tells its errors apart (serving-behaviour, 1.1 and 1.2).
_TEXTS: Final[tuple[tuple[str, re.Pattern[str], type[RPCError]], ...]] = tuple(
    (code, re.compile(pattern), kind)
    for code, pattern, kind in (
        ("NOT_FOUND", r"Servable not found for request: Specific\(", errors.VersionNotFoundError),
        ("NOT_FOUND", r"Could not find version ", errors.VersionNotFoundError),
        ("NOT_FOUND", r"Servable not found for request: Latest\(", errors.ModelNotFoundError),
        ("NOT_FOUND", r"Could not find any versions of model ", errors.ModelNotFoundError),
        ("INVALID_ARGUMENT", r"Unrecognized servable version label: ", errors.VersionLabelNotFoundError),
        ("FAILED_PRECONDITION", r'Serving signature key ".*" not found', errors.SignatureNotFoundError),
        (
            "INVALID_ARGUMENT",
            r"input size does not match signature|Signature input alias: |Inputs contains invalid name|"
            r"tensor parsing error: |Expects arg\[|output tensor alias not found|duplicate output tensor",
            errors.InvalidInputError,
        ),
        ("RESOURCE_EXHAUSTED", r"(?i)message larger than max|message size", errors.MessageTooLargeError),
    )
)

# What gRPC says when there was no connection to send anything on.
_NEVER_SENT = re.compile(r"failed to connect to|[Cc]onnection refused|resolution failed|empty address list")

_MISSING_HTTP2 = re.compile(
    r"(?i)trying to connect an http1|first 16 bytes|settings frame|missing http/2|http2 header with status|"
    r"received http2? ?:|text/html|bad (http2 )?preface|failed parsing http/2"
)


def _pushback(metadata: Any) -> float | None:
    """Seconds after which the server asks to try again, negative for never; None if it says nothing.

    From ``grpc-retry-pushback-ms`` (gRPC proposal A6), in which what is no number also means never.
    """
    for key, value in metadata or ():
        if key == "grpc-retry-pushback-ms":
            try:
                return int(value) / 1e3
            except ValueError:
                return -1.0
    return None


def error_from_status(
    code: str,
    details: str,
    *,
    endpoint: str | None = None,
    method: str | None = None,
    model: str | None = None,
    debug: str = "",
) -> RPCError:
    """The exception for a gRPC status.

    Args:
        code: the status code's name (``"NOT_FOUND"``); one that gRPC does not define gives `UnknownError`.
        details: the status message.
        endpoint: the address that was called.
        method: full or short name of the RPC.
        model: name of the model called.
        debug: gRPC's debug string; read for the cause of a failed connection.
    """
    if code == "UNKNOWN" and details.startswith("Stream removed"):
        code = "UNAVAILABLE"  # gRPC's word for a connection that broke, as when TLS found data corrupted
    kind = _ERRORS.get(code, errors.UnknownError)
    for text_code, pattern, text_kind in _TEXTS:
        if code == text_code and pattern.search(details):
            kind = text_kind
            break
    if kind is errors.MessageTooLargeError:
        details = f"{details}; raise the client's max_message_size to take it"
    elif code in ("UNAVAILABLE", "INTERNAL", "UNKNOWN") and _MISSING_HTTP2.search(f"{details} {debug}"):
        details = (
            f"{details}; the port does not speak gRPC. TensorFlow Serving's REST port is usually 8501, "
            "its gRPC port 8500"
        )
    error = kind(
        details,
        code=code,
        endpoint=endpoint,
        method=None if method is None else method.rpartition("/")[2],
        model=model,
    )
    error.withdrawn = code == "UNAVAILABLE" and _NEVER_SENT.search(details) is not None
    return error
