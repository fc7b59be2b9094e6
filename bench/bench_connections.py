"""Calls per second and CPU time with one, two and four connections to one endpoint.

    python bench/bench_connections.py

What `PoolOptions.connections_per_endpoint` and `open_another_at` should be by default. The server is one
Python process, so calls per second of small requests show its limit sooner than the client's; CPU time per
call is the client's alone.
"""

from __future__ import annotations

import sys

from harness import SHAPES, Options, Report, Server, Spread, finish, interleave, seconds

CONNECTIONS = (1, 2, 4)

#: Payload -> (calls at a time, calls per turn, rounds).
CASES = {
    "3 KB": ((1, 200, 18), (16, 960, 36), (64, 1280, 36)),
    "600 KB": ((1, 60, 15), (16, 128, 15), (64, 192, 15)),
    "19 MB": ((1, 4, 9), (16, 16, 9), (64, 64, 5)),
}


def run(options: Options) -> Report:
    report = Report("connections", "How many connections")
    report.text(
        "`client.predict` to one endpoint; ratios to one connection are medians of those of single rounds, "
        "the range holds the middle half."
    )
    rows = []
    labels = {count: f"{count}" for count in CONNECTIONS}
    for size, cases in CASES.items():
        if options.quick and size != "600 KB":
            continue
        with Server(SHAPES[size]) as server:
            for concurrency, calls, rounds in cases:
                if options.quick and concurrency != 16:
                    continue
                found = interleave(
                    server,
                    {label: {"client": "predict", "connections": count} for count, label in labels.items()},
                    calls=max(options.calls(calls), concurrency),
                    concurrency=concurrency,
                    rounds=options.rounds(rounds),
                    generations=options.generations,
                    warm_up=max(options.calls(calls) // 2, concurrency),
                )
                for label in labels.values():
                    # Rates, not times, so that more is better; hence the base on top.
                    rate = Spread.of(
                        [
                            base.wall_per_call / turn.wall_per_call
                            for turn, base in zip(found.turns[label], found.turns[labels[1]], strict=True)
                        ]
                    )
                    one = label == labels[1]
                    rows.append(
                        (
                            size,
                            str(concurrency),
                            label,
                            f"{1 / found.median(label, 'wall_per_call'):,.1f}",
                            "" if one else rate.ratio,
                            seconds(found.median(label)),
                            "" if one else found.ratio(label, labels[1]).ratio,
                            seconds(found.latency(label, 0.5)),
                            seconds(found.latency(label, 0.99)),
                        )
                    )
                    report.figures[size, concurrency, label] = rate.median
    report.table(
        (
            "request",
            "calls at a time",
            "connections",
            "calls per second",
            "to one",
            "CPU time per call",
            "to one",
            "median latency",
            "99th percentile",
        ),
        rows,
    )
    return report


if __name__ == "__main__":
    sys.exit(finish(run(Options.from_arguments(__doc__))))
