"""Waiting for what a server does in the background, and writing the files that it reads meanwhile."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["eventually", "rewrite"]


def eventually(condition: Callable[[], object], *, within: float = 10.0) -> None:
    """Ask again and again until `condition` holds.

    Raises:
        AssertionError: it does not hold within so many seconds.
    """
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, f"not within {within} s"
        time.sleep(0.02)


def rewrite(path: Path, text: str) -> None:
    """Replace a file at one blow, so that a server that polls it never reads half of it."""
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)
