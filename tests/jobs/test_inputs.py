"""Files as rows: which files, in what order, from any row on, and nothing that changes unnoticed."""

from __future__ import annotations

import gc
import http.server
import json
import os
import pickle
import random
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs the extra `batch`")
pytest.importorskip("fsspec", reason="needs the extra `batch`")

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet

from aioserving.jobs.errors import InputChanged, InputError
from aioserving.jobs.inputs import Cursor, Inputs, Piece, open_inputs
from aioserving.jobs.readers import text, tfrecord
from tests.jobs.files import WRITERS, table, write_arrow, write_stream

ENDINGS = list(WRITERS)


def rows_of(inputs: Inputs, start: Cursor | None = None, **options: Any) -> list[dict[str, Any]]:
    """All rows from a place on."""
    return [row for piece in inputs.pieces(start=start, **options) for row in piece.batch.to_pylist()]


def cursors_of(inputs: Inputs, **options: Any) -> list[Cursor]:
    """The place behind every row, and before the first."""
    found = [Cursor()]
    for piece in inputs.pieces(**options):
        assert piece.start == found[-1] or piece.start == Cursor(piece.start.file)
        found += [piece.cursor_at(n) for n in range(1, len(piece) + 1)]
        assert found[-1] == piece.end
    return found


def write(path: Path, ending: str, rows: int, *, first: int = 0) -> Path:
    file = path.with_name(path.name + ending)
    WRITERS[ending](file, table(rows, first=first))
    return file


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that rows lie across their borders."""
    monkeypatch.setattr(text, "_BLOCK", 61)
    monkeypatch.setattr(tfrecord, "_BLOCK", 61)


# -- every format -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
def test_all_rows_come_in_order(tmp_path: Path, ending: str, small_blocks: None) -> None:
    """Every row of a file comes once, in its order, with its values, whatever the format."""
    inputs = open_inputs(write(tmp_path / "f", ending, 130))
    rows = rows_of(inputs, piece_rows=32)
    expected = table(130).to_pylist()
    if "tfrecord" in ending:
        assert rows == [{"example": b"record %d" % i + b"." * (i % 11)} for i in range(130)]
    elif ending == ".npy":
        assert rows == [{"values": i} for i in range(130)]
    else:
        found = [dict(row) for row in rows]
        if "npz" in ending:
            for row in found:
                row["values"] = np.asarray(row["values"]).tolist()
        assert found == [{name: row[name] for name in found[0]} for row in expected]
        assert set(found[0]) >= {"id"}
    assert inputs.rows in (130, None)


@pytest.mark.parametrize("ending", ENDINGS)
def test_reading_goes_on_behind_any_row(tmp_path: Path, ending: str, small_blocks: None) -> None:
    """From the place behind any row, in any process and with any size of pieces, exactly the rest is read."""
    for part in range(3):
        write(tmp_path / f"part-{part}", ending, 45, first=45 * part)
    inputs = open_inputs(tmp_path)
    everything = rows_of(inputs)
    assert len(everything) == 135
    cursors = cursors_of(inputs, piece_rows=16)
    # The end of a file and the beginning of the next are two places between the same two rows.
    assert len(cursors) == 136
    choice = random.Random(ending)
    again = open_inputs(tmp_path)
    for row in [0, 1, 44, 45, 46, 134, 135, *choice.sample(range(136), 12)]:
        cursor = Cursor.from_json(json.loads(json.dumps(cursors[row].to_json())))
        assert rows_of(again, cursor, piece_rows=choice.randint(1, 50)) == everything[row:]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_replaced_file_is_noticed_while_it_is_read(tmp_path: Path, ending: str, small_blocks: None) -> None:
    """A file replaced in mid-run gives no row more: neither of its old content nor of its new one."""
    file = write(tmp_path / "f", ending, 130)
    inputs = open_inputs(file, piece_bytes=600)
    pieces = inputs.pieces(piece_rows=8)
    next(pieces)
    other = write(tmp_path / "g", ending, 130)
    os.utime(other, ns=(1, 1))
    os.replace(other, file)
    with pytest.raises(InputChanged, match="was replaced or written to") as caught:
        next(pieces)
    assert caught.value.url == str(file)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_cut_off_while_it_is_read_is_noticed(tmp_path: Path, ending: str, small_blocks: None) -> None:
    """A file that is cut off in mid-run raises an error instead of ending early, or ending the process."""
    file = write(tmp_path / "f", ending, 130)
    inputs = open_inputs(file, piece_bytes=600)
    pieces = inputs.pieces(piece_rows=8)
    next(pieces)
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(InputChanged, match=r"had \d+ bytes when the job listed it and has \d+ now"):
        list(pieces)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_changed_before_it_is_read_is_noticed(tmp_path: Path, ending: str) -> None:
    """A later file that changed while the ones before it were read raises before its first row."""
    write(tmp_path / "part-0", ending, 10)
    second = write(tmp_path / "part-1", ending, 10, first=10)
    inputs = open_inputs(tmp_path)
    pieces = inputs.pieces()
    assert len(next(pieces)) == 10
    os.utime(second, ns=(1, 1))
    with pytest.raises(InputChanged):
        next(pieces)
    second.unlink()
    with pytest.raises(InputChanged, match="is gone"):
        list(inputs.pieces(start=Cursor(1)))


@pytest.mark.parametrize("ending", [e for e in ENDINGS if e not in (".csv", ".jsonl")])
def test_a_broken_file_is_an_error_with_its_name(tmp_path: Path, ending: str, small_blocks: None) -> None:
    """A file that was cut off before the job saw it raises `InputError` with its name, at any place."""
    file = write(tmp_path / "f", ending, 130)
    whole = file.read_bytes()
    for size in (len(whole) - 9, len(whole) // 2, 30, 1):
        file.write_bytes(whole[:size])
        with pytest.raises(InputError) as caught:
            rows_of(open_inputs(file))
        assert str(file) in str(caught.value)
        assert not isinstance(caught.value, InputChanged)


@pytest.mark.parametrize("ending", ENDINGS)
def test_empty_and_single_rows(tmp_path: Path, ending: str) -> None:
    """No rows are no pieces; one row is one; and a file without rows among others changes nothing."""
    nothing = write(tmp_path / "a0", ending, 0)
    empty = open_inputs(nothing)
    assert rows_of(empty) == []
    assert not empty.rows
    one = write(tmp_path / "a1", ending, 1)
    assert len(rows_of(open_inputs(one))) == 1
    if ending != ".csv":  # whose columns without values are text
        both = open_inputs(tmp_path)
        assert [piece.start.file for piece in both.pieces()] == [1]
        assert len(rows_of(both)) == 1


@pytest.mark.parametrize("ending", ENDINGS)
def test_files_are_closed(tmp_path: Path, ending: str) -> None:
    """Neither the end of the rows nor leaving them early keeps a file open."""
    inputs = open_inputs(write(tmp_path / "f", ending, 130))
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    rows_of(inputs)
    pieces = inputs.pieces(piece_rows=8)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "ending", [".parquet", ".arrow", ".arrows", ".csv", ".jsonl", ".npy", ".npz", ".tfrecord"]
)
def test_resuming_does_not_read_what_is_before(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading on near the end reads a small part of the file, where the format allows."""
    monkeypatch.setattr(text, "_BLOCK", 4096)
    monkeypatch.setattr(tfrecord, "_BLOCK", 4096)
    file = tmp_path / f"f{ending}"
    if ending == ".parquet":
        pa.parquet.write_table(table(30_000), file, row_group_size=3000)
    elif ending in (".arrow", ".arrows"):
        (write_arrow if ending == ".arrow" else write_stream)(file, table(30_000), 3000)
    else:
        WRITERS[ending](file, table(30_000))
    size = file.stat().st_size
    fs = fsspec.filesystem("memory")
    fs.pipe(f"/resume/f{ending}", file.read_bytes())
    inputs = open_inputs(f"memory://resume/f{ending}")
    last = list(inputs.pieces(piece_rows=100))[-1]
    read = 0
    kind = type(fs.open(f"/resume/f{ending}", "rb"))
    for name in ("read", "readinto"):
        original = getattr(kind, name)

        def counted(self: Any, given: Any = -1, original: Any = original) -> Any:
            nonlocal read
            found = original(self, given)
            read += found if isinstance(found, int) else len(found)
            return found

        monkeypatch.setattr(kind, name, counted, raising=False)
    assert len(rows_of(inputs, last.start)) == len(last)
    fs.rm("/resume", recursive=True)
    assert 0 < read < size / 4


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl", ".npy", ".tfrecord"])
def test_pieces_are_bounded_by_bytes(tmp_path: Path, ending: str) -> None:
    """However large its rows, a piece is not much more than `piece_bytes`."""
    wide = np.random.default_rng(1).random((2000, 512))
    file = tmp_path / f"f{ending}"
    if ending == ".parquet":
        flat = pa.FixedSizeListArray.from_arrays(pa.array(wide.reshape(-1)), 512)
        pa.parquet.write_table(pa.table({"values": flat}), file)
    elif ending == ".npy":
        np.save(file, wide)
    elif ending == ".tfrecord":
        tfrecord.write_tfrecord(file, [row.tobytes() for row in wide])
    else:
        lines = [json.dumps({"values": "x" * 4096}) if ending == ".jsonl" else "y" * 4096 for _ in wide]
        file.write_text("\n".join(["", *lines] if ending == ".jsonl" else ["values", *lines]))
    pieces = list(open_inputs(file, piece_bytes=100_000).pieces())
    assert sum(map(len, pieces)) == 2000
    assert max(piece.batch.nbytes for piece in pieces) <= 110_000
    assert len(pieces) < 200


def test_memory_does_not_grow_with_a_row_group(tmp_path: Path) -> None:
    """A Parquet file of one row group of 100 MB is read in a small part of that."""
    rows = 400_000
    flat = pa.FixedSizeListArray.from_arrays(pa.array(np.random.default_rng(1).random(rows * 32)), 32)
    pa.parquet.write_table(
        pa.table({"values": flat}), tmp_path / "f.parquet", row_group_size=rows, use_dictionary=False
    )
    del flat
    inputs = open_inputs(tmp_path / "f.parquet")
    before = pa.total_allocated_bytes()
    peak = seen = 0
    for piece in inputs.pieces():
        seen += len(piece)
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert seen == rows
    assert peak < 24 << 20


# -- which files --------------------------------------------------------------------------------------


def test_folders_are_read_in_natural_order(tmp_path: Path) -> None:
    """Numbers in names count as numbers, and hidden files and those of other kinds are left out."""
    for number in (10, 9, 1, 2):
        write(tmp_path / f"part-{number}", ".parquet", 1, first=number)
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "part-0", ".parquet", 1, first=77)
    (tmp_path / "_temporary").mkdir()
    write(tmp_path / "_temporary" / "part-3", ".parquet", 1)
    write(tmp_path / ".hidden", ".parquet", 1)
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "README.md").write_text("not data")
    inputs = open_inputs(tmp_path)
    assert [row["id"] for row in rows_of(inputs)] == [1, 2, 9, 10, 77]
    assert [Path(file.url).name for file in inputs.files][:2] == ["part-1.parquet", "part-2.parquet"]
    assert all(file.format == "parquet" and file.size > 0 for file in inputs.files)


def test_patterns_and_lists(tmp_path: Path) -> None:
    """Patterns are expanded, several sources are read in the order given, and no file twice."""
    for number in range(4):
        write(tmp_path / f"part-{number}", ".csv", 1, first=number)
    assert [row["id"] for row in rows_of(open_inputs(f"{tmp_path}/part-[12].csv"))] == [1, 2]
    both = open_inputs([tmp_path / "part-3.csv", f"{tmp_path}/part-0*"])
    assert [row["id"] for row in rows_of(both)] == [3, 0]
    for day in (2, 10):
        (tmp_path / f"day={day}").mkdir()
        write(tmp_path / f"day={day}" / "f", ".csv", 1, first=100 + day).rename(
            tmp_path / f"day={day}" / "part"
        )
    folders = open_inputs(f"{tmp_path}/day=*", format="csv")
    assert [(row["id"], row["day"]) for row in rows_of(folders)] == [(102, 2), (110, 10)]
    with pytest.raises(InputError, match="named twice"):
        open_inputs([tmp_path, tmp_path / "part-3.csv"])


def test_partitions_become_columns(tmp_path: Path) -> None:
    """Folders ``key=value`` are columns: integers where all are, escapes undone, Hive's null a null."""
    for day, place in ((3, "B%2FA"), (12, "C"), (4, "__HIVE_DEFAULT_PARTITION__")):
        folder = tmp_path / f"day={day}" / f"place={place}"
        folder.mkdir(parents=True)
        write(folder / "f", ".parquet", 1, first=day)
    inputs = open_inputs(tmp_path)
    assert inputs.schema.field("day").type == pa.int64()
    assert inputs.schema.field("place").type == pa.string()
    assert [(row["id"], row["day"], row["place"]) for row in rows_of(inputs)] == [
        (3, 3, "B/A"),
        (4, 4, None),
        (12, 12, "C"),
    ]
    assert rows_of(inputs, columns=["day"]) == [{"day": 3}, {"day": 4}, {"day": 12}]
    assert rows_of(inputs, Cursor(1), columns=["place", "id"])[0] == {"place": None, "id": 4}
    assert "day" not in open_inputs(tmp_path, partitioning=None).schema.names
    # A partition that is asked for alone keeps its column.
    assert open_inputs(tmp_path / "day=12").schema.names == [*table(1).column_names, "day", "place"]


def test_what_is_not_there(tmp_path: Path) -> None:
    """No files, unknown endings and mixed formats are told of, each with what to do."""
    with pytest.raises(InputError, match="there is no such file or folder"):
        open_inputs(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no files found there whose names end in \.parquet, \.pq"):
        open_inputs(tmp_path)
    with pytest.raises(InputError, match="no files found there"):
        open_inputs(f"{tmp_path}/*.parquet")
    with pytest.raises(InputError, match="no files were named"):
        open_inputs([])
    odd = write(tmp_path / "f", ".csv", 3).rename(tmp_path / "data.txt")
    with pytest.raises(InputError, match=r"does not tell its format: say format= one of parquet"):
        open_inputs(odd)
    assert len(rows_of(open_inputs(odd, format="csv"))) == 3
    write(tmp_path / "f", ".jsonl", 1)
    write(tmp_path / "g", ".parquet", 1)
    with pytest.raises(InputError, match=r"it is parquet, .*f\.jsonl is jsonl: say which with format="):
        open_inputs(tmp_path)
    assert len(open_inputs(tmp_path, format="jsonl").files) == 1
    with pytest.raises(InputError, match="nope"):
        open_inputs("nope://bucket/x.parquet")
    with pytest.raises(ValueError, match="unknown format"):
        open_inputs(tmp_path, format="xls")
    with pytest.raises(InputError, match="no column 'x'; there are id, name, values"):
        open_inputs(tmp_path / "g.parquet").pieces(columns=["x"])
    with pytest.raises(InputError, match="there is no row 5"):
        rows_of(open_inputs(tmp_path / "g.parquet"), Cursor(0, 5))


def test_files_have_to_fit_together(tmp_path: Path) -> None:
    """Columns in another order or a type that keeps every value fit; a missing column and others do not."""

    def part(number: int, columns: dict[str, Any]) -> None:
        pa.parquet.write_table(pa.table(columns), tmp_path / f"part-{number}.parquet")

    part(0, {"a": pa.array([1, 2], pa.int64()), "b": pa.array([0.5, 1.5], pa.float64())})
    part(1, {"b": pa.array([2.5], pa.float32()), "a": pa.array([3], pa.int32()), "c": ["more"]})
    assert rows_of(open_inputs(tmp_path)) == [{"a": 1, "b": 0.5}, {"a": 2, "b": 1.5}, {"a": 3, "b": 2.5}]
    part(2, {"a": pa.array([4.0, 4.5]), "b": pa.array([0.0, 0.0])})
    inputs = open_inputs(tmp_path)
    with pytest.raises(InputError, match=r"part-2\.parquet, row 1: column 'a' holds 4\.5, which is no int64"):
        rows_of(inputs)
    part(2, {"a": [[1]], "b": [1.0]})
    with pytest.raises(
        InputError, match=r"part-2\.parquet.*column 'a' is list<.*>, that of .*part-0.* is int64"
    ):
        rows_of(open_inputs(tmp_path))
    part(2, {"a": [1]})
    with pytest.raises(
        InputError, match=r"part-2\.parquet: it has no column 'b', which .*part-0\.parquet has"
    ):
        open_inputs(tmp_path)


def test_types_can_be_said(tmp_path: Path) -> None:
    """`types` decides where files leave it open or say it otherwise, by pyarrow's types or their names."""
    file = tmp_path / "f.csv"
    file.write_text("a,b\n1,007\n2,008\n")
    inputs = open_inputs(file, types={"a": "float32", "b": pa.string()})
    assert inputs.schema.field("a").type == pa.float32()
    assert rows_of(inputs) == [{"a": 1.0, "b": "007"}, {"a": 2.0, "b": "008"}]
    with pytest.raises(InputError, match="names a column 'z'; there are a, b"):
        open_inputs(file, types={"z": "float32"})
    with pytest.raises(ValueError, match="pyarrow knows no type 'flaot'"):
        open_inputs(file, types={"a": "flaot"})
    tensor = pa.fixed_shape_tensor(pa.float32(), [3])
    jsonl = write(tmp_path / "g", ".jsonl", 5)
    found = open_inputs(jsonl, types={"values": pa.list_(pa.float32(), 3)})
    assert next(found.pieces()).batch.schema.field("values").type == pa.list_(pa.float32(), 3)
    assert next(open_inputs(jsonl, types={"values": tensor}).pieces()).batch.column("values").type == tensor


def test_fingerprints(tmp_path: Path) -> None:
    """The same files read in the same way have one fingerprint; a changed file or reading has another."""
    file = write(tmp_path / "f", ".csv", 3)
    first = open_inputs(file).fingerprint()
    assert open_inputs(str(file)).fingerprint() == first
    assert open_inputs(file, piece_bytes=1000).fingerprint() == first
    assert open_inputs(file, null_values=["-"]).fingerprint() != first
    assert open_inputs(file, types={"id": "float32"}).fingerprint() != first
    os.utime(file, ns=(1, 1))
    assert open_inputs(file).fingerprint() != first
    second = write(tmp_path / "g", ".csv", 3)
    one, other = open_inputs([file, second]).fingerprint(), open_inputs([second, file]).fingerprint()
    assert one != other


def test_cursors_from_elsewhere() -> None:
    """What is no cursor is refused when it is read, not when rows are missing."""
    assert Cursor.from_json(Cursor(1, 2, 3).to_json()) == Cursor(1, 2, 3)
    for wrong in ({}, {"file": 0, "row": -1, "offset": None}, {"file": 0, "row": "1", "offset": None}, [1]):
        with pytest.raises(ValueError, match="not a cursor"):
            Cursor.from_json(wrong)  # type: ignore[arg-type]


def test_errors_survive_pickling() -> None:
    """Errors cross from worker processes with all that they carry."""
    error = pickle.loads(pickle.dumps(InputChanged("it went", url="/a", row=3)))
    assert type(error) is InputChanged
    assert (error.details, error.url, error.row) == ("it went", "/a", 3)
    assert str(error) == "/a, row 3: it went"


# -- elsewhere ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
def test_other_filesystems(tmp_path: Path, ending: str) -> None:
    """Any fsspec URL is read as a local path is, and a replaced object noticed."""
    fs = fsspec.filesystem("memory")
    folder = f"/inputs{ending}"
    for part in range(2):
        fs.pipe(
            f"{folder}/k=1/p{part}{ending}", write(tmp_path / "f", ending, 30, first=30 * part).read_bytes()
        )
    try:
        inputs = open_inputs(f"memory:/{folder}")
        assert inputs.files[0].url == f"memory://{folder}/k=1/p0{ending}"
        everything = rows_of(inputs)
        assert len(everything) == 60
        cursor = cursors_of(inputs)[37]
        assert rows_of(inputs, cursor) == everything[37:]
        fs.pipe(f"{folder}/k=1/p1{ending}", write(tmp_path / "f", ending, 31).read_bytes())
        with pytest.raises(InputChanged):
            rows_of(inputs, cursor)
    finally:
        fs.rm(folder, recursive=True)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A server of `tmp_path`'s files, which answers requests for ranges of bytes."""

    class Quiet(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            file = tmp_path / self.path.lstrip("/")
            if not file.is_file():
                self.send_error(404)
                return
            data = file.read_bytes()
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)?", self.headers.get("Range", ""))
            first, last = 0, len(data) - 1
            if wanted:
                first, last = int(wanted[1]), min(last, int(wanted[2] or last))
            self.send_response(206 if wanted else 200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(last - first + 1))
            if wanted:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            self.end_headers()
            if body:
                self.wfile.write(data[first : last + 1])

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_files_over_http(tmp_path: Path, web: str) -> None:
    """A file behind a URL of a plain web server is read, and one that was replaced meanwhile noticed."""
    pytest.importorskip("aiohttp", reason="fsspec reads http with aiohttp")
    for ending in (".csv", ".parquet", ".arrow"):
        write(tmp_path / "f", ending, 50)
        inputs = open_inputs(f"{web}/f{ending}")
        assert [row["id"] for row in rows_of(inputs)] == list(range(50))
        assert inputs.files[0].fingerprint.startswith("sample:")
        write(tmp_path / "f", ending, 50, first=1)
        with pytest.raises(InputChanged):
            rows_of(inputs)


def test_objects_in_s3(tmp_path: Path, s3: dict[str, Any]) -> None:
    """Objects of an S3 store are read from any row on; a replaced one is noticed by its etag."""
    import s3fs

    fs = s3fs.S3FileSystem(**s3)
    fs.mkdir("inputs")
    for part, ending in ((0, ".parquet"), (1, ".parquet"), (0, ".csv")):
        local = write(tmp_path / f"p{part}", ending, 70, first=70 * part)
        fs.put(str(local), f"inputs/rows/k={part}/p{part}{ending}")
    inputs = open_inputs("s3://inputs/rows", format="parquet", storage_options=s3)
    assert [file.url for file in inputs.files] == [f"s3://inputs/rows/k={p}/p{p}.parquet" for p in (0, 1)]
    assert all(file.fingerprint.startswith("etag:") for file in inputs.files)
    everything = rows_of(inputs)
    assert [(row["id"], row["k"]) for row in everything] == [(i, i // 70) for i in range(140)]
    cursor = cursors_of(inputs)[91]
    assert rows_of(inputs, cursor) == everything[91:]
    found = open_inputs("s3://inputs/rows/k=0/*.csv", storage_options=s3)
    assert [row["id"] for row in rows_of(found)] == list(range(70))
    fs.put(str(write(tmp_path / "other", ".parquet", 70)), "inputs/rows/k=1/p1.parquet")
    with pytest.raises(InputChanged):
        rows_of(inputs, cursor)


# -- Arrow --------------------------------------------------------------------------------------------


def test_streams_with_dictionaries(tmp_path: Path) -> None:
    """Dictionaries, which a stream spreads over its batches, are there when reading goes on behind them."""
    column = pa.array([f"v{i % 5}" for i in range(100)]).dictionary_encode()
    write_stream(tmp_path / "f.arrows", pa.table({"a": column}), chunk=30)
    inputs = open_inputs(tmp_path / "f.arrows")
    cursors = cursors_of(inputs, piece_rows=20)
    for row in (0, 31, 95, 100):
        assert rows_of(inputs, cursors[row]) == [{"a": f"v{i % 5}"} for i in range(row, 100)]


def test_an_arrow_file_by_any_name(tmp_path: Path) -> None:
    """What a file begins with tells files from streams; Feather's first version is refused."""
    write_stream(tmp_path / "a.arrow", table(5))
    write_arrow(tmp_path / "b.feather", table(5))
    assert open_inputs(tmp_path / "a.arrow").rows is None
    assert open_inputs(tmp_path / "b.feather").rows == 5
    (tmp_path / "c.feather").write_bytes(b"FEA1....")
    with pytest.raises(InputError, match="Feather file of version 1"):
        open_inputs(tmp_path / "c.feather")
    whole = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "d.arrow").write_bytes(whole + whole)
    with pytest.raises(InputError, match="several streams in one file"):
        rows_of(open_inputs(tmp_path / "d.arrow"))


def test_pieces_and_reprs(tmp_path: Path) -> None:
    """What is printed says what there is and where one is; places outside a piece are refused."""
    inputs = open_inputs(write(tmp_path / "f", ".parquet", 60))
    assert repr(inputs) == "<Inputs: 60 rows in 1 parquet files, columns ['id', 'name', 'values']>"
    piece: Piece = list(inputs.pieces())[1]
    assert repr(piece) == "<Piece of file 0: rows 50 to 60>"
    assert piece.cursor_at(0) == piece.start == Cursor(0, 50)
    with pytest.raises(ValueError, match="no place behind its row 11"):
        piece.cursor_at(11)
