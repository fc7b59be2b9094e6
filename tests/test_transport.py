"""One channel over a real socket, both ways into gRPC: bytes in, bytes out, errors translated."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import aio

from aioserving import errors, transport
from aioserving.codec import encode_predict_response
from aioserving.transport import Transport, check_fork, error_from_status, process_generation

ECHO = "/test.Service/Echo"


class RawServer(grpc.GenericRpcHandler):
    """A bytes-in, bytes-out server in this process; `answer` is what every method does."""

    def __init__(self, answer: Callable[[bytes, Any], Coroutine[Any, Any, bytes]]) -> None:
        self.handler = grpc.unary_unary_rpc_method_handler(answer)
        self.target = ""

    def service(self, handler_call_details: Any) -> Any:
        return self.handler


@contextlib.asynccontextmanager
async def serving(
    answer: Callable[[bytes, Any], Coroutine[Any, Any, bytes]], *, port: int = 0, **options: Any
) -> AsyncIterator[RawServer]:
    arguments = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
    server = aio.server(options=arguments + [(f"grpc.{name}", value) for name, value in options.items()])
    handler = RawServer(answer)
    server.add_generic_rpc_handlers((handler,))
    handler.target = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    await server.start()
    try:
        yield handler
    finally:
        await server.stop(None)


@contextlib.asynccontextmanager
async def connected(target: str, **arguments: Any) -> AsyncIterator[Transport]:
    channel = Transport(target, **arguments)
    try:
        yield channel
    finally:
        await channel.close()


async def echo(request: bytes, context: Any) -> bytes:
    return request


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 30))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(params=[True, False], ids=["lean", "public"])
def lean(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_this_grpcio_has_the_lean_way() -> None:
    """The shorter way is not silently lost with a new grpcio."""

    async def story() -> None:
        async with connected("127.0.0.1:1") as channel:
            assert channel.call == channel._call_lean

    run(story())


@pytest.mark.parametrize("size", [0, 1, 3_000, 5_000_000])
def test_bytes_go_and_come(lean: bool, size: int) -> None:
    """Messages of any size pass, beyond grpcio's own 4 MiB too."""

    async def story() -> None:
        async with serving(echo) as server, connected(server.target, lean=lean) as channel:
            request = os.urandom(size)
            assert await channel.call(ECHO, request, 10, ()) == request
            assert channel.state == "ready"

    run(story())


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_code_has_its_error(lean: bool, code: grpc.StatusCode) -> None:
    """Each gRPC code becomes the class of that name, with code, text, endpoint and method."""

    async def story() -> None:
        async def fail(request: bytes, context: Any) -> bytes:
            await context.abort(code, "because")
            return b""

        async with serving(fail) as server, connected(server.target, lean=lean) as channel:
            with pytest.raises(errors.RPCError) as caught:
                await channel.call(ECHO, b"", 10, ())
            error = caught.value
            assert type(error) is transport._ERRORS[code.name]
            assert type(error).default_code == code.name
            assert (error.code, error.details, error.endpoint, error.method) == (
                code.name,
                "because",
                server.target,
                "Echo",
            )

    run(story())


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        ("NOT_FOUND", "Servable not found for request: Latest(m)", errors.ModelNotFoundError),
        ("NOT_FOUND", "Servable not found for request: Specific(m, 7)", errors.VersionNotFoundError),
        ("NOT_FOUND", "Could not find any versions of model m", errors.ModelNotFoundError),
        ("NOT_FOUND", "Could not find version 7 of model m", errors.VersionNotFoundError),
        ("NOT_FOUND", "Resource x does not exist", errors.NotFoundError),
        ("INVALID_ARGUMENT", "Unrecognized servable version label: x", errors.VersionLabelNotFoundError),
        ("INVALID_ARGUMENT", "Expects arg[0] to be float but double is provided", errors.InvalidInputError),
        ("INVALID_ARGUMENT", "Missing ModelSpec", errors.InvalidArgumentError),
        ("FAILED_PRECONDITION", 'Serving signature key "x" not found.', errors.SignatureNotFoundError),
        ("RESOURCE_EXHAUSTED", "Server Threadpool Exhausted", errors.ResourceExhaustedError),
        ("RESOURCE_EXHAUSTED", "", errors.ResourceExhaustedError),
        (
            "RESOURCE_EXHAUSTED",
            "CLIENT: Received message larger than max (5242880 vs. 4194304)",
            errors.MessageTooLargeError,
        ),
        ("SOMETHING_NEW", "x", errors.UnknownError),
    ],
)
def test_the_servers_texts_tell_errors_apart(code: str, details: str, kind: type[errors.RPCError]) -> None:
    """Models, versions, labels, signatures and inputs have classes of their own (reference 1.1, 1.2)."""
    assert type(error_from_status(code, details)) is kind


def test_a_broken_connection_is_unavailable_whatever_grpc_calls_it() -> None:
    """UNKNOWN "Stream removed" comes from gRPC, not from a server, and is worth another attempt."""
    details = "Stream removed (Unwrap failed (TSI_DATA_CORRUPTED))"
    error = error_from_status("UNKNOWN", details)
    assert (type(error), error.code, error.details) == (errors.UnavailableError, "UNAVAILABLE", details)
    assert type(error_from_status("UNKNOWN", "1 model(s) did not become available")) is errors.UnknownError


def test_a_message_beyond_the_limit_names_the_setting(lean: bool) -> None:
    """RESOURCE_EXHAUSTED for size is its own error; both directions."""

    async def story() -> None:
        options = [("grpc.max_receive_message_length", 1000), ("grpc.max_send_message_length", 2000)]
        async with serving(echo) as server, connected(server.target, lean=lean, options=options) as channel:
            for size in (1500, 2500):
                with pytest.raises(errors.MessageTooLargeError, match="max_message_size"):
                    await channel.call(ECHO, bytes(size), 10, ())
            assert await channel.call(ECHO, b"small", 10, ()) == b"small"

    run(story())


def test_the_timeout_travels_to_the_server(lean: bool) -> None:
    """The server sees the deadline, so it can stop working too."""

    async def story() -> None:
        seen: list[float | None] = []

        async def note(request: bytes, context: Any) -> bytes:
            seen.append(context.time_remaining())
            return b""

        async with serving(note) as server, connected(server.target, lean=lean) as channel:
            await channel.call(ECHO, b"", 5.0, ())
            await channel.call(ECHO, b"", None, ())
            await channel.call(ECHO, b"", math.inf, ())
        assert seen[0] is not None
        assert 4.0 < seen[0] < 5.5
        assert seen[1] is None
        assert seen[2] is None

    run(story())


def test_metadata_travels_to_the_server(lean: bool) -> None:
    """Text and binary headers arrive, beside the user agent."""

    async def story() -> None:
        seen: dict[str, Any] = {}

        async def note(request: bytes, context: Any) -> bytes:
            seen.update(context.invocation_metadata())
            return b""

        async with serving(note) as server, connected(server.target, lean=lean) as channel:
            await channel.call(ECHO, b"", 10, [("x-key", "value"), ("x-bin", b"\0\1")])
        assert (seen["x-key"], seen["x-bin"]) == ("value", b"\0\1")
        assert seen["user-agent"].startswith("aioserving")

    run(story())


def test_a_passed_deadline_is_its_own_error(lean: bool) -> None:
    """DEADLINE_EXCEEDED is a TimeoutError too."""

    async def story() -> None:
        release = asyncio.Event()

        async def wait(request: bytes, context: Any) -> bytes:
            await release.wait()
            return b""

        async with serving(wait) as server, connected(server.target, lean=lean) as channel:
            with pytest.raises(TimeoutError) as caught:
                await channel.call(ECHO, b"", 0.05, ())
            assert isinstance(caught.value, errors.DeadlineExceededError)
            release.set()

    run(story())


def test_cancelling_a_call_reaches_the_server(lean: bool) -> None:
    """The caller gets its CancelledError, the server sees the call end, the channel stays usable."""

    async def story() -> None:
        started, ended = asyncio.Event(), asyncio.Event()

        async def wait(request: bytes, context: Any) -> bytes:
            if request == b"again":
                return request
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            return b""

        async with serving(wait) as server, connected(server.target, lean=lean) as channel:
            task = asyncio.ensure_future(channel.call(ECHO, b"", 30, ()))
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(ended.wait(), 5)
            assert await channel.call(ECHO, b"again", 5, ()) == b"again"

    run(story())


def test_cancelling_at_any_step_leaves_the_channel_usable(lean: bool) -> None:
    """Before the first step, between any two, and after the last."""

    async def story() -> None:
        async with serving(echo) as server, connected(server.target, lean=lean) as channel:
            for steps in range(12):
                task = asyncio.ensure_future(channel.call(ECHO, b"x", 10, ()))
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                (outcome,) = await asyncio.gather(task, return_exceptions=True)
                assert outcome == b"x" or isinstance(outcome, asyncio.CancelledError)
                assert await channel.call(ECHO, b"after", 10, ()) == b"after"
            assert not channel._active

    run(story())


def test_closing_under_a_running_call_tells_its_caller(lean: bool) -> None:
    """A call that the close cuts off fails with ClientClosedError, not with a cancellation."""

    async def story() -> None:
        started = asyncio.Event()

        async def wait(request: bytes, context: Any) -> bytes:
            started.set()
            await asyncio.Event().wait()
            return b""

        async with serving(wait) as server:
            channel = Transport(server.target, lean=lean)
            task = asyncio.ensure_future(channel.call(ECHO, b"", 30, ()))
            await started.wait()
            await channel.close()
            with pytest.raises(errors.ClientClosedError):
                await task
            with pytest.raises(errors.ClientClosedError):
                await channel.call(ECHO, b"", 1, ())
            await channel.close()
            assert channel.state == "closed"

    run(story())


def test_an_unreachable_host_fails_at_once(lean: bool) -> None:
    """A refused connection is UNAVAILABLE without waiting for the deadline, and names the address."""

    async def story() -> None:
        target = f"127.0.0.1:{free_port()}"
        async with connected(target, lean=lean) as channel:
            started = time.monotonic()
            with pytest.raises(errors.UnavailableError, match=target):
                await channel.call(ECHO, b"", 20, ())
            assert time.monotonic() - started < 10

    run(story())


def test_a_restarted_server_is_found_again(lean: bool) -> None:
    """After refusals the channel reconnects within moments, not after gRPC's two minutes."""

    async def story() -> None:
        port = free_port()
        async with connected(f"127.0.0.1:{port}", lean=lean) as channel:
            for _ in range(20):
                with pytest.raises(errors.UnavailableError):
                    await channel.call(ECHO, b"", 5, ())
                await asyncio.sleep(0.02)
            async with serving(echo, port=port):
                deadline = time.monotonic() + 8
                while True:
                    try:
                        assert await channel.call(ECHO, b"x", 5, ()) == b"x"
                        break
                    except errors.UnavailableError:
                        assert time.monotonic() < deadline
                        await asyncio.sleep(0.05)

    run(story())


@pytest.mark.parametrize(
    "greeting", [b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", b"SSH-2.0-x\r\n"]
)
def test_a_port_that_speaks_another_protocol_is_said_to(lean: bool, greeting: bytes) -> None:
    """An HTTP/1 server (the REST port) gives an error that names the mistake, within the deadline."""

    async def story() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(greeting)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            await reader.read(1000)
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with connected(target, lean=lean) as channel:
                with pytest.raises(errors.UnavailableError, match="does not speak gRPC"):
                    await channel.call(ECHO, b"", 5, ())

    run(story())


def established(port: int) -> int:
    """TCP connections to `port` on this machine, counted at the server's end."""
    import psutil

    return sum(
        item.status == psutil.CONN_ESTABLISHED and bool(item.laddr) and item.laddr.port == port
        for item in psutil.Process().net_connections("tcp")
    )


def test_every_transport_is_a_connection_of_its_own() -> None:
    """gRPC would share one connection among equal channels."""

    async def story() -> None:
        async with serving(echo) as server:
            port = int(server.target.rpartition(":")[2])
            channels = [Transport(server.target) for _ in range(3)]
            for channel in channels:
                await channel.call(ECHO, b"", 10, ())
            assert established(port) == 3
            for channel in channels:
                await channel.close()

    run(story())


def test_keepalive_is_what_plain_servers_tolerate() -> None:
    """At least five minutes apart and only with calls under way, or the server sends GOAWAY."""
    assert transport._OPTIONS["grpc.keepalive_time_ms"] >= 300_000
    assert transport._OPTIONS["grpc.keepalive_permit_without_calls"] == 0


def test_a_unix_socket_is_a_target(lean: bool, tmp_path: Any) -> None:
    """The fastest way on one host."""

    async def story() -> None:
        server = aio.server()
        server.add_generic_rpc_handlers((RawServer(echo),))
        path = tmp_path / "s"
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        async with connected(f"unix:{path}", lean=lean) as channel:
            assert await channel.call(ECHO, b"x", 10, ()) == b"x"
        await server.stop(None)

    run(story())


def test_wait_ready_returns_when_the_server_is_there() -> None:
    """Connecting can be waited for apart from any call."""

    async def story() -> None:
        async with serving(echo) as server, connected(server.target) as channel:
            await asyncio.wait_for(channel.wait_ready(), 10)
            assert repr(channel) == f"<Transport to {server.target}, ready>"

    run(story())


@pytest.mark.parametrize(
    ("sent", "floats", "most"),
    [(16_000_000, 0, 4_000), (0, 1_000_000, 1_000)],  # without: 7,800 and 2,100 faults a call
    ids=["requests", "answers"],
)
def test_large_messages_do_not_fault_their_memory_in_again_and_again(
    sent: int, floats: int, most: float
) -> None:
    """After the first large message malloc keeps the blocks: few page faults a call, not thousands."""
    if not sys.platform.startswith("linux") or "glibc" not in os.confstr("CS_GNU_LIBC_VERSION"):  # type: ignore[operator]
        pytest.skip("glibc's malloc only")
    code = f"""
        import asyncio, resource, sys
        from aioserving.codec import decode_predict_response
        from aioserving.transport import Transport

        async def main(port):
            channel = Transport("127.0.0.1:%d" % port)
            async def call():
                answer = await channel.call("/a/b", bytes({sent}), 30, ())
                assert decode_predict_response(answer)[0]["y"].size == {floats}
            for _ in range(5):
                await call()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(20):
                await call()
            print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)
            await channel.close()

        asyncio.run(main(int(sys.argv[1])))
    """
    response = encode_predict_response({"y": np.ones(floats, np.float32)}, model_spec=b"", typed=True)

    async def story() -> None:
        async def answer(request: bytes, context: Any) -> bytes:
            return response

        async with serving(answer) as server:
            port = server.target.rpartition(":")[2]
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", textwrap.dedent(code), port, stdout=subprocess.PIPE
            )
            out, _ = await process.communicate()
            assert process.returncode == 0
            assert float(out) < most

    run(story())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
class TestFork:
    """A forked child gets a clear error and ends, whatever it does with gRPC's state."""

    def in_child(self, check: Callable[[], None]) -> None:
        read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 3.12 warns of forks in threaded processes
            pid = os.fork()
        if pid == 0:
            outcome = b"nothing"
            try:
                check()
                outcome = b"ok"
            except BaseException as error:
                outcome = repr(error).encode()
            finally:
                os.write(write, outcome)
                os._exit(0)
        os.close(write)
        timer = threading.Timer(20, os.kill, (pid, signal.SIGKILL))
        timer.start()
        with os.fdopen(read, "rb") as pipe:
            outcome = pipe.read()
        os.waitpid(pid, 0)
        timer.cancel()
        assert outcome == b"ok"

    def test_a_child_of_a_connected_process_is_refused(self) -> None:
        """With a live channel at the fork, the child's use of old and new channels is a ForkError."""

        async def story() -> None:
            async with serving(echo) as server, connected(server.target) as channel:
                await channel.call(ECHO, b"", 10, ())
                generation = process_generation()

                def check() -> None:
                    assert process_generation() != generation
                    with pytest.raises(errors.ForkError, match="spawn"):
                        check_fork(generation)
                    with pytest.raises(errors.ForkError):
                        check_fork()

                self.in_child(check)
                assert await channel.call(ECHO, b"parent", 10, ()) == b"parent"

        run(story())

    def test_a_child_of_a_process_that_closed_everything_may_go_on(self) -> None:
        """After a proper close, a fork is fine."""
        gc.collect()
        code = """
            import asyncio, os, sys
            from aioserving.transport import Transport, check_fork
            async def use():
                channel = Transport("127.0.0.1:1")
                await channel.close()
            asyncio.run(use())
            pid = os.fork()
            if pid == 0:
                check_fork()
                os._exit(7)
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], timeout=30, check=False
        )
        assert done.returncode == 7
