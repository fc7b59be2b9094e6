"""`aioserving wait`."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("click", reason="needs the extra `cli`")

from aioserving.testing import ServerProcess

from .conftest import ROOT, Run


def test_what_is_there_needs_no_waiting(on: Run, server: ServerProcess) -> None:
    """Models, and servers without one."""
    found = on("wait", "digits", "many")
    assert (found.code, found.lines) == (
        0,
        ["digits: version 2 is available", "many: version 1 is available"],
    )
    assert on("wait", "digits", "--version", "1", "--json").json["models"] == [
        {"model": "digits", "version": 1}
    ]
    assert on("wait").lines == [f"ready: {server.target}"]


def test_the_time_is_over(on: Run) -> None:
    """Exit code 4, and the last that was seen; in a log, news are lines."""
    found = on("wait", "nobody", "--timeout", "500ms")
    assert found.code == 4
    assert "did not become available in time" in found.err
    assert found.err.splitlines()[0] == "waiting for nobody"
    assert on("wait", "--version", "2").code == 2


def test_a_model_that_fails_to_load(run: Run) -> None:
    """Waiting longer would be no use: it ends at once with exit code 9 and the reason."""
    with ServerProcess(
        callables={"flawed": "tests.scenarios.callables:flawed"}, env={"PYTHONPATH": str(ROOT)}
    ) as process:
        found = run("wait", "flawed", "--version", "1", "-t", process.target, "--timeout", "30")
    assert found.code == 9
    assert "broken on purpose" in found.err


def test_a_server_that_is_still_to_come_up(environment: dict[str, str]) -> None:
    """It waits for the server, then for the model."""
    process = ServerProcess(callables={"digits": "tests.models:versions"}, env={"PYTHONPATH": str(ROOT)})
    with process:
        process.kill()
        waiting = subprocess.Popen(
            [sys.executable, "-m", "aioserving", "wait", "digits", "-t", process.target, "--timeout", "50"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        with waiting:
            assert waiting.stderr is not None
            while "no answer" not in (line := waiting.stderr.readline()):
                assert line, "it ended by itself"
            process.start()
            out, _ = waiting.communicate(timeout=60)
    assert (waiting.returncode, out) == (0, "digits: version 2 is available\n")
