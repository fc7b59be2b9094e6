"""Rows per second of Dask workers, 1, 2 and 4, against servers, 1 and 2, beside what a simple model says.

    python bench/bench_engines.py

A server here takes a fixed time for a call and one call after another, as one with an accelerator does, and
no CPU: the cores of this machine are left to the workers, so that the curve is that of calls, not of cores.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib.util
import multiprocessing
import pathlib
import random
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from harness import Bar, Report, Spread, finish

#: Rows of a call, calls of a turn, turns; seconds that a server takes for a call.
ROWS, CALLS, ROUNDS = 256, 192, 3
SERVICE = 0.01
WIDTH = 16
PARTITIONS = 16

WORKERS, SERVERS, IN_FLIGHT = (1, 2, 4), (1, 2), (1, 4)


def timed() -> Any:
    """The model: sums of rows, one call at a time, `SERVICE` seconds each."""
    from aioserving.testing import CallableServable

    one_at_a_time = threading.Lock()

    def run(x: Any) -> Any:
        with one_at_a_time:
            time.sleep(SERVICE)
        return {"y": x.sum(axis=1)}

    return CallableServable(
        run, inputs={"x": ("float32", (None, WIDTH))}, outputs={"y": ("float32", (None,))}
    )


def start(target: str) -> None:
    """What a worker does once, outside of the turns: import what it needs."""
    import aioserving.engines.dask  # noqa: F401

    time.sleep(0.2)  # so that every worker gets one of these


@contextlib.contextmanager
def workers(count: int) -> Iterator[Any]:
    """A pool of so many processes, ready."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(count, mp_context=context) as pool:
        list(pool.map(start, [""] * count))
        yield pool


def measure() -> dict[tuple[int, int, int], list[float]]:
    """Seconds of each turn, by workers, servers and calls in flight of each worker."""
    import dask
    import dask.dataframe
    import pandas

    from aioserving.engines.dask import score_frame
    from aioserving.engines.model import pin
    from aioserving.testing import ServerProcess

    names = [f"c{i}" for i in range(WIDTH)]
    data = np.random.default_rng(0).normal(size=(ROWS * CALLS, WIDTH)).astype(np.float32)
    frame = dask.dataframe.from_pandas(pandas.DataFrame(data, columns=names), npartitions=PARTITIONS)
    found: dict[tuple[int, int, int], list[float]] = {}
    chance = random.Random(0)
    here = str(pathlib.Path(__file__).resolve().parent)
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(
                ServerProcess(callables={"timed": "bench_engines:timed"}, env={"PYTHONPATH": here})
            )
            for _ in range(max(SERVERS))
        ]
        pools = {count: stack.enter_context(workers(count)) for count in WORKERS}
        models = {
            (count, at_a_time): pin(
                [server.target for server in servers[:count]],
                "timed",
                inputs={"x": names},
                batch_size=ROWS,
                max_in_flight=at_a_time,
            )
            for count in SERVERS
            for at_a_time in IN_FLIGHT
        }
        kinds = [(w, n, f) for w in WORKERS for n in SERVERS for f in IN_FLIGHT]
        for turn in range(ROUNDS + 1):
            chance.shuffle(kinds)
            for w, n, f in kinds:
                begun = time.perf_counter()
                with dask.config.set(scheduler="processes", pool=pools[w]):
                    rows = len(score_frame(frame, models[n, f])["y"].compute())
                if turn:  # in the first, clients are opened
                    found.setdefault((w, n, f), []).append(time.perf_counter() - begun)
                if rows != len(data):
                    raise RuntimeError(f"{rows} rows of {len(data)}")
    return found


def run() -> Report:
    report = Report("engines", "Workers of an engine against servers")
    report.text((__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip())
    found = {kind: ROWS * CALLS / Spread.of(turns).median for kind, turns in measure().items()}
    # A worker with one call at a time: the server's time, and the worker's own around it.
    cycle = ROWS / found[1, 1, 1]
    table = []
    for (w, n, f), rate in sorted(found.items()):
        said = ROWS * min(w * f / max(cycle, SERVICE), n / SERVICE)
        table.append((str(w), str(n), str(f), f"{rate:,.0f}", f"{said:,.0f}", f"{rate / said:.2f}"))
    report.text(
        f"The model: rows of a call x min(workers x in flight / {cycle * 1e3:.1f} ms, servers / "
        f"{SERVICE * 1e3:g} ms), where {cycle * 1e3:.1f} ms is what one worker with one call at a time takes "
        "for one."
    )
    report.table(
        ("workers", "servers", "in flight of each", "rows per second", "model", "measured / model"), table
    )
    report.bars.append(
        Bar(
            "2 workers with 4 in flight, to what 1 server can do",
            0.7,
            found[2, 1, 4] * SERVICE / ROWS,
            least=True,
        )
    )
    return report


def main() -> int:
    missing = [name for name in ("dask", "pyarrow", "pandas") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"not measured: {', '.join(missing)} not installed")
        return 0
    return finish(run())


if __name__ == "__main__":
    sys.exit(main())
