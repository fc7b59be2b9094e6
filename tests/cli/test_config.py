"""`aioserving config`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("click", reason="needs the extra `cli`")

from .conftest import Run
from .models_config import model, write


def test_settings_and_where_they_are_from(run: Run) -> None:
    """Every setting with its source; of secrets only that they are there."""
    Path("aioserving.toml").write_text(
        'timeout = "5s"\nprofile = "p"\n[profiles.p]\ntoken = "s3cret"\n[profiles.q]\n'
    )
    arguments = ("config", "show", "-t", "a:1", "-t", "b:2", "--metadata", "x-key=h1dden")
    found = run(*arguments, env={"AIOSERVING_MODEL": "digits", "AIOSERVING_API_KEY": "k3y"})
    assert found.code == 0
    rows = {line.split("  ")[0].strip(): line for line in found.lines}
    assert "a:1, b:2" in rows["target"]
    assert rows["target"].endswith("option --target")
    assert rows["model"].endswith("environment variable AIOSERVING_MODEL")
    assert rows["timeout"].split()[1] == "5.0"
    assert rows["timeout"].endswith("file aioserving.toml")
    assert rows["token"].endswith("(hidden)  file aioserving.toml, profile 'p'".replace("(hidden)  ", ""))
    assert found.lines[:2] == ["config file: aioserving.toml", "profiles: p, q; in force: p"]
    as_json = run(*arguments, "--json", "--profile", "q", env={"AIOSERVING_API_KEY": "k3y"})
    assert as_json.json["profile"] == "q"
    settings = {row["setting"]: row for row in as_json.json["settings"]}
    assert settings["token"]["value"] is None
    assert settings["api_key"]["value"] == "(hidden)"
    assert settings["timeout"]["variable"] == "AIOSERVING_TIMEOUT"
    for text in (found.out, as_json.out):
        assert not any(secret in text for secret in ("s3cret", "k3y", "h1dden"))


def test_problems_have_their_place(run: Run) -> None:
    """FILE:LINE:COLUMN, as compilers write it; errors make it a no, warnings only with --strict."""
    Path("bad.config").write_text(
        "model_config_list {\n"
        '  config { name: "a" base_path: "/a" }\n'
        '  config { name: "a" base_path: "b" model_platform: "torch" }\n'
        "}\n"
    )
    found = run("config", "check", "bad.config")
    assert found.code == 1
    assert found.lines[0].startswith("bad.config:3:12: error: model 'a': named twice, first in line 2")
    assert found.lines[1].startswith("bad.config:3:22: error: model 'a': base_path must be absolute")
    assert any("warning" in line and "torch" in line for line in found.lines)
    Path("typo.config").write_text("model_config_list {\n  confg { }\n}\n")
    found = run("config", "check", "typo.config", "bad.config", "--json")
    assert found.code == 1
    first = found.json[0]
    assert (first["file"], first["line"], first["column"], first["severity"]) == (
        "typo.config",
        2,
        3,
        "error",
    )
    assert "confg" in first["text"]
    assert {problem["file"] for problem in found.json} == {"typo.config", "bad.config"}
    fine = write("fine.config", model("digits"))
    assert run("config", "check", fine).lines == ["no problems found"]
    warned = write("warned.config", {**model("digits"), "model_platform": "torch"})
    assert run("config", "check", warned).code == 0
    assert run("config", "check", warned, "--strict").code == 1
    Path("empty.config").touch()
    assert run("config", "check", "empty.config").code == 0
    assert run("config", "check", "nowhere.config").code == 11


def test_changes_that_a_server_refuses(run: Run, tmp_path: Path) -> None:
    """--old finds a change of platform, --look a base path that is not there."""
    old = write("old.config", model("digits"))
    new = write("new.config", {**model("digits"), "model_platform": "torch"})
    found = run("config", "check", new, "--old", old)
    assert found.code == 1
    assert "the platform of a served model cannot change" in found.out
    (tmp_path / "digits").mkdir()
    look = write("look.config", model("digits", base_path=str(tmp_path / "digts")))
    found = run("config", "check", look, "--look")
    assert "does not exist; is it 'digits'?" in found.out


def test_differences(run: Run) -> None:
    """As diff does: 1 if there are some."""
    old = write("old.config", model("digits", 1, stable=1), model("gone"))
    new = write("new.config", model("digits", 1, 2, stable=2), model("many"))
    found = run("config", "diff", old, new)
    assert found.code == 1
    assert [line[:2] for line in found.lines] == ["+ ", "- ", "~ ", "~ "]
    assert "~ digits: version_labels.stable: 1 -> 2" in found.lines
    as_json = run("config", "diff", old, new, "--json").json
    assert [item["model"] for item in as_json["added"]] == ["many"]
    assert [item["model"] for item in as_json["removed"]] == ["gone"]
    assert {"field": "version_labels.stable", "old": 1, "new": 2} in as_json["changed"]["digits"]
    assert (run("config", "diff", old, old).code, run("config", "diff", old, old).lines) == (
        0,
        ["no changes"],
    )
