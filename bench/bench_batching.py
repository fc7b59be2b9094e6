"""One row per call: batched, plain and by the official recipe, by the number of callers.

    python bench/bench_batching.py

Every call carries one row of 784 floats (3 KB); the server answers as many rows of ten scores as it was sent.
`batched()` is used as it comes: up to 128 rows, 2 ms, two batches under way. The recipe gets the same channel
options and deadline; blocking callers are threads. Needs TensorFlow for the recipe.
"""

from __future__ import annotations

import sys

from harness import SHAPES, Bar, Options, Report, Server, finish, interleave, seconds

BATCHED, PLAIN = "`model.batched().predict`", "`model.predict`"
RECIPE, RECIPE_BLOCKING = "official recipe, grpc.aio", "official recipe, blocking"

CLIENTS = {
    BATCHED: {"client": "predict, batched"},
    PLAIN: {"client": "predict, bound"},
    RECIPE: {"client": "recipe, grpc.aio"},
    RECIPE_BLOCKING: {"client": "recipe, blocking"},
}

#: Callers, calls per turn of the batched client and of the others, rounds.
CASES = ((1, 300, 300, 18), (64, 9_600, 640, 12), (256, 25_600, 768, 12))

#: Calls per second in terms of the official recipe over grpc.aio, at least.
GOALS = {64: 10.0, 256: 20.0}


def run(options: Options) -> Report:
    report = Report("batching", "Batching, one row per call")
    clients = {
        label: settings
        for label, settings in CLIENTS.items()
        if options.tensorflow or "recipe" not in settings["client"]
    }
    if not options.tensorflow:
        report.text("The official recipe is left out: it needs TensorFlow.")
    report.text(
        "Client process only, all threads; the server is the same for all and answers each row. Ratios are "
        "medians of those of single rounds, with the range that holds the middle half."
    )
    rows = []
    with Server(SHAPES["3 KB"], "rows") as server:
        for concurrency, many, few, rounds in CASES:
            if options.quick and concurrency > 64:
                continue
            # Threads by the hundred are nobody's way of calling; they only slow everything down.
            taking_part = {
                label: {
                    **settings,
                    "calls": max(options.calls(many if label == BATCHED else few), concurrency),
                }
                for label, settings in clients.items()
                if label != RECIPE_BLOCKING or concurrency <= 64
            }
            found = interleave(
                server,
                taking_part,
                calls=few,
                concurrency=concurrency,
                rounds=options.rounds(rounds),
                generations=1 if options.quick else 2,
            )
            for label in taking_part:
                rate = 1 / found.median(label, "wall_per_call")
                report.figures["3 KB", concurrency, label] = rate
                rows.append(
                    (
                        str(concurrency),
                        label,
                        f"{rate:,.0f}",
                        "" if label == BATCHED else found.ratio(label, BATCHED, "wall_per_call").ratio,
                        seconds(found.median(label)),
                        "" if label == BATCHED else found.ratio(label, BATCHED).ratio,
                        seconds(found.latency(label, 0.5)),
                        seconds(found.latency(label, 0.99)),
                    )
                )
            if concurrency == 1:
                lonely = found.ratio(BATCHED, PLAIN, "median_latency").median
                report.bars.append(Bar("a lonely caller: latency, batched to plain", 1.05, lonely))
            elif RECIPE in taking_part:
                faster = found.ratio(RECIPE, BATCHED, "wall_per_call").median
                what = f"{concurrency} callers: calls per second, batched to official recipe"
                report.bars.append(Bar(what, GOALS[concurrency], faster, least=True))
    report.table(
        (
            "callers",
            "client",
            "calls per second",
            "batched is faster by",
            "CPU time per call",
            "to batched",
            "p50",
            "p99",
        ),
        rows,
    )
    return report


if __name__ == "__main__":
    sys.exit(finish(run(Options.from_arguments(__doc__))))
