"""A fleet of servers and its clients on a virtual clock: where calls go, and how long they take.

Nothing is measured here, all is computed: arrivals, queues and service times come from a seeded generator,
time is a heap of events, and the decisions are those of the real `aioserving.balancing`. The same seed gives
the same figures on every machine. `bench_balancing.py` makes tables of it.

The model
    A server has a number of slots and a queue before them. A call holds a slot for a time drawn from a
    log-normal distribution, times what the scenario does to that server. A server that is down refuses
    at once and has lost what it was doing; one that is paused neither answers nor refuses; one that has
    just started is slow at first, as caches are cold and kernels are compiled.

    Clients send calls at random times (Poisson), to the servers of their subset. A call that was refused,
    lost or failed goes to another server at once, three times in all. A client leaves a server alone whose
    connection is gone, and admits it anew when it is connected again, within `REST` seconds; clients that
    do not watch their connections learn of it from calls, and then leave the server alone for `REST`
    seconds. New servers are found within `RESOLVE` seconds. There are no health checks, no hedging and no
    deadlines: this is to show what balancing does by itself.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math
import statistics
from collections import deque
from collections.abc import Callable, Collection
from random import Random

from harness import percentile

from aioserving.balancing import Balancer, BalancingOptions, L, Load, make_balancer, subset

#: Seconds for which a client leaves a server alone that refused or lost a call.
REST = 1.0
#: Seconds within which every client has learned of new servers.
RESOLVE = 3.0
#: Seconds that a refusal, or an error of a failing server, takes.
REFUSAL = 0.001
#: How often a call is tried.
ATTEMPTS = 3
#: A server that has just started takes `COLD` times as long, less and less, for `WARM_UP` seconds.
COLD, WARM_UP = 4.0, 5.0
#: Seconds at the beginning that do not count.
LEAD_IN = 5.0


@dataclasses.dataclass(frozen=True)
class Fleet:
    """Servers, clients and their traffic."""

    name: str
    servers: int
    clients: int
    #: Servers that each client uses at most.
    subset: int
    #: Calls that a server works on at a time.
    slots: int
    #: Mean time of a call, in seconds, without waiting.
    service: float
    #: Calls, in terms of what all servers can do.
    utilisation: float

    @property
    def rate(self) -> float:
        """Calls per second of all clients."""
        return self.utilisation * self.servers * self.slots / self.service


SMALL = Fleet("3 servers, 4 clients", 3, 4, 10, slots=8, service=0.02, utilisation=0.6)
LARGE = Fleet("200 servers, 2000 clients", 200, 2000, 20, slots=4, service=0.1, utilisation=0.6)


@dataclasses.dataclass(frozen=True)
class Scenario:
    """What happens to a fleet."""

    name: str
    #: What it is, in a sentence.
    what: str
    #: Seconds, `LEAD_IN` included.
    duration: float
    #: Makes the events before the simulation starts.
    arrange: Callable[[Simulation], None]
    #: Whether clients see at once that a connection is gone, and try in their own time to make another.
    watched: bool = True


class Server:
    """A number of slots with a queue."""

    __slots__ = (
        "absent",
        "down",
        "failing",
        "frozen",
        "index",
        "paused_at",
        "queue",
        "running",
        "slow_factor",
        "slow_share",
        "slowness",
        "started_at",
        "working",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.down = False
        self.absent = False
        self.failing = False
        #: Seconds on the clock, or minus infinity if it is not paused.
        self.paused_at = -math.inf
        self.started_at = -math.inf
        self.slowness = 1.0
        self.slow_share = 0.0
        self.slow_factor = 1.0
        self.running = 0
        self.queue: deque[Call] = deque()
        self.working: dict[Call, None] = {}
        #: Work interrupted by a pause: what remained of it, and the call.
        self.frozen: list[tuple[float, Call]] = []

    def __repr__(self) -> str:
        return f"<Server {self.index}, {self.running} running, {len(self.queue)} queued>"


class Link(Load):
    """One client's view of one server."""

    __slots__ = ("calls", "rests_until", "server")

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server
        self.rests_until = -math.inf


class Client:
    """A balancer and its links."""

    __slots__ = ("balancer", "eligible", "index", "links", "resting_until")

    def __init__(self, index: int, balancer: Balancer, links: dict[int, Link]) -> None:
        self.index = index
        self.balancer = balancer
        self.links = links
        self.eligible = tuple(links.values())
        #: When the first of those that rest comes back; infinity if none does.
        self.resting_until = math.inf

    def __repr__(self) -> str:
        return f"<Client {self.index}, {len(self.eligible)} of {len(self.links)} servers eligible>"

    def review(self, now: float) -> None:
        """Take back those that have rested, and leave out those that rest."""
        self.resting_until = math.inf
        eligible = []
        for link in self.links.values():
            if link.rests_until > now:
                self.resting_until = min(self.resting_until, link.rests_until)
                continue
            if link.rests_until != -math.inf:
                link.rests_until = -math.inf
                self.balancer.admit(link, now)
            eligible.append(link)
        self.eligible = tuple(eligible or self.links.values())


class Call:
    """One call through all its attempts."""

    __slots__ = ("attempt", "attempt_at", "client", "link", "started_at", "tried")

    def __init__(self, client: Client, now: float) -> None:
        self.client = client
        self.started_at = now
        self.attempt_at = now
        #: Counts attempts: one that was lost does not end any more.
        self.attempt = 0
        self.link: Link | None = None
        self.tried: list[Link] = []


@dataclasses.dataclass
class Result:
    """What a simulation found, of the time after `LEAD_IN`."""

    #: Seconds from call to answer, retries included, of those that were answered.
    latencies: list[float]
    #: The same by the second in which a call was made.
    by_second: list[list[float]]
    #: Calls that failed for good.
    failed: int
    #: Attempts in all.
    attempts: int
    #: Attempts by second and server.
    load: list[list[int]]
    #: (time, server) of servers that started.
    starts: list[tuple[float, int]]
    #: The longest that a queue was, in terms of slots.
    longest_queue: float

    def latency(self, share: float) -> float:
        return percentile(self.latencies, share)

    @property
    def calls(self) -> int:
        return len(self.latencies) + self.failed

    @property
    def extra(self) -> float:
        """Attempts beyond the first, in terms of calls."""
        return self.attempts / self.calls - 1

    def totals(self) -> list[int]:
        """Attempts of each server."""
        return [sum(column) for column in zip(*self.load[int(LEAD_IN) :], strict=True)]

    @property
    def busiest(self) -> float:
        """Attempts of the busiest server, in terms of the mean."""
        totals = self.totals()
        return max(totals) / statistics.mean(totals)

    @property
    def variation(self) -> float:
        """Coefficient of variation of the servers' attempts."""
        totals = self.totals()
        return statistics.pstdev(totals) / statistics.mean(totals)

    def share_of(self, server: int) -> float:
        """Attempts at one server, in terms of the mean."""
        totals = self.totals()
        return totals[server] / statistics.mean(totals)

    def after_start(self, second: int) -> float:
        """Attempts per second at servers that started so long ago, in terms of the mean server's.

        The seconds of the table are whole ones, so this second holds that much of the time after a start.
        """
        ratios = []
        for at, server in self.starts:
            row = int(at) + second
            if row < len(self.load) and any(self.load[row]):
                ratios.append(self.load[row][server] / statistics.mean(self.load[row]))
        return statistics.mean(ratios) if ratios else math.nan


class Simulation:
    """One fleet, one scenario, one policy; `run` once.

    Args:
        fleet: servers, clients and traffic.
        scenario: what happens.
        policy: makes the balancer of each client, see `policy`.
        seed: of all that is random.
        warm_up: seconds for which a server that has just started is slow.
    """

    def __init__(
        self,
        fleet: Fleet,
        scenario: Scenario,
        policy: Callable[[Random], Balancer],
        seed: int = 0,
        warm_up: float = WARM_UP,
    ) -> None:
        self.fleet = fleet
        self.warm_up = warm_up
        self.scenario = scenario
        # Apart, so that policies see the same arrivals and service times, however often they draw.
        self.chance = Random(seed)
        policy_chance = Random(seed + 1)
        sigma = 0.5
        mu = math.log(fleet.service) - sigma * sigma / 2
        self._times = [self.chance.lognormvariate(mu, sigma) for _ in range(1 << 14)]
        self._drawn = 0
        self.now = 0.0
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self.servers = [Server(index) for index in range(fleet.servers)]
        self.result = Result([], [[] for _ in range(math.ceil(scenario.duration))], 0, 0, [], [], 0.0)
        scenario.arrange(self)
        self.result.load = [[0] * len(self.servers) for _ in range(math.ceil(scenario.duration))]
        names = {f"server-{server.index}": server for server in self.servers if not server.absent}
        self.clients = []
        for index in range(fleet.clients):
            chosen = subset(names, f"client-{index}", fleet.subset)
            links = {names[name].index: Link(names[name]) for name in chosen}
            self.clients.append(Client(index, policy(policy_chance), links))

    # What scenarios are made of.

    def at(self, time: float, action: Callable[..., None], *arguments: object) -> None:
        """Do something at a time."""
        heapq.heappush(self._events, (time, next(self._order), action, arguments))

    def stop(self, server: Server) -> None:
        """The process ends: what it was doing is lost, what comes is refused."""
        server.down = True
        lost = [*server.working, *server.queue]
        server.working.clear()
        server.queue.clear()
        server.running = 0
        if self.scenario.watched:
            for client, link in self._links(server):
                link.rests_until = math.inf
                client.review(self.now)
        for call in lost:
            self._ended(call, failed=True, gone=True)

    def start(self, server: Server) -> None:
        """The process is there again, or for the first time; cold."""
        server.down = server.absent = False
        server.started_at = self.now
        self.result.starts.append((self.now, server.index))
        if self.scenario.watched:
            for client, link in self._links(server):
                self.at(self.now + self.chance.random() * REST, self._connected, client, link)

    def _links(self, server: Server) -> list[tuple[Client, Link]]:
        return [
            (client, client.links[server.index]) for client in self.clients if server.index in client.links
        ]

    def _connected(self, client: Client, link: Link) -> None:
        if not link.server.down:
            link.rests_until = self.now
            client.review(self.now)

    def pause(self, server: Server) -> None:
        """It neither answers nor refuses."""
        server.paused_at = self.now

    def resume(self, server: Server) -> None:
        """It goes on where it was."""
        server.paused_at = -math.inf
        frozen, server.frozen = server.frozen, []
        for remaining, call in frozen:
            self.at(self.now + remaining, self._finish, call, call.attempt)
        while server.queue and server.running < self.fleet.slots:
            self._work(server, server.queue.popleft())

    def announce(self) -> None:
        """Clients learn of servers that were absent, each at its own time."""
        names = {f"server-{server.index}": server for server in self.servers if not server.absent}
        for client in self.clients:
            chosen = subset(names, f"client-{client.index}", self.fleet.subset)
            links = {names[name].index: names[name] for name in chosen}
            self.at(self.now + self.chance.random() * RESOLVE, self._resolved, client, links)

    def _resolved(self, client: Client, servers: dict[int, Server]) -> None:
        links = {}
        for index, server in servers.items():
            link = client.links.get(index)
            if link is None:
                link = Link(server)
                client.balancer.admit(link, self.now)
            links[index] = link
        client.links = links
        client.review(self.now)

    # What goes on by itself.

    def run(self) -> Result:
        """Let the time pass."""
        events, duration = self._events, self.scenario.duration
        rate, draw = self.fleet.rate, self.chance
        next_call = draw.expovariate(rate)
        count = len(self.clients)
        while True:
            if events and events[0][0] <= next_call:
                self.now, _, action, arguments = heapq.heappop(events)
                action(*arguments)
                continue
            if next_call >= duration:
                if not events:
                    return self.result
                self.now, _, action, arguments = heapq.heappop(events)
                action(*arguments)
                continue
            self.now = next_call
            next_call += draw.expovariate(rate)
            self._attempt(Call(self.clients[int(draw.random() * count)], self.now))

    def _attempt(self, call: Call) -> None:
        now, client = self.now, call.client
        if now >= client.resting_until:
            client.review(now)
        link = call.link = client.balancer.choose(client.eligible, now, call.tried)
        link.in_flight += 1
        call.attempt_at = now
        server = link.server
        if call.started_at >= LEAD_IN:
            self.result.attempts += 1
        if now < self.scenario.duration:
            self.result.load[int(now)][server.index] += 1
        if server.down or server.failing:
            self.at(now + REFUSAL, self._ended, call, True, server.down)
        elif server.running < self.fleet.slots and server.paused_at == -math.inf:
            self._work(server, call)
        else:
            server.queue.append(call)
            if now >= LEAD_IN:
                queue = len(server.queue) / self.fleet.slots
                self.result.longest_queue = max(self.result.longest_queue, queue)

    def _work(self, server: Server, call: Call) -> None:
        self._drawn += 1
        time = self._times[self._drawn & 0x3FFF] * server.slowness
        if server.slow_share and self.chance.random() < server.slow_share:
            time *= server.slow_factor
        age = self.now - server.started_at
        if age < self.warm_up:
            time *= COLD - (COLD - 1) * age / self.warm_up
        server.running += 1
        server.working[call] = None
        self.at(self.now + time, self._finish, call, call.attempt)

    def _finish(self, call: Call, attempt: int) -> None:
        if attempt != call.attempt:  # it was lost when the server stopped
            return
        link = call.link
        assert link is not None
        server = link.server
        if server.paused_at != -math.inf:
            server.frozen.append((self.now - server.paused_at, call))
            return
        server.running -= 1
        del server.working[call]
        if server.queue:
            self._work(server, server.queue.popleft())
        self._ended(call, failed=False)

    def _ended(self, call: Call, failed: bool, gone: bool = False) -> None:
        now, link, client = self.now, call.link, call.client
        assert link is not None
        link.in_flight -= 1
        call.attempt += 1
        client.balancer.record(link, now - call.attempt_at, now, failed=failed)
        if failed:
            if gone and link.rests_until < now:
                link.rests_until = now + REST
                client.review(now)
            call.tried.append(link)
            if len(call.tried) < ATTEMPTS:
                self._attempt(call)
                return
        if call.started_at >= LEAD_IN:
            if failed:
                self.result.failed += 1
            else:
                self.result.latencies.append(now - call.started_at)
                self.result.by_second[int(call.started_at)].append(now - call.started_at)


class RandomChoice(Balancer):
    """By chance: what the policies are compared with."""

    name = "random"

    def choose(self, endpoints: tuple[L, ...], now: float, exclude: Collection[Load] = ()) -> L:
        for _ in range(self.DRAWS):
            load = endpoints[int(self._random() * len(endpoints))]
            if self._takes_part(load, now, exclude):
                return load
        return self._any(endpoints, now, exclude)


def policy(name: str, ramp: float | None = None, decay: float | None = None) -> Callable[[Random], Balancer]:
    """What makes a client's balancer, for `Simulation`; with the package's defaults where not given."""
    options = BalancingOptions() if name == "random" else BalancingOptions(policy=name)
    options = dataclasses.replace(
        options,
        ramp=options.ramp if ramp is None else ramp,
        decay=options.decay if decay is None else decay,
    )
    if name == "random":
        return lambda random: RandomChoice(options, random)
    return lambda random: make_balancer(options, random)


def _affected(simulation: Simulation) -> list[Server]:
    """One server of few, one in twenty of many."""
    return simulation.servers[: max(1, len(simulation.servers) // 20)]


def _tail(simulation: Simulation) -> None:
    for server in _affected(simulation):
        server.slow_share, server.slow_factor = 0.05, 10.0


def _slow(simulation: Simulation) -> None:
    for server in _affected(simulation):
        server.slowness = 3.0


def _uneven(simulation: Simulation) -> None:
    # As much in all as if they were alike.
    for server in simulation.servers:
        server.slowness = 1 / (0.6, 1.4, 1.0)[server.index % 3]


def _failing(simulation: Simulation) -> None:
    for server in _affected(simulation):
        server.failing = True


def _restart(simulation: Simulation) -> None:
    # One server after the other, or one in twenty at a time.
    size = len(_affected(simulation))
    step = (simulation.scenario.duration - LEAD_IN - 15) / math.ceil(len(simulation.servers) / size)
    for server in simulation.servers:
        begin = LEAD_IN + 5 + (server.index // size) * step
        simulation.at(begin, simulation.stop, server)
        simulation.at(begin + 2, simulation.start, server)


def _kill(simulation: Simulation) -> None:
    for server in _affected(simulation):
        simulation.at(LEAD_IN + 5, simulation.stop, server)


def _pause(simulation: Simulation) -> None:
    for server in _affected(simulation):
        simulation.at(LEAD_IN + 5, simulation.pause, server)
        simulation.at(LEAD_IN + 10, simulation.resume, server)


def _join(simulation: Simulation) -> None:
    count = len(simulation.servers)
    added = [Server(count + index) for index in range(max(1, count // 4))]
    simulation.servers += added
    for server in added:
        server.absent = True
        simulation.at(LEAD_IN + 5, simulation.start, server)
    simulation.at(LEAD_IN + 5, simulation.announce)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("steady", "all servers are alike", 30, lambda simulation: None),
        Scenario("slow tail", "some servers take 10 times as long for 5% of their calls", 30, _tail),
        Scenario("slow", "some servers take 3 times as long for all calls", 30, _slow),
        Scenario("uneven", "a third of the servers each has 0.6, 1 and 1.4 of the speed", 30, _uneven),
        Scenario("failing", "some servers answer every call with an error, at once", 30, _failing),
        Scenario("restart", "every server is restarted in its turn: 2 s down, then cold", 60, _restart),
        Scenario("restart, unseen", "the same, and clients learn of it only by calling", 60, _restart, False),
        Scenario("kill", "some servers go down and stay down", 30, _kill),
        Scenario("pause", "some servers hang for 5 s", 30, _pause),
        Scenario("join", "a quarter more servers are added, cold", 40, _join),
    )
}
