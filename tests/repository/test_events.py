"""Events: every watcher gets them in order, and a slow one is told what it missed."""

from __future__ import annotations

import asyncio

from aioserving.repository.events import Event, Events


def test_watchers_get_everything_in_order() -> None:
    """Two watchers see the same events, numbered; closing ends them once all is read."""

    async def story() -> None:
        events = Events()
        first, second = events.watch(), events.watch()
        for number in range(5):
            events.publish(float(number), "found", "x", model="m", version=number)
        events.close()
        seen = []
        for watch in (first, second):
            seen.append([event.version async for event in watch])
        assert seen == [[0, 1, 2, 3, 4]] * 2
        assert [event.number for event in events.recent] == [1, 2, 3, 4, 5]
        assert not events.watches

    asyncio.run(story())


def test_a_slow_watcher() -> None:
    """The oldest unread events are dropped, and it is told how many."""

    async def story() -> None:
        events = Events()
        watch = events.watch(room=3)
        for number in range(10):
            events.publish(0.0, "found", "", version=number)
        watch.close()
        got = [event async for event in watch]
        assert (got[0].kind, got[0].text) == ("missed", "7 events, as this watcher was too slow")
        assert [event.version for event in got[1:]] == [7, 8, 9]

    asyncio.run(story())


def test_since() -> None:
    """Who comes later can have what is still kept, and waits for what comes."""

    async def story() -> None:
        events = Events(kept=4)
        for number in range(6):
            events.publish(0.0, "found", "", version=number)
        watch = events.watch(since=3)
        assert [(await anext(watch)).number for _ in range(3)] == [4, 5, 6]
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        assert not waiting.done()
        events.publish(0.0, "label", "stable to 2")
        assert (await waiting).number == 7

    asyncio.run(story())


def test_an_event_reads_as_a_line() -> None:
    """When, what, about what, why."""
    event = Event(1_700_000_000.25, "load failed", "DATA_LOSS: x", "digits", 3, "a", 9)
    assert str(event) == "22:13:20.250 load failed digits 3 on a: DATA_LOSS: x"
    assert event.to_dict()["server"] == "a"
    assert "server" not in Event(0.0, "started", "").to_dict()
