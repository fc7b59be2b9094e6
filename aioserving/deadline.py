"""When a call has to be over: one fixed point in time, on the event loop's clock.

A timeout becomes a deadline at the edge of the library and stays one inside, so that waiting in line,
fetching metadata and the call itself share it instead of each starting anew.
"""

from __future__ import annotations

import math
import sys

__all__ = ["deadline_after"]

#: The module in which anyio keeps its cancel scopes; it imports it with the first one that is made.
_SCOPES = "anyio._backends._asyncio"


def deadline_after(timeout: float | None, now: float) -> float | None:
    """The deadline of a call that starts at `now`, on the running loop's clock; None if it has none.

    It is the sooner of `timeout` and the ambient `anyio.fail_after()` or `anyio.move_on_after()`. (The
    standard library's `asyncio.timeout` cannot be seen from inside; it still cancels the call.)

    Args:
        timeout: seconds from now, or None for no limit of its own.
        now: `loop.time()` of the running loop.

    Raises:
        ValueError: `timeout` is negative or not a number.
    """
    if timeout is None:
        own = math.inf
    elif timeout >= 0:
        own = now + timeout
    else:
        raise ValueError(f"timeout must be a number of seconds, at least 0, or None; got {timeout!r}")
    if _SCOPES in sys.modules:  # else nobody can be in one, and looking for it would import it
        import anyio

        own = min(own, anyio.current_effective_deadline())
    return None if own == math.inf else own
