"""What surviving faults costs when there are none: CPU time of `predict` of 3 KB with everything switched on.

    python bench/bench_resilience.py --against PATH

PATH is a checkout whose pool has none of it: no health, no retries, no hedging, no limits. The client has two
endpoints, which are two names of one server. With `--against` the goal is a ratio to that plain pool; the
ratio to bare grpc.aio calls of prepared bytes, to both endpoints in turn, has a goal in any case.
"""

from __future__ import annotations

import sys

from harness import SHAPES, Bar, Options, Report, Server, finish, interleave, seconds

PLAIN_GOAL, BARE_GOAL = 1.08, 1.25
BARE, BARE_FLEET = "bare grpc.aio", "bare grpc.aio, two endpoints in turn"
FLEET, EVERYTHING = "two endpoints", "two endpoints, everything switched on"


def run(options: Options) -> Report:
    report = Report("resilience", "What resilience costs")
    report.text(
        "CPU time of the client process per call, all its threads (gRPC's too), and the median latency, of "
        "`model.predict` of 3 KB. All calls carry a token. Switched on are hedging (after a second, which no "
        "call takes), an adaptive limit, credentials and an observer, beside what always is: balancing, "
        "health, retries, the circuit. The goals are to a client of the same kind: the plain pool has both "
        "endpoints, too, and so has the bare client that calls them in turn; what a second connection costs "
        "gRPC is seen from the bare client that has only one. Ratios are medians of those of single rounds; "
        "the range holds the middle half."
    )
    labels = {
        BARE: {"client": "grpc.aio, token"},
        BARE_FLEET: {"client": "grpc.aio, fleet"},
        FLEET: {"client": "predict, fleet"},
        EVERYTHING: {"client": "predict, everything"},
        **options.others(FLEET, "predict, fleet"),
    }
    plain = f"{FLEET}, other"
    rows = []
    server = Server(SHAPES["3 KB"])
    try:
        for concurrency, calls in ((1, 1000), (32, 6400)):
            found = interleave(
                server,
                labels,
                calls=max(options.calls(calls), concurrency),
                concurrency=concurrency,
                rounds=options.rounds(15),
                generations=options.generations,
            )
            for label in labels:
                to_bare = found.ratio(label, BARE)
                to_floor = found.ratio(label, BARE_FLEET)
                to_plain = found.ratio(label, plain) if plain in labels else None
                rows.append(
                    (
                        str(concurrency),
                        label,
                        seconds(found.median(label)),
                        "" if label == BARE else to_bare.ratio,
                        to_floor.ratio if label not in (BARE, BARE_FLEET) else "",
                        to_plain.ratio if to_plain is not None and label in (FLEET, EVERYTHING) else "",
                        seconds(found.latency(label, 0.5)),
                    )
                )
                if label in (FLEET, EVERYTHING):
                    name = f"{label}, {concurrency} at a time"
                    report.bars.append(Bar(f"{name}, to bare grpc.aio", BARE_GOAL, to_floor.median))
                    if to_plain is not None:
                        report.bars.append(Bar(f"{name}, to the plain pool", PLAIN_GOAL, to_plain.median))
    finally:
        server.close()
    report.table(
        (
            "calls at a time",
            "client",
            "CPU time per call",
            "to bare",
            "to bare, two endpoints",
            "to plain pool",
            "median latency",
        ),
        rows,
    )
    return report


if __name__ == "__main__":
    sys.exit(finish(run(Options.from_arguments(__doc__))))
