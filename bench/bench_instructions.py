"""Instructions of the codec and the call path, counted by callgrind, beside a committed baseline.

    python bench/bench_instructions.py            exit code 1 if a case takes 5 % more than the baseline
    python bench/bench_instructions.py --update   make what is measured now the baseline

Unlike time, a count is the same on a busy machine and a quiet one, so CI can hold changes to it. What is
counted are the machine instructions of one iteration in user space: a process that makes the case N times
more than another one, in which nothing else differs, executes that many more (`instructions_case.py`).

Counts depend on the interpreter and on the libraries that come compiled, so the baseline in
`instructions.json` is kept for each combination of versions and each kind of processor. Where there is none
for what is installed, that is said, and nothing is judged. Exit code 2 if valgrind is missing.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

from harness import HERE, environment

BASELINE = HERE / "instructions.json"
TOLERANCE = 0.05
#: Cases at most; None for all of them. `run.py --quick` sets it to 1.
FEWEST: int | None = None
_COLLECTED = re.compile(r"Collected : (\d+)")

#: Case -> iterations that are counted: some fifty million instructions, beside which what differs between
#: processes (a hundred thousand in a billion) is little.
ITERATIONS: Mapping[str, int] = {
    "encode 3 KB": 8000,
    "encode 10 inputs": 1000,
    "decode 1x10 float_val": 8000,
    "decode 1x10 float_val, first of its kind": 1000,
    "decode 1M float_val": 8000,
    "decode 1M int64_val below 128": 40,
    "predict": 1000,
    "predict of a handle": 1000,
    "predict of a batched handle, alone": 1000,
}


def versions() -> str:
    """What counts depend on, as the baseline names it."""
    found = [f"{platform.machine()} {platform.python_implementation()} {platform.python_version()}"]
    found += [f"{name} {importlib.metadata.version(name)}" for name in ("numpy", "protobuf", "grpcio")]
    return ", ".join(found)


def total(folder: str, case: str, iterations: int) -> int:
    """Instructions of a whole process that makes `case` that many times, beside the warm-up of all."""
    valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    if shutil.which("setarch"):
        # Where memory lies decides the order of sets of objects.
        valgrind = ["setarch", platform.machine(), "--addr-no-randomize", *valgrind]
    done = run_case(folder, case, iterations, valgrind)
    found = _COLLECTED.search(done.stderr)
    if done.returncode or found is None:
        raise RuntimeError(f"{case!r} under valgrind ended with code {done.returncode}:\n{done.stderr}")
    return int(found[1])


def run_case(
    folder: str, case: str, iterations: int, before: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    script = os.path.join(folder, "bench", "instructions_case.py")
    same = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": folder}
    return subprocess.run(
        [*before, sys.executable, script, str(iterations), case],
        capture_output=True,
        text=True,
        check=False,
        env={**environment(), **same},
    )


def measure(cases: Sequence[str]) -> dict[str, int]:
    """Instructions of one iteration of each case."""
    with tempfile.TemporaryDirectory(prefix="aioserving-bench-") as folder:
        # A copy: nothing that is edited meanwhile, and compiled anew, comes in between.
        ignored = shutil.ignore_patterns("__pycache__", ".*", "results")
        for name in ("aioserving", "bench"):
            shutil.copytree(HERE.parent / name, os.path.join(folder, name), ignore=ignored)
        # Once without valgrind: modules are compiled and kept, which no counted process then does.
        done = run_case(folder, cases[0], 1)
        if done.returncode:
            raise RuntimeError(f"{cases[0]!r} ended with code {done.returncode}:\n{done.stderr}")
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
            without = threads.submit(total, folder, cases[0], 0)
            counted = {case: threads.submit(total, folder, case, ITERATIONS[case]) for case in cases}
            return {
                case: round((future.result() - without.result()) / ITERATIONS[case])
                for case, future in counted.items()
            }


def compare(counts: Mapping[str, int], known: Mapping[str, int] | None, tolerance: float) -> tuple[str, bool]:
    """A table of the counts beside those of the baseline, and whether none is over it by too much."""
    lines = ["| case | instructions | baseline | to it | |", "| --- | ---: | ---: | ---: | --- |"]
    met = True
    for case, count in counts.items():
        base = None if known is None else known.get(case)
        if base is None:
            lines.append(f"| {case} | {count:,} | | | no baseline |")
            continue
        ratio = count / base
        good = ratio <= 1 + tolerance
        verdict = "REGRESSION" if not good else "better: --update" if ratio < 1 - tolerance else "met"
        met &= good
        lines.append(f"| {case} | {count:,} | {base:,} | {ratio:.3f}x | {verdict} |")
    return "\n".join(lines), met


def update(path: pathlib.Path, counts: Mapping[str, int]) -> None:
    """Make `counts` those of the versions installed; what is there of other versions, or cases, stays."""
    everything = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    everything[versions()] = {**everything.get(versions(), {}), **counts}
    path.write_text(json.dumps(everything, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, compare and print; without arguments, as from `run.py`, a missing valgrind is only said."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cases", nargs="*", help=f"which ones: {'; '.join(ITERATIONS)}; all if not given")
    parser.add_argument("--update", action="store_true", help="write the baseline instead of judging by it")
    parser.add_argument("--quick", action="store_true", help="only one case")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="share; default: %(default)s")
    parser.add_argument("--baseline", type=pathlib.Path, default=BASELINE, help="file; default: %(default)s")
    found = parser.parse_args([] if arguments is None else arguments)
    for case in found.cases:
        if case not in ITERATIONS:
            parser.error(f"no case {case!r}: there are {', '.join(ITERATIONS)}")
    if shutil.which("valgrind") is None:
        print(
            "Left out: instructions are counted by valgrind, which is not installed (apt install valgrind)."
        )
        return 0 if arguments is None else 2
    counts = measure(found.cases or list(ITERATIONS)[: 1 if found.quick else FEWEST])
    if found.update:
        update(found.baseline, counts)
    everything = json.loads(found.baseline.read_text(encoding="utf-8")) if found.baseline.exists() else {}
    known = everything.get(versions())
    table, met = compare(counts, known, found.tolerance)
    print(table)
    print(f"\nCounted with {versions()}; a case may take {found.tolerance:.0%} more than the baseline.")
    if known is None:
        print(
            f"No baseline for these versions in {found.baseline.name}, nothing is judged; --update adds it."
        )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
