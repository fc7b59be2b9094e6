"""predict beside what people use today: the official recipe, over grpc.aio and blocking.

    python bench/bench_peers.py

The recipe is TensorFlow Serving's own: `tf.make_tensor_proto` into a PredictRequest, the generated stub,
`tf.make_ndarray` on the answer. It gets the same channel options (message limits lifted) and deadline.
Needs TensorFlow.
"""

from __future__ import annotations

import sys

from harness import SHAPES, Options, Report, Server, finish, interleave, seconds

OURS, RECIPE = "`await AsyncClient.predict`", "official recipe, grpc.aio"
OURS_BLOCKING, RECIPE_BLOCKING = "`Client.predict`", "official recipe, blocking"

CLIENTS = {
    OURS: {"client": "predict"},
    RECIPE: {"client": "recipe, grpc.aio"},
    OURS_BLOCKING: {"client": "predict, blocking"},
    RECIPE_BLOCKING: {"client": "recipe, blocking"},
}

#: Payload, calls at a time, calls per turn, rounds.
CASES = (("3 KB", 1, 200, 24), ("3 KB", 32, 960, 24), ("19 MB", 1, 4, 15), ("19 MB", 8, 8, 9))


def run(options: Options) -> Report:
    report = Report("peers", "Beside the official recipe")
    if not options.tensorflow:
        report.text("Left out: the official recipe needs TensorFlow.")
        return report
    report.text(
        "Client process only, all threads; the server is the same for all. Each recipe is compared with the "
        "aioserving client of the same kind: medians of the ratios of single rounds, and the range that "
        "holds the middle half. With blocking clients, calls at a time are threads."
    )
    rows = []
    rivals = {RECIPE: OURS, RECIPE_BLOCKING: OURS_BLOCKING}
    # Importing TensorFlow takes most of a quick run: once is enough.
    clients = {label: CLIENTS[label] for label in (OURS, RECIPE)} if options.quick else CLIENTS
    for size in ("3 KB",) if options.quick else dict.fromkeys(case[0] for case in CASES):
        with Server(SHAPES[size]) as server:
            for case_size, concurrency, calls, rounds in CASES:
                if case_size != size or (options.quick and concurrency > 1):
                    continue
                found = interleave(
                    server,
                    clients,
                    calls=max(options.calls(calls), concurrency),
                    concurrency=concurrency,
                    rounds=options.rounds(rounds),
                    generations=1 if options.quick else 2,
                )
                for label in clients:
                    ours = rivals.get(label)
                    rows.append(
                        (
                            size,
                            str(concurrency),
                            label,
                            seconds(found.median(label)),
                            "" if ours is None else found.ratio(label, ours).ratio,
                            seconds(found.latency(label, 0.5)),
                            "" if ours is None else found.ratio(label, ours, "median_latency").ratio,
                            f"{1 / found.median(label, 'wall_per_call'):,.1f}",
                        )
                    )
                    report.figures[size, concurrency, label] = found.median(label)
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
