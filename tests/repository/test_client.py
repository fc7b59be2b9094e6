"""aioserving.repository.client: what it gives and raises, also when a service goes away or a caller does."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

pytest.importorskip("grpc_health", reason="needs the extra `repository`")

from aioserving import errors
from aioserving.repository import errors as repository_errors
from aioserving.repository.client import (
    AsyncRepositoryClient,
    BlockingWatch,
    Position,
    RepositoryClient,
)
from aioserving.repository.events import Event
from aioserving.repository.policy import Latest, Policy
from aioserving.repository.results import FetchedVersion
from aioserving.repository.service import RepositoryService, authentication, server_credentials
from aioserving.repository.setup_file import CallerSetup, Secret
from aioserving.security import TLS, StaticToken, Token
from tests.repository.fake_controller import FakeController, FakeFetch


@contextlib.asynccontextmanager
async def connected(**options: Any) -> AsyncIterator[tuple[FakeController, RepositoryService, Any]]:
    controller: Any = FakeController()
    async with (
        RepositoryService(controller, grace=0.5) as service,
        AsyncRepositoryClient(service.addresses[0], **options) as client,
    ):
        yield controller, service, client


@contextlib.contextmanager
def in_a_thread(controller: Any) -> Any:
    """A service on an event loop of another thread, for blocking clients."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> RepositoryService:
        service = RepositoryService(controller(), grace=0.5)
        await service.start()
        return service

    service = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield service, loop
    finally:
        asyncio.run_coroutine_threadsafe(service.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


# -- calls --------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_calls() -> None:
    """Every method gives what the controller says, as plain objects."""
    async with connected() as (controller, _, client):
        assert [model.name for model in await client.models()] == ["digits", "faces"]
        report = await client.versions("digits")
        assert (report.version(1).role, report.version(1).disk.current) == ("promoted", True)
        assert str(report.version(1).servers["b"]) == "version 1 END (NOT_FOUND: gone)"
        policy = Policy(versions=Latest(2))
        assert await client.set_policy("digits", policy) == policy
        assert await client.get_policy("digits") == policy
        assert await client.get_policy("faces") is None
        assert await client.rollout("digits") == 2
        assert await client.rollback("digits", 0) == 0
        assert [await client.release_version("digits", version) for version in (2, 1)] == [True, False]
        await client.delete_version("digits", 2)
        assert await client.plan() == ()
        assert await client.set_policy("digits", None) is None
        assert controller.calls[-6:-2] == [
            ("rollback", "digits", 0),
            ("release", "digits", 2),
            ("release", "digits", 1),
            ("delete_version", "digits", 2),
        ]
        assert client.target in repr(client)


@pytest.mark.anyio
async def test_errors_are_those_of_the_library() -> None:
    """One `except` for everything; each says what it was about."""
    async with connected() as (controller, service, client):
        with pytest.raises(errors.NotFoundError, match="nobody") as caught:
            await client.versions("nobody")
        assert (caught.value.model, caught.value.method) == ("nobody", "ListVersions")
        assert caught.value.endpoint == service.addresses[0]
        with pytest.raises(errors.FailedPreconditionError, match="wanted by its policy"):
            await client.delete_version("digits", 1)
        with pytest.raises(errors.InvalidArgumentError, match="no name for a model"):
            await client.rollout("../etc")
        with pytest.raises(errors.InvalidArgumentError, match="signed 64-bit"):
            await client.rollout("digits", 2**63)
        with pytest.raises(errors.InvalidArgumentError, match="signed 64-bit"):
            client.fetch("digits", "1")
        controller.hold = asyncio.Event()
        with pytest.raises(errors.DeadlineExceededError):
            await client.models(timeout=0.2)


@pytest.mark.anyio
async def test_arguments_are_checked() -> None:
    """What cannot work is refused when the client is made."""
    with pytest.raises(ValueError, match="one target"):
        AsyncRepositoryClient("a:1,b:2")
    with pytest.raises(ValueError, match="plain text"):
        AsyncRepositoryClient("a:1", credentials=StaticToken("t"))
    for name in ("timeout", "outage"):
        with pytest.raises(ValueError, match=name):
            AsyncRepositoryClient("a:1", **{name: -1.0})


@pytest.mark.anyio
async def test_a_service_that_is_away_for_a_moment() -> None:
    """A call waits for a service that restarts; one that stays away is an error that comes in time."""
    controller: Any = FakeController()
    async with RepositoryService(controller, grace=0.1) as service:
        address = service.addresses[0]
        async with AsyncRepositoryClient(address, outage=20.0) as client:
            await client.models()
            await service.stop()
            waiting = asyncio.create_task(client.models())
            await asyncio.sleep(0.3)
            assert not waiting.done()
            async with RepositoryService(controller, listen=[address], grace=0.1):
                assert len(await asyncio.wait_for(waiting, 10)) == 2
        async with AsyncRepositoryClient(address, outage=0.2) as client:
            with pytest.raises(errors.UnavailableError):
                await asyncio.wait_for(client.models(), 5)


@pytest.mark.anyio
async def test_what_may_have_happened_is_not_done_twice() -> None:
    """A rollback whose answer is lost is an error, not a second step back; a read is made again."""
    async with connected(outage=5.0) as (controller, _, client):
        controller.error = repository_errors.StoreUnavailableError("the store is away")
        with pytest.raises(errors.UnavailableError, match="the store is away"):
            await client.rollback("digits")
        assert controller.calls == [("rollback", "digits", None)]
        reading = asyncio.create_task(client.models())
        while len(controller.calls) < 3:
            await asyncio.sleep(0.01)
        controller.error = None
        assert len(await reading) == 2


@pytest.mark.anyio
async def test_a_token_that_is_renewed() -> None:
    """A token that the service refuses is fetched anew once; a second refusal is the error."""
    controller: Any = FakeController()
    guard = authentication([CallerSetup("ci", "operate", Secret("new", "test"))])
    async with RepositoryService(controller, interceptors=[guard], grace=0.1) as service:
        tokens = iter(["old", "new"])
        renewed = Token(lambda: next(tokens), allow_plaintext=True)
        async with AsyncRepositoryClient(service.addresses[0], credentials=renewed) as client:
            assert len(await client.models()) == 2
        wrong = Token(lambda: "wrong", allow_plaintext=True)
        async with AsyncRepositoryClient(service.addresses[0], credentials=wrong) as client:
            with pytest.raises(errors.UnauthenticatedError, match="not valid") as caught:
                await client.models()
            assert "wrong" not in str(caught.value)
            with pytest.raises(errors.UnauthenticatedError):
                await anext(client.watch())


# -- fetching -----------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_fetch() -> None:
    """Awaited it gives the place; iterated the progress first."""
    async with connected() as (_, __, client):
        assert await client.fetch("digits", 1) == FetchedVersion("digits", 1, "/models/digits/1")
        fetch = client.fetch("digits")
        states = [progress.state async for progress in fetch]
        assert states[:2] == ["listing", "fetching"]
        assert await fetch == FetchedVersion("digits", 2, "/models/digits/2")
        assert "done" in repr(fetch)
        with pytest.raises(errors.NotFoundError):
            await client.fetch("digits", 9)


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["cancel", "aclose", "timeout"])
async def test_a_fetch_that_is_given_up(how: str) -> None:
    """Whoever stops waiting gives up his share, at once, and the client stays good."""
    async with connected() as (controller, _, client):
        controller.hidden_fetch = held = FakeFetch("digits", 2)
        held.go_on.clear()
        fetch = client.fetch("digits", timeout=0.5 if how == "timeout" else None)
        assert (await anext(fetch)).state == "listing"
        if how == "cancel":
            waiting = asyncio.create_task(_wait(fetch))
            await asyncio.sleep(0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        elif how == "aclose":
            await fetch.aclose()
            await fetch.aclose()
        else:
            with pytest.raises(errors.DeadlineExceededError):
                await fetch
        with anyio.fail_after(5):
            while not held.cancelled:
                await asyncio.sleep(0.01)
        assert len(await client.models()) == 2


async def _wait(awaitable: Any) -> Any:
    return await awaitable


@pytest.mark.anyio
async def test_a_fetch_goes_on_after_a_restart_of_the_service() -> None:
    """The connection is lost in the middle: the next service is asked for the same version."""
    controller: Any = FakeController()
    controller.hidden_fetch = held = FakeFetch("digits", 2)
    held.go_on.clear()
    async with RepositoryService(controller, grace=0.1) as service:
        address = service.addresses[0]
        async with AsyncRepositoryClient(address) as client:
            fetch = client.fetch("digits", 2)
            assert (await anext(fetch)).state == "listing"
            await service.stop()
            held.go_on.set()
            async with RepositoryService(controller, listen=[address], grace=0.1):
                assert (await asyncio.wait_for(_wait(fetch), 10)).version == 2
    assert controller.calls == [("fetch", "digits", 2)] * 2


# -- watching -----------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_watching() -> None:
    """Once it has begun nothing is missed, and its position is where another one goes on."""
    async with connected() as (controller, service, client):
        watch = client.watch()
        assert watch.position is None
        await watch.begin()
        await watch.begin()
        for number in (1, 2, 3):
            controller.publish("found", str(number), model="digits", version=number)
        event = await anext(watch)
        assert (event.kind, event.number, event.version) == ("found", 1, 1)
        assert watch.position == Position(service.epoch, 1)
        again = client.watch(after=Position.parse(str(watch.position)))
        assert [(await anext(again)).number for _ in range(2)] == [2, 3]
        with pytest.raises(errors.DeadlineExceededError):
            await anext(client.watch(timeout=0.2))
        await again.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(again)


@pytest.mark.anyio
async def test_a_watch_finds_its_way_back() -> None:
    """After a restart the watcher is told that the numbers begin anew, and hears what comes."""
    first: Any = FakeController()
    async with RepositoryService(first, grace=0.1) as service:
        address = service.addresses[0]
        async with AsyncRepositoryClient(address) as client:
            watch, strict = client.watch(), client.watch(reconnect=False)
            await watch.begin()
            await strict.begin()
            first.publish("fetched")
            assert (await anext(watch)).kind == "fetched"
            await service.stop()
            second: Any = FakeController()
            second.publish("started")
            async with RepositoryService(second, listen=[address], grace=0.1):
                missed = await asyncio.wait_for(anext(watch), 10)
                assert (missed.kind, "started anew" in missed.text) == ("missed", True)
                assert (await anext(watch)).kind == "started"
            assert (await anext(strict)).kind == "fetched"
            with pytest.raises(errors.UnavailableError):
                await anext(strict)


@pytest.mark.parametrize("text", ["", "5", "a:b", ":1", "a b:1", "a:" + "9" * 30])
def test_positions_that_are_none(text: str) -> None:
    """A position that was mangled on its way is refused."""
    with pytest.raises(ValueError, match="EPOCH:NUMBER"):
        Position.parse(text)


# -- life ---------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_closing_ends_what_is_under_way() -> None:
    """Calls and streams of a client that is closed end with an error that says so, none hangs."""
    async with connected() as (controller, _, client):
        controller.hold = asyncio.Event()
        call = asyncio.create_task(client.models())
        watch = client.watch()
        await watch.begin()
        event = asyncio.create_task(anext(watch))
        await asyncio.sleep(0.05)
        await client.aclose()
        await client.aclose()
        for task in (call, event):
            with pytest.raises(errors.ClientClosedError):
                await asyncio.wait_for(task, 5)
        with pytest.raises(errors.ClientClosedError):
            await client.models()
        assert "closed" in repr(client)


@pytest.mark.anyio
async def test_closing_does_not_wait_for_streams_that_nobody_reads() -> None:
    """A watch that was put aside holds nothing up."""
    async with connected() as (_, __, client):
        watch = client.watch()
        await watch.begin()
        started = asyncio.get_running_loop().time()
        await client.aclose()
        assert asyncio.get_running_loop().time() - started < 2
        with pytest.raises(errors.ClientClosedError):
            await anext(watch)


@pytest.mark.anyio
async def test_certificates_that_are_renewed(tmp_path: Path) -> None:
    """New calls use new files; a stream goes on over its connection, which is closed once it is not used."""
    trustme = pytest.importorskip("trustme", reason="makes the certificates")
    ca = trustme.CA()
    server = ca.issue_cert("127.0.0.1", "localhost")
    chain = b"".join(blob.bytes() for blob in server.cert_chain_pems)
    controller: Any = FakeController()
    credentials = server_credentials(chain, server.private_key_pem.bytes())
    file = tmp_path / "ca.pem"
    file.write_bytes(ca.cert_pem.bytes())
    async with (
        RepositoryService(controller, credentials=credentials, grace=0.2) as service,
        AsyncRepositoryClient(service.addresses[0], tls=TLS(file, reload=0.0)) as client,
    ):
        watch = client.watch()
        await watch.begin()
        for _ in range(3):
            ca_of_others = trustme.CA().cert_pem.bytes()
            file.write_bytes(ca_of_others + file.read_bytes())
            assert len(await client.models()) == 2
        assert len(client._former) <= 2, "one for the stream, and perhaps the last one"
        controller.publish("found")
        assert (await anext(watch)).kind == "found"


def test_one_event_loop() -> None:
    """A client is used on the loop that it was first used on; another one is a clear error."""
    client = AsyncRepositoryClient("127.0.0.1:1", outage=0.0)
    loop = asyncio.new_event_loop()

    async def use() -> None:
        with pytest.raises(errors.UnavailableError):
            await client.models(timeout=2)

    async def misuse() -> None:
        with pytest.raises(errors.EventLoopError):
            await client.models()

    loop.run_until_complete(use())
    asyncio.run(misuse())
    loop.run_until_complete(client.aclose())
    loop.close()


def test_a_client_that_nobody_closed() -> None:
    """Forgetting to close is a ResourceWarning that says which."""
    with in_a_thread(FakeController) as (service, _):
        client = RepositoryClient(service.addresses[0])
        client.models()
        with pytest.warns(ResourceWarning, match="unclosed <RepositoryClient"):
            del client
            gc.collect()


def test_blocking() -> None:
    """The same from plain code: calls, progress, events, errors."""
    controllers: list[FakeController] = []

    def made() -> FakeController:
        controllers.append(FakeController())
        return controllers[0]

    with in_a_thread(made) as (service, loop):
        with RepositoryClient(service.addresses[0]) as client:
            assert [model.name for model in client.models()] == ["digits", "faces"]
            assert client.set_policy("digits", Policy(keep=4)) == client.get_policy("digits")
            assert client.rollout("digits", 1) == client.rollback("digits") == 1
            assert client.release_version("digits", 2)
            assert client.versions("digits").model == "digits"
            assert client.plan() == ()
            with pytest.raises(errors.NotFoundError):
                client.delete_version("digits", 5)
            with client.fetch("digits", 2) as fetch:
                assert [progress.state for progress in fetch][:2] == ["listing", "fetching"]
                assert fetch.result().path == "/models/digits/2"
                assert fetch.progress is not None
            with client.watch() as watch:
                watch.begin()
                loop.call_soon_threadsafe(controllers[0].publish, "found", "x")
                assert isinstance(event := next(watch), Event)
                assert (event.kind, str(watch.position)) == ("found", f"{service.epoch}:1")
            assert list(watch) == []
            assert client.target in repr(watch) + repr(client)
        with pytest.raises(errors.ClientClosedError):
            client.models()
        client.close()


def test_the_blocking_client_has_the_same_methods() -> None:
    """Methods, arguments and defaults are the same, so that one documentation serves both."""
    for name, method in inspect.getmembers(AsyncRepositoryClient, inspect.isfunction):
        if name.startswith("_") and name != "__init__":
            continue
        mine = getattr(RepositoryClient, {"aclose": "close"}.get(name, name))
        theirs, ours = inspect.signature(method), inspect.signature(mine)
        assert list(theirs.parameters.values()) == list(ours.parameters.values()), name
        assert name == "__init__" or mine.__doc__
    assert {"position", "begin", "close"} <= {name for name in dir(BlockingWatch) if name[0] != "_"}
