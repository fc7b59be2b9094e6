"""`aioserving status`."""

from __future__ import annotations

import pytest

pytest.importorskip("click", reason="needs the extra `cli`")

from aioserving.testing import ServerProcess

from .conftest import Run


def test_every_version_of_every_model(on: Run, server: ServerProcess) -> None:
    """A line for each version on each server; 0 only if every model is available."""
    found = on("status", "digits", "many")
    assert found.code == 0
    assert [line.split() for line in found.lines[1:]] == [
        ["digits", "2", "AVAILABLE", server.target, "-"],
        ["digits", "1", "AVAILABLE", server.target, "-"],
        ["many", "1", "AVAILABLE", server.target, "-"],
    ]
    found = on("status", "digits", "nobody", "--json")
    assert found.code == 1
    assert [(item["model"], item["available"]) for item in found.json] == [
        ("digits", True),
        ("nobody", False),
    ]
    assert found.json[0]["versions"][0] == {"version": 2, "state": "AVAILABLE", "error": None}
    assert "Could not find any versions" in found.json[1]["error"]


def test_without_a_model_servers_are_seen_to_answer(run: Run, on: Run, server: ServerProcess) -> None:
    """One line for each target; a variable names the model, too."""
    found = on("status")
    assert (found.code, found.lines[1].split()) == (0, [server.target, "READY", "-"])
    assert on("status", env={"AIOSERVING_MODEL": "many"}).lines[1].startswith("many")


def test_a_target_that_does_not_answer(run: Run, on: Run, server: ServerProcess) -> None:
    """Of several, the others are shown all the same, and the answer is no; of one, it is an error."""
    found = on("status", "digits", "--target", "127.0.0.1:1", "--json")
    assert found.code == 1
    assert {item["target"]: item["state"] for item in found.json} == {
        server.target: "AVAILABLE",
        "127.0.0.1:1": "FAILED",
    }
    found = run("status", "digits", "-t", "127.0.0.1:1")
    assert (found.code, found.out) == (3, "")
    assert "UNAVAILABLE" in found.err
    assert "aioserving doctor" in found.err


def test_a_server_that_says_nothing(run: Run, server: ServerProcess) -> None:
    """The timeout ends it."""
    with ServerProcess(callables={"many": "tests.models:many_signatures"}) as silent:
        silent.pause()
        found = run("status", "many", "-t", silent.target, "--timeout", "300ms")
    assert found.code in (3, 4)
