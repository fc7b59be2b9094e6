"""How the real server decides, as functions over data: no files, no clock, no loading.

Which folder names are versions and which of them a policy wants; what to load or unload next; whether
a configuration is legal and what its labels become; when a reload is finished. `manager` gathers what
these functions look at and does what they return. Messages are the real server's, to the letter.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from aioserving.testing.status import StatusCode, StatusError

__all__ = [
    "PLATFORM",
    "Action",
    "Phase",
    "ServableId",
    "Snapshot",
    "State",
    "VersionState",
    "check_config",
    "check_logging",
    "check_platforms",
    "check_routes",
    "choose",
    "label_map",
    "next_action",
    "platform_of",
    "reached",
    "unavailable_message",
    "version_number",
    "wanted_versions",
]

#: The only platform that a model of the real server can have by default.
PLATFORM = "tensorflow"

#: A protobuf message. Their classes are loaded lazily, so annotations cannot name them.
_Message = Any


class ServableId(NamedTuple):
    """One version of one model; sorts as the real server's do, by name and then by version."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{{name: {self.name} version: {self.version}}}"


class State(enum.IntEnum):
    """What GetModelStatus says of a version, with protobuf's numbers (`ModelVersionStatus.State`)."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


class VersionState(NamedTuple):
    """The last thing that happened to a version; `error` only with END, and not after a normal unload."""

    state: State
    error: StatusError | None = None


class Phase(enum.Enum):
    """Where the manager is with a version that it manages."""

    NEW = "new"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    DISABLED = "disabled"
    ERROR = "error"


class Snapshot(NamedTuple):
    """What a decision looks at: a managed version, and whether the configuration wants it."""

    version: int
    phase: Phase
    aspired: bool


@dataclass(frozen=True)
class Action:
    """What to do next."""

    kind: Literal["load", "unload"]
    id: ServableId


# Versions on disk


_INTEGER = re.compile(r"\s*-?[0-9]+\s*\Z")


def version_number(name: str) -> int | None:
    """The version that a folder called `name` holds, or None: then it is not a version at all.

    The whole name has to be a signed 64-bit integer; leading zeros are fine.
    """
    if not _INTEGER.match(name):
        return None
    number = int(name)
    return number if -(2**63) <= number < 2**63 else None


def wanted_versions(policy: _Message, children: Iterable[str]) -> dict[int, str]:
    """The versions that `policy` (a `ServableVersionPolicy`) wants, and the name of each one's folder.

    `latest` is the default, and of 1 version at least. Where two names mean the same version, the last
    one in lexicographic order counts (under `all`: the first).

    Args:
        policy: the policy of the model's configuration.
        children: names found under the model's base path, versions or not.
    """
    by_version: dict[int, str] = {}
    first: dict[int, str] = {}
    for child in sorted(set(children)):
        version = version_number(child)
        if version is not None:
            by_version[version] = child
            first.setdefault(version, child)
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return first
    if choice == "specific":
        asked = set(policy.specific.versions)
        return {version: child for version, child in by_version.items() if version in asked}
    count = max(policy.latest.num_versions, 1)
    return {version: by_version[version] for version in sorted(by_version, reverse=True)[:count]}


# What to do next


def next_action(name: str, versions: Sequence[Snapshot]) -> Action | None:
    """The next step for one model, such that something stays available as long as anything is wanted.

    A version nobody wants goes once a wanted one is ready, or when none is wanted, or when another
    unwanted one is still there to answer: the lowest first. Else the highest new one is loaded.
    """
    aspired = [item for item in versions if item.aspired]
    unwanted = [item.version for item in versions if not item.aspired and item.phase is Phase.READY]
    serving = any(item.phase is Phase.READY for item in aspired)
    if unwanted and (not aspired or serving or len(unwanted) > 1):
        return Action("unload", ServableId(name, min(unwanted)))
    new = [item.version for item in aspired if item.phase is Phase.NEW]
    return Action("load", ServableId(name, max(new))) if new else None


def choose(actions: Iterable[Action | None]) -> Action | None:
    """Of the models' next steps, the one to take: an unload before a load, then by name."""
    return min(
        (action for action in actions if action is not None),
        key=lambda action: (action.kind == "load", action.id),
        default=None,
    )


# Configurations


def platform_of(model: _Message) -> str:
    """The platform of a `ModelConfig`, from its deprecated `model_type` if need be.

    Raises:
        StatusError: INVALID_ARGUMENT: neither is set, both are, or the type is not supported.
    """
    if not model.model_type:
        if not model.model_platform:
            raise StatusError(
                StatusCode.INVALID_ARGUMENT,
                "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
                f"ModelServerConfig::model_platform, model name is {model.name}",
            )
        platform: str = model.model_platform
        return platform
    if model.model_platform:
        raise StatusError(
            StatusCode.INVALID_ARGUMENT,
            "Illegal setting both ModelServerConfig::model_type (deprecated) and "
            f"ModelServerConfig::model_platform, model name is {model.name}",
        )
    if model.model_type != 1:
        raise StatusError(
            StatusCode.INVALID_ARGUMENT,
            f"ModelServerConfig::model_type choice {model.model_type} not supported.",
        )
    return PLATFORM


def check_config(models: Iterable[_Message]) -> None:
    """Refuse a list of `ModelConfig` with a name twice, or with a base path that is not absolute."""
    models = list(models)
    seen: set[str] = set()
    for model in models:
        if model.name in seen:
            raise StatusError(
                StatusCode.INVALID_ARGUMENT,
                f"Illegal to list model {model.name} multiple times in config list",
            )
        seen.add(model.name)
    for model in models:
        if not (model.base_path.startswith("/") or re.match(r"[a-zA-Z][0-9a-zA-Z.]*://", model.base_path)):
            raise StatusError(
                StatusCode.INVALID_ARGUMENT,
                f"Expected model {model.name} to have an absolute path or URI; "
                f"got base_path()={model.base_path}",
            )


def check_platforms(old: Iterable[_Message], new: Iterable[_Message]) -> None:
    """Refuse to change the platform of a model that is configured already.

    A model of the *old* list without a legal platform makes every new list fail, too: that is how the
    real server gets stuck after accepting one.
    """
    platforms = {model.name: platform_of(model) for model in old}
    for model in new:
        if model.name in platforms and platform_of(model) != platforms[model.name]:
            raise StatusError(
                StatusCode.INVALID_ARGUMENT,
                f"Illegal to change a model's platform. For model {model.name} platform was "
                f"{platforms[model.name]} and new platform requested is {platform_of(model)}",
            )


def check_routes(models: Iterable[_Message]) -> None:
    """Refuse a model of a platform that this server does not have."""
    for model in models:
        platform = platform_of(model)
        if platform != PLATFORM:
            raise StatusError(
                StatusCode.INVALID_ARGUMENT,
                f"Model {model.name} requests unsupported platform {platform}",
            )


def check_logging(models: Iterable[_Message]) -> None:
    """Refuse logging of requests, for which the open-source server has no collector."""
    if any(model.HasField("logging_config") for model in models):
        raise StatusError(StatusCode.INVALID_ARGUMENT, "No request-logger-creator provided.")


def label_map(
    models: Iterable[_Message],
    states: Mapping[str, Mapping[int, VersionState]],
    current: Mapping[str, Mapping[str, int]] | None,
    *,
    allow_unavailable: bool,
) -> dict[str, dict[str, int]]:
    """The labels of a new configuration: model -> label -> version; it replaces the old map whole.

    Args:
        models: the `ModelConfig` messages.
        states: model -> version -> its state.
        current: the labels in use, or None before the first configuration.
        allow_unavailable: let a label that is new, or stays where it is, point at any version.

    Raises:
        StatusError: FAILED_PRECONDITION: a label points at a version that is not available.
    """
    labels: dict[str, dict[str, int]] = {}
    for model in models:
        versions = states.get(model.name, {})
        existing = (current or {}).get(model.name, {})
        for label, version in model.version_labels.items():
            available = version in versions and versions[version].state is State.AVAILABLE
            free = allow_unavailable and existing.get(label, version) == version
            if not available and not free:
                raise StatusError(
                    StatusCode.FAILED_PRECONDITION,
                    f"Request to assign label to version {version} of model {model.name}, "
                    "which is not currently available for inference",
                )
            labels.setdefault(model.name, {})[label] = version
    return labels


# When a reload is finished


def reached(
    models: Iterable[str], states: Mapping[str, Mapping[int, VersionState]]
) -> dict[ServableId, VersionState] | None:
    """For each of `models` the highest version that is available or has ended; None while one has neither."""
    found: dict[ServableId, VersionState] = {}
    for name in models:
        versions = states.get(name, {})
        done = [version for version, state in versions.items() if state.state in (State.AVAILABLE, State.END)]
        if not done:
            return None
        found[ServableId(name, max(done))] = versions[max(done)]
    return found


def unavailable_message(noun: str, found: Mapping[ServableId, VersionState]) -> str | None:
    """What a reload (of "model"s) or a start (of "servable"s) says of those that ended; None if all serve."""
    failed = sorted((id_, state) for id_, state in found.items() if state.state is not State.AVAILABLE)
    if not failed:
        return None
    parts = "".join(
        f"{{{id_}{f' due to error: {state.error}' if state.error else ''}}}, " for id_, state in failed
    )
    return f"{len(failed)} {noun}(s) did not become available: {{{parts}}}"
