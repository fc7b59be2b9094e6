"""Models that take their time, for server processes: ``NAME=tests.scenarios.timed:ATTRIBUTE``.

All of them give back ``x``; the time is slept, not computed, so one small machine can play a fleet.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from aioserving.testing import CallableServable, ServerProcess
from aioserving.testing.faults import failing

__all__ = ["INPUTS", "ROOT", "fifth_fails", "gate", "process", "quick"]

ROOT = Path(__file__).parents[2]

#: What every model here takes.
INPUTS = {"x": np.ones(16, np.float32)}

#: What the gates of a process work in.
_ROOM = threading.Semaphore(4)


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


def gate() -> CallableServable:
    """Works on 4 calls at a time for 20 ms each, 200 calls a second together with every other gate."""

    def run(x: Any) -> Any:
        with _ROOM:
            time.sleep(0.02)
        return x

    return _servable(run)
