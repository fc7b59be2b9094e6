"""What to do next: a pure function of what is wanted and what is found.

    plan(settings, found) -> Plan           steps to take now, in order
    decide(state, step, now) -> State       what a step changes in what is remembered

The way of a version:

    fetch, begin, reload, wait, probe, (canary label, probe again,) promote, set label, unload, delete

and when it fails to load, or to answer rightly: quarantine, and everything goes back.

What is decided is remembered first (`State`); what each server is told follows from what is remembered.
So a controller that dies anywhere leaves something that the next one goes on from: it plans again.

What a reload is made of keeps clear of the real server's traps:

- A reload replaces the whole list. So each names all models, with all their versions, one by one.
- A base path that is missing, or has no such version, blocks a server's reloads for good. So only versions
  that are on disk are named, and a model only with one of them.
- Labels are checked before anything is loaded. So they only name what is available at that server, and a
  version that a label leaves is unloaded by a later reload, not by the one that moves the label.
- What a server was told before cannot be asked for. So the first reload by a new controller, or after a
  restart of the server, takes away nothing that is available.
- A server whose very first list has a model that fails to load never looks at its disk again, and refuses
  every later list with that model. So a server that has nothing is given an empty list first.
- The last available version of a model is not taken away but for a better one, or a person's decision.

This module knows no store, no disk and no network; the controller looks and acts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from aioserving.repository.policy import Policy
from aioserving.repository.state import Candidate, ModelState, Quarantine, State
from aioserving.status import State as ServerState

__all__ = [
    "Adopt",
    "Begin",
    "Delete",
    "Fetch",
    "FetchFailure",
    "Found",
    "Plan",
    "Probe",
    "Promote",
    "Quarantined",
    "Reload",
    "Served",
    "ServerFound",
    "SetLabel",
    "Settings",
    "Step",
    "Unload",
    "VersionFound",
    "Wait",
    "decide",
    "plan",
]

#: Seconds after which a version that failed on one server, though it is good elsewhere, is tried there again.
RELOAD_AFTER: Final = 30.0

#: Passes over a model's decisions; one may make way for another.
_PASSES: Final = 6


# -- what is found ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Served:
    """What a server is told of one model: these versions, with these labels."""

    versions: frozenset[int]
    labels: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        labels = "".join(f", {name} on {version}" for name, version in sorted(self.labels.items()))
        return " ".join(map(str, sorted(self.versions))) + labels


#: Everything that a server is told, by model.
ServerConfig: TypeAlias = "Mapping[str, Served]"


@dataclass(frozen=True, slots=True)
class VersionFound:
    """What a server says of one version."""

    state: ServerState
    #: Why loading it failed, or None.
    error: str | None = None
    #: Since when it says so, in seconds since 1970.
    since: float = 0.0

    @property
    def available(self) -> bool:
        """Whether it can serve."""
        return self.state == ServerState.AVAILABLE

    @property
    def failed(self) -> bool:
        """Whether loading it failed, and not only because it was withdrawn meanwhile."""
        return self.error is not None and not self.error.startswith("CANCELLED")


@dataclass(frozen=True, slots=True)
class ServerFound:
    """One server."""

    #: Whether it answers.
    reachable: bool = True
    #: Since when it does not, in seconds since 1970.
    since: float = 0.0
    #: What it was told last, and has accepted; None: not known.
    config: ServerConfig | None = None
    #: What it is being told right now; None: nothing.
    sending: ServerConfig | None = None
    #: When it may be told something again, after it refused; in seconds since 1970.
    retry_at: float = 0.0
    #: What it says of its versions, by model and version.
    versions: Mapping[str, Mapping[int, VersionFound]] = field(default_factory=dict)

    def available(self, model: str) -> frozenset[int]:
        """The versions of a model that can serve, but for those on their way out.

        A version that a reload has left out may take a while to go, and is loaded anew if it is named
        again meanwhile: nothing may rest on it.
        """
        available = (version for version, found in self.versions.get(model, {}).items() if found.available)
        if self.config is None:
            return frozenset(available)
        told = self.config.get(model)
        return told.versions.intersection(available) if told is not None else frozenset()


@dataclass(frozen=True, slots=True)
class FetchFailure:
    """A version that could not be fetched."""

    reason: str
    #: When it may be tried again, in seconds since 1970.
    retry_at: float


@dataclass(frozen=True, slots=True)
class Found:
    """Everything that a plan depends on."""

    #: Seconds since 1970.
    now: float
    state: State
    #: Versions in the store by model; a model that is missing could not be looked at.
    store: Mapping[str, Collection[int]] = field(default_factory=dict)
    #: Complete versions on disk by model.
    disk: Mapping[str, Collection[int]] = field(default_factory=dict)
    servers: Mapping[str, ServerFound] = field(default_factory=dict)
    #: Versions whose fetch is under way.
    fetching: Collection[tuple[str, int]] = ()
    #: Versions that could not be fetched.
    fetch_failures: Mapping[tuple[str, int], FetchFailure] = field(default_factory=dict)
    #: Probes that are under way, as model, version and server.
    probing: Collection[tuple[str, int, str]] = ()
    #: Versions that are being deleted.
    deleting: Collection[tuple[str, int]] = ()


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for all models."""

    #: Versions that may be loading on all servers together; None: no limit.
    max_concurrent_loads: int | None = None
    #: Seconds for which rollouts wait for a server that does not answer.
    server_grace: float = 30.0


# -- steps --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fetch:
    """Bring a version from the store to the disk."""

    model: str
    version: int

    def __str__(self) -> str:
        return f"fetch {self.model} {self.version}"


@dataclass(frozen=True, slots=True)
class Adopt:
    """Take a version for good, because it is served and nothing is remembered of the model."""

    model: str
    version: int

    def __str__(self) -> str:
        return f"adopt {self.model} {self.version}: it is served already"


@dataclass(frozen=True, slots=True)
class Begin:
    """Begin the rollout of a version that is on disk."""

    model: str
    version: int

    def __str__(self) -> str:
        return f"begin the rollout of {self.model} {self.version}"


@dataclass(frozen=True, slots=True)
class Reload:
    """Tell a server everything that it is to serve."""

    server: str
    config: ServerConfig
    #: What is new in it: versions to load, as model and version.
    loads: tuple[tuple[str, int], ...] = ()
    #: Versions that it leaves out.
    unloads: tuple[tuple[str, int], ...] = ()
    #: Labels that it moves: model, label, version (None: taken away).
    labels: tuple[tuple[str, str, int | None], ...] = ()

    def __str__(self) -> str:
        parts = [f"load {model} {version}" for model, version in self.loads]
        parts += [f"unload {model} {version}" for model, version in self.unloads]
        parts += [
            f"{model}: {label} to {version}" if version is not None else f"{model}: no {label}"
            for model, label, version in self.labels
        ]
        if not self.config:
            parts += ["begin with nothing"] * (not parts)
        return f"reload {self.server}: {', '.join(parts) or 'make sure that it has what it was told'}"


@dataclass(frozen=True, slots=True)
class Wait:
    """There is something to wait for."""

    reason: str
    model: str | None = None
    version: int | None = None
    server: str | None = None
    #: When to look again, if nothing happens before; in seconds since 1970; None: when something happens.
    until: float | None = None

    def __str__(self) -> str:
        about = " ".join(
            part
            for part in (
                self.model,
                str(self.version) if self.version is not None else None,
                f"on {self.server}" if self.server is not None else None,
            )
            if part
        )
        return f"wait: {f'{about}: ' if about else ''}{self.reason}"


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask a server for an answer of a version."""

    model: str
    version: int
    server: str

    def __str__(self) -> str:
        return f"probe {self.model} {self.version} on {self.server}"


@dataclass(frozen=True, slots=True)
class SetLabel:
    """Decide where a label is to be; None: nowhere. The reloads that follow take it there."""

    model: str
    label: str
    version: int | None

    def __str__(self) -> str:
        place = f"to version {self.version}" if self.version is not None else "away"
        return f"label {self.label} of {self.model} {place}"


@dataclass(frozen=True, slots=True)
class Promote:
    """A version has proved itself."""

    model: str
    version: int

    def __str__(self) -> str:
        return f"promote {self.model} {self.version}"


@dataclass(frozen=True, slots=True)
class Unload:
    """A version is served no more, as nothing is on it and another one does its work."""

    model: str
    version: int
    reason: str

    def __str__(self) -> str:
        return f"unload {self.model} {self.version}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A version failed, and must not be served until a person says otherwise."""

    model: str
    version: int
    reason: str

    def __str__(self) -> str:
        return f"quarantine {self.model} {self.version}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a version from disk."""

    model: str
    version: int

    def __str__(self) -> str:
        return f"delete {self.model} {self.version} from disk"


#: Steps that only change what is remembered.
Decision: TypeAlias = "Adopt | Begin | SetLabel | Promote | Unload | Quarantined"
Step: TypeAlias = "Fetch | Reload | Wait | Probe | Delete | Decision"

DECISIONS: Final = (Adopt, Begin, SetLabel, Promote, Unload, Quarantined)


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps to take now, in order; false if there is nothing to do or to wait for. `print` it."""

    steps: tuple[Step, ...] = ()
    #: What is remembered once its decisions are made.
    state: State = field(default_factory=State, repr=False)

    @property
    def actions(self) -> tuple[Step, ...]:
        """Its steps but for those that only wait."""
        return tuple(step for step in self.steps if not isinstance(step, Wait))

    @property
    def waits(self) -> tuple[Wait, ...]:
        """What it waits for."""
        return tuple(step for step in self.steps if isinstance(step, Wait))

    def __bool__(self) -> bool:
        return bool(self.steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __str__(self) -> str:
        return "\n".join(map(str, self.steps)) or "nothing to do"


# -- decisions ----------------------------------------------------------------------------------------------


def decide(state: State, step: Step, now: float) -> State:
    """What is remembered after a step; doing it twice changes nothing more.

    Args:
        state: what is remembered before.
        step: a step; one that decides nothing changes nothing, but that a deleted version is forgotten.
        now: seconds since 1970.
    """
    if isinstance(step, (Fetch, Reload, Wait, Probe)):
        return state
    model = state.model(step.model)
    if isinstance(step, SetLabel):
        if model.labels.get(step.label) == step.version:
            return state
        model = model.with_label(step.label, step.version, now)
        canary = model.policy.canary if model.policy is not None else None
        candidate = model.candidates.get(step.version) if step.version is not None else None
        if candidate is not None and canary is not None and canary[0] == step.label:
            assert step.version is not None  # it has a candidate
            model = model.with_candidate(
                step.version, replace(candidate, canary_since=now, canary_from=candidate.successes)
            )
        return state.with_model(step.model, model)
    version = step.version
    if isinstance(step, (Adopt, Promote)):
        model = replace(
            model.with_candidate(version, None),
            good=model.good | {version},
            retired=_without(model.retired, version),
            urgent=model.urgent - {version},
        )
    elif isinstance(step, Begin):
        if version not in model.candidates:
            model = model.with_candidate(version, Candidate(now))
            model = replace(model, retired=_without(model.retired, version))
    elif isinstance(step, Unload):
        if version in model.good:
            retired = (*_without(model.retired, version), version)
        elif version in model.candidates:  # it was never good: the first to be deleted
            retired = (version, *_without(model.retired, version))
        else:
            retired = model.retired
        model = replace(model.with_candidate(version, None), good=model.good - {version}, retired=retired)
    elif isinstance(step, Quarantined):
        if version not in model.quarantine:
            model = model.with_quarantine(version, Quarantine(step.reason, now))
        model = replace(model.with_candidate(version, None), urgent=model.urgent - {version})
    else:
        model = replace(model, retired=_without(model.retired, version))
    return state.with_model(step.model, model)


def _without(versions: tuple[int, ...], version: int) -> tuple[int, ...]:
    return tuple(item for item in versions if item != version)


class _Model:
    """One model in the light of everything that was found; decides what is next for it."""

    def __init__(
        self, name: str, policy: Policy, found: Found, settings: Settings, up: Mapping[str, ServerFound]
    ) -> None:
        self.name = name
        self.policy = policy
        self.found = found
        self.up = up
        self.now = found.now
        #: Servers that rollouts wait for, though they do not answer.
        self.missed = sorted(
            server
            for server, one in found.servers.items()
            if not one.reachable and found.now < one.since + settings.server_grace
        )
        self.grace = settings.server_grace
        self.on_disk = frozenset(found.disk.get(name, ()))
        self.in_store = frozenset(found.store.get(name, ()))
        self.available = {server: one.available(name) for server, one in up.items()}
        #: Versions that are available on every server that answers.
        self.everywhere: frozenset[int] = (
            frozenset.intersection(*self.available.values()) if self.available else frozenset()
        )

    def target(self, state: ModelState) -> frozenset[int]:
        """The versions that are to be served in the end."""
        fixed = {label.version for label in self.policy.labels.values() if label.version is not None}
        named = fixed | {self.policy.pinned} | getattr(self.policy.versions, "versions", frozenset())
        known = self.in_store | state.good | (self.on_disk & (named | state.candidates.keys()))
        known = known - state.quarantine.keys()
        target = self.policy.select(known)
        running = [
            version
            for version, candidate in state.candidates.items()
            if candidate.canary_since is not None and version in known
        ]
        if running and self.policy.pinned is None and not target.intersection(running):
            # A canary is seen through, or versions that come faster than canaries take were never promoted.
            newest = max(running)
            return frozenset(version for version in target if version < newest or version in state.good) | {
                newest
            }
        return target

    def failure(self, version: int) -> str:
        """Why a version cannot be served, as far as a server has said; empty if none has."""
        for server, one in self.up.items():
            found = one.versions.get(self.name, {}).get(version)
            told = (one.config or {}).get(self.name)
            if found is None or told is None or version not in told.versions:
                continue  # what it says of it is from an earlier time
            if found.failed:
                return f"failed to load on {server}: {found.error}"
            if found.state == ServerState.LOADING and self.now - found.since >= self.policy.load_timeout:
                return f"was still loading on {server} after {self.policy.load_timeout:g} s"
        return ""

    def decisions(self, state: ModelState) -> Iterator[Decision]:
        """What can be decided now."""
        target = self.target(state)
        allowed = self.policy.allows(self.now)
        if not state.good and not state.candidates:
            served = frozenset().union(*self.available.values()) if self.available else frozenset[int]()
            for version in sorted(served & (target | self.on_disk) - state.quarantine.keys()):
                yield Adopt(self.name, version)
                target -= {version}
        for version in sorted(target & self.on_disk - state.good - state.candidates.keys()):
            if (allowed or version in state.urgent) and not self.going(version):
                yield Begin(self.name, version)
        for version, candidate in sorted(state.candidates.items()):
            if version in state.quarantine:
                continue
            reason = candidate.problem or self.failure(version)
            if reason:
                yield Quarantined(self.name, version, reason)
            elif version not in target:
                if state.good:  # else it may be all that there is
                    yield Unload(self.name, version, "another version is wanted before it was promoted")
            elif self.proved(state, version) and (allowed or version in state.urgent) and not self.missed:
                yield Promote(self.name, version)
        yield from self.label_moves(state, target)
        if target and target <= state.good and not self.missed:
            for version in sorted(state.good - target):
                if self.replaced(state, version, target):
                    yield Unload(self.name, version, "its successors serve")

    def going(self, version: int) -> str:
        """What still has to go of a version before it can be rolled out anew; empty if nothing has."""
        if (self.name, version) in self.found.deleting:
            return "being deleted"
        for server, one in self.up.items():
            found = one.versions.get(self.name, {}).get(version)
            told = (one.config or {}).get(self.name)
            if told is not None and version in told.versions:
                continue
            # A version that was withdrawn before it began to load says START for ever.
            if found is not None and found.state not in (ServerState.START, ServerState.END):
                return f"still being unloaded on {server}"
        return ""

    # -- candidates

    def probed(self, candidate: Candidate) -> bool:
        """Whether it has answered on every server."""
        return self.policy.probe is None or all(candidate.passed.get(server) for server in self.up)

    def ready(self, version: int, candidate: Candidate) -> bool:
        """Whether it can serve everywhere, and answers rightly."""
        return version in self.everywhere and self.probed(candidate) and not candidate.problem

    def on_trial(self, state: ModelState, version: int) -> bool:
        """Whether it has to be a canary before it is promoted: where there is something to protect."""
        return self.policy.canary is not None and bool(state.good) and version > max(state.good)

    def trial_over(self, candidate: Candidate) -> bool:
        """Whether it has been a canary for long enough."""
        canary = self.policy.canary
        if canary is None:
            return True
        if candidate.canary_since is None:
            return False
        rule = canary[1]
        return (rule.seconds is None or self.now >= candidate.canary_since + rule.seconds) and (
            rule.probes is None or candidate.successes - candidate.canary_from >= rule.probes
        )

    def proved(self, state: ModelState, version: int) -> bool:
        """Whether a candidate can be promoted."""
        candidate = state.candidates[version]
        if not self.ready(version, candidate):
            return False
        return not self.on_trial(state, version) or self.trial_over(candidate)

    def probes(self, state: ModelState) -> Iterator[Probe | Wait]:
        """The probes that are due."""
        probe = self.policy.probe
        if probe is None:
            return
        for version, candidate in sorted(state.candidates.items()):
            if version not in self.everywhere or candidate.problem:
                continue
            if not self.probed(candidate):
                due = [server for server in self.up if not candidate.passed.get(server)]
            elif candidate.canary_since is not None and not self.trial_over(candidate):
                at = candidate.probed_at + probe.interval
                if self.now < at:
                    yield Wait("the next probe is not due yet", self.name, version, until=at)
                    continue
                due = list(self.up)
            else:
                continue
            for server in due:
                if (self.name, version, server) in self.found.probing:
                    yield Wait("being probed", self.name, version, server)
                else:
                    yield Probe(self.name, version, server)

    # -- labels

    def label_places(self, state: ModelState, target: frozenset[int]) -> dict[str, int | None]:
        """Where each label belongs now; None: nowhere, as far as can be told."""
        promoted = max(target & state.good, default=None)
        if promoted is None:
            promoted = max(state.good - state.quarantine.keys(), default=None)
        trials = {
            version: candidate.canary_since is not None
            for version, candidate in state.candidates.items()
            if version in target
            and version not in state.quarantine
            and self.on_trial(state, version)
            and (candidate.canary_since is not None or self.ready(version, candidate))
            and not candidate.problem
        }
        # One after the other, the lowest first; each is seen through.
        trial = min(trials, key=lambda version: (not trials[version], version), default=None)
        places: dict[str, int | None] = {}
        for name, label in self.policy.labels.items():
            if label.version is not None:
                places[name] = label.version if label.version in state.good else None
            elif label.is_canary and trial is not None:
                places[name] = trial
            else:
                places[name] = promoted
        return places

    def label_moves(self, state: ModelState, target: frozenset[int]) -> Iterator[SetLabel]:
        """The labels that can move now: their versions are available on every server that answers."""
        places = self.label_places(state, target)
        for label in sorted(state.labels.keys() - places.keys()):
            yield SetLabel(self.name, label, None)
        for label, version in places.items():
            current = state.labels.get(label)
            if version is None or version == current or version not in self.everywhere:
                continue
            onward = version in state.candidates or (current is not None and version > current)
            if self.missed and onward:
                continue  # going back does not wait for anybody
            if version in state.candidates and not (self.policy.allows(self.now) or version in state.urgent):
                continue
            yield SetLabel(self.name, label, version)

    def replaced(self, state: ModelState, version: int, target: frozenset[int]) -> bool:
        """Whether nobody needs a version any more: no label is on it, and others serve, everywhere."""
        if version in state.labels.values() or not self.up:
            return False
        for server, one in self.up.items():
            if one.config is None or one.sending is not None:
                return False
            served = one.config.get(self.name)
            if served is not None and version in served.labels.values():
                return False
            if not self.available[server] & target & state.good:
                return False
        return True

    # -- actions

    def fetches(self, state: ModelState) -> Iterator[Fetch | Wait]:
        """Versions that are missing on disk."""
        allowed = self.policy.allows(self.now)
        target = self.target(state)
        for version in sorted((target | state.good) - self.on_disk):
            if version in state.quarantine:
                continue
            if (self.name, version) in self.found.fetching:
                yield Wait("being fetched", self.name, version)
                continue
            failure = self.found.fetch_failures.get((self.name, version))
            if version not in self.in_store:
                if version in state.good:
                    yield Wait("is not on disk, and not in the store either", self.name, version)
            elif failure is not None and self.now < failure.retry_at:
                yield Wait(
                    f"could not be fetched: {failure.reason}", self.name, version, until=failure.retry_at
                )
            elif (self.name, version) in self.found.deleting:
                yield Wait("being deleted", self.name, version)
            elif version in state.good or version in state.urgent or allowed:
                yield Fetch(self.name, version)
            else:
                yield self.outside(version, "fetched")

    def outside(self, version: int, what: str) -> Wait:
        """Wait for the allowed hours."""
        until = self.policy.hours.next_open(self.now) if self.policy.hours is not None else self.now
        return Wait(
            f"is not {what} outside the allowed hours",
            self.name,
            version,
            until=until if math.isfinite(until) else None,
        )

    def deletions(self, state: ModelState) -> Iterator[Delete | Wait]:
        """Versions on disk that nobody needs, nor has."""
        sound = [version for version in state.retired if version not in state.quarantine]
        kept = set(sound[max(0, len(sound) - self.policy.keep) :])
        useless = (set(state.retired) - kept) | state.quarantine.keys()
        needed = self.target(state) | state.good | state.candidates.keys() | set(state.labels.values())
        for version in sorted(useless & self.on_disk - needed):
            if (self.name, version) in self.found.fetching:
                continue
            if (self.name, version) in self.found.deleting:
                yield Wait("being deleted", self.name, version)
            elif all(_done_with(one, self.name, version) for one in self.found.servers.values()):
                yield Delete(self.name, version)

    def waits(self, state: ModelState) -> Iterator[Wait]:
        """What candidates, and good versions that are missing somewhere, wait for."""
        target = self.target(state)
        allowed = self.policy.allows(self.now)
        for version in sorted(target & self.on_disk - state.good - state.candidates.keys()):
            if not (allowed or version in state.urgent):
                yield self.outside(version, "rolled out")
            elif going := self.going(version):
                yield Wait(going, self.name, version)
        for version in sorted(state.good | state.candidates.keys()):
            for server, one in self.up.items():
                if version in self.available[server] or version in state.quarantine:
                    continue
                found = one.versions.get(self.name, {}).get(version)
                if _given_up(found, self.now) and version in state.good:
                    assert found is not None  # it says that it failed
                    reason, again = f"failed to load there: {found.error}", found.since + RELOAD_AFTER
                    yield Wait(reason, self.name, version, server, again)
                    continue
                served = (one.config or {}).get(self.name)
                if served is None or version not in served.versions:
                    continue
                until = None
                if found is not None and found.state == ServerState.LOADING:
                    until = found.since + self.policy.load_timeout
                what = found.state.name if found is not None else "not found by the server yet"
                yield Wait(f"not available yet, {what}", self.name, version, server, until)
        for version, candidate in sorted(state.candidates.items()):
            if not self.up:
                yield Wait("no server answers", self.name, version)
            elif self.missed and version in self.everywhere:
                until = max(self.found.servers[server].since for server in self.missed) + self.grace
                yield Wait(f"no answer from {', '.join(self.missed)}", self.name, version, until=until)
            elif candidate.canary_since is not None and not self.trial_over(candidate):
                canary = self.policy.canary
                assert canary is not None  # or the trial were over
                until = None if canary[1].seconds is None else candidate.canary_since + canary[1].seconds
                if until is not None and until > self.now:
                    yield Wait(f"on trial as {canary[0]}", self.name, version, until=until)
            elif version in self.everywhere and not (allowed or version in state.urgent):
                yield self.outside(version, "promoted")


def _done_with(server: ServerFound, model: str, version: int) -> bool:
    """Whether a server certainly does not have a version, and will not get it."""
    if not server.reachable or server.config is None or server.sending is not None:
        return False
    served = server.config.get(model)
    if served is not None and version in served.versions:
        return False
    found = server.versions.get(model, {}).get(version)
    return found is None or found.state in (ServerState.START, ServerState.END)


# -- reloads ------------------------------------------------------------------------------------------------


def _wanted_on(model: _Model, state: ModelState, server: str) -> tuple[set[int], frozenset[int]]:
    """The versions of a model that a server is to have, and those among them that it must not lose."""
    one = model.up[server]
    available = model.available[server] & model.on_disk
    found = one.versions.get(model.name, {})
    told = (one.config or {}).get(model.name)
    wanted = {
        version
        for version in (state.good | state.candidates.keys()) & model.on_disk
        if version in available | state.candidates.keys() or not _given_up(found.get(version), model.now)
    }
    wanted -= {version for version in state.quarantine if version not in available}
    wanted -= {version for version in state.quarantine if version not in state.good}
    keep: frozenset[int] = frozenset()
    if one.config is None:
        keep = available
    elif told is not None:
        keep = available.intersection(told.labels.values())
    if not wanted & available & state.good:
        keep |= available - state.quarantine.keys()
    return wanted | keep, keep


def _good_comes_first(model: _Model, state: ModelState, server: str, wanted: Collection[int]) -> bool:
    """Whether a server has no promoted version of a model yet, and one is on its way there."""
    good = state.good.intersection(wanted)
    if good & model.available[server]:
        return False
    versions = model.up[server].versions.get(model.name, {})
    return any(
        found is None
        or found.state != ServerState.LOADING
        or model.now < found.since + model.policy.load_timeout
        for found in map(versions.get, good)
    )


def _given_up(found: VersionFound | None, now: float) -> bool:
    """Whether a version failed there a short while ago; a good one is tried again after it."""
    return found is not None and found.failed and now < found.since + RELOAD_AFTER


def _labels_on(model: _Model, state: ModelState, server: str, versions: Collection[int]) -> dict[str, int]:
    """Where the labels of a model can be on one server, with these versions in its list."""
    one = model.up[server]
    possible = model.available[server].intersection(versions)
    told = (one.config or {}).get(model.name)
    labels = {}
    for label, version in sorted(state.labels.items()):
        places: Iterable[int | None] = (version, told.labels.get(label) if told is not None else None)
        if one.config is None:
            places = (version, *state.earlier_places(label))
        for place in places:
            if place in possible:
                assert place is not None  # None is no version
                labels[label] = place
                break
    return labels


def _loading(server: ServerFound) -> set[tuple[str, int]]:
    """The versions that a server is loading, or has been told to load."""
    # START may be left over from a version that was withdrawn; but not where another may have told it.
    begun = {ServerState.LOADING} | ({ServerState.START} if server.config is None else set())
    found = {
        (model, version)
        for model, versions in server.versions.items()
        for version, item in versions.items()
        if item.state in begun
    }
    for config in (server.config, server.sending):
        for model, served in (config or {}).items():
            states = server.versions.get(model, {})
            for version in served.versions:
                item = states.get(version)
                if item is None or not (item.available or item.failed):
                    found.add((model, version))
    return found


class _Loads:
    """How many more loads may begin."""

    def __init__(
        self, settings: Settings, policies: Mapping[str, Policy], up: Mapping[str, ServerFound]
    ) -> None:
        self._limits = {name: policy.max_concurrent_loads for name, policy in policies.items()}
        self._limit = settings.max_concurrent_loads
        self._all = 0
        self._of: dict[str, int] = {}
        for server in up.values():
            for model, _ in _loading(server):
                self._count(model)

    def _count(self, model: str) -> None:
        self._all += 1
        self._of[model] = self._of.get(model, 0) + 1

    def begin(self, model: str) -> bool:
        """Whether one more of this model may begin; it counts then."""
        limit = self._limits.get(model)
        if self._limit is not None and self._all >= self._limit:
            return False
        if limit is not None and self._of.get(model, 0) >= limit:
            return False
        self._count(model)
        return True


def _reloads(
    models: Mapping[str, _Model], state: State, settings: Settings, up: Mapping[str, ServerFound]
) -> Iterator[Step]:
    now = next(iter(models.values())).now if models else 0.0
    loads = _Loads(settings, {name: model.policy for name, model in models.items()}, up)
    for server, one in sorted(up.items()):
        if one.sending is not None:
            yield Wait("a reload is under way", server=server)
            continue
        if one.config is None and not _has_anything(one):
            if now < one.retry_at:
                yield Wait("the last reload failed", server=server, until=one.retry_at)
            elif any(_wanted_on(model, state.model(name), server)[0] for name, model in models.items()):
                yield Reload(server, {})
            continue
        config: dict[str, Served] = {}
        new: list[tuple[bool, str, int]] = []
        later: set[str] = set()
        held = ""
        loading: dict[str, set[int]] = {}
        for name, version in _loading(one):
            loading.setdefault(name, set()).add(version)
        for name, model in models.items():
            remembered = state.model(name)
            versions, _ = _wanted_on(model, remembered, server)
            serving = model.available[server] - remembered.quarantine.keys()
            if serving and not versions:
                held = f"{name} {max(serving)} is served there, but is not on disk"
            told = (one.config or {}).get(name)
            known = told.versions if told is not None else frozenset[int]()
            known |= model.available[server] | loading.get(name, set())
            new += [(version not in remembered.good, name, version) for version in versions - known]
            if _good_comes_first(model, remembered, server, versions):
                later.add(name)
            config[name] = Served(frozenset(versions & known))
        begun = []
        for candidate, name, version in sorted(new):
            if candidate and name in later:
                yield Wait("the promoted versions come first", name, version, server)
            elif loads.begin(name):
                begun.append((name, version))
                config[name] = Served(config[name].versions | {version})
            else:
                yield Wait("others are loading, and no more may at once", name, version, server)
        config = {
            name: Served(
                served.versions, _labels_on(models[name], state.model(name), server, served.versions)
            )
            for name, served in config.items()
            if served.versions
        }
        if one.config is not None and config == one.config:
            continue
        if one.config is None and not config and not _left_over(one, state):
            continue  # nothing to say, and saying so would end whatever others let it serve
        if held:
            yield Wait(f"{held}: a reload would take it away", server=server)
        elif now < one.retry_at:
            yield Wait("the last reload failed", server=server, until=one.retry_at)
        else:
            yield _reload(server, config, one, tuple(begun))


def _has_anything(server: ServerFound) -> bool:
    """Whether a server has, or is about to have, a version of any model."""
    return any(
        found.state != ServerState.END for versions in server.versions.values() for found in versions.values()
    )


def _left_over(server: ServerFound, state: State) -> bool:
    """Whether a server serves a model whose policy was removed."""
    return any(server.available(name) for name, model in state.models.items() if model.policy is None)


def _reload(
    server: str, config: dict[str, Served], one: ServerFound, loads: tuple[tuple[str, int], ...]
) -> Reload:
    old = one.config or {}
    nothing = Served(frozenset())
    unloads = [
        (name, version)
        for name, served in sorted(old.items())
        for version in sorted(served.versions - config.get(name, nothing).versions)
    ]
    labels = []
    for name in sorted({*old, *config}):
        before, after = old.get(name, nothing).labels, config.get(name, nothing).labels
        labels += [
            (name, label, after.get(label))
            for label in sorted({*before, *after})
            if before.get(label) != after.get(label)
        ]
    return Reload(server, config, loads, tuple(unloads), tuple(labels))


# -- the plan -----------------------------------------------------------------------------------------------


def plan(settings: Settings, found: Found) -> Plan:
    """The steps to take now, in order.

    Its decisions are made first and remembered; then all its actions can be taken, at the same time. Where
    nothing is left to do it has no steps.

    Args:
        settings: what holds for all models.
        found: the policies and everything else that is remembered, and how the world is.
    """
    up = {name: server for name, server in sorted(found.servers.items()) if server.reachable}
    state = found.state
    models = {
        name: _Model(name, policy, found, settings, up) for name, policy in sorted(state.policies.items())
    }
    steps: list[Step] = []
    for name, model in models.items():
        for _ in range(_PASSES):
            decided = list(model.decisions(state.model(name)))
            for step in decided:
                state = decide(state, step, found.now)
            steps += decided
            if not decided:
                break
    for name, model in models.items():
        remembered = state.model(name)
        steps += model.fetches(remembered)
        steps += model.probes(remembered)
        steps += model.deletions(remembered)
        steps += model.waits(remembered)
    if models:
        steps += [
            Wait("does not answer", server=name)
            for name, server in sorted(found.servers.items())
            if not server.reachable
        ]
    steps += _reloads(models, state, settings, up)
    return Plan(tuple(steps), state)
