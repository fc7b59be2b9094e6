"""One client in a process of its own, which makes calls when told to and says what they cost.

    python bench/worker.py '{"client": "predict", "target": "127.0.0.1:8500", ...}'

Started by `harness.Worker`. Each line on standard input asks for a turn, ``{"calls": 200, "concurrency":
4}``; each line on standard output answers it: seconds of wall clock and of CPU (all threads of this
process, so gRPC's too), page faults, and the latency of every call. Garbage is collected before a turn,
and the collector is left on during it, at Python's own settings, for all clients alike.

The clients, by name, are the classes at the end. The plain grpc ones never import aioserving: what it
changes in a process (malloc's thresholds, once a large message was sent) would be theirs too.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

PREDICT = "/tensorflow.serving.PredictionService/Predict"
TIMEOUT = 60.0


def array_of(shape: list[int]) -> Any:
    """The input that every client sends: the same random float32 for the same shape."""
    import numpy as np

    return np.random.default_rng(0).random(shape, dtype=np.float32)


def inputs_of(settings: dict[str, Any]) -> dict[str, Any]:
    """What every client sends, by input name, to a server of this kind."""
    kind = settings.get("kind", "scores")
    if kind == "strings":
        import numpy as np

        return {"x": np.array([b"a text of some length, number %d" % i for i in range(256)], object)}
    array = array_of(settings["shape"])
    return {f"x{index}": array for index in range(10)} if kind == "tens" else {"x": array}


def next_inputs(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Gives what to send next: the same each time, or one batch of images after another if there are some."""
    inputs = inputs_of(settings)
    if not settings.get("images"):
        return lambda: inputs
    import itertools

    import numpy as np

    size = settings["shape"][0]
    images = np.load(settings["images"])[:, :-1]
    batches = [{"x": images[start : start + size].copy()} for start in range(0, len(images) - size + 1, size)]
    return itertools.cycle(batches).__next__


def request_of(settings: dict[str, Any]) -> bytes:
    """The request for that array, encoded before."""
    with open(settings["request"], "rb") as file:
        return file.read()


class Client:
    """What the clients have in common: their settings, and turns over asyncio."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.target: str = settings["target"]
        if settings.get("uvloop"):
            import uvloop

            self.loop = uvloop.new_event_loop()
        else:
            self.loop = asyncio.new_event_loop()

    async def open(self) -> Callable[[], Awaitable[Any]]:
        """Connect, and give the function that makes one call."""
        raise NotImplementedError

    async def close(self) -> None:
        """Let go of the connection."""
        raise NotImplementedError

    def start(self) -> None:
        self.call = self.loop.run_until_complete(self.open())

    def stop(self) -> None:
        self.loop.run_until_complete(self.close())
        self.loop.close()

    def turn(self, calls: int, concurrency: int) -> list[float]:
        return self.loop.run_until_complete(self._turn(calls, concurrency))

    async def _turn(self, calls: int, concurrency: int) -> list[float]:
        latencies: list[float] = []
        if concurrency == 1:
            await self._calls(calls, latencies)
        else:
            await asyncio.gather(
                *(
                    self._calls(calls // concurrency + (index < calls % concurrency), latencies)
                    for index in range(concurrency)
                )
            )
        return latencies

    async def _calls(self, calls: int, latencies: list[float]) -> None:
        call, clock = self.call, time.perf_counter
        for _ in range(calls):
            start = clock()
            await call()
            latencies.append(clock() - start)


def two_names(target: str) -> list[str]:
    """A server's address under two names, which make it two endpoints."""
    return [target, target.replace("127.0.0.1", "localhost")]


#: What calls carry that have to say whose they are.
TOKEN = (("authorization", "Bearer a-token-that-is-sent-along"),)


class BlockingClient(Client):
    """Turns over threads; one thread is the process's first one."""

    def start(self) -> None:
        self.call_blocking = self.open_blocking()

    def open_blocking(self) -> Callable[[], Any]:
        raise NotImplementedError

    def close_blocking(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        self.close_blocking()
        self.loop.close()

    def turn(self, calls: int, concurrency: int) -> list[float]:
        latencies: list[float] = []
        if concurrency == 1:
            self._calls_blocking(calls, latencies)
            return latencies
        threads = [
            threading.Thread(
                target=self._calls_blocking,
                args=(calls // concurrency + (index < calls % concurrency), latencies),
            )
            for index in range(concurrency)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return latencies

    def _calls_blocking(self, calls: int, latencies: list[float]) -> None:
        call, clock = self.call_blocking, time.perf_counter
        for _ in range(calls):
            start = clock()
            call()
            latencies.append(clock() - start)


def grpc_options(settings: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in settings["channel_options"]]


class GrpcAio(Client):
    """The floor: bytes that were prepared before, over one grpc.aio channel with aioserving's options."""

    timeout: ClassVar[float | None] = TIMEOUT

    async def open(self) -> Callable[[], Awaitable[Any]]:
        from grpc import aio

        request = request_of(self.settings)
        self.channel = aio.insecure_channel(self.target, options=grpc_options(self.settings))
        function: Any = self.channel.unary_unary(PREDICT)
        if self.timeout is None:
            return lambda: function(request)
        return lambda: function(request, timeout=TIMEOUT)

    async def close(self) -> None:
        await self.channel.close()


class GrpcAioToken(GrpcAio):
    """The floor for a client that has to say who it is."""

    async def open(self) -> Callable[[], Awaitable[Any]]:
        await super().open()
        request = request_of(self.settings)
        function: Any = self.channel.unary_unary(PREDICT)
        return lambda: function(request, timeout=TIMEOUT, metadata=TOKEN)


class GrpcAioFleet(GrpcAioToken):
    """The same over two channels in turn, to two names of one server."""

    async def open(self) -> Callable[[], Awaitable[Any]]:
        import itertools

        from grpc import aio

        request, options = request_of(self.settings), grpc_options(self.settings)
        self.channels = [aio.insecure_channel(target, options=options) for target in two_names(self.target)]
        functions: Any = itertools.cycle([channel.unary_unary(PREDICT) for channel in self.channels])
        return lambda: next(functions)(request, timeout=TIMEOUT, metadata=TOKEN)

    async def close(self) -> None:
        for channel in self.channels:
            await channel.close()


class GrpcAioNoDeadline(GrpcAio):
    """The floor without a deadline."""

    timeout = None


class GrpcAioTuned(GrpcAio):
    """The floor with malloc told to reuse large blocks, as aioserving tells it."""

    async def open(self) -> Callable[[], Awaitable[Any]]:
        bytes(32 * 1024 * 1024 - 64 * 1024)
        return await super().open()


class GrpcAioOwnOptions(GrpcAio):
    """The floor with grpcio's own channel options; only the message limits are lifted."""

    def __init__(self, settings: dict[str, Any]) -> None:
        limits = ("grpc.max_send_message_length", "grpc.max_receive_message_length")
        super().__init__({**settings, "channel_options": [(limit, -1) for limit in limits]})


class GrpcAioFromArray(GrpcAioTuned):
    """The floor for a client that has an array, not bytes: its bytes are made in each call."""

    async def open(self) -> Callable[[], Awaitable[Any]]:
        await super().open()
        array = array_of(self.settings["shape"])
        before = request_of(self.settings)[: -array.nbytes]
        function: Any = self.channel.unary_unary(PREDICT)
        join = b"".join
        return lambda: function(join((before, array)), timeout=TIMEOUT)


class GrpcBlocking(BlockingClient):
    """The blocking floor: bytes that were prepared before, over a blocking grpc stub."""

    def open_blocking(self) -> Callable[[], Any]:
        import grpc

        request = request_of(self.settings)
        self.channel = grpc.insecure_channel(self.target, options=grpc_options(self.settings))
        function: Any = self.channel.unary_unary(PREDICT)
        return lambda: function(request, timeout=TIMEOUT)

    def close_blocking(self) -> None:
        self.channel.close()


class Predict(Client):
    """`AsyncClient.predict`."""

    def make_client(self) -> Any:
        import aioserving

        connections = self.settings.get("connections")
        pool = None
        if connections is not None:  # all of them in use from the start
            pool = aioserving.PoolOptions(connections_per_endpoint=connections, open_another_at=0)
        return aioserving.AsyncClient(
            self.settings.get("targets", self.target),
            timeout=TIMEOUT,
            pool=pool,
            channel_options=grpc_options(self.settings),
        )

    async def open(self) -> Callable[[], Awaitable[Any]]:
        inputs = next_inputs(self.settings)
        self.client = self.make_client()
        client = self.client
        return lambda: client.predict("m", inputs())

    async def close(self) -> None:
        await self.client.aclose()


class PredictBound(Predict):
    """`predict` of a handle bound to the model."""

    async def open(self) -> Callable[[], Awaitable[Any]]:
        inputs = next_inputs(self.settings)
        self.client = self.make_client()
        model = self.client.model("m")
        return lambda: model.predict(inputs())


class PredictBatched(Predict):
    """`predict` of a handle that sends concurrent calls together."""

    async def open(self) -> Callable[[], Awaitable[Any]]:
        inputs = next_inputs(self.settings)
        self.client = self.make_client()
        batched: Any = self.client.model("m").batched()
        return lambda: batched.predict(inputs())


class PredictFleet(PredictBound):
    """`predict` with a token, and two endpoints, which are two names of one server."""

    def make_client(self) -> Any:
        import aioserving

        options = grpc_options(self.settings)
        return aioserving.AsyncClient(
            two_names(self.target), timeout=TIMEOUT, channel_options=options, metadata=TOKEN
        )


class PredictEverything(PredictFleet):
    """The same with all that can be switched on: hedging, limits, credentials, observers.

    No call is so late that it is hedged, and no limit so low that a call has to wait: what is measured is the
    machinery, neither further calls nor a queue at a server that is as busy as it can be.
    """

    def make_client(self) -> Any:
        import aioserving

        return aioserving.AsyncClient(
            two_names(self.target),
            timeout=TIMEOUT,
            channel_options=grpc_options(self.settings),
            hedging=aioserving.HedgingPolicy(delay=1.0),
            pool=aioserving.PoolOptions(max_in_flight=aioserving.AdaptiveLimit(initial=200, minimum=100)),
            credentials=aioserving.Headers(dict(TOKEN), allow_plaintext=True),
            observers=[lambda event: None],
        )


class PredictUnchecked(Predict):
    """`predict` with `validate=False`."""

    async def open(self) -> Callable[[], Awaitable[Any]]:
        array = array_of(self.settings["shape"])
        self.client = self.make_client()
        client = self.client
        return lambda: client.predict("m", {"x": array}, validate=False)


class PredictBlocking(BlockingClient):
    """`Client.predict`."""

    def open_blocking(self) -> Callable[[], Any]:
        import aioserving

        inputs = next_inputs(self.settings)
        self.client = aioserving.Client(self.target, timeout=TIMEOUT)
        client = self.client
        return lambda: client.predict("m", inputs())

    def close_blocking(self) -> None:
        self.client.close()


class _Recipe:
    """The official recipe: `tf.make_tensor_proto` into a message, and `tf.make_ndarray` out of one."""

    def __init__(self, settings: dict[str, Any]) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        self.tf = tf
        self.request_class = predict_pb2.PredictRequest
        self.inputs = next_inputs(settings)

    def request(self) -> Any:
        request = self.request_class()
        request.model_spec.name = "m"
        request.model_spec.signature_name = "serving_default"
        for name, array in self.inputs().items():
            request.inputs[name].CopyFrom(self.tf.make_tensor_proto(array))
        return request

    def arrays(self, response: Any) -> dict[str, Any]:
        return {name: self.tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}


class RecipeAio(Client):
    """The official recipe over grpc.aio: TensorFlow's stub on an aio channel."""

    async def open(self) -> Callable[[], Awaitable[Any]]:
        recipe = _Recipe(self.settings)
        from grpc import aio
        from tensorflow_serving.apis import prediction_service_pb2_grpc

        self.channel = aio.insecure_channel(self.target, options=grpc_options(self.settings))
        stub = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)

        async def call() -> Any:
            return recipe.arrays(await stub.Predict(recipe.request(), timeout=TIMEOUT))

        return call

    async def close(self) -> None:
        await self.channel.close()


class RecipeBlocking(BlockingClient):
    """The official recipe as published: TensorFlow's stub on a blocking channel."""

    def open_blocking(self) -> Callable[[], Any]:
        recipe = _Recipe(self.settings)
        import grpc
        from tensorflow_serving.apis import prediction_service_pb2_grpc

        self.channel = grpc.insecure_channel(self.target, options=grpc_options(self.settings))
        stub = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)

        def call() -> Any:
            return recipe.arrays(stub.Predict(recipe.request(), timeout=TIMEOUT))

        return call

    def close_blocking(self) -> None:
        self.channel.close()


class Ovmsclient(BlockingClient):
    """ovmsclient's gRPC client; its own channel options lift the message limits, to 1 GB."""

    def open_blocking(self) -> Callable[[], Any]:
        from ovmsclient import make_grpc_client

        inputs = inputs_of(self.settings)
        if self.settings["kind"] == "strings":
            inputs = {name: array.tolist() for name, array in inputs.items()}  # it takes no array of them
        self.client = make_grpc_client(self.target)
        client = self.client
        # Its default asks for version 0.
        return lambda: client.predict(inputs, "m", model_version=1, timeout=TIMEOUT)

    def close_blocking(self) -> None:
        self.client.channel.close()


class MinTfsClient(BlockingClient):
    """min-tfs-client on a channel with aioserving's options; its own would take no answer above 4 MiB."""

    def open_blocking(self) -> Callable[[], Any]:
        import grpc
        from min_tfs_client.requests import TensorServingClient
        from min_tfs_client.tensors import tensor_proto_to_ndarray

        inputs = inputs_of(self.settings)
        if self.settings["kind"] == "strings":
            inputs = {name: array.astype(str) for name, array in inputs.items()}  # it knows no others
        host, _, port = self.target.partition(":")
        self.client = client = TensorServingClient(host=host, port=int(port))
        client._channel.close()
        client._channel = grpc.insecure_channel(self.target, options=grpc_options(self.settings))

        def call() -> Any:
            response = client.predict_request("m", inputs, timeout=int(TIMEOUT))
            if self.settings["kind"] == "strings":
                return response  # what it makes of them is an array of str, cut to the first letter
            return {name: tensor_proto_to_ndarray(tensor) for name, tensor in response.outputs.items()}

        return call

    def close_blocking(self) -> None:
        self.client._channel.close()


class Grpclib(Client):
    """grpclib, gRPC in pure Python, with bytes that were prepared before, as the bare grpc.aio client."""

    async def open(self) -> Callable[[], Awaitable[Any]]:
        from grpclib.client import Channel, UnaryUnaryMethod
        from grpclib.encoding.base import CodecBase

        class AsItIs(CodecBase):
            __content_subtype__ = "proto"

            def encode(self, message: Any, message_type: Any) -> bytes:
                return bytes(message)

            def decode(self, data: bytes, message_type: Any) -> bytes:
                return data

        request = request_of(self.settings)
        host, _, port = self.target.partition(":")
        self.channel = Channel(host, int(port), codec=AsItIs())
        method = UnaryUnaryMethod(self.channel, PREDICT, bytes, bytes)
        return lambda: method(request, timeout=TIMEOUT)

    async def close(self) -> None:
        self.channel.close()


def rest_request(inputs: dict[str, Any]) -> dict[str, Any]:
    """The body of a REST request: rows for one input, columns for several; strings in base64."""
    import base64

    values = {
        name: [{"b64": base64.b64encode(item).decode()} for item in array]
        if array.dtype == object
        else array.tolist()
        for name, array in inputs.items()
    }
    return {"instances": values["x"]} if len(values) == 1 else {"inputs": values}


def rest_arrays(answer: dict[str, Any]) -> Any:
    """The arrays of a REST answer."""
    import base64

    import numpy as np

    if "outputs" in answer:
        return {name: np.array(values, np.float32) for name, values in answer["outputs"].items()}
    values = answer["predictions"]
    if isinstance(values[0], dict):
        return np.array([base64.b64decode(item["b64"]) for item in values], object)
    return np.array(values, np.float32)


class RestRequests(BlockingClient):
    """JSON over the REST port with `requests`, a session with keep-alive per thread."""

    def open_blocking(self) -> Callable[[], Any]:
        import requests

        inputs = next_inputs(self.settings)
        url = f"{self.settings['rest']}/v1/models/m:predict"
        local = threading.local()

        def call() -> Any:
            session = getattr(local, "session", None)
            if session is None:
                session = local.session = requests.Session()
                session.trust_env = False  # else it looks for proxies and passwords in each call
            response = session.post(url, json=rest_request(inputs()), timeout=TIMEOUT)
            response.raise_for_status()
            return rest_arrays(response.json())

        return call

    def close_blocking(self) -> None:
        """Sessions end with their threads."""


class RestHttpx(Client):
    """JSON over REST with httpx; a connection is kept for each call at a time."""

    async def open(self) -> Callable[[], Awaitable[Any]]:
        import httpx

        inputs = next_inputs(self.settings)
        url = f"{self.settings['rest']}/v1/models/m:predict"
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self.session = session = httpx.AsyncClient(limits=limits, timeout=TIMEOUT, trust_env=False)

        async def call() -> Any:
            response = await session.post(url, json=rest_request(inputs()))
            response.raise_for_status()
            return rest_arrays(response.json())

        return call

    async def close(self) -> None:
        await self.session.aclose()


class RestAiohttp(Client):
    """JSON over the REST port with aiohttp: a session that opens as many connections as there are calls."""

    async def open(self) -> Callable[[], Awaitable[Any]]:
        import aiohttp

        inputs = next_inputs(self.settings)
        url = f"{self.settings['rest']}/v1/models/m:predict"
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        session = self.session

        async def call() -> Any:
            async with session.post(url, json=rest_request(inputs())) as response:
                response.raise_for_status()
                return rest_arrays(await response.json())

        return call

    async def close(self) -> None:
        await self.session.close()


class Loopback(BlockingClient):
    """The limit of the loopback device: as many bytes as the request over plain TCP, 40 bytes back."""

    def open_blocking(self) -> Callable[[], Any]:
        import socket

        data = request_of(self.settings)
        head = len(data).to_bytes(8, "little")
        self.connection = socket.create_connection(("127.0.0.1", self.settings["tcp_port"]))
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = self.connection

        view = memoryview(data)

        def call() -> Any:
            sent = connection.sendmsg((head, data)) - len(head)
            if sent < len(data):
                connection.sendall(view[sent:])
            return connection.recv(40, socket.MSG_WAITALL)

        return call

    def close_blocking(self) -> None:
        self.connection.close()


class Memcpy(BlockingClient):
    """The limit of memory: one copy of the array into memory that is there."""

    def open_blocking(self) -> Callable[[], Any]:
        import numpy as np

        array = array_of(self.settings["shape"])
        copy = array.copy()
        return lambda: np.copyto(copy, array)

    def close_blocking(self) -> None:
        """Nothing was opened."""


CLIENTS: dict[str, type[Client]] = {
    "grpc.aio": GrpcAio,
    "grpc.aio, token": GrpcAioToken,
    "grpc.aio, fleet": GrpcAioFleet,
    "grpc.aio, no deadline": GrpcAioNoDeadline,
    "grpc.aio, malloc tuned": GrpcAioTuned,
    "grpc.aio, own options": GrpcAioOwnOptions,
    "grpc.aio, from array": GrpcAioFromArray,
    "grpc, blocking": GrpcBlocking,
    "predict": Predict,
    "predict, bound": PredictBound,
    "predict, validate=False": PredictUnchecked,
    "predict, fleet": PredictFleet,
    "predict, everything": PredictEverything,
    "predict, blocking": PredictBlocking,
    "predict, batched": PredictBatched,
    "ovmsclient": Ovmsclient,
    "min-tfs-client": MinTfsClient,
    "grpclib": Grpclib,
    "REST, requests": RestRequests,
    "REST, httpx": RestHttpx,
    "REST, aiohttp": RestAiohttp,
    "loopback": Loopback,
    "memcpy": Memcpy,
    "recipe, grpc.aio": RecipeAio,
    "recipe, blocking": RecipeBlocking,
}


def main() -> None:
    settings = json.loads(sys.argv[1])
    if "path" in settings:
        sys.path.insert(0, settings["path"])  # another checkout's aioserving
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no answer
    client = CLIENTS[settings["client"]](settings)
    client.start()
    client.turn(1, 1)
    print(json.dumps({"aioserving": "aioserving" in sys.modules}), file=answers)
    for line in sys.stdin:
        order = json.loads(line)
        gc.collect()
        before = resource.getrusage(resource.RUSAGE_SELF)
        cpu, wall = time.process_time(), time.perf_counter()
        latencies = client.turn(order["calls"], order["concurrency"])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        after = resource.getrusage(resource.RUSAGE_SELF)
        answer = {
            "wall": wall,
            "cpu": cpu,
            "faults": after.ru_minflt - before.ru_minflt,
            "switches": after.ru_nvcsw - before.ru_nvcsw,
            "latencies": latencies,
        }
        print(json.dumps(answer), file=answers)
    client.stop()


if __name__ == "__main__":
    main()
