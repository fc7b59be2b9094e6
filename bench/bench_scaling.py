"""How throughput and latency scale with calls at a time, size, connections and endpoints, and where it ends.

    python bench/bench_scaling.py

Beside every figure stands how many cores the client's and the server's process kept busy meanwhile, which
tells what a curve flattens at: a Python process does one thing at a time, so 0.9 of a core in its event loop
is its end. For sizes there are two limits from the same interleaved rounds: one copy of the array in memory
(memcpy), and as many bytes over bare TCP on the loopback device, 40 bytes back.
"""

from __future__ import annotations

import contextlib
import os
import sys

import numpy as np
from harness import SHAPES, Options, Report, Rounds, Server, finish, interleave, seconds

BARE, OURS, BATCHED = "bare grpc.aio, prepared bytes", "`model.predict`", "`model.batched().predict`"
LOOPBACK, MEMCPY = "limit: loopback TCP", "limit: memcpy"

CLIENTS = {
    BARE: {"client": "grpc.aio"},
    OURS: {"client": "predict, bound"},
    BATCHED: {"client": "predict, batched"},
}
#: Calls at a time -> calls per turn, rounds.
CONCURRENCY = {1: (300, 12), 16: (1280, 12), 64: (2560, 12), 256: (5120, 9), 1024: (8192, 7)}
#: Shape sent -> calls per turn, rounds.
SIZES = {
    (1, 784): (300, 12),
    (8, 784): (240, 12),
    (64, 784): (120, 12),
    (1, 224, 224, 3): (60, 12),
    (4, 224, 224, 3): (24, 10),
    (16, 224, 224, 3): (8, 10),
    (32, 224, 224, 3): (6, 10),
}
#: Payload -> calls at a time, calls per turn, rounds.
CONNECTIONS = {"3 KB": (64, 1280, 7), "600 KB": (16, 96, 7)}
NUMBERS = (1, 2, 4)
#: Share of a core at which an event loop is taken to be busy all the time.
BUSY = 0.85


def limit_of(client: float, server: float, servers: int = 1) -> str:
    """What keeps calls from coming faster, from the cores that the client and each server kept busy."""
    if np.isnan(server):
        return ""
    if client + servers * server >= 0.93 * (os.cpu_count() or 1):
        return "all cores of the machine"
    if max(client, server) >= BUSY:
        return "client CPU" if client >= server else "server CPU"
    return "neither is busy: waiting"


def busy(found: Rounds, label: str) -> tuple[str, str, str]:
    """Cores that the client and the server kept busy, and what that says."""
    client, server = found.median(label, "cores"), found.median(label, "server_cores")
    return f"{client:.2f}", f"{server:.2f}", limit_of(client, server)


def by_concurrency(report: Report, options: Options) -> None:
    rows = []
    with Server(SHAPES["3 KB"], "rows") as server:
        for concurrency, (calls, rounds) in CONCURRENCY.items():
            if options.quick and concurrency > 16:
                continue
            found = interleave(
                server,
                CLIENTS,
                calls=max(options.calls(calls), concurrency),
                concurrency=concurrency,
                rounds=options.rounds(rounds),
            )
            for label in CLIENTS:
                rate = 1 / found.median(label, "wall_per_call")
                p50, p99 = found.latency(label, 0.5), found.latency(label, 0.99)
                for kind, value in (("rate", rate), ("p50", p50), ("p99", p99)):
                    report.figures[kind, concurrency, label] = value
                rows.append(
                    (
                        str(concurrency),
                        label,
                        f"{rate:,.0f}",
                        "" if label == BARE else found.ratio(BARE, label, "wall_per_call").ratio,
                        seconds(p50),
                        seconds(p99),
                        seconds(found.median(label)),
                        seconds(found.median(label, "server_cpu_per_call")),
                        *busy(found, label),
                    )
                )
    report.text("By calls at a time: requests of 3 KB (1x784 float32), one connection, one server.")
    report.table(
        (
            "calls at a time",
            "client",
            "calls per second",
            "to bare",
            "p50",
            "p99",
            "CPU time per call, client",
            "server",
            "cores, client",
            "server",
            "limit",
        ),
        rows,
    )


def by_size(report: Report, options: Options) -> None:
    rows = []
    labels = {
        MEMCPY: {"client": "memcpy"},
        LOOPBACK: {"client": "loopback"},
        BARE: {"client": "grpc.aio"},
        OURS: {"client": "predict, bound"},
    }
    for shape, (calls, rounds) in SIZES.items():
        if options.quick and shape not in ((1, 784), (1, 224, 224, 3)):
            continue
        size = 4 * int(np.prod(shape))
        with Server(shape) as server:
            found = interleave(
                server, labels, calls=options.calls(calls), concurrency=1, rounds=options.rounds(rounds)
            )
        for label in labels:
            bandwidth = size / found.median(label, "wall_per_call")
            report.figures["bandwidth", size, label] = bandwidth
            limit = label in (MEMCPY, LOOPBACK)
            rows.append(
                (
                    f"{size:,}",
                    label,
                    f"{bandwidth / 1e6:,.0f}",
                    "" if label == LOOPBACK else found.ratio(label, LOOPBACK, "wall_per_call").ratio,
                    seconds(found.latency(label, 0.5)),
                    seconds(found.latency(label, 0.99)),
                    seconds(found.median(label)),
                    *(("", "", "") if limit else busy(found, label)),
                )
            )
    report.text("By size of the request: one call at a time, 40 bytes back.")
    report.table(
        (
            "bytes",
            "client",
            "MB per second",
            "time, to loopback",
            "p50",
            "p99",
            "CPU time per call, client",
            "cores, client",
            "server",
            "limit",
        ),
        rows,
    )


def by_connections(report: Report, options: Options) -> None:
    rows = []
    for payload, (concurrency, calls, rounds) in CONNECTIONS.items():
        if options.quick and payload != "3 KB":
            continue
        for endpoints in NUMBERS[:2] if options.quick else NUMBERS:
            with contextlib.ExitStack() as stack:
                servers = [stack.enter_context(Server(SHAPES[payload])) for _ in range(endpoints)]
                targets = [server.target for server in servers]
                labels = {
                    number: {"client": "predict, bound", "connections": number, "targets": targets}
                    for number in NUMBERS
                }
                found = interleave(
                    servers[0],
                    {str(number): settings for number, settings in labels.items()},
                    calls=max(options.calls(calls), concurrency),
                    concurrency=concurrency,
                    rounds=options.rounds(rounds),
                )
            for number in NUMBERS:
                label = str(number)
                rate = 1 / found.median(label, "wall_per_call")
                name = f"{endpoints} endpoint{'s' if endpoints > 1 else ''}"
                report.figures[f"connections {payload}", number, name] = rate
                # Servers share the load: each is about as busy as the first.
                client, server = found.median(label, "cores"), found.median(label, "server_cores")
                rows.append(
                    (
                        payload,
                        str(concurrency),
                        str(endpoints),
                        label,
                        f"{rate:,.0f}",
                        "" if number == 1 else found.ratio("1", label, "wall_per_call").ratio,
                        seconds(found.latency(label, 0.5)),
                        seconds(found.latency(label, 0.99)),
                        f"{client:.2f}",
                        f"{endpoints * server:.2f}",
                        limit_of(client, server, endpoints),
                    )
                )
    report.text("By endpoints (server processes on this machine) and connections to each of them.")
    report.table(
        (
            "request",
            "calls at a time",
            "endpoints",
            "connections to each",
            "calls per second",
            "to one connection",
            "p50",
            "p99",
            "cores, client",
            "all servers",
            "limit",
        ),
        rows,
    )


def run(options: Options) -> Report:
    report = Report("scaling", "What it scales with, and to where")
    report.text(
        "Medians over interleaved rounds. Cores are how many of them each process kept busy: "
        "a curve that no longer rises has met what the last column names. The clients' event loop and gRPC's "
        "threads share a process, of which Python runs one thread at a time."
    )
    by_concurrency(report, options)
    by_size(report, options)
    by_connections(report, options)
    return report


if __name__ == "__main__":
    sys.exit(finish(run(Options.from_arguments(__doc__))))
