"""What happens in a repository, told to whoever watches.

    async for event in controller.watch():
        print(event)

The controller publishes; this module keeps the last events and hands them out. A watcher that does not keep
up loses the oldest it has not read and is told how many.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any, Final, Literal

__all__ = ["Event", "EventKind", "Events", "Watch"]

EventKind = Literal[
    "started",  # the controller works
    "stopped",  # it does not any more
    "policy",  # a policy was set, changed or removed
    "found",  # the store has a new version
    "fetching",
    "fetched",
    "fetch failed",
    "rollout",  # a new version begins its way to the servers
    "reload",  # a server was given a new list of models
    "reload failed",
    "available",  # a version can serve on a server
    "load failed",
    "probed",  # a version answered a probe rightly
    "probe failed",
    "label",  # a label was moved, set or removed
    "promoted",
    "unloaded",  # a version is wanted no more
    "quarantined",
    "released",  # a version was taken out of quarantine
    "deleted",  # a version was deleted from disk
    "server down",
    "server up",
    "server restarted",
    "problem",  # something needs a person
    "missed",  # events that this watcher was too slow for
]

#: Events kept for those who come later, and for a watcher that is slow.
KEPT: Final = 1000


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened."""

    #: When, in seconds since 1970.
    at: float
    kind: EventKind
    #: What and why, in words.
    text: str
    model: str | None = None
    version: int | None = None
    #: Name of the server that it is about, or None.
    server: str | None = None
    #: Counts up by one from event to event of a controller.
    number: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The fields in plain JSON types; those that are None are left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        moment = datetime.fromtimestamp(self.at, timezone.utc).strftime("%H:%M:%S.%f")[:-3]
        about = " ".join(
            part
            for part in (
                self.model,
                str(self.version) if self.version is not None else None,
                f"on {self.server}" if self.server is not None else None,
            )
            if part
        )
        return f"{moment} {self.kind}{f' {about}' if about else ''}{f': {self.text}' if self.text else ''}"


class Watch(AsyncIterator[Event]):
    """The events for one watcher; ends when the controller closes, or by `close`."""

    def __init__(self, events: Events, earlier: tuple[Event, ...], room: int) -> None:
        self._events = events
        self._waiting: collections.deque[Event] = collections.deque(earlier, maxlen=room)
        self._missed = 0
        self._arrived = asyncio.Event()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Watch: {len(self._waiting)} unread{', closed' if self._closed else ''}>"

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> Event:
        while True:
            if self._missed:
                missed, self._missed = self._missed, 0
                at = self._waiting[0].at if self._waiting else 0.0
                return Event(at, "missed", f"{missed} events, as this watcher was too slow")
            if self._waiting:
                return self._waiting.popleft()
            if self._closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()

    def close(self) -> None:
        """Get no more events; those not read yet still come."""
        self._closed = True
        self._events.watches.discard(self)
        self._arrived.set()

    def put(self, event: Event) -> None:
        """Hand over an event."""
        if len(self._waiting) == self._waiting.maxlen:
            self._missed += 1
        self._waiting.append(event)
        self._arrived.set()


class Events:
    """The events of one controller, on one event loop."""

    def __init__(self, kept: int = KEPT) -> None:
        self.recent: collections.deque[Event] = collections.deque(maxlen=kept)
        self.watches: set[Watch] = set()
        self._count = 0
        self._closed = False

    def __repr__(self) -> str:
        return f"<Events: {self._count} so far, {len(self.watches)} watchers>"

    def publish(
        self,
        at: float,
        kind: EventKind,
        text: str,
        *,
        model: str | None = None,
        version: int | None = None,
        server: str | None = None,
    ) -> Event:
        """Tell everybody; gives the event."""
        self._count += 1
        event = Event(at, kind, text, model, version, server, self._count)
        self.recent.append(event)
        for watch in tuple(self.watches):
            watch.put(event)
        return event

    def watch(self, *, since: int | None = None, room: int = KEPT) -> Watch:
        """Events from now on, as an async iterator.

        Args:
            since: number of an event; those after it that are still kept come first.
            room: events that may wait to be read before the oldest are dropped.
        """
        earlier = () if since is None else tuple(event for event in self.recent if event.number > since)
        watch = Watch(self, earlier, room)
        if self._closed:
            watch.close()
        else:
            self.watches.add(watch)
        return watch

    def close(self) -> None:
        """End all watches, once they have read what there is."""
        self._closed = True
        for watch in tuple(self.watches):
            watch.close()
