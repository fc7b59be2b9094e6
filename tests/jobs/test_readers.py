"""What is particular to each format: where rows of text end, checksums of records, arrays of numpy."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs the extra `batch`")
pytest.importorskip("fsspec", reason="needs the extra `batch`")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from aioserving.jobs.errors import InputError
from aioserving.jobs.inputs import Cursor, Inputs, open_inputs
from aioserving.jobs.readers import parquet, text
from aioserving.jobs.readers.crc32c import crc32c, crc32c_many
from aioserving.jobs.readers.tfrecord import write_tfrecord


def rows_of(inputs: Inputs, **options: Any) -> list[dict[str, Any]]:
    return [row for piece in inputs.pieces(**options) for row in piece.batch.to_pylist()]


# -- Parquet ------------------------------------------------------------------------------------------


def test_nulls_in_lists_of_fixed_size_are_read_by_any_pyarrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where pyarrow cannot read them itself, they and what stands beside them come as they were written."""
    tensor = pa.fixed_shape_tensor(pa.float32(), [2, 2])
    columns = {
        "pair": pa.array([[1, 2], None, [3, None], [4, 5]], pa.list_(pa.float32(), 2)),
        "nested": pa.array([[[1], [2]], [[3], None], None, [[4], [5]]], pa.list_(pa.list_(pa.int8(), 1), 2)),
        "tensor": pa.ExtensionArray.from_storage(
            tensor, pa.array([[1, 2, 3, 4], None, None, [5, 6, 7, 8]], tensor.storage_type)
        ),
        "word": pa.array(["a", "b", None, "a"]).dictionary_encode(),
        "time": pa.array([1, 2, 3, None], pa.timestamp("us", tz="Europe/Berlin")),
    }
    table = pa.table({**columns, "number": pa.array(range(4), pa.uint16())})
    pq.write_table(
        pa.concat_tables([table, table.slice(0, 1), table]), tmp_path / "f.parquet", row_group_size=4
    )
    wanted = [*table.to_pylist(), *table.slice(0, 1).to_pylist(), *table.to_pylist()]
    for since in (parquet._READS_NULLS, 1_000_000):
        monkeypatch.setattr(parquet, "_READS_NULLS", since)
        inputs = open_inputs(tmp_path / "f.parquet")
        pieces = list(inputs.pieces(piece_rows=3))
        assert all(piece.batch.schema.equals(table.schema) for piece in pieces)
        assert [row for piece in pieces for row in piece.batch.to_pylist()] == wanted
        assert rows_of(inputs, start=Cursor(0, 6), columns=["pair"]) == [
            {"pair": row["pair"]} for row in wanted[6:]
        ]


def test_lists_without_nulls_are_read_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The detour is for row groups that have nulls; where they are not counted, for all."""
    monkeypatch.setattr(parquet, "_READS_NULLS", 1_000_000)
    opened: list[Any] = []
    loosely = parquet._open_loosely
    monkeypatch.setattr(parquet, "_open_loosely", lambda file: (opened.append(file), loosely(file))[1])
    kind = pa.list_(pa.float32(), 2)
    table = pa.table({"pair": pa.array([[1, 2], [3, 4]], kind), "other": pa.array([None, 1.0])})
    pq.write_table(table, tmp_path / "f.parquet")
    assert rows_of(open_inputs(tmp_path / "f.parquet")) == table.to_pylist()
    assert opened == []
    pq.write_table(table, tmp_path / "g.parquet", write_statistics=False)
    assert rows_of(open_inputs(tmp_path / "g.parquet")) == table.to_pylist()
    assert len(opened) == 1


# -- CSV ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_csv_rows_are_those_of_pythons_reader(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever stands in quotes, and wherever blocks end, rows are those that Python's csv module reads."""
    cell = st.text(st.sampled_from('ab,"\n;\u00e9'), max_size=6)
    rows = data.draw(st.lists(st.tuples(cell, cell), min_size=1, max_size=30))
    newline = data.draw(st.sampled_from(["\n", "\r\n"]))
    sink = io.StringIO()
    writer = csv.writer(
        sink, lineterminator=newline, quoting=data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    )
    writer.writerow(["a", "b"])
    writer.writerows(rows)
    file = tmp_path_factory.mktemp("csv") / "f.csv"
    content = sink.getvalue()
    if data.draw(st.booleans()):
        content = content.removesuffix(newline)
    file.write_bytes((b"\xef\xbb\xbf" if data.draw(st.booleans()) else b"") + content.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "_BLOCK", data.draw(st.integers(1, 200)))
        inputs = open_inputs(file, types={"a": "string", "b": "string"})
        cursors = [
            piece.cursor_at(n) for piece in inputs.pieces(piece_rows=3) for n in range(1, len(piece) + 1)
        ]
        assert [(row["a"], row["b"]) for row in rows_of(inputs)] == rows
        cut = data.draw(st.integers(0, len(rows) - 1))
        found = [row for piece in inputs.pieces(start=cursors[cut]) for row in piece.batch.to_pylist()]
        assert [(row["a"], row["b"]) for row in found] == rows[cut + 1 :]


def test_csv_dialects(tmp_path: Path) -> None:
    """Tabs by the name, other delimiters, no quotes, no header, nulls and blank lines."""
    file = tmp_path / "f.tsv"
    file.write_text("a\tb\n1\tx,y\n\n2\t\n\n")
    assert rows_of(open_inputs(file)) == [{"a": 1, "b": "x,y"}, {"a": 2, "b": ""}]
    file.write_text('1;5" pipe\n-;z\n')
    inputs = open_inputs(file, delimiter=";", quote="", column_names=["n", "what"], null_values=["-"])
    assert rows_of(inputs) == [{"n": 1, "what": '5" pipe'}, {"n": None, "what": "z"}]
    assert [row["a"] for row in rows_of(open_inputs(_write(tmp_path / "g.csv", "a,b\n1.5,\n,2\n")))] == [
        1.5,
        None,
    ]
    with pytest.raises(InputError, match="not even a header is in it; files without one need column_names="):
        open_inputs(_write(tmp_path / "h.csv", ""))
    with pytest.raises(InputError, match="two columns 'a'"):
        open_inputs(_write(tmp_path / "i.csv", "a,a\n1,2\n"))


def _write(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def test_bad_rows_of_csv_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value of another type, a missing one and an open quote are told of with file, row and text."""
    monkeypatch.setattr(text, "_BLOCK", 64)
    good = "".join(f"{i},x{i}\n" for i in range(50))
    file = tmp_path / "f.csv"
    for line, why in (
        ("oops,y", "invalid value 'oops'"),
        ("7", "Expected 2 columns, got 1"),
        ("1,2,3", "got 3"),
    ):
        file.write_text(f"a,b\n{good}{line}\n{good}")
        with pytest.raises(InputError) as caught:
            rows_of(open_inputs(file))
        assert (caught.value.url, caught.value.row) == (str(file), 50)
        assert why in str(caught.value)
        assert repr(line) in str(caught.value)
    file.write_text(f'a,b\n{good}1,"open\n{good}')
    with pytest.raises(InputError, match="a quote is opened and never closed; a quote inside a value"):
        rows_of(open_inputs(file))


# -- JSON lines ---------------------------------------------------------------------------------------


def test_json_lines(tmp_path: Path) -> None:
    """Members may be missing and in any order; texts stay texts; types hold from the first file on."""
    _write(tmp_path / "a0.jsonl", "")
    _write(tmp_path / "a1.jsonl", '{"x": 1, "when": "2026-01-01 10:00:00"}\n\n{"x": 2.5}\r\n')
    _write(tmp_path / "a2.jsonl", '{"when": null, "more": [1], "x": 3}')
    inputs = open_inputs(tmp_path)
    assert inputs.schema == pa.schema([("x", pa.float64()), ("when", pa.string())])
    assert rows_of(inputs) == [
        {"x": 1.0, "when": "2026-01-01 10:00:00"},
        {"x": 2.5, "when": None},
        {"x": 3.0, "when": None},
    ]
    for line, why in (
        ('{"x": "3"}', "changed from number to string"),
        ('{"x": 3', "JSON parse error"),
        ("[1]", "array"),
    ):
        _write(tmp_path / "a2.jsonl", f'{{"x": 1}}\n{{"x": 2}}\n{line}\n')
        with pytest.raises(InputError) as caught:
            rows_of(open_inputs([tmp_path / "a1.jsonl", tmp_path / "a2.jsonl"]))
        assert caught.value.row == 2
        assert caught.value.url == str(tmp_path / "a2.jsonl")
        assert why in str(caught.value)
    _write(tmp_path / "b.jsonl", '{"x": 1} {"x": 2}\n')
    with pytest.raises(InputError, match="1 lines were read as 2 rows"):
        rows_of(open_inputs(tmp_path / "b.jsonl"))


# -- TFRecord -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_crc32c_of_known_data(data: bytes, crc: int) -> None:
    """The checksum is the one of RFC 3720's examples."""
    assert crc32c(data) == crc
    assert crc32c_many(b"xyz" + data + b"!", [3], [len(data)]).tolist() == [crc]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.binary(max_size=300) | st.integers(0, 3000).map(lambda n: bytes([n % 251]) * n), max_size=5)
)
def test_crc32c_of_many_is_that_of_each(parts: list[bytes]) -> None:
    """Computed side by side, checksums are those of a loop over the bytes."""

    def slowly(data: bytes) -> int:
        state = 0xFFFFFFFF
        for byte in data:
            state ^= byte
            for _ in range(8):
                state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
        return state ^ 0xFFFFFFFF

    starts = np.cumsum([0, *map(len, parts)])[:-1] if parts else []
    found = crc32c_many(b"".join(parts), starts, [len(part) for part in parts])
    assert found.tolist() == [slowly(part) for part in parts]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_damaged_record_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whichever byte of a TFRecord file is changed, the record that it is in is named, no other."""
    records = data.draw(st.lists(st.binary(max_size=40), min_size=1, max_size=6))
    file = tmp_path_factory.mktemp("records") / "f.tfrecord"
    write_tfrecord(file, records)
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    ends = np.cumsum([len(record) + 16 for record in records])
    damaged = int(np.searchsorted(ends, place, side="right"))
    with pytest.raises(InputError) as caught:
        rows_of(open_inputs(file))
    assert caught.value.row == damaged
    begin = ([0, *ends.tolist()])[damaged]
    assert f"the record at byte {begin} cannot be read" in str(caught.value)


def test_records_are_tensorflows(tmp_path: Path) -> None:
    """Files that TensorFlow writes are read, and those written here are read by TensorFlow."""
    tf = pytest.importorskip("tensorflow", reason="needs TensorFlow")
    records = [b"", b"a" * 3, b"b" * 1000]
    for compression in ("", "GZIP"):
        theirs, ours = str(tmp_path / "theirs.tfrecord"), tmp_path / "ours.tfrecord"
        with tf.io.TFRecordWriter(theirs, tf.io.TFRecordOptions(compression)) as writer:
            for record in records:
                writer.write(record)
        assert [row["example"] for row in rows_of(open_inputs(theirs))] == records
        assert write_tfrecord(ours, records, gzip=bool(compression)) == 3
        found = tf.data.TFRecordDataset(str(ours), compression).as_numpy_iterator()
        assert list(found) == records


def test_records_larger_than_a_block(tmp_path: Path) -> None:
    """A record of several megabytes comes whole, and `column` names it."""
    record = np.random.default_rng(1).bytes(7_000_001)
    write_tfrecord(tmp_path / "f.tfrecord", [b"x", record, b"y"])
    assert rows_of(open_inputs(tmp_path / "f.tfrecord", column="e")) == [
        {"e": b"x"},
        {"e": record},
        {"e": b"y"},
    ]


# -- numpy --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    "dtype", ["bool", "int16", ">i4", "uint64", "float16", "float32", ">f8", "datetime64[s]", "U3", "S3"]
)
def test_npy_of_any_dtype(tmp_path: Path, dtype: str, order: Any) -> None:
    """Arrays of any dtype that Arrow knows, in either order of axes and of bytes, keep their values."""
    array = np.asarray(np.arange(210).reshape(7, 5, 6) % 120, order=order).astype(dtype)
    np.save(tmp_path / "f.npy", array)
    inputs = open_inputs(tmp_path / "f.npy")
    assert inputs.rows == 7
    rows = [row["values"] for row in rows_of(inputs, piece_rows=3)]
    expected = array.astype(array.dtype.newbyteorder("=")).tolist()
    found = [row.tolist() if hasattr(row, "tolist") else np.array(row).reshape(5, 6).tolist() for row in rows]
    assert found == [[list(line) for line in row] for row in expected]


def test_npz_and_structured_arrays(tmp_path: Path) -> None:
    """Arrays of a .npz and fields of a structured array are columns; lengths have to agree."""
    structured = np.array([(1, [0.5, 1.5]), (2, [2.5, 3.5])], [("id", "i4"), ("x", "f4", (2,))])
    np.savez_compressed(tmp_path / "f.npz", rows=structured, more=np.array([b"a", b"b"]))
    inputs = open_inputs(tmp_path / "f.npz")
    assert inputs.schema.names == ["id", "x", "more"]
    assert [(row["id"], row["more"], np.asarray(row["x"]).tolist()) for row in rows_of(inputs)] == [
        (1, b"a", [0.5, 1.5]),
        (2, b"b", [2.5, 3.5]),
    ]
    np.savez(tmp_path / "g.npz", a=np.zeros(2), b=np.zeros(3))
    with pytest.raises(InputError, match="different numbers of rows: 'a': 2, 'b': 3"):
        open_inputs(tmp_path / "g.npz")
    with zipfile.ZipFile(tmp_path / "h.npz", "w"):
        pass
    with pytest.raises(InputError, match="it has no arrays"):
        open_inputs(tmp_path / "h.npz")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.float32(1), "is a single value: rows are along the first axis"),
        (np.array([{}], object), "holds Python objects"),
        (np.zeros(2, np.complex64), "is complex64, which Arrow has no type for"),
        (np.zeros((2, 0)), r"has rows of shape \(0,\), without a value"),
    ],
)
def test_arrays_that_are_no_rows(tmp_path: Path, array: Any, message: str) -> None:
    """What has no rows, or none that can be held, is refused by name; Python objects are never unpickled."""
    np.save(tmp_path / "f.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=message):
        open_inputs(tmp_path / "f.npy")


def test_files_of_another_kind(tmp_path: Path) -> None:
    """Whatever the name says, a file of something else is an error with its name, not rows."""
    for ending in ("parquet", "arrow", "npy", "npz", "tfrecord"):
        file = tmp_path / f"f.{ending}"
        for content in (gzip.compress(b"something else"), json.dumps({"a": 1}).encode() * 9, b"\x00" * 100):
            file.write_bytes(content)
            with pytest.raises(InputError, match=f"f.{ending}"):
                rows_of(open_inputs(file))
