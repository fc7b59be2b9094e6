"""What building 1,000 `tf.Example`s costs, beside a loop over protobuf's own constructors.

    python bench/bench_tf_examples.py

Both sides end with the bytes of a request's input, from the same dict of numpy columns; they take turns
in one process, and the ratio of the medians is printed. The goal is five times the speed of the loop.
The exit code says whether every row met it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from aioserving._proto import message_class
from aioserving.tf_examples import encode_input

GOAL = 5.0
ROUNDS = 21
ROWS = 1000

Example: Any = message_class("tensorflow.Example")
Feature: Any = message_class("tensorflow.Feature")
Features: Any = message_class("tensorflow.Features")
FloatList: Any = message_class("tensorflow.FloatList")
Int64List: Any = message_class("tensorflow.Int64List")
BytesList: Any = message_class("tensorflow.BytesList")
Input: Any = message_class("tensorflow.serving.Input")


def loop(columns: dict[str, np.ndarray]) -> bytes:
    """What tutorials do: a Feature for each value of each row."""
    made = Input()
    for index in range(ROWS):
        features = {}
        for name, column in columns.items():
            values = np.atleast_1d(column[index]).tolist()
            if column.dtype.kind == "f":
                features[name] = Feature(float_list=FloatList(value=values))
            elif column.dtype.kind == "i":
                features[name] = Feature(int64_list=Int64List(value=values))
            else:
                features[name] = Feature(bytes_list=BytesList(value=[value.encode() for value in values]))
        made.example_list.examples.append(Example(features=Features(feature=features)))
    return bytes(made.SerializeToString())


def timed(function: Callable[[], object]) -> float:
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def main() -> int:
    """Time all rows."""
    random = np.random.default_rng(0)
    floats = {f"f{i}": random.normal(size=ROWS).astype(np.float32) for i in range(5)}
    integers = {f"i{i}": random.integers(-100, 1_000_000, ROWS) for i in range(5)}
    texts = {f"t{i}": np.array([f"text {k}" for k in range(ROWS)], object) for i in range(3)}
    cases: dict[str, dict[str, np.ndarray]] = {
        "5 floats": floats,
        "5 integers": integers,
        "3 texts": texts,
        "5 floats, 5 integers, 3 texts": floats | integers | texts,
        "784 floats": {"pixels": random.normal(size=(ROWS, 784)).astype(np.float32)},
        "64 integers": {"ids": random.integers(0, 50_000, (ROWS, 64))},
    }
    print(f"| {ROWS} examples of | loop, ms | here, ms | faster | goal |")
    print("| --- | ---: | ---: | ---: | --- |")
    met = True
    for label, columns in cases.items():
        ours_input = Input.FromString(encode_input(columns)[0])
        assert ours_input == Input.FromString(loop(columns)), label
        theirs, ours = [], []
        for _ in range(ROUNDS):
            theirs.append(timed(lambda columns=columns: loop(columns)))
            ours.append(timed(lambda columns=columns: encode_input(columns)))
        slow, fast = statistics.median(theirs), statistics.median(ours)
        good = slow / fast >= GOAL
        met &= good
        print(
            f"| {label} | {slow * 1e3:.2f} | {fast * 1e3:.3f} | {slow / fast:.1f} | "
            f"{'met' if good else 'missed'} |"
        )
    return not met


if __name__ == "__main__":
    sys.exit(main())
