"""What a client may not leave behind: tasks, counts, connections, memory."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import threading
import time
from dataclasses import dataclass

import psutil

from aioserving import AsyncClient

__all__ = ["Resources", "leftovers", "resources", "settled"]


#: glibc's way to give free memory back, without which its share of resident memory wanders by megabytes.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0) if os.name == "posix" else lambda _: 0


@dataclass(frozen=True)
class Resources:
    """What this process holds, after a collection of garbage; free memory is given back where that goes."""

    files: int
    sockets: int
    threads: int
    #: Bytes of resident memory.
    memory: int


def resources() -> Resources:
    """What this process holds now."""
    gc.collect()
    _trim(0)
    this = psutil.Process()
    return Resources(
        this.num_fds(),
        len(this.net_connections(kind="tcp")),
        threading.active_count(),
        this.memory_info().rss,
    )


def leftovers(client: AsyncClient, before: set[asyncio.Task[object]]) -> list[str]:
    """Everything that a client without a call under way should not have, in words.

    Args:
        client: the client.
        before: the tasks that were there before its first call.
    """
    pool, calls = client._pool, client._calls
    stats = client.stats()
    found = [f"a task: {task!r}" for task in asyncio.all_tasks() - before]
    counts = {
        "stats().in_flight": stats.in_flight,
        "stats().waiting": stats.waiting,
        "pool.in_flight": pool.in_flight,
        "pool's waiters": len(pool._wanted),
        "pool's goodbyes": len(pool._goodbyes),
        "pool's retired connections": len(pool._retired),
        "hedges": len(calls._tasks),
    }
    for endpoint in pool.endpoints:
        counts[f"{endpoint!r}"] = endpoint.in_flight
        for connection in endpoint.connections:
            counts[f"{connection!r}"] = connection.in_flight
            if connection.transport is not None:
                counts[f"calls of {connection.transport!r}"] = len(connection.transport._active)
    return [*found, *(f"{name}: {count}" for name, count in counts.items() if count)]


async def settled(client: AsyncClient, before: set[asyncio.Task[object]], seconds: float = 5.0) -> list[str]:
    """`leftovers` once there are none, or after some seconds: cancelled tasks need a moment to end."""
    end = time.monotonic() + seconds
    while (found := leftovers(client, before)) and time.monotonic() < end:
        await asyncio.sleep(0.02)
    return found
