"""What importing the clients costs in time and memory, beside the libraries it stands on and the alternative.

    python bench/bench_import.py

Each import runs in an interpreter of its own, in turns; the time is that of the import statement alone,
the memory the whole process's peak. The alternative is what the official recipe imports, which runs
TensorFlow's `__init__`.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
from collections.abc import Mapping

from harness import Bar, Options, Report, Spread, environment, finish, megabytes, seconds

#: Peak memory of `import aioserving`, at most, in MB; time in terms of `import grpc, numpy`.
MEMORY_GOAL, TIME_GOAL = 60, 1.5

# ru_maxrss would not do on Linux: a new process starts with the peak of the one that forked it.
PROBE = """
import sys, time
wall, cpu = time.perf_counter(), time.process_time()
{statement}
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
import json
try:
    with open("/proc/self/status") as file:
        peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
except OSError:
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
loaded = [name for name in sys.modules if name.split(".")[0] == "tensorflow"]
print(json.dumps(dict(wall=wall, cpu=cpu, peak=peak, tensorflow=len(loaded))))
"""

BASE = "import grpc, numpy"
OURS = "from aioserving import AsyncClient"  # `import aioserving` alone loads nothing yet
READY = "import aioserving; aioserving.PredictRequest"
OFFICIAL = "import tensorflow_serving.apis.predict_pb2"


def probe(statement: str) -> dict[str, float]:
    """Run one import in a new interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(statement=statement)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    if done.returncode:
        raise RuntimeError(f"{statement} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def run(options: Options) -> Report:
    report = Report("import", "Importing")
    rounds = options.rounds(25)
    # TensorFlow takes so long that a few times tell enough.
    counts: Mapping[str, int] = {
        BASE: rounds,
        OURS: rounds,
        READY: rounds,
        OFFICIAL: (1 if options.quick else max(3, rounds // 5)) if options.tensorflow else 0,
    }
    statements = [statement for statement, count in counts.items() if count]
    for statement in statements:
        probe(statement)  # compiles modules, and brings the files into memory
    found: dict[str, list[dict[str, float]]] = {statement: [] for statement in statements}
    shuffled = random.Random(0)
    for index in range(rounds):
        order = [statement for statement in statements if index < counts[statement]]
        shuffled.shuffle(order)
        for statement in order:
            found[statement].append(probe(statement))

    def ratio(statement: str, figure: str) -> Spread:
        pairs = zip(found[statement], found[BASE], strict=False)
        return Spread.of([ours[figure] / base[figure] for ours, base in pairs])

    def median(statement: str, figure: str) -> float:
        return statistics.median(probed[figure] for probed in found[statement])

    report.text(
        f"Medians of {rounds} fresh interpreters each (fewer for TensorFlow), in turns; the range holds the "
        "middle half. Modules are compiled and in the page cache."
    )
    report.table(
        ("statement", "time", "CPU time", f"in terms of `{BASE}`", "peak memory", "TensorFlow loaded"),
        [
            (
                f"`{statement}`",
                seconds(median(statement, "wall")),
                seconds(median(statement, "cpu")),
                ratio(statement, "wall").ratio,
                megabytes(median(statement, "peak")),
                "yes" if median(statement, "tensorflow") else "no",
            )
            for statement in statements
        ],
    )
    if OFFICIAL not in statements:
        report.text("TensorFlow's own row is left out.")
    report.bars = [
        Bar(f"time of `{OURS}`", TIME_GOAL, ratio(OURS, "wall").median),
        Bar("its peak memory", MEMORY_GOAL, median(OURS, "peak") / 1e6, " MB"),
        Bar("its modules of TensorFlow", 0, max(probed["tensorflow"] for probed in found[OURS]), " modules"),
    ]
    return report


if __name__ == "__main__":
    sys.exit(finish(run(Options.from_arguments(__doc__))))
