"""From nothing to the first answer: a new process that imports, connects, predicts and ends.

    python bench/bench_cold_start.py

What a command-line tool, a serverless function or a worker pays before it is of use. The peers are the
official recipe, and grpc with prepared bytes as the floor.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time

from harness import HERE, SHAPES, Options, Report, Server, Spread, environment, finish, megabytes, seconds

_MEASURE = """
import json, time
import sys
sys.path.insert(0, {here!r})
def report():
    cpu = time.process_time()
    try:
        with open("/proc/self/status") as file:
            peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except OSError:
        import resource
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps(dict(cpu=cpu, peak=peak)), flush=True)
"""

_FLOOR = """
import grpc, numpy
with open({request!r}, "rb") as file:
    request = file.read()
channel = grpc.insecure_channel({target!r})
assert channel.unary_unary("/tensorflow.serving.PredictionService/Predict")(request, timeout=60)
report()
channel.close()
"""

_OURS_ASYNC = """
import asyncio
import numpy as np
from aioserving import AsyncClient
async def main():
    array = np.zeros({shape!r}, np.float32)
    async with AsyncClient({target!r}) as client:
        result = await client.predict("m", {{"x": array}})
        assert result["scores"].shape == (1, 10)
        report()
asyncio.run(main())
"""

_OURS_BLOCKING = """
import numpy as np
from aioserving import Client
with Client({target!r}) as client:
    result = client.predict("m", {{"x": np.zeros({shape!r}, np.float32)}})
    assert result["scores"].shape == (1, 10)
    report()
"""

_RECIPE = """
import os
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
channel = grpc.insecure_channel({target!r})
stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
request = predict_pb2.PredictRequest()
request.model_spec.name = "m"
request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.zeros({shape!r}, np.float32)))
response = stub.Predict(request, timeout=60)
assert tf.make_ndarray(response.outputs["scores"]).shape == (1, 10)
report()
channel.close()
"""

FLOOR, OURS, BLOCKING, RECIPE = "grpc, prepared bytes", "`AsyncClient`", "`Client`", "official recipe"


def first_answer(script: str) -> dict[str, float]:
    """Seconds from starting the process to its answer, and to its end; CPU time and memory by then."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    answered = time.perf_counter() - start
    _, stderr = process.communicate()
    ended = time.perf_counter() - start
    if process.returncode or not line:
        raise RuntimeError(f"ended with code {process.returncode}:\n{stderr}")
    return {"answered": answered, "ended": ended, **json.loads(line)}


def run(options: Options) -> Report:
    report = Report("cold_start", "Cold start")
    rounds = options.rounds(20)
    with Server(SHAPES["3 KB"]) as server:
        names = {"here": str(HERE), "target": server.target, "shape": server.shape, "request": server.request}
        scripts = {FLOOR: _FLOOR, OURS: _OURS_ASYNC, BLOCKING: _OURS_BLOCKING}
        if options.tensorflow:
            scripts[RECIPE] = _RECIPE
        scripts = {label: (_MEASURE + script).format(**names) for label, script in scripts.items()}
        for script in scripts.values():
            first_answer(script)
        found: dict[str, list[dict[str, float]]] = {label: [] for label in scripts}
        shuffled = random.Random(0)
        for index in range(rounds):
            order = list(scripts)
            if index >= (1 if options.quick else max(3, rounds // 4)) and RECIPE in order:
                order.remove(RECIPE)  # so slow that a few times tell enough
            shuffled.shuffle(order)
            for label in order:
                found[label].append(first_answer(scripts[label]))

    def ratio(label: str, base: str) -> str:
        pairs = zip(found[label], found[base], strict=False)
        return Spread.of([ours["answered"] / theirs["answered"] for ours, theirs in pairs]).ratio

    def median(label: str, figure: str) -> float:
        return statistics.median(each[figure] for each in found[label])

    report.text(
        "A new Python process that imports, connects, sends 3 KB and has the answer as arrays; medians, in "
        "turns. aioserving's include the look-up of the model's signature, a second call."
    )
    report.table(
        ("client", "first answer after", "to grpc", "CPU time", "peak memory", "process ended after"),
        [
            (
                label,
                seconds(median(label, "answered")),
                "" if label == FLOOR else ratio(label, FLOOR),
                seconds(median(label, "cpu")),
                megabytes(median(label, "peak")),
                seconds(median(label, "ended")),
            )
            for label in scripts
        ],
    )
    if options.tensorflow:
        times = Spread.of(
            [
                theirs["answered"] / ours["answered"]
                for theirs, ours in zip(found[RECIPE], found[OURS], strict=False)
            ]
        )
        report.text(
            f"The official recipe takes {times.median:.1f} times as long ({times.low:.1f} to "
            f"{times.high:.1f}) and {median(RECIPE, 'peak') / median(OURS, 'peak'):.1f} times the memory of "
            "`AsyncClient`."
        )
    else:
        report.text("The official recipe, which needs TensorFlow, is left out.")
    return report


if __name__ == "__main__":
    sys.exit(finish(run(Options.from_arguments(__doc__))))
