"""`aioserving serve`."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

pytest.importorskip("click", reason="needs the extra `cli`")

from .conftest import Ran, Run


def test_it_serves_until_it_is_told_to_end(environment: dict[str, str], run: Run) -> None:
    """Flags go to the testing server as they are; Ctrl-C ends it with 0."""
    process = subprocess.Popen(
        [
            sys.executable, "-m", "aioserving", "serve", "--testing_pick_port", "--testing_host", "127.0.0.1",
            "--testing_announce=true", "--testing_callable=digits=tests.models:versions",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        word, target = process.stdout.readline().split()
        assert word == "ready"
        assert run("status", "digits", "-t", target).code == 0
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Running gRPC ModelServer at 127.0.0.1:" in err
    assert "stopping" in err


def test_flags_that_are_none(spawn: Callable[..., Ran]) -> None:
    """The server's own words and code; 255 if it cannot start."""
    found = spawn("serve", "--prot=8500")
    assert found.code == 2
    assert "unknown flag --prot; the nearest is --port" in found.err
    found = spawn("serve", "--model_config_file=nowhere.config", "--testing_pick_port")
    assert found.code == 255
    assert "Failed to start server" in found.err


def test_help_has_all_flags(run: Run) -> None:
    """Those of the real server, and the testing server's own."""
    text = run("serve", "--help").out
    assert "--model_base_path=" in text
    assert "--testing_callable=" in text
