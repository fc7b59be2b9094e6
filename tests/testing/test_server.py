"""aioserving.testing.server: real sockets, raw bytes, a plain grpc.aio client."""

from __future__ import annotations

import asyncio
import gc
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import grpc
import grpc.aio
import numpy as np
import pytest

from aioserving._proto import message_class
from aioserving.testing import CallableServable, ModelServer, StatusCode, StatusError
from aioserving.testing.options import ServerOptions
from aioserving.testing.server import BlockingModelServer
from tests.testing.servables import (
    METADATA,
    PREDICT,
    RELOAD,
    STATUS,
    both_versions,
    predict_request,
    predicted,
    predicted_version,
    reload_request,
    sleeper,
    status_request,
    statuses,
    times,
)

pytestmark = pytest.mark.anyio

Call = Callable[..., Awaitable[bytes]]

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., Call]]:
    """Open channels; what it gives is called as ``await call(method, request, timeout=None)``."""
    channels = []

    def opener(target: str, credentials: grpc.ChannelCredentials | None = None, **options: Any) -> Call:
        arguments = [*UNLIMITED, ("grpc.use_local_subchannel_pool", 1), *options.items()]
        channel = (
            grpc.aio.insecure_channel(target, arguments)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, arguments)
        )
        channels.append(channel)

        async def call(method: str, request: bytes, timeout: float | None = 20) -> bytes:
            stub: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
            return await stub(request, timeout=timeout)

        return call

    yield opener
    for channel in channels:
        await channel.close()


async def failure(awaitable: Awaitable[Any]) -> tuple[str, str]:
    """Code and details that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return caught.value.code().name, caught.value.details() or ""


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 10) -> None:
    """Wait for what settles in the background."""
    with anyio.fail_after(seconds):
        while True:
            result = condition()
            if result is True or (result is not False and await result):
                return
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("inline", [True, False])
async def test_predict(connect: Callable[..., Call], inline: bool) -> None:
    """A callable answers Predict over a socket, on the event loop or in a thread."""
    async with ModelServer({"m": times(3, inline=inline)}) as server:
        answer = await connect(server.target)(PREDICT, predict_request("m"))
    assert predicted(answer) == [3.0, 6.0]
    assert predicted_version(answer) == 1


async def test_errors_on_the_wire(connect: Callable[..., Call]) -> None:
    """Refusals carry the real code and text; garbage is INTERNAL, a strange method UNIMPLEMENTED, mutely."""
    async with ModelServer({"m": times(1)}) as server:
        call = connect(server.target)
        for method, request, expected in [
            (PREDICT, predict_request("x"), ("NOT_FOUND", "Servable not found for request: Latest(x)")),
            (
                PREDICT,
                predict_request("m", version=7),
                ("NOT_FOUND", "Servable not found for request: Specific(m, 7)"),
            ),
            (PREDICT, b"", ("INVALID_ARGUMENT", "Missing ModelSpec")),
            (PREDICT, b"\xff", ("INTERNAL", "")),
            (STATUS, b"\xff", ("INTERNAL", "")),
            (STATUS, b"", ("INVALID_ARGUMENT", "Missing ModelSpec")),
            (RELOAD, b"\xff", ("INTERNAL", "")),
            (
                METADATA,
                b"\x0a\x03\x0a\x01m",
                ("INVALID_ARGUMENT", "GetModelMetadataRequest must specify at least one metadata_field"),
            ),
            ("/tensorflow.serving.PredictionService/Nope", b"", ("UNIMPLEMENTED", "")),
            ("/tensorflow.serving.SessionService/SessionRun", b"", ("UNIMPLEMENTED", "")),
            ("/grpc.health.v1.Health/Check", b"", ("UNIMPLEMENTED", "")),
        ]:
            assert await failure(call(method, request)) == expected, method


async def test_status_messages_are_cut(connect: Callable[..., Call]) -> None:
    """A message above 1024 bytes arrives cut and marked, with its code."""
    long = StatusError(StatusCode.OUT_OF_RANGE, "x" * 50_000)

    def fail(x: Any) -> Any:
        raise long

    servable = CallableServable(fail, inputs={"x": ("float32", (None,))}, outputs={"y": ("float32", None)})
    async with ModelServer({"m": servable}) as server:
        code, details = await failure(connect(server.target)(PREDICT, predict_request("m")))
    assert (code, details) == ("OUT_OF_RANGE", "x" * 1024 + "...TRUNCATED")


async def test_large_messages(connect: Callable[..., Call]) -> None:
    """Neither direction has gRPC's default limit of 4 MiB."""
    values = np.ones(3_000_000, np.float32)
    async with ModelServer({"m": times(2)}) as server:
        answer = await connect(server.target)(PREDICT, predict_request("m", values))
    assert len(answer) > 4 * len(values)


async def test_versions_and_labels(connect: Callable[..., Call]) -> None:
    """A mapping of versions is served whole; labels come by reload; the callable's base path can be named."""
    async with ModelServer({"m": {1: times(1), 2: times(2)}}) as server:
        call = connect(server.target)
        await until(lambda: server.states("m") == {2: "AVAILABLE", 1: "AVAILABLE"})
        assert predicted_version(await call(PREDICT, predict_request("m"))) == 2
        assert predicted(await call(PREDICT, predict_request("m", version=1))) == [1.0, 2.0]
        await call(RELOAD, reload_request(("m", "/callable/m"), all=True, labels={"stable": 1}))
        assert predicted_version(await call(PREDICT, predict_request("m", label="stable"))) == 1
        # another name for the same versions, under another policy
        await call(RELOAD, reload_request(("other", "/callable/m/")))
        assert predicted_version(await call(PREDICT, predict_request("other"))) == 2
        assert await failure(call(PREDICT, predict_request("other", version=1))) == (
            "NOT_FOUND",
            "Servable not found for request: Specific(other, 1)",
        )


async def test_status_and_load_errors(connect: Callable[..., Call]) -> None:
    """GetModelStatus tells every version with its whole error, the highest first."""
    async with ModelServer({"good": times(1)}) as server:
        call = connect(server.target)
        for version, servable in both_versions().items():
            server.add_version("m", version, servable)
        code, message = await failure(call(RELOAD, reload_request(("m", "/callable/m"), all=True)))
        assert code == "UNKNOWN"
        assert message == (
            "1 model(s) did not become available: {{{name: m version: 3} due to error: "
            "DATA_LOSS: broken on purpose}, }"
        )
        await until(lambda: "START" not in server.states("m").values())
        await until(lambda: "LOADING" not in server.states("m").values())
        assert statuses(await call(STATUS, status_request("m"))) == [
            (3, "END", 15, "broken on purpose"),
            (2, "AVAILABLE", 0, ""),
            (1, "AVAILABLE", 0, ""),
        ]


async def test_add_and_remove_version(connect: Callable[..., Call]) -> None:
    """A version added at run time replaces the old one without a gap, and gives way when it is removed."""
    async with ModelServer({"m": times(1)}) as server:
        call = connect(server.target)
        server.add_version("m", 2, times(2))
        seen = set()

        async def ended() -> bool:
            seen.add(predicted_version(await call(PREDICT, predict_request("m"))))
            return server.states("m") == {2: "AVAILABLE", 1: "END"}

        await until(ended)
        assert seen <= {1, 2}
        server.remove_version("m", 2)
        await until(lambda: server.states("m") == {2: "END", 1: "AVAILABLE"})
        with pytest.raises(ValueError, match="registered already"):
            server.add_version("m", 1, times(1))
        with pytest.raises(KeyError):
            server.remove_version("m", 5)


async def test_reload_answers(connect: Callable[..., Call]) -> None:
    """A reload answers with an OK status and, for each metric asked for, an increase of 0."""
    async with ModelServer({"m": times(1)}) as server:
        call = connect(server.target)
        data = await call(RELOAD, reload_request(("m", "/callable/m"), metric_names=("b", "a", "b")))
        response: Any = message_class("tensorflow.serving.ReloadConfigResponse").FromString(data)
        assert response.HasField("status")
        assert response.status.error_code == 0
        assert [(item.name, item.int64_value_increase) for item in response.metric] == [("b", 0), ("a", 0)]
        assert await failure(call(RELOAD, b"")) == (
            "INVALID_ARGUMENT",
            "ServerModelConfig type not supported by HandleReloadConfigRequest. "
            "Only ModelConfigList is currently supported",
        )


async def test_reload_outlives_its_caller(connect: Callable[..., Call], tmp_path: Path) -> None:
    """A reload that waits for a base path goes on after the caller's deadline, and keeps the lock."""
    async with ModelServer({"m": times(1)}, file_system_poll_wait_seconds=0.05) as server:
        call = connect(server.target)
        hanging = reload_request(("m", "/callable/m"), ("n", "/callable/n"))
        assert (await failure(call(RELOAD, hanging, 0.3)))[0] == "DEADLINE_EXCEEDED"
        assert (await failure(call(RELOAD, reload_request(("m", "/callable/m")), 0.3)))[
            0
        ] == "DEADLINE_EXCEEDED"
        assert predicted(await call(PREDICT, predict_request("m"))) == [1.0, 2.0]
        server.add_version("n", 1, times(5))
        # the first reload ends, and the second one, which waited for it, drops the model again
        await until(lambda: "END" in server.states("n").values())
        await call(RELOAD, reload_request(("m", "/callable/m"), ("n", "/callable/n")))
        assert predicted(await call(PREDICT, predict_request("n"))) == [5.0, 10.0]


async def test_deadline_reaches_the_model(connect: Callable[..., Call]) -> None:
    """The seconds left of a call become the model's timeout, and are noted for tests to look at."""
    seen: list[float | None] = []

    class Noting:
        inline = True
        signatures = times(1).signatures
        _inner = times(1)

        def run(self, feeds: Any, fetches: Any, timeout: float | None) -> Any:
            seen.append(timeout)
            return self._inner.run(feeds, fetches, None)

        def close(self) -> None:
            """Nothing to close."""

    async with ModelServer({"m": Noting()}) as server:
        call = connect(server.target)
        await call(PREDICT, predict_request("m"), 7)
        await call(PREDICT, predict_request("m"), None)
        assert seen[0] is not None
        assert 5 < seen[0] < 7.5
        assert seen[1] is None
        assert [method for method, _ in server.calls.deadlines] == ["Predict", "Predict"]
        assert server.calls.deadlines[0][1] == pytest.approx(seen[0])
        assert server.calls.last_deadline("Predict") is None
        assert server.calls.last_deadline("Classify") is None


async def test_model_runs_on_after_its_caller_left(connect: Callable[..., Call]) -> None:
    """A call that was given up keeps its version loaded until the model has returned."""
    async with ModelServer({"m": sleeper(0.6)}) as server:
        call = connect(server.target)
        assert (await failure(call(PREDICT, predict_request("m"), 0.1)))[0] == "DEADLINE_EXCEEDED"
        server.remove_version("m", 1)
        await until(lambda: server.states("m") == {1: "UNLOADING"})
        await until(lambda: server.states("m") == {1: "END"})


async def test_calls_are_counted(connect: Callable[..., Call]) -> None:
    """Tests can see how many calls came, over how many connections, and how many at once."""
    async with ModelServer({"m": sleeper(0.1)}) as server:
        first, second = connect(server.target), connect(server.target)
        await asyncio.gather(*(call(PREDICT, predict_request("m")) for call in (first, second) * 3))
        await first(STATUS, status_request("m"))
        assert server.calls.methods == {"Predict": 6, "GetModelStatus": 1}
        assert (server.calls.total, server.calls.running) == (7, 0)
        assert server.calls.connections == 2
        assert sorted(server.calls.peers.values()) == [3, 4]
        assert 1 < server.calls.most_running <= 6
        assert repr(server.calls).startswith("<Calls {'Predict': 6, 'GetModelStatus': 1} over 2 connections")
        server.calls.reset()
        assert server.calls.total == 0


async def test_thread_limit(connect: Callable[..., Call]) -> None:
    """With --grpc_max_threads, calls beyond it are refused, as the real server does; without, they wait."""
    async with ModelServer({"m": sleeper(0.3)}, grpc_max_threads=2) as server:
        call = connect(server.target)
        results = await asyncio.gather(
            *(call(PREDICT, predict_request("m")) for _ in range(5)), return_exceptions=True
        )
    refused = [error for error in results if isinstance(error, grpc.aio.AioRpcError)]
    assert {(error.code().name, error.details()) for error in refused} == {
        ("RESOURCE_EXHAUSTED", "Server Threadpool Exhausted")
    }
    assert len(refused) == 3


async def test_unix_socket(connect: Callable[..., Call], tmp_path: Path) -> None:
    """A Unix socket serves beside TCP, or alone."""
    path = tmp_path / "s"
    async with ModelServer({"m": times(2)}, unix_socket=path) as server:
        assert server.target.startswith("127.0.0.1:")
        assert f"unix:{path}" in repr(server)
        assert predicted(await connect(f"unix:{path}")(PREDICT, predict_request("m"))) == [2.0, 4.0]
        assert predicted(await connect(server.target)(PREDICT, predict_request("m"))) == [2.0, 4.0]
    async with ModelServer({"m": times(3)}, port=None, unix_socket=path) as server:
        assert server.target == f"unix:{path}"
        assert predicted(await connect(server.target)(PREDICT, predict_request("m"))) == [3.0, 6.0]
    with pytest.raises(ValueError, match="port or a unix_socket"):
        ModelServer(port=None)


async def test_port_in_use() -> None:
    """A port that somebody listens on is refused by name; two servers never share one."""
    async with ModelServer() as first:
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{first.port}"):
            await ModelServer(port=first.port).start()


async def test_restart_on_the_same_port(connect: Callable[..., Call]) -> None:
    """A restarted server has its old port, models and configuration, and a channel finds it again."""
    server = ModelServer({"m": times(2)})
    async with server:
        port = server.port
        call = connect(server.target, **{"grpc.initial_reconnect_backoff_ms": 100})
        await call(PREDICT, predict_request("m"))
        await server.restart()
        assert server.port == port

        async def answers() -> bool:
            try:
                return predicted(await call(PREDICT, predict_request("m"))) == [2.0, 4.0]
            except grpc.aio.AioRpcError:
                return False

        await until(answers)
        with pytest.raises(RuntimeError, match="is running already"):
            await server.start()
    assert repr(server) == f"<ModelServer 127.0.0.1:{port} stopped>"
    assert not server.running
    with pytest.raises(RuntimeError, match="is not running"):
        server.states("m")
    await server.stop()


async def test_graceful_stop(connect: Callable[..., Call]) -> None:
    """With a grace period, calls in progress end well; without, they are cancelled."""
    for grace, expected in [(5.0, None), (None, grpc.StatusCode.UNAVAILABLE)]:
        server = ModelServer({"m": sleeper(0.4)})
        await server.start()
        running = asyncio.ensure_future(connect(server.target)(PREDICT, predict_request("m")))
        await until(lambda server=server: server.calls.running == 1)  # type: ignore[misc]
        await server.stop(grace)
        if expected is None:
            assert predicted(await running) == [1.0, 2.0]
        else:
            code, _ = await failure(running)
            assert code in ("UNAVAILABLE", "CANCELLED")


async def test_start_fails_whole(connect: Callable[..., Call]) -> None:
    """A model that cannot be loaded fails the start with the real text, and nothing is left listening."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = ModelServer({"m": {1: StatusError(StatusCode.NOT_FOUND, "gone")}}, port=port)
    with pytest.raises(StatusError) as caught:
        await server.start()
    assert caught.value.message == (
        "1 servable(s) did not become available: {{{name: m version: 1} due to error: NOT_FOUND: gone}, }"
    )
    assert not server.running
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


async def test_port_opens_after_the_models(tmp_path: Path) -> None:
    """Nobody can connect while the first models load."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = ModelServer({"m": str(tmp_path / "gone")}, port=port)
    starting = asyncio.ensure_future(server.start())
    await asyncio.sleep(0.2)
    assert not starting.done()
    assert "starting" in repr(server)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert "stopped" in repr(server)


async def test_health_service(connect: Callable[..., Call]) -> None:
    """With its flag, the health service knows the real server's three names, which are always serving."""
    async with ModelServer(enable_grpc_healthcheck_service=True) as server:
        call = connect(server.target)
        for service in ("", "ModelService", "PredictionService"):
            request = b"\x0a" + bytes([len(service)]) + service.encode() if service else b""
            assert await call("/grpc.health.v1.Health/Check", request) == b"\x08\x01"
        name = b"tensorflow.serving.PredictionService"
        unknown = b"\x0a" + bytes([len(name)]) + name
        assert (await failure(call("/grpc.health.v1.Health/Check", unknown)))[0] == "NOT_FOUND"
        async with grpc.aio.insecure_channel(server.target) as channel:
            for request, answer in [(b"", b"\x08\x01"), (unknown, b"\x08\x03")]:
                stub: grpc.aio.UnaryStreamMultiCallable[bytes, bytes]
                stub = channel.unary_stream("/grpc.health.v1.Health/Watch")
                watch = stub(request)
                assert await watch.read() == answer
                watch.cancel()


async def test_channel_arguments() -> None:
    """--grpc_channel_arguments reach gRPC: numbers as numbers, the rest as text; nonsense is refused."""
    server = ModelServer(grpc_channel_arguments="grpc.max_connection_age_ms=2000,grpc.lb_policy_name=grpclb")
    options = server._channel_options()
    assert ("grpc.max_connection_age_ms", 2000) in options
    assert ("grpc.lb_policy_name", "grpclb") in options
    await server.start()
    await server.stop()
    with pytest.raises(ValueError, match="got 'nonsense'"):
        await ModelServer(grpc_channel_arguments="nonsense").start()


def write_ssl_config(path: Path, **values: Any) -> str:
    """A text SSLConfig file with the PEM texts in it."""
    lines = []
    for name, value in values.items():
        text = str(value).lower() if isinstance(value, bool) else '"' + value.replace("\n", "\\n") + '"'
        lines.append(f"{name}: {text}")
    path.write_text("\n".join(lines))
    return str(path)


async def test_tls(connect: Callable[..., Call], tmp_path: Path) -> None:
    """--ssl_config_file makes the listeners TLS; with client_verify, only known clients get in."""
    trustme = pytest.importorskip("trustme", reason="makes the certificates")
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    mine = authority.issue_cert("client@example.org")
    root = authority.cert_pem.bytes()
    pems = {
        "server_key": certificate.private_key_pem.bytes().decode(),
        "server_cert": b"".join(pem.bytes() for pem in certificate.cert_chain_pems).decode(),
    }
    plain = grpc.ssl_channel_credentials(root)
    known = grpc.ssl_channel_credentials(
        root, mine.private_key_pem.bytes(), b"".join(pem.bytes() for pem in mine.cert_chain_pems)
    )
    one_way = write_ssl_config(tmp_path / "one", **pems)
    async with ModelServer({"m": times(2)}, ssl_config_file=one_way) as server:
        call = connect(server.target, plain)
        assert predicted(await call(PREDICT, predict_request("m"))) == [2.0, 4.0]
        assert (await failure(connect(server.target)(PREDICT, predict_request("m"), 5)))[0] == "UNAVAILABLE"
    mutual = write_ssl_config(tmp_path / "two", **pems, custom_ca=root.decode(), client_verify=True)
    async with ModelServer({"m": times(2)}, ssl_config_file=mutual) as server:
        call = connect(server.target, known)
        assert predicted(await call(PREDICT, predict_request("m"))) == [2.0, 4.0]
        call = connect(server.target, plain)
        assert (await failure(call(PREDICT, predict_request("m"), 5)))[0] == "UNAVAILABLE"


async def test_ssl_config_file_refused(tmp_path: Path) -> None:
    """A TLS file that is none ends the start with the real text."""
    (tmp_path / "f").write_text("server_kee: 1")
    with pytest.raises(StatusError, match="Invalid protobuf file"):
        await ModelServer(ssl_config_file=str(tmp_path / "f")).start()


async def test_config_message_text_and_models(connect: Callable[..., Call]) -> None:
    """Models come from a configuration, as message or text, and from Python, together."""
    entry = 'model_config_list { config { name: "n" base_path: "/callable/m" model_platform: "tensorflow" } }'
    message: Any = message_class("tensorflow.serving.ModelServerConfig")()
    message.model_config_list.config.add(name="n", base_path="/callable/m", model_platform="tensorflow")
    for config in (entry, message):
        async with ModelServer({"m": times(2)}, config=config) as server:
            call = connect(server.target)
            for name in ("m", "n"):
                assert predicted(await call(PREDICT, predict_request(name))) == [2.0, 4.0]
    with pytest.raises(StatusError, match="Invalid protobuf file: 'config'"):
        ModelServer(config="nonsense")


def test_models_are_checked(tmp_path: Path) -> None:
    """What cannot be served is refused when the server is made, saying what to do instead."""
    with pytest.raises(TypeError, match=r"not a function .*CallableServable\(function"):
        ModelServer({"m": lambda x: x})  # type: ignore[dict-item]
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(ValueError, match="is a SavedModel: put it into a folder named by its version"):
        ModelServer({"m": tmp_path})
    with pytest.raises(TypeError, match="near it: 'max_num_load_retries'"):
        ModelServer(max_load_retries=1)


def test_no_retries_unless_asked() -> None:
    """An embedded server does not repeat a failed load for five minutes; a command line does."""
    assert ModelServer().options.max_num_load_retries == 0
    assert ModelServer(options=ServerOptions()).options.max_num_load_retries == 5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"port": 0, "model_base_path": "/m"},
            "At least one of server_options.grpc_port or server_options.grpc_socket_path must be set.",
        ),
        ({}, "Both server_options.model_base_path and server_options.model_config_file are empty!"),
        (
            {"model_base_path": "/m", "batching_parameters_file": "/b"},
            "server_options.batching_parameters_file is set without setting "
            "server_options.enable_batching to true.",
        ),
        ({"model_config_file": "/gone"}, "/gone; No such file or directory"),
        (
            {"model_base_path": "/m", "enable_batching": True, "batching_parameters_file": "/gone"},
            "/gone; No such file or directory",
        ),
    ],
)
def test_from_options_refuses(flags: dict[str, Any], message: str) -> None:
    """Command lines that the real server refuses are refused in its words."""
    with pytest.raises(StatusError) as caught:
        ModelServer.from_options(ServerOptions(**flags))
    assert caught.value.message == message


async def test_from_options_single_model() -> None:
    """--model_name and --model_base_path are a configuration of one model."""
    options = ServerOptions(
        testing_pick_port=True, model_name="n", model_base_path="/callable/m", testing_host="127.0.0.1"
    )
    async with ModelServer.from_options(options, models={"m": times(1)}) as server:
        assert server.port
        assert server.states("n") == {1: "AVAILABLE"}


async def test_config_file_polling(connect: Callable[..., Call], tmp_path: Path) -> None:
    """The config file is applied again every period: it adds models and undoes reloads; errors are logged."""
    path = tmp_path / "models.config"
    line = 'config {{ name: "{0}" base_path: "/callable/m" model_platform: "tensorflow" }}'
    path.write_text(f"model_config_list {{ {line.format('a')} }}")
    options = ServerOptions(
        testing_pick_port=True,
        testing_host="127.0.0.1",
        model_config_file=str(path),
        model_config_file_poll_wait_seconds=0.05,
        file_system_poll_wait_seconds=0.05,
        testing_manage_state_interval_ms=5,
    )
    async with ModelServer.from_options(options, models={"m": times(1)}) as server:
        call = connect(server.target)
        path.write_text(f"model_config_list {{ {line.format('a')} {line.format('b')} }}")
        await until(lambda: server.manager.states.versions("b") != [])
        await until(lambda: server.states("b") == {1: "AVAILABLE"})
        path.write_text("nonsense")
        await asyncio.sleep(0.2)
        assert server.states("b") == {1: "AVAILABLE"}
        path.write_text(f"model_config_list {{ {line.format('b')} }}")
        await until(lambda: server.states("a") == {1: "END"})
        await call(RELOAD, reload_request(("a", "/callable/m")))
        await until(lambda: server.states("a") == {1: "END"})


def test_blocking_server() -> None:
    """`with` runs the server on a thread of its own, for code without an event loop."""
    with ModelServer({"m": times(2)}) as server:
        assert isinstance(server, BlockingModelServer)
        with grpc.insecure_channel(server.target) as channel:
            predict: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(PREDICT)
            assert predicted(predict(predict_request("m"), timeout=20)) == [2.0, 4.0]
            server.add_version("m", 2, times(3))
            for _ in range(1000):
                if server.states("m") == {2: "AVAILABLE", 1: "END"}:
                    break
                threading.Event().wait(0.01)
            assert predicted(predict(predict_request("m"), timeout=20)) == [3.0, 6.0]
            server.remove_version("m", 1)
        assert server.calls.total == 2
        assert server.unix_socket is None
        port = server.port
        server.restart()
        assert (server.port, server.running) == (port, True)
        assert repr(server).startswith(f"<BlockingModelServer 127.0.0.1:{port} serving m")
        server.stop()
        assert not server.running
        server.start()
        assert server.running
    server.close()
    with pytest.raises(RuntimeError, match="is closed"):
        server.states("m")
    assert not [thread for thread in threading.enumerate() if thread.name == "aioserving.testing server"]


def test_blocking_server_that_does_not_start() -> None:
    """A start that fails leaves no thread behind."""
    with pytest.raises(StatusError, match="NOT_FOUND: gone"):
        ModelServer({"m": {1: StatusError(StatusCode.NOT_FOUND, "gone")}}).__enter__()
    assert not [thread for thread in threading.enumerate() if thread.name == "aioserving.testing server"]


async def test_nothing_is_left_behind() -> None:
    """A stopped server leaves no task, and no warning about one."""
    before = asyncio.all_tasks()
    async with ModelServer({"m": times(1)}) as server:
        assert server.running
        assert asyncio.all_tasks() > before
    gc.collect()
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize(
    "code",
    [
        "import aioserving.testing",
        "from aioserving.testing import *",
        "from aioserving.testing import ModelServer; ModelServer()",
    ],
)
def test_import_is_light(code: str) -> None:
    """Importing the testing server, and making one, imports no TensorFlow."""
    check = "import sys; sys.exit('TensorFlow was imported' if 'tensorflow' in sys.modules else 0)"
    subprocess.run([sys.executable, "-c", f"{code}\n{check}"], check=True, timeout=60)


def test_unknown_export() -> None:
    """A name that the package does not have is an AttributeError, as for any module."""
    import aioserving.testing

    assert "ModelServer" in dir(aioserving.testing)
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        aioserving.testing.Nope  # noqa: B018
