"""A terminal for commands to write to, and what somebody would see on it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping

#: What is not text: colours and the like, moves of the cursor, and what erases.
_CONTROL = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|[\r\n]")


def on_terminal(
    environment: Mapping[str, str],
    *arguments: str,
    columns: int = 100,
    question: str = "",
    answer: str = "",
    resized: int = 0,
    kind: str = "xterm-256color",
    code: int = 0,
) -> str:
    """What a command writes to a terminal, where somebody acts on what it shows.

    Args:
        environment: of the command, but for TERM.
        arguments: of `aioserving`.
        columns: how wide the terminal is.
        question: what somebody waits to see.
        answer: what is typed then.
        resized: columns that the terminal gets then.
        kind: what TERM says it is.
        code: what the command is to end with.
    """
    main, side = pty.openpty()
    _resize(side, columns)
    process = subprocess.Popen(
        [sys.executable, "-m", "aioserving", *arguments],
        stdin=side,
        stdout=side,
        stderr=side,
        env={**environment, "TERM": kind},
    )
    os.close(side)
    written = b""
    end = time.monotonic() + 60
    try:
        while time.monotonic() < end and select.select([main], [], [], 60)[0]:
            try:
                data = os.read(main, 65536)
            except OSError:  # the other side is closed
                break
            if not data:
                break
            written += data
            if question and question in written.decode(errors="replace"):
                if resized:
                    _resize(main, resized)
                os.write(main, answer.encode())
                question = ""
        assert process.wait(30) == code, written
    finally:
        process.kill()
        process.wait()
        os.close(main)
    return written.decode()


def _resize(terminal: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))


def lines_of(written: str) -> list[str]:
    """Every line that was written, also those that were written over, without colours."""
    pieces = re.sub(r"\x1b\[[0-9;]*m", "", written)
    return [line for line in re.split(r"[\r\n]|\x1b\[[?0-9;]*[A-Za-z]", pieces) if line]


def screen(written: str) -> list[str]:
    """The lines that are left on a terminal that is wide enough, from the top."""
    rows = [""]
    row = column = 0
    place = 0
    while place < len(written):
        control = _CONTROL.match(written, place)
        if control is None:
            line = rows[row].ljust(column)
            rows[row] = line[:column] + written[place] + line[column + 1 :]
            column += 1
            place += 1
            continue
        place = control.end()
        what, count = control[2], control[1]
        if control[0] == "\r":
            column = 0
        elif control[0] == "\n":
            row += 1
            rows += [""] * (row + 1 - len(rows))
        elif what == "A":
            row -= int(count or 1)
            assert row >= 0, "above the first line"
        elif what == "K":
            assert count == "2"
            rows[row] = ""
        else:
            assert what == "m" or (what in "hl" and count == "?25"), f"unexpected {control[0]!r}"
    return [line.rstrip() for line in rows]
