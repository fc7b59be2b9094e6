"""Models that take their time, for server processes: ``NAME=tests.scenarios.timed:ATTRIBUTE``.

Every attribute is a function, so that the semaphores and event loops are those of the process that serves.
All of them give back ``x``; the time is slept, not computed, so one small machine can play a fleet.
"""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path
from typing import Any

import numpy as np

from aioserving.testing import CallableServable, ServerProcess
from aioserving.testing.faults import failing, slow

__all__ = ["INPUTS", "ROOT", "fifth_fails", "gate", "process", "quick", "spread", "spread_with_outliers"]

ROOT = Path(__file__).parents[2]

#: What every model here takes.
INPUTS = {"x": np.ones(16, np.float32)}


def process(**options: Any) -> ServerProcess:
    """A server process that finds the models of the tests; the arguments are those of `ServerProcess`."""
    return ServerProcess(env={"PYTHONPATH": str(ROOT)}, **options)


def _servable(function: Any) -> CallableServable:
    vector = {"x": ("float32", (None,))}
    return CallableServable(function, inputs=vector, outputs={"y": ("float32", (None,))})


def quick() -> CallableServable:
    """Answers after 2 ms on average, some after 10."""
    generator = random.Random(1)

    async def run(x: Any) -> Any:
        await asyncio.sleep(generator.expovariate(500))
        return x

    return _servable(run)


def fifth_fails() -> CallableServable:
    """As `quick`, but a fifth of the calls is refused with UNAVAILABLE."""
    generator = random.Random(2)

    async def run(x: Any) -> Any:
        await asyncio.sleep(generator.expovariate(500))
        return x

    return _servable(failing(run, share=0.2, seed=3))


async def _spread(x: Any, generator: random.Random) -> Any:
    await asyncio.sleep(0.03 * generator.lognormvariate(0, 0.3))
    return x


def spread() -> CallableServable:
    """A healthy model: 30 ms in the middle, nine of ten calls within 20 to 50."""
    generator = random.Random(os.getpid())

    async def run(x: Any) -> Any:
        return await _spread(x, generator)

    return _servable(run)


def spread_with_outliers() -> CallableServable:
    """As `spread`, but 15 % of the calls take ten times as long: 5 % of all where it is one of three."""
    generator = random.Random(5)

    async def run(x: Any) -> Any:
        return await _spread(x, generator)

    return _servable(slow(run, 0.27, share=0.15, seed=6))


def gate() -> CallableServable:
    """Works on 4 calls at a time for 20 ms each, 200 calls a second; whatever is more waits in line."""
    room: asyncio.Semaphore | None = None

    async def run(x: Any) -> Any:
        nonlocal room
        room = room or asyncio.Semaphore(4)
        async with room:
            await asyncio.sleep(0.02)
        return x

    return _servable(run)
