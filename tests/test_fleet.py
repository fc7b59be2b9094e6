"""The simulated fleets of `bench/fleet.py`: that the model keeps its books, and what it says of policies."""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

BENCH = pathlib.Path(__file__).resolve().parent.parent / "bench"
POLICIES = ["random", "weighted", "round_robin", "least_outstanding", "power_of_two"]


@pytest.fixture(scope="module")
def fleet() -> Iterator[ModuleType]:
    """`bench/fleet.py`, which is a script's neighbour, not a package's module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield importlib.import_module("fleet")
    for name in ("harness", "fleet", "plots"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "scenario",
    [
        "steady",
        "slow tail",
        "slow",
        "uneven",
        "failing",
        "restart",
        "restart, unseen",
        "kill",
        "pause",
        "join",
    ],
)
@pytest.mark.parametrize("policy", ["random", "power_of_two"])
def test_no_call_is_lost_or_counted_twice(fleet: ModuleType, scenario: str, policy: str) -> None:
    """Every call is answered or failed, once, and nothing is left in flight, whatever happens to servers."""
    simulation = fleet.Simulation(fleet.SMALL, fleet.SCENARIOS[scenario], fleet.policy(policy), seed=3)
    result = simulation.run()
    seconds = fleet.SCENARIOS[scenario].duration - fleet.LEAD_IN
    # Arrivals are Poisson: five standard deviations.
    assert abs(result.calls - fleet.SMALL.rate * seconds) < 5 * (fleet.SMALL.rate * seconds) ** 0.5
    assert sum(map(len, result.by_second)) == len(result.latencies)
    assert result.attempts >= result.calls
    assert min(result.latencies) > 0
    for server in simulation.servers:
        assert (server.running, len(server.queue), len(server.working)) == (0, 0, 0)
    for client in simulation.clients:
        assert [link.in_flight for link in client.links.values()] == [0] * len(client.links)


def test_all_scenarios_are_tested(fleet: ModuleType) -> None:
    """The list of scenarios above is the list of scenarios."""
    marks = test_no_call_is_lost_or_counted_twice.pytestmark  # type: ignore[attr-defined]
    assert marks[-1].args[1] == list(fleet.SCENARIOS)


def test_the_same_seed_gives_the_same_figures(fleet: ModuleType) -> None:
    """A simulation depends on its seed alone: not on the time, the process or the machine."""

    def run(seed: int) -> object:
        return fleet.Simulation(
            fleet.SMALL, fleet.SCENARIOS["restart"], fleet.policy("power_of_two"), seed=seed
        ).run()

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_policies_see_the_same_traffic(fleet: ModuleType) -> None:
    """Policies are compared on the same calls, though some draw more random numbers than others."""
    counts = {
        name: [
            len(second)
            for second in fleet.Simulation(fleet.SMALL, fleet.SCENARIOS["steady"], fleet.policy(name))
            .run()
            .by_second
        ]
        for name in POLICIES
    }
    assert all(found == counts["random"] for found in counts.values())


def test_an_idle_server_answers_in_its_service_time(fleet: ModuleType) -> None:
    """Without a queue the mean latency is the service time, so that the rest is made by the policies."""
    idle = fleet.Fleet("idle", 3, 4, 3, slots=1000, service=0.02, utilisation=0.01)
    result = fleet.Simulation(idle, fleet.SCENARIOS["steady"], fleet.policy("random")).run()
    assert sum(result.latencies) / len(result.latencies) == pytest.approx(0.02, rel=0.02)
    assert result.longest_queue == 0


def test_the_default_keeps_away_from_slow_servers(fleet: ModuleType) -> None:
    """With a server three times as slow, round robin lets its queue grow, and the default does not."""
    tails = {
        name: fleet.Simulation(fleet.SMALL, fleet.SCENARIOS["slow"], fleet.policy(name)).run().latency(0.99)
        for name in POLICIES
    }
    assert min(tails, key=lambda name: tails[name]) == "power_of_two"
    assert tails["round_robin"] > 20 * tails["power_of_two"]


@pytest.mark.parametrize("policy", ["power_of_two", "least_outstanding", "round_robin"])
def test_a_ramp_spares_servers_that_came_back(fleet: ModuleType, policy: str) -> None:
    """In a rolling restart of cold servers a ramp begins with a part of the load, and shortens the tail."""
    small = fleet.Fleet("30 servers", 30, 60, 10, slots=4, service=0.1, utilisation=0.6)
    with_ramp, without = (
        fleet.Simulation(small, fleet.SCENARIOS["restart"], fleet.policy(policy, ramp=ramp)).run()
        for ramp in (10.0, 0.0)
    )
    assert with_ramp.after_start(1) < 0.45
    assert without.after_start(1) > 0.7
    assert with_ramp.latency(0.99) < without.latency(0.99) / 1.5
    assert with_ramp.failed == 0
    # No spike later on, when the ramp ends.
    assert max(with_ramp.after_start(second) for second in range(15)) < 1.6


def test_a_killed_server_is_left_alone(fleet: ModuleType) -> None:
    """Once its connections are gone, a server gets no call, and no call fails for it."""
    result = fleet.Simulation(fleet.SMALL, fleet.SCENARIOS["kill"], fleet.policy("power_of_two")).run()
    assert result.failed == 0
    killed = [second[0] for second in result.load]
    assert killed[9] > 0
    assert sum(killed[11:]) == 0


def test_one_that_fails_at_once_gets_little(fleet: ModuleType) -> None:
    """A server that answers everything with an error has a small part of the others' calls."""
    for name in POLICIES:
        result = fleet.Simulation(fleet.SMALL, fleet.SCENARIOS["failing"], fleet.policy(name)).run()
        assert 0 < result.share_of(0) < 0.2, name
        assert result.failed == 0, name


def test_new_servers_are_found_and_used(fleet: ModuleType) -> None:
    """Servers that are added get their part of the traffic by the end, and not at once."""
    simulation = fleet.Simulation(fleet.SMALL, fleet.SCENARIOS["join"], fleet.policy("power_of_two"))
    result = simulation.run()
    assert len(simulation.servers) == 4
    added = [second[3] / sum(second) * 3 for second in result.load]
    assert added[:10] == [0] * 10
    assert 0 < sum(added[12:14]) / 2 < 0.4
    assert sum(added[-10:]) / 10 == pytest.approx(0.75, rel=0.1)


def test_the_benchmark_prints_its_tables() -> None:
    """The benchmark runs by itself: policies, ramps, costs, and the default in bold."""
    done = subprocess.run(
        [sys.executable, str(BENCH / "bench_balancing.py"), "--quick"],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert "| **power_of_two** | 1.0" in done.stdout
    assert "| **10 s** |" in done.stdout
    assert len(re.findall(r"^\| \w+ \| \d+ ns \| \d+ ns \| \d+ ns \|$", done.stdout, re.MULTILINE)) == 4


def test_the_plot_depends_on_the_figures_alone(fleet: ModuleType, tmp_path: pathlib.Path) -> None:
    """The same figures draw the same file."""
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("matplotlib, of the extra 'bench', is not installed")
    plots = importlib.import_module("plots")
    figures = {(kind, second, "x, ramp of 10 s"): 0.5 for kind in ("load", "tail") for second in range(3)}
    figures |= {("steady", 3, name): 0.1 for name in POLICIES}
    for name in ("a.svg", "b.svg"):
        plots.balancing(figures, tmp_path / name)
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn == (tmp_path / "b.svg").read_text()
    assert "3 servers: 99th percentile" in drawn
    assert not re.search(r"\d{4}-\d\d-\d\d", drawn)
