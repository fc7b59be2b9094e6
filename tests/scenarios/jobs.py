"""Models, files and a process for the stories of jobs.

    python -m tests.scenarios.jobs '{"targets": "127.0.0.1:8500", "model": "m", ...}'

runs a job as `run_job` does, and prints its summary as JSON.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import numpy as np

from aioserving.testing import CallableServable, StatusCode, StatusError

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

#: Rows whose first value is this are refused by the server.
POISON = -1.0


def sums(version: int = 1, pause: float = 0.0) -> CallableServable:
    """Input ``x`` float32 (-1, 4); outputs ``y``, the rows' sums, and ``v``, the version, for each row."""

    def run(x: Any) -> dict[str, Any]:
        if pause:
            time.sleep(pause)
        if (x[:, 0] == POISON).any():
            raise StatusError(StatusCode.INVALID_ARGUMENT, "a poisoned row")
        return {"y": x.sum(axis=1, dtype=np.float32), "v": np.full(len(x), version, np.int64)}

    return CallableServable(
        run,
        inputs={"x": ("float32", (None, 4))},
        outputs={"y": ("float32", (None,)), "v": ("int64", (None,))},
        inline=not pause,
    )


def slow_sums() -> CallableServable:
    """`sums` that takes four milliseconds a call."""
    return sums(pause=0.004)


def rows(count: int, poison: tuple[int, ...] = (), start: int = 0) -> Any:
    """A table of `count` rows: ``id``, their number, and ``x``, which tells them apart."""
    import pyarrow as pa

    values = np.random.default_rng(start).random((count, 4), dtype=np.float32)
    values[list(poison), 0] = POISON
    x = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 4)
    return pa.table({"id": pa.array(np.arange(start, start + count)), "x": x})


def expected(table: Any) -> list[dict[str, Any]]:
    """What a job by version 1 of `sums` makes of a table, with ``id`` kept."""
    x = np.stack(table.column("x").to_numpy(zero_copy_only=False)) if len(table) else np.empty((0, 4))
    y = x.sum(axis=1, dtype=np.float32).tolist()
    return [
        {"id": number, "y": value, "v": 1}
        for number, value in zip(table.column("id").to_pylist(), y, strict=True)
    ]


def output(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a finished job's output, part by part."""
    import pyarrow.parquet as pq

    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob("part-*.parquet")):
        found += pq.read_table(path).to_pylist()
    return found


def manifest(folder: pathlib.Path) -> Any:
    return json.loads((folder / "_aioserving" / "manifest.json").read_text())


def start(setup: str = "", **settings: Any) -> subprocess.Popen[str]:
    """A process that runs a job; `setup` is executed first in it."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.scenarios.jobs", json.dumps(settings), setup],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def main() -> None:
    settings = json.loads(sys.argv[1])
    exec(sys.argv[2], {})
    from aioserving.jobs import run_job

    print("ready", flush=True)
    summary = run_job(settings.pop("targets"), **settings)
    print(json.dumps(summary.to_json()), flush=True)


if __name__ == "__main__":
    main()
