"""predict beside what people use: the official recipe, min-tfs-client, ovmsclient, grpclib, REST, bare gRPC.

    python bench/bench_peers.py            a selection, ten minutes
    python bench/bench_peers.py --full     every client with every request and number of calls at a time

The recipe is TensorFlow Serving's own: `tf.make_tensor_proto` into a PredictRequest, the generated stub,
`tf.make_ndarray` on the answer. Every client has its best settings: the recipe and the bare calls the channel
options of aioserving (message limits lifted) and the same deadline, ovmsclient its own options, which lift
the limits, too, REST a connection that is kept for each call at a time. Bare calls send bytes that were
prepared before and do not look at the answer; with 19 MB another one makes them from the array, in one copy.

The recipe needs TensorFlow. min-tfs-client, ovmsclient and grpclib get environments of their own, made
when they are first needed (with the same grpcio, protobuf and numpy where they can do with them); without a
package index they are left out. So are `requests`, aiohttp and httpx where they are not installed.
min-tfs-client needs protobuf 3.20, which is fast for Python 3.10 only: there has to be a ``python3.10``.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from harness import (
    SHAPES,
    Bar,
    Options,
    Report,
    Rounds,
    Server,
    Spread,
    finish,
    interleave,
    is_installed,
    python_with,
    seconds,
)

#: Clients of worker.py with an environment of their own -> what pip installs there.
ELSEWHERE = {
    "ovmsclient": ("ovmsclient==2023.1",),
    "grpclib": ("grpclib==0.4.9",),
    "min-tfs-client": ("min-tfs-client==1.0.2", "protobuf==3.20.3", "numpy<2.3"),
}
#: The Python that some of them are best with.
INTERPRETERS = {"min-tfs-client": "python3.10"}
#: Clients that are as slow as REST.
SLOW = ("REST", "min-tfs-client")

OURS, RECIPE = "`await AsyncClient.predict`", "official recipe, grpc.aio"
OURS_BATCHED, BARE = "`await model.batched().predict`", "bare grpc.aio, prepared bytes"
FROM_ARRAY = "bare grpc.aio, bytes made from the array"
GRPCLIB, AIOHTTP, HTTPX = "grpclib, prepared bytes", "REST, aiohttp", "REST, httpx"
OURS_UVLOOP = "`await AsyncClient.predict`, uvloop"
OURS_BLOCKING, RECIPE_BLOCKING = "`Client.predict`", "official recipe, blocking"
BARE_BLOCKING = "bare grpc, blocking, prepared bytes"
OVMS, REQUESTS, MIN_TFS = "ovmsclient, blocking", "REST, requests", "min-tfs-client, blocking"

ASYNC = {
    OURS: "predict",
    OURS_UVLOOP: "predict",
    OURS_BATCHED: "predict, batched",
    RECIPE: "recipe, grpc.aio",
    BARE: "grpc.aio",
    FROM_ARRAY: "grpc.aio, from array",
    GRPCLIB: "grpclib",
    AIOHTTP: "REST, aiohttp",
    HTTPX: "REST, httpx",
}
BLOCKING = {
    OURS_BLOCKING: "predict, blocking",
    RECIPE_BLOCKING: "recipe, blocking",
    BARE_BLOCKING: "grpc, blocking",
    OVMS: "ovmsclient",
    MIN_TFS: "min-tfs-client",
    REQUESTS: "REST, requests",
}
#: Threads beyond which blocking clients are no longer asked.
MOST_THREADS = 64


@dataclasses.dataclass(frozen=True)
class Case:
    """What is called how."""

    request: str
    shape: tuple[int, ...]
    kind: str
    concurrency: int
    #: Calls per turn.
    calls: int
    rounds: int
    #: Whether an ordinary run has it.
    usual: bool = True
    #: Part of `calls` that REST, and what is as slow, makes: it takes that much longer. 0 for none.
    rest: float = 0.2
    #: Whether rows of several callers can be joined.
    batches: bool = False


SMALL = ("3 KB", SHAPES["3 KB"], "rows")
IMAGE = ("600 KB", SHAPES["600 KB"], "scores")
IMAGES = ("19 MB", SHAPES["19 MB"], "scores")
TYPED = ("1M floats out, `float_val`", SHAPES["3 KB"], "floats")
CONTENT = ("1M floats out, `tensor_content`", SHAPES["3 KB"], "floats, content")
STRINGS = ("256 strings in and out", (256,), "strings")
TENS = ("10 inputs, 10 outputs", (1, 64), "tens")

CASES = (
    Case(*SMALL, 1, 200, 20),
    Case(*SMALL, 16, 640, 12, batches=True, usual=False),
    Case(*SMALL, 64, 1280, 16, batches=True),
    Case(*SMALL, 256, 2560, 10, batches=True),
    Case(*SMALL, 1024, 4096, 8, batches=True, usual=False),
    Case(*IMAGE, 1, 40, 10, rest=0.05),
    Case(*IMAGE, 16, 128, 8, rest=0.125, usual=False),
    Case(*IMAGE, 64, 192, 6, rest=0, usual=False),
    Case(*IMAGE, 256, 512, 5, rest=0, usual=False),
    Case(*IMAGE, 1024, 1024, 5, rest=0, usual=False),
    Case(*IMAGES, 1, 4, 12, rest=0),
    Case(*IMAGES, 8, 8, 8, rest=0),
    Case(*IMAGES, 16, 16, 6, rest=0, usual=False),
    Case(*TYPED, 1, 20, 10, rest=0.05),
    Case(*TYPED, 16, 48, 6, rest=0, usual=False),
    Case(*CONTENT, 1, 20, 10, rest=0),
    Case(*CONTENT, 16, 48, 6, rest=0, usual=False),
    Case(*STRINGS, 1, 100, 10),
    Case(*STRINGS, 64, 640, 8, usual=False),
    Case(*TENS, 1, 100, 10),
    Case(*TENS, 64, 640, 8, usual=False),
)


def clients_of(case: Case, options: Options, pythons: Mapping[str, str | None]) -> dict[str, dict[str, Any]]:
    """The clients that a case is for and that can be run here, with their settings."""
    found: dict[str, dict[str, Any]] = {}
    blocking = case.concurrency <= MOST_THREADS and (case.concurrency == 1 or options.full)
    for label, client in {**ASYNC, **(BLOCKING if blocking else {})}.items():
        settings: dict[str, Any] = {"client": client}
        if client.startswith("recipe") and not options.tensorflow:
            continue
        if label == RECIPE_BLOCKING and options.quick:
            continue  # importing TensorFlow takes most of a quick run: once is enough
        if label == OURS_BATCHED and not case.batches:
            continue
        if label == FROM_ARRAY and case.request != IMAGES[0]:
            continue  # what cannot be seen beside the call
        if client in pythons:
            if pythons[client] is None:
                continue
            settings["python"] = pythons[client]
        if label == OURS_UVLOOP:
            if case.request != SMALL[0] or not is_installed("uvloop"):
                continue
            settings["uvloop"] = True
        if client.startswith(SLOW):
            if not case.rest or (client.startswith("REST") and not is_installed(client.partition(", ")[2])):
                continue
            settings["calls"] = max(round(case.rest * options.calls(case.calls)), case.concurrency)
        found[label] = settings
    return found


def rate(found: Rounds, label: str, base: str) -> Spread:
    """Calls per second of one client in terms of another's in the same round."""
    return found.ratio(base, label, "wall_per_call")


def judge(report: Report, case: Case, found: Rounds) -> None:
    """The goals that a case has."""

    def reach(what: str, least: float, measured: Spread) -> None:
        report.bars.append(Bar(what, least, measured.median, least=True))

    where = f"{case.request}, {case.concurrency} at a time"
    size = (case.request, case.concurrency)
    recipe = RECIPE in found.turns
    if size == ("3 KB", 1):
        measured = found.ratio(OURS, BARE).median
        report.bars.append(Bar(f"{where}: CPU time per call, to bare grpc.aio", 1.15, measured))
    if size == ("3 KB", 64) and recipe:
        reach(f"{where}: calls per second, to the official recipe", 1.8, rate(found, OURS, RECIPE))
    if size in (("3 KB", 64), ("3 KB", 256)) and recipe:
        least = 10 if case.concurrency == 64 else 20
        reach(f"{where}, batched: calls per second, to the recipe", least, rate(found, OURS_BATCHED, RECIPE))
    if size == ("19 MB", 1):
        measured = found.ratio(OURS, BARE, "wall_per_call").median
        report.bars.append(Bar(f"{where}: time per call, to bare grpc.aio", 1.05, measured))
        if recipe:
            reach(f"{where}: calls per second, to the official recipe", 1.4, rate(found, OURS, RECIPE))
    if case.request == TYPED[0] and recipe:
        reach(f"{where}: CPU time per call, recipe to aioserving", 10, found.ratio(RECIPE, OURS))


def run(options: Options) -> Report:
    report = Report("peers", "Beside what people use today")
    report.text(
        "Client process only, all threads; the server is the same for all. Clients are compared with the "
        "aioserving client of the same kind, asyncio or blocking: medians of the ratios of single rounds, "
        "and the range that holds the middle half. With blocking clients, calls at a time are threads. "
        "Every client has its best settings: aioserving's channel options and the same deadline, or its own "
        "where it takes none; REST keeps a connection for each call at a time."
    )
    pythons = {
        name: python_with(name, *pins, install=not options.quick, interpreter=INTERPRETERS.get(name))
        for name, pins in ELSEWHERE.items()
    }
    missing = [name for name in ("requests", "aiohttp", "httpx", "uvloop") if not is_installed(name)]
    missing += [f"{name} (no environment for it)" for name, python in pythons.items() if python is None]
    missing += [] if options.tensorflow else ["the official recipe, which needs TensorFlow"]
    if missing:
        report.text(f"Left out: {', '.join(missing)}.")
    rows = []
    # One server for the cases that follow each other and share it.
    server: Server | None = None
    try:
        for case in CASES[:1] if options.quick else CASES:
            if not (case.usual or options.full):
                continue
            if server is None or (server.shape, server.kind) != (case.shape, case.kind):
                if server is not None:
                    server.close()
                server = Server(case.shape, case.kind)
            clients = clients_of(case, options, pythons)
            found = interleave(
                server,
                clients,
                calls=max(options.calls(case.calls), case.concurrency),
                concurrency=case.concurrency,
                rounds=options.rounds(case.rounds),
                # Importing TensorFlow takes most of a short run: once is enough.
                generations=2 if case.rounds >= 12 and not options.quick else 1,
                warm_up=max(options.calls(case.calls) // 4, case.concurrency),
            )
            for label in clients:
                ours = OURS if label in ASYNC else OURS_BLOCKING
                rows.append(
                    (
                        case.request,
                        str(case.concurrency),
                        label,
                        seconds(found.median(label)),
                        "" if label == ours else found.ratio(label, ours).ratio,
                        seconds(found.latency(label, 0.5)),
                        "" if label == ours else found.ratio(label, ours, "median_latency").ratio,
                        f"{1 / found.median(label, 'wall_per_call'):,.1f}",
                    )
                )
                report.figures[case.request, case.concurrency, label] = found.median(label)
            judge(report, case, found)
    finally:
        if server is not None:
            server.close()
    report.table(
        (
            "request",
            "calls at a time",
            "client",
            "CPU time per call",
            "to aioserving",
            "median latency",
            "to aioserving",
            "calls per second",
        ),
        rows,
    )
    return report


if __name__ == "__main__":
    sys.exit(finish(run(Options.from_arguments(__doc__))))
