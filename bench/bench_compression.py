"""What compressing requests saves in bytes, and costs in the client's CPU time.

    python bench/bench_compression.py

Requests of 256 rows through a proxy that counts bytes, to a server process on the same machine. The CPU time
is that of the client's process with all its threads, per call, and its ratio to the call that is not
compressed, as medians of rounds in turns. There is no goal: it shows when compressing loses.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from typing import Any

import numpy as np

from aioserving import AsyncClient
from aioserving.testing import ServerProcess
from aioserving.testing.faults import FaultProxyProcess
from aioserving.testing.servable import CallableServable

ROUNDS = 15
CALLS = 10
ROWS, WIDTH = 256, 784


def count() -> CallableServable:
    """A model that looks at as little as it can."""
    return CallableServable(
        lambda x: {"rows": np.array(len(x), np.int64)},
        inputs={"x": ("float32", (None, WIDTH))},
        outputs={"rows": ("int64", ())},
        inline=True,
    )


def cases() -> dict[str, Any]:
    """Tensors of the same size with less and less in them."""
    random = np.random.default_rng(0)
    return {
        "random floats": random.normal(size=(ROWS, WIDTH)).astype(np.float32),
        "pixels, 0 to 255 as floats": random.integers(0, 256, (ROWS, WIDTH)).astype(np.float32),
        "digits: four of five pixels are 0": np.where(
            random.random((ROWS, WIDTH)) < 0.2, random.integers(0, 256, (ROWS, WIDTH)), 0
        ).astype(np.float32),
        "one-hot rows": np.eye(WIDTH, dtype=np.float32)[random.integers(0, WIDTH, ROWS)],
    }


async def measure(server: str, proxy: FaultProxyProcess) -> None:
    print("| rows | compression | bytes sent | of uncompressed | CPU time per call | to uncompressed |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    async with AsyncClient(server) as client, AsyncClient(proxy.target) as counted:
        for label, rows in cases().items():
            spent: dict[Any, list[float]] = {None: [], "gzip": [], "deflate": []}
            sizes = {}
            for compression in spent:
                await counted.predict("m", rows, compression=compression)
                before = proxy.stats().bytes_to_target
                await counted.predict("m", rows, compression=compression)
                sizes[compression] = proxy.stats().bytes_to_target - before
            for _ in range(ROUNDS):
                for compression, times in spent.items():
                    begun = time.process_time()
                    for _ in range(CALLS):
                        await client.predict("m", rows, compression=compression)
                    times.append((time.process_time() - begun) / CALLS)
            for compression, times in spent.items():
                ratio = statistics.median(
                    mine / plain for mine, plain in zip(times, spent[None], strict=True)
                )
                print(
                    f"| {label} | {compression or 'none'} | {sizes[compression]:,} | "
                    f"{sizes[compression] / sizes[None]:.0%} | "
                    f"{statistics.median(times) * 1e3:.2f} ms | {ratio:.1f}x |"
                )


def main() -> int:
    """Measure all cases."""
    path = {"PYTHONPATH": sys.path[0]}
    with (
        ServerProcess(callables={"m": "bench_compression:count"}, env=path) as server,
        FaultProxyProcess(server.target) as proxy,
    ):
        asyncio.run(measure(server.target, proxy))
    return 0


if __name__ == "__main__":
    sys.exit(main())
