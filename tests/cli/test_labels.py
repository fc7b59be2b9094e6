"""`aioserving labels`."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

pytest.importorskip("click", reason="needs the extra `cli`")

from aioserving import Client, read_config

from .conftest import Run
from .models_config import model, reloadable, write


def test_labels_are_shown_as_servers_know_them(run: Run) -> None:
    """By name or from a file; the answer is no if one is missing, or is not what the file says."""
    with reloadable(model("digits", 1, 2, stable=1)) as server:
        show = ("labels", "show", "digits", "-t", server.target)
        found = run(*show, "stable")
        assert (found.code, found.lines[1].split()) == (0, ["stable", "1", server.target])
        found = run(*show, "stable", "canary", "--json")
        assert found.code == 1
        assert [(row["label"], row["version"]) for row in found.json] == [("stable", 1), ("canary", None)]
        assert run(*show, "--models", write("true.config", model("digits", 1, 2, stable=1))).code == 0
        found = run(*show, "--models", write("false.config", model("digits", 1, 2, stable=2)))
        assert (found.code, found.lines[1].split()[:3]) == (1, ["stable", "1", "2"])
        assert run(*show).code == 2
        assert run("labels", "show", "nobody", "x", "-t", server.target).code == 5


def test_a_label_moves_without_a_gap(run: Run) -> None:
    """The version is loaded first; a caller by label is answered throughout; the file has the new label."""
    with reloadable(model("digits", 1, stable=1), model("many")) as server:
        file = write("models.config", model("digits", 1, stable=1), model("many"))
        stop = threading.Event()
        answered: list[int] = []

        def call() -> None:
            with Client(server.target) as client:
                while not stop.is_set():
                    answered.append(client.get_model_metadata("digits", version_label="stable").version)

        caller = threading.Thread(target=call)
        caller.start()
        try:
            move = ("labels", "move", "digits", "stable", "2", "--models", file, "-t", server.target)
            assert run(*move).code == 2  # nobody is there to be asked
            found = run(*move, "--yes")
            assert found.code == 0, found
            seen = len(answered)
            while len(answered) < seen + 5 and caller.is_alive():
                pass
        finally:
            stop.set()
            caller.join()
        assert found.lines == ["~ digits: stable: 1 -> 2", "digits: stable 2"]
        assert answered[0] == 1
        assert answered[-1] == 2
        config = read_config(Path(file))
        assert [found.name for found in config.model_config_list] == ["digits", "many"]
        assert config.model_config_list[0].version_labels == {"stable": 2}
        assert sorted(config.model_config_list[0].model_version_policy.specific) == [1, 2]
        change = ("labels", "set", "digits", "stable=none", "old=1", "--models", file, "-t", server.target)
        found = run(*change, "--no-write", "--yes", "--json")
        assert found.code == 0, found
        assert '"labels": {"old": 1}' in found.out
        assert read_config(Path(file)).model_config_list[0].version_labels == {"stable": 2}
        assert run("labels", "show", "digits", "stable", "-t", server.target).code == 1


def test_what_cannot_be_done(run: Run) -> None:
    """A label or model that the file does not have, a version that is none."""
    file = write("models.config", model("digits", 1, stable=1))
    nobody = ("--models", file, "--yes", "-t", "127.0.0.1:1")
    found = run("labels", "move", "digits", "canary", "2", *nobody)
    assert found.code == 5
    assert "'stable'" in found.err
    found = run("labels", "set", "digit", "x=1", *nobody)
    assert found.code == 5
    assert "did you mean 'digits'?" in found.err
    assert run("labels", "set", "digits", "x=one", *nobody).code == 2
    assert run("labels", "set", "digits", "x", *nobody).code == 2
    assert run("labels", "set", "digits", "x=1", *nobody).code == 3
