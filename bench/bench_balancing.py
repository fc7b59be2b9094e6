"""Where calls go and how long they take with each policy, on simulated fleets; and what a decision costs.

    python bench/bench_balancing.py

What `BalancingOptions.policy` and `ramp` should be by default. The fleets are those of `fleet.py`, on a
virtual clock: these figures are computed, not measured, and come out the same everywhere. Only the last
table, the cost of a decision, is measured here.
"""

from __future__ import annotations

import random
import statistics
import sys
import timeit
from collections.abc import Callable, Collection

from fleet import COLD, LARGE, LEAD_IN, SCENARIOS, SMALL, WARM_UP, Fleet, Result, Simulation, policy
from harness import Bar, Options, Report, finish, percentile, seconds

from aioserving.balancing import POLICIES, BalancingOptions, Load, make_balancer, subset

DEFAULT = BalancingOptions().policy
RAMPS = (0.0, 2.0, 5.0, 10.0, 20.0, 30.0)
WARM_UPS = (2.0, WARM_UP, 10.0)
SUBSETS = (3, 5, 10, 20, 50)

#: Seconds that choosing may take, by number of endpoints, and recording an outcome.
CHOOSE_GOALS = {3: 1e-6, 300: 2e-6}
RECORD_GOAL = 0.7e-6


def simulate_policies(
    report: Report, fleets: tuple[Fleet, ...], scenarios: Collection[str]
) -> dict[tuple[int, str, str], Result]:
    """A table for each fleet; gives the results by number of servers, scenario and policy."""
    found = {}
    policies = ("random", *reversed(POLICIES))
    report.text(
        "\n".join(
            f"- **{name}**: {scenario.what}" for name, scenario in SCENARIOS.items() if name in scenarios
        )
    )
    for fleet in fleets:
        report.text(
            f"## {fleet.name}\n\n{fleet.rate:,.0f} calls per second, {fleet.utilisation:.0%} of what the "
            f"servers can do; {seconds(fleet.service)} of work each on average, {fleet.slots} at a time per "
            f'server; each client uses {fleet.subset} servers at most. "Some servers" are '
            f"{max(1, fleet.servers // 20)} of {fleet.servers}."
        )
        rows = []
        for scenario in map(SCENARIOS.__getitem__, scenarios):
            for name in policies:
                result = found[fleet.servers, scenario.name, name] = Simulation(
                    fleet, scenario, policy(name)
                ).run()
                rows.append(
                    (
                        scenario.name,
                        name,
                        seconds(result.latency(0.5)),
                        seconds(result.latency(0.99)),
                        seconds(result.latency(0.999)),
                        f"{result.busiest:.2f}x",
                        f"{result.variation:.3f}",
                        f"{result.extra:.2%}",
                        f"{result.failed}",
                        f"{result.longest_queue:.1f}",
                    )
                )
                report.figures[scenario.name, fleet.servers, name] = result.latency(0.99)
        report.table(
            (
                "scenario",
                "policy",
                "median",
                "99th percentile",
                "99.9th",
                "busiest server, to the mean",
                "variation of load",
                "attempts beyond the first",
                "calls failed",
                "longest queue, in slots",
            ),
            rows,
        )
    return found


def compare(report: Report, found: dict[tuple[int, str, str], Result]) -> None:
    """Which policy is best over everything."""
    situations = list(dict.fromkeys((servers, scenario) for servers, scenario, _ in found))
    policies = list(dict.fromkeys(name for _, _, name in found))
    ratios: dict[str, list[float]] = {name: [] for name in policies}
    for servers, scenario in situations:
        tails = {name: found[servers, scenario, name].latency(0.99) for name in policies}
        for name, tail in tails.items():
            ratios[name].append(tail / min(tails.values()))
    means = {name: statistics.geometric_mean(values) for name, values in ratios.items()}
    report.text(
        "## The default\n\nThe 99th percentile in terms of that of the best policy for the same situation."
    )
    report.table(
        ("policy", "geometric mean", "worst", "in"),
        [
            (
                f"**{name}**" if name == DEFAULT else name,
                f"{means[name]:.2f}x",
                f"{max(values):.2f}x",
                "{1}, {0} servers".format(*situations[values.index(max(values))]),
            )
            for name, values in ratios.items()
        ],
    )
    others = min(value for name, value in means.items() if name != DEFAULT)
    report.bars.append(
        Bar(f"99th percentile with `{DEFAULT}`, to the next best", 1.0, means[DEFAULT] / others)
    )


def simulate_ramps(report: Report, fleet: Fleet, ramps: Collection[float]) -> None:
    """What the ramp does in a rolling restart."""
    restart = SCENARIOS["restart"]
    # The default where it matters most, and the policy that does least to help itself where a server that is
    # held back is missed most.
    cases = ((fleet, DEFAULT), (SMALL, "round_robin"))
    report.text(
        "## The ramp\n\nRolling restart: the 99th percentile by the time in which the share of a server that "
        "came back grows to the full one, and by the time for which a server is slow after its start (at "
        f"first {COLD:g} times as slow, then less and less), of {fleet.name} with `{DEFAULT}` and "
        f"of {SMALL.name} with `round_robin`. Too short a ramp floods a server; too long a one "
        "keeps servers idle that could work, while others do their share. The last "
        "column is the largest ratio to the best of a column."
    )
    tails: dict[float, list[float]] = {}
    loads: dict[float, list[float]] = {}
    for ramp in ramps:
        found = {
            (*case, warm_up): Simulation(case[0], restart, policy(case[1], ramp=ramp), warm_up=warm_up).run()
            for case in cases
            for warm_up in WARM_UPS
        }
        tails[ramp] = [result.latency(0.99) for result in found.values()]
        usual = found[fleet, DEFAULT, WARM_UP]
        loads[ramp] = [usual.after_start(second) for second in (1, 2, 5, 10)]
        if ramp in (0, BalancingOptions().ramp):
            label = f"{DEFAULT}, ramp of {ramp:g} s" if ramp else f"{DEFAULT}, no ramp"
            for second in range(-4, 20):
                report.figures["load", second, label] = usual.after_start(second)
            for second in range(int(LEAD_IN), int(restart.duration)):
                report.figures["tail", second, label] = percentile(usual.by_second[second], 0.99)
    best = [min(column) for column in zip(*tails.values(), strict=True)]
    worst = {
        ramp: max(tail / least for tail, least in zip(row, best, strict=True)) for ramp, row in tails.items()
    }
    chosen = BalancingOptions().ramp
    report.table(
        (
            "ramp",
            *(f"{case[0].servers} servers, slow for {warm_up:g} s" for case in cases for warm_up in WARM_UPS),
            *(f"load {second} s after the start" for second in (1, 2, 5, 10)),
            "worst",
        ),
        [
            (
                f"**{ramp:g} s**" if ramp == chosen else f"{ramp:g} s",
                *map(seconds, tails[ramp]),
                *(f"{load:.2f}x" for load in loads[ramp]),
                f"{worst[ramp]:.2f}x",
            )
            for ramp in ramps
        ],
    )
    others = min(value for ramp, value in worst.items() if ramp != chosen)
    report.bars += [
        Bar(f"worst case of a ramp of {chosen:g} s, to the next best", 1.0, worst[chosen] / others),
        Bar("load of a server in the second after its start, to the mean", 0.4, loads[chosen][0]),
    ]
    for name in ("round_robin", "least_outstanding"):
        usual = Simulation(fleet, restart, policy(name, ramp=0)).run()
        for second in range(-4, 20):
            report.figures["load", second, f"{name}, no ramp"] = usual.after_start(second)


def simulate_subsets(report: Report, fleet: Fleet) -> None:
    """How many servers a client should use."""
    report.text(
        f"## Subsets\n\n{fleet.name}, steady, `{DEFAULT}`, by the number of servers that a client uses "
        "(`subset`)."
    )
    rows = []
    targets = [f"server-{index}" for index in range(fleet.servers)]
    for size in SUBSETS:
        if size > fleet.servers:
            continue
        clients = dict.fromkeys(targets, 0)
        for index in range(fleet.clients):
            for target in subset(targets, f"client-{index}", size):
                clients[target] += 1
        changed = Fleet(
            fleet.name, fleet.servers, fleet.clients, size, fleet.slots, fleet.service, fleet.utilisation
        )
        result = Simulation(changed, SCENARIOS["steady"], policy(DEFAULT)).run()
        mean = statistics.mean(clients.values())
        rows.append(
            (
                f"{size}",
                f"{mean:,.0f}",
                f"{min(clients.values()) / mean:.2f} to {max(clients.values()) / mean:.2f}x",
                f"{result.busiest:.2f}x",
                f"{result.variation:.3f}",
                seconds(result.latency(0.99)),
            )
        )
    report.table(
        (
            "servers per client",
            "clients per server",
            "least and most, to the mean",
            "busiest server, to the mean",
            "variation of load",
            "99th percentile",
        ),
        rows,
    )


def measure_decisions(report: Report, options: Options) -> None:
    """Time of `choose` and `record`."""
    report.text(
        "## What a decision costs\n\nBest of several runs, each endpoint with calls in flight and a history."
    )
    number = 200 if options.quick else 20_000

    def cost(what: Callable[[], object]) -> float:
        return min(timeit.repeat(what, number=number, repeat=3 if options.quick else 15)) / number

    nothing = cost(lambda: None)
    rows = []
    for name in POLICIES:
        times = {}
        for count in CHOOSE_GOALS:
            balancer = make_balancer(name, random.Random(0))
            endpoints = tuple(Load() for _ in range(count))
            for index, load in enumerate(endpoints):
                load.in_flight = 1 + index % 3
                balancer.record(load, 0.01, 100.0)
            times[count] = cost(lambda b=balancer, e=endpoints: b.choose(e, 101.0)) - nothing  # type: ignore[misc]
        record = cost(lambda b=balancer, e=endpoints[0]: b.record(e, 0.01, 101.0)) - nothing  # type: ignore[misc]
        rows.append((name, *(f"{time * 1e9:.0f} ns" for time in times.values()), f"{record * 1e9:.0f} ns"))
        for count, goal in CHOOSE_GOALS.items():
            report.bars.append(
                Bar(f"`{name}`: choosing among {count}", goal * 1e9, times[count] * 1e9, " ns")
            )
        report.bars.append(Bar(f"`{name}`: recording an outcome", RECORD_GOAL * 1e9, record * 1e9, " ns"))
    report.table(("policy", *(f"choose among {count}" for count in CHOOSE_GOALS), "record"), rows)


def run(options: Options) -> Report:
    report = Report("balancing", "Balancing")
    report.text(
        "Simulated on a virtual clock with the package's own `balancing` (`bench/fleet.py`): no health "
        "checks, no hedging, no deadlines; a failed attempt is repeated elsewhere at once, three in all."
    )
    if options.quick:  # all of it takes minutes
        found = simulate_policies(report, (SMALL,), ("steady", "slow"))
    else:
        found = simulate_policies(report, (SMALL, LARGE), tuple(SCENARIOS))
    compare(report, found)
    ramps = (0.0, BalancingOptions().ramp) if options.quick else RAMPS
    simulate_ramps(report, SMALL if options.quick else LARGE, ramps)
    simulate_subsets(report, SMALL if options.quick else LARGE)
    measure_decisions(report, options)
    return report


if __name__ == "__main__":
    sys.exit(finish(run(Options.from_arguments(__doc__))))
