"""Cases whose instructions `bench_instructions.py` counts: run under callgrind, one at a time.

    python bench/instructions_case.py ITERATIONS CASE

Every case is set up and made a few hundred times in every run, whichever is to be counted (CPython
specialises bytecode, and caches fill), then the named one ITERATIONS times more. The difference of two runs
is thus that of the iterations alone. Nothing here depends on addresses, hashes, time or threads: no channel
is opened, and the garbage collector rests.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from server import GET_MODEL_METADATA, metadata_answer, predict_answer

import aioserving
from aioserving import client as client_module
from aioserving.codec import (
    ResponseDecoder,
    encode_model_spec,
    encode_predict_request,
    encode_predict_response,
)

#: Times that each case is made before; more than CPython needs to specialise.
WARM_UP = 300
#: The cases of a million elements need fewer: their code is the same.
WARM_UP_LARGE = 20


class AnswersAtOnce:
    """In place of a transport: the answer is there."""

    state = "ready"
    _given_up = ""

    def __init__(self, target: str, **options: Any) -> None:
        self.target = target
        self.metadata, self.answer = metadata_answer((1, 784)), predict_answer()

    async def call(
        self, method: str, request: bytes, timeout: float | None, metadata: Any, slot: Any = None
    ) -> bytes:
        return self.metadata if method == GET_MODEL_METADATA else self.answer

    async def close(self, grace: float | None = None) -> None:
        """Nothing was opened."""


def fixed(rows: int) -> np.ndarray:
    return np.arange(rows * 784, dtype=np.float32).reshape(rows, 784)


def decoding(output: np.ndarray, *, fresh: bool = False) -> Callable[[], object]:
    data = encode_predict_response({"y": output}, model_spec=encode_model_spec("m", version=1))
    if fresh:
        return lambda: ResponseDecoder().decode(data)
    decoder = ResponseDecoder()
    return lambda: decoder.decode(data)


def codec_cases() -> dict[str, Callable[[], object]]:
    spec, array = encode_model_spec("m"), fixed(1)
    several = {f"x{index}": fixed(1) for index in range(10)}
    million = 1_000_000
    return {
        "encode 3 KB": lambda: encode_predict_request({"x": array}, model_spec=spec),
        "encode 10 inputs": lambda: encode_predict_request(several, model_spec=spec),
        "decode 1x10 float_val": decoding(np.ones((1, 10), np.float32)),
        "decode 1x10 float_val, first of its kind": decoding(np.ones((1, 10), np.float32), fresh=True),
        "decode 1M float_val": decoding(np.ones((1, million), np.float32)),
        "decode 1M int64_val below 128": decoding(np.arange(million, dtype=np.int64) % 128),
    }


def call_cases(client: aioserving.AsyncClient) -> dict[str, Callable[[], Awaitable[object]]]:
    inputs = {"x": fixed(1)}
    model = client.model("m")
    batched = model.batched()
    return {
        "predict": lambda: client.predict("m", inputs),
        "predict of a handle": lambda: model.predict(inputs),
        "predict of a batched handle, alone": lambda: batched.predict(inputs),
    }


async def main(iterations: int, case: str) -> None:
    client_module.Transport = AnswersAtOnce  # type: ignore[misc,assignment]
    client = aioserving.AsyncClient("127.0.0.1:8500", timeout=60.0)
    plain, calls = codec_cases(), call_cases(client)
    gc.collect()
    gc.disable()
    for name, function in plain.items():
        for _ in range(WARM_UP_LARGE if "1M" in name else WARM_UP):
            function()
    for call in calls.values():
        for _ in range(WARM_UP):
            await call()
    if case in plain:
        function = plain[case]
        for _ in range(iterations):
            function()
    elif case:
        call = calls[case]
        for _ in range(iterations):
            await call()
    await client.aclose()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
