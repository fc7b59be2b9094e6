"""Rows per second of a job from Parquet to Parquet, beside bare calls and beside the official recipe.

    python bench/bench_jobs.py

One aioserving.testing server in a process of its own, with a callable that gives ten columns back; rows are
64 float32 and an id, a call has 256 rows, sixteen are in flight: with more, bare calls are no faster. The
ways take turns, each in a process of its own:

* a job: `aioserving.jobs.Job`, as it comes, from the files to the finished output;
* bare grpc.aio: the same rows as bytes that were prepared before the clock starts, sixteen calls at a time;
  it reads no file, decodes no answer and writes nothing;
* the official recipe, which needs TensorFlow: a loop over the batches of the same file, make_tensor_proto,
  the stub of tensorflow-serving-api, make_ndarray, and the results in one Parquet file at the end.

Memory is the process's peak above what it has once everything is imported and connected, in a process for
each number of rows. Rows beyond a million are the same file under more names.

What the difference to bare calls is made of, in seconds of CPU for a million rows, on two cores that the
server shares, which needs 1.5 of them with bare calls and 1.6 with a job:

| | bare calls | a job | |
| --- | --- | --- | --- |
| event loop | 0.55 | 0.90 | checks, retries, decoding and ordering of 3,907 calls |
| gRPC's threads | 0.28 | 0.34 | |
| reading Parquet | | 0.53 | 0.38 in a process that does nothing else: the levels of lists, mostly |
| cutting batches | | 0.10 | |
| writing Parquet | | 0.26 | 0.17 in a process that does nothing else |

Together with the server that is 3.8 seconds, 1.9 on each core if neither ever waits, beside 1.34 of bare
calls: at best 0.70x. What was tried beside it, and changed nothing that could be measured: smaller pieces, a
further thread that reads ahead, earlier requests for more, other switch intervals of the interpreter, no
garbage collector, 32 calls in flight. Memory-mapping the input would save 0.04 (and a file that is cut off
would end the process), output without statistics 0.02. Scoring rows that are in memory reaches 0.94 to 0.99
(`bench_scoring.py`). The recipe reaches 0.19 of the speed of bare calls, so five times its speed would
be 0.93 of theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from harness import HERE, Bar, Options, Report, Spread, environment, finish

#: Rows of a call, calls at a time.
BATCH, AT_A_TIME = 256, 16
WIDTH, SCORES = 64, 10
#: Turns of every way; calls of a turn of a job and of bare calls; of the recipe, which is slow.
ROUNDS, CALLS, RECIPE_CALLS = 7, 3907, 400
#: Rows of the runs whose memory is told.
SIZES = (100_000, 1_000_000, 5_000_000)

JOB, BARE, RECIPE = "a job, Parquet to Parquet", "bare grpc.aio, prepared bytes", "the official recipe"


def model() -> Any:
    """What is served."""
    from aioserving.testing import CallableServable

    return CallableServable(
        lambda x: {"scores": x[:, :SCORES]},
        inputs={"x": ("float32", (None, WIDTH))},
        outputs={"scores": ("float32", (None, SCORES))},
        inline=True,
    )


def write_input(path: pathlib.Path, rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    chance = np.random.default_rng(0)
    writer = None
    for start in range(0, rows, 100_000):
        count = min(100_000, rows - start)
        x = pa.FixedSizeListArray.from_arrays(pa.array(chance.random(count * WIDTH, np.float32)), WIDTH)
        table = pa.table({"id": pa.array(np.arange(start, start + count)), "x": x})
        if writer is None:
            writer = pq.ParquetWriter(path, table.schema, use_dictionary=False)
        writer.write_table(table)
    assert writer is not None
    writer.close()


# -- in the measured processes ------------------------------------------------------------------------


async def job(target: str, files: list[str], calls: int) -> int:
    from aioserving import AsyncClient
    from aioserving.jobs import Job

    with tempfile.TemporaryDirectory(prefix="aioserving-bench-", dir=os.path.dirname(files[0])) as folder:
        async with AsyncClient(target) as client:
            work = Job(
                client,
                model="m",
                input=files,
                output=f"{folder}/out",
                keep=["id"],
                batch_size=BATCH,
                max_in_flight=AT_A_TIME,
            )
            return (await work.run()).written


#: The requests of bare calls, one for each batch of the file, made before the first turn.
prepared: list[bytes] = []


def prepare(files: list[str]) -> None:
    import pyarrow.parquet as pq

    from aioserving.codec import encode_model_spec, encode_predict_request

    spec = encode_model_spec("m", version=1)
    for batch in pq.ParquetFile(files[0]).iter_batches(BATCH, columns=["x"], use_threads=False):
        x = batch.column("x").flatten().to_numpy().reshape(-1, WIDTH)
        prepared.append(encode_predict_request({"x": x}, model_spec=spec, output_filter=()))


async def bare(target: str, files: list[str], calls: int) -> int:
    from grpc import aio

    if not prepared:
        prepare(files)
    left = iter(prepared[:calls])
    async with aio.insecure_channel(target) as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")

        async def work() -> None:
            for request in left:
                await call(request)

        await asyncio.gather(*(work() for _ in range(AT_A_TIME)))
    return min(calls * BATCH, 1_000_000)


async def recipe(target: str, files: list[str], calls: int) -> int:
    import grpc
    import pyarrow as pa
    import pyarrow.parquet as pq
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    scores, ids = [], []
    with (
        grpc.insecure_channel(target) as channel,
        tempfile.TemporaryDirectory(prefix="aioserving-bench-") as folder,
    ):
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for number, batch in enumerate(pq.ParquetFile(files[0]).iter_batches(BATCH)):
            if number == calls:
                break
            x = np.stack(batch.column("x").to_numpy(zero_copy_only=False))
            request = predict_pb2.PredictRequest()
            request.model_spec.name = "m"
            request.inputs["x"].CopyFrom(tf.make_tensor_proto(x))
            response = stub.Predict(request, 60.0)
            scores.append(tf.make_ndarray(response.outputs["scores"]))
            ids.append(batch.column("id").to_numpy())
        whole = np.concatenate(scores)
        column = pa.FixedSizeListArray.from_arrays(pa.array(whole.reshape(-1)), SCORES)
        pq.write_table(pa.table({"id": np.concatenate(ids), "scores": column}), f"{folder}/out.parquet")
    return len(whole)


WAYS = {JOB: job, BARE: bare, RECIPE: recipe}


def serve_turns(way: str, target: str, files: list[str], calls: int) -> None:
    """Take a turn for every line of standard input."""
    for module in ("aioserving.jobs.engine", "aioserving.jobs.columns", "aioserving.jobs.progress"):
        importlib.import_module(module)
    asyncio.run(
        WAYS[way](target, files, min(calls, 50) if way != JOB else calls)
    )  # imports, connects, warms up
    print("ready", flush=True)
    for _ in sys.stdin:
        cpu, wall = time.process_time(), time.perf_counter()
        rows = asyncio.run(WAYS[way](target, files, calls))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(json.dumps({"rows": rows, "wall": wall, "cpu": cpu}), flush=True)


def tell_memory(target: str, small: str, files: list[str]) -> None:
    """Bytes that a job takes at its peak, above what everything imported and connected takes."""
    asyncio.run(job(target, [small], 0))
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # the peak is now what there is
    before = memory("VmRSS")
    rows = asyncio.run(job(target, files, 0))
    print(json.dumps({"rows": rows, "bytes": memory("VmHWM") - before}), flush=True)


def memory(which: str) -> int:
    text = pathlib.Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(which))


# -- measuring ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def child(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(HERE / "bench_jobs.py"), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**environment(), "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args} ended with code {process.wait()}")
    return line


def take_turns(target: str, files: list[str], options: Options) -> dict[str, list[dict[str, float]]]:
    calls = {way: options.calls(RECIPE_CALLS if way == RECIPE else CALLS) for way in WAYS}
    ways = [way for way in WAYS if way != RECIPE or options.tensorflow]
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    chance = random.Random(0)
    with contextlib.ExitStack() as stack:
        running = {
            way: stack.enter_context(child("turns", way, target, json.dumps(files), str(calls[way])))
            for way in ways
        }
        for process in running.values():
            line_of(process)
        for _ in range(options.rounds(ROUNDS)):
            chance.shuffle(ways)
            for way in ways:
                stdin = running[way].stdin
                assert stdin is not None
                stdin.write("\n")
                stdin.flush()
                found[way].append(json.loads(line_of(running[way])))
    return found


def run(options: Options) -> Report:
    from aioserving.testing import ServerProcess

    report = Report("jobs", "Jobs from file to file")
    report.text((__doc__ or "").partition("python bench/bench_jobs.py")[2].strip())
    rows = options.calls(CALLS) * BATCH if options.quick else 1_000_000
    folder = pathlib.Path(tempfile.mkdtemp(prefix="aioserving-bench-"))
    environ = {"PYTHONPATH": str(HERE), "OPENBLAS_NUM_THREADS": "1"}
    try:
        with ServerProcess(callables={"m": "bench_jobs:model"}, env=environ) as server:
            files = []
            write_input(folder / "rows-0.parquet", rows)
            write_input(folder / "few.parquet", 10 * BATCH)
            for number in range(1, 5):
                os.link(folder / "rows-0.parquet", folder / f"rows-{number}.parquet")
            files = [str(folder / f"rows-{number}.parquet") for number in range(5)]
            turns = take_turns(server.target, files[:1], options)
            report_rates(report, turns)
            if sys.platform == "linux":
                sizes = (rows,) if options.quick else SIZES
                report_memory(report, server.target, folder, files, sizes, rows)
    finally:
        shutil.rmtree(folder)
    return report


def report_rates(report: Report, turns: dict[str, list[dict[str, float]]]) -> None:
    rates = {way: [turn["rows"] / turn["wall"] for turn in found] for way, found in turns.items()}
    table = []
    for way, found in rates.items():
        ratio = Spread.of([job / other for job, other in zip(rates[JOB], found, strict=True)])
        cpu = Spread.of([turn["cpu"] / turn["rows"] * 1e6 for turn in turns[way]])
        table.append(
            (way, f"{Spread.of(found).median:,.0f}", "" if way == JOB else ratio.ratio, f"{cpu.median:.2f} s")
        )
        if way == BARE:
            report.bars.append(Bar("rows per second of a job, to bare calls", 0.85, ratio.median, least=True))
        elif way == RECIPE:
            report.bars.append(Bar("rows per second of a job, to the recipe", 5.0, ratio.median, least=True))
    report.table(
        ("", "rows per second", "a job is faster by", "CPU time of the process for a million rows"), table
    )


def report_memory(
    report: Report, target: str, folder: pathlib.Path, files: list[str], sizes: tuple[int, ...], rows: int
) -> None:
    table = []
    peaks = []
    for size in sizes:
        if size < rows:
            given = [str(folder / "part.parquet")]
            write_input(folder / "part.parquet", size)
        else:
            given = files[: size // rows]
        with child("memory", target, str(folder / "few.parquet"), json.dumps(given)) as process:
            told = json.loads(line_of(process))
        peaks.append(told["bytes"] / 1e6)
        table.append((f"{told['rows']:,}", f"{peaks[-1]:.0f} MB"))
    report.table(("rows", "memory above import"), table)
    report.bars.append(Bar("memory of a job above import", 150.0, max(peaks), unit=" MB"))


def main() -> int:
    if len(sys.argv) > 1 and sys.argv[1] == "turns":
        _, _, way, target, files, calls = sys.argv
        serve_turns(way, target, json.loads(files), int(calls))
        return 0
    if len(sys.argv) > 1 and sys.argv[1] == "memory":
        _, _, target, small, files = sys.argv
        tell_memory(target, small, json.loads(files))
        return 0
    return finish(run(Options.from_arguments(__doc__)))


if __name__ == "__main__":
    sys.exit(main())
