"""`aioserving completion`."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
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


def test_files_are_left_to_the_shell(spawn: Callable[..., Ran]) -> None:
    """Where a file is wanted the answer is that the shell is to complete it, for arguments and options."""
    for words in (
        ("score", "rows"),
        ("score", "rows.parquet", "ou"),
        ("reload", "models"),
        ("config", "diff", "old"),
        ("labels", "show", "digits", "--models", "mod"),
        ("status", "--ca", "ca"),
        ("status", "--config", "x"),
        ("repository", "serve", "set"),
    ):
        env = {
            "_AIOSERVING_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(["aioserving", *words]),
            "COMP_CWORD": str(len(words)),
        }
        assert spawn(env=env).out == f"file,{words[-1]}\n", words


# -- real shells --------------------------------------------------------------------------------------


@pytest.fixture
def in_shell(environment: dict[str, str], home: Path) -> dict[str, str]:
    """The environment of a shell that finds the program, in a folder with a file to be completed."""
    program = home / "aioserving"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m aioserving "$@"\n')
    program.chmod(0o755)
    Path("input.parquet").touch()
    return {**environment, "PATH": f"{program.parent}:{environment['PATH']}", "PYTHONPATH": str(ROOT)}


#: What is typed before the Tab key is hit, and what it becomes.
TYPED = {
    "aioserving reg": "aioserving regress ",
    "aioserving predict --ra": "aioserving predict --random ",
    "aioserving labels m": "aioserving labels move ",
    "aioserving score inp": "aioserving score input.parquet ",
}


@pytest.mark.parametrize(
    ("shell", "setup"),
    [
        (["bash", "--norc", "--noprofile", "-i"], 'eval "$(aioserving completion bash)"'),
        (["zsh", "-f", "-i"], 'autoload -U compinit; compinit -u -D; eval "$(aioserving completion zsh)"'),
    ],
    ids=["bash", "zsh"],
)
def test_the_tab_key_completes_in_a_shell(in_shell: dict[str, str], shell: list[str], setup: str) -> None:
    """Commands, options, those of groups and files are completed in a shell that took the script."""
    if shutil.which(shell[0]) is None:
        pytest.skip(f"there is no {shell[0]} here")
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    process = subprocess.Popen(
        shell,
        stdin=side,
        stdout=side,
        stderr=side,
        env={**in_shell, "TERM": "dumb" if shell[0] == "zsh" else "xterm", "PS1": "% "},
        start_new_session=True,
    )
    os.close(side)
    written = b""

    def read_until(text: str) -> None:
        nonlocal written
        end = time.monotonic() + 30
        while text.encode() not in written:
            assert time.monotonic() < end, written
            if select.select([main], [], [], 1)[0]:
                written += os.read(main, 65536)
        written = b""

    try:
        os.write(main, f"{setup}; echo READ'Y'\n".encode())
        read_until("READY")
        for typed, completed in TYPED.items():
            os.write(main, f"{typed}\t".encode())
            read_until(completed)
            os.write(main, b"\x15")  # Ctrl-U: empties the line
    finally:
        process.kill()
        process.wait()
        os.close(main)


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish here")
def test_fish_completes(in_shell: dict[str, str]) -> None:
    """What fish offers for each line, told as its own `complete -C` tells it."""
    script = "aioserving completion fish | source; " + "; ".join(f"complete -C '{typed}'" for typed in TYPED)
    done = subprocess.run(
        ["fish", "--no-config", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env=in_shell,
        check=True,
    )
    offered = [line.partition("\t")[0] for line in done.stdout.splitlines() if line]
    assert offered == [completed.split()[-1] for completed in TYPED.values()]
