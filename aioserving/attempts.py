"""What became of a call: the story of its attempts, as facts that results and errors carry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Attempt", "tell"]


class Attempt(NamedTuple):
    """One attempt of a call: where it went, how long it took, how it ended."""

    #: The address that it went to.
    target: str
    #: Seconds from the beginning of the call to that of the attempt.
    started: float
    #: Seconds that the attempt took.
    seconds: float
    #: Name of the gRPC status that it ended with: ``"OK"``, or why it failed; ``"SUPERSEDED"`` if another
    #: attempt had answered first.
    code: str = "OK"
    #: What the server, or gRPC, said when it failed.
    details: str = ""
    #: Whether it was a hedge: sent while another attempt was under way.
    hedge: bool = False

    def __str__(self) -> str:
        kind = "hedge at " if self.hedge else ""
        return f"{kind}{self.target}: {self.code} after {_seconds(self.seconds)}"


def tell(attempts: Sequence[Attempt]) -> str:
    """The story of several attempts in one line; empty if there was only one."""
    if len(attempts) < 2:
        return ""
    end = max(attempt.started + attempt.seconds for attempt in attempts)
    return f"{len(attempts)} attempts in {_seconds(end)}: " + ", ".join(map(str, attempts))


def _seconds(value: float) -> str:
    return f"{value:.2g} s" if value >= 1 else f"{value * 1e3:.3g} ms"
