"""Who is told what a client decides: functions of the user's, and the log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from aioserving.attempts import Attempt
    from aioserving.events import CallEnded, Event

__all__ = ["Observer", "Observers"]

logger = logging.getLogger("aioserving")

#: What gets events (`aioserving.events`): a function; what it returns is ignored. It is called on the event
#: loop, at once, so it must be quick; one that raises is logged and does no harm.
Observer: TypeAlias = "Callable[[Event], object]"


class Observers:
    """Everybody who is told, and the log.

    Args:
        observers: the functions.
    """

    __slots__ = ("_call_ended", "_observers")

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers = tuple(observers)
        self._call_ended: type[CallEnded] | None = None

    def __repr__(self) -> str:
        return f"<Observers: {len(self._observers)}>"

    def __bool__(self) -> bool:
        """Whether there is anybody but the log, and events of every call are worth making."""
        return bool(self._observers)

    def emit(self, event: Event) -> None:
        """Log an event and tell it to everybody."""
        if event.logged and logger.isEnabledFor(event.level):
            logger.log(event.level, "%s", event)
        self._tell(event)

    def call_ended(
        self, model: str | None, method: str, code: str, seconds: float, attempts: tuple[Attempt, ...]
    ) -> None:
        """Tell everybody that a call is over; not for the log, and made for each call, so made quickly."""
        kind = self._call_ended
        if kind is None:
            from aioserving.events import CallEnded

            kind = self._call_ended = CallEnded
        self._tell(kind(model, method, code, seconds, attempts))

    def _tell(self, event: Event) -> None:
        for observer in self._observers:
            try:
                observer(event)
            except Exception:
                logger.exception("observer %r failed on %r", observer, event)
