"""Rows per second of scoring beside the loop that one would write by hand: gather, a semaphore, `predict`.

    python bench/bench_scoring.py

All take turns in one process, on one client, against one server that answers each row. The loop by hand
starts a task for every batch at once, keeps all results, and reads its source on the event loop; it neither
retries, nor puts rows together, nor bounds what it holds. Rows are 64 float32, a call has 256.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from harness import Bar, Report, Server, Spread, finish

from aioserving import AsyncClient, Client
from aioserving.scoring import BlockingScoring, Scoring
from aioserving.signature import Signature

#: Rows of a call, calls at a time, calls of a turn, turns.
ROWS, AT_A_TIME, CALLS, ROUNDS = 256, 8, 600, 15
WIDTH = 64

HAND = "by hand: gather and semaphore"
#: What is held to the loop by hand: those that read the same source as fast as it does.
HELD = ("scoring an array", "scoring an array, as completed", "scoring a generator of batches")


def batches(data: Any, rows: int = ROWS) -> Iterator[dict[str, Any]]:
    for start in range(0, len(data), rows):
        yield {"x": data[start : start + rows]}


async def by_hand(predict: Callable[[Any], Awaitable[Any]], data: Any) -> int:
    room = asyncio.Semaphore(AT_A_TIME)

    async def one(inputs: Any) -> Any:
        async with room:
            return await predict(inputs)

    results = await asyncio.gather(*(one(inputs) for inputs in batches(data)))
    return sum(len(result["scores"]) for result in results)


async def scored(make: Callable[[], Scoring]) -> int:
    rows = 0
    async with make() as results:
        async for batch in results:
            rows += len(batch.outputs["scores"])
    return rows


async def measure(target: str, data: Any) -> dict[str, list[tuple[float, float]]]:
    """Seconds, and seconds of CPU time, of every turn of each."""
    async with AsyncClient(target) as client:
        model = client.model("m")
        signature = (await model.get_model_metadata()).signature()

        async def learn() -> Signature:
            return signature

        def score(source: Callable[[], Any], **options: Any) -> Callable[[], Awaitable[int]]:
            options = {"max_in_flight": AT_A_TIME} | options
            return lambda: scored(
                lambda: Scoring(source(), model.predict, signature=learn, batch_size=ROWS, **options)
            )

        def whole() -> dict[str, Any]:
            return {"x": data}

        ways: dict[str, Callable[[], Awaitable[int]]] = {
            HAND: lambda: by_hand(model.predict, data),
            HELD[0]: score(whole),
            HELD[1]: score(whole, ordered=False),
            HELD[2]: score(lambda: batches(data)),
            "scoring a generator of pieces of 100 rows": score(lambda: batches(data, 100)),
            "scoring an array, number of calls found": score(whole, max_in_flight=None),
            "scoring an array, plain code": partial(plain, target, data),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        order = list(ways)
        chance = random.Random(0)
        for turn in range(ROUNDS + 1):
            chance.shuffle(order)
            for name in order:
                wall, cpu = time.perf_counter(), time.process_time()
                rows = await ways[name]()
                if turn:  # the first is to warm up
                    found[name].append((time.perf_counter() - wall, time.process_time() - cpu))
                if rows != len(data):
                    raise RuntimeError(f"{name}: {rows} rows of {len(data)}")
        return found


async def plain(target: str, data: Any) -> int:
    """The blocking client, in a thread of its own, as it would be without an event loop here."""

    def work() -> int:
        with Client(target) as client:
            model = client.model("m")

            async def learn() -> Signature:
                return (await model._model.get_model_metadata()).signature()

            scoring = Scoring(
                {"x": data}, model._model.predict, signature=learn, batch_size=ROWS, max_in_flight=AT_A_TIME
            )
            with BlockingScoring(client._run, scoring) as results:
                return sum(len(batch.outputs["scores"]) for batch in results)

    return await asyncio.to_thread(work)


def run() -> Report:
    report = Report("scoring", "Scoring beside a loop by hand")
    report.text((__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip())
    data = np.random.default_rng(0).normal(size=(CALLS * ROWS, WIDTH)).astype(np.float32)
    with Server((1, WIDTH), "rows") as server:
        found = asyncio.run(measure(server.target, data))
    table = []
    for name, turns in found.items():
        base = found[HAND]
        faster = Spread.of([theirs[0] / ours[0] for ours, theirs in zip(turns, base, strict=True)])
        cpu = Spread.of([ours[1] / theirs[1] for ours, theirs in zip(turns, base, strict=True)])
        rate = len(data) / Spread.of([wall for wall, _ in turns]).median
        same = name == HAND
        table.append((name, f"{rate:,.0f}", "" if same else faster.ratio, "" if same else cpu.ratio))
        if name in HELD:
            report.bars.append(Bar(f"{name}: rows per second, to by hand", 1.0, faster.median, least=True))
    report.table(("", "rows per second", "to by hand", "CPU time, to by hand"), table)
    return report


def main() -> int:
    return finish(run())


if __name__ == "__main__":
    sys.exit(main())
