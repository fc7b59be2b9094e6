"""Who is told what a client decides: functions of the user's, and the log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from aioserving.events import Event

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

    __slots__ = ("_observers",)

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers = tuple(observers)

    def __repr__(self) -> str:
        return f"<Observers: {len(self._observers)}>"

    def __bool__(self) -> bool:
        """Whether there is anybody but the log, and events of every call are worth making."""
        return bool(self._observers)

    def emit(self, event: Event) -> None:
        """Log an event and tell it to everybody."""
        if event.logged and logger.isEnabledFor(event.level):
            logger.log(event.level, "%s", event)
        for observer in self._observers:
            try:
                observer(event)
            except Exception:
                logger.exception("observer %r failed on %r", observer, event)
