"""Policies: what they select, when they allow it, and what is said of those that make no sense."""

from __future__ import annotations

import json
import pickle
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from aioserving.messages import PredictRequest
from aioserving.repository.policy import (
    All,
    Hours,
    Label,
    Latest,
    Policy,
    PolicyError,
    Probe,
    Specific,
)

REQUEST = PredictRequest(
    model_spec={"name": "old", "version_label": "stable", "signature_name": "other"},
    inputs={"x": np.array([1.0], np.float32)},
).to_bytes()

FULL = Policy(
    versions=Latest(2),
    pinned=7,
    labels={"stable": Label(), "canary": Label(seconds=60.0, probes=3), "old": Label(version=3)},
    hours=Hours("Europe/Berlin", ("mon-fri 22:00-05:00", "sat 00:00-24:00")),
    max_concurrent_loads=1,
    probe=Probe(inputs={"x": [1.0]}, outputs={"y": [2.5]}, tolerance=0.1, interval=2.0),
    load_timeout=20.0,
    keep=3,
)


def test_there_and_back() -> None:
    """A policy survives JSON whole, also with a recorded request."""
    for policy in (
        FULL,
        Policy(),
        Policy(versions=All()),
        Policy(versions=Specific([3, 1]), probe=Probe(request=REQUEST, outputs={"y": [1]})),
    ):
        assert Policy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy
    assert pickle.loads(pickle.dumps(FULL)) == FULL


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ("latest", Latest()),
        ("latest 3", Latest(3)),
        ({"latest": 2}, Latest(2)),
        ("all", All()),
        ([3, 1], Specific([1, 3])),
        (4, Specific([4])),
        ({"specific": [2]}, Specific([2])),
    ],
)
def test_short_ways_to_name_versions(versions: object, expected: object) -> None:
    """People write versions in several ways."""
    assert Policy.from_dict({"versions": versions}).versions == expected


def test_short_ways_to_write_labels() -> None:
    """A list of names, null, a version or a rule."""
    assert Policy.from_dict({"labels": ["stable"]}).labels == {"stable": Label()}
    written = {"stable": None, "old": 3, "canary": {"seconds": 5}}
    assert Policy.from_dict({"labels": written}).labels == {
        "stable": Label(),
        "old": Label(version=3),
        "canary": Label(seconds=5),
    }


def test_selection() -> None:
    """Latest, specific and all; a pin goes before them, and versions with a label of their own are added."""
    known = {1, 2, 3, 10}
    assert Policy().select(known) == {10}
    assert Policy(versions=Latest(2)).select(known) == {3, 10}
    assert Policy(versions=Latest(9)).select(known) == known
    assert Policy(versions=Specific([2, 99])).select(known) == {2}
    assert Policy(versions=All()).select(known) == known
    assert Policy(pinned=2).select(known) == {2}
    assert Policy(pinned=99).select(known) == set()
    assert Policy(labels={"old": Label(version=1)}).select(known) == {1, 10}
    assert Policy().select(()) == set()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"version": "latest"}, "version: there is no such key; did you mean 'versions'?"),
        ({"versions": "newest"}, "versions: must be 'latest', 'latest N', 'all' or a list of versions"),
        ({"versions": []}, "versions: name one version at least"),
        ({"versions": {"latest": 0}}, "versions: latest must be a whole number, at least 1, got 0"),
        ({"pinned": "3"}, "pinned: '3' is no version"),
        ({"labels": {"a/b": None}}, "labels: 'a/b' is no label: REST cannot name it"),
        ({"labels": {"canary": {"second": 1}}}, "labels.canary.second: there is no such key; did you mean"),
        ({"labels": {"canary": {"probes": 3}}}, "labels.canary.probes: needs a probe"),
        ({"labels": {"c": {"seconds": -1}}}, "labels.c.seconds: must be a number of seconds"),
        (
            {"labels": {"a": {"seconds": 1}, "b": {"seconds": 1}}},
            "labels: only one label can be a canary, not a and b",
        ),
        ({"labels": {"a": {"seconds": 1, "version": 3}}}, "labels.a: a label with a version of its own"),
        ({"hours": {"timezone": "Europe/Berlin"}}, "hours.windows: is missing"),
        (
            {"hours": {"timezone": "Europe/Berln", "windows": ["22:00-05:00"]}},
            "hours.timezone: no time zone 'Europe/Berln'; did you mean 'Europe/Berlin'?",
        ),
        ({"hours": {"timezone": "UTC", "windows": ["mo 22:00-05:00"]}}, "hours.windows.0: a window is"),
        ({"hours": {"timezone": "UTC", "windows": ["xyz 22:00-05:00"]}}, "hours.windows.0: 'xyz' is no day"),
        ({"hours": {"timezone": "UTC", "windows": ["22:00-25:00"]}}, "'25:00' is no time of the day"),
        ({"max_concurrent_loads": 0}, "max_concurrent_loads: must be a whole number, at least 1"),
        ({"load_timeout": 0}, "load_timeout: must be a number of seconds above 0"),
        ({"keep": -1}, "keep: must be a whole number, at least 0"),
        ({"probe": {}}, "probe: give either inputs or a recorded request"),
        ({"probe": {"request": "%%%"}}, "probe.request: is no base64"),
        ({"probe": {"request": "AAAA"}}, "probe.request: not a serialized PredictRequest"),
        ({"probe": {"inputs": {"x": 1}, "timeout": 0}}, "probe.timeout: must be a number"),
        ({"probe": {"file": "missing.json"}}, "probe.file: "),
    ],
)
def test_what_is_wrong(data: dict[str, object], problem: str) -> None:
    """An error names the keys that lead to it, and what would be right."""
    with pytest.raises(PolicyError) as caught:
        Policy.from_dict(data)
    assert problem in str(caught.value)


def test_everything_that_is_wrong_at_once() -> None:
    """One look is enough to mend a policy."""
    with pytest.raises(PolicyError) as caught:
        Policy.from_dict({"versions": "x", "keep": -1, "hours": {"timezone": "?", "windows": ["?"]}})
    paths = {problem.path for problem in caught.value.problems}
    assert paths >= {("versions",), ("hours", "timezone"), ("hours", "windows", "0")}
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("Europe/Berlin")).timestamp()


@pytest.mark.parametrize(
    ("moment", "open_"),
    [
        ("2026-03-02 21:59", False),  # a Monday
        ("2026-03-02 22:00", True),
        ("2026-03-03 04:59", True),
        ("2026-03-03 05:00", False),
        ("2026-03-06 23:00", True),  # Friday
        ("2026-03-07 04:00", True),  # its night goes on
        ("2026-03-08 23:00", False),  # Sunday
        ("2026-03-09 03:00", False),  # Sunday's night is no window
    ],
)
def test_hours(moment: str, open_: bool) -> None:
    """A window over midnight belongs to the day on which it begins."""
    hours = Hours("Europe/Berlin", ("mon-fri 22:00-05:00",))
    assert hours.allow(at(moment)) is open_
    if not open_:
        opens = hours.next_open(at(moment))
        assert hours.allow(opens)
        assert not hours.allow(opens - 60)


def test_hours_over_a_change_of_the_clock() -> None:
    """Windows are on the local clock: 02:30 does not exist in the night to summer time."""
    hours = Hours("Europe/Berlin", ("02:00-03:00",))
    assert hours.next_open(at("2026-03-28 12:00")) == at("2026-03-30 02:00")
    assert hours.next_open(at("2026-10-24 12:00")) == at("2026-10-25 02:00")


def test_a_probe_with_a_recorded_request() -> None:
    """Model and version of the record are replaced, its signature stays."""
    message = Probe(request=REQUEST).message("digits", 7)
    assert (message.model_spec.name, message.model_spec.version.value) == ("digits", 7)
    assert message.model_spec.WhichOneof("version_choice") == "version"
    assert message.model_spec.signature_name == "other"


def test_a_probe_compares() -> None:
    """Numbers within the tolerance, texts exactly; the difference is told with its place."""
    probe = Probe(inputs={"x": 1}, outputs={"y": [[1.0, 2.0]], "name": ["a"]}, tolerance=0.01)
    good = {"y": np.array([[1.001, 2.0]]), "name": np.array([b"a"], object), "more": np.array(1)}
    assert probe.difference(good) == ""
    assert "output 'y' at [0, 1] is 3.0, not 2.0" in probe.difference({**good, "y": np.array([[1.0, 3.0]])})
    assert "has shape (2,), not (1, 2)" in probe.difference({**good, "y": np.array([1.0, 2.0])})
    assert "is b'b', not 'a'" in probe.difference({**good, "name": np.array([b"b"], object)})
    assert "there is no output 'y', only 'name'" in probe.difference({"name": np.array([b"a"], object)})


def test_a_probe_from_a_file(tmp_path: Path) -> None:
    """JSON with inputs and outputs, or a serialized request; a policy may name it."""
    (tmp_path / "probe.json").write_text('{"inputs": {"x": [1]}, "outputs": {"y": [2]}}')
    (tmp_path / "probe.pb").write_bytes(REQUEST)
    policy = Policy.from_dict({"probe": {"file": "probe.json", "timeout": 3}}, folder=tmp_path)
    assert policy.probe == Probe(inputs={"x": [1]}, outputs={"y": [2]}, timeout=3)
    assert Policy.from_dict({"probe": {"file": "probe.pb"}}, folder=tmp_path).probe == Probe(request=REQUEST)
    (tmp_path / "bad.json").write_text("[")
    with pytest.raises(PolicyError, match="is no JSON"):
        Policy.from_dict({"probe": {"file": "bad.json"}}, folder=tmp_path)


def test_a_policy_reads_as_a_sentence() -> None:
    """For logs and events."""
    assert str(Policy(labels={"stable": Label(), "canary": Label(seconds=60)})) == (
        "latest; label stable; label canary (60 s)"
    )
