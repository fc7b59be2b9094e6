"""aioserving.repository.service: requests become calls of the controller, its errors become codes."""

# ruff: noqa: E402 - what needs the extra is imported once it is known to be there

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import grpc
import grpc.aio
import pytest

pytest.importorskip("grpc_health", reason="needs the extra `repository`")
trustme = pytest.importorskip("trustme", reason="makes the certificates of TLS tests")

from grpc_health.v1 import health_pb2, health_pb2_grpc

from aioserving import errors as rpc_errors
from aioserving.repository import errors
from aioserving.repository.policy import PolicyError, PolicyProblem
from aioserving.repository.service import (
    READ_METHODS,
    SERVICE,
    RepositoryService,
    _status,
    authentication,
    server_credentials,
)
from aioserving.repository.setup_file import CallerSetup, Role, Secret
from aioserving.repository.v1 import model_repository_pb2 as pb
from tests.repository.fake_controller import FakeController, FakeFetch

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def serving(controller: Any, **options: Any) -> AsyncIterator[tuple[RepositoryService, Any]]:
    """A service over real sockets, and a function that calls it as any gRPC client would."""
    service = RepositoryService(controller, grace=2.0, **options)
    async with service, grpc.aio.insecure_channel(service.addresses[0]) as channel:
        yield service, Caller(channel)


class Caller:
    """Plain gRPC, without this library's clients."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    def __call__(self, name: str, request: Any = None, **options: Any) -> Any:
        method = pb.DESCRIPTOR.services_by_name["ModelRepository"].methods_by_name[name]
        kind = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        answer: Any = getattr(pb, method.output_type.name)
        callable_ = kind(
            f"/{SERVICE}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return callable_(request if request is not None else getattr(pb, method.input_type.name)(), **options)


async def code_of(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "read"):
            while await call.read() is not grpc.aio.EOF:
                pass
        else:
            await call
    return caught.value.code().name, caught.value.details() or ""


# -- calls --------------------------------------------------------------------------------------------------


async def test_models_and_versions() -> None:
    """What the controller knows of models and versions is what is answered."""
    async with serving(FakeController()) as (_, call):
        models = (await call("ListModels")).models
        assert [(model.name, model.HasField("policy"), dict(model.labels)) for model in models] == [
            ("digits", True, {"stable": 1}),
            ("faces", False, {}),
        ]
        answer = await call("ListVersions", pb.ListVersionsRequest(model="digits"))
        assert [version.version for version in answer.versions] == [2, 1]
        assert answer.versions[0].quarantine.reason == "it answers wrongly"
        assert [server.server for server in answer.versions[1].servers] == ["a", "b"]
        assert answer.waiting == ["server b does not answer"]
        code, details = await code_of(call("ListVersions", pb.ListVersionsRequest(model="nobody")))
        assert (code, "nobody" in details) == ("NOT_FOUND", True)


async def test_policies_are_set_got_and_removed() -> None:
    """A policy that is set is in force; one that is left out is taken away; nonsense changes nothing."""
    controller = FakeController()
    async with serving(controller) as (_, call):
        policy = pb.Policy(latest=pb.Policy.Latest(count=3), keep=2)
        answer = await call("SetPolicy", pb.SetPolicyRequest(model="digits", policy=policy))
        assert answer.policy.latest.count == 3
        assert (await call("GetPolicy", pb.GetPolicyRequest(model="digits"))).policy.keep == 2
        bad = pb.SetPolicyRequest(model="digits", policy=pb.Policy(latest=pb.Policy.Latest(count=0)))
        code, details = await code_of(call("SetPolicy", bad))
        assert (code, details) == (
            "INVALID_ARGUMENT",
            "versions: latest must be a whole number, at least 1, got 0",
        )
        assert (await call("GetPolicy", pb.GetPolicyRequest(model="digits"))).policy.keep == 2
        assert not (await call("SetPolicy", pb.SetPolicyRequest(model="digits"))).HasField("policy")
        assert not (await call("GetPolicy", pb.GetPolicyRequest(model="digits"))).HasField("policy")
    assert [name for name, *_ in controller.calls] == ["set_policy", "remove_policy"]


async def test_rollout_rollback_and_delete() -> None:
    """A version that is not given is the controller's to choose, and zero is not "not given"."""
    controller = FakeController()
    async with serving(controller) as (_, call):
        assert (await call("Rollout", pb.RolloutRequest(model="digits"))).version == 2
        assert (await call("Rollout", pb.RolloutRequest(model="digits", version=0))).version == 0
        assert (await call("Rollback", pb.RollbackRequest(model="digits"))).version == 1
        await call("DeleteVersion", pb.DeleteVersionRequest(model="digits", version=2))
        in_use = await code_of(call("DeleteVersion", pb.DeleteVersionRequest(model="digits", version=1)))
        assert in_use == ("FAILED_PRECONDITION", "version 1 of model 'digits' is wanted by its policy")
        gone = await code_of(call("DeleteVersion", pb.DeleteVersionRequest(model="digits", version=9)))
        assert gone[0] == "NOT_FOUND"
        assert (await code_of(call("Rollout", pb.RolloutRequest(model="faces"))))[0] == "FAILED_PRECONDITION"
    assert controller.calls[:3] == [
        ("rollout", "digits", None),
        ("rollout", "digits", 0),
        ("rollback", "digits", None),
    ]


async def test_release() -> None:
    """A version comes out of quarantine; of one that was not in it, that is said, and is no error."""
    controller = FakeController()
    async with serving(controller) as (_, call):
        for version, released in ((2, True), (1, False)):
            request = pb.ReleaseVersionRequest(model="digits", version=version)
            assert (await call("ReleaseVersion", request)).released is released
    assert controller.calls == [("release", "digits", 2), ("release", "digits", 1)]


@pytest.mark.parametrize("name", ["", "../etc", "a/b", ".hidden", "x" * 300])
async def test_names_that_no_model_can_have(name: str) -> None:
    """A name that could lead out of the disk never reaches the controller."""
    controller = FakeController()
    async with serving(controller) as (_, call):
        for method, request in (
            ("ListVersions", pb.ListVersionsRequest(model=name)),
            ("FetchVersion", pb.FetchVersionRequest(model=name)),
            ("SetPolicy", pb.SetPolicyRequest(model=name, policy=pb.Policy())),
            ("GetPolicy", pb.GetPolicyRequest(model=name)),
            ("Rollout", pb.RolloutRequest(model=name)),
            ("Rollback", pb.RollbackRequest(model=name)),
            ("ReleaseVersion", pb.ReleaseVersionRequest(model=name, version=1)),
            ("DeleteVersion", pb.DeleteVersionRequest(model=name, version=1)),
            ("Plan", pb.PlanRequest(model=name)),
            ("Watch", pb.WatchRequest(model=name)),
        ):
            assert (await code_of(call(method, request)))[0] == "INVALID_ARGUMENT", method
    assert controller.calls == []


async def test_plan() -> None:
    """The steps come in their order; those about other models are left out where one is asked for."""

    class Fetch:
        def __init__(self, model: str) -> None:
            self.model, self.version = model, 3

        def __str__(self) -> str:
            return f"fetch version 3 of {self.model}"

    controller = FakeController()
    controller.steps = (Fetch("digits"), Fetch("faces"))
    async with serving(controller) as (_, call):
        steps = (await call("Plan")).steps
        assert [(step.kind, step.text) for step in steps] == [
            ("fetch", "fetch version 3 of digits"),
            ("fetch", "fetch version 3 of faces"),
        ]
        [step] = (await call("Plan", pb.PlanRequest(model="faces"))).steps
        assert (step.model, step.version, step.HasField("server")) == ("faces", 3, False)


# -- errors -------------------------------------------------------------------------------------------------

_ABOUT = {"model": "m", "version": 1}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidNameError("x"), "INVALID_ARGUMENT"),
        (PolicyError([PolicyProblem((), "x")]), "INVALID_ARGUMENT"),
        (errors.NotInStoreError("x"), "NOT_FOUND"),
        (errors.StoreAccessError("x"), "FAILED_PRECONDITION"),
        (errors.StoreUnavailableError("x"), "UNAVAILABLE"),
        (errors.IncompleteVersionError("x", **_ABOUT), "ABORTED"),  # type: ignore[arg-type]
        (errors.VersionChangedError("x", **_ABOUT), "ABORTED"),  # type: ignore[arg-type]
        (errors.CorruptVersionError("x", **_ABOUT), "DATA_LOSS"),  # type: ignore[arg-type]
        (errors.UnsafeArchiveError("x", **_ABOUT), "DATA_LOSS"),  # type: ignore[arg-type]
        (errors.LimitExceededError("x", **_ABOUT), "RESOURCE_EXHAUSTED"),  # type: ignore[arg-type]
        (errors.NoRoomError("x"), "RESOURCE_EXHAUSTED"),
        (errors.RepositoryError("x"), "FAILED_PRECONDITION"),
        (rpc_errors.UnavailableError("x", endpoint="a"), "UNAVAILABLE"),
        (rpc_errors.InvalidArgumentError("x"), "INTERNAL"),
    ],
)
async def test_codes(error: Exception, code: str) -> None:
    """Each kind of failure has its code, as the .proto file promises, and says what it is about."""
    controller = FakeController()
    controller.error = error
    async with serving(controller) as (_, call):
        assert await code_of(call("ListModels")) == (code, str(error))


async def test_every_error_of_the_repository_has_a_code() -> None:
    """No error that the repository raises on purpose ends as INTERNAL."""
    kinds = [getattr(errors, name) for name in errors.__all__]
    for kind in kinds:
        about: Any = _ABOUT if issubclass(kind, errors.VersionError) else {}
        assert _status(kind("x", **about))[0] is not grpc.StatusCode.INTERNAL, kind


async def test_what_nobody_expected(caplog: pytest.LogCaptureFixture) -> None:
    """A bug is told in the log, and its text, which may quote anything, to no caller."""
    controller = FakeController()
    controller.error = KeyError("s3cret")
    async with serving(controller) as (_, call):
        with caplog.at_level(logging.ERROR):
            code, details = await code_of(call("ListModels"))
    assert (code, "s3cret" in details, "KeyError" in details) == ("INTERNAL", False, True)
    assert "s3cret" in caplog.text


async def test_long_texts_keep_their_code() -> None:
    """gRPC refuses long statuses and loses their code; so texts are cut."""
    controller = FakeController()
    controller.error = errors.NotInStoreError("\N{BLACK HEART SUIT}" * 50_000)
    async with serving(controller) as (_, call):
        code, details = await code_of(call("ListModels"))
    assert (code, details[-5:]) == ("NOT_FOUND", "(cut)")


# -- fetching -----------------------------------------------------------------------------------------------


async def test_a_fetch_tells_its_progress_and_the_place() -> None:
    """Progress comes while it goes on, and the last message says where the version lies."""
    controller = FakeController()
    async with serving(controller) as (_, call):
        news = [item async for item in call("FetchVersion", pb.FetchVersionRequest(model="digits"))]
    assert [item.progress.state for item in news[:2]] == [2, 3]
    assert not news[0].progress.HasField("bytes_total")
    assert (news[-1].fetched.version, news[-1].fetched.path) == (2, "/models/digits/2")
    assert controller.fetches[0].cancelled, "its share is given back"


async def test_a_fetch_that_nobody_waits_for() -> None:
    """When the caller goes away in the middle, the service gives up its share of the fetch."""
    controller = FakeController()
    controller.hidden_fetch = fetch = FakeFetch("digits", 2)
    fetch.go_on.clear()
    async with serving(controller) as (_, call):
        stream = call("FetchVersion", pb.FetchVersionRequest(model="digits"))
        assert (await stream.read()).progress.state == 2
        stream.cancel()
        with anyio.fail_after(5):
            while not fetch.cancelled:
                await asyncio.sleep(0.01)


async def test_a_fetch_that_fails() -> None:
    """The error of a fetch ends its stream with the error's code."""
    controller = FakeController()
    controller.hidden_fetch = fetch = FakeFetch("digits", 2)
    fetch.error = errors.CorruptVersionError("the checksum differs", model="digits", version=2)
    async with serving(controller) as (_, call):
        code, details = await code_of(call("FetchVersion", pb.FetchVersionRequest(model="digits")))
        assert (code, "the checksum differs" in details) == ("DATA_LOSS", True)
        missing = call("FetchVersion", pb.FetchVersionRequest(model="digits", version=7))
        assert (await code_of(missing))[0] == "NOT_FOUND"


# -- watching -----------------------------------------------------------------------------------------------


async def _next(stream: Any) -> Any:
    return await asyncio.wait_for(stream.read(), 5)


async def test_watching() -> None:
    """A watch begins with where it is, and tells what happens from then on, in order."""
    controller = FakeController()
    controller.publish("started")
    async with serving(controller) as (service, call):
        stream = call("Watch")
        begun = await _next(stream)
        assert (begun.begun.number, begun.epoch) == (1, service.epoch)
        for number in range(2, 5):
            controller.publish("found", f"number {number}", model="digits", version=number)
        found = [(await _next(stream)).event for _ in range(3)]
        assert [event.number for event in found] == [2, 3, 4]
        assert found[0].text == "number 2"


async def test_watching_one_model() -> None:
    """Events about other models are left out; those about none come; the numbers show no gap."""
    controller = FakeController()
    async with serving(controller) as (_, call):
        stream = call("Watch", pb.WatchRequest(model="digits"))
        await _next(stream)
        for model in ("faces", "digits", None):
            controller.publish("problem", model=model)
        assert [(await _next(stream)).event.number for _ in range(2)] == [2, 3]


async def test_watching_from_a_number() -> None:
    """Events after the given one come first; those that are not kept any more are said to be missed."""
    controller = FakeController(kept=5)
    for _ in range(10):
        controller.publish("probed")
    async with serving(controller) as (service, call):
        stream = call("Watch", pb.WatchRequest(after=7, epoch=service.epoch))
        assert (await _next(stream)).begun.number == 7
        assert [(await _next(stream)).event.number for _ in range(3)] == [8, 9, 10]
        late = call("Watch", pb.WatchRequest(after=2))
        await _next(late)
        missed = await _next(late)
        assert (missed.missed.count, missed.epoch) == (3, service.epoch)
        assert (await _next(late)).event.number == 6
        future = call("Watch", pb.WatchRequest(after=99))
        assert (await code_of(future))[0] == "INVALID_ARGUMENT"


async def test_watching_after_a_restart_of_the_service() -> None:
    """Numbers of another start of the service mean nothing: the watcher is told, and gets what there is."""
    controller = FakeController()
    controller.publish("started")
    async with serving(controller) as (service, call):
        stream = call("Watch", pb.WatchRequest(after=500, epoch="another"))
        assert (await _next(stream)).begun.number == 0
        missed = await _next(stream)
        assert "started anew" in missed.missed.reason
        assert not missed.missed.HasField("count")
        assert (await _next(stream)).event.number == 1
        assert "1 watchers" in repr(service)


async def test_a_slow_watcher_is_told_what_it_missed() -> None:
    """A watcher that does not read costs bounded memory, and afterwards knows how many events it missed."""
    controller = FakeController()
    async with serving(controller) as (_, call):
        stream = call("Watch")
        await _next(stream)
        total = 20_000
        for number in range(total):
            controller.publish("problem", "x" * 500)
            if number % 100 == 0:
                await asyncio.sleep(0)
        assert max(len(watch._waiting) for watch in controller.events.watches) <= 1000, "memory is bounded"
        seen = missed = last = 0
        while last < total:
            news = await _next(stream)
            if news.WhichOneof("news") == "missed":
                missed += news.missed.count
                continue
            seen += 1
            assert news.event.number > last
            last = news.event.number
        assert missed > 0
        assert seen + missed == total, "every event is accounted for"


# -- life ---------------------------------------------------------------------------------------------------


async def test_health() -> None:
    """Health is there for all, by both names, and says so while the service ends."""
    async with serving(FakeController()) as (service, call):
        stub = health_pb2_grpc.HealthStub(call.channel)
        for name in ("", SERVICE):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        watching = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        ending = asyncio.create_task(service.stop(1.0))
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watching.cancel()
        await ending


async def test_ending_is_graceful() -> None:
    """Watchers are told at once; a call under way still gets its answer; a new one is refused."""
    controller = FakeController()
    controller.hold = asyncio.Event()
    async with serving(controller) as (service, call):
        stream = call("Watch")
        await _next(stream)
        answer = asyncio.ensure_future(_wait(call("ListModels")))
        while not controller.calls:
            await asyncio.sleep(0.01)
        ending = asyncio.create_task(service.stop())
        code, details = await asyncio.wait_for(code_of(stream), 1.5)
        assert (code, details) == ("UNAVAILABLE", "the service is ending")
        assert not answer.done()
        controller.hold.set()
        assert len((await answer).models) == 2
        await ending
        assert (await code_of(call("ListModels", timeout=2)))[0] == "UNAVAILABLE"
        assert "stopped" in repr(service)
        await service.stop()


async def _wait(call: Any) -> Any:
    return await call


async def test_addresses(tmp_path: Path) -> None:
    """It listens on several addresses at once, and one that is taken is an error that names it."""
    async with serving(FakeController(), listen=["127.0.0.1:0", f"unix:{tmp_path}/s"]) as (service, _):
        assert not service.addresses[0].endswith(":0")
        async with grpc.aio.insecure_channel(service.addresses[1]) as channel:
            assert len((await Caller(channel)("ListModels")).models) == 2
        other = RepositoryService(FakeController(), listen=[service.addresses[0]])  # type: ignore[arg-type]
        with pytest.raises(OSError, match=service.addresses[0]):
            await other.start()
    with pytest.raises(TypeError, match="list of addresses"):
        RepositoryService(FakeController(), listen="127.0.0.1:1")  # type: ignore[arg-type]


# -- who may call -------------------------------------------------------------------------------------------

CALLERS = [
    CallerSetup("ci", "operate", token=Secret("t0p", "test")),
    CallerSetup("dashboard", "read", token=Secret("l00k", "test")),
    CallerSetup("deployer", "operate", certificate="deploy.example.org"),
    CallerSetup("monitor", "read", certificate="monitor.example.org"),
]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("tls")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    write_certificate(ca, folder)
    return ca, folder


def write_certificate(ca: Any, folder: Path) -> None:
    server = ca.issue_cert("127.0.0.1", "localhost")
    server.private_key_pem.write_to_path(str(folder / "server.key"))
    (folder / "server.pem").write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))


def secure_channel(ca: Any, address: str, name: str | None = None) -> grpc.aio.Channel:
    if name is None:
        credentials = grpc.ssl_channel_credentials(ca.cert_pem.bytes())
    else:
        client = ca.issue_cert(name)
        chain = b"".join(blob.bytes() for blob in client.cert_chain_pems)
        credentials = grpc.ssl_channel_credentials(ca.cert_pem.bytes(), client.private_key_pem.bytes(), chain)
    return grpc.aio.secure_channel(address, credentials)


async def allowed(call: Caller, token: str | None = None) -> dict[str, str]:
    """What each method answers to a caller: the code, or OK."""
    metadata = None if token is None else (("authorization", f"Bearer {token}"),)
    found = {}
    for method in pb.DESCRIPTOR.services_by_name["ModelRepository"].methods:
        request: Any = getattr(pb, method.input_type.name)()
        if hasattr(request, "model"):
            request.model = "digits"
        if hasattr(request, "version"):
            request.version = 2
        if hasattr(request, "policy"):
            request.policy.SetInParent()
        try:
            answer = call(method.name, request, metadata=metadata, timeout=10)
            if method.name == "Watch":
                await answer.read()
                answer.cancel()
            elif method.server_streaming:
                async for _ in answer:
                    pass
            else:
                await answer
            found[method.name] = "OK"
        except grpc.aio.AioRpcError as error:
            found[method.name] = error.code().name
    return found


async def test_roles_by_token(authority: tuple[Any, Path]) -> None:
    """Over TLS: `operate` may call all, `read` what changes nothing, and who has no valid token nothing."""
    ca, folder = authority
    credentials = server_credentials(folder / "server.pem", folder / "server.key")
    service = RepositoryService(
        FakeController(),  # type: ignore[arg-type]
        credentials=credentials,
        interceptors=[authentication(CALLERS[:2])],
    )
    async with service, secure_channel(ca, service.addresses[0]) as channel:
        call = Caller(channel)
        assert set((await allowed(call, "t0p")).values()) == {"OK"}
        looked = await allowed(call, "l00k")
        assert {name for name, code in looked.items() if code == "OK"} == READ_METHODS
        assert set(looked.values()) == {"OK", "PERMISSION_DENIED"}
        for token in (None, "", "wrong"):
            assert set((await allowed(call, token)).values()) == {"UNAUTHENTICATED"}, token
        stub = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == 1


async def test_roles_by_certificate(authority: tuple[Any, Path]) -> None:
    """Over mutual TLS: the name in the certificate decides, and a certificate is not enough by itself."""
    ca, folder = authority
    credentials = server_credentials(
        folder / "server.pem", folder / "server.key", client_ca=folder / "ca.pem"
    )
    service = RepositoryService(
        FakeController(),  # type: ignore[arg-type]
        credentials=credentials,
        interceptors=[authentication(CALLERS)],
    )
    async with service:
        for name, expected in (
            ("deploy.example.org", set(pb.DESCRIPTOR.services_by_name["ModelRepository"].methods_by_name)),
            ("monitor.example.org", set(READ_METHODS)),
            ("stranger.example.org", set()),
        ):
            async with secure_channel(ca, service.addresses[0], name) as channel:
                found = await allowed(Caller(channel))
                assert {method for method, code in found.items() if code == "OK"} == expected, name
        async with secure_channel(ca, service.addresses[0]) as channel:
            assert (await code_of(Caller(channel)("ListModels", timeout=5)))[0] == "UNAVAILABLE"


async def test_tokens_in_files_are_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From the next call on the new token is valid; one that is gone, or another's, lets nobody in."""

    def write(name: str, content: str) -> None:
        (tmp_path / "new").write_text(content)
        (tmp_path / "new").replace(tmp_path / name)

    def caller(name: str, role: Role) -> CallerSetup:
        path = tmp_path / name
        return CallerSetup(name, role, Secret(path.read_text().strip(), f"file {path}", path))

    write("ci", "t0p\n")
    write("dashboard", "l00k\n")
    callers = [caller("ci", "operate"), caller("dashboard", "read")]
    options: Any = {"interceptors": [authentication(callers)]}
    async with serving(FakeController(), **options) as (_, call):

        async def code(token: str, method: str = "Rollout") -> str:
            request = getattr(pb, f"{method}Request")(**({"model": "digits"} if method == "Rollout" else {}))
            try:
                await call(method, request, metadata=(("authorization", f"Bearer {token}"),), timeout=10)
            except grpc.aio.AioRpcError as error:
                return error.code().name
            return "OK"

        assert [await code("t0p"), await code("l00k", "ListModels")] == ["OK", "OK"]
        write("ci", "n3w\n")
        assert [await code("n3w"), await code("t0p")] == ["OK", "UNAUTHENTICATED"]
        assert [await code("l00k", "ListModels"), await code("l00k")] == ["OK", "PERMISSION_DENIED"]
        # Roles stay with the callers, also while two of them change places.
        write("ci", "l00k\n")
        assert [await code("l00k"), await code("n3w")] == ["OK", "UNAVAILABLE"]
        assert "the token of dashboard cannot be used: it is that of ci, too" in caplog.text
        write("dashboard", "n3w\n")
        assert [await code("l00k"), await code("n3w")] == ["OK", "PERMISSION_DENIED"]
        (tmp_path / "ci").unlink()
        assert [await code("l00k"), await code("n3w", "ListModels")] == ["UNAVAILABLE", "OK"]
        for bad in ("", "two words"):
            write("ci", bad)
            assert await code("two words") != "OK"
            assert await code("n3w", "ListModels") == "OK"
        write("ci", "back\n")
        assert [await code("back"), await code("l00k")] == ["OK", "UNAUTHENTICATED"]
    assert "the token of ci cannot be used: the file" in caplog.text
    for token in ("t0p", "n3w", "l00k", "back"):
        assert token not in caplog.text


async def test_a_new_certificate_is_used_without_a_restart(
    authority: tuple[Any, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Certificates are renewed while the service runs; half of a renewal changes nothing."""
    old, new = authority[0], trustme.CA()
    write_certificate(old, tmp_path)
    service = RepositoryService(
        FakeController(),  # type: ignore[arg-type]
        credentials=server_credentials(tmp_path / "server.pem", tmp_path / "server.key"),
    )
    async with service:

        async def reachable(ca: Any) -> bool:
            async with secure_channel(ca, service.addresses[0]) as channel:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await Caller(channel)("ListModels", timeout=5)
                    return True
                return False

        assert (await reachable(old), await reachable(new)) == (True, False)
        key = (tmp_path / "server.key").read_bytes()
        write_certificate(new, tmp_path)
        (tmp_path / "server.key").write_bytes(key)
        assert await reachable(old), "key and certificate do not fit yet"
        assert "goes on with what it has" in caplog.text
        write_certificate(new, tmp_path)
        assert (await reachable(old), await reachable(new)) == (False, True)


async def test_credentials_that_cannot_work(authority: tuple[Any, Path]) -> None:
    """What is wrong with the files is told at once, and not by connections that fail."""
    _, folder = authority
    with pytest.raises(ValueError, match="certificate"):
        server_credentials(folder / "server.key", folder / "server.key")
    with pytest.raises(OSError, match="nowhere"):
        server_credentials(folder / "nowhere.pem", folder / "server.key")
    with pytest.raises(ValueError, match="scheme"):
        authentication([])
