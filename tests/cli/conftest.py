"""The command line in this process, or in one of its own, against a server in another."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aioserving.testing import ServerProcess

ROOT = Path(__file__).parents[2]
CALLABLES = {
    "digits": "tests.models:versions",
    "graded": "tests.models:graded",
    "many": "tests.models:many_signatures",
}


@dataclass
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which has to be one JSON document."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


Run = Callable[..., Ran]


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """A server whose models nobody changes."""
    with ServerProcess(callables=CALLABLES, env={"PYTHONPATH": str(ROOT)}) as process:
        yield process


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, and another to be at home in, without variables that mean something."""
    for name in list(os.environ):
        if name.startswith("AIOSERVING_") or name in ("NO_COLOR", "FORCE_COLOR", "XDG_CONFIG_HOME"):
            monkeypatch.delenv(name)
    for folder in ("home", "here"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


@pytest.fixture
def run(home: Path) -> Run:
    """Run a command line in this process: ``run("status", "digits", input=..., env=...)``."""
    pytest.importorskip("click", reason="needs the extra `cli`")
    pytest.importorskip("rich", reason="needs the extra `cli`")
    from click.testing import CliRunner

    from aioserving.cli.group import root

    mixed: dict[str, Any] = (
        {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    )

    def call(
        *arguments: str, input: str | bytes | None = None, env: Mapping[str, str | None] | None = None
    ) -> Ran:
        result = CliRunner(**mixed).invoke(root, list(arguments), input=input, env=env)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)

    return call


@pytest.fixture
def on(run: Run, server: ServerProcess) -> Run:
    """The same, with the server as the target."""

    def call(*arguments: str, **more: Any) -> Ran:
        return run(*arguments, "--target", server.target, **more)

    return call


@pytest.fixture
def environment(home: Path) -> dict[str, str]:
    """What a process of the command line finds in its environment."""
    pytest.importorskip("click", reason="needs the extra `cli`")
    pytest.importorskip("rich", reason="needs the extra `cli`")
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}


@pytest.fixture
def spawn(environment: dict[str, str]) -> Callable[..., Ran]:
    """Run a command line as a process: for what an exit code, or the end of a pipe, depends on."""

    def call(*arguments: str, env: Mapping[str, str] | None = None, **more: Any) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "aioserving", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env={**environment, **(env or {})},
            check=False,
            **more,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return call
