"""One event loop for all the blocking clients of a process, in a thread of its own.

anyio's blocking portal starts and stops it. It is one, as several loops driving grpc.aio in one process
have been seen to wake each other up for nothing (grpc/grpc issue 25364).

A call goes to that loop with one `call_soon_threadsafe` and comes back through one lock, in place of the
portal's own way with its task group and `concurrent.futures.Future`, which takes three times as long.
What waits is interrupted by Ctrl-C, and the call is then cancelled, not left running.

What the clients call there is theirs; they derive from `OnSharedLoop`.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
import warnings
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from aioserving import errors
from aioserving.transport import check_fork, process_generation

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from types import TracebackType

    from anyio.from_thread import BlockingPortal
    from typing_extensions import Self

__all__ = ["OnSharedLoop"]

T = TypeVar("T")


class _Closable(Protocol):
    _closed: bool

    async def aclose(self) -> None:
        """End, on the loop."""

    def _abandon(self) -> None:
        """Let go of everything at once."""


C = TypeVar("C", bound=_Closable)


class _SharedLoop:
    """The event loop of all blocking clients of this process, in a thread that lives while there is one.

    anyio's `BlockingPortalProvider` counts its users too, but only lets go of the thread by waiting for
    it, which neither a finalizer nor an interpreter that is shutting down can do.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._portal: AbstractContextManager[BlockingPortal] | None = None
        self._generation = process_generation()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread = 0

    def __repr__(self) -> str:
        return f"<_SharedLoop with {self._users} users, {'running' if self.loop else 'stopped'}>"

    def acquire(self) -> tuple[asyncio.AbstractEventLoop, int]:
        """The loop and its thread's identifier; starts them for the first user."""
        from anyio.from_thread import start_blocking_portal

        with self._lock:
            if self._generation != process_generation():  # a forked child has no such thread
                self._users, self._portal, self.loop = 0, None, None
                self._generation = process_generation()
            if self.loop is None:
                context = start_blocking_portal("asyncio")
                portal = context.__enter__()
                self._portal = context
                self.loop, self.thread = portal.call(_loop_and_thread)
            self._users += 1
            return self.loop, self.thread

    def release(self) -> None:
        """One user less; the last one stops the loop and waits for its thread."""
        with self._lock:
            self._users -= 1
            if self._users <= 0:
                self._stop()

    def forget(self) -> None:
        """One user less, said by a finalizer, which can wait for nothing: the thread goes on for now."""
        self._users -= 1

    def _stop(self) -> None:
        portal, self._portal, self.loop = self._portal, None, None
        if portal is not None:
            portal.__exit__(None, None, None)

    def at_exit(self) -> None:
        """Stop while threads still run: afterwards nothing could, and the interpreter would hang."""
        if self._generation == process_generation():
            self._stop()


_shared_loop = _SharedLoop()
atexit.register(_shared_loop.at_exit)


class OnSharedLoop(Generic[C]):
    """What blocking clients have in common: how they begin and end, and how a call gets to the loop and back.

    May be used from any number of threads, and where an event loop is running already.

    Args:
        client: the client that does the work, on the loop.
    """

    def __init__(self, client: C) -> None:
        self._client = client
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._generation = -1
        self._closed = False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the calls under way and close every connection; safe to call again."""
        self._close(self._client.aclose)

    def _close(self, end: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._loop is None:
            return
        if self._generation != process_generation():
            self._client._abandon()
            return
        try:
            self._call(end())
        finally:
            _shared_loop.release()

    def __del__(self, _warn: Any = warnings.warn) -> None:
        loop = getattr(self, "_loop", None)
        if loop is None or self._closed or self._generation != process_generation():
            return
        _warn(f"unclosed {self!r}: use 'with' or close()", ResourceWarning, stacklevel=2)
        self._client._closed = True  # it would warn a second time
        _shared_loop.forget()
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            # grpc closes the sockets with the channels, which have to go on their own loop's thread.
            loop.call_soon_threadsafe(self._client._abandon)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self._client!r}>"

    def _start(self) -> None:
        with self._lock:
            if self._closed:
                raise errors.ClientClosedError("the client is closed")
            if self._loop is None:
                check_fork()
                self._loop, self._loop_thread = _shared_loop.acquire()
                self._generation = process_generation()
            elif self._generation != process_generation():
                check_fork(self._generation)

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine` on the shared loop and wait for it here."""
        if self._closed or self._loop is None or self._generation != process_generation():
            try:
                self._start()
            except BaseException:
                coroutine.close()
                raise
        return self._call(coroutine)

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        loop = self._loop
        assert loop is not None
        try:
            if threading.get_ident() == self._loop_thread:
                raise errors.EventLoopError(
                    "a blocking client was called on the thread of its own event loop, and would wait for "
                    "itself"
                )
            call = _Call(coroutine)
            loop.call_soon_threadsafe(call.start, loop)
        except BaseException:
            coroutine.close()
            raise
        # From here on the coroutine is the loop's: only its thread may touch it.
        try:
            call.done.acquire()
        except BaseException:
            # Ctrl-C, or another exception raised into this thread: nobody waits for the answer any more.
            if not loop.is_closed():
                loop.call_soon_threadsafe(call.cancel)
            raise
        result: T = call.result()
        return result


class _Call:
    """A coroutine on its way to the loop's thread and its outcome on the way back."""

    __slots__ = ("coroutine", "done", "task")

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.coroutine = coroutine
        self.done = threading.Lock()  # released by the loop's thread when the task has ended
        self.done.acquire()
        self.task: asyncio.Task[Any] | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self.task = loop.create_task(self.coroutine)
        self.task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[Any]) -> None:
        self.done.release()

    def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()

    def result(self) -> Any:
        assert self.task is not None
        try:
            return self.task.result()
        except asyncio.CancelledError:
            raise errors.ClientClosedError("the event loop of the client was stopped") from None


async def _loop_and_thread() -> tuple[asyncio.AbstractEventLoop, int]:
    return asyncio.get_running_loop(), threading.get_ident()
