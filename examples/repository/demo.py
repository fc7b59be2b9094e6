"""Versions come and go: a store, two model servers, a repository service, and a client that never notices.

    python examples/repository/demo.py

Version 1 is served. Version 2 is uploaded and rolled out. Version 3 loads well and answers wrongly: its probe
finds out, and it goes into quarantine. Version 4 follows, and at last an operator rolls back to version 2.
All the while a client asks for the label ``stable`` and prints which version answers. It takes about half a
minute, most of which is TensorFlow being imported by the servers, and ends by itself.
"""

from __future__ import annotations

import asyncio
import collections
import shutil
import string
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from aioserving import AsyncClient
from aioserving.repository.client import AsyncRepositoryClient
from aioserving.repository.service import serve
from aioserving.repository.setup_file import Setup, read_setup
from aioserving.testing import ServerProcess

HERE = Path(__file__).parent
STARTED = time.monotonic()
SHOWN = {"found", "fetched", "available", "probe failed", "quarantined", "promoted", "label", "unloaded"}


def say(text: str) -> None:
    """A line with the time since the start."""
    print(f"{time.monotonic() - STARTED:5.1f} s  {text}", flush=True)


async def export(drafts: Path) -> None:
    """All versions, exported by another process."""
    command = [sys.executable, str(HERE / "make_versions.py"), str(drafts), "1", "2", "3:wrong", "4"]
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE)
    _, errors = await process.communicate()  # TensorFlow's greetings, or why it failed
    if process.returncode:
        sys.exit(errors.decode())


def upload(drafts: Path, store: Path, version: int) -> None:
    """Copy a version into the store, file by file; the service waits until that is over."""
    say(f"-- uploading version {version}")
    shutil.copytree(drafts / str(version), store / "double" / str(version))


async def ask(servers: list[str], answered: collections.Counter[int]) -> None:
    """Ask for ``stable`` again and again; print whenever another version answers. No call may fail."""
    last = None
    async with AsyncClient(servers) as client:
        double = client.model("double", version_label="stable")
        while True:
            result = await double.predict({"x": [21.0]}, timeout=10)
            version = int(result["version"])
            if result["y"].tolist() != [42.0]:
                sys.exit(f"version {version} answered wrongly: {result}")
            answered[version] += 1
            if version != last:
                say(f"client: version {version} answers")
                last = version
            await asyncio.sleep(0.005)


async def tell(repository: AsyncRepositoryClient) -> None:
    """Print what the service does."""
    async for event in repository.watch(after=0):
        if event.kind in SHOWN:
            say(f"service: {str(event).partition(' ')[2]}")


async def reached(repository: AsyncRepositoryClient, version: int, role: str) -> None:
    """Wait until a version is promoted, or in quarantine, and nothing is left to do."""
    while True:
        report = await repository.versions("double")
        found = report.version(version)
        if found is not None and found.role == role and not await repository.plan():
            return
        await asyncio.sleep(0.1)


async def story(setup: Setup, drafts: Path) -> None:
    """Run the service, and let versions come and go."""
    store = Path(setup.store.url)
    addresses: asyncio.Queue[str] = asyncio.Queue()
    ending = asyncio.Event()
    service = asyncio.create_task(
        serve(setup, ending, ready=lambda running: addresses.put_nowait(running.addresses[0]))
    )
    answered: collections.Counter[int] = collections.Counter()
    async with AsyncRepositoryClient(await addresses.get()) as repository:
        say(f"{repository}")
        telling = asyncio.create_task(tell(repository))
        upload(drafts, store, 1)
        await reached(repository, 1, "promoted")
        asking = asyncio.create_task(ask([server.target for server in setup.servers.values()], answered))
        for version, role in ((2, "promoted"), (3, "quarantined"), (4, "promoted")):
            upload(drafts, store, version)
            await reached(repository, version, role)
            await asyncio.sleep(0.5)
        say(f"-- rolling back; version {await repository.rollback('double', 2)} it is")
        await reached(repository, 2, "promoted")
        await asyncio.sleep(0.5)
        say("-- the versions, in the end")
        for info in (await repository.versions("double")).versions:
            states = ", ".join(f"{name} {status.state.name}" for name, status in info.servers.items())
            say(f"   version {info.version}: {info.role or 'known'}; {states or 'on no server'}")
        for task in (asking, telling):
            if task.done():
                task.result()  # it should not have ended: raises what ended it
            task.cancel()
        await asyncio.gather(asking, telling, return_exceptions=True)
    ending.set()
    await service
    counts = ", ".join(f"{count} by version {version}" for version, count in sorted(answered.items()))
    say(f"{answered.total()} calls, 0 failed: {counts}")


async def main(folder: Path) -> None:
    """Export, start two servers, tell the story."""
    say("exporting four versions (in a process that imports TensorFlow) …")
    (folder / "store").mkdir()
    await export(folder / "drafts")
    say("starting two model servers …")
    async with ServerProcess(config="") as first, ServerProcess(config="") as second:
        text = string.Template((HERE / "set-up.yaml").read_text())
        content = text.substitute(FIRST=first.target, SECOND=second.target)
        await story(read_setup(content, source=folder / "set-up.yaml"), folder / "drafts")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(main(Path(temporary)))
