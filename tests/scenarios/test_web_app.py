"""`examples/web_app.py` as a user runs it: uvicorn in a process, real sockets, many clients at once."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

from aioserving import errors
from aioserving.testing import CallableServable, ModelServer, ServerProcess, StatusCode, StatusError
from aioserving.testing.server import BlockingModelServer

if TYPE_CHECKING:
    import httpx
    from starlette.requests import Request
    from starlette.responses import Response
else:
    for needed in ("starlette", "uvicorn"):
        pytest.importorskip(needed, reason=f"needs {needed} (the examples extra)")
    httpx = pytest.importorskip("httpx", reason="needs httpx (the examples extra)")

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
#: Words that a process which was left in order does not say.
DISORDER = ("ResourceWarning", "Traceback", "was destroyed", "never awaited", "ERROR", "unclosed")


def expected(image: list[float]) -> int:
    """What the model of these tests says of an image."""
    return int(sum(image)) % 10


class Behaviour:
    """What the model does before it answers."""

    def __init__(self) -> None:
        self.delay = 0.0
        self.error: StatusError | None = None
        #: Images with this pixel are refused.
        self.refuses = -1.0

    async def __call__(self, images: Any) -> dict[str, Any]:
        await asyncio.sleep(self.delay)
        if self.error is not None:
            raise self.error
        if (images == self.refuses).any():
            raise StatusError(StatusCode.INVALID_ARGUMENT, "a pixel that I do not like")
        digits = images.sum(axis=1).astype(np.int64) % 10
        return {"digit": digits, "scores": np.eye(10, dtype=np.float32)[digits]}


def servable(behaviour: Behaviour) -> CallableServable:
    """The model as TensorFlow would serve examples/digits_model.py's."""

    async def classify(images: Any) -> dict[str, Any]:
        return await behaviour(images)

    return CallableServable(
        classify,
        inputs={"images": ("float32", (None, 64))},
        outputs={"digit": ("int64", (None,)), "scores": ("float32", (None, 10))},
    )


def served() -> CallableServable:
    """The model for a server in a process of its own."""
    return servable(Behaviour())


def image_of(digit: int) -> list[float]:
    """An image of which the model says `digit`, for numbers of up to 1,024."""
    full, rest = divmod(digit, 16)
    return [16.0] * full + [float(rest)] + [0.0] * (63 - full)


def post(digit: int) -> dict[str, Any]:
    """Keyword arguments of a request, with time enough for a busy machine."""
    return {"url": "/predict", "json": {"image": image_of(digit)}, "headers": {"x-request-timeout": "10"}}


class App:
    """uvicorn with the app, in a process of its own; ends with Ctrl-C, and has to end in order."""

    def __init__(self, target: str, *arguments: str) -> None:
        uvicorn = [sys.executable, "-W", "default", "-m", "uvicorn", "--app-dir", str(EXAMPLES)]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in `_end`
        self.process = subprocess.Popen(
            [*uvicorn, "web_app:app", "--port", "0", "--no-access-log", *arguments],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "AIOSERVING_TARGETS": target},
        )
        try:
            self.wait_for(lambda: "startup complete" in self.log and self._address is not None, seconds=60)
        except BaseException:
            self._end()
            raise
        assert self._address is not None
        self.url = self._address[1]
        self.port = int(self._address[2])

    @property
    def _address(self) -> re.Match[str] | None:
        return re.search(r"running on (http://127\.0\.0\.1:(\d+))", self.log)

    @property
    def log(self) -> str:
        """What the process has said so far."""
        return os.pread(self._log.fileno(), 1_000_000, 0).decode()

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def __enter__(self) -> App:  # noqa: PYI034 - typing.Self needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.interrupt()
        try:
            self.process.wait(20)
        finally:
            log = self._end()
        if error is None:
            # The parent of uvicorn's workers leaves the listening socket to the end of its process.
            listening = re.escape(f"laddr=('127.0.0.1', {self.port})>")
            told = re.sub(rf".*ResourceWarning: unclosed <socket.*{listening}\n.*\n", "", log)
            assert not [word for word in DISORDER if word in told], log
            assert "Application shutdown complete" in log

    def _end(self) -> str:
        """Whatever happened, leave nothing behind; gives the log."""
        self.process.kill()
        self.process.wait()
        log = self.log
        self._log.close()
        return log

    def client(self, **settings: Any) -> httpx.AsyncClient:
        """An HTTP client that makes as many connections as it has requests."""
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(base_url=self.url, limits=limits, timeout=30, **settings)

    def get(self, path: str) -> httpx.Response:
        """One request."""
        return httpx.get(self.url + path, timeout=30)

    def predict(self, digit: int = 0, timeout: str | None = "10") -> httpx.Response:
        """One prediction; `timeout` is the header's value, or None for no header."""
        content = json.dumps({"image": image_of(digit)})
        headers = {} if timeout is None else {"x-request-timeout": timeout}
        return httpx.post(self.url + "/predict", content=content, headers=headers, timeout=30)

    def batching(self) -> dict[str, Any]:
        """The statistics of batching."""
        found: dict[str, Any] = self.get("/stats").json()["batching"]
        return found

    def wait_for(self, what: Callable[[], bool], seconds: float = 10.0) -> None:
        """Return once something is true."""
        end = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < end, self.log
            time.sleep(0.02)


@pytest.fixture(scope="module")
def _behaviour() -> Behaviour:
    return Behaviour()


@pytest.fixture
def behaviour(_behaviour: Behaviour) -> Iterator[Behaviour]:
    """What the model does; anew for each test."""
    yield _behaviour
    _behaviour.__init__()  # type: ignore[misc]


@pytest.fixture(scope="module")
def server(_behaviour: Behaviour) -> Iterator[BlockingModelServer]:
    with ModelServer({"digits": servable(_behaviour)}) as server:
        yield server


@pytest.fixture(scope="module")
def shared_app(server: BlockingModelServer) -> Iterator[App]:
    with App(server.target) as app:
        yield app


@pytest.fixture
def app(shared_app: App, behaviour: Behaviour) -> App:
    """The app, with a model that does as it is told; leaves it in order at the end of this file."""
    return shared_app


@pytest.fixture(scope="module")
def web_app() -> ModuleType:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("web_app", EXAMPLES / "web_app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["web_app"] = module
    spec.loader.exec_module(module)
    return module


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 60))


def test_everyone_gets_their_own_answer_under_load(
    app: App, server: BlockingModelServer, behaviour: Behaviour
) -> None:
    """200 requests at once: each has the answer to its own image, and they share a few Predicts."""
    behaviour.delay = 0.02
    before = app.batching()
    calls_before = server.calls.methods["Predict"]

    async def story() -> None:
        async with app.client() as client:
            answers = await asyncio.gather(*(client.post(**post(number)) for number in range(200)))
        for number, answer in enumerate(answers):
            assert answer.status_code == 200, answer.text
            assert answer.json() == {
                "digit": number % 10,
                "scores": [float(digit == number % 10) for digit in range(10)],
                "version": 1,
            }

    run(story())
    after = app.batching()
    assert after["rows"] - before["rows"] == 200
    assert after["batches"] - before["batches"] <= 100
    assert server.calls.methods["Predict"] - calls_before == after["batches"] - before["batches"]


def test_one_bad_image_among_many(app: App, behaviour: Behaviour) -> None:
    """The caller whose image the model refuses gets 422; those in the same batch get their answers."""
    behaviour.delay, behaviour.refuses = 0.02, 7.0

    async def story() -> None:
        async with app.client() as client:
            answers = await asyncio.gather(*(client.post(**post(16 * n)) for n in range(30)))
            bad = post(0) | {"json": {"image": [7.0] + [0.0] * 63}}
            mixed = await asyncio.gather(
                *(client.post(**(bad if n == 11 else post(16 * n))) for n in range(30))
            )
        assert {answer.status_code for answer in answers} == {200}
        assert [answer.status_code for answer in mixed] == [422 if n == 11 else 200 for n in range(30)]
        assert mixed[11].json() == {"error": "a pixel that I do not like"}
        assert [mixed[n].json()["digit"] for n in range(30) if n != 11] == [
            16 * n % 10 for n in range(30) if n != 11
        ]

    run(story())


def test_the_deadline_travels_to_the_model_server(
    app: App, server: BlockingModelServer, behaviour: Behaviour
) -> None:
    """`x-request-timeout` is the deadline of the Predict; when it passes, the answer is 504 at once."""
    app.predict(3, timeout=None)
    assert 0 < (server.calls.last_deadline("Predict") or 0) <= 1.02
    app.predict(3, timeout="5")
    assert 4 < (server.calls.last_deadline("Predict") or 0) <= 5.1  # gRPC rounds up by up to 1 %
    behaviour.delay = 5.0
    begun = time.monotonic()
    answer = app.predict(3, timeout="0.3")
    assert time.monotonic() - begun < 4
    assert answer.status_code == 504
    assert 0 < (server.calls.last_deadline("Predict") or 0) <= 0.31


def test_the_deadline_is_capped(app: App, server: BlockingModelServer, web_app: ModuleType) -> None:
    """Nobody can ask for more time than the app allows."""
    assert app.predict(4, timeout="1e9").status_code == 200
    deadline = server.calls.last_deadline("Predict") or 0
    assert web_app.LONGEST - 2 < deadline <= web_app.LONGEST * 1.02


@pytest.mark.parametrize("timeout", ["soon", "0", "-1", "nan", ""])
def test_a_timeout_that_is_none(app: App, timeout: str) -> None:
    """A timeout that is no positive number is the caller's mistake, told in words."""
    answer = app.predict(0, timeout=timeout)
    assert answer.status_code == 400
    assert answer.json() == {"error": "x-request-timeout must be a positive number of seconds"}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "must be JSON"),
        (b"\xff", 400, "must be JSON"),
        (b"[]", 400, "must be JSON"),
        (b'{"picture": []}', 400, "must be JSON"),
        (b'{"image": ["zero"]}', 400, "must be JSON"),
        (b'{"image": {"a": 1}}', 400, "must be JSON"),
        (b'{"image": [NaN]}', 422, "from 0 to 16"),
        (b'{"image": [1e999]}', 422, "from 0 to 16"),
        (b'{"image": [17]}', 422, "from 0 to 16"),
        (b'{"image": [1, 2]}', 422, "input 'images' of digits/serving_default expects float32 (-1, 64)"),
        (b'{"image": []}', 422, "expects float32 (-1, 64)"),
        (b'{"image": 3}', 422, "expects float32 (-1, 64)"),
    ],
)
def test_bodies_that_are_no_image(
    app: App, server: BlockingModelServer, body: bytes, status: int, words: str
) -> None:
    """Whoever sends what cannot be predicted is told what is wrong, and nothing goes to the model."""
    before = server.calls.methods["Predict"]
    answer = httpx.post(app.url + "/predict", content=body)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]
    assert server.calls.methods["Predict"] == before


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (StatusCode.INVALID_ARGUMENT, 422),
        (StatusCode.NOT_FOUND, 502),
        (StatusCode.RESOURCE_EXHAUSTED, 503),
        (StatusCode.UNAVAILABLE, 503),
        (StatusCode.DEADLINE_EXCEEDED, 504),
        (StatusCode.INTERNAL, 502),
        (StatusCode.UNKNOWN, 502),
        (StatusCode.FAILED_PRECONDITION, 502),
        (StatusCode.PERMISSION_DENIED, 502),
    ],
)
def test_errors_of_the_model_server(app: App, behaviour: Behaviour, code: StatusCode, status: int) -> None:
    """Each status of a Predict has its HTTP status; the server's own words stay in the log."""
    behaviour.error = StatusError(code, "a secret of the server")
    answer = app.predict(1)
    assert answer.status_code == status
    if status < 500:
        assert answer.json() == {"error": "a secret of the server"}
    else:
        assert answer.json() == {"error": code.name}
        assert "a secret of the server" in app.log
    assert ("retry-after" in answer.headers) == (status == 503)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TimeoutError(), 504),
        (errors.DeadlineExceededError("late"), 504),
        (errors.InvalidInputError("wrong shape"), 422),
        (errors.InvalidArgumentError("no such word"), 422),
        (errors.MessageTooLargeError("too large"), 413),
        (errors.ResourceExhaustedError("10,000 callers wait"), 503),
        (errors.UnavailableError("nobody there"), 503),
        (errors.ModelNotFoundError("no such model"), 503),
        (errors.VersionNotFoundError("no such version"), 503),
        (errors.ClientClosedError("closed"), 503),
        (errors.DecodeError("not a PredictResponse"), 502),
        (errors.SignatureNotFoundError("no such signature"), 502),
        (errors.CancelledError("by the server"), 502),
        (errors.InternalError("broken"), 502),
    ],
)
def test_every_kind_of_error_has_a_status(web_app: ModuleType, error: Exception, status: int) -> None:
    """The app's handlers turn an error into a status, and tell callers only what concerns them."""

    from starlette.applications import Starlette
    from starlette.routing import Route

    async def fail(request: Request) -> Response:
        raise error

    async def story() -> None:
        app = Starlette(routes=[Route("/", fail)], exception_handlers=web_app.app.exception_handlers)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
            answer = await client.get("/")
        assert answer.status_code == status
        told = answer.json()["error"]
        assert told == (str(error) if status < 500 else getattr(error, "code", type(error).__name__))

    run(story())


def test_an_answer_that_is_none(server: BlockingModelServer) -> None:
    """Bytes that are no PredictResponse are the model server's fault: 502."""

    class Garbling(grpc.GenericRpcHandler):
        def service(self, handler_call_details: Any) -> Any:
            method = handler_call_details.method

            async def answer(request: bytes, context: Any) -> Any:
                if method.endswith("/Predict"):
                    return b"\xff\xff\xff"
                async with grpc.aio.insecure_channel(server.target) as channel:
                    call: Any = channel.unary_unary(method)
                    return await call(request)

            return grpc.unary_unary_rpc_method_handler(answer)

    async def story() -> None:
        garbling = grpc.aio.server()
        garbling.add_generic_rpc_handlers((Garbling(),))
        port = garbling.add_insecure_port("127.0.0.1:0")
        await garbling.start()
        try:
            with await asyncio.to_thread(App, f"127.0.0.1:{port}") as app:
                answer = await asyncio.to_thread(app.predict)
            assert answer.status_code == 502
            assert answer.json() == {"error": "DecodeError"}
        finally:
            await garbling.stop(None)

    run(story())


def test_a_client_that_hangs_up_cancels_its_call(
    app: App, server: BlockingModelServer, behaviour: Behaviour
) -> None:
    """Work for somebody who has left ends at once, here and at the model server."""
    behaviour.delay = 30.0
    before = app.batching()["cancelled"]
    body = json.dumps({"image": image_of(1)}).encode()
    headers = f"host: app\r\nx-request-timeout: 10\r\ncontent-length: {len(body)}"
    with closing(socket.create_connection(("127.0.0.1", app.port))) as connection:
        connection.sendall(f"POST /predict HTTP/1.1\r\n{headers}\r\n\r\n".encode() + body)
        app.wait_for(lambda: server.calls.running == 1)
    app.wait_for(lambda: server.calls.running == 0, seconds=3)
    assert app.batching()["cancelled"] == before + 1
    assert app.batching()["in_flight"] == 0


def test_a_client_that_hangs_up_in_mid_request(app: App) -> None:
    """A body that never ends is no error of the app, and the next request is answered."""
    with closing(socket.create_connection(("127.0.0.1", app.port))) as connection:
        connection.sendall(b'POST /predict HTTP/1.1\r\nhost: app\r\ncontent-length: 100\r\n\r\n{"image"')
        time.sleep(0.1)
    assert app.predict(5).json()["digit"] == 5
    assert "Traceback" not in app.log


def test_other_routes(app: App) -> None:
    """The app is alive and ready, tells its statistics, and answers wrong routes in JSON, too."""
    assert app.get("/live").json() == {"live": True}
    ready = app.get("/ready")
    assert ready.status_code == 200
    assert ready.json()["ready"] is True
    assert [endpoint["state"] for endpoint in ready.json()["endpoints"]] == ["healthy"]
    assert set(app.get("/stats").json()) == {"client", "batching"}
    missing = app.get("/nowhere")
    assert (missing.status_code, missing.json()) == (404, {"error": "Not Found"})
    assert app.get("/predict").status_code == 405


def test_readiness_follows_the_model_server() -> None:
    """503 whenever the model server is down, 200 whenever it is there; alive throughout."""
    with closing(socket.create_server(("127.0.0.1", 0))) as unused:
        port = unused.getsockname()[1]
    server = ServerProcess(
        callables={"digits": "tests.scenarios.test_web_app:served"}, env={"PYTHONPATH": str(ROOT)}, port=port
    )
    with closing(server), App(server.target) as app:
        down = app.get("/ready")
        assert down.status_code == 503
        assert down.json()["ready"] is False
        assert server.target in down.json()["reason"]
        assert [endpoint["target"] for endpoint in down.json()["endpoints"]] == [server.target]
        server.start()
        app.wait_for(lambda: app.get("/ready").status_code == 200)
        assert app.predict(6).json()["digit"] == 6
        server.kill()
        assert app.predict(6).status_code == 503
        assert app.get("/ready").status_code == 503
        assert app.get("/live").status_code == 200
        server.restart()
        app.wait_for(lambda: app.get("/ready").status_code == 200)
        assert app.predict(6).json()["digit"] == 6


def test_a_server_without_the_model() -> None:
    """A model that is not served is no fault of the caller: not ready, and 503."""
    with ModelServer({"letters": served()}) as server, App(server.target) as app:
        ready = app.get("/ready")
        assert ready.status_code == 503
        assert "model 'digits' is not available" in ready.json()["reason"]
        answer = app.predict(1)
        assert (answer.status_code, answer.json()) == (503, {"error": "NOT_FOUND"})


def test_requests_under_way_when_the_app_ends(server: BlockingModelServer, behaviour: Behaviour) -> None:
    """Ctrl-C lets requests end: all are answered, and nothing is left open."""
    behaviour.delay = 1.0

    async def story() -> None:
        with await asyncio.to_thread(App, server.target) as app:
            async with app.client() as client:
                calls = [asyncio.create_task(client.post(**post(number))) for number in range(20)]
                taken = 0
                while taken < 20:
                    batching = (await client.get("/stats")).json()["batching"]
                    taken = batching["calls"] + batching["waiting"]
                assert not all(call.done() for call in calls)
                app.interrupt()
                answers = await asyncio.gather(*calls)
            assert [answer.json()["digit"] for answer in answers] == [number % 10 for number in range(20)]
            assert await asyncio.to_thread(app.process.wait, 20) in (0, -signal.SIGINT)

    run(story())


def test_workers_have_clients_of_their_own(server: BlockingModelServer, behaviour: Behaviour) -> None:
    """`--workers 2`: every process answers, on connections of its own."""

    async def story() -> None:
        with await asyncio.to_thread(App, server.target, "--workers", "2") as app:
            async with app.client() as client:
                answers = await asyncio.gather(*(client.post(**post(number)) for number in range(100)))
            assert [answer.json()["digit"] for answer in answers] == [number % 10 for number in range(100)]
            assert app.log.count("Application startup complete") == 2

    run(story())


def test_a_fork_before_the_first_request(server: BlockingModelServer) -> None:
    """An app that was imported before a fork works after it: importing it connects to nothing."""
    script = """
import os, sys
import web_app
child = os.fork()
if not child:
    import asyncio, httpx
    async def main():
        transport = httpx.ASGITransport(web_app.app)
        async with web_app.lifespan(web_app.app) as state:
            async def app(scope, receive, send):
                await web_app.app({**scope, "state": dict(state)}, receive, send)
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
                answer = await client.post("/predict", json={"image": [0] * 63 + [8]})
                assert answer.json()["digit"] == 8, answer.text
    asyncio.run(main())
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={
            **os.environ,
            "AIOSERVING_TARGETS": server.target,
            "PYTHONPATH": os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")]),
        },
    )
    assert done.returncode == 0, done.stderr
