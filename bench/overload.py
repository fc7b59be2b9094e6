"""One overloaded server and its client on a virtual clock: what limits and the waiting queue make of it.

Nothing is measured here, all is computed: arrivals and service times come from a seeded generator, time is a
heap of events, and the decisions are those of the real `aioserving.limits` and `aioserving.queueing`. The
same seed gives the same figures on every machine.

The model
    A server has a number of workers and an endless queue before them, in order of arrival; it works on a
    call even if nobody waits for the answer any more. Service times are log-normal (sigma 0.5). Calls
    arrive at random times (Poisson), each with the same deadline. The client sends while its limit
    allows, lets the others wait in its queue or refuses them, and gives up at the deadline. Goodput is
    answers within the deadline per second, as a share of what the server could give if it did
    nothing else.

`python overload.py` prints goodput for 0.5 to 5 times the capacity, for every limit and order of the queue.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from aioserving.limits import AdaptiveLimit, FixedLimit, Limit, make_limit
from aioserving.queueing import CallTime, Waiter, WaitingQueue

#: Spread of service times.
SIGMA = 0.5
#: Seconds that a refusal by the server takes.
REFUSAL = 0.001
LOADS = (0.5, 0.9, 1.0, 1.5, 2.0, 3.0, 5.0)


@dataclass
class Server:
    """Workers and a queue before them; both may be changed while it runs."""

    workers: int
    service: float
    #: Calls in the queue at most; what is beyond is refused at once.
    room: float = math.inf
    busy: int = 0
    queue: deque[Call] = field(default_factory=deque)

    @property
    def capacity(self) -> float:
        """Calls per second at most."""
        return self.workers / self.service


@dataclass(eq=False)
class Call:
    deadline: float
    sent: float = 0.0
    #: The client has had its answer, or has given up.
    over: bool = False
    waiter: Waiter[bool] | None = None


@dataclass
class Outcome:
    """What became of the calls that arrived in the measured time."""

    goodput: float = 0.0
    arrived: int = 0
    good: int = 0
    missed: int = 0
    refused: int = 0
    #: Time-weighted mean of the limit.
    limit: float = 0.0
    longest_queue: int = 0
    #: Of the calls that were answered in time, from arrival.
    latencies: list[float] = field(default_factory=list)


class Simulation:
    """A client, its limit and queue, and a server.

    Args:
        limit: the client's.
        queue: the client's; None makes one.
        seen: whether the queue is told of deadlines; otherwise callers cancel their calls unannounced.
        deadline: seconds each call is given.
    """

    def __init__(
        self,
        server: Server,
        limit: Limit,
        *,
        deadline: float = 1.0,
        queue: WaitingQueue[bool] | None = None,
        seen: bool = True,
        seed: int = 1,
    ) -> None:
        self.server = server
        self.limit = limit
        self.deadline = deadline
        self.queue: WaitingQueue[bool] = WaitingQueue() if queue is None else queue
        self.seen = seen
        self.random = Random(seed)
        self.now = 0.0
        self.in_flight = 0
        self.time = CallTime()
        self.outcome = Outcome()
        self._calls: dict[Waiter[bool], Call] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._rate = 0.0
        self._loop = asyncio.new_event_loop()

    def at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), event))

    def run(self, seconds: float, load: float) -> Outcome:
        """Let calls arrive at `load` times the server's present capacity; outcome of these seconds."""
        until = self.now + seconds
        outcome = self.outcome = Outcome()
        idle = not self._rate
        self._rate = load * self.server.capacity
        if idle:
            self.at(self.now, self._arrive)
        area = 0.0
        while self._events[0][0] < until:
            time, _, event = heapq.heappop(self._events)
            area += self.limit.limit * (time - self.now)
            self.now = time
            event()
        self.now = until
        outcome.limit = area / seconds
        outcome.goodput = outcome.good / seconds / self.server.capacity
        return outcome

    def close(self) -> None:
        for waiter in self._calls:
            self.queue.withdraw(waiter, self.now)
        self._loop.close()

    def _arrive(self) -> None:
        now = self.now
        self.at(now + self.random.expovariate(self._rate), self._arrive)
        self.outcome.arrived += 1
        call = Call(now + self.deadline)
        told = call.deadline if self.seen else None
        if self.in_flight < self.limit.limit and not self.queue:
            self._send(call)
        elif self.queue.refuse("m", told, now, needs=self.time.seconds) is not None:
            self.outcome.refused += 1
            return
        else:
            future: asyncio.Future[bool] = self._loop.create_future()
            call.waiter = self.queue.push(future, "m", now, told, needs=self.time.seconds)
            self._calls[call.waiter] = call
            self.outcome.longest_queue = max(self.outcome.longest_queue, len(self.queue))
        self.at(call.deadline, lambda: self._give_up(call))

    def _send(self, call: Call) -> None:
        call.sent = self.now
        self.in_flight += 1
        server = self.server
        if server.busy < server.workers:
            self._work(call)
        elif len(server.queue) < server.room:
            server.queue.append(call)
        else:
            self.outcome.missed += 1
            # At once, but not within the call of whoever sent it.
            self.at(self.now + REFUSAL, lambda: self._end(call, dropped=True))

    def _work(self, call: Call) -> None:
        self.server.busy += 1
        mean_one = self.random.lognormvariate(-SIGMA * SIGMA / 2, SIGMA)
        self.at(self.now + self.server.service * mean_one, lambda: self._answer(call))

    def _answer(self, call: Call) -> None:
        server = self.server
        server.busy -= 1
        while server.queue and server.busy < server.workers:
            self._work(server.queue.popleft())
        if not call.over:
            self.outcome.good += 1
            self.outcome.latencies.append(self.now - call.deadline + self.deadline)
            self.time.record(self.now - call.sent)
            self._end(call, dropped=False)

    def _give_up(self, call: Call) -> None:
        if call.over:
            return
        if call.sent:
            self.outcome.missed += 1
            self.time.record(self.now - call.sent, missed=True)
            waited = call.sent - call.deadline + self.deadline
            self._end(call, dropped=True if self.now - call.sent >= waited else None)
        elif call.waiter is not None:
            call.over = True
            self.outcome.refused += 1
            del self._calls[call.waiter]
            self.queue.withdraw(call.waiter, self.now)

    def _end(self, call: Call, *, dropped: bool | None) -> None:
        call.over = True
        # A deadline missed by a call that waited longer here than there tells nothing about the server.
        if dropped is not None:
            self.limit.record(self.now - call.sent, self.in_flight, dropped, self.now)
        self.in_flight -= 1
        while self.in_flight < self.limit.limit and (waiter := self.queue.pop(self.now)) is not None:
            waiter.future.set_result(True)
            self._send(self._calls.pop(waiter))


KINDS: dict[str, Callable[[], Limit]] = {
    "none": lambda: FixedLimit(1_000_000),
    "fixed, 2 x workers": lambda: FixedLimit(16),
    "aimd": lambda: make_limit(AdaptiveLimit(kind="aimd")),
    "aimd, 0.1 s": lambda: make_limit(AdaptiveLimit(kind="aimd", timeout=0.1)),
    "gradient": lambda: make_limit(AdaptiveLimit()),
}
ORDERS: tuple[Literal["fifo", "adaptive"], ...] = ("fifo", "adaptive")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few virtual seconds only")
    quick = parser.parse_args().quick
    warm, seconds = (5.0, 5.0) if quick else (30.0, 30.0)
    print("8 workers of 20 ms, deadline 0.5 s: goodput / mean limit / latency of answers in time, median and")
    print("99th percentile in ms, by offered load. Unseen: the queue is not told of the deadlines.")
    print(f"{'limit, order':36}" + "".join(f"{load:>24g}" for load in LOADS))
    for seen, (name, make), order in itertools.product((True, False), KINDS.items(), ORDERS):
        cells = []
        for load in LOADS:
            queue: WaitingQueue[bool] = WaitingQueue(order=order)
            server = Server(8, 0.020)
            with closing(Simulation(server, make(), deadline=0.5, queue=queue, seen=seen)) as simulation:
                simulation.run(warm, load)
                outcome = simulation.run(seconds, load)
            latencies = sorted(outcome.latencies) or [0.0]
            middle, p99 = (latencies[int(len(latencies) * share)] * 1e3 for share in (0.5, 0.99))
            limit = "none" if outcome.limit > 10_000 else f"{outcome.limit:.0f}"
            cells.append(f"{outcome.goodput:.2f} / {limit} / {middle:.0f}, {p99:.0f}")
        row = f"{name}, {order}" + ("" if seen else ", unseen")
        print(f"{row:36}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
