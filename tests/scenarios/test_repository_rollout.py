"""Rollouts by the repository's controller on real server processes, while callers call and things die."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fsspec", reason="needs the extra `repository`")

import numpy as np

from aioserving import AsyncClient
from aioserving.repository.controller import Controller
from aioserving.repository.disk import Disk
from aioserving.repository.errors import AlreadyRunningError
from aioserving.repository.fetch import Fetcher
from aioserving.repository.policy import Label, Policy, Probe
from aioserving.repository.state import StateFile
from aioserving.repository.store import Store
from aioserving.status import State as ServerState

from ..repository.serve import ROOT, LightServer

SAVED_MODEL = ROOT / "tests" / "golden" / "models" / "versions" / "1"
IMAGES = np.ones((1, 4), np.float32)
PROBE = Probe(inputs={"images": [[1.0] * 4]}, outputs={"scores": [4.0]}, interval=0.2)
STABLE = Policy(labels={"stable": Label()}, probe=PROBE)


def upload(store: Path, version: int, *marks: str, model: str = "digits", megabytes: int = 0) -> None:
    """A version appears in a local store at once."""
    partial = store / f".{model}-{version}"
    shutil.copytree(SAVED_MODEL, partial)
    for mark in marks:
        (partial / "assets" / mark).write_text(mark)
    (partial / "assets" / "number").write_text(str(version))
    if megabytes:
        (partial / "assets" / "weights").write_bytes(os.urandom(megabytes << 20))
    (store / model).mkdir(exist_ok=True)
    partial.rename(store / model / str(version))


@contextlib.asynccontextmanager
async def fleet(count: int) -> AsyncIterator[list[LightServer]]:
    servers = [LightServer() for _ in range(count)]
    try:
        await asyncio.gather(*(server.astart() for server in servers))
        yield servers
    finally:
        for server in servers:
            server.close()


@contextlib.asynccontextmanager
async def controller_of(
    store_url: str, base: Path, servers: list[LightServer], **settings: Any
) -> AsyncIterator[Controller]:
    async with contextlib.AsyncExitStack() as stack:
        store = Store.open(store_url, storage_options=settings.pop("storage_options", None), settle=0.1)
        stack.push_async_callback(store.close)
        disk = Disk(base)
        fetcher = await stack.enter_async_context(Fetcher(store, disk))
        clients = {
            f"s{number}": await stack.enter_async_context(AsyncClient(server.target))
            for number, server in enumerate(servers)
        }
        controller = Controller(store, disk, fetcher, clients, **{"poll_period": 0.5, **settings})
        fetcher.keep = controller.in_use
        yield await stack.enter_async_context(controller)


class Callers:
    """Callers of one server each, by label and without; every answer is kept with its time."""

    def __init__(self, servers: list[LightServer]) -> None:
        self.answers: dict[tuple[int, str | None], list[tuple[float, int]]] = {}
        self._servers = servers
        self._enough = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Callers:  # noqa: PYI034 - typing.Self needs Python 3.11
        for number, server in enumerate(self._servers):
            for label in ("stable", None):
                self._tasks.append(asyncio.create_task(self._call(number, server.target, label)))
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._enough.set()
        await asyncio.gather(*self._tasks)

    async def _call(self, number: int, target: str, label: str | None) -> None:
        answers = self.answers.setdefault((number, label), [])
        async with AsyncClient(target, retry=None) as client:
            while not self._enough.is_set():
                result = await client.predict("digits", {"images": IMAGES}, version_label=label)
                answers.append((time.monotonic(), int(result["version"])))
                await asyncio.sleep(0.002)

    def versions(self, number: int, label: str | None) -> list[int]:
        """The versions that answered, each as often as it took over."""
        seen: list[int] = []
        for _, version in self.answers[number, label]:
            if not seen or seen[-1] != version:
                seen.append(version)
        return seen

    def mixed(self, label: str, old: int, new: int) -> float:
        """Seconds from the first answer of `new` on any server to the last one of `old`."""
        answers = [item for (_, name), items in self.answers.items() if name == label for item in items]
        first = min(at for at, version in answers if version == new)
        last = max(at for at, version in answers if version == old)
        return max(0.0, last - first)


def run(coroutine: Coroutine[Any, Any, None], seconds: float = 100) -> None:
    asyncio.run(asyncio.wait_for(coroutine, seconds))


async def until(condition: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        await asyncio.sleep(0.02)


@dataclass
class Shop:
    """A store and how a version of ``digits`` gets into it."""

    url: str
    upload: Callable[..., None]
    storage_options: dict[str, Any] | None = None


@pytest.fixture(
    params=[
        "local",
        pytest.param(
            "s3",
            marks=[
                pytest.mark.filterwarnings("ignore::DeprecationWarning"),
                pytest.mark.filterwarnings("ignore::ResourceWarning"),
            ],
        ),
    ]
)
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    """A folder, and the same over the S3 protocol."""
    store = tmp_path / "store"
    store.mkdir()
    if request.param == "local":
        return Shop(str(store), functools.partial(upload, store))
    options = request.getfixturevalue("s3")
    import s3fs

    s3fs.S3FileSystem(**options, skip_instance_cache=True).mkdir("models")

    def put(version: int, *marks: str) -> None:
        upload(store, version, *marks)
        files = s3fs.S3FileSystem(**options, skip_instance_cache=True)
        files.put(str(store / "digits" / str(version)), f"models/digits/{version}", recursive=True)

    return Shop("s3://models", put, options)


def test_a_rollout_under_load(tmp_path: Path, shop: Shop) -> None:
    """1 -> 2 -> bad 3 -> 4 on three servers: no call fails, and `stable` goes from good to good at once."""
    shop.upload(1)

    async def story() -> None:
        async with (
            fleet(3) as servers,
            controller_of(
                shop.url, tmp_path / "disk", servers, storage_options=shop.storage_options
            ) as controller,
        ):
            await controller.set_policy("digits", STABLE)
            await controller.wait_converged(30)
            async with Callers(servers) as callers:
                await asyncio.to_thread(shop.upload, 2)
                await until(lambda: controller.state.model("digits").good == {2})
                await asyncio.to_thread(shop.upload, 3, "fails")
                await until(lambda: 3 in controller.state.model("digits").quarantine)
                await asyncio.to_thread(shop.upload, 4)
                await until(lambda: controller.state.model("digits").good == {4})
                await controller.wait_converged(30)
                await asyncio.sleep(0.3)
            for number in range(3):
                assert callers.versions(number, "stable") == [1, 2, 4]
                assert callers.versions(number, None) == [1, 2, 4]
            assert callers.mixed("stable", 1, 2) < 0.5
            assert callers.mixed("stable", 2, 4) < 0.5
            report = await controller.status("digits")
            assert "the graph in" in (report.versions[1].quarantine or pytest.fail("3 is free")).reason
            assert {found.state for found in report.versions[0].servers.values()} == {ServerState.AVAILABLE}
            assert not list((tmp_path / "disk" / "digits").glob("[13]"))  # the bad one, and one too old

    run(story())


def test_a_first_version_that_is_bad(tmp_path: Path) -> None:
    """On a server that was never told anything, a first version that fails does not end all that follows."""
    store = tmp_path / "store"
    store.mkdir()
    upload(store, 1, "fails")
    upload(store, 1, model="other")

    async def story() -> None:
        async with fleet(2) as servers, controller_of(str(store), tmp_path / "disk", servers) as controller:
            await controller.set_policy("digits", STABLE)
            await controller.set_policy("other", Policy())
            await until(lambda: controller.state.model("digits").candidates)
            upload(store, 2)
            await until(lambda: 1 in controller.state.model("digits").quarantine)
            await until(lambda: controller.state.model("digits").good == {2})
            await controller.wait_converged(30)
            for model, version in (("digits", 2), ("other", 1)):
                (found, *_) = (await controller.status(model)).versions
                assert found.version == version
                assert [one.state for one in found.servers.values()] == [ServerState.AVAILABLE] * 2

    run(story())


def test_a_version_that_answers_wrongly_never_gets_the_label(tmp_path: Path) -> None:
    """It loads, fails its probe, is unloaded and in quarantine; callers of `stable` notice nothing."""
    store = tmp_path / "store"
    store.mkdir()
    upload(store, 1)
    probe = Probe(inputs={"images": [[1.0] * 4]}, outputs={"version": 2})
    policy = Policy(labels={"stable": Label()}, probe=probe)

    async def story() -> None:
        async with fleet(2) as servers, controller_of(str(store), tmp_path / "disk", servers) as controller:
            await controller.set_policy("digits", Policy(labels={"stable": Label()}))
            await controller.wait_converged(30)
            await controller.set_policy("digits", policy)
            async with Callers(servers) as callers:
                upload(store, 2, "wrong")
                await until(lambda: 2 in controller.state.model("digits").quarantine)
                await controller.wait_converged(30)
            assert [callers.versions(number, "stable") for number in range(2)] == [[1], [1]]
            reason = controller.state.model("digits").quarantine[2].reason
            assert "output 'version' at [] is -1, not 2" in reason
            assert await controller.rollback("digits", 1) == 1  # nothing to go back from: harmless
            await controller.wait_converged(30)

    run(story())


def test_a_canary_and_a_rollback(tmp_path: Path) -> None:
    """The canary label goes first, `stable` follows after its probes, and a rollback takes both back."""
    store = tmp_path / "store"
    store.mkdir()
    upload(store, 1)
    policy = Policy(labels={"stable": Label(), "canary": Label(probes=4)}, probe=PROBE)

    async def story() -> None:
        async with fleet(2) as servers, controller_of(str(store), tmp_path / "disk", servers) as controller:
            await controller.set_policy("digits", policy)
            await controller.wait_converged(30)
            upload(store, 2)
            await until(lambda: controller.state.model("digits").labels == {"stable": 1, "canary": 2})
            await until(lambda: controller.state.model("digits").labels == {"stable": 2, "canary": 2})
            await controller.wait_converged(30)
            async with Callers(servers) as callers:
                assert await controller.rollback("digits") == 1
                await controller.wait_converged(30)
                await asyncio.sleep(0.2)
            assert [callers.versions(number, "stable") for number in range(2)] == [[2, 1], [2, 1]]
            assert controller.state.model("digits").labels == {"stable": 1, "canary": 1}
            assert await controller.rollout("digits", 2) == 2
            await controller.wait_converged(30)
            assert controller.state.model("digits").good == {2}

    run(story())


def test_a_server_that_dies_or_restarts_empty(tmp_path: Path) -> None:
    """It gets back its models and labels when it returns, also those that came meanwhile."""
    store = tmp_path / "store"
    store.mkdir()
    upload(store, 1)

    async def story() -> None:
        async with (
            fleet(2) as servers,
            controller_of(str(store), tmp_path / "disk", servers, server_grace=1.0) as controller,
        ):
            await controller.set_policy("digits", STABLE)
            await controller.wait_converged(30)
            servers[1].kill()
            upload(store, 2)
            await until(lambda: controller.state.model("digits").labels == {"stable": 2})
            await servers[1].astart()
            await controller.wait_converged(30)
            await servers[0].arestart()
            await controller.wait_converged(30)
            for server in servers:
                async with AsyncClient(server.target) as client:
                    result = await client.predict("digits", {"images": IMAGES}, version_label="stable")
                    assert result["version"] == 2

    run(story())


def test_a_second_controller_refuses(tmp_path: Path) -> None:
    """Two controllers on one directory: the second says who is there."""
    store = tmp_path / "store"
    store.mkdir()

    async def story() -> None:
        async with controller_of(str(store), tmp_path / "disk", []):
            with pytest.raises(AlreadyRunningError, match=f"process {os.getpid()} "):
                async with controller_of(str(store), tmp_path / "disk", []):
                    pass
        async with controller_of(str(store), tmp_path / "disk", []):
            pass

    run(story())


def test_from_upload_to_available(tmp_path: Path) -> None:
    """Within a poll period, the time that a load takes, and a second, of which the server's poll is part."""
    store = tmp_path / "store"
    store.mkdir()
    upload(store, 1)
    took = []

    async def story() -> None:
        async with (
            fleet(3) as servers,
            controller_of(str(store), tmp_path / "disk", servers, poll_period=1.0) as controller,
        ):
            await controller.set_policy("digits", Policy(labels={"stable": Label()}))
            await controller.wait_converged(30)
            for version in (2, 3, 4):
                seen: set[str] = set()
                watch = controller.watch()
                began = time.monotonic()
                upload(store, version)
                async for event in watch:
                    if event.kind == "available" and event.version == version:
                        seen.add(event.server or "")
                        if len(seen) == 3:
                            break
                watch.close()
                took.append(time.monotonic() - began)

    run(story())
    assert max(took) < 1.0 + 0.3 + 1.0, took


# -- deaths at random points --------------------------------------------------------------------------------


CONTROLLER = """
import asyncio, logging, sys
from aioserving import AsyncClient
from aioserving.repository.controller import Controller
from aioserving.repository.disk import Disk
from aioserving.repository.fetch import Fetcher
from aioserving.repository.store import Store

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(message)s")

async def main():
    store = Store.open(sys.argv[1], settle=0.05)
    disk = Disk(sys.argv[2])
    fetcher = Fetcher(store, disk)
    clients = {f"s{n}": AsyncClient(target) for n, target in enumerate(sys.argv[3:])}
    controller = Controller(store, disk, fetcher, clients, poll_period=0.2, server_grace=2.0)
    fetcher.keep = controller.in_use
    await controller.run()

asyncio.run(main())
"""


async def rounds_of_deaths(tmp_path: Path, rounds: int, seed: int) -> None:
    """Versions come; controller, servers and store die and return at random; it always converges."""
    rng = random.Random(seed)
    store, base, log = tmp_path / "store", tmp_path / "disk", tmp_path / "controller.log"
    store.mkdir()
    upload(store, 1)
    async with fleet(2) as servers:
        async with controller_of(str(store), base, servers) as controller:
            await controller.set_policy("digits", STABLE)
            await controller.wait_converged(30)
        version = good = 1

        async def start() -> asyncio.subprocess.Process:
            with await asyncio.to_thread(open, log, "a") as stderr:
                return await asyncio.create_subprocess_exec(
                    sys.executable, "-c", CONTROLLER, str(store), str(base),
                    *(server.target for server in servers), cwd=ROOT, stderr=stderr,
                )  # fmt: skip

        process = await start()
        try:
            for number in range(rounds):
                version += 1
                bad = rng.random() < 0.25
                upload(store, version, *(["fails"] if bad else []), megabytes=1)
                good = good if bad else version
                await asyncio.sleep(rng.uniform(0.0, 1.2))
                victim = rng.choice(["controller", "controller", "server", "store"])
                if victim == "controller":
                    process.send_signal(signal.SIGKILL)
                    await process.wait()
                    process = await start()
                elif victim == "server":
                    server = rng.choice(servers)
                    server.kill()
                    await server.astart()
                else:
                    store.rename(tmp_path / "gone")
                    await asyncio.sleep(rng.uniform(0.1, 0.6))
                    (tmp_path / "gone").rename(store)
                try:
                    await converged(servers, good, f"round {number}, seed {seed}, {victim}, bad={bad}")
                except AssertionError as error:
                    told = "\n".join(log.read_text(encoding="utf-8").splitlines()[-60:])
                    raise AssertionError(f"{error}; {process}; the last of the controller:\n{told}") from None
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
        state = StateFile(base / ".aioserving" / "state.json").load().model("digits")
        assert state.labels == {"stable": good}
        assert json.loads((base / ".aioserving" / "state.json").read_text())["format"] == 1


async def converged(servers: list[LightServer], good: int, what: str) -> None:
    """Every server answers calls of `stable` with the newest good version, within a while."""
    deadline = time.monotonic() + 30
    for server in servers:
        async with AsyncClient(server.target) as client:
            while True:
                seen: object = None
                with contextlib.suppress(Exception):
                    result = await client.predict("digits", {"images": IMAGES}, version_label="stable")
                    seen = int(result["version"])
                if seen == good:
                    break
                assert time.monotonic() < deadline, f"{what}: {server} is at {seen}, not {good}"
                await asyncio.sleep(0.05)


def test_deaths_at_random_points(tmp_path: Path) -> None:
    """A few rounds of SIGKILL to controller, servers and store always end where they should."""
    run(rounds_of_deaths(tmp_path, 4, seed=1))


@pytest.mark.nightly
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", range(2, 6))
def test_many_deaths_at_random_points(tmp_path: Path, seed: int) -> None:
    """The same, two hundred rounds in all."""
    run(rounds_of_deaths(tmp_path, 50, seed), 1400)
