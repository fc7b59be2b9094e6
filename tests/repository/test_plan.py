"""Plans: in a world of simulated servers that spring every trap, they never do harm, and they converge."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aioserving.repository import plan as planning
from aioserving.repository.plan import Settings
from aioserving.repository.policy import All, Hours, Label, Latest, Policy, Probe, Specific

from .world import KINDS, World

PROBE = Probe(inputs={"x": [1.0]}, interval=1.0)
STABLE = {"stable": Label()}
CANARY = {"stable": Label(), "canary": Label(seconds=5.0, probes=3)}

POLICIES = {
    "latest": Policy(labels=STABLE),
    "latest 2": Policy(versions=Latest(2), labels=STABLE),
    "all": Policy(versions=All(), keep=0),
    "specific": Policy(versions=Specific([1, 3]), labels=STABLE),
    "probed": Policy(labels=STABLE, probe=PROBE, load_timeout=10.0),
    "canary": Policy(labels=CANARY, probe=PROBE, load_timeout=10.0),
    "careful": Policy(labels=CANARY, probe=PROBE, load_timeout=10.0, max_concurrent_loads=1),
    "pinned": Policy(pinned=2, labels=STABLE),
    "fixed": Policy(labels={"stable": Label(), "old": Label(version=1)}),
    "closed": Policy(labels=STABLE, hours=Hours("UTC", ("02:00-03:00",))),
}


def expected(world: World, model: str) -> set[int]:
    """The versions that a settled world serves, from the store and the policy alone."""
    remembered = world.state.model(model)
    policy = remembered.policy
    assert policy is not None
    bad = ("fails", "hangs", "wrong") if policy.probe is not None else ("fails", "hangs")
    there = (world.store.get(model, set()) | remembered.good) - remembered.quarantine.keys()
    for version in there:
        if version in policy.select(there):
            sort = world.kinds[model, version]
            assert sort not in bad or (sort == "wrong" and (model, version) in world.unprobed), (
                f"{version} was never found out"
            )
    return set(policy.select(there))


def test_a_first_version() -> None:
    """A version is fetched, loaded on every server, and labelled; then nothing is left to do."""
    world = World()
    world.set_policy("m", POLICIES["probed"])
    world.upload("m", 1)
    world.settle()
    assert world.served("m") == [({1}, {"stable": 1})] * 2
    assert not world.plan()


def test_the_order_of_a_rollout() -> None:
    """The label moves after the version is available everywhere, and the old one goes after the label."""
    world = World()
    world.set_policy("m", POLICIES["latest"])
    world.upload("m", 1)
    world.settle()
    world.upload("m", 2)
    seen: list[str] = []
    for _ in range(60):
        made = world.turn()
        seen += [str(step) for step in made.actions]
        world.fetched()
        for server in world.servers.values():
            server.poll()
            server.step()
    assert seen == [
        "fetch m 2",
        "begin the rollout of m 2",
        "reload s0: load m 2",
        "reload s1: load m 2",
        "promote m 2",
        "label stable of m to version 2",
        "reload s0: m: stable to 2",
        "reload s1: m: stable to 2",
        "unload m 1: its successors serve",
        "reload s0: unload m 1",
        "reload s1: unload m 1",
    ]
    assert world.served("m") == [({2}, {"stable": 2})] * 2


@pytest.mark.parametrize("kind", ["fails", "wrong", "hangs"])
@pytest.mark.parametrize("policy", ["probed", "canary", "careful"])
def test_a_bad_version(kind: str, policy: str) -> None:
    """It goes into quarantine with the reason, is taken off the servers, and never tried again."""
    world = World()
    world.set_policy("m", POLICIES[policy])
    for version, sort in ((1, "fine"), (2, "fine"), (3, kind)):
        world.upload("m", version, sort)
        world.settle()
    labels = dict.fromkeys(POLICIES[policy].labels, 2)
    assert world.served("m") == [({2}, labels)] * 2
    reasons = {"fails": "bad graph", "wrong": "answers wrongly", "hangs": "still loading"}
    assert reasons[kind] in world.state.model("m").quarantine[3].reason
    assert world.disk["m"] == {1, 2}  # the last one is kept for a rollback, the bad one is not
    world.upload("m", 4)
    world.settle()
    assert world.served("m") == [({4}, dict.fromkeys(labels, 4))] * 2


@pytest.mark.parametrize("kind", ["fails", "hangs"])
def test_a_first_version_that_is_bad(kind: str) -> None:
    """A server whose first list is a failure never looks at its disk again: it is not sprung."""
    world = World()
    world.set_policy("m", POLICIES["latest"])
    world.upload("m", 1, kind)
    while not all(server.states for server in world.servers.values()):
        world.turn()
        world.fetched()
    world.upload("m", 2)  # its successor is on disk when it fails
    world.turn()
    world.fetched()
    world.settle()
    assert set(world.state.model("m").quarantine) == {1}
    assert [versions for versions, _ in world.served("m")] == [{2}] * 2
    # Somebody else's tool has sprung it.
    world.kill("s0")
    world.settle()
    world.kill("s0")
    world.start("s0")
    world.upload("m", 3, "fails")
    world.disk["m"].add(3)
    server = world.servers["s0"]
    server.reload({"m": planning.Served(frozenset({3}))})
    while server.step():
        pass
    assert server.first
    world.settle()
    assert [versions for versions, _ in world.served("m")] == [{2}] * 2
    assert not server.first


def test_a_server_without_the_promoted_version_gets_that_first() -> None:
    """It loads one at a time, so a candidate would keep it from serving, and be all that it has."""
    world = World(servers=1)
    world.set_policy("m", POLICIES["latest"])
    world.upload("m", 1)
    world.settle()
    world.upload("m", 2)
    world.turn()
    world.fetched()
    world.kill("s0")
    world.start("s0")
    server = world.servers["s0"]
    while not server.available("m"):
        assert 2 not in server.states.get("m", {})
        world.turn()
        server.poll()
        server.step()
        world.now += 0.5
    assert server.available("m") == {1}
    world.settle()
    assert server.available("m") == {2}


def test_what_another_controller_began_is_not_taken_back() -> None:
    """A limit to concurrent loads does not leave out what a server has been told, and not begun to load."""
    world = World()
    world.set_policy("m", POLICIES["latest"])
    world.upload("m", 1)
    while not all(server.states for server in world.servers.values()):
        world.turn()
        world.fetched()
    world.crash()
    world.settings = Settings(max_concurrent_loads=1)
    made = world.turn()
    told = [step.config for step in made if isinstance(step, planning.Reload)]
    assert [config["m"].versions for config in told] == [{1}, {1}]
    world.settle()


def test_a_canary_waits_for_its_time_and_its_probes() -> None:
    """The canary label goes first; `stable` follows after so many seconds and right answers."""
    world = World()
    world.set_policy("m", POLICIES["canary"])
    world.upload("m", 1)
    world.settle()
    world.upload("m", 2)
    begun = promoted = None
    for _ in range(200):
        world.turn()
        world.fetched()
        for server in world.servers.values():
            server.poll()
            server.step()
        labels = world.state.model("m").labels
        if labels == {"stable": 1, "canary": 2} and begun is None:
            begun = world.now
        if labels == {"stable": 2, "canary": 2}:
            promoted = world.now
            break
        world.now += 0.5
    assert begun is not None
    assert promoted is not None
    assert 5.0 <= promoted - begun <= 6.0


def test_a_canary_is_seen_through() -> None:
    """Versions that come faster than canaries take are promoted all the same, one after the other."""
    world = World()
    world.set_policy("m", POLICIES["canary"])
    promoted = []
    for version in range(1, 30):
        world.upload("m", version)
        for _ in range(8):
            made = world.turn()
            promoted += [step.version for step in made if isinstance(step, planning.Promote)]
            world.fetched()
            for server in world.servers.values():
                server.poll()
                server.step()
            world.now += 0.5
    assert len(promoted) >= 4
    assert promoted == sorted(promoted)


def test_max_concurrent_loads() -> None:
    """With one load at a time a bad version is seen by one server only."""
    world = World(servers=3)
    world.set_policy("m", POLICIES["careful"])
    world.upload("m", 1)
    world.settle()
    world.upload("m", 2, "fails")
    world.settle()
    assert [2 in server.states["m"] for server in world.servers.values()] == [True, False, False]


def test_max_concurrent_loads_of_all_models() -> None:
    """An empty server gets its models back a few at a time."""
    world = World(servers=2, settings=Settings(max_concurrent_loads=3))
    for number in range(8):
        world.set_policy(f"m{number}", POLICIES["latest"])
        world.upload(f"m{number}", 1)
    world.settle()  # the world checks the limit at every reload
    world.kill("s0")
    world.settle()
    assert all(world.served(f"m{number}") == [({1}, {"stable": 1})] * 2 for number in range(8))


def test_hours() -> None:
    """Outside its hours a version waits, and the plan says until when; a restarted server does not wait."""
    world = World()
    closed = replace(POLICIES["closed"], hours=Hours("UTC", ("12:00-13:00",)))
    world.now = 1_700_000_000.0 - 1_700_000_000.0 % 86400 + 12.5 * 3600
    world.set_policy("m", closed)
    world.upload("m", 1)
    world.settle()
    world.now += 3600
    world.upload("m", 2)
    world.turn()
    assert [str(step) for step in world.turn()] == ["wait: m 2: is not fetched outside the allowed hours"]
    world.kill("s1")
    world.start("s1")
    for _ in range(10):
        world.turn()
        for server in world.servers.values():
            server.poll()
            server.step()
    assert world.served("m") == [({1}, {"stable": 1})] * 2
    world.settle()  # which goes on to the next day
    assert world.served("m") == [({2}, {"stable": 2})] * 2


def test_a_server_that_is_down_holds_up_a_rollout_for_a_while() -> None:
    """Labels do not move while a server is missing, until its grace is over; then it follows."""
    world = World()
    world.set_policy("m", POLICIES["latest"])
    world.upload("m", 1)
    world.settle()
    world.servers["s1"].linked = False
    world.upload("m", 2)
    missing_since = world.now
    while world.state.model("m").labels["stable"] == 1:
        world.turn()
        world.fetched()
        world.servers["s0"].poll()
        world.servers["s0"].step()
        world.now += 1
        assert world.now < missing_since + 60
    assert world.now >= missing_since + 20
    world.settle()
    assert world.served("m") == [({2}, {"stable": 2})] * 2


def test_what_serves_already_is_taken_over() -> None:
    """A controller without memory takes what is served for good, and takes nothing away."""
    world = World()
    world.set_policy("m", POLICIES["latest"])
    world.upload("m", 1)
    world.settle()
    world.state = type(world.state)()
    world.crash()
    world.set_policy("m", POLICIES["latest"])
    made = world.turn()
    assert "adopt m 1: it is served already" in [str(step) for step in made]
    world.settle()
    assert world.served("m") == [({1}, {"stable": 1})] * 2


def test_without_policies_a_server_is_left_alone() -> None:
    """A controller that is told of no model does not send an empty list, which would unload everything."""
    world = World()
    assert not world.plan()


def test_a_removed_policy_unloads_its_model() -> None:
    """Only its own, and also if the controller died before it could say so."""
    world = World()
    for model in ("a", "b"):
        world.set_policy(model, POLICIES["latest"])
        world.upload(model, 1)
    world.settle()
    world.set_policy("a", None)
    world.settle()
    assert world.served("a") == [(set(), {})] * 2
    world.set_policy("b", None)
    world.crash()
    world.settle()
    assert world.served("b") == [(set(), {})] * 2


def test_files_that_are_gone() -> None:
    """A version that is served but not on disk any more is fetched again before any other reload."""
    world = World()
    for model in ("a", "b"):
        world.set_policy(model, POLICIES["latest"])
        world.upload(model, 1)
    world.settle()
    del world.disk["a"]
    world.upload("b", 2)
    world.settle()
    assert world.served("a") == [({1}, {"stable": 1})] * 2
    assert world.served("b") == [({2}, {"stable": 2})] * 2


def test_a_listing_that_misses_versions() -> None:
    """What is served stays, though a listing of the store does not show it, or there is none."""
    world = World()
    world.set_policy("m", POLICIES["latest"])
    for version in (1, 2):
        world.upload("m", version)
        world.settle()
    world.store["m"] = {1}
    world.settle()
    assert world.served("m") == [({2}, {"stable": 2})] * 2
    world.store_visible = False
    assert not world.turn()
    del world.store["m"]
    world.settle()
    assert world.served("m") == [({2}, {"stable": 2})] * 2


def test_a_rollback() -> None:
    """The version before comes back before the one that is rolled back goes, and that stays away."""
    world = World()
    world.set_policy("m", POLICIES["canary"])
    for version in (1, 2, 3):
        world.upload("m", version)
        world.settle()
    world.quarantine("m", 3)
    world.settle()
    assert world.served("m") == [({2}, {"stable": 2, "canary": 2})] * 2


def test_steps_read_as_sentences() -> None:
    """A plan can be printed."""
    world = World()
    world.set_policy("m", POLICIES["canary"])
    world.upload("m", 1)
    assert str(world.turn()) == "fetch m 1"
    assert str(world.turn()) == "wait: m 1: being fetched"
    world.fetched()
    assert str(world.plan()).splitlines() == [
        "begin the rollout of m 1",
        "reload s0: begin with nothing",
        "reload s1: begin with nothing",
    ]
    world.turn()
    assert str(world.plan()).splitlines() == ["reload s0: load m 1", "reload s1: load m 1"]
    assert str(planning.Plan()) == "nothing to do"


# -- anything, in any order ---------------------------------------------------------------------------------


class Rollouts(RuleBasedStateMachine):
    """People, servers, the store and the controller do what they do, in any order; the world checks."""

    @initialize(
        policy=st.sampled_from(sorted(POLICIES)),
        servers=st.integers(1, 3),
        limit=st.sampled_from([None, None, 1, 2]),
    )
    def begin(self, policy: str, servers: int, limit: int | None) -> None:
        self.world = World(servers, Settings(max_concurrent_loads=limit, server_grace=20.0))
        self.world.set_policy("m", POLICIES[policy])
        self.world.set_policy("other", POLICIES["latest"])
        self.world.upload("other", 1)
        self.uploads = itertools.count(1)

    @rule(kind=st.sampled_from([*KINDS, "fine", "fine"]))
    def upload(self, kind: str) -> None:
        self.world.upload("m", next(self.uploads), kind)

    @rule()
    def upload_other(self) -> None:
        self.world.upload("other", max(self.world.store["other"]) + 1)

    @rule(version=st.integers(1, 6))
    def remove_from_store(self, version: int) -> None:
        self.world.store.get("m", set()).discard(version)

    @rule(policy=st.sampled_from(sorted(POLICIES)))
    def change_policy(self, policy: str) -> None:
        self.world.set_policy("m", POLICIES[policy])

    @rule()
    def roll_back(self) -> None:
        remembered = self.world.state.model("m")
        if len(remembered.good) and set(self.world.store.get("m", ())) - {max(remembered.good)}:
            self.world.quarantine("m", max(remembered.good))

    @rule(seconds=st.sampled_from([0.5, 3.0, 12.0, 40.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.now += seconds

    @rule(count=st.integers(1, 4))
    def turn(self, count: int) -> None:
        for _ in range(count):
            self.world.turn()
            self.world.fetched()

    @rule(steps=st.integers(0, 4), twice=st.booleans())
    def turn_and_die(self, steps: int, twice: bool) -> None:
        self.world.turn(steps=steps, twice=twice)

    @rule()
    def turn_twice_each(self) -> None:
        self.world.turn(twice=True)

    @rule()
    def fetches_fail(self) -> None:
        self.world.fetched(fails=True)

    @rule(which=st.integers(0, 2), steps=st.integers(1, 4))
    def serve(self, which: int, steps: int) -> None:
        server = self.pick(which)
        for _ in range(steps):
            server.poll()
            server.step()
        self.world.check()

    @rule(which=st.integers(0, 2))
    def kill(self, which: int) -> None:
        self.world.kill(self.pick(which).name)

    @rule(which=st.integers(0, 2))
    def start(self, which: int) -> None:
        self.world.start(self.pick(which).name)

    @rule(which=st.integers(0, 2))
    def cut_or_mend(self, which: int) -> None:
        server = self.pick(which)
        server.linked = not server.linked

    @rule()
    def hide_store(self) -> None:
        self.world.store_visible = not self.world.store_visible

    @precondition(lambda self: len(self.world.servers) > 0)
    @rule(rounds=st.integers(3, 12))
    def run(self, rounds: int) -> None:
        """Undisturbed for a while, so that deep states are reached."""
        for _ in range(rounds):
            self.world.turn()
            self.world.fetched()
            for server in self.world.servers.values():
                if server.alive:
                    server.poll()
                    server.step()
            self.world.now += 0.5
            self.world.check()

    def pick(self, which: int):  # type: ignore[no-untyped-def]
        return list(self.world.servers.values())[which % len(self.world.servers)]

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        world.settle()
        for model in ("m", "other"):
            wanted = expected(world, model)
            for available, labels in world.served(model):
                if wanted:
                    assert wanted <= available, f"{model}: {wanted} is wanted, {available} is there"
                    if wanted <= set(world.store.get(model, ())):
                        assert available - wanted <= world.state.model(model).good, "something is left over"
                    if "stable" in world.state.model(model).policy.labels and available:
                        assert labels.get("stable") in available
                        assert labels["stable"] == world.state.model(model).labels["stable"]


QUICKLY = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def test_anything_in_any_order() -> None:
    """Whatever people, servers, store and controller do, nothing is harmed, and it converges."""
    run_state_machine_as_test(Rollouts, settings=QUICKLY)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_anything_in_any_order_for_long() -> None:
    """The same with many more stories."""
    run_state_machine_as_test(Rollouts, settings=settings(QUICKLY, max_examples=1500))


@pytest.mark.parametrize("seed", range(40))
def test_death_after_every_step(seed: int) -> None:
    """A controller that dies after any step, again and again, leaves what the next one completes."""
    rng = random.Random(seed)
    world = World(servers=2)
    world.set_policy("m", POLICIES[rng.choice(["latest", "probed", "canary", "careful", "latest 2"])])
    for version in range(1, 5):
        world.upload("m", version, "fine" if version in (1, 4) else rng.choice(KINDS))
        for _ in range(60):
            world.turn(steps=rng.randrange(5), twice=rng.random() < 0.3)
            if rng.random() < 0.7:
                world.fetched()
            for server in world.servers.values():
                if rng.random() < 0.7:
                    server.poll()
                    server.step()
            world.check()
            world.now += 0.5
    world.settle()
    assert all(4 in available for available, _ in world.served("m"))


def _tiny(path: tuple[str, ...]) -> World:
    """One server that serves version 1 as `stable`, version 2 in the store, and then what `path` names."""
    world = World(servers=1)
    world.set_policy("m", Policy(labels=STABLE))
    world.upload("m", 1)
    world.settle()
    world.upload("m", 2, path[0])
    for event in path[1:]:
        server = world.servers["s0"]
        if event == "turn":
            world.turn()
        elif event.startswith("dies"):
            world.turn(steps=int(event[-1]))
        elif event == "fetched":
            world.fetched()
        elif event == "poll":
            server.poll()
        elif event == "step":
            server.step()
        else:
            world.kill("s0")
            world.start("s0")
        world.check()
        world.now += 0.5
    return world


@pytest.mark.parametrize("before", [(), ("turn", "fetched", "turn")], ids=["new", "begun"])
@pytest.mark.parametrize("kind", ["fine", "fails"])
def test_every_order_in_a_tiny_world(kind: str, before: tuple[str, ...]) -> None:
    """Every order of three steps, deaths and restarts does no harm, and leads to the good version."""
    events = ("turn", "dies 0", "dies 2", "fetched", "poll", "step", "restart")
    good = 2 if kind == "fine" else 1
    for order in itertools.product(events, repeat=3):
        try:
            world = _tiny((kind, *before, *order))
            world.settle()
            assert world.served("m") == [({good}, {"stable": good})]
        except AssertionError as error:
            raise AssertionError(f"{', '.join(order)}: {error}") from error
