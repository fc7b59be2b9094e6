"""The loop that blocking clients share: who starts and stops it, and how calls get there and back."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import threading
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from aioserving import ClientClosedError, EventLoopError, shared_loop
from aioserving.shared_loop import OnSharedLoop, _shared_loop


class Worker:
    """What does the work on the loop."""

    def __init__(self) -> None:
        self._closed = False
        self.abandoned = threading.Event()

    def __repr__(self) -> str:
        return "<Worker>"

    def _abandon(self) -> None:
        self.abandoned.set()

    async def aclose(self) -> None:
        self._closed = True

    async def where(self) -> tuple[asyncio.AbstractEventLoop, int]:
        return asyncio.get_running_loop(), threading.get_ident()


class Blocking(OnSharedLoop[Worker]):
    """The least that a blocking client is."""

    def where(self) -> tuple[asyncio.AbstractEventLoop, int]:
        return self._run(self._client.where())


@pytest.fixture
def blocking() -> Iterator[Blocking]:
    with Blocking(Worker()) as client:
        yield client


def test_all_share_one_loop_that_ends_with_the_last(blocking: Blocking) -> None:
    """It runs in a thread of its own, for as long as there is a client that was used."""
    with Blocking(Worker()) as other:
        assert other.where() == blocking.where()
        assert other.where()[1] != threading.get_ident()
        assert repr(_shared_loop) == "<_SharedLoop with 2 users, running>"
    assert other._client._closed
    blocking.close()
    blocking.close()  # nothing more to end
    assert repr(_shared_loop) == "<_SharedLoop with 0 users, stopped>"
    assert repr(blocking) == "<Blocking over <Worker>>"
    work = blocking._client.where()
    with pytest.raises(ClientClosedError):
        blocking._run(work)
    assert inspect.getcoroutinestate(work) == inspect.CORO_CLOSED, "it is not left for a warning"


def test_a_client_that_was_never_used_starts_no_thread() -> None:
    """Making one, and closing it, is for nothing."""
    Blocking(Worker()).close()
    assert _shared_loop.loop is None


def test_context_variables_reach_the_call(blocking: Blocking) -> None:
    """What is set in the calling thread is seen by the coroutine, so traces cross."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    variable.set("caller")

    async def read() -> str:
        return variable.get()

    assert blocking._run(read()) == "caller"


def test_a_call_on_the_loops_own_thread_is_refused(blocking: Blocking) -> None:
    """It would wait for itself for ever."""

    async def from_inside() -> None:
        blocking.where()

    with pytest.raises(EventLoopError, match="own event loop"):
        blocking._run(from_inside())
    assert blocking.where()


def test_an_exception_in_the_waiting_thread_cancels_the_call(
    blocking: Blocking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for its answer any more; the client goes on."""
    begun, cancelled = threading.Event(), threading.Event()

    async def hang() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    class Interrupted:
        """A lock whose wait is interrupted."""

        def acquire(self) -> None:
            assert begun.wait(10)
            raise KeyboardInterrupt

        def release(self) -> None:
            """Nobody waits."""

    def interrupted(work: Coroutine[Any, Any, Any]) -> shared_loop._Call:
        call = original(work)
        call.done = Interrupted()  # type: ignore[assignment]
        return call

    original = shared_loop._Call
    with monkeypatch.context() as patched:
        patched.setattr(shared_loop, "_Call", interrupted)
        with pytest.raises(KeyboardInterrupt):
            blocking._run(hang())
    assert cancelled.wait(10)
    assert blocking.where()


def test_one_that_nobody_closed_warns_and_lets_go() -> None:
    """What it holds is given up on the loop's thread, as its sockets have to be."""
    worker = Worker()
    client = Blocking(worker)
    client.where()
    with pytest.warns(ResourceWarning, match="unclosed <Blocking over <Worker>>: use 'with' or close()"):
        del client
        gc.collect()
    assert worker.abandoned.wait(10)
    with Blocking(Worker()):
        pass
    assert _shared_loop.loop is None
