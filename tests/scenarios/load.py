"""Load at a fixed rate, and servers that count what reaches them, for the scenarios.

    async with fleet(3) as servers, AsyncClient([s.target for s in servers]) as client:
        async with Load(lambda: client.predict("digits", IMAGES, timeout=5), rate=300) as load:
            await asyncio.sleep(2)
            healthy = load.mark()
            await servers[0].arestart(grace=5)
        assert load.failures == {}
        print(load.calls(0, healthy).summary(), servers[0].executed)

The load is open: calls begin when their time has come, whether or not earlier ones have ended, and a
call's latency counts from the moment it was due. So a server that stops is seen by all calls that users
would have made meanwhile, not only by those of a few patient callers.

What a server has executed stands in a file that its process maps, so it survives SIGKILL and restarts; over
the same file a test lets the models of one server fail or be slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from aioserving import RPCError, ServingError
from aioserving.attempts import Attempt
from aioserving.testing import CallableServable, ServerProcess, StatusCode
from aioserving.testing.faults import failing

__all__ = [
    "IMAGES",
    "Call",
    "Calls",
    "CountingServer",
    "Load",
    "digits",
    "fleet",
    "letters",
    "slow_digits",
    "until",
]

ROOT = Path(__file__).parents[2]

#: What the models take; a small request, of 3 KB.
IMAGES = np.ones((1, 784), np.float32)


# -- calls at a fixed rate --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a `Load`."""

    #: When it was due, in seconds since the load began.
    at: float
    #: When it was begun, which is later if this process was busy.
    begun: float
    #: Seconds from when it was due to its end.
    seconds: float
    #: ``"OK"``, the name of a gRPC status, or that of an exception without one.
    code: str
    #: What went wrong, in words; empty if nothing did.
    error: str
    #: The story, as the client tells it.
    attempts: tuple[Attempt, ...]

    @property
    def target(self) -> str:
        """Where the last attempt went; empty if nothing was sent."""
        return self.attempts[-1].target if self.attempts else ""

    @property
    def end(self) -> float:
        """When it ended, in seconds since the load began."""
        return self.at + self.seconds


class Calls:
    """Calls that have ended, in the order in which they were due."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.all = sorted(calls, key=lambda call: call.at)

    def __repr__(self) -> str:
        return f"<Calls: {self.summary()}>"

    def __len__(self) -> int:
        return len(self.all)

    def __iter__(self) -> Iterator[Call]:
        return iter(self.all)

    @property
    def failures(self) -> dict[str, int]:
        """Number of failed calls by status; empty if none failed."""
        return dict(Counter(call.code for call in self.all if call.code != "OK"))

    @property
    def errors(self) -> list[str]:
        """What failed calls said, each text once."""
        return list(dict.fromkeys(call.error for call in self.all if call.error))

    @property
    def attempts(self) -> int:
        """Attempts of all calls together."""
        return sum(len(call.attempts) for call in self.all)

    def by_target(self) -> dict[str, int]:
        """Number of calls by where they were answered, or failed at last."""
        return dict(Counter(call.target for call in self.all if call.target))

    def share(self, target: str) -> float:
        """Share of the calls, 0 to 1, that ended at `target`; 0 if there were no calls."""
        return self.by_target().get(target, 0) / len(self.all) if self.all else 0.0

    def quantile(self, share: float) -> float:
        """Seconds that this share of the calls took at most, failed ones included.

        Raises:
            ValueError: there were no calls.
        """
        if not self.all:
            raise ValueError("no calls, no latency")
        return float(np.quantile([call.seconds for call in self.all], share, method="inverted_cdf"))

    def summary(self) -> str:
        """One line: how many, how fast, what failed."""
        if not self.all:
            return "no calls"
        percentiles = ", ".join(f"p{q:g} {self.quantile(q / 100) * 1e3:.1f} ms" for q in (50, 99, 100))
        return f"{len(self)} calls, {percentiles}, failures {self.failures or 'none'}"


class _Answer(Protocol):
    @property
    def attempts(self) -> tuple[Attempt, ...]: ...


class Load:
    """Calls that begin at a fixed rate, as long as the ``async with`` block lasts.

    Leaving the block ends the load and waits for the calls that are under way, each of which should have a
    deadline.

    Args:
        call: makes one call; what it gives has `attempts`, as results have.
        rate: calls a second.
    """

    def __init__(self, call: Callable[[], Awaitable[_Answer]], *, rate: float) -> None:
        self._call = call
        self.rate = rate
        self._begun = 0.0
        self._started = 0
        self._ended: list[Call] = []
        self._tasks: dict[asyncio.Task[None], float] = {}  # and when they were due
        self._generator: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Load of {self.rate:g}/s, {len(self._tasks)} under way, {self.calls().summary()}>"

    @property
    def started(self) -> int:
        """Calls begun so far."""
        return self._started

    @property
    def under_way(self) -> int:
        """Calls that have begun and not ended."""
        return len(self._tasks)

    @property
    def failures(self) -> dict[str, int]:
        """Number of calls by status, of those that failed so far."""
        return self.calls().failures

    def mark(self) -> float:
        """Now, in seconds since the load began; for `calls`."""
        return time.monotonic() - self._begun

    def settled(self, mark: float) -> bool:
        """Whether all calls that were due before a mark have ended."""
        return self._started >= mark * self.rate and all(at >= mark for at in self._tasks.values())

    def calls(self, begin: float = 0.0, end: float = float("inf")) -> Calls:
        """The calls that were due between two marks, as far as they have ended."""
        return Calls([call for call in self._ended if begin <= call.at < end])

    async def __aenter__(self) -> Load:  # noqa: PYI034 - typing.Self needs Python 3.11
        self._begun = time.monotonic()
        self._generator = asyncio.create_task(self._generate())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._generator is not None
        self._generator.cancel()
        await asyncio.wait((self._generator,))
        if error is not None:
            for task in self._tasks:
                task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)
        if not self._generator.cancelled():
            self._generator.result()

    async def _generate(self) -> None:
        while True:
            due = int(self.mark() * self.rate) + 1
            while self._started < due:
                at = self._started / self.rate
                task = asyncio.create_task(self._one(at))
                self._started += 1
                self._tasks[task] = at
                task.add_done_callback(self._tasks.pop)
            await asyncio.sleep(max(0.0, self._started / self.rate - self.mark()))

    async def _one(self, at: float) -> None:
        code, text, begun = "OK", "", self.mark()
        attempts: tuple[Attempt, ...] = ()
        try:
            attempts = (await self._call()).attempts
        except RPCError as error:
            code, text, attempts = error.code, str(error), tuple(error.attempts)
        except (ServingError, ValueError, OSError) as error:
            code, text = type(error).__name__, str(error)
        self._ended.append(Call(at, begun, self.mark() - at, code, text, attempts))


async def until(condition: Callable[[], object], *, within: float) -> float:
    """Ask every 5 ms until `condition` holds; gives the seconds that it took.

    Raises:
        AssertionError: it does not hold within so many seconds.
    """
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < within, f"not within {within} s"
        await asyncio.sleep(0.005)
    return time.monotonic() - begun


# -- servers that count -----------------------------------------------------------------------------------

_BOARD = "AIOSERVING_SCENARIO_BOARD"
#: Places on a server's board.
_DIGITS, _LETTERS, _SLOW, _RUNNING, _PEAK, _FAIL, _DELAY, _DELAYED = range(8)


def _board(path: str) -> np.memmap[Any, np.dtype[np.float64]]:
    return np.memmap(path, np.float64, "r+", shape=(8,))


def _sums(images: Any) -> dict[str, Any]:
    return {"scores": images.sum(axis=-1, dtype=np.float32)}


def _servable(run: Callable[..., Any], *, inline: bool) -> CallableServable:
    return CallableServable(
        run,
        inputs={"images": ("float32", (None, 784))},
        outputs={"scores": ("float32", (None,))},
        inline=inline,
    )


def _quick(place: int) -> CallableServable:
    board = _board(os.environ[_BOARD])
    fail = failing(_sums, StatusCode.UNAVAILABLE)

    def run(images: Any) -> Any:
        board[place] += 1
        return fail(images) if board[_FAIL] else _sums(images)

    return _servable(run, inline=True)


def digits() -> CallableServable:
    """The row sums of ``images``, counted as ``"digits"``."""
    return _quick(_DIGITS)


def letters() -> CallableServable:
    """The same, counted as ``"letters"``."""
    return _quick(_LETTERS)


def slow_digits() -> CallableServable:
    """The same, counted as ``"slow_digits"``, after sleeping as `CountingServer.slow_down` says.

    Calls run on the server's 8 or more threads (four per CPU), so a server with a delay of 0.1 s has a
    capacity, and what is beyond it waits there.
    """
    import random
    import threading

    board = _board(os.environ[_BOARD])
    fail = failing(_sums, StatusCode.UNAVAILABLE)
    lock = threading.Lock()
    chance = random.Random(os.getpid())

    def run(images: Any) -> Any:
        with lock:
            board[_SLOW] += 1
            board[_RUNNING] += 1
            board[_PEAK] = max(board[_PEAK], board[_RUNNING])
            delay = float(board[_DELAY]) if chance.random() < board[_DELAYED] else 0.0
        try:
            if delay:
                time.sleep(delay)
            return fail(images) if board[_FAIL] else _sums(images)
        finally:
            with lock:
                board[_RUNNING] -= 1

    return _servable(run, inline=False)


class CountingServer(ServerProcess):
    """A server process whose models, ``digits``, ``letters`` and ``slow_digits``, count their calls.

    Args:
        board: path of the file with the counts; made if it is not there.
        **options: as for `ServerProcess`.
    """

    def __init__(self, board: str, **options: Any) -> None:
        if not os.path.exists(board):
            np.zeros(8).tofile(board)
        self._board = _board(board)
        super().__init__(
            callables={
                "digits": f"{__name__}:digits",
                "letters": f"{__name__}:letters",
                "slow_digits": f"{__name__}:slow_digits",
            },
            env={"PYTHONPATH": str(ROOT), _BOARD: board},
            **options,
        )

    @property
    def executed(self) -> int:
        """Calls of all models that reached them, failed ones included, over all restarts."""
        return sum(self.executed_by_model.values())

    @property
    def executed_by_model(self) -> Mapping[str, int]:
        """The same for each model."""
        board = self._board
        return {
            "digits": int(board[_DIGITS]),
            "letters": int(board[_LETTERS]),
            "slow_digits": int(board[_SLOW]),
        }

    @property
    def most_at_once(self) -> int:
        """The largest number of calls of ``slow_digits`` that ran at the same time."""
        return int(self._board[_PEAK])

    def fail(self, fails: bool = True) -> None:
        """From now on every model answers UNAVAILABLE, or works again."""
        self._board[_FAIL] = float(fails)

    def slow_down(self, delay: float, *, share: float = 1.0) -> None:
        """From now on a random `share` of the calls of ``slow_digits`` take `delay` seconds more."""
        self._board[_DELAY] = delay
        self._board[_DELAYED] = share


@contextlib.asynccontextmanager
async def fleet(number: int, **options: Any) -> AsyncIterator[list[CountingServer]]:
    """`number` counting servers, started together and ended at the end.

    Args:
        number: how many.
        **options: as for `ServerProcess`, for all of them.
    """
    with tempfile.TemporaryDirectory(prefix="aioserving-") as folder:
        servers = [CountingServer(os.path.join(folder, f"board-{n}"), **options) for n in range(number)]
        try:
            await asyncio.gather(*(server.astart() for server in servers))
            yield servers
        finally:
            for server in servers:
                server.close()
