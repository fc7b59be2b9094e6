"""What the repository's controller costs while nothing happens, and how long a version takes to the servers.

    python bench/bench_controller.py

The controller runs in this process, with a local store; the servers are testing servers in processes of
their own, whose loader only looks at the folder. CPU time is that of this whole process, its threads
included, over several poll periods in which nothing changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import shutil
import statistics
import sys
import tempfile
import time

from harness import Bar, Options, Report, finish, seconds

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from aioserving import AsyncClient  # noqa: E402
from aioserving.repository.controller import Controller  # noqa: E402
from aioserving.repository.disk import Disk  # noqa: E402
from aioserving.repository.fetch import Fetcher  # noqa: E402
from aioserving.repository.policy import Label, Policy  # noqa: E402
from aioserving.repository.store import Store  # noqa: E402
from tests.repository.serve import LightServer  # noqa: E402

SAVED_MODEL = ROOT / "tests" / "golden" / "models" / "versions" / "1"
MODELS = 200
PERIOD = 10.0
#: Share of a core that an idle controller may cost.
GOAL = 0.01


def upload(store: pathlib.Path, model: str, version: int) -> None:
    partial = store / f".{model}-{version}"
    shutil.copytree(SAVED_MODEL, partial)
    (store / model).mkdir(exist_ok=True)
    partial.rename(store / model / str(version))


async def measure(servers: int, models: int, periods: int, uploads: int) -> tuple[float, list[float]]:
    """Share of a core while idle; and seconds from an upload to being available everywhere."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="aioserving-bench-"))
    stored = folder / "store"
    stored.mkdir()
    for number in range(models):
        upload(stored, f"model{number:03}", 1)
    period = PERIOD if periods > 1 else 1.0
    try:
        async with contextlib.AsyncExitStack() as stack:
            processes = [LightServer(testing_manage_state_interval_ms=5) for _ in range(servers)]
            for process in processes:
                stack.callback(process.close)
                await process.astart()
            clients = {
                f"server{number}": await stack.enter_async_context(AsyncClient(process.target))
                for number, process in enumerate(processes)
            }
            store = Store.open(str(stored))
            stack.push_async_callback(store.close)
            disk = Disk(folder / "disk")
            fetcher = await stack.enter_async_context(Fetcher(store, disk))
            controller = await stack.enter_async_context(
                Controller(store, disk, fetcher, clients, poll_period=period, max_concurrent_fetches=8)
            )
            for number in range(models):
                await controller.set_policy(f"model{number:03}", Policy(labels={"stable": Label()}))
            await controller.wait_converged(300)
            await asyncio.sleep(period)  # what is still warm
            wall, cpu = time.perf_counter(), time.process_time()
            await asyncio.sleep(period * periods)
            share = (time.process_time() - cpu) / (time.perf_counter() - wall)
            took = []
            for version in range(2, uploads + 2):
                watch, seen, began = controller.watch(), set(), time.perf_counter()
                upload(stored, "model000", version)
                async for event in watch:
                    if event.kind == "available" and event.version == version:
                        seen.add(event.server)
                        if len(seen) == servers:
                            break
                took.append(time.perf_counter() - began)
                watch.close()
            return share, took
    finally:
        shutil.rmtree(folder)


def run(options: Options) -> Report:
    report = Report("controller", "The repository's controller")
    models = 10 if options.quick else MODELS
    periods = 1 if options.quick else max(2, round(4 * options.scale))
    uploads = 1 if options.quick else 3
    period = PERIOD if periods > 1 else 1.0
    rows = []
    for servers in (1,) if options.quick else (1, 3):
        share, took = asyncio.run(measure(servers, models, periods, uploads))
        rows.append((str(servers), f"{share:.2%}", seconds(statistics.median(took)), seconds(max(took))))
        report.bars.append(
            Bar(f"idle, {models} models, {servers} servers", GOAL * 1e6, share * 1e6, " µs of CPU a second")
        )
        # The servers look at their disks every 0.2 s; loading takes them next to nothing.
        report.bars.append(
            Bar(f"upload to available, {servers} servers", (period + 1.2) * 1e3, max(took) * 1e3, " ms")
        )
    report.text(
        f"{models} models with a version each, all served; a poll period of {period:g} s, of which "
        f"{periods} were measured. Then versions of one model are uploaded."
    )
    report.table(("servers", "idle, of a core", "upload to available, median", "longest"), rows)
    return report


if __name__ == "__main__":
    sys.exit(finish(run(Options.from_arguments(__doc__))))
