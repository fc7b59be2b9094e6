"""Outputs of every type and shape come back from files as they were, beside what was kept."""

from __future__ import annotations

import base64
import json
import math
import pathlib
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the extra `batch`")

import pyarrow as pa
import pyarrow.parquet as pq

from aioserving.dtypes import DataType, numpy_dtype
from aioserving.jobs.errors import JobError, OutputError
from aioserving.jobs.outputs import FORMATS, OutputColumns
from aioserving.signature import TensorSpec

NO_COLUMNS = pa.schema([])
IDS = pa.schema([("id", pa.int64())])

NUMBERS = [
    DataType.DT_FLOAT,
    DataType.DT_DOUBLE,
    DataType.DT_HALF,
    DataType.DT_INT8,
    DataType.DT_INT16,
    DataType.DT_INT32,
    DataType.DT_INT64,
    DataType.DT_UINT8,
    DataType.DT_UINT16,
    DataType.DT_UINT32,
    DataType.DT_UINT64,
    DataType.DT_BOOL,
]


def spec(data_type: DataType = DataType.DT_FLOAT, *inner: int, name: str = "y") -> TensorSpec:
    return TensorSpec(name, data_type, (-1, *inner))


def columns(*specs: TensorSpec, kept: Any = NO_COLUMNS, **options: Any) -> OutputColumns:
    return OutputColumns(specs, kept, **options)


def write(folder: pathlib.Path, format: str, batches: list[Any], **options: Any) -> list[pathlib.Path]:
    """The files of a part with these batches."""
    writer = FORMATS[format]("part-00000", batches[0].schema, lambda name: str(folder / name), options)
    try:
        for batch in batches:
            writer.write(batch)
        writer.close()
    except BaseException:
        writer.abort()
        raise
    return [folder / name for name in writer.files]


def array_of(data_type: DataType, *shape: int) -> Any:
    values = np.random.default_rng(0).integers(0, 100, shape)
    return values.astype(numpy_dtype(data_type))


def stacked(column: Any) -> Any:
    """A column of nested lists as one array."""
    return np.array(column.to_pylist())


@pytest.mark.parametrize("inner", [(), (3,), (2, 3), (1, 2, 2)])
@pytest.mark.parametrize("data_type", NUMBERS)
def test_numbers_of_any_shape_come_back(
    tmp_path: pathlib.Path, data_type: DataType, inner: tuple[int, ...]
) -> None:
    """Each numeric type, with the dimensions of a row as nested fixed-size lists, survives a Parquet file."""
    made = columns(spec(data_type, *inner))
    arrays = [array_of(data_type, 5, *inner), array_of(data_type, 2, *inner)]
    (path,) = write(tmp_path, "parquet", [made.batch(None, None, [{"y": array} for array in arrays])])
    column = pq.read_table(path).column("y")
    kind = column.type
    for size in inner:
        assert pa.types.is_fixed_size_list(kind)
        assert kind.list_size == size
        kind = kind.value_type
    assert kind == pa.from_numpy_dtype(numpy_dtype(data_type))
    np.testing.assert_array_equal(stacked(column), np.concatenate(arrays))


def test_a_single_part_is_not_copied() -> None:
    """The column of one call's output looks at that output's own memory."""
    array = np.arange(12, dtype=np.float32).reshape(4, 3)
    array.flags.writeable = False
    batch = columns(spec(DataType.DT_FLOAT, 3)).batch(None, None, [{"y": array}])
    assert batch.column("y").flatten().buffers()[1].address == array.ctypes.data


@pytest.mark.parametrize(
    ("data_type", "held"),
    [
        (DataType.DT_BFLOAT16, np.float32),
        (DataType.DT_FLOAT8_E5M2, np.float32),
        (DataType.DT_FLOAT8_E4M3FN, np.float32),
        (DataType.DT_INT4, np.int8),
        (DataType.DT_UINT4, np.uint8),
    ],
)
def test_types_that_files_lack_are_widened(data_type: DataType, held: Any) -> None:
    """Small floats and integers are kept in the next type that has all their values."""
    pytest.importorskip("ml_dtypes", reason="numpy has no such types without ml_dtypes")
    array = np.arange(6).astype(numpy_dtype(data_type)).reshape(3, 2)
    column = columns(spec(data_type, 2)).batch(None, None, [{"y": array}]).column("y")
    assert column.type.value_type == pa.from_numpy_dtype(held)
    np.testing.assert_array_equal(stacked(column), array.astype(held))


def test_strings_are_binary_or_text() -> None:
    """Bytes stay what they are; as text they are decoded, and what is none is an error with the way out."""
    array = np.array([[b"a", b"\xff"], [b"", b"\x00b"]], object)
    binary = columns(spec(DataType.DT_STRING, 2)).batch(None, None, [{"y": array}])
    assert binary.column("y").to_pylist() == [[b"a", b"\xff"], [b"", b"\x00b"]]
    text = columns(spec(DataType.DT_STRING), strings="utf8")
    good = np.array(["grün".encode(), b""], object)
    assert text.batch(None, None, [{"y": good}]).column("y").to_pylist() == ["grün", ""]
    with pytest.raises(JobError, match="strings='binary'"):
        text.batch(None, None, [{"y": array[:, 1]}])


def test_open_dimensions_are_lists_of_any_size() -> None:
    """Where the signature leaves a size open, calls may differ in it, whatever is around it."""
    made = columns(spec(DataType.DT_INT64, -1), spec(DataType.DT_FLOAT, -1, 2, name="z"))
    first = {"y": np.arange(6).reshape(2, 3), "z": np.ones((2, 1, 2), np.float32)}
    second = {"y": np.arange(1).reshape(1, 1), "z": np.zeros((1, 3, 2), np.float32)}
    empty = {"y": np.empty((2, 0), np.int64), "z": np.empty((2, 0, 2), np.float32)}
    batch = made.batch(None, None, [first, second, empty])
    assert batch.column("y").to_pylist() == [[0, 1, 2], [3, 4, 5], [0], [], []]
    assert batch.column("z").to_pylist() == [[[1, 1]], [[1, 1]], [[0, 0]] * 3, [], []]


def test_an_unknown_rank_is_that_of_the_first_batch() -> None:
    """An output whose rank the signature does not tell gets its column when it is first seen."""
    made = columns(TensorSpec("y", DataType.DT_FLOAT, None))
    assert made.schema is None
    batch = made.batch(None, None, [{"y": np.ones((2, 3), np.float32)}])
    assert batch.column("y").to_pylist() == [[1, 1, 1]] * 2
    assert made.schema.field("y").type == pa.list_(pa.float32())
    with pytest.raises(JobError, match=r"came with the shape \(2,\)"):
        made.batch(None, None, [{"y": np.ones(2, np.float32)}])


@pytest.mark.parametrize(
    "array",
    [
        np.ones((2, 4), np.float32),
        np.ones((2, 3, 1), np.float32),
        np.ones(2, np.float32),
        np.array([["a", "b", "c"]] * 2),
    ],
)
def test_what_is_not_as_the_signature_says_is_refused(array: Any) -> None:
    """Another shape or type than the column's is an error that names the output, not a broken file."""
    made = columns(spec(DataType.DT_FLOAT, 3))
    with pytest.raises(JobError, match="output 'y' came"):
        made.batch(None, None, [{"y": array}])


def test_there_is_a_result_for_each_row() -> None:
    """A missing output, another number of rows and a single value for all are told apart from results."""
    made = columns(spec())
    made.check({"y": np.ones(3)}, 3)
    with pytest.raises(JobError, match="no output 'y'; it has z"):
        made.check({"z": np.ones(3)}, 3)
    for wrong in (np.ones(2), np.array(1.0)):
        with pytest.raises(JobError, match="not one result for each row"):
            made.check({"y": wrong}, 3)


def test_kept_columns_and_numbers_stand_beside() -> None:
    """The row has what was kept, then its number, then the outputs."""
    made = columns(spec(), kept=IDS, row_number="row", metadata={"aioserving.version": "7"})
    kept = pa.record_batch({"id": pa.array([10, 11])})
    batch = made.batch(kept, np.array([5, 8]), [{"y": np.ones(2, np.float32)}])
    assert batch.to_pylist() == [{"id": 10, "row": 5, "y": 1.0}, {"id": 11, "row": 8, "y": 1.0}]
    assert batch.schema.metadata == {b"aioserving.version": b"7"}
    assert "id, row, y" in repr(made)


def test_two_columns_of_one_name_are_refused() -> None:
    """A kept column that is named like an output would hide it; the error says how to rename it."""
    with pytest.raises(JobError, match="two columns of the output would be named 'id'"):
        columns(spec(name="id"), kept=IDS)


def test_types_without_counterpart_are_refused() -> None:
    """Complex numbers have no column type: leave them out."""
    with pytest.raises(JobError, match="leave it out with output_filter"):
        columns(spec(DataType.DT_COMPLEX64))


def mixed(rows: int = 4) -> Any:
    made = columns(
        spec(DataType.DT_FLOAT, 2),
        spec(DataType.DT_STRING, name="label"),
        kept=pa.schema([("id", pa.int64()), ("when", pa.date32()), ("word", pa.utf8())]),
    )
    kept = pa.record_batch(
        {
            "id": pa.array(range(rows), pa.int64()),
            "when": pa.array([18000] * rows, pa.int32()).cast(pa.date32()),
            "word": pa.array(["ä"] * rows, pa.utf8()),
        }
    )
    scores = np.full((rows, 2), [1.5, math.nan], np.float32)
    labels = np.array([b"fine", b"\xff"] * (rows // 2), object)
    return made.batch(kept, None, [{"y": scores, "label": labels}])


def test_json_lines_are_read_by_anything(tmp_path: pathlib.Path) -> None:
    """A line is strict JSON: no NaN, bytes that are no text in base64, dates as ISO 8601."""
    (path,) = write(tmp_path, "jsonl", [mixed(), mixed(2)])
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) == 6

    def refuse(word: str) -> Any:
        raise AssertionError(word)

    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    assert rows[0] == {"id": 0, "when": "2019-04-14", "word": "ä", "y": [1.5, None], "label": "fine"}
    assert rows[1]["label"] == {"b64": base64.b64encode(b"\xff").decode()}


def test_npy_files_are_read_by_numpy(tmp_path: pathlib.Path) -> None:
    """Every column is an array of its own, with the shape of the output, that can be memory-mapped."""
    made = columns(
        spec(DataType.DT_FLOAT, 2, 3),
        spec(DataType.DT_STRING, name="label"),
        spec(DataType.DT_BOOL, name="a/b"),
        kept=IDS,
    )
    batches = []
    for rows in (3, 2):
        kept = pa.record_batch({"id": pa.array(range(rows), pa.int64())})
        outputs = {
            "y": np.arange(rows * 6, dtype=np.float32).reshape(rows, 2, 3),
            "label": np.array([b"x" * rows] * rows, object),
            "a/b": np.arange(rows) % 2 == 0,
        }
        batches.append(made.batch(kept, None, [outputs]))
    files = write(tmp_path, "npy", batches)
    assert [file.name for file in files] == [
        "part-00000.id.npy",
        "part-00000.y.npy",
        "part-00000.label.npy",
        "part-00000.a%2Fb.npy",
    ]
    ids, scores, labels, flags = (np.load(file, mmap_mode="r") for file in files)
    assert ids.tolist() == [0, 1, 2, 0, 1]
    assert scores.shape == (5, 2, 3)
    np.testing.assert_array_equal(
        scores[3:], batches[1].column("y").flatten().flatten().to_numpy().reshape(2, 2, 3)
    )
    assert labels.tolist() == [b"xxx"] * 3 + [b"xx"] * 2
    assert flags.tolist() == [True, False, True, True, False]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (pa.array([1, None]), "nulls"),
        (pa.array([[1], [1, 2]]), "several sizes"),
        (pa.array([[1], None]), "nulls"),
        (pa.array([b"a\0", b"b"]), "zero byte"),
        (pa.array([{"a": 1}, {"a": 2}]), "struct"),
    ],
)
def test_what_npy_cannot_hold_is_told(tmp_path: pathlib.Path, values: Any, told: str) -> None:
    """Nulls, lists of several sizes and strings that would lose their end are refused with the way out."""
    with pytest.raises(OutputError, match=f"{told}.*use output_format='parquet'"):
        write(tmp_path, "npy", [pa.record_batch({"v": values})])


def test_npy_shapes_do_not_change_in_a_file(tmp_path: pathlib.Path) -> None:
    """Batches of lists of another size cannot follow in one array."""
    with pytest.raises(OutputError, match="rows of shape"):
        write(
            tmp_path,
            "npy",
            [pa.record_batch({"v": pa.array([[1]])}), pa.record_batch({"v": pa.array([[1, 2]])})],
        )


@pytest.mark.parametrize("format", list(FORMATS))
def test_a_part_without_rows_has_its_columns(tmp_path: pathlib.Path, format: str) -> None:
    """A file without rows can be read, and tells which columns there are."""
    files = write(tmp_path, format, [mixed().slice(0, 0)])
    if format == "parquet":
        table = pq.read_table(files[0])
        assert table.num_rows == 0
        assert table.schema.names == ["id", "when", "word", "y", "label"]
    elif format == "npy":
        shapes = {file.name.split(".")[1]: np.load(file).shape for file in files}
        assert shapes == {"id": (0,), "when": (0,), "word": (0,), "y": (0, 2), "label": (0,)}
    else:
        assert files[0].read_bytes() == b""


def test_row_groups_bound_what_is_in_memory(tmp_path: pathlib.Path) -> None:
    """A large part is written a row group at a time, not at its end."""
    made = columns(spec(DataType.DT_FLOAT, 1024))
    batch = made.batch(None, None, [{"y": np.zeros((512, 1024), np.float32)}])  # 2 MiB
    writer = FORMATS["parquet"]("part-00000", batch.schema, lambda name: str(tmp_path / name), {})
    for _ in range(12):
        writer.write(batch)
    assert pa.total_allocated_bytes() < 64 << 20
    writer.close()
    assert pq.ParquetFile(tmp_path / writer.files[0]).num_row_groups == 3


def test_options_go_to_the_writer(tmp_path: pathlib.Path) -> None:
    """Parquet takes its writer's own options; formats without options refuse any."""
    (path,) = write(tmp_path, "parquet", [mixed()], compression="zstd")
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"
    for other in ("jsonl", "npy"):
        with pytest.raises(ValueError, match="takes no output_options"):
            write(tmp_path, other, [mixed()], compression="zstd")


@pytest.mark.parametrize("format", list(FORMATS))
def test_a_part_can_be_given_up(tmp_path: pathlib.Path, format: str) -> None:
    """Given up in the middle, a writer lets go of its files."""
    writer = FORMATS[format]("part-00000", mixed().schema, lambda name: str(tmp_path / name), {})
    writer.write(mixed())
    writer.abort()
    for name in writer.files:
        (tmp_path / name).unlink()
    assert "part-00000" in repr(writer)
