"""`aioserving reload`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click", reason="needs the extra `cli`")

from aioserving import Client

from .conftest import Run
from .models_config import model, reloadable, settle, write


def test_shown_first_then_done(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """--dry-run shows what would change; without a terminal nothing happens unasked; --yes does it."""
    with reloadable(model("digits", 1), model("graded")) as server:
        old = write("old.config", model("digits", 1), model("graded"))
        new = write("new.config", model("digits", 2, stable=2), model("many"))
        arguments = ("reload", new, "--old", old, "-t", server.target)
        expected = [
            "+ digits: loads version 2",
            "- digits: unloads version 1",
            "~ digits: label 'stable' is set to version 2",
            "+ many: is loaded again, from /callable/many",
            "- graded: is unloaded",
        ]
        found = run(*arguments, "--dry-run")
        assert (found.code, found.lines) == (0, expected)
        assert "does not name are unloaded" in run("reload", new, "-t", server.target, "--dry-run").err
        found = run(*arguments)
        assert (found.code, found.lines) == (2, expected)
        assert "--yes" in found.err
        asked: list[Any] = []
        monkeypatch.setattr("aioserving.cli.reload.confirm", asked.append)
        found = run(*arguments)
        assert (found.code, len(asked)) == (1, 1)
        assert "nothing was changed" in found.err
        assert run("metadata", "many", "-t", server.target).code == 5
        found = run(*arguments, "--yes")
        assert found.code == 0, found
        assert found.lines[len(expected)] == "serving digits, many"
        with Client(server.target) as client:
            assert client.get_model_metadata("digits", version_label="stable").version == 2
            assert client.get_model_status("many").available
        settle(server, model("digits", 2), model("many"))
        assert run(*arguments, "--dry-run").lines == ["- graded: is unloaded"]  # --old is not true any more
        found = run("reload", new, "--dry-run", "-t", server.target)
        assert found.lines == ["no changes that the server can be asked about"]


def test_several_servers_for_programs(run: Run) -> None:
    """Each has its own changes; JSON has them, and how the models are."""
    with reloadable(model("digits", 1)) as first, reloadable(model("digits", 1, 2)) as second:
        new = write("new.config", model("digits", 1, 2))
        targets = ("-t", first.target, "-t", second.target)
        lines = run("reload", new, "--dry-run", *targets).lines
        assert lines == [f"{first.target}:", "+ digits: loads version 2"]
        found = run("reload", new, "--yes", "--json", *targets).json
        assert found["applied"] is True
        assert found["changes"] == [
            {"sign": "+", "target": first.target, "model": "digits", "text": "loads version 2"}
        ]
        assert sorted(load["target"] for load in found["loads"]) == sorted([first.target, second.target])


def test_files_that_are_wrong(run: Run) -> None:
    """They are refused before any server is asked, with file, line and column."""
    Path("typo.config").write_text("model_config_list {\n  confg { }\n}\n")
    Path("path.config").write_text('model_config_list {\n config { name: "m" base_path: "relative" }\n}\n')
    nobody = ("-t", "127.0.0.1:1", "--yes")
    found = run("reload", "typo.config", *nobody)
    assert (found.code, found.out) == (6, "")
    assert "typo.config, line 2, column 3" in found.err
    found = run("reload", "path.config", *nobody)
    assert found.code == 6
    assert "path.config: line 2, column 21: model 'm': base_path must be absolute" in found.err
    assert run("reload", "no.config", *nobody).code == 11


def test_a_model_that_is_not_there(run: Run) -> None:
    """A reload that the server would hang on ends with the timeout, and says what it waits for meanwhile."""
    with reloadable(model("digits")) as server:
        new = write("new.config", model("digits"), model("nobody", base_path="/callable/nobody"))
        found = run("reload", new, "--yes", "-t", server.target, "--timeout", "4s")
    assert found.code == 4
    assert "does not come back: the server has found no version of 'nobody'" in found.err
