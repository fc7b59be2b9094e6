"""aioserving.testing.rules: the decisions of the real server, case by case."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import text_format

from aioserving._proto import message_class
from aioserving.testing import rules
from aioserving.testing.rules import Action, Phase, ServableId, Snapshot, State, VersionState
from aioserving.testing.status import StatusCode, StatusError

NEW, LOADING, READY, ERROR = Phase.NEW, Phase.LOADING, Phase.READY, Phase.ERROR


def models(text: str) -> Any:
    """The `ModelConfig` messages that `text` lists."""
    config: Any = message_class("tensorflow.serving.ModelConfigList")()
    text_format.Parse(text, config)
    return config.config


def policy(text: str = "") -> Any:
    """A version policy."""
    config: Any = message_class("tensorflow.serving.ModelConfig")()
    text_format.Parse(f"model_version_policy {{ {text} }}" if text else "", config)
    return config.model_version_policy


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("1", 1),
        ("0", 0),
        ("00000123", 123),
        ("-5", -5),
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775808", None),
        ("1a", None),
        ("a1", None),
        ("1.0", None),
        ("", None),
        ("0x1", None),
        ("1_000", None),
        ("\u0661", None),
    ],
)
def test_version_number(name: str, version: int | None) -> None:
    """A folder is a version if its whole name is a signed 64-bit integer, in ASCII digits."""
    assert rules.version_number(name) == version


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {10: "10"}),
        ("latest { num_versions: 0 }", {10: "10"}),
        ("latest { num_versions: 2 }", {10: "10", 3: "3"}),
        ("latest { num_versions: 9 }", {10: "10", 3: "3", 2: "2"}),
        ("all { }", {10: "10", 3: "3", 2: "02"}),
        ("specific { versions: 2 versions: 77 }", {2: "2"}),
        ("specific { }", {}),
    ],
)
def test_wanted_versions(text: str, expected: dict[int, str]) -> None:
    """Policies choose by number; of two names for one number the last counts, under `all` the first."""
    children = ["3", "2", "02", "10", "notes.txt", "x1"]
    assert rules.wanted_versions(policy(text), children) == expected


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ([], None),
        ([Snapshot(1, NEW, True)], ("load", 1)),
        ([Snapshot(1, NEW, True), Snapshot(3, NEW, True)], ("load", 3)),
        # the new version is loaded before the old one goes
        ([Snapshot(1, READY, False), Snapshot(2, NEW, True)], ("load", 2)),
        ([Snapshot(1, READY, False), Snapshot(2, LOADING, True)], None),
        ([Snapshot(1, READY, False), Snapshot(2, READY, True)], ("unload", 1)),
        # a new version that failed leaves the old one serving
        ([Snapshot(1, READY, False), Snapshot(2, ERROR, True)], None),
        # of several unwanted ones, the lowest goes even before that
        ([Snapshot(1, READY, False), Snapshot(2, READY, False), Snapshot(3, NEW, True)], ("unload", 1)),
        # nothing wanted: everything goes
        ([Snapshot(2, READY, False)], ("unload", 2)),
        ([Snapshot(2, NEW, False)], None),
    ],
)
def test_next_action(versions: list[Snapshot], expected: tuple[str, int] | None) -> None:
    """A model stays available while it changes, and nothing unwanted stays longer than that takes."""
    action = rules.next_action("m", versions)
    assert (action and (action.kind, action.id.version)) == expected


def test_choose() -> None:
    """Over all models, unloads come before loads, and equals go by name."""
    load_a, load_b = Action("load", ServableId("a", 1)), Action("load", ServableId("b", 9))
    unload_c = Action("unload", ServableId("c", 1))
    assert rules.choose([None, load_b, load_a, unload_c]) == unload_c
    assert rules.choose([load_b, None, load_a]) == load_a
    assert rules.choose([None, None]) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'config { name: "a" base_path: "/x" } config { name: "a" base_path: "rel" }',
            "Illegal to list model a multiple times in config list",
        ),
        (
            'config { name: "a" base_path: "/x" } config { name: "b" base_path: "rel/x" }',
            "Expected model b to have an absolute path or URI; got base_path()=rel/x",
        ),
        ('config { name: "a" }', "Expected model a to have an absolute path or URI; got base_path()="),
    ],
)
def test_check_config_refuses(text: str, message: str) -> None:
    """Duplicate names and relative paths are refused, duplicates first."""
    with pytest.raises(StatusError) as caught:
        rules.check_config(models(text))
    assert (caught.value.code, caught.value.message) == (StatusCode.INVALID_ARGUMENT, message)


def test_check_config_accepts() -> None:
    """Absolute paths and URIs pass, and so does an empty name."""
    rules.check_config(models('config { base_path: "/x" } config { name: "b" base_path: "gs://bucket/x" }'))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'name: "m"',
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            "ModelServerConfig::model_platform, model name is m",
        ),
        (
            'name: "m" model_type: TENSORFLOW model_platform: "tensorflow"',
            "Illegal setting both ModelServerConfig::model_type (deprecated) and "
            "ModelServerConfig::model_platform, model name is m",
        ),
        ('name: "m" model_type: OTHER', "ModelServerConfig::model_type choice 2 not supported."),
    ],
)
def test_platform_of_refuses(text: str, message: str) -> None:
    """A model has exactly one of the deprecated type and the platform, and the type is TensorFlow's."""
    with pytest.raises(StatusError) as caught:
        rules.platform_of(models(f"config {{ {text} }}")[0])
    assert (caught.value.code, caught.value.message) == (StatusCode.INVALID_ARGUMENT, message)


def test_platform_of() -> None:
    """The deprecated type stands for the platform."""
    assert rules.platform_of(models("config { model_type: TENSORFLOW }")[0]) == "tensorflow"
    assert rules.platform_of(models('config { model_platform: "x" }')[0]) == "x"


def test_check_platforms() -> None:
    """The platform of a configured model stays; a bad one in the *old* list fails every new list."""
    old = models('config { name: "a" model_platform: "tensorflow" }')
    rules.check_platforms(old, models('config { name: "b" model_platform: "x" } config { name: "c" }'))
    with pytest.raises(
        StatusError, match="For model a platform was tensorflow and new platform requested is x"
    ):
        rules.check_platforms(old, models('config { name: "a" model_platform: "x" }'))
    with pytest.raises(StatusError, match=r"neither .* model name is c"):
        rules.check_platforms(models('config { name: "c" }'), old)


def test_check_routes_and_logging() -> None:
    """Only the platform `tensorflow` exists, spelled so; nobody collects request logs."""
    rules.check_routes(models('config { name: "a" model_platform: "tensorflow" }'))
    with pytest.raises(StatusError, match="Model a requests unsupported platform TensorFlow"):
        rules.check_routes(models('config { name: "a" model_platform: "TensorFlow" }'))
    with pytest.raises(StatusError, match=r"No request-logger-creator provided\."):
        rules.check_logging(models("config { logging_config { sampling_config { sampling_rate: 1 } } }"))


AVAILABLE, END, LOADING_STATE = (VersionState(State[name]) for name in ("AVAILABLE", "END", "LOADING"))


def labelled(**labels: int) -> Any:
    """A list of one model, `m`, with these labels."""
    entries = " ".join(f'version_labels {{ key: "{key}" value: {value} }}' for key, value in labels.items())
    return models(f'config {{ name: "m" {entries} }}')


def test_labels_need_available_versions() -> None:
    """A label points at an available version, or the whole configuration is refused."""
    states = {"m": {1: AVAILABLE, 2: LOADING_STATE, 3: END}}
    assert rules.label_map(labelled(a=1), states, None, allow_unavailable=False) == {"m": {"a": 1}}
    for version in (2, 3, 77):
        with pytest.raises(StatusError) as caught:
            rules.label_map(labelled(a=version), states, None, allow_unavailable=False)
        assert caught.value.code is StatusCode.FAILED_PRECONDITION
        assert caught.value.message == (
            f"Request to assign label to version {version} of model m, "
            "which is not currently available for inference"
        )


def test_labels_for_unavailable_models() -> None:
    """With the flag, new labels point anywhere and old ones may stay; only moving needs availability."""
    states = {"m": {1: AVAILABLE}}
    current = {"m": {"old": 5}}
    allowed = rules.label_map(labelled(new=77, old=5), states, current, allow_unavailable=True)
    assert allowed == {"m": {"new": 77, "old": 5}}
    assert rules.label_map(labelled(old=1), states, current, allow_unavailable=True) == {"m": {"old": 1}}
    with pytest.raises(StatusError, match="version 6 of model m"):
        rules.label_map(labelled(old=6), states, current, allow_unavailable=True)


def test_reached_waits_for_every_model() -> None:
    """A reload is over once each model has a version that serves or has ended; the highest one counts."""
    failed = VersionState(State.END, StatusError(StatusCode.DATA_LOSS, "Can't parse"))
    states = {"a": {1: AVAILABLE, 2: LOADING_STATE}, "b": {3: failed, 2: AVAILABLE}}
    assert rules.reached(["a", "b", "c"], states) is None
    assert rules.reached(["a", "b"], states) == {ServableId("a", 1): AVAILABLE, ServableId("b", 3): failed}
    assert rules.reached([], states) == {}


def test_unavailable_message() -> None:
    """The text counts the failed models and quotes the error of each, sorted by name."""
    failed = VersionState(State.END, StatusError(StatusCode.DATA_LOSS, "Can't parse"))
    found = {ServableId("z", 1): failed, ServableId("b", 2): END, ServableId("a", 1): AVAILABLE}
    assert rules.unavailable_message("model", found) == (
        "2 model(s) did not become available: {{{name: b version: 2}}, "
        "{{name: z version: 1} due to error: DATA_LOSS: Can't parse}, }"
    )
    assert rules.unavailable_message("model", {ServableId("a", 1): AVAILABLE}) is None
