"""Messages of `aioserving.repository.v1` <-> the objects that the controller and the clients speak of.

Functions of their arguments: ``x_to_proto`` makes a message, ``x_from_proto`` reads one. What a message may
hold and the objects may not ends as a `ValueError` (`policy.PolicyError` where it is about a policy); fields
and enum values that a newer peer knows are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, get_args

from aioserving.repository.events import Event, EventKind
from aioserving.repository.fetch import FetchProgress
from aioserving.repository.policy import (
    All,
    Hours,
    Label,
    Latest,
    Policy,
    PolicyError,
    PolicyProblem,
    Probe,
    Specific,
    Versions,
)
from aioserving.repository.results import (
    DiskCopy,
    FetchedVersion,
    ModelInfo,
    ModelVersions,
    PlannedStep,
    QuarantineInfo,
    StoreCopy,
    VersionInfo,
)
from aioserving.repository.v1 import model_repository_pb2 as pb
from aioserving.status import State, VersionStatus

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

    from aioserving.repository.controller import ModelReport, VersionReport
    from aioserving.repository.state import ModelState

__all__ = [
    "event_from_proto",
    "event_to_proto",
    "fetched_from_proto",
    "model_from_proto",
    "model_to_proto",
    "policy_from_proto",
    "policy_to_proto",
    "progress_from_proto",
    "progress_to_proto",
    "report_from_proto",
    "report_to_proto",
    "step_from_proto",
    "step_to_proto",
]

# ---------------------------------------------------------------------------------------- time and durations


def _set_duration(message: Duration, seconds: float) -> None:
    message.FromNanoseconds(round(seconds * 1e9))


def _seconds(message: Duration) -> float:
    return (message.seconds * 10**9 + message.nanos) / 10**9  # which rounds once


def _set_timestamp(message: Timestamp, at: float) -> None:
    message.FromNanoseconds(round(at * 1e6) * 1000)


def _at(message: Timestamp) -> float:
    return (message.seconds * 10**9 + message.nanos) / 10**9  # which rounds once


# -------------------------------------------------------------------------------------------------- policies


def policy_to_proto(policy: Policy) -> pb.Policy:
    """The message of a policy."""
    message = pb.Policy()
    versions = policy.versions
    if isinstance(versions, Latest):
        message.latest.count = versions.count
    elif isinstance(versions, Specific):
        message.specific.versions.extend(sorted(versions.versions))
    else:
        message.all.SetInParent()
    if policy.pinned is not None:
        message.pinned = policy.pinned
    for name, label in policy.labels.items():
        to = message.labels[name]
        if label.version is not None:
            to.version = label.version
        if label.seconds is not None:
            _set_duration(to.time, label.seconds)
        if label.probes is not None:
            to.probes = label.probes
    if policy.hours is not None:
        message.hours.timezone = policy.hours.timezone
        message.hours.windows.extend(policy.hours.windows)
    if policy.max_concurrent_loads is not None:
        message.max_concurrent_loads = policy.max_concurrent_loads
    if policy.probe is not None:
        _probe_to_proto(policy.probe, message.probe)
    _set_duration(message.load_timeout, policy.load_timeout)
    message.keep = policy.keep
    return message


def _probe_to_proto(probe: Probe, message: pb.Policy.Probe) -> None:
    if probe.request is not None:
        message.request = probe.request
    else:
        message.inputs_json = json.dumps(probe.inputs)
    if probe.outputs is not None:
        message.outputs_json = json.dumps(probe.outputs)
    message.tolerance = probe.tolerance
    if probe.signature_name is not None:
        message.signature_name = probe.signature_name
    _set_duration(message.timeout, probe.timeout)
    _set_duration(message.interval, probe.interval)


def policy_from_proto(message: pb.Policy) -> Policy:
    """The policy that a message tells; what it does not say is as by default.

    Raises:
        PolicyError: it makes no sense.
    """
    given: dict[str, Any] = {}
    problems: list[PolicyProblem] = []

    def read(path: tuple[str, ...], make: Any) -> Any:
        try:
            return make()
        except PolicyError as error:
            for problem in error.problems:
                problems.append(PolicyProblem((*path, *problem.path), problem.text))
        except ValueError as error:
            problems.append(PolicyProblem(path, str(error)))
        return None

    given["versions"] = read(("versions",), lambda: _versions(message))
    if message.HasField("pinned"):
        given["pinned"] = message.pinned
    given["labels"] = {
        name: read(("labels", name), lambda label=label: _label(label))
        for name, label in message.labels.items()
    }
    if message.HasField("hours"):
        hours = message.hours
        given["hours"] = read(("hours",), lambda: Hours(hours.timezone, tuple(hours.windows)))
    if message.HasField("max_concurrent_loads"):
        given["max_concurrent_loads"] = message.max_concurrent_loads
    if message.HasField("probe"):
        given["probe"] = read(("probe",), lambda: _probe(message.probe))
    if message.HasField("load_timeout"):
        given["load_timeout"] = _seconds(message.load_timeout)
    if message.HasField("keep"):
        given["keep"] = message.keep
    if problems:
        raise PolicyError(problems)
    return Policy(**given)


def _versions(message: pb.Policy) -> Versions:
    kind = message.WhichOneof("versions")
    if kind == "specific":
        return Specific(message.specific.versions)
    if kind == "all":
        return All()
    return Latest(message.latest.count if message.latest.HasField("count") else 1)


def _label(message: pb.Policy.Label) -> Label:
    return Label(
        version=message.version if message.HasField("version") else None,
        seconds=_seconds(message.time) if message.HasField("time") else None,
        probes=message.probes if message.HasField("probes") else None,
    )


def _probe(message: pb.Policy.Probe) -> Probe:
    given: dict[str, Any] = {}
    if message.WhichOneof("what") == "request":
        given["request"] = message.request
    elif message.WhichOneof("what") == "inputs_json":
        given["inputs"] = _json_object(message.inputs_json, "inputs")
    if message.HasField("outputs_json"):
        given["outputs"] = _json_object(message.outputs_json, "outputs")
    for name in ("tolerance", "signature_name"):
        if message.HasField(name):
            given[name] = getattr(message, name)
    for name in ("timeout", "interval"):
        if message.HasField(name):
            given[name] = _seconds(getattr(message, name))
    return Probe(**given)


def _json_object(text: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PolicyError([PolicyProblem((name,), f"is no JSON: {error}")]) from None
    if not isinstance(value, dict):
        raise PolicyError([PolicyProblem((name,), "must be a JSON object: values by name")])
    return value


# --------------------------------------------------------------------------------------- models and versions


def model_to_proto(name: str, state: ModelState) -> pb.Model:
    """The message of what is remembered of a model."""
    message = pb.Model(name=name, promoted=sorted(state.good, reverse=True), labels=dict(state.labels))
    if state.policy is not None:
        message.policy.CopyFrom(policy_to_proto(state.policy))
    return message


def model_from_proto(message: pb.Model) -> ModelInfo:
    """The model that a message tells of."""
    return ModelInfo(
        message.name,
        policy_from_proto(message.policy) if message.HasField("policy") else None,
        tuple(message.promoted),
        dict(message.labels),
    )


def report_to_proto(report: ModelReport) -> pb.ListVersionsResponse:
    """The message of a report about a model."""
    message = pb.ListVersionsResponse(
        model=report.model, versions=map(_version_to_proto, report.versions), waiting=report.waiting
    )
    if report.policy is not None:
        message.policy.CopyFrom(policy_to_proto(report.policy))
    return message


def _version_to_proto(report: VersionReport) -> pb.Version:
    message = pb.Version(
        version=report.version,
        servers=[_served(name, status) for name, status in report.servers.items()],
        labels=report.labels,
        wanted=report.wanted,
        role=report.role,
    )
    stored, disk = report.stored, report.disk
    if stored is not None:
        message.store.url = stored.url
        message.store.archive = stored.kind == "archive"
        if stored.size is not None:
            message.store.size = stored.size
    if disk is not None:
        message.disk.path = str(disk.path)
        message.disk.size = disk.size
        if stored is not None and disk.fingerprint is not None:
            message.disk.current = stored.fingerprint == disk.fingerprint
    if report.quarantine is not None:
        message.quarantine.reason = report.quarantine.reason
        _set_timestamp(message.quarantine.since, report.quarantine.at)
    return message


_STATES: Final[Mapping[int, State]] = {int(state): state for state in State}


def _served(server: str, status: VersionStatus) -> pb.ServedVersion:
    return pb.ServedVersion(server=server, state=f"STATE_{status.state.name}", error=status.error or "")


def report_from_proto(message: pb.ListVersionsResponse) -> ModelVersions:
    """What a message tells of the versions of a model."""
    return ModelVersions(
        message.model,
        tuple(map(_version_from_proto, message.versions)),
        policy_from_proto(message.policy) if message.HasField("policy") else None,
        tuple(message.waiting),
    )


def _version_from_proto(message: pb.Version) -> VersionInfo:
    store = disk = quarantine = None
    if message.HasField("store"):
        size = message.store.size if message.store.HasField("size") else None
        store = StoreCopy(message.store.url, message.store.archive, size)
    if message.HasField("disk"):
        current = message.disk.current if message.disk.HasField("current") else None
        disk = DiskCopy(message.disk.path, message.disk.size, current)
    if message.HasField("quarantine"):
        quarantine = QuarantineInfo(message.quarantine.reason, _at(message.quarantine.since))
    servers = {
        item.server: VersionStatus(
            message.version, _STATES.get(item.state, State.UNKNOWN), item.error or None
        )
        for item in message.servers
    }
    return VersionInfo(
        message.version,
        store,
        disk,
        servers,
        tuple(message.labels),
        message.wanted,
        quarantine,
        message.role,
    )


# -------------------------------------------------------------------------------------------------- fetching


def progress_to_proto(progress: FetchProgress) -> pb.FetchProgress:
    """The message of how far a fetch is."""
    message = pb.FetchProgress(
        model=progress.model,
        version=progress.version,
        state=f"STATE_{progress.state.upper()}",
        bytes_done=progress.bytes_done,
        files_done=progress.files_done,
    )
    if progress.bytes_total is not None:
        message.bytes_total = progress.bytes_total
    if progress.files_total is not None:
        message.files_total = progress.files_total
    return message


_PROGRESS: Final[Mapping[int, Any]] = {
    number: name.removeprefix("STATE_").lower() for name, number in pb.FetchProgress.State.items() if number
}


def progress_from_proto(message: pb.FetchProgress) -> FetchProgress:
    """How far a fetch is, as a message tells; a state of a newer service counts as fetching."""
    return FetchProgress(
        message.model,
        message.version,
        _PROGRESS.get(message.state, "fetching"),
        message.bytes_done,
        message.bytes_total if message.HasField("bytes_total") else None,
        message.files_done,
        message.files_total if message.HasField("files_total") else None,
    )


def fetched_from_proto(message: pb.FetchedVersion) -> FetchedVersion:
    """The version that was brought to disk, as a message tells."""
    return FetchedVersion(message.model, message.version, message.path)


# ----------------------------------------------------------------------------------------------------- plans


def step_to_proto(step: Any) -> pb.Step:
    """The message of a step of a `plan.Plan`, of whatever kind."""
    kind = type(step).__name__
    words = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in kind).strip()
    message = pb.Step(kind=words, text=str(step))
    for name, kinds in (("model", str), ("version", int), ("server", str)):
        value = getattr(step, name, None)
        if isinstance(value, kinds):
            setattr(message, name, value)
    return message


def step_from_proto(message: pb.Step) -> PlannedStep:
    """The step that a message tells of."""
    return PlannedStep(
        message.kind,
        message.text,
        message.model if message.HasField("model") else None,
        message.version if message.HasField("version") else None,
        message.server if message.HasField("server") else None,
    )


# ---------------------------------------------------------------------------------------------------- events


def _kind_name(kind: str) -> str:
    return f"KIND_{kind.upper().replace(' ', '_')}"


def _kinds(kinds: Iterable[str]) -> dict[int, Any]:
    known = dict(pb.Event.Kind.items())
    return {known[_kind_name(kind)]: kind for kind in kinds if _kind_name(kind) in known}


_KINDS: Final[Mapping[int, EventKind]] = _kinds(get_args(EventKind))


def event_to_proto(event: Event) -> pb.Event:
    """The message of an event (other than ``"missed"``, which has a message of its own)."""
    message = pb.Event(
        number=event.number,
        kind=_kind_name(event.kind),
        text=event.text,
        model=event.model,
        version=event.version,
        server=event.server,
    )
    _set_timestamp(message.at, event.at)
    return message


def event_from_proto(message: pb.Event) -> Event:
    """The event that a message tells of; one of a kind that is not known here counts as a problem."""
    return Event(
        _at(message.at),
        _KINDS.get(message.kind, "problem"),
        message.text,
        message.model if message.HasField("model") else None,
        message.version if message.HasField("version") else None,
        message.server if message.HasField("server") else None,
        message.number,
    )
