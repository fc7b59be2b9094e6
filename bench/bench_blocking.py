"""Latency of the blocking `Client.predict`, beside a native blocking grpc stub with prepared bytes.

    python bench/bench_blocking.py

A native stub blocks in gRPC's C core on the calling thread. `Client` hands each call to the event loop's
thread and waits for it, which costs two changes of thread. Each of them wakes a core that fell asleep
when the machine is otherwise idle, and does not when it is busy: the ratio is larger on an idle machine.
"""

from __future__ import annotations

import sys

from harness import SHAPES, Bar, Options, Report, Server, finish, interleave, seconds

GOAL = 1.25
BASE = "native blocking stub"
CLIENTS = {
    BASE: {"client": "grpc, blocking"},
    "`Client.predict`": {"client": "predict, blocking"},
    "`await AsyncClient.predict`": {"client": "predict"},
}


def run(options: Options) -> Report:
    report = Report("blocking", "Latency of the blocking client")
    report.text(
        "3 KB per call. Ratios of medians are taken within a round; the range holds the middle half of the "
        "rounds. The 99th percentile is that of all calls. With 8 callers (threads, or tasks) latency is "
        "mostly waiting for the processor, and calls per second tell more."
    )
    rows = []
    clients = CLIENTS | options.others("`Client.predict`", "predict, blocking")
    with Server(SHAPES["3 KB"]) as server:
        for concurrency, calls, rounds in ((1, 1500, 15), (8, 2400, 12)):
            found = interleave(
                server,
                clients,
                calls=max(options.calls(calls), concurrency),
                concurrency=concurrency,
                rounds=options.rounds(rounds),
                generations=options.generations,
            )
            for label in clients:
                ratio = found.ratio(label, BASE, "median_latency")
                own = label == BASE
                rows.append(
                    (
                        str(concurrency),
                        label,
                        seconds(found.median(label, "median_latency")),
                        "" if own else ratio.ratio,
                        seconds(found.latency(label, 0.99)),
                        f"{1 / found.median(label, 'wall_per_call'):,.0f}",
                        seconds(found.median(label)),
                        "" if own else found.ratio(label, BASE).ratio,
                    )
                )
                if concurrency == 1 and label == "`Client.predict`":
                    report.bars.append(Bar("median latency of `Client.predict`", GOAL, ratio.median))
    report.table(
        (
            "callers",
            "client",
            "median latency",
            "to native",
            "99th percentile",
            "calls per second",
            "CPU time per call",
            "to native",
        ),
        rows,
    )
    return report


if __name__ == "__main__":
    sys.exit(finish(run(Options.from_arguments(__doc__))))
