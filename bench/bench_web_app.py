"""examples/web_app.py under load, with batching and without: requests per second, latency, CPU time.

    python bench/bench_web_app.py

Needs the extras `examples` and, for the plot, `bench`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import importlib.util
import json
import pathlib
import random
import socket
import statistics
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from harness import HERE, RESULTS, Report, Spread, _Process, has_tensorflow, percentile, seconds

CONCURRENCY = (1, 64, 256)
#: HTTP requests per turn, by number of HTTP clients.
CALLS = {1: 300, 64: 2000, 256: 3000}
ROUNDS = 7

#: Labels of the apps. They differ in what `request.state["digits"]` is, and in nothing else.
BATCHED, PLAIN = "`client.model(...).batched()`", "`client.model(...)`"
RECIPE, CEILING = "official recipe, grpc.aio", "no model: a constant"

ROW = 64 * 4  # bytes of an image


# -- the model server: constant answers, for any number of rows -----------------------------------------


def answer_of(rows: int) -> bytes:
    """A PredictResponse with a digit and ten scores for each row, in typed fields as the real server's."""
    from aioserving._proto import message_class

    response: Any = message_class("tensorflow.serving.PredictResponse")()
    response.model_spec.name = "digits"
    response.model_spec.version.value = 1
    response.model_spec.signature_name = "serving_default"
    scores, digit = response.outputs["scores"], response.outputs["digit"]
    scores.dtype, digit.dtype = 1, 9
    for tensor, shape in ((scores, (rows, 10)), (digit, (rows,))):
        for size in shape:
            tensor.tensor_shape.dim.add(size=size)
    scores.float_val.extend([index / 45 for index in range(10)] * rows)
    digit.int64_val.extend([9] * rows)
    return bytes(response.SerializeToString())


def metadata_answer() -> bytes:
    """A GetModelMetadataResponse with the signature of examples/digits_model.py."""
    from aioserving._proto import message_class

    signatures: Any = message_class("tensorflow.serving.SignatureDefMap")()
    signature = signatures.signature_def["serving_default"]
    signature.method_name = "tensorflow/serving/predict"
    for info, name, dtype, shape in (
        (signature.inputs["images"], "images", 1, (-1, 64)),
        (signature.outputs["scores"], "scores", 1, (-1, 10)),
        (signature.outputs["digit"], "digit", 9, (-1,)),
    ):
        info.name = f"{name}:0"
        info.dtype = dtype
        for size in shape:
            info.tensor_shape.dim.add(size=size)
    response: Any = message_class("tensorflow.serving.GetModelMetadataResponse")()
    response.model_spec.name = "digits"
    response.model_spec.version.value = 1
    response.metadata["signature_def"].Pack(signatures)
    return bytes(response.SerializeToString())


def run_server() -> None:
    """Like server.py, of which it differs in that its answers have as many rows as the request."""
    import grpc

    answers = [b"", *map(answer_of, range(1, 129))]
    metadata = metadata_answer()

    async def predict(request: bytes, context: Any) -> bytes:
        return answers[len(request) // ROW]  # all else in a request is less than a row

    async def get_model_metadata(request: bytes, context: Any) -> bytes:
        return metadata

    handlers = {"Predict": predict, "GetModelMetadata": get_model_metadata}

    class Handlers(grpc.GenericRpcHandler):
        def service(self, handler_call_details: Any) -> Any:
            method = handler_call_details.method.rpartition("/")[2]
            return grpc.unary_unary_rpc_method_handler(handlers[method]) if method in handlers else None

    async def serve() -> None:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Handlers(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(f"ready {port}", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await server.stop(None)

    asyncio.run(serve())


# -- the apps -------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def recipe(target: str) -> AsyncIterator[Any]:
    """The official recipe behind the interface that the app knows."""
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    class Result(dict[str, Any]):
        def __init__(self, response: Any) -> None:
            super().__init__({name: tf.make_ndarray(proto) for name, proto in response.outputs.items()})
            self.model_spec = Spec(response.model_spec.version.value)

    class Spec:
        def __init__(self, version: int) -> None:
            self.version = version

    class Digits:
        def __init__(self, channel: Any) -> None:
            self.stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

        async def predict(self, images: Any) -> Result:
            request = predict_pb2.PredictRequest()
            request.model_spec.name = "digits"
            request.inputs["images"].CopyFrom(tf.make_tensor_proto(images, dtype=tf.float32))
            return Result(await self.stub.Predict(request, timeout=10.0))

    async with grpc.aio.insecure_channel(target) as channel:
        yield Digits(channel)


@contextlib.asynccontextmanager
async def constant(client: Any) -> AsyncIterator[Any]:
    """A model that answers at once: what is left is HTTP, JSON and the app itself."""
    import numpy as np

    result = await client.predict("digits", np.zeros((1, 64), np.float32))

    class Digits:
        async def predict(self, images: Any) -> Any:
            return result

    yield Digits()


def run_app(label: str, target: str) -> None:
    """The example with one worker; tells its CPU time and batches for every line that it reads."""
    sys.path.insert(0, str(HERE.parent / "examples"))
    import uvicorn
    import web_app
    from starlette.applications import Starlette

    from aioserving import AsyncClient

    handle: Any = None

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[Mapping[str, Any]]:
        nonlocal handle
        async with contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(AsyncClient(target))
            if label == BATCHED:
                handle = await stack.enter_async_context(client.model("digits").batched(max_batch_size=128))
            elif label == RECIPE:
                handle = await stack.enter_async_context(recipe(target))
            elif label == CEILING:
                handle = await stack.enter_async_context(constant(client))
            else:
                handle = client.model("digits")
            yield {"client": client, "digits": handle}

    app = Starlette(
        routes=web_app.app.routes, exception_handlers=web_app.app.exception_handlers, lifespan=lifespan
    )
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))

    def answer() -> None:
        while not server.started:
            time.sleep(0.01)
        print(f"ready {listener.getsockname()[1]}", flush=True)
        for _ in sys.stdin:
            batches = handle.stats() if label == BATCHED else None
            said = {
                "cpu": time.process_time(),
                "batches": batches.batches if batches else 0,
                "rows": batches.rows if batches else 0,
            }
            print(json.dumps(said), flush=True)
        server.should_exit = True

    threading.Thread(target=answer, daemon=True).start()
    server.run(sockets=[listener])


# -- the HTTP clients -----------------------------------------------------------------------------------


class HTTPClient(asyncio.Protocol):
    """One connection that sends a request, waits for the answer, and goes on; a tenth of httpx's cost."""

    def __init__(self, request: bytes, answered: Callable[[HTTPClient, float], None]) -> None:
        self.request = request
        self.answered = answered
        self.transport: Any = None
        self.received = b""
        self.since = 0.0
        self.waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def send(self) -> None:
        self.since = time.perf_counter()
        self.waiting = True
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            return
        if not head.startswith(b"HTTP/1.1 200 "):
            raise SystemExit(f"the app answered {self.received!r}")
        self.received = b""
        self.waiting = False
        self.answered(self, time.perf_counter() - self.since)

    def connection_lost(self, error: Exception | None) -> None:
        if self.waiting:
            raise SystemExit(f"the app hung up: {error}")


def run_load(port: int) -> None:
    """Closed-loop load on connections that are kept alive; a line of JSON for each turn asked for."""
    image = [random.Random(7).randrange(17) for _ in range(64)]
    body = json.dumps({"image": image}).encode()
    request = b"POST /predict HTTP/1.1\r\nhost: app\r\ncontent-type: application/json\r\n"
    request += b"x-request-timeout: 10\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)

    async def turn(calls: int, concurrency: int) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        latencies: list[float] = []
        left = calls - concurrency

        def answered(client: HTTPClient, latency: float) -> None:
            nonlocal left
            latencies.append(latency)
            if left > 0:
                left -= 1
                client.send()
            elif len(latencies) == calls:
                done.set_result(None)

        # Anew for each turn: uvicorn closes connections that are idle for five seconds.
        clients = [
            (await loop.create_connection(lambda: HTTPClient(request, answered), "127.0.0.1", port))[1]
            for _ in range(concurrency)
        ]
        begun = time.perf_counter()
        for client in clients:
            client.send()
        await done
        wall = time.perf_counter() - begun
        for client in clients:
            client.transport.close()
        return {"wall": wall, "latencies": latencies}

    async def serve() -> None:
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await turn(**json.loads(line))), flush=True)

    asyncio.run(serve())


# -- the measurement ------------------------------------------------------------------------------------


class Measured:
    """An app and its HTTP clients, in a process each."""

    def __init__(self, label: str, target: str) -> None:
        self._app = _part("app", label, target)
        try:
            self._load = _part("load", int(self._app.ask().split()[1]))
            self._load.ask()
        except BaseException:
            self._app.close()
            raise

    def turn(self, calls: int, concurrency: int) -> dict[str, Any]:
        """What some requests took: `wall`, `latencies`, `cpu` of the app, and `batch`: rows per Predict."""
        before = json.loads(self._app.ask("tell"))
        found: dict[str, Any] = json.loads(
            self._load.ask(json.dumps({"calls": calls, "concurrency": concurrency}))
        )
        after = json.loads(self._app.ask("tell"))
        batches = after["batches"] - before["batches"]
        return {
            "rate": calls / found["wall"],
            "latencies": found["latencies"],
            "cpu": (after["cpu"] - before["cpu"]) / calls,
            "batch": (after["rows"] - before["rows"]) / batches if batches else 0.0,
        }

    def close(self) -> None:
        self._load.close()
        self._app.close()


def _part(*arguments: Any) -> _Process:
    return _Process("bench_web_app.py", json.dumps(arguments))


def plot(figures: Mapping[tuple[str, int, str], float], path: pathlib.Path) -> None:
    """Requests per second, and latencies, of every app against the number of HTTP clients."""
    from plots import OTHER_COLOUR, OURS_COLOUR, _pyplot, _save

    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3))
    colours = {BATCHED: OURS_COLOUR, PLAIN: "tab:orange", RECIPE: "tab:red", CEILING: OTHER_COLOUR}
    for label in dict.fromkeys(label for _, _, label in figures):
        name = label.replace("`", "")
        for axis, kinds in zip(axes, (("rate",), ("p50", "p99")), strict=True):
            for kind, style in zip(kinds, ("-", ":"), strict=False):
                points = {c: value for (k, c, which), value in figures.items() if (k, which) == (kind, label)}
                values = [value if kind == "rate" else value * 1e3 for value in points.values()]
                text = name if style == "-" else None
                axis.plot(list(points), values, style, marker="o", color=colours[label], label=text)
    for axis, title in zip(axes, ("requests per second", "latency in ms: p50, and p99 dotted"), strict=True):
        axis.set_title(title, loc="left")
        axis.set_xscale("log", base=2)
        axis.set_xticks(CONCURRENCY, [str(count) for count in CONCURRENCY])
        axis.set_xlabel("HTTP clients at a time")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(0)
    axes[1].set_yscale("log")
    axes[0].legend(frameon=False, fontsize=7, loc="center right", bbox_to_anchor=(1, 0.57))
    figure.tight_layout()
    _save(figure, path)
    pyplot.close(figure)


def measure() -> dict[tuple[str, int], list[dict[str, Any]]]:
    """The turns of every app and number of clients, interleaved round by round."""
    labels = [BATCHED, PLAIN, *([RECIPE] if has_tensorflow() else []), CEILING]
    shuffled = random.Random(0)
    found: dict[tuple[str, int], list[dict[str, Any]]] = {
        (label, concurrency): [] for concurrency in CONCURRENCY for label in labels
    }
    with contextlib.ExitStack() as stack:
        server = _part("server")
        stack.callback(server.close)
        target = f"127.0.0.1:{server.ask().split()[1]}"
        apps = []
        for label in labels:
            apps.append((label, Measured(label, target)))
            stack.callback(apps[-1][1].close)
        for count in range(-1, ROUNDS):
            for concurrency in CONCURRENCY:
                shuffled.shuffle(apps)
                for label, app in apps:
                    calls = CALLS[concurrency] if isinstance(CALLS, dict) else max(CALLS, concurrency)
                    turn = app.turn(calls, concurrency)
                    if count >= 0:  # the first round warms up
                        found[label, concurrency].append(turn)
    return found


def main() -> int:
    for needed in ("starlette", "uvicorn"):
        if importlib.util.find_spec(needed) is None:
            print(f"\nLeft out: needs {needed}, of the extra `examples`.")
            return 0
    found = measure()
    report = Report("web_app", "In a web app")
    versions = [
        f"{name} {importlib.metadata.version(name)}"
        for name in ("starlette", "uvicorn", "httptools", "uvloop")
        if importlib.util.find_spec(name)
    ]
    report.text(
        f"One worker of uvicorn ({', '.join(versions)}) in a process of its own; HTTP clients, each of which "
        "sends its next request when it has its answer, in another; the model server, whose answers cost "
        "next to nothing, in a third, the same for all. The apps differ in what `predict` is called on. "
        "Ratios to the app without batching are medians of those of single rounds; the range holds the "
        "middle half. CPU time is the app's; what it takes without a model is HTTP, JSON and the app itself, "
        "the rest is `predict`."
    )
    rows = []
    for (label, concurrency), turns in found.items():
        base = found[PLAIN, concurrency]
        ratios = {
            kind: Spread.of([turn[kind] / other[kind] for turn, other in zip(turns, base, strict=True)]).ratio
            for kind in ("rate", "cpu")
        }
        latencies = [latency for turn in turns for latency in turn["latencies"]]
        middle = {kind: statistics.median(turn[kind] for turn in turns) for kind in ("rate", "cpu", "batch")}
        idle = statistics.median(turn["cpu"] for turn in found[CEILING, concurrency])
        p50, p99 = percentile(latencies, 0.5), percentile(latencies, 0.99)
        own = label == PLAIN
        rows.append(
            (
                str(concurrency),
                label,
                f"{middle['rate']:,.0f}",
                "" if own else ratios["rate"],
                seconds(middle["cpu"]),
                "" if own else ratios["cpu"],
                "" if label == CEILING else seconds(max(0.0, middle["cpu"] - idle)),
                seconds(p50),
                seconds(p99),
                f"{middle['batch']:.3g}" if label == BATCHED else "",
            )
        )
        for kind, value in (("rate", middle["rate"]), ("p50", p50), ("p99", p99)):
            report.figures[kind, concurrency, label] = value
    head = ("HTTP clients", "app", "requests per second", "to unbatched", "CPU time per request")
    report.table((*head, "to unbatched", "of it `predict`", "p50", "p99", "rows per Predict"), rows)
    print("\n\n".join(report.parts))
    if ROUNDS > 1 and importlib.util.find_spec("matplotlib") is not None:
        plot(report.figures, RESULTS / "web_app.svg")
        print("\n![In a web app](web_app.svg)")
    return 0


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(main())
    parts: dict[str, Callable[..., None]] = {"server": run_server, "app": run_app, "load": run_load}
    name, *rest = json.loads(sys.argv[1])
    parts[name](*rest)
