"""What happens to jobs overnight: they are killed, disks fill up, servers come and go, files change.

The jobs run in processes of their own, against servers in processes of their own.
"""

from __future__ import annotations

import asyncio
import json
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs the extra `batch`")

import pyarrow.parquet as pq

from aioserving import AsyncClient
from aioserving.jobs import InputError, Job, JobSummary
from aioserving.testing import ServerProcess
from tests.scenarios.jobs import ROOT, expected, manifest, output, rows, start

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")

ROWS = 12_000
SETTINGS = {"model": "m", "keep": ["id"], "batch_size": 100, "part_rows": 1000, "max_in_flight": 4}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """A server that takes four milliseconds a call: 120 calls of a job are some tenths of a second."""
    with ServerProcess(
        callables={"m": "tests.scenarios.jobs:slow_sums"}, env={"PYTHONPATH": str(ROOT)}
    ) as found:
        yield found


@pytest.fixture
def data(tmp_path: pathlib.Path) -> pathlib.Path:
    """12,000 rows in three files."""
    folder = tmp_path / "in"
    folder.mkdir()
    table = rows(ROWS)
    for number, (first, count) in enumerate(((0, 5000), (5000, 2500), (7500, 4500))):
        pq.write_table(table.slice(first, count), folder / f"{number}.parquet", row_group_size=1700)
    return folder


def settings(server: Any, data: pathlib.Path, out: pathlib.Path, **more: Any) -> dict[str, Any]:
    return {"targets": server.target, "input": str(data), "output": str(out), **SETTINGS, **more}


def finish(process: subprocess.Popen[str], timeout: float = 60) -> tuple[str, str]:
    """Standard output and error of a process that is to end by itself."""
    try:
        return process.communicate(timeout=timeout)
    finally:
        process.kill()


def summary_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    told, complaint = finish(process)
    assert process.returncode == 0, complaint
    found: dict[str, Any] = json.loads(told.splitlines()[-1])
    return found


def wait_for_rows(process: subprocess.Popen[str], out: pathlib.Path, count: int) -> None:
    """Until the manifest has so many rows, or the process has ended."""
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        try:
            if manifest(out)["rows"] >= count:
                return
        except FileNotFoundError:
            pass
        time.sleep(0.002)


def killed_again_and_again(server: Any, data: pathlib.Path, out: pathlib.Path, kills: int, seed: int) -> None:
    """Run jobs to their ends, killed at random moments of their lives, until one was `kills` times in all."""
    chance = random.Random(seed)
    wanted = expected(rows(ROWS))
    process = start(**settings(server, data, out / "undisturbed"))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    assert summary_of(process)["rows"] == ROWS
    length = time.monotonic() - began
    done = folder = 0
    while done < kills:
        folder += 1
        here = out / str(folder)
        committed, complete = 0, False
        while done < kills and not complete:
            process = start(**settings(server, data, here))
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                time.sleep(chance.random() * length)
                process.kill()
                process.communicate(timeout=30)
            finally:
                process.kill()
            done += process.returncode == -signal.SIGKILL
            if (here / "_aioserving" / "manifest.json").exists():
                told = manifest(here)
                # What it names is there, whole, though nobody has tidied up.
                assert output_of(here, told) == wanted[: told["rows"]]
                assert told["rows"] >= committed
                committed, complete = told["rows"], told["complete"]
        summary = summary_of(start(**settings(server, data, here)))
        assert summary["rows"] == summary["written"] == ROWS
        assert summary["resumed"] == committed
        assert output(here) == wanted


def output_of(folder: pathlib.Path, told: Any) -> list[dict[str, Any]]:
    """The rows of the parts that a manifest names."""
    found: list[dict[str, Any]] = []
    for _, files, *_ in told["parts"]:
        for name in files:
            found += pq.read_table(folder / name).to_pylist()
    return found


def test_killed_at_random_moments_it_ends_with_the_undisturbed_output(
    server: ServerProcess, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """SIGKILL, several times; the same command goes on, and every row is there once, in order."""
    killed_again_and_again(server, data, tmp_path / "out", kills=4, seed=1)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(6))
def test_killed_very_often_it_ends_with_the_undisturbed_output(
    server: ServerProcess, data: pathlib.Path, tmp_path: pathlib.Path, seed: int
) -> None:
    """The same, ten times each with other moments."""
    killed_again_and_again(server, data, tmp_path / "out", kills=10, seed=100 + seed)


def test_a_kill_costs_at_most_one_part(
    server: ServerProcess, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Killed when some parts are complete, the next run does only the rows behind them."""
    out = tmp_path / "out"
    process = start(**settings(server, data, out))
    wait_for_rows(process, out, 3000)
    process.kill()
    process.communicate()
    committed = manifest(out)["rows"]
    assert 3000 <= committed < ROWS
    summary = summary_of(start(**settings(server, data, out)))
    assert (summary["resumed"], summary["scored"]) == (committed, ROWS - committed)
    assert summary["calls"] == (ROWS - committed) / 100
    assert output(out) == expected(rows(ROWS))


def test_ctrl_c_once_keeps_what_was_scored(
    server: ServerProcess, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """SIGINT ends it within seconds, the part with what was scored complete, and the lock free."""
    out = tmp_path / "out"
    process = start(**settings(server, data, out, part_rows=5000, batch_size=20))
    wait_for_rows(process, out, 5000)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, complaint = finish(process)
    assert time.monotonic() - began < 20
    assert process.returncode != 0
    assert "KeyboardInterrupt" in complaint
    assert (out / "_aioserving" / "lock").read_bytes() == b""
    committed = manifest(out)["rows"]
    assert 5000 <= committed < ROWS
    assert not list(out.rglob("*.tmp"))
    assert output(out) == expected(rows(ROWS).slice(0, committed))
    summary = summary_of(start(**settings(server, data, out, part_rows=5000, batch_size=20)))
    assert summary["resumed"] == committed
    assert output(out) == expected(rows(ROWS))


SLOW_DISK = """
import time
from aioserving.jobs import storage
commit = storage._LocalStorage.commit
def slow(self, name):
    if name.startswith("part-00001"):
        print("committing", flush=True)
        time.sleep(3)
    commit(self, name)
storage._LocalStorage.commit = slow
"""


def test_ctrl_c_twice_ends_it_at_once(
    server: ServerProcess, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """A second SIGINT does not wait for the part that is being completed; nothing is lost but that part."""
    out = tmp_path / "out"
    process = start(SLOW_DISK, **settings(server, data, out))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert process.stdout.readline() == "committing\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None  # it completes the part
    process.send_signal(signal.SIGINT)
    _, complaint = finish(process, 30)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in complaint
    committed = manifest(out)["rows"]
    assert output_of(out, manifest(out)) == expected(rows(ROWS).slice(0, committed))
    summary = summary_of(start(**settings(server, data, out)))
    assert summary["resumed"] == committed
    assert output(out) == expected(rows(ROWS))


DISK_FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, resource.RLIM_INFINITY))
"""


def test_a_full_disk_is_told_and_survived(
    server: ServerProcess, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """When the system refuses more bytes the job ends in one clear error; with room it goes on."""
    out = tmp_path / "out"
    process = start(DISK_FULL, **settings(server, data, out))
    _, complaint = finish(process)
    assert process.returncode == 1
    assert "OutputError" in complaint
    assert "File too large" in complaint
    assert "rows are safe" in complaint
    assert not list(out.glob("part-*"))
    assert not list(out.rglob("*.tmp"))
    summary = summary_of(start(**settings(server, data, out)))
    assert summary["rows"] == ROWS
    assert output(out) == expected(rows(ROWS))


def test_two_processes_on_one_output(
    server: ServerProcess, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The second is refused and told the first one's process; killing that frees the output."""
    out = tmp_path / "out"
    first = start(**settings(server, data, out, batch_size=10))
    wait_for_rows(first, out, 1000)
    second = start(**settings(server, data, out, batch_size=10))
    _, complaint = finish(second)
    assert second.returncode == 1
    assert "OutputLockedError" in complaint
    assert f"pid {first.pid}" in complaint
    assert first.poll() is None
    first.kill()
    first.communicate()
    assert summary_of(start(**settings(server, data, out, batch_size=10)))["rows"] == ROWS
    assert output(out) == expected(rows(ROWS))


def test_the_example_is_killed_and_goes_on() -> None:
    """`examples/score_parquet.py` kills its job, and has every row once in the end."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "score_parquet.py")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "rows were done before" in done.stdout
    assert done.stdout.endswith("60,000 rows, each once\n")


# -- servers ------------------------------------------------------------------------------------------


def run(server: Any, data: pathlib.Path, out: pathlib.Path, **more: Any) -> tuple[JobSummary, Job]:
    async def work() -> tuple[JobSummary, Job]:
        async with AsyncClient(server.target) as client:
            job = Job(client, input=data, output=out, **{**SETTINGS, **more})
            return await job.run(), job

    return asyncio.run(work())


def test_servers_restarted_all_through_the_run(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A server that is killed and started again, whenever the job has gone on a little, costs no row."""
    with ServerProcess(
        callables={"m": "tests.scenarios.jobs:slow_sums"}, env={"PYTHONPATH": str(ROOT)}
    ) as server:

        async def work() -> tuple[JobSummary, int]:
            async with AsyncClient(server.target) as client:
                job = Job(client, input=data, output=tmp_path / "out", outage=90, **SETTINGS)
                task = asyncio.create_task(job.run())
                restarts, until = 0, 1000
                while not task.done():
                    progress = job.progress()
                    if progress is not None and progress.rows >= until and restarts < 4:
                        server.kill()
                        await asyncio.to_thread(server.start)
                        restarts, until = restarts + 1, progress.rows + 2000
                    await asyncio.sleep(0.002)
                return await task, restarts

        summary, restarts = asyncio.run(work())
    assert restarts >= 2
    assert summary.retries >= 1
    assert output(tmp_path / "out") == expected(rows(ROWS))


def test_a_server_that_slows_to_a_crawl(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """While a server hangs the job waits, says so, and goes on when that comes to itself."""
    with ServerProcess(
        callables={"m": "tests.scenarios.jobs:slow_sums"}, env={"PYTHONPATH": str(ROOT)}
    ) as server:

        async def work() -> JobSummary:
            async with AsyncClient(server.target, timeout=0.5) as client:
                job = Job(client, input=data, output=tmp_path / "out", outage=60, **SETTINGS)
                task = asyncio.create_task(job.run())
                while (progress := job.progress()) is None or progress.rows < 2000:
                    await asyncio.sleep(0.005)
                server.pause()
                try:
                    end = time.monotonic() + 20
                    while (progress := job.progress()) is None or not progress.failing_for:
                        assert time.monotonic() < end
                        await asyncio.sleep(0.02)
                    stalled = progress.rows
                    await asyncio.sleep(0.3)
                    progress = job.progress()
                    assert progress is not None
                    assert progress.rows - stalled <= 400  # what was answered already
                    assert progress.in_flight <= 4
                finally:
                    server.resume()
                return await task

        summary = asyncio.run(work())
    assert summary.retries >= 1
    assert output(tmp_path / "out") == expected(rows(ROWS))


def test_a_poisoned_row_that_fails_every_call_is_found(server: ServerProcess, tmp_path: pathlib.Path) -> None:
    """One row in the middle that the server refuses is set aside by itself; all others are scored."""
    table = rows(3000, poison=(1234,))
    pq.write_table(table, tmp_path / "in.parquet")
    summary, _ = run(server, tmp_path / "in.parquet", tmp_path / "out", on_error="aside")
    assert (summary.refused, summary.written) == (1, 2999)
    assert [row["id"] for row in output(tmp_path / "out")] == [n for n in range(3000) if n != 1234]
    (side,) = (tmp_path / "out" / "_aioserving" / "bad-rows").glob("*.jsonl")
    assert json.loads(side.read_text())["row"] == 1234


# -- files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["truncated", "replaced", "removed"])
def test_a_file_that_changes_in_mid_run_ends_the_job(
    server: ServerProcess, data: pathlib.Path, tmp_path: pathlib.Path, what: str
) -> None:
    """Cut off, replaced or removed while it is read, a file ends the job, which keeps what was right."""
    out = tmp_path / "out"
    victim = data / "2.parquet"
    original = victim.read_bytes()

    async def work() -> None:
        async with AsyncClient(server.target) as client:
            job = Job(client, input=data, output=out, **{**SETTINGS, "batch_size": 20})
            task = asyncio.create_task(job.run())
            while (progress := job.progress()) is None or progress.rows < 1000:
                await asyncio.sleep(0.002)
            if what == "truncated":
                with victim.open("r+b") as file:
                    file.truncate(len(original) // 2)
            elif what == "replaced":
                pq.write_table(rows(4500, start=77), victim)
            else:
                victim.unlink()
            with pytest.raises(InputError, match=r"2\.parquet"):
                await task

    asyncio.run(work())
    committed = manifest(out)["rows"]
    assert 1000 <= committed <= 7500
    assert output(out) == expected(rows(ROWS).slice(0, committed))
