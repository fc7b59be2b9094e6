"""10,000 requests of handwritten digits: gRPC against REST, by the number of images in a request.

    python bench/bench_mnist.py

The comparison that clients of TensorFlow Serving are known by: images of 784 floats (scikit-learn's real
digits, scaled to 28x28), one model that says which digit it is, and requests of 1, 4, 8 and 16 images, over
gRPC and over REST. It is made twice. With aioserving.testing's server, which runs the model and whose REST
interface is Python: what both sides cost is in the figures, and REST's server parses and renders JSON. With
answers that were prepared before: what remains are the clients, HTTP and gRPC. What REST's time becomes less
by is the share of the Python server.

Figures are seconds for 10,000 requests, from turns of fewer. Needs scikit-learn and `requests`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any

from harness import Bar, Options, Report, Rounds, Server, finish, interleave, is_installed, seconds

REQUESTS = 10_000
BATCH_SIZES = (1, 4, 8, 16)
AT_A_TIME, BATCHED_AT_A_TIME = 64, 256
GOAL = 100.0

REST, AIOHTTP = "REST, `requests`, one at a time", f"REST, aiohttp, {AT_A_TIME} at a time"
RECIPE = "official recipe, blocking, one at a time"
CLIENT = "`Client.predict`, one at a time"
ASYNC = f"`AsyncClient.predict`, {AT_A_TIME} at a time"
BATCHED = f"`batched().predict`, {BATCHED_AT_A_TIME} at a time"

#: Client of worker.py, calls at a time, calls per turn and images in a request.
CLIENTS: dict[str, tuple[str, int, int]] = {
    REST: ("REST, requests", 1, 200),
    AIOHTTP: ("REST, aiohttp", AT_A_TIME, 256),
    RECIPE: ("recipe, blocking", 1, 400),
    CLIENT: ("predict, blocking", 1, 1000),
    ASYNC: ("predict, bound", AT_A_TIME, 2000),
    BATCHED: ("predict, batched", BATCHED_AT_A_TIME, 10_000),
}
#: What answers: label -> kind of `server.py`.
SERVERS = {"aioserving.testing": "model", "prepared answers": "rows"}


def write_digits(path: str) -> None:
    """Write scikit-learn's 1,797 digits of 8x8 pixels as 28x28, from 0 to 1; the last column is the label."""
    import numpy as np
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    small = pixels.reshape(-1, 8, 8) / 16
    # Bilinear: each of the 28 places lies between two of the 8.
    places = np.linspace(0, 7, 28)
    lower = np.minimum(places.astype(int), 6)
    weights = np.zeros((28, 8))
    weights[np.arange(28), lower] = 1 - (places - lower)
    weights[np.arange(28), lower + 1] = places - lower
    images = np.einsum("ir,nrc,jc->nij", weights, small, weights).reshape(len(small), 784)
    np.save(path, np.column_stack([images, labels]).astype(np.float32))


def clients_of(size: int, options: Options) -> dict[str, dict[str, Any]]:
    """The clients with their settings; turns of larger requests have fewer of them."""
    found = {}
    for label, (client, concurrency, calls) in CLIENTS.items():
        if (label == AIOHTTP and not is_installed("aiohttp")) or (label == RECIPE and not options.tensorflow):
            continue
        # JSON takes its time for every image.
        fewer = max(calls // size, concurrency) if client.startswith("REST") else calls
        found[label] = {
            "client": client,
            "calls": options.calls(fewer),
            "concurrency": min(concurrency, options.calls(fewer)),
        }
    return found


def measure(report: Report, options: Options, images: str) -> None:
    rows, shares = [], []
    for size in BATCH_SIZES[:1] if options.quick else BATCH_SIZES:
        taken: dict[str, Rounds] = {}
        for name, kind in SERVERS.items():
            clients = clients_of(size, options)
            with Server((size, 784), kind, images) as server:
                found = taken[name] = interleave(
                    server,
                    clients,
                    calls=1,
                    concurrency=1,
                    rounds=options.rounds(10),
                    warm_up=8 if options.quick else 512,
                )
            for label in clients:
                faster = found.ratio(REST, label, "wall_per_call")
                middle = f"{faster.median:.1f}x ({faster.low:.1f} to {faster.high:.1f})"
                wall = found.median(label, "wall_per_call")
                rows.append(
                    (
                        str(size),
                        name,
                        label,
                        f"{wall * REQUESTS:.2f} s",
                        "" if label == REST else middle,
                        f"{1 / wall:,.0f}",
                        seconds(found.median(label)),
                        seconds(found.median(label, "server_cpu_per_call")),
                    )
                )
                report.figures[name, size, label] = wall * REQUESTS
                if size == 1 and kind == "model" and label == BATCHED:
                    what = "10,000 requests of one image, batched, to REST with `requests`"
                    report.bars.append(Bar(what, GOAL, faster.median, least=True))
        model, constant = taken["aioserving.testing"], taken["prepared answers"]
        with_server = model.median(REST, "wall_per_call")
        without = constant.median(REST, "wall_per_call")
        shares += [
            (
                str(size),
                f"{1 - without / with_server:.0%}",
                label,
                f"{model.ratio(REST, label, 'wall_per_call').median:.1f}x",
                f"{constant.ratio(REST, label, 'wall_per_call').median:.1f}x",
            )
            for label in (CLIENT, ASYNC, BATCHED)
        ]
    report.table(
        (
            "images in a request",
            "server",
            "client",
            "10,000 requests",
            "faster than REST",
            "requests per second",
            "CPU time per request, client",
            "CPU time per request, server",
        ),
        rows,
    )
    report.text(
        "How much of that is the Python REST server's own: the share of the time of REST (`requests`, one at "
        "a time) that is gone when its answers are prepared before, and how many times faster gRPC is with "
        "either server. The real server's REST interface is C++ and lies between the two."
    )
    report.table(
        (
            "images in a request",
            "the Python REST server's share of REST's time",
            "client",
            "faster than REST: aioserving.testing",
            "faster than REST: prepared answers",
        ),
        shares,
    )


def run(options: Options) -> Report:
    report = Report("mnist", "10,000 digits: gRPC against REST")
    missing = [name for name in ("sklearn", "requests") if not is_installed(name)]
    if missing:
        report.text(f"Left out: needs {' and '.join(missing)}.")
        return report
    report.text(
        "Seconds for 10,000 requests, from turns of 200 and more in interleaved rounds (batched: turns of "
        "10,000); one client process, one server process, one machine. Ratios are medians of those of single "
        "rounds, the range holds the middle half. REST with `requests` is a session with keep-alive; with "
        "aiohttp each of the calls at a time has a connection. Clients encode every request and make arrays "
        "of every answer."
    )
    with tempfile.TemporaryDirectory(prefix="aioserving-bench-") as folder:
        images = os.path.join(folder, "digits.npy")
        write_digits(images)
        measure(report, options, images)
    return report


if __name__ == "__main__":
    sys.exit(finish(run(Options.from_arguments(__doc__))))
