"""The same rows as files of every format, for the tests of what reads them."""

from __future__ import annotations

import bz2
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.json
import pyarrow.parquet

from aioserving.jobs.readers.tfrecord import write_tfrecord

__all__ = ["WRITERS", "table", "write_arrow", "write_stream"]


def table(rows: int, *, first: int = 0) -> pa.Table:
    """Columns ``id``, ``name`` and ``values`` (three float64), which tell rows apart."""
    ids = np.arange(first, first + rows)
    values = np.stack([ids * 0.5, ids * 0.25, -ids], axis=1).reshape(-1) if rows else np.empty(0)
    return pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "name": pa.array([f"row {i}" if i % 7 else f'"{i}",\n{i}' for i in ids.tolist()], pa.string()),
            "values": pa.FixedSizeListArray.from_arrays(pa.array(values, pa.float64()), 3).cast(
                pa.list_(pa.float64())
            ),
        }
    )


def write_arrow(path: Path, rows: pa.Table, chunk: int = 40) -> None:
    with pa.ipc.new_file(str(path), rows.schema) as writer:
        for batch in rows.to_batches(max_chunksize=chunk):
            writer.write_batch(batch)


def write_stream(path: Path, rows: pa.Table, chunk: int = 40) -> None:
    with pa.ipc.new_stream(str(path), rows.schema) as writer:
        for batch in rows.to_batches(max_chunksize=chunk):
            writer.write_batch(batch)


def _parquet(path: Path, rows: pa.Table) -> None:
    pa.parquet.write_table(rows, str(path), row_group_size=50)


def _csv(path: Path, rows: pa.Table) -> None:
    path.write_bytes(_csv_bytes(rows))


def _csv_bytes(rows: pa.Table) -> bytes:
    sink = io.BytesIO()
    pa.csv.write_csv(rows.select(["id", "name"]), sink)
    return sink.getvalue()


def _csv_bz2(path: Path, rows: pa.Table) -> None:
    path.write_bytes(bz2.compress(_csv_bytes(rows)))


def _jsonl(path: Path, rows: pa.Table) -> None:
    path.write_bytes(_json_bytes(rows))


def _jsonl_gz(path: Path, rows: pa.Table) -> None:
    path.write_bytes(gzip.compress(_json_bytes(rows)))


def _json_bytes(rows: pa.Table) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows.to_pylist())


def _npy(path: Path, rows: pa.Table) -> None:
    np.save(path, np.array(rows.column("id")))


def _arrays(rows: pa.Table) -> dict[str, Any]:
    values = np.array(rows.column("values").to_pylist(), np.float64).reshape(len(rows), 3)
    return {"id": np.array(rows.column("id")), "values": values}


def _npz(path: Path, rows: pa.Table) -> None:
    np.savez(path, **_arrays(rows))


def _npz_compressed(path: Path, rows: pa.Table) -> None:
    np.savez_compressed(path, **_arrays(rows))


def _records(rows: pa.Table) -> list[bytes]:
    return [b"record %d" % i + b"." * (i % 11) for i in rows.column("id").to_pylist()]


def _tfrecord(path: Path, rows: pa.Table) -> None:
    write_tfrecord(path, _records(rows))


def _tfrecord_gz(path: Path, rows: pa.Table) -> None:
    write_tfrecord(path, _records(rows), gzip=True)


#: By the ending of the file's name: what writes `table`'s rows to it, as far as the format can hold them.
WRITERS: dict[str, Callable[[Path, pa.Table], None]] = {
    ".parquet": _parquet,
    ".arrow": write_arrow,
    ".arrows": write_stream,
    ".csv": _csv,
    ".csv.bz2": _csv_bz2,
    ".jsonl": _jsonl,
    ".jsonl.gz": _jsonl_gz,
    ".npy": _npy,
    ".npz": _npz,
    ".compressed.npz": _npz_compressed,
    ".tfrecord": _tfrecord,
    ".gzipped.tfrecord": _tfrecord_gz,
}
