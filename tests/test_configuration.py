"""Configurations as data: reading, checking, comparing and changing them."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from aioserving import (
    ConfigDiff,
    DecodeError,
    InvalidArgumentError,
    InvalidConfigError,
    ModelConfig,
    ModelServerConfig,
    check_config,
    diff_configs,
    read_config,
    write_config,
)
from aioserving.configuration import (
    FieldChange,
    kept_versions,
    label_steps,
    with_labels,
    with_models,
    without_models,
)
from aioserving.messages import ModelConfigList

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """\
# two models
model_config_list: {
  config: {
    name: "digits"  # "{ not a brace"
    base_path: "/models/digits"
    model_version_policy { specific { versions: 1 versions: 2 } }
    version_labels { key: "stable" value: 1 },
  }
  config <
    name: 'many',
    base_path: 's3://bucket/many'
    model_platform: "tensorflow"
  >
}
"""


def config(*models: dict[str, Any]) -> ModelServerConfig:
    return read_config([{"base_path": f"/m/{model['name']}", **model} for model in models])


def test_text_path_models_and_messages_are_the_same_config(tmp_path: Path) -> None:
    """Whatever stands for a config reads as the same one, with the platform filled in, and as a copy."""
    path = tmp_path / "models.config"
    path.write_text(TEXT)
    expected = read_config(TEXT)
    assert [model.name for model in expected.model_config_list] == ["digits", "many"]
    assert expected.model_config_list[0].model_platform == "tensorflow"
    assert expected.model_config_list[0].version_labels == {"stable": 1}
    models = list(expected.model_config_list)
    for source in (path, str(path), models, [model.pb for model in models], [m.to_dict() for m in models]):
        assert read_config(source) == expected
    for whole in (expected, expected.pb, expected.model_config_list, expected.model_config_list.pb):
        copy = read_config(whole)
        assert copy == expected
        copy.model_config_list[0].name = "other"
        assert expected.model_config_list[0].name == "digits"
    assert not read_config("").model_config_list
    assert read_config(ModelConfigList()) == ModelServerConfig(model_config_list=[])


@pytest.mark.parametrize(
    "wrong", [7, None, b"x", {"name": "digits"}, ModelConfig(name="x"), ModelConfig().pb]
)
def test_what_is_no_config_is_refused(wrong: Any) -> None:
    """One model, bytes or a number are not a config."""
    with pytest.raises(TypeError, match="must be a list of ModelConfig"):
        read_config(wrong)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model_config_list {\n  config { nam: 'x' }\n}", r"line 2, column 12.*no field named.*nam.*'name'"),
        ("model_config_list {\n  config { name: 7 }\n}", r"line 2, column 18"),
        ("model_config_list {\n\n  config { name: 'x' name: 'y' }\n}", r"line 3.*name"),
        (
            "model_config_list { config { model_version_policy {\n all {}\n latest {} } } }",
            r"line 3.*latest.*oneof",
        ),
        ("model_config_list { config { name: 'x' }", r"line 1"),
        (
            "model_config_list { config { version_labels { key: 'a' value: 99999999999999999999 } } }",
            "line 1, column 63",
        ),
    ],
)
def test_a_text_with_errors_is_refused_with_its_line(text: str, expected: str, tmp_path: Path) -> None:
    """Unknown fields, wrong types, fields twice, both halves of a oneof, numbers out of range."""
    with pytest.raises(DecodeError, match=expected):
        read_config(text)
    path = tmp_path / "models.config"
    path.write_text(text)
    with pytest.raises(DecodeError, match=f"models.config, {expected}"):
        read_config(path)


def test_what_the_server_would_refuse_is_refused_with_lines() -> None:
    """All problems at once, each with the line, the column and the model."""
    text = """\
model_config_list {
  config { name: "a" base_path: "/m/a" }
  config: [ { name: "b" base_path: "relative" }, {
      name: "a" base_path: "/m/a2" } ]
  config {
    base_path: "gs://x"
    name: "c"
    model_platform: "tensorflow"
    model_type: TENSORFLOW
  }
  config { name: "d" }
}"""
    with pytest.raises(InvalidConfigError) as caught:
        read_config(text)
    problems = {(p.model, p.line, p.column): p.text for p in caught.value.problems}
    assert set(problems) == {("b", 3, 25), ("a", 4, 7), ("c", 9, 5), ("d", 11, 10)}
    assert problems["a", 4, 7] == "named twice, first in line 2"
    assert "'relative'" in problems["b", 3, 25]
    assert "line 4, column 7: model 'a': named twice" in str(caught.value)
    assert isinstance(caught.value, InvalidArgumentError)
    assert (
        read_config(text.replace('name: "a"', 'name: "z"', 1), check=False).model_config_list[0].name == "z"
    )


def test_problems_of_models_as_objects_have_no_line() -> None:
    """What did not come as text is named by its model."""
    with pytest.raises(
        InvalidConfigError, match="^HandleReloadConfigRequest: .*: model 'a': named twice"
    ) as caught:
        config({"name": "a"}, {"name": "a"})
    assert caught.value.problems[0].line is None


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"name": ""}, "empty name"),
        ({"name": "a", "model_platform": "TensorFlow"}, "write 'tensorflow'"),
        ({"name": "a", "model_platform": "custom"}, "knows no platform 'custom'"),
        ({"name": "a", "logging_config": {"sampling_config": {"sampling_rate": 1}}}, "no request logger"),
        ({"name": "a", "model_version_policy": {"specific": []}}, "would never end"),
        ({"name": "a", "version_labels": {"x/y": 1}}, "REST cannot name"),
        (
            {"name": "a", "model_version_policy": {"specific": [1]}, "version_labels": {"new": 2}},
            "label 'new' is for version 2",
        ),
        ({"name": "a", "version_labels": {"new": 2, "old": 1}}, r"labels are on 2 versions, \[1, 2\]"),
    ],
)
def test_what_is_hardly_meant_is_a_warning(model: dict[str, Any], expected: str) -> None:
    """Things that a server may take, or hang on, are told but not refused."""
    import re

    problems = check_config(config(model))
    assert [problem.refused for problem in problems] == [False]
    assert re.search(expected, problems[0].text)
    assert check_config(config({"name": "fine", "version_labels": {"a": 1}})) == []


def test_changes_that_a_server_refuses_or_ignores() -> None:
    """The platform of a served model cannot change; its base path can, but changes less than one thinks."""
    old = config({"name": "a"}, {"name": "b"}, {"name": "c", "model_version_policy": {"specific": [1]}})
    new = config(
        {"name": "a", "model_platform": "other"},
        {"name": "b", "base_path": "/elsewhere"},
        {"name": "c", "model_version_policy": {"specific": []}},  # it is there already: unloads its versions
    )
    problems = check_config(new, old=old)
    assert [(problem.model, problem.refused) for problem in problems] == [
        ("a", True),
        ("a", False),
        ("b", False),
    ]
    assert "cannot change, from 'tensorflow' to 'other'" in problems[0].text
    assert "not loaded again" in problems[2].text
    assert [problem.model for problem in check_config(new)] == ["a", "c"]


def test_base_paths_that_a_reload_would_wait_for(tmp_path: Path) -> None:
    """A missing folder, one without versions, one without those asked for; where files are seen."""
    (tmp_path / "good" / "00000123").mkdir(parents=True)
    (tmp_path / "empty" / "not-a-version").mkdir(parents=True)
    models: dict[str, dict[str, Any]] = {
        "good": {},
        "empty": {},
        "godo": {},
        "good_2": {"base_path": str(tmp_path / "good"), "model_version_policy": {"specific": [7]}},
        "in_a_container": {"base_path": "/nowhere/to/be/seen"},
        "bucket": {"base_path": "s3://bucket/x"},
    }
    made = config(
        *({"name": name, "base_path": str(tmp_path / name), **more} for name, more in models.items())
    )
    problems = {problem.model: problem for problem in check_config(made, look=True)}
    assert set(problems) == {"empty", "godo", "good_2"}
    assert not any(problem.refused for problem in problems.values())
    assert "has no version in it" in problems["empty"].text
    assert "does not exist; is it 'good'?" in problems["godo"].text
    assert "has versions [123], none of [7]" in problems["good_2"].text
    assert check_config(made) == []
    assert check_config(made, old=made, look=True) == []  # served already


def test_a_custom_config_is_refused() -> None:
    """The standard server takes only lists of models."""
    custom = ModelServerConfig(custom_model_config=ModelConfig(name="x"))
    with pytest.raises(InvalidConfigError, match="custom_model_config"):
        read_config(custom)


def test_a_written_file_reads_as_it_was(tmp_path: Path) -> None:
    """The file is what the parser takes; written whole or not at all, through links, with its mode."""
    path = tmp_path / "models.config"
    link = tmp_path / "link.config"
    link.symlink_to(path)
    written = write_config(link, TEXT)
    assert link.is_symlink()
    assert read_config(path) == written == read_config(TEXT)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    path.chmod(0o600)
    write_config(path, [])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    with pytest.raises(InvalidConfigError):
        write_config(path, [ModelConfig(name="x", base_path="y")])
    assert path.read_bytes() == before
    with pytest.raises(OSError, match="missing"):
        write_config(tmp_path / "missing" / "models.config", [])
    assert sorted(os.listdir(tmp_path)) == ["link.config", "models.config"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No half file, and no temporary one."""
    path = tmp_path / "models.config"
    write_config(path, TEXT)
    before = path.read_bytes()

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_config(path, [])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["models.config"]


def test_diff() -> None:
    """Models that come, go and change, whatever their order."""
    old = config({"name": "a"}, {"name": "b"}, {"name": "c", "version_labels": {"stable": 1}})
    new = config(
        {"name": "c", "version_labels": {"stable": 2}, "model_version_policy": {"specific": [1, 2]}},
        {"name": "d", "model_version_policy": {"latest": 2}},
        {"name": "a"},
    )
    diff = diff_configs(old, new)
    assert [model.name for model in diff.added] == ["d"]
    assert [model.name for model in diff.removed] == ["b"]
    assert diff.changed == {
        "c": (
            FieldChange("model_version_policy.specific", None, [1, 2]),
            FieldChange("version_labels.stable", 1, 2),
        )
    }
    assert str(diff).splitlines() == [
        "+ d: /m/d, latest 2",
        "- b: /m/b",
        "~ c: model_version_policy.specific: none -> [1, 2]",
        "~ c: version_labels.stable: 1 -> 2",
    ]
    same = diff_configs(new, list(reversed(list(new.model_config_list))))
    assert not same
    assert same == ConfigDiff()
    assert str(same) == "no changes"


def test_models_are_added_replaced_and_removed_in_copies() -> None:
    """What was given stays as it was."""
    old = config({"name": "a"}, {"name": "b"})
    new = with_models(old, [{"name": "b", "base_path": "/new"}, {"name": "c", "base_path": "/m/c"}])
    assert [(m.name, m.base_path) for m in new.model_config_list] == [
        ("a", "/m/a"),
        ("b", "/new"),
        ("c", "/m/c"),
    ]
    assert [m.name for m in without_models(new, "a").model_config_list] == ["b", "c"]
    assert [m.name for m in without_models(new, ["a", "c"]).model_config_list] == ["b"]
    assert [m.name for m in new.model_config_list] == ["a", "b", "c"]
    assert len(old.model_config_list) == 2
    with pytest.raises(ValueError, match="no model 'digit'; did you mean 'digits'"):
        without_models(config({"name": "digits"}), "digit")
    with pytest.raises(ValueError, match="no model 'x': it has none"):
        without_models([], "x")


def test_labels_are_set_and_taken_away_in_copies() -> None:
    """Other labels stay, and a policy that names versions names the labelled one, too."""
    old = config(
        {"name": "a", "model_version_policy": {"specific": [1]}, "version_labels": {"stable": 1, "old": 1}},
        {"name": "b"},
    )
    new = with_labels(old, "a", {"canary": 2, "old": None, "never": None})
    assert new.model_config_list[0].version_labels == {"stable": 1, "canary": 2}
    assert list(new.model_config_list[0].model_version_policy.specific) == [1, 2]
    assert old.model_config_list[0].version_labels == {"stable": 1, "old": 1}
    free = with_labels(old, "b", {"stable": 3}).model_config_list[1]
    assert not free.model_version_policy.has("specific")
    with pytest.raises(ValueError, match="no model 'c'"):
        with_labels(old, "c", {"stable": 1})
    with pytest.raises(TypeError):
        with_labels(old, "a", {"stable": "one"})  # type: ignore[dict-item]


def test_a_label_moves_in_two_steps_and_never_hangs_in_the_air() -> None:
    """First load, with the label where it is and its version kept; then move it."""
    old = config({"name": "a", "model_version_policy": {"specific": [1]}, "version_labels": {"stable": 1}})
    new = config(
        {"name": "a", "model_version_policy": {"specific": [2]}, "version_labels": {"stable": 2, "new": 2}}
    )
    first, second = label_steps(old, new, {"a": [1]})
    assert second is new
    assert first.model_config_list[0].version_labels == {"stable": 1}
    assert list(first.model_config_list[0].model_version_policy.specific) == [1, 2]
    assert label_steps(None, new, {"a": [1, 2]}) == [new]
    assert label_steps(old, new, {"a": [1, 2]}) == [first, new]  # 2 is on its way out
    assert label_steps(old, new, {}) == [new]  # nobody asked for that model


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        ({}, {3}),
        ({"latest": 0}, {3}),
        ({"latest": 2}, {2, 3}),
        ({"all": True}, {1, 2, 3}),
        ({"specific": [1, 4]}, {1}),
        ({"specific": []}, set()),
    ],
)
def test_versions_that_a_server_goes_on_serving(policy: dict[str, Any], kept: set[int]) -> None:
    """Those that the policy asks for; others are available only until they are unloaded."""
    model = config({"name": "a", "model_version_policy": policy}).model_config_list[0]
    assert kept_versions(model, {1, 2, 3}) == kept
    assert kept_versions(None, {1, 2, 3}) == set()


def test_label_steps_keep_what_is_served_under_a_policy_of_the_latest() -> None:
    """Between the steps the versions are named one by one, so that none goes before its time."""
    new = config({"name": "a", "version_labels": {"stable": 2}}, {"name": "b"})
    first, _ = label_steps(None, new, {"a": [1], "b": []})
    assert first.model_config_list[0].version_labels == {}
    assert list(first.model_config_list[0].model_version_policy.specific) == [1, 2]
    assert first.model_config_list[1] == new.model_config_list[1]
    everything = config({"name": "a", "version_labels": {"stable": 2}, "model_version_policy": {"all": True}})
    first, _ = label_steps(None, everything, {"a": [1]})
    assert first.model_config_list[0].model_version_policy.all
