"""aioserving.repository.conversion: what goes over the wire is what comes back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioserving.repository import conversion
from aioserving.repository.controller import ModelReport, VersionReport
from aioserving.repository.disk import DiskVersion
from aioserving.repository.events import Event, EventKind
from aioserving.repository.fetch import FetchProgress
from aioserving.repository.policy import All, Hours, Label, Latest, Policy, PolicyError, Probe, Specific
from aioserving.repository.results import DiskCopy, PlannedStep, QuarantineInfo, StoreCopy, VersionInfo
from aioserving.repository.state import ModelState, Quarantine
from aioserving.repository.store import StoredVersion
from aioserving.repository.v1 import model_repository_pb2 as pb
from aioserving.status import State, VersionStatus

VERSIONS = st.integers(0, 2**63 - 1)
SECONDS = st.integers(0, 10**9).map(lambda number: number / 1000)
JSON = st.dictionaries(
    st.text(min_size=1, max_size=5),
    st.recursive(
        st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=5,
    ),
    max_size=3,
)
PROBES = st.builds(
    Probe,
    inputs=JSON,
    outputs=st.none() | JSON,
    tolerance=st.sampled_from([0.0, 1e-5, 0.25]),
    signature_name=st.none() | st.just("serving_default"),
    timeout=SECONDS.filter(bool),
    interval=SECONDS,
) | st.just(Probe(request=b""))
LABELS = st.one_of(
    st.just({"stable": Label()}),
    st.builds(lambda version: {"old": Label(version=version), "stable": Label()}, VERSIONS),
    st.builds(lambda seconds: {"canary": Label(seconds=seconds)}, SECONDS),
    st.builds(lambda probes: {"canary": Label(seconds=1.5, probes=probes)}, st.integers(1, 100)),
)
POLICIES = st.builds(
    Policy,
    versions=st.one_of(
        st.builds(Latest, st.integers(1, 1000)),
        st.builds(Specific, st.sets(VERSIONS, min_size=1, max_size=4)),
        st.just(All()),
    ),
    pinned=st.none() | VERSIONS,
    labels=LABELS,
    hours=st.none() | st.just(Hours("UTC", ("mon-fri 22:00-05:00", "00:00-24:00"))),
    max_concurrent_loads=st.none() | st.integers(1, 100),
    probe=PROBES,
    load_timeout=SECONDS.filter(bool),
    keep=st.integers(0, 100),
)


@given(POLICIES)
def test_policies_come_back_as_they_were(policy: Policy) -> None:
    """Whatever a policy says, it says the same on the other side, also in bytes."""
    sent = conversion.policy_to_proto(policy).SerializeToString()
    assert conversion.policy_from_proto(pb.Policy.FromString(sent)) == policy


def test_what_a_policy_message_leaves_out_is_as_by_default() -> None:
    """A client in another language needs to say only what it means."""
    assert conversion.policy_from_proto(pb.Policy()) == Policy()
    assert conversion.policy_from_proto(pb.Policy(latest=pb.Policy.Latest())) == Policy(versions=Latest(1))
    message = pb.Policy(probe=pb.Policy.Probe(inputs_json='{"x": [1, 2.5]}'))
    assert conversion.policy_from_proto(message) == Policy(probe=Probe(inputs={"x": [1, 2.5]}))
    inputs = conversion.policy_from_proto(message).probe.inputs  # type: ignore[union-attr]
    assert json.dumps(inputs) == '{"x": [1, 2.5]}', "whole numbers stay whole"


@pytest.mark.parametrize(
    ("message", "paths"),
    [
        (pb.Policy(specific=pb.Policy.Specific()), ["versions"]),
        (pb.Policy(latest=pb.Policy.Latest(count=0)), ["versions"]),
        (pb.Policy(pinned=-3), ["pinned"]),
        (pb.Policy(labels={"a": pb.Policy.Label(version=1, probes=3)}), ["labels.a"]),
        (
            pb.Policy(hours=pb.Policy.Hours(timezone="Mars/Olympus", windows=["x"])),
            ["hours.windows.0", "hours.timezone"],
        ),
        (pb.Policy(probe=pb.Policy.Probe()), ["probe"]),
        (pb.Policy(probe=pb.Policy.Probe(inputs_json="{")), ["probe.inputs"]),
        (pb.Policy(probe=pb.Policy.Probe(inputs_json="[" * 100_000)), ["probe.inputs"]),
        (pb.Policy(probe=pb.Policy.Probe(inputs_json="[1]")), ["probe.inputs"]),
        (pb.Policy(probe=pb.Policy.Probe(request=b"\xff")), ["probe.request"]),
    ],
)
def test_policies_that_make_no_sense_are_refused(message: pb.Policy, paths: list[str]) -> None:
    """Each problem is told with the keys that lead to it, as in a set-up file."""
    with pytest.raises(PolicyError) as caught:
        conversion.policy_from_proto(message)
    assert [".".join(problem.path) for problem in caught.value.problems] == paths


@pytest.mark.parametrize("kind", [kind for kind in get_args(EventKind) if kind != "missed"])
def test_every_kind_of_event_has_a_number(kind: EventKind) -> None:
    """An event that the controller may publish reaches watchers as what it is."""
    event = Event(1_700_000_000.25, kind, "why", "digits", 0, "a", 7)
    message = conversion.event_to_proto(event)
    assert conversion.event_from_proto(pb.Event.FromString(message.SerializeToString())) == event
    bare = Event(0.0, kind, "", number=1)
    assert conversion.event_from_proto(conversion.event_to_proto(bare)) == bare


def test_an_event_of_a_newer_service() -> None:
    """A kind that this side does not know is shown, and not an error."""
    message = pb.Event(number=3, text="something new")
    message.kind = 999  # type: ignore[assignment]
    assert conversion.event_from_proto(message) == Event(0.0, "problem", "something new", number=3)


@pytest.mark.parametrize("state", ["waiting", "listing", "fetching", "verifying", "unpacking", "done"])
@pytest.mark.parametrize("total", [None, 0, 2**40])
def test_progress(state: str, total: int | None) -> None:
    """Unknown totals stay unknown, and zero stays zero."""
    progress = FetchProgress("digits", -1, state, 0, total, 2, total)  # type: ignore[arg-type]
    assert conversion.progress_from_proto(conversion.progress_to_proto(progress)) == progress


def test_every_state_of_a_server() -> None:
    """All states of a version on a server come across, with the reason of a failure."""
    for state in State:
        servers = {"a": VersionStatus(1, state, "X: y")}
        report = ModelReport("m", None, (VersionReport(1, None, None, servers),))
        [version] = conversion.report_from_proto(conversion.report_to_proto(report)).versions
        assert version.servers == servers


def test_reports() -> None:
    """Where each version is, and what it is to the service, comes across; what is nowhere stays None."""
    stored = StoredVersion("m", 3, "archive", "s3://b/m/3.zip", "new", 10)
    report = ModelReport(
        "m",
        Policy(versions=All()),
        (
            VersionReport(
                3,
                stored,
                DiskVersion("m", 3, Path("/d/m/3"), 20, "old"),
                {"a": VersionStatus(3, State.LOADING)},
                "canary",
                ("canary", "next"),
                Quarantine("why", 12.5),
                True,
            ),
            VersionReport(2, dataclasses.replace(stored, size=None, kind="directory"), None, {}),
            VersionReport(1, None, DiskVersion("m", 1, Path("/d/m/1"), 5, None), {}),
        ),
        waiting=("for the hours",),
    )
    result = conversion.report_from_proto(conversion.report_to_proto(report))
    assert (result.model, result.policy, result.waiting) == ("m", Policy(versions=All()), ("for the hours",))
    assert result.versions == (
        VersionInfo(
            3,
            StoreCopy("s3://b/m/3.zip", True, 10),
            DiskCopy("/d/m/3", 20, False),
            {"a": VersionStatus(3, State.LOADING)},
            ("canary", "next"),
            True,
            QuarantineInfo("why", 12.5),
            "canary",
        ),
        VersionInfo(2, StoreCopy("s3://b/m/3.zip", False, None)),
        VersionInfo(1, None, DiskCopy("/d/m/1", 5, None)),
    )
    same = ModelReport("m", None, (VersionReport(3, stored, DiskVersion("m", 3, Path("/x"), 1, "new"), {}),))
    [version] = conversion.report_from_proto(conversion.report_to_proto(same)).versions
    assert version.disk == DiskCopy("/x", 1, True)


def test_models() -> None:
    """A model without policy is told from one with the default policy."""
    state = ModelState(policy=Policy(), good=frozenset({1, 3}), labels={"stable": 3})
    info = conversion.model_from_proto(conversion.model_to_proto("m", state))
    assert (info.name, info.policy, info.promoted, info.labels) == ("m", Policy(), (3, 1), {"stable": 3})
    assert conversion.model_from_proto(conversion.model_to_proto("m", ModelState())).policy is None


def test_steps() -> None:
    """A step of any kind is told by its name, in words, and with what it is about."""

    @dataclasses.dataclass
    class SetLabel:
        model: str = "m"
        version: int | None = 2
        server: None = None

        def __str__(self) -> str:
            return "set label stable of m to 2"

    message = conversion.step_to_proto(SetLabel())
    assert conversion.step_from_proto(message) == PlannedStep(
        "set label", "set label stable of m to 2", "m", 2
    )
    assert str(conversion.step_from_proto(message)) == "set label stable of m to 2"
