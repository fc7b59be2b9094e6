"""What encoding and decoding tensors costs, beside what people use today, printed as a Markdown table.

    python bench/bench_codec.py

Each row times this codec and its rival in turns, in one process, and compares medians, so that
whatever else the machine does hits both alike. Rivals are one memcpy (``bytes`` of a memoryview, with
its allocation), the official recipe (`tf.make_tensor_proto` and `SerializeToString`, or `FromString`
and `tf.make_ndarray`), and, where TensorFlow is not installed, nothing: those rows are left out. The rows
"again" compare what a client does from its second call on with doing it anew: a `RequestEncoder` with
checking and encoding, a `ResponseDecoder` with parsing.

The exit code says whether every goal was met.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from aioserving._proto import message_class
from aioserving.codec import (
    ResponseDecoder,
    decode_predict_response,
    encode_model_spec,
    encode_predict_request,
    encode_predict_response,
)
from aioserving.dtypes import DataType
from aioserving.signature import RequestEncoder, Signature, TensorSpec

MILLION = 1_000_000
#: Seconds that one turn of a side takes at least and that a row may take in all, and rounds at least.
TURN, BUDGET, FEWEST = 0.02, 4.0, 7
#: More bytes than a processor core keeps in its own cache.
BEYOND_CACHE = 1 << 25

SPEC = encode_model_spec("digits", signature_name="serving_default")
ANSWER_SPEC = encode_model_spec("digits", version=1, signature_name="serving_default")

PredictRequest: Any = message_class("tensorflow.serving.PredictRequest")
PredictResponse: Any = message_class("tensorflow.serving.PredictResponse")


@dataclass(frozen=True)
class Row:
    label: str
    ours: Callable[[], object]
    rival_name: str
    rival: Callable[[], object]
    #: At least so many times faster than the rival, or None.
    faster: float | None = None
    #: At most so many times the rival's time, or None.
    at_most: float | None = None


def rows(tf: Any | None) -> list[Row]:
    random = np.random.default_rng(0)
    found: list[Row] = []

    def encode(
        label: str,
        array: np.ndarray,
        *,
        faster: float | None = None,
        copy: float | None = None,
        fresh: bool = False,
    ) -> None:
        # A request carries data that was made elsewhere. One array encoded again and again is the
        # other extreme: data that never leaves the cache.
        several = [array, *(array.copy() for _ in range(BEYOND_CACHE // array.nbytes if fresh else 0))]
        flat: list[Any] = [one.reshape(-1).data for one in several if one.dtype.kind != "O"]
        arrays, views = itertools.cycle(several), itertools.cycle(flat)

        def ours() -> object:
            return encode_predict_request({"images": next(arrays)}, model_spec=SPEC)

        def copied() -> object:
            return bytes(next(views))

        def recipe() -> object:
            request = PredictRequest()
            request.model_spec.name = "digits"
            request.model_spec.signature_name = "serving_default"
            request.inputs["images"].CopyFrom(tf.make_tensor_proto(next(arrays)))  # type: ignore[union-attr]
            return request.SerializeToString()

        if flat and array.flags.c_contiguous:
            found.append(Row(f"encode {label}", ours, "memcpy", copied, at_most=copy))
        if tf is not None:
            found.append(Row(f"encode {label}", ours, "TensorFlow", recipe, faster))

    def decode(label: str, array: np.ndarray, *, faster: float | None = None, typed: bool = True) -> None:
        if tf is None:
            return
        body = encode_predict_response({"scores": array}, model_spec=ANSWER_SPEC, typed=typed)

        def recipe() -> object:
            response = PredictResponse.FromString(body)
            return {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}

        found.append(
            Row(f"decode {label}", lambda: decode_predict_response(body), "TensorFlow", recipe, faster)
        )

    def encode_again(label: str, array: np.ndarray, *, faster: float | None = None) -> None:
        spec = TensorSpec("images", DataType.DT_FLOAT, (-1, *array.shape[1:]), "images:0")
        signature = Signature("serving_default", {"images": spec}, {}, model="digits")
        encoder = RequestEncoder(signature, SPEC)
        inputs = {"images": array}

        def anew() -> object:
            return encode_predict_request(signature.prepare(inputs), model_spec=SPEC)

        encoder.encode(inputs)
        found.append(
            Row(f"encode {label}, again", lambda: encoder.encode(inputs), "check and encode", anew, faster)
        )

    def decode_again(label: str, outputs: dict[str, np.ndarray], *, faster: float | None = None) -> None:
        body = encode_predict_response(outputs, model_spec=ANSWER_SPEC)
        decoder = ResponseDecoder()
        for _ in range(2):
            decoder.decode(body)
        found.append(
            Row(
                f"decode {label}, again",
                lambda: decoder.decode(body),
                "parse",
                lambda: decode_predict_response(body),
                faster,
            )
        )

    row = random.random((1, 784), dtype=np.float32)
    scores = random.random((1, 10), dtype=np.float32)
    encode_again("3 KB, 1x784 float32", row, faster=2)
    encode_again("600 KB, 1x224x224x3 float32", random.random((1, 224, 224, 3), dtype=np.float32))
    decode_again("10 scores and a class", {"scores": scores, "class": np.array([3])}, faster=4)
    decode_again("10 outputs of 10 scores", {f"scores_{index}": scores for index in range(10)}, faster=4)
    decode_again("1M float_val", {"scores": random.random(MILLION, dtype=np.float32)})
    decode_again("a string", {"label": np.array([b"seven"], object)})

    pixels = random.random((32, 224, 224, 3), dtype=np.float32)
    encode("3 KB, 1x784 float32", random.random((1, 784), dtype=np.float32), faster=6)
    encode("100 KB float32, in the cache", random.random((32, 784), dtype=np.float32))
    encode("100 KB float32", random.random((32, 784), dtype=np.float32), copy=1.15, fresh=True)
    encode("1 MB float32", random.random((334, 784), dtype=np.float32), copy=1.15, fresh=True)
    encode("19 MB, 32x224x224x3 float32", pixels, copy=1.15)
    encode("19 MB, channels moved, not contiguous", pixels.transpose(0, 3, 1, 2))
    strings = np.array([random.bytes(size) for size in random.integers(5, 20, MILLION)], object)
    encode("1M strings of 5 to 19 bytes", strings)

    decode("10 float_val", random.random((1, 10), dtype=np.float32))
    decode("1M float_val", random.random(MILLION, dtype=np.float32), faster=1000)
    decode("1M float32 in tensor_content", random.random(MILLION, dtype=np.float32), typed=False)
    decode("1M int_val below 128", random.integers(0, 128, MILLION, np.int32), faster=100)
    decode("1M int64_val below 128", random.integers(0, 128, MILLION), faster=100)
    decode("1M int64_val, one in 100 of two bytes", np.where(random.random(MILLION) < 0.01, 300, 5))
    decode("1M int64_val, one in 100 negative", np.where(random.random(MILLION) < 0.01, -1, 5))
    decode("1M int64_val below 1000", random.integers(0, 1000, MILLION))
    decode("1M int64_val, all negative", -random.integers(1, 1000, MILLION))
    decode("1M int64_val, random 64-bit", random.integers(-(2**63), 2**63 - 1, MILLION), faster=4)
    decode("1M half_val", random.random(MILLION).astype(np.float16))
    decode("1M bool_val", random.random(MILLION) < 0.5)
    decode("1M string_val of 5 to 19 bytes", strings)
    return found


def medians(row: Row) -> tuple[float, float]:
    """Seconds per call of both sides, timed in turns."""
    sides = [timeit.Timer(row.ours), timeit.Timer(row.rival)]
    once = [min(timer.repeat(3, 1)) for timer in sides]
    # Turns of some length: what the other side left behind (caches, freed memory) weighs little.
    numbers = [max(1, int(TURN / seconds)) for seconds in once]
    cost = sum(seconds * number for seconds, number in zip(once, numbers, strict=True))
    times: list[list[float]] = [[], []]
    for _ in range(max(FEWEST, int(BUDGET / cost))):
        for side, timer, number in zip(times, sides, numbers, strict=True):
            side.append(timer.timeit(number) / number)
    return statistics.median(times[0]), statistics.median(times[1])


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def main() -> int:
    try:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
        import tensorflow as tf
    except ImportError:
        tf = None
        print("TensorFlow is not installed: its rows are left out.\n")
    print("| what | aioserving | rival | ratio | goal | |")
    print("| --- | --- | --- | --- | --- | --- |")
    failures = 0
    for row in rows(tf):
        ours, rival = medians(row)
        if row.at_most is not None or (row.faster is None and row.rival_name == "memcpy"):
            ratio, met = f"{ours / rival:.2f}x the time", row.at_most is None or ours / rival <= row.at_most
            goal = "" if row.at_most is None else f"at most {row.at_most}x"
        else:
            ratio, met = f"{rival / ours:,.1f}x faster", row.faster is None or rival / ours >= row.faster
            goal = "" if row.faster is None else f"at least {row.faster:,.0f}x"
        failures += not met
        verdict = "" if not goal else "met" if met else "MISSED"
        times = f"{_time(ours)} | {row.rival_name}, {_time(rival)}"
        print(f"| {row.label} | {times} | {ratio} | {goal} | {verdict} |", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
