"""`aioserving completion`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("click", reason="needs the extra `cli`")

from .conftest import ROOT, Ran, Run


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(run: Run, shell: str) -> None:
    """Named, or taken from SHELL; it calls the program back."""
    found = run("completion", shell)
    assert found.code == 0
    assert "_AIOSERVING_COMPLETE" in found.out
    assert run("completion", env={"SHELL": f"/usr/bin/{shell}"}).out == found.out


def test_other_shells(run: Run) -> None:
    """They are a usage error."""
    assert run("completion", "tcsh").code == 2
    found = run("completion", env={"SHELL": "/bin/tcsh"})
    assert found.code == 2
    assert "'tcsh' is none of bash, zsh, fish" in found.err


def complete(spawn: Callable[..., Ran], *words: str) -> list[str]:
    env = {
        "_AIOSERVING_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    return [line.partition(",")[2] for line in spawn(env=env).out.splitlines()]


def test_what_is_completed(spawn: Callable[..., Ran]) -> None:
    """Commands, those of groups, options, and the profiles of the config file."""
    assert complete(spawn, "aioserving", "reg") == ["regress"]
    assert complete(spawn, "aioserving", "labels", "m") == ["move"]
    assert "--target" in complete(spawn, "aioserving", "status", "--ta")
    Path("aioserving.toml").write_text("[profiles.production]\n[profiles.test]\n")
    assert complete(spawn, "aioserving", "status", "--profile", "p") == ["production"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_bash_takes_the_script(environment: dict[str, str], run: Run) -> None:
    """What is printed completes a line in a real bash."""
    program = Path("aioserving").resolve()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m aioserving "$@"\n')
    program.chmod(0o755)
    script = run("completion", "bash").out + (
        "\nCOMP_WORDS=(aioserving predict --ra); COMP_CWORD=2\n"
        "_aioserving_completion aioserving --ra predict\n"
        'echo "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env={**environment, "PATH": f"{program.parent}:{environment['PATH']}", "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert done.stdout.split() == ["--random"]
