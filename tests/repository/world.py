"""A small world for `plan`: a store, a disk, servers with the real server's traps, and a controller.

Nothing here waits or does I/O; time is a number. The servers decide by `aioserving.testing.rules`, which is
checked against recordings of the real server. A trap that is sprung is an `AssertionError` on the spot.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from aioserving.repository import plan as planning
from aioserving.repository.plan import Found, Plan, Served, ServerFound, Settings, VersionFound
from aioserving.repository.policy import Policy
from aioserving.repository.state import ModelState, Quarantine, State
from aioserving.status import State as ServerState
from aioserving.testing import rules
from aioserving.testing.rules import Phase, ServableId, Snapshot

#: Seconds for which the server goes on trying to load a version that hangs; then it fails.
HANGS = 30.0

#: How versions are: fine, cannot be loaded, answers wrongly, fails only after a long time.
KINDS = ("fine", "fails", "wrong", "hangs")


@dataclass
class Managed:
    """One version under a server's management."""

    phase: Phase = Phase.NEW
    aspired: bool = True
    #: When loading it began.
    since: float = 0.0


class SimulatedServer:
    """A model server: what it is told, what it has, and one step at a time."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        #: Whether the controller reaches it (it may be alive though it does not).
        self.linked = True
        self.start()

    def start(self) -> None:
        """A process that has never been told anything."""
        self.alive = True
        #: Whether no list has been a success yet: such a server looks at its disk for no other reason.
        self.first = True
        self.told: dict[str, Served] = {}
        self.labels: dict[str, dict[str, int]] = {}
        self.managed: dict[str, dict[int, Managed]] = {}
        self.states: dict[str, dict[int, tuple[ServerState, str | None]]] = {}
        self.queue: list[tuple[int, Mapping[str, Served]]] = []
        self.waiting_for: list[str] = []
        self.log: dict[str, dict[int, ServerState]] = {}
        self.answers: dict[int, str] = {}
        self.number = 0
        #: Reloads that waited for others, so that they may not fit any more.
        self.overtaken: set[int] = set()

    def __repr__(self) -> str:
        shown = {model: {v: item.phase.value for v, item in vs.items()} for model, vs in self.managed.items()}
        return f"<{self.name} alive={self.alive} linked={self.linked} {shown} labels={self.labels}>"

    @property
    def reachable(self) -> bool:
        return self.alive and self.linked

    def available(self, model: str) -> set[int]:
        return {v for v, (state, _) in self.states.get(model, {}).items() if state == ServerState.AVAILABLE}

    # -- reloads

    def reload(self, config: Mapping[str, Served]) -> int:
        """Queue a reload; its number tells it in `answers` once it has ended."""
        self.number += 1
        if self.queue:
            self.overtaken.add(self.number)
        self.queue.append((self.number, config))
        self.process()
        return self.number

    def process(self) -> None:
        """Let the reload at the head of the queue begin, or end."""
        while self.queue:
            number, config = self.queue[0]
            if not self.waiting_for and not self._apply(number, config):
                self.queue.pop(0)
                continue
            if not self._reached():
                return
            failed = [
                name for name in self.waiting_for if ServerState.AVAILABLE not in self.log[name].values()
            ]
            self.answers[number] = f"failed {failed}" if failed else "ok"
            if self.first and failed:
                self.told = {}
            else:
                self.first = False
            self.waiting_for = []
            self.queue.pop(0)

    def _reached(self) -> bool:
        """Whether every new model has a version that is available, or has failed."""
        ended = {ServerState.AVAILABLE, ServerState.END}
        return all(not ended.isdisjoint(self.log[name].values()) for name in self.waiting_for)

    def _apply(self, number: int, config: Mapping[str, Served]) -> bool:
        world = self.world
        for model, served in config.items():
            assert model in world.disk, f"{self.name}: a reload names the missing base path of {model}"
            for label, version in served.labels.items():
                if version not in self.available(model):
                    self.answers[number] = f"refused: label {label} on {model} {version}"
                    assert number in self.overtaken, self.answers[number]
                    return False
        new = sorted(config.keys() - self.told.keys())
        for model in new:
            assert config[model].versions & world.disk[model], (
                f"{self.name}: a reload that never comes back: {model} {config[model]} is not on disk"
            )
        for model in self.told.keys() - config.keys():
            self._aspire(model, set())
        self.told = dict(config)
        self.labels = {model: dict(served.labels) for model, served in config.items()}
        self.log = {model: {} for model in new}
        if self.first:  # everything counts that was ever said of them
            for model in new:
                self.log[model] = {v: state for v, (state, _) in self.states.get(model, {}).items()}
        self.waiting_for = new
        if new and not (self.first and self._reached()):
            self.poll()
        return True

    # -- versions

    def poll(self) -> None:
        """Look at the disk; if one base path is missing nothing changes for any model."""
        if not self.alive or any(model not in self.world.disk for model in self.told):
            return
        for model, served in self.told.items():
            self._aspire(model, set(served.versions) & self.world.disk[model])

    def _aspire(self, model: str, wanted: set[int]) -> None:
        versions = self.managed.setdefault(model, {})
        done = (Phase.NEW, Phase.DISABLED, Phase.ERROR)
        for version, item in list(versions.items()):
            if item.phase in done and not item.aspired:
                del versions[version]
        if any(not item.aspired and version in wanted for version, item in versions.items()):
            return  # wanted again while it goes: only once it is gone
        for version, item in versions.items():
            if version not in wanted:
                item.aspired = False
        for version in wanted - versions.keys():
            versions[version] = Managed()
            self._publish(model, version, ServerState.START)

    def _publish(self, model: str, version: int, state: ServerState, error: str | None = None) -> None:
        self.states.setdefault(model, {})[version] = (state, error)
        if model in self.log:
            self.log[model][version] = state

    def step(self) -> bool:
        """Go on with the load that is under way, or take the next step; one thread does it all."""
        if not self.alive:
            return False
        for model, versions in self.managed.items():
            for version, item in versions.items():
                if item.phase is Phase.LOADING:
                    return self._load(model, version, item)
        action = rules.choose(
            rules.next_action(model, [Snapshot(v, item.phase, item.aspired) for v, item in versions.items()])
            for model, versions in self.managed.items()
        )
        if action is None:
            return False
        id_: ServableId = action.id
        item = self.managed[id_.name][id_.version]
        if action.kind == "load":
            item.phase, item.since = Phase.LOADING, self.world.now
            self._publish(id_.name, id_.version, ServerState.LOADING)
        else:
            item.phase = Phase.DISABLED
            self._publish(id_.name, id_.version, ServerState.END)
            self.world.unloaded(self, id_.name, id_.version)
        self.process()
        return True

    def _load(self, model: str, version: int, item: Managed) -> bool:
        kind = self.world.kinds[model, version]
        if kind == "hangs" and item.aspired and self.world.now < item.since + HANGS:
            return False
        if not item.aspired:
            item.phase = Phase.ERROR
            self._publish(model, version, ServerState.END, "CANCELLED: Loading of servable cancelled")
        elif kind in ("fails", "hangs"):
            item.phase = Phase.ERROR
            self._publish(model, version, ServerState.END, "INVALID_ARGUMENT: bad graph")
        else:
            item.phase = Phase.READY
            self._publish(model, version, ServerState.AVAILABLE)
        self.process()
        return True


@dataclass
class Memory:
    """What a controller knows only while it lives."""

    config: dict[str, Mapping[str, Served] | None] = field(default_factory=dict)
    sending: dict[str, tuple[int, Mapping[str, Served]]] = field(default_factory=dict)
    retry_at: dict[str, float] = field(default_factory=dict)
    down_since: dict[str, float] = field(default_factory=dict)
    seen: dict[str, dict[tuple[str, int], VersionFound]] = field(default_factory=dict)
    asked: dict[tuple[str, str, int], tuple[float, Any]] = field(default_factory=dict)
    failures: dict[tuple[str, int], planning.FetchFailure] = field(default_factory=dict)
    fetching: set[tuple[str, int]] = field(default_factory=set)


class World:
    """Everything there is; `turn` is the controller."""

    def __init__(self, servers: int = 2, settings: Settings | None = None) -> None:
        self.now = 1_000_000.0
        self.settings = settings or Settings(server_grace=20.0)
        self.store: dict[str, set[int]] = {}
        self.disk: dict[str, set[int]] = {}
        self.kinds: dict[tuple[str, int], str] = {}
        self.servers = {f"s{i}": SimulatedServer(self, f"s{i}") for i in range(servers)}
        #: Versions that were promoted by a policy without a probe, or were served before there was one.
        self.unprobed: set[tuple[str, int]] = set()
        #: What is on disk of the controller's own.
        self.state = State()
        self.memory = Memory()
        self.last_plan = Plan()
        self.store_visible = True

    # -- what people do

    def upload(self, model: str, version: int, kind: str = "fine") -> None:
        self.kinds.setdefault((model, version), kind)
        self.store.setdefault(model, set()).add(version)

    def set_policy(self, model: str, policy: Policy | None) -> None:
        if policy is None:
            kept = ModelState(
                quarantine=self.state.model(model).quarantine, history=self.state.model(model).history
            )
            self.state = self.state.with_model(model, kept)
        else:
            self.state = self.state.with_model(model, replace(self.state.model(model), policy=policy))

    def quarantine(self, model: str, version: int) -> None:
        remembered = self.state.model(model)
        self.state = self.state.with_model(
            model, remembered.with_quarantine(version, Quarantine("by a person", self.now))
        )

    # -- what happens

    def unloaded(self, server: SimulatedServer, model: str, version: int) -> None:
        """A server has unloaded a version: was that right?"""
        remembered = self.state.model(model)
        if remembered.policy is None or version in remembered.quarantine:
            return
        assert server.available(model), f"{server.name}: the last version of {model}, {version}, is gone"
        if version in remembered.good | set(remembered.retired):
            trusted = remembered.good | set(remembered.retired)
            assert server.available(model) & trusted, (
                f"{server.name}: {model} {version} is gone, and only {server.available(model)} is left"
            )

    def check(self) -> None:
        """What has to hold at every moment."""
        for server in self.servers.values():
            if not server.alive:
                continue
            for model, labels in server.labels.items():
                for label, version in labels.items():
                    assert version in server.available(model), (
                        f"{server.name}: label {label} of {model} is on {version}, which is not available"
                    )
                    kind = self.kinds[model, version]
                    assert kind == "fine" or (kind == "wrong" and (model, version) in self.unprobed), (
                        f"{server.name}: label {label} of {model} is on {version}, which {kind}"
                    )

    def crash(self) -> None:
        """The controller dies; what servers were told goes on."""
        self.memory = Memory()

    def kill(self, name: str) -> None:
        self.servers[name].alive = False

    def start(self, name: str) -> None:
        if not self.servers[name].alive:
            self.servers[name].start()
            # What the controller knows of the process before it is found out to be out of date.

    def fetched(self, fails: bool = False) -> None:
        """The fetches under way end."""
        for model, version in sorted(self.memory.fetching):
            if fails or version not in self.store.get(model, ()):
                self.memory.failures[model, version] = planning.FetchFailure("broke off", self.now + 5)
            else:
                self.disk.setdefault(model, set()).add(version)
        self.memory.fetching.clear()

    # -- the controller

    def found(self) -> Found:
        """Look at everything."""
        memory = self.memory
        servers = {}
        for name, server in self.servers.items():
            if not server.reachable:
                memory.down_since.setdefault(name, self.now)
                if not server.alive:
                    memory.sending.pop(name, None)
                    memory.config[name] = None
                servers[name] = ServerFound(
                    reachable=False,
                    since=memory.down_since[name],
                    config=memory.config.get(name),
                    sending=memory.sending[name][1] if name in memory.sending else None,
                )
                continue
            memory.down_since.pop(name, None)
            self._answers(name, server)
            servers[name] = self._server(name, server)
        return Found(
            now=self.now,
            state=self.state,
            store={model: set(vs) for model, vs in self.store.items()} if self.store_visible else {},
            disk={model: set(vs) for model, vs in self.disk.items()},
            servers=servers,
            fetching=set(memory.fetching),
            fetch_failures=dict(memory.failures),
        )

    def _answers(self, name: str, server: SimulatedServer) -> None:
        memory = self.memory
        if name not in memory.sending:
            return
        number, config = memory.sending[name]
        answer = server.answers.get(number)
        if answer is None:
            if server.number < number:  # another process: it never heard of it
                del memory.sending[name]
                memory.config[name] = None
            return
        del memory.sending[name]
        memory.config[name] = None if answer.startswith("refused") else config
        if answer.startswith("refused"):
            memory.retry_at[name] = self.now + 2

    def _server(self, name: str, server: SimulatedServer) -> ServerFound:
        memory = self.memory
        before = memory.seen.get(name, {})
        seen: dict[tuple[str, int], VersionFound] = {}
        for model, versions in server.states.items():
            for version, (state, error) in versions.items():
                asked = memory.asked.get((name, model, version))
                if asked is not None:
                    if asked[1] == (state, error) and self.now < asked[0] + 2.5:
                        state, error = ServerState.START, None  # noqa: PLW2901 - from before it was asked for
                    else:
                        del memory.asked[name, model, version]
                old = before.get((model, version))
                since = (
                    old.since if old is not None and (old.state, old.error) == (state, error) else self.now
                )
                seen[model, version] = VersionFound(state, error, since)
        if before.keys() - seen.keys():  # it has forgotten: another process
            memory.config[name] = None
            memory.sending.pop(name, None)
        memory.seen[name] = seen
        grouped: dict[str, dict[int, VersionFound]] = {}
        for (model, version), item in seen.items():
            grouped.setdefault(model, {})[version] = item
        return ServerFound(
            config=memory.config.get(name),
            sending=memory.sending[name][1] if name in memory.sending else None,
            retry_at=memory.retry_at.get(name, 0.0),
            versions=grouped,
        )

    def plan(self) -> Plan:
        return planning.plan(self.settings, self.found())

    def turn(self, *, steps: int | None = None, twice: bool = False) -> Plan:
        """One turn; with `steps` the controller dies after so many, with `twice` each is done twice."""
        made = self.last_plan = self.plan()
        decisions = [step for step in made if isinstance(step, planning.DECISIONS)]
        if decisions:
            if steps == 0:
                self.crash()
                return made
            for step in decisions * (2 if twice else 1):
                self.state = planning.decide(self.state, step, self.now)
            assert self.state == made.state
            for step in decisions:
                policy = self.state.model(step.model).policy
                assert policy is not None
                if isinstance(step, planning.Adopt) or (
                    isinstance(step, (planning.Promote, planning.SetLabel)) and policy.probe is None
                ):
                    self.unprobed.add((step.model, step.version or 0))
        actions = [step for step in made.actions if not isinstance(step, planning.DECISIONS)]
        for done, step in enumerate(actions):
            if steps is not None and done >= steps - 1:
                self.crash()
                return made
            for _ in range(2 if twice else 1):
                self.act(step)
        self.check()
        return made

    def act(self, step: planning.Step) -> None:
        memory = self.memory
        if isinstance(step, planning.Fetch):
            assert step.version in self.store[step.model]
            memory.fetching.add((step.model, step.version))
        elif isinstance(step, planning.Reload):
            self._reload(step)
        elif isinstance(step, planning.Probe):
            remembered = self.state.model(step.model)
            candidate = remembered.candidates[step.version]
            assert step.version in self.servers[step.server].available(step.model)
            if self.kinds[step.model, step.version] == "wrong":
                candidate = replace(
                    candidate, problem=f"answers wrongly on {step.server}", probed_at=self.now
                )
            else:
                passed = {**candidate.passed, step.server: candidate.passed.get(step.server, 0) + 1}
                candidate = replace(candidate, passed=passed, probed_at=self.now)
            self.state = self.state.with_model(step.model, remembered.with_candidate(step.version, candidate))
        elif isinstance(step, planning.Delete):
            for server in self.servers.values():
                if server.alive:
                    told = server.told.get(step.model)
                    assert told is None or step.version not in told.versions, f"{step}: {server} was told it"
                    assert step.version not in server.available(step.model), f"{step}: {server} has it"
            self.disk[step.model].discard(step.version)
            self.state = planning.decide(self.state, step, self.now)

    def _reload(self, step: planning.Reload) -> None:
        server = self.servers[step.server]
        for model, served in step.config.items():
            remembered = self.state.model(model)
            back = served.versions & remembered.quarantine.keys() - server.available(model)
            assert not back, f"{step}: {back} comes back from quarantine"
            for version in served.versions - server.available(model):
                if server.states.get(model, {}).get(version, (None,))[0] == ServerState.END:
                    self.memory.asked[step.server, model, version] = (
                        self.now,
                        server.states[model][version],
                    )
        number = server.reload(step.config)
        self.memory.sending[step.server] = (number, step.config)
        if step.loads:
            self.check_loads({model for model, _ in step.loads})

    def check_loads(self, models: set[str]) -> None:
        """No more loads than are allowed, over the servers that answer, after one of these began one."""
        loading: dict[str, int] = {}
        for server in self.servers.values():
            if not server.reachable or (
                self.memory.config.get(server.name) is None and server.name not in self.memory.sending
            ):
                continue
            for model, served in server.told.items():
                for version in served.versions:
                    state, error = server.states.get(model, {}).get(version, (ServerState.START, None))
                    if state != ServerState.AVAILABLE and error is None:
                        loading[model] = loading.get(model, 0) + 1
        limit = self.settings.max_concurrent_loads
        if limit is not None:
            assert sum(loading.values()) <= limit, f"{loading} are loading at once"
        for model, count in loading.items():
            if model not in models:
                continue
            policy = self.state.model(model).policy
            if policy is not None and policy.max_concurrent_loads is not None:
                assert count <= policy.max_concurrent_loads, f"{loading} are loading at once"

    # -- until nothing is left to do

    def settle(self, rounds: int = 400) -> None:
        """All servers are up and linked; go on until there is nothing to do or wait for."""
        for name, server in self.servers.items():
            server.linked = True
            self.start(name)
        self.store_visible = True
        made = Plan()
        for _ in range(rounds):
            made = self.turn()
            self.fetched()
            moved = False
            for server in self.servers.values():
                server.poll()
                moved = server.step() or moved
            self.check()
            self.now += 0.5
            if not made and not moved:
                assert not self.plan(), "planning twice gives something to do"
                return
            if not made.actions and not moved and made.waits:
                until = [wait.until for wait in made.waits if wait.until is not None]
                self.now = max(self.now, min(until, default=self.now))
        raise AssertionError(f"it does not converge: {made}\n{self.servers}\n{self.state}")

    def served(self, model: str) -> list[tuple[set[int], dict[str, int]]]:
        """What every server has available, and its labels."""
        return [(server.available(model), server.labels.get(model, {})) for server in self.servers.values()]


def versions_of(world: World, model: str, kinds: Iterable[str], probed: bool) -> Collection[int]:
    """The versions in the store that can be served in the end."""
    del kinds
    return {
        version
        for version in world.store.get(model, ())
        if version not in world.state.model(model).quarantine
        and world.kinds[model, version] in (("fine",) if probed else ("fine", "wrong"))
    }
