"""When a call has to be over: one fixed point in time, on the event loop's clock.

A timeout becomes a deadline at the edge of the library and stays one inside, so that waiting in line,
fetching metadata and the call itself share it instead of each starting anew.
"""

from __future__ import annotations

import asyncio
import math

import anyio

__all__ = ["deadline_after", "remaining"]


def deadline_after(timeout: float | None) -> float | None:
    """The deadline of a call that starts now on the running loop, on `loop.time()`'s clock; None if none.

    It is the sooner of `timeout` and the ambient `anyio.fail_after()` or `anyio.move_on_after()`. (The
    standard library's `asyncio.timeout` cannot be seen from inside; it still cancels the call.)

    Args:
        timeout: seconds from now, or None for no limit of its own.

    Raises:
        ValueError: `timeout` is negative or not a number.
    """
    ambient = anyio.current_effective_deadline()
    if timeout is None:
        return None if ambient == math.inf else ambient
    if not timeout >= 0:
        raise ValueError(f"timeout must be a number of seconds, at least 0, or None; got {timeout!r}")
    own = asyncio.get_running_loop().time() + timeout
    return min(ambient, own)


def remaining(deadline: float | None) -> float | None:
    """Seconds left until `deadline` (negative once it has passed), or None if there is none."""
    return None if deadline is None else deadline - asyncio.get_running_loop().time()
