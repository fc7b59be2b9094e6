"""Fetching a version beside the store client's own copy of the same files.

    python bench/bench_fetch.py

Both take turns, in another order each round, from one S3 server (moto's, in a process of its own) and from a
folder. The copy is fsspec's `get` in the fastest of its ways: as it comes, with the concurrency and part
size that the AWS tools have, and with one stream a file. It checks nothing and syncs nothing, while the
fetch checks MD5 and SavedModel, notes each chunk in its journal, and syncs files and folders before it
publishes them; so the copy is also measured with its files synced, and with their MD5s computed by two
threads, which is what somebody has to do who wants to know what he got. Everything goes to memory
(``/dev/shm``, where there is one) and to the temporary folder's disk.

What the difference to the copy from S3 is made of, in seconds of processor time for these 172 MB on two cores
that the server, which needs 0.25 of them, shares: the copy 0.30, all in the thread that receives and writes;
the fetch 0.67, of which 0.33 are that thread's (0.04 for the CRCs of the journal; the client's own CRC of
what comes is left out where MD5 is checked), 0.27 are MD5 (0.6 GB per second and core, which is OpenSSL's
speed), 0.05 are reading back what is hashed, and 0.03 are the fetch's own event loop, its journal and its
threads. If nothing ever waited, fetch and server would need 0.46 s of two cores where the copy takes 0.41 s;
the rest is the listing at the beginning and the end of the MD5 of the largest file, when a core has nothing
to do.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from harness import Bar, Report, Spread, finish

from aioserving._proto import message_class
from aioserving.repository import Disk, Fetcher, Store

#: Turns of each.
ROUNDS = 9
#: The copy that is then hashed.
CHECKED = "get, one stream a file, MD5s computed"
#: Megabytes of the large files, and how many small ones there are, of 100 KB each.
LARGE, SMALL = (96, 48, 16), 40

SERVER = """
import sys, time
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(*server.get_host_and_port(), flush=True)
sys.stdin.read()
"""


def version_files() -> dict[str, bytes]:
    """A model with shards of several sizes and many assets."""
    made: Any = message_class("tensorflow.SavedModel")()
    made.meta_graphs.add().meta_info_def.tags.append("serve")
    chance = random.Random(0)
    files = {"saved_model.pb": made.SerializeToString(), "variables/variables.index": b"index"}
    for number, size in enumerate(LARGE):
        files[f"variables/variables.data-{number:05d}-of-{len(LARGE):05d}"] = chance.randbytes(size << 20)
    for number in range(SMALL):
        files[f"assets/{number}"] = chance.randbytes(100_000)
    return files


@contextlib.contextmanager
def s3() -> Iterator[dict[str, Any]]:
    """An S3 server in a process of its own; gives fsspec's options."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        host, port = process.stdout.readline().split()
        try:
            yield {
                "key": "key",
                "secret": "secret",
                "client_kwargs": {"endpoint_url": f"http://{host}:{port}", "region_name": "eu-central-1"},
            }
        finally:
            process.terminate()


def md5s(folder: pathlib.Path) -> None:
    def md5(path: pathlib.Path) -> str:
        digest = hashlib.md5(usedforsecurity=False)
        with open(path, "rb", buffering=0) as file:
            while data := file.read(1 << 20):
                digest.update(data)
        return digest.hexdigest()

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(md5, sorted(path for path in folder.rglob("*") if path.is_file())))


def synced(folder: pathlib.Path) -> None:
    for path in folder.rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def measure(
    url: str, options: dict[str, Any], target: pathlib.Path, clients: dict[str, dict[str, Any]]
) -> Any:
    """Seconds of each turn, by who copied."""
    import fsspec

    fs, root = fsspec.core.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False, **options)

    def copy(then: Callable[[pathlib.Path], None] | None, settings: dict[str, Any]) -> None:
        fs.get(f"{root}/m/1/", f"{target}/copy/", recursive=True, **settings)
        if then is not None:
            then(target / "copy")

    # As the copy's filesystem, the store keeps its connections from turn to turn.
    loop = asyncio.new_event_loop()
    store = Store.open(url, storage_options=options, settle=0.0)

    async def fetch() -> None:
        async with Fetcher(store, Disk(target / "copy")) as fetcher:
            (version,) = await store.versions("m")
            await fetcher.fetch(version)

    ways: dict[str, Callable[[], None]] = {"fetch": lambda: loop.run_until_complete(fetch())}
    for name, settings in clients.items():
        ways[name] = lambda settings=settings: copy(None, settings)  # type: ignore[misc]
        ways[f"{name}, synced"] = lambda settings=settings: copy(synced, settings)  # type: ignore[misc]
    if not url.startswith("/"):
        ways[CHECKED] = lambda: copy(md5s, clients[CHECKED.removesuffix(", MD5s computed")])
    found: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    chance = random.Random(0)
    for turn in range(ROUNDS + 1):
        chance.shuffle(order)
        for name in order:
            shutil.rmtree(target / "copy", ignore_errors=True)
            os.sync()
            begin = time.perf_counter()
            ways[name]()
            if turn:  # the first is to warm up
                found[name].append(time.perf_counter() - begin)
    shutil.rmtree(target / "copy", ignore_errors=True)
    loop.run_until_complete(store.close())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    return found


def run() -> Report:
    report = Report("fetch", "Fetching beside the store client's own copy")
    report.text((__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip())
    files = version_files()
    megabytes = sum(map(len, files.values())) / 1e6
    memory = pathlib.Path("/dev/shm")
    with contextlib.ExitStack() as stack:
        options = stack.enter_context(s3())
        disk = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        places = {"disk": disk}
        if memory.is_dir():
            places["memory"] = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(dir=memory)))
        source = list(places.values())[-1] / "store"
        for path, data in files.items():
            (source / "m" / "1" / path).parent.mkdir(parents=True, exist_ok=True)
            (source / "m" / "1" / path).write_bytes(data)
        import fsspec

        fs = fsspec.filesystem("s3", skip_instance_cache=True, **options)
        fs.mkdir("bucket")
        for path, data in files.items():
            # In one part, as many tools do: then the ETag is an MD5, which the fetch has to check.
            fs.call_s3("put_object", Bucket="bucket", Key=f"models/m/1/{path}", Body=data)
        kinds: dict[str, tuple[str, dict[str, Any], dict[str, dict[str, Any]]]] = {
            "S3": (
                "s3://bucket/models",
                options,
                {
                    "get": {},
                    "get, 10 parts of 8 MB": {"chunksize": 8 << 20, "max_concurrency": 10},
                    "get, one stream a file": {"max_concurrency": 1},
                },
            ),
            "folder": (str(source), {}, {"get": {}}),
        }
        table = []
        for kind, (url, given, clients) in kinds.items():
            for place, target in places.items():
                found = measure(url, given, target, clients)
                middle = {name: Spread.of(times).median for name, times in found.items()}
                for suffix in ("", ", synced", ", MD5s computed"):
                    names = [name + suffix for name in clients if name + suffix in middle]
                    if not names:
                        continue
                    best = min(names, key=middle.__getitem__)
                    ratio = Spread.of(
                        [theirs / ours for ours, theirs in zip(found["fetch"], found[best], strict=True)]
                    )
                    table.append(
                        (
                            f"{kind} to {place}",
                            best,
                            f"{megabytes / middle[best]:,.0f}",
                            f"{megabytes / middle['fetch']:,.0f}",
                            ratio.ratio,
                        )
                    )
                    # What is on no disk has no use for syncing, and what is, is no use without.
                    if suffix == ("" if place == "memory" else ", synced"):
                        what = f"{kind} to {place}: MB per second, to {best}"
                        report.bars.append(Bar(what, 0.8, ratio.median, least=True))
    report.text("A folder is copied by the kernel both times, and hashed only against a manifest.")
    report.table(("", "fastest copy", "its MB per second", "the fetch's", "to the copy"), table)
    return report


def main() -> int:
    return finish(run())


if __name__ == "__main__":
    sys.exit(main())
