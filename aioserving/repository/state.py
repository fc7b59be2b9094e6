"""What a controller must not forget: policies, promoted versions, rollouts under way, quarantine, labels.

`State` is a value: every decision makes a new one. `StateFile` keeps it on disk:

    state.json            the newest, replaced in one step once it is safely on the disk
    state.json.previous   the one before

Every file carries a checksum over its content. One that is torn or altered is noticed; the other is used
then, which is at most one decision older, and the next turn of the controller makes that decision again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from aioserving.repository.errors import RepositoryError
from aioserving.repository.policy import Policy, PolicyError

__all__ = ["Candidate", "LabelChange", "ModelState", "Quarantine", "State", "StateError", "StateFile"]

FORMAT: Final = 1

#: Changes of labels that are remembered of each model.
HISTORY: Final = 50


class StateError(RepositoryError):
    """The state on disk cannot be read, and there is no good copy of it."""


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Why a version must not be served, and since when."""

    reason: str
    #: Seconds since 1970.
    at: float


@dataclass(frozen=True, slots=True)
class LabelChange:
    """A label that moved."""

    #: Seconds since 1970.
    at: float
    label: str
    #: Where it was; None if it was nowhere.
    old: int | None
    #: Where it went; None if it was taken away.
    new: int | None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version on its way to be promoted."""

    #: When its rollout began, in seconds since 1970.
    since: float
    #: Probes that it answered rightly, by server.
    passed: Mapping[str, int] = field(default_factory=dict)
    #: When it was probed last.
    probed_at: float = 0.0
    #: What was wrong with an answer to a probe, or empty.
    problem: str = ""
    #: Since when it has had the canary label, or None.
    canary_since: float | None = None
    #: Probes that it had answered rightly before it got the label, on all servers together.
    canary_from: int = 0

    @property
    def successes(self) -> int:
        """Probes that it answered rightly, on all servers together."""
        return sum(self.passed.values())


@dataclass(frozen=True, slots=True)
class ModelState:
    """What is remembered of one model."""

    policy: Policy | None = None
    #: Versions that have been promoted and are to be served until better ones are.
    good: frozenset[int] = frozenset()
    #: Versions on their way, by number.
    candidates: Mapping[int, Candidate] = field(default_factory=dict)
    #: Versions that were good and are not wanted any more, the last one last.
    retired: tuple[int, ...] = ()
    #: Versions that must not be served, by number.
    quarantine: Mapping[int, Quarantine] = field(default_factory=dict)
    #: Where the labels are to be, by name.
    labels: Mapping[str, int] = field(default_factory=dict)
    #: Where the labels were, the last change last.
    history: tuple[LabelChange, ...] = ()
    #: Versions that an operator asked for: they need not wait for the allowed hours.
    urgent: frozenset[int] = frozenset()

    def with_candidate(self, version: int, candidate: Candidate | None) -> ModelState:
        """A copy with a candidate set, or (None) taken away."""
        candidates = {**self.candidates}
        candidates.pop(version, None)
        if candidate is not None:
            candidates[version] = candidate
        return replace(self, candidates=candidates)

    def with_label(self, label: str, version: int | None, at: float) -> ModelState:
        """A copy with a label moved, or (None) taken away; the history tells."""
        change = LabelChange(at, label, self.labels.get(label), version)
        labels = {name: place for name, place in self.labels.items() if name != label}
        if version is not None:
            labels[label] = version
        return replace(self, labels=labels, history=(*self.history, change)[-HISTORY:])

    def with_quarantine(self, version: int, quarantine: Quarantine | None) -> ModelState:
        """A copy with a version in quarantine, or (None) out of it."""
        kept = {number: reason for number, reason in self.quarantine.items() if number != version}
        if quarantine is not None:
            kept[version] = quarantine
        return replace(self, quarantine=kept)

    def earlier_places(self, label: str) -> tuple[int, ...]:
        """Versions that a label has been on, the last first."""
        places = [change.new for change in reversed(self.history) if change.label == label]
        return tuple(dict.fromkeys(place for place in places if place is not None))

    def to_dict(self) -> dict[str, Any]:
        """The same in plain JSON types."""
        return {
            "policy": self.policy.to_dict() if self.policy is not None else None,
            "good": sorted(self.good),
            "candidates": {str(version): asdict(item) for version, item in self.candidates.items()},
            "retired": list(self.retired),
            "quarantine": {str(version): asdict(item) for version, item in self.quarantine.items()},
            "labels": dict(self.labels),
            "history": [asdict(change) for change in self.history],
            "urgent": sorted(self.urgent),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelState:
        """Read what `to_dict` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        return cls(
            policy=Policy.from_dict(data["policy"]) if data["policy"] is not None else None,
            good=frozenset(map(int, data["good"])),
            candidates={int(version): Candidate(**item) for version, item in data["candidates"].items()},
            retired=tuple(map(int, data["retired"])),
            quarantine={int(version): Quarantine(**item) for version, item in data["quarantine"].items()},
            labels={name: int(version) for name, version in data["labels"].items()},
            history=tuple(LabelChange(**change) for change in data["history"]),
            urgent=frozenset(map(int, data["urgent"])),
        )


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered of all models."""

    models: Mapping[str, ModelState] = field(default_factory=dict)

    def model(self, name: str) -> ModelState:
        """What is remembered of a model; nothing, if it is new."""
        return self.models.get(name, _NOTHING)

    def with_model(self, name: str, model: ModelState | None) -> State:
        """A copy with one model's part replaced, or (None) forgotten."""
        models = {**self.models}
        if model is None:
            models.pop(name, None)
        else:
            models[name] = model
        return State(models)

    @property
    def policies(self) -> dict[str, Policy]:
        """The policies, by model."""
        return {name: model.policy for name, model in self.models.items() if model.policy is not None}


_NOTHING: Final = ModelState()


class StateFile:
    """The state in a file; one process at a time, which is for the caller to see to (`Disk.lock`).

    Args:
        path: the file; its folder is made if it is missing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        #: What was wrong with the newest copy when it was read; empty if nothing.
        self.recovered = ""

    def __repr__(self) -> str:
        return f"<StateFile {os.fspath(self.path)!r}>"

    @property
    def previous(self) -> Path:
        """The copy from before the last change."""
        return self.path.with_name(self.path.name + ".previous")

    def load(self) -> State:
        """Read the state; an empty one if there never was any.

        The copy from before the last change is used if the newest is damaged or gone; `recovered` tells.

        Raises:
            StateError: there is something, but nothing that can be read.
            OSError: a file cannot be opened.
        """
        self.recovered = ""
        problems = []
        for path in (self.path, self.previous):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            try:
                state = decode(data)
            except ValueError as error:
                problems.append(f"{os.fspath(path)}: {error}")
                continue
            if problems:
                self.recovered = f"{problems[0]}; the copy from before the last change is used"
            elif path == self.previous:
                self.recovered = (
                    f"{os.fspath(self.path)} is gone; the copy from before the last change is used"
                )
            return state
        if problems:
            raise StateError(
                f"the state cannot be read: {'; '.join(problems)}. Put back a good copy; or move these files "
                "away to begin anew: what is served then counts as good, and what was in quarantine is tried "
                "again"
            )
        return State()

    def save(self, state: State) -> None:
        """Write the state so that it, or the one before, survives whatever happens in between.

        Raises:
            OSError: it cannot be written; the one before stays.
        """
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".state-", dir=folder)
        try:
            with open(handle, "wb") as file:
                file.write(encode(state))
                file.flush()
                os.fsync(file.fileno())
            # What is there now becomes the copy, without a moment in which the newest is missing. Only
            # something that can be read may: a damaged file must not take the good copy's place.
            if not self.recovered:
                link = self.path.with_name(self.path.name + ".link")
                link.unlink(missing_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    os.link(self.path, link)
                    os.replace(link, self.previous)
            os.replace(temporary, self.path)
            self.recovered = ""
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def encode(state: State) -> bytes:
    """The bytes of a state file."""
    content = {"models": {name: model.to_dict() for name, model in state.models.items()}}
    return json.dumps({"format": FORMAT, "sha256": _digest(content), **content}, indent=1).encode()


def decode(data: bytes) -> State:
    """Read the bytes of a state file.

    Raises:
        ValueError: they are none, or not those that were written.
    """
    if not data.strip(b"\0 \n"):
        raise ValueError("is empty")
    try:
        content = json.loads(data)
    except ValueError as error:
        raise ValueError(f"is torn or no JSON: {error}") from error
    if not isinstance(content, dict) or "format" not in content or "models" not in content:
        raise ValueError("is no state of a repository")
    if content["format"] != FORMAT:
        raise ValueError(f"has format {content['format']!r}; this version of aioserving reads {FORMAT}")
    if content.get("sha256") != _digest({"models": content["models"]}):
        raise ValueError("does not match its checksum: it was altered, or damaged")
    try:
        return State({name: ModelState.from_dict(model) for name, model in content["models"].items()})
    except (KeyError, TypeError, ValueError, AttributeError, PolicyError) as error:
        raise ValueError(f"has something unexpected in it: {error!r}") from error


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
