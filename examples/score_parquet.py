"""Score a Parquet file, be killed in the middle, and go on where it stopped.

    python examples/score_parquet.py

A model that adds up four numbers is served by aioserving.testing, so no TensorFlow is needed; with a server
of your own, `run_job("host:8500", ...)` is all there is to it. Needs ``pip install 'aioserving[batch]'``.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from aioserving.jobs import run_job
from aioserving.testing import CallableServable, ServerProcess

ROWS = 60_000


def model() -> CallableServable:
    """What is served: the sum of a row, at a millisecond a call."""

    def run(x: Any) -> dict[str, Any]:
        time.sleep(0.001)
        return {"total": x.sum(axis=1)}

    return CallableServable(
        run, inputs={"x": ("float32", (None, 4))}, outputs={"total": ("float32", (None,))}
    )


def write_rows(path: pathlib.Path) -> None:
    """Rows with an id, and a list of four numbers each."""
    numbers = np.arange(ROWS * 4, dtype=np.float32) % 100
    x = pa.FixedSizeListArray.from_arrays(pa.array(numbers), 4)
    pq.write_table(pa.table({"id": np.arange(ROWS), "x": x}), path, row_group_size=10_000)


def score(target: str, folder: str) -> None:
    """The job: the same whenever and however often it is run."""
    summary = run_job(
        target,
        model="totals",
        input=f"{folder}/rows.parquet",
        output=f"{folder}/scores",
        keep=["id"],
        batch_size=64,
        part_rows=5_000,
        max_in_flight=4,
    )
    print(summary)


def main() -> None:
    here = pathlib.Path(__file__)
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(
            callables={"totals": f"{here.stem}:model"}, env={"PYTHONPATH": str(here.parent)}
        ) as server,
    ):
        write_rows(pathlib.Path(folder, "rows.parquet"))
        job = subprocess.Popen([sys.executable, str(here), server.target, folder])
        while job.poll() is None and len(list(pathlib.Path(folder).glob("scores/part-*"))) < 3:
            time.sleep(0.01)
        job.kill()
        job.wait()
        print("killed")
        score(server.target, folder)
        table = pq.read_table(f"{folder}/scores")
        expected = pq.read_table(f"{folder}/rows.parquet").column("x").combine_chunks().flatten().to_numpy()
        assert table.column("id").to_numpy().tolist() == list(range(ROWS))
        assert np.array_equal(table.column("total").to_numpy(), expected.reshape(-1, 4).sum(axis=1))
        print(f"{table.num_rows:,} rows, each once")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        score(*sys.argv[1:])
    else:
        main()
