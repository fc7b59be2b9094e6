"""The server that every benchmark client talks to: grpc.aio, raw bytes in, one small constant answer out.

    python bench/server.py 1,784
    python bench/server.py 1,784 KIND

Why not aioserving.testing's server: it parses the request and builds an answer, in Python, which takes
longer than the client's whole call. On a machine with few cores that is what a latency or throughput
figure would then show, for every client alike; with an answer that costs next to nothing the client's
own share is as large as it can be, which is the strictest setting for a ratio between clients.

What it answers is well formed: Predict with ten scores in `float_val`, as the real server sends them, and
GetModelMetadata with the signature of a model that takes `x`, float32 of the shape given (first
dimension free). Other kinds of models and answers are in `KINDS`.

The same process answers HTTP with the same values as JSON, prepared before, and on a third port plain TCP:
eight bytes that say how many follow, those, and 40 bytes back, which is what the loopback device can do. It
prints ``ready PORT HTTP_PORT TCP_PORT`` and ends when its standard input does.

The kind ``model`` is no constant: aioserving.testing serves a model that classifies digits, over gRPC and
REST; its third port is 0.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

# Before numpy is there: more threads for so small a model wait busily, on the client's cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import grpc
import numpy as np
from grpc import aio

from aioserving._proto import message_class
from aioserving.codec import encode_model_spec, encode_predict_response

PREDICT = "/tensorflow.serving.PredictionService/Predict"
GET_MODEL_METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
MODEL, INPUT, OUTPUT, CLASSES = "m", "x", "scores", 10


#: What is served, by name:
#:   scores            one row of ten scores, whatever comes (the default)
#:   rows              as many rows of scores as the request has
#:   floats            a million floats in `float_val`
#:   floats, content   the same in `tensor_content`, as with --enable_serialization_as_tensor_content
#:   strings           256 strings in, 256 strings out
#:   tens              ten inputs, ten outputs of one row
#:   model             aioserving.testing with a model of digits
KINDS = ("scores", "rows", "floats", "floats, content", "strings", "tens", "model")
MANY = 1_000_000
STRINGS = 256


def outputs_of(kind: str, rows: int = 1) -> dict[str, np.ndarray]:
    """What a kind of server answers."""
    if kind.startswith("floats"):
        return {OUTPUT: np.random.default_rng(1).random((1, MANY), dtype=np.float32)}
    if kind == "strings":
        return {OUTPUT: np.array([f"label of number {index}".encode() for index in range(STRINGS)], object)}
    scores = np.tile(np.arange(CLASSES, dtype=np.float32) / CLASSES, (rows, 1))
    return {f"{OUTPUT}{index}": scores for index in range(10)} if kind == "tens" else {OUTPUT: scores}


def predict_answer(kind: str = "scores", rows: int = 1) -> bytes:
    """A PredictResponse, as the real server writes it."""
    spec = encode_model_spec(MODEL, version=1, signature_name="serving_default")
    return encode_predict_response(outputs_of(kind, rows), model_spec=spec, typed=kind != "floats, content")


def rest_answer(kind: str = "scores", rows: int = 1) -> bytes:
    """The same values as the real server's REST interface renders them."""
    values = {
        name: [{"b64": base64.b64encode(item).decode()} for item in array]
        if array.dtype == object
        # The digits that a float32 has, as the real server writes them, not those of the float64 it becomes.
        else array.astype(str).astype(np.float64).tolist()
        for name, array in outputs_of(kind, rows).items()
    }
    return json.dumps({"predictions": values[OUTPUT]} if len(values) == 1 else {"outputs": values}).encode()


def metadata_answer(shape: tuple[int, ...], kind: str = "scores") -> bytes:
    """A GetModelMetadataResponse: inputs of `shape`, any first dimension."""
    signatures: Any = message_class("tensorflow.serving.SignatureDefMap")()
    signature = signatures.signature_def["serving_default"]
    signature.method_name = "tensorflow/serving/predict"
    inputs = [f"{INPUT}{index}" for index in range(10)] if kind == "tens" else [INPUT]
    everything = [(signature.inputs[name], name, (-1, *shape[1:])) for name in inputs] + [
        (signature.outputs[name], name, (-1, *array.shape[1:])) for name, array in outputs_of(kind).items()
    ]
    for info, name, sizes in everything:
        info.name = f"{name}:0"
        info.dtype = 7 if kind == "strings" else 1
        for size in sizes:
            info.tensor_shape.dim.add(size=size)
    response: Any = message_class("tensorflow.serving.GetModelMetadataResponse")()
    response.model_spec.name = MODEL
    response.model_spec.version.value = 1
    response.metadata["signature_def"].Pack(signatures)
    return bytes(response.SerializeToString())


Answer = Callable[[bytes], bytes]


def by_rows(row_size: int, answer: Callable[[str, int], bytes]) -> Answer:
    """Answers with as many rows as the request has, from its size: what is not data is less than a row."""
    known: dict[int, bytes] = {}

    def give(request: bytes) -> bytes:
        rows = len(request) // row_size
        found = known.get(rows)
        if found is None:
            found = known[rows] = answer("rows", rows)
        return found

    return give


def by_brackets(answer: Callable[[str, int], bytes]) -> Answer:
    """The same for JSON lists of two dimensions, whose rows are told by their brackets."""
    known: dict[int, bytes] = {}

    def give(request: bytes) -> bytes:
        rows = request.count(b"[") - 1
        found = known.get(rows)
        if found is None:
            found = known[rows] = answer("rows", rows)
        return found

    return give


class ConstantAnswers(grpc.GenericRpcHandler):
    """Answers that were made before, by method."""

    def __init__(self, answers: dict[str, Answer]) -> None:
        self._handlers = {method: _handler(answer) for method, answer in answers.items()}

    def service(self, handler_call_details: Any) -> Any:
        return self._handlers.get(handler_call_details.method)


def _handler(answer: Answer) -> Any:
    async def handle(request: bytes, context: Any) -> bytes:
        return answer(request)

    return grpc.unary_unary_rpc_method_handler(handle)


class ConstantHttp(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, and no more of it than the benchmarks' clients use."""

    _length = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.pieces: list[bytes] = []
        self.missing = 0
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)
        if self.missing:
            self.missing -= len(data)
            if self.missing > 0:
                return
        else:
            self.pieces = [b"".join(self.pieces)]
            head, blank, body = self.pieces[0].partition(b"\r\n\r\n")
            if not blank:
                return
            if b"expect: 100-continue" in head.lower():
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            found = self._length.search(head)
            self.missing = (int(found[1]) if found else 0) - len(body)
            if self.missing > 0:
                return
        request = b"".join(self.pieces).partition(b"\r\n\r\n")[2]
        self.pieces, self.missing = [], 0
        body = self.answer(request)
        self.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
            + body
        )


def serve_tcp(listener: socket.socket) -> None:
    """Take what comes and answer 40 bytes, one thread a connection: what TCP does without gRPC or HTTP."""
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_drain, args=(connection,), daemon=True).start()


def _drain(connection: socket.socket) -> None:
    buffer = bytearray(1 << 20)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, contextlib.suppress(OSError):
        while head := connection.recv(8, socket.MSG_WAITALL):
            left = int.from_bytes(head, "little")
            while left > 0:
                left -= connection.recv_into(buffer, min(left, len(buffer))) or left
            connection.sendall(bytes(40))


async def serve(shape: tuple[int, ...], kind: str) -> None:
    # As aioserving's client does for its own: large messages reuse memory, so that the server's part,
    # which is the same for all, is short.
    bytes(32 * 1024 * 1024 - 64 * 1024)
    server = aio.server(
        options=[
            ("grpc.max_receive_message_length", -1),
            ("grpc.so_reuseport", 0),
            # gRPC's core cancels calls, by chance, once 1,000 wait to be taken up, and all after 3,000.
            ("grpc.server.max_pending_requests", 1_000_000),
            ("grpc.server.max_pending_requests_hard_limit", 1_000_000),
        ]
    )
    metadata = metadata_answer(shape, kind)
    if kind == "rows":
        row_size = 4 * int(np.prod(shape[1:]))
        predict, rest = by_rows(row_size, predict_answer), by_brackets(rest_answer)
    else:
        answer, rendered = predict_answer(kind), rest_answer(kind)
        predict, rest = lambda request: answer, lambda request: rendered
    server.add_generic_rpc_handlers(
        (ConstantAnswers({PREDICT: predict, GET_MODEL_METADATA: lambda request: metadata}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    loop = asyncio.get_running_loop()
    http = await loop.create_server(lambda: ConstantHttp(rest), "127.0.0.1", 0)
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve_tcp, args=(listener,), daemon=True).start()
    ports = http.sockets[0].getsockname()[1], listener.getsockname()[1]
    print("ready", port, *ports, flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    http.close()
    await server.stop(None)


async def serve_model(width: int, images: str) -> None:
    """aioserving.testing with a model that says how alike an image is to the mean of each digit.

    Args:
        width: pixels of an image.
        images: file with the digits, and in the last column which one it is.
    """
    from aioserving.testing import CallableServable, ModelServer

    table = np.load(images)
    pixels, labels = table[:, :-1], table[:, -1]
    means = np.stack([pixels[labels == digit].mean(axis=0) for digit in range(CLASSES)])
    weights, bias = means.T.copy(), -0.5 * (means**2).sum(axis=1)
    model = CallableServable(
        lambda x: {OUTPUT: x @ weights + bias},
        inputs={INPUT: ("float32", (None, width))},
        outputs={OUTPUT: ("float32", (None, CLASSES))},
        inline=True,
    )
    async with ModelServer({MODEL: model}, rest_port=0) as server:
        print("ready", server.port, server.rest_port, 0, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def main(shape: str, kind: str = "scores", images: str = "") -> None:
    sizes = tuple(int(size) for size in shape.split(","))
    if kind not in KINDS:
        raise SystemExit(f"no kind {kind!r}: there are {', '.join(KINDS)}")
    asyncio.run(serve_model(sizes[1], images) if kind == "model" else serve(sizes, kind))


if __name__ == "__main__":
    main(*sys.argv[1:])
