"""CPU time of the client for one `await predict(...)`, beside a bare grpc.aio call of prepared bytes.

    python bench/bench_predict.py

The bare call sends a request that was encoded before, and does not look at the answer: what remains is
gRPC. Everything above it (checking the input, encoding, the pool, deadlines, decoding the answer) is
aioserving's. The channel has the same options and the call the same deadline.

For 19 MB further rows tell apart what aioserving changes beside the call: its channel options, and how
malloc is told to keep large blocks. In the last one the bare call makes its bytes from the array each
time, with one copy, which a client that is given an array cannot do without.
"""

from __future__ import annotations

import sys

from harness import SHAPES, Bar, Options, Report, Server, finish, interleave, seconds

SMALL_GOAL, LARGE_GOAL = 1.25, 1.10
BASE = "grpc.aio"

#: Label -> client of worker.py.
SMALL = {
    "bare grpc.aio": BASE,
    "bare grpc.aio, no deadline": "grpc.aio, no deadline",
    "`client.predict`": "predict",
    "`client.model(...).predict`": "predict, bound",
    "`predict(validate=False)`": "predict, validate=False",
}
LARGE = {
    "bare grpc.aio": BASE,
    "bare grpc.aio, grpcio's own options": "grpc.aio, own options",
    "bare grpc.aio, malloc told to keep blocks": "grpc.aio, malloc tuned",
    "bare grpc.aio, that and bytes made from the array": "grpc.aio, from array",
    "`client.predict`": "predict",
    "`client.model(...).predict`": "predict, bound",
}


def run(options: Options) -> Report:
    report = Report("predict", "CPU time of predict")
    report.text(
        "CPU time of the client process per call, all its threads (gRPC's too), and the median latency. "
        "Ratios are medians of those of single rounds to the bare call; the range holds the middle half."
    )
    cases = (
        ("3 KB", SMALL, 1, 1000, 15, SMALL_GOAL),
        ("3 KB", SMALL, 32, 6400, 15, SMALL_GOAL),
        ("19 MB", LARGE, 1, 6, 24, LARGE_GOAL),
        ("19 MB", LARGE, 8, 8, 12, None),
    )
    rows = []
    servers = {name: Server(SHAPES[name]) for name in dict.fromkeys(case[0] for case in cases)}
    try:
        for size, clients, concurrency, calls, rounds, goal in cases:
            if options.quick and concurrency > 1:
                continue
            labels = {
                label: {"client": client}
                for label, client in clients.items()
                if not options.quick or client in (BASE, "predict", "predict, bound")
            }
            labels |= options.others("`client.predict`", "predict")
            found = interleave(
                servers[size],
                labels,
                calls=max(options.calls(calls), concurrency),
                concurrency=concurrency,
                rounds=options.rounds(rounds),
                generations=options.generations,
            )
            base = "bare grpc.aio"
            for label in labels:
                ratio = found.ratio(label, base)
                rows.append(
                    (
                        size,
                        str(concurrency),
                        label,
                        seconds(found.median(label)),
                        "" if label == base else ratio.ratio,
                        seconds(found.latency(label, 0.5)),
                        "" if label == base else found.ratio(label, base, "median_latency").ratio,
                        f"{found.median(label, 'faults_per_call'):.1f}",
                    )
                )
                if goal is not None and label in clients and label.startswith("`client"):
                    report.bars.append(Bar(f"{size}, {concurrency} at a time, {label}", goal, ratio.median))
    finally:
        for server in servers.values():
            server.close()
    report.table(
        (
            "request",
            "calls at a time",
            "client",
            "CPU time per call",
            "to bare",
            "median latency",
            "to bare",
            "page faults per call",
        ),
        rows,
    )
    return report


if __name__ == "__main__":
    sys.exit(finish(run(Options.from_arguments(__doc__))))
