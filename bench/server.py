"""The server that every benchmark client talks to: grpc.aio, raw bytes in, one small constant answer out.

    python bench/server.py 1,784

Why not aioserving.testing's server: it parses the request and builds an answer, in Python, which takes
longer than the client's whole call. On a machine with few cores that is what a latency or throughput
figure would then show, for every client alike; with an answer that costs next to nothing the client's
own share is as large as it can be, which is the strictest setting for a ratio between clients.

What it answers is well formed: Predict with ten scores in `float_val`, as the real server sends them, and
GetModelMetadata with the signature of a model that takes `x`, float32 of the shape given (first
dimension free). It prints ``ready PORT`` and ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
from grpc import aio

from aioserving._proto import message_class

PREDICT = "/tensorflow.serving.PredictionService/Predict"
GET_MODEL_METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
MODEL, INPUT, OUTPUT, CLASSES = "m", "x", "scores", 10


def predict_answer() -> bytes:
    """A PredictResponse with ten scores."""
    response: Any = message_class("tensorflow.serving.PredictResponse")()
    response.model_spec.name = MODEL
    response.model_spec.version.value = 1
    response.model_spec.signature_name = "serving_default"
    tensor = response.outputs[OUTPUT]
    tensor.dtype = 1
    for size in (1, CLASSES):
        tensor.tensor_shape.dim.add(size=size)
    tensor.float_val.extend(index / CLASSES for index in range(CLASSES))
    return bytes(response.SerializeToString())


def metadata_answer(shape: tuple[int, ...]) -> bytes:
    """A GetModelMetadataResponse whose one input is float32 of `shape`, any first dimension."""
    signatures: Any = message_class("tensorflow.serving.SignatureDefMap")()
    signature = signatures.signature_def["serving_default"]
    signature.method_name = "tensorflow/serving/predict"
    for info, name, sizes in (
        (signature.inputs[INPUT], INPUT, (-1, *shape[1:])),
        (signature.outputs[OUTPUT], OUTPUT, (-1, CLASSES)),
    ):
        info.name = f"{name}:0"
        info.dtype = 1
        for size in sizes:
            info.tensor_shape.dim.add(size=size)
    response: Any = message_class("tensorflow.serving.GetModelMetadataResponse")()
    response.model_spec.name = MODEL
    response.model_spec.version.value = 1
    response.metadata["signature_def"].Pack(signatures)
    return bytes(response.SerializeToString())


class ConstantAnswers(grpc.GenericRpcHandler):
    """The same bytes for every call of a method."""

    def __init__(self, answers: dict[str, bytes]) -> None:
        self._handlers = {method: _handler(answer) for method, answer in answers.items()}

    def service(self, handler_call_details: Any) -> Any:
        return self._handlers.get(handler_call_details.method)


def _handler(answer: bytes) -> Any:
    async def handle(request: bytes, context: Any) -> bytes:
        return answer

    return grpc.unary_unary_rpc_method_handler(handle)


async def serve(shape: tuple[int, ...]) -> None:
    # As aioserving's client does for its own: large messages reuse memory, so that the server's part,
    # which is the same for all, is short.
    bytes(32 * 1024 * 1024 - 64 * 1024)
    server = aio.server(options=[("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers(
        (ConstantAnswers({PREDICT: predict_answer(), GET_MODEL_METADATA: metadata_answer(shape)}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready {port}", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(serve(tuple(int(size) for size in sys.argv[1].split(","))))
