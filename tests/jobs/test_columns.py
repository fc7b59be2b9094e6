"""Columns as a model's inputs: what goes where, what is cast, and which rows are named as wrong."""

from __future__ import annotations

import decimal
import json
import pickle
import threading
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs the extra `batch`")
pytest.importorskip("fsspec", reason="needs the extra `batch`")

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aioserving.dtypes import DataType, data_type_of
from aioserving.jobs.columns import ColumnMapping, Decode, ExampleMapping, make_mapping
from aioserving.jobs.errors import BadRows, ColumnError
from aioserving.jobs.inputs import open_inputs
from aioserving.signature import Signature, TensorSpec
from aioserving.tf_examples import serialize_examples


def signature(
    inputs: dict[str, tuple[str, tuple[int, ...] | None]],
    *,
    outputs: Sequence[str] = ("y",),
    defaults: Sequence[str] = (),
) -> Signature:
    def spec(name: str, dtype: str, shape: tuple[int, ...] | None) -> TensorSpec:
        kind = DataType.DT_STRING if dtype == "string" else data_type_of(np.dtype(dtype))
        default = np.zeros(()) if name in defaults else None
        return TensorSpec(name, kind, shape, default=default)

    return Signature(
        "serving_default",
        {name: spec(name, *told) for name, told in inputs.items()},
        {name: spec(name, "float32", (-1,)) for name in outputs},
        model="digits",
    )


def batch(**columns: Any) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [value if isinstance(value, pa.Array) else pa.array(value) for value in columns.values()],
        names=list(columns),
    )


def arrays(
    dtype: str, shape: tuple[int, ...] | None, column: Any, **options: Any
) -> np.ndarray[Any, np.dtype[Any]]:
    """What the one input ``x`` of a model gets of a column of that name."""
    rows = batch(x=column)
    return make_mapping(signature({"x": (dtype, shape)}), rows.schema, **options).inputs(rows)["x"]  # type: ignore[index]


# -- which column -------------------------------------------------------------------------------------


def test_columns_by_name_and_explicitly() -> None:
    """An input takes the column named for it, else the one of its name, and only those columns are read."""
    rows = batch(a=[1.0, 2.0], b=[3.0, 4.0], other=["x", "y"])
    two = signature({"a": ("float32", (-1,)), "c": ("float64", (-1,))})
    mapping = make_mapping(two, rows.schema, inputs={"c": "b"})
    assert mapping.columns == ("a", "b")
    assert repr(mapping) == "<ColumnMapping to digits/serving_default: a from a, c from b>"
    found = mapping.inputs(rows)
    assert isinstance(mapping, ColumnMapping)
    assert {name: (array.dtype.name, array.tolist()) for name, array in found.items()} == {
        "a": ("float32", [1.0, 2.0]),
        "c": ("float64", [3.0, 4.0]),
    }


def test_columns_side_by_side() -> None:
    """Several columns of single values become one input, in the order given, whatever their types."""
    rows = batch(age=pa.array([31, 52], pa.int8()), height=[1.5, 1.7], member=[True, False])
    three = signature({"x": ("float32", (-1, 3))})
    found = make_mapping(three, rows.schema, inputs={"x": ["height", "member", "age"]}).inputs(rows)
    np.testing.assert_array_equal(found["x"], np.array([[1.5, 1, 31], [1.7, 0, 52]], np.float32))  # type: ignore[index]
    one = make_mapping(signature({"x": ("int64", (-1, 1))}), rows.schema, inputs={"x": ["age"]}).inputs(rows)
    assert one["x"].tolist() == [[31], [52]]  # type: ignore[index]
    with pytest.raises(
        ColumnError, match=r"expects float32 \(-1, 3\), 2 columns are given for it: 'age', 'height'"
    ):
        make_mapping(three, rows.schema, inputs={"x": ["age", "height"]})


def test_the_only_column() -> None:
    """A model of one input takes the only column there is, the names of folders left aside."""
    rows = batch(values=[1.0])
    folder = pa.field("day", pa.int64(), metadata={b"aioserving.partition": b"hive"})
    assert make_mapping(signature({"x": ("float32", (-1,))}), rows.schema.append(folder)).columns == (
        "values",
    )
    with pytest.raises(ColumnError, match="there is no column for input 'x'"):
        make_mapping(signature({"x": ("float32", (-1,))}), batch(a=[1.0], b=[1.0]).schema)
    with pytest.raises(ColumnError, match="there is no column for input 'x'"):
        make_mapping(signature({"x": ("float32", (-1,)), "z": ("float32", (-1,))}), rows.schema)


def test_inputs_with_a_default_may_be_left_out() -> None:
    """An input that the server has a default for needs no column, and takes one if it is there."""
    two = signature({"a": ("float32", (-1,)), "b": ("float32", (-1,))}, defaults=["b"])
    rows = batch(a=[1.0], b=[2.0])
    assert set(make_mapping(two, rows.select(["a"]).schema).inputs(rows.select(["a"]))) == {"a"}
    assert set(make_mapping(two, rows.schema).inputs(rows)) == {"a", "b"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"inputs": {"image": "pixels"}},
            r"inputs= names 'image', .*\(did you mean 'images'\?\); it has 'images'",
        ),
        ({"decode": {"x": bytes}}, "decode= names 'x', which is no input of digits/serving_default"),
        ({"inputs": {"images": "pixel"}}, r"there is no column 'pixel' \(did you mean 'pixels'\?\)"),
        ({}, r"no column for input 'images' of digits/serving_default, which expects float32 \(-1, 4\)"),
        ({"inputs": {"images": []}}, "no columns are named for it"),
        (
            {"inputs": {"images": "name"}},
            r"expects float32 \(-1, 4\), column 'name' is string: text is not made",
        ),
        (
            {"inputs": {"images": "wide"}},
            r"expects float32 \(-1, 4\), column 'wide' is fixed_size_list.*\[5\]$",
        ),
        ({"inputs": {"images": "one"}}, r"expects float32 \(-1, 4\), column 'one' is double$"),
        (
            {"inputs": {"images": "when"}},
            "is timestamp.*, which no model takes: read it as a number or text with types=",
        ),
        ({"inputs": {"images": "price"}}, r"is decimal128\(3, 2\), which no model takes: read it as a float"),
        ({"inputs": {"images": "nothing"}}, "is null: it has no value in any row that was looked at"),
        ({"inputs": {"images": "record"}}, "is struct<a: int64>, which is no list or tensor of values"),
        ({"inputs": {"images": ["wide", "one"]}}, "side by side only if each has one value in a row"),
        ({"inputs": {"images": ["wide"]}, "decode": {"images": bytes}}, "is decoded, which takes one column"),
    ],
)
def test_what_cannot_fit_is_refused_at_once(given: dict[str, Any], message: str) -> None:
    """Columns of which no row would fit are refused with the input, what it expects, and what there is."""
    rows = batch(
        pixels=pa.array([[1.0] * 4], pa.list_(pa.float32())),
        wide=pa.array([[1.0] * 5], pa.list_(pa.float32(), 5)),
        name=["x"],
        one=[1.0],
        when=[datetime(2026, 1, 1)],
        price=[decimal.Decimal("1.25")],
        nothing=pa.nulls(1),
        record=[{"a": 1}],
    )
    with pytest.raises(ColumnError, match=message) as caught:
        make_mapping(signature({"images": ("float32", (-1, 4))}), rows.schema, **given)
    assert (caught.value.model, caught.value.signature) == ("digits", "serving_default")


def test_inputs_that_no_column_can_be_given_to() -> None:
    """Inputs without rows, and sparse ones, are refused."""
    with pytest.raises(ColumnError, match=r"expects float32 \(\), a single value for all rows"):
        arrays("float32", (), [1.0])
    sparse = Signature("s", {"x": TensorSpec("x", DataType.DT_FLOAT, (-1,), kind="sparse")}, {})
    with pytest.raises(ColumnError, match="is a sparse tensor, which Predict cannot take"):
        make_mapping(sparse, batch(x=[1.0]).schema)


# -- types --------------------------------------------------------------------------------------------

NUMBERS = [
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
]


@pytest.mark.parametrize("target", NUMBERS)
@pytest.mark.parametrize("source", NUMBERS)
def test_casts_are_those_of_predict(source: str, target: str) -> None:
    """A column is cast where predict would cast an array of its dtype, to the same values, or refused."""
    values = np.array([0, 1, 1], source)
    model = signature({"x": (target, (-1,))})
    expected: Any
    try:
        expected = model.prepare({"x": values})["x"]
    except ValueError:
        with pytest.raises(ColumnError, match="numpy calls the cast of"):
            arrays(target, (-1,), pa.array(values))
    else:
        found = arrays(target, (-1,), pa.array(values))
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_values_that_a_cast_would_change_name_their_rows() -> None:
    """Integers and floats beyond the range of the input are bad rows, each with its value."""
    with pytest.raises(BadRows) as caught:
        arrays("int8", (-1,), pa.array([1, 200, 3, -129], pa.int64()))
    assert dict(caught.value.rows) == {
        1: "column 'x' for input 'x' holds 200, which is out of the range of int8",
        3: "column 'x' for input 'x' holds -129, which is out of the range of int8",
    }
    with pytest.raises(BadRows) as caught:
        arrays("uint8", (-1, 2), pa.array([[1, 2], [3, 256], [4, 5]], pa.list_(pa.uint16())))
    assert list(caught.value.rows) == [1]
    with pytest.raises(BadRows) as caught:
        arrays("float32", (-1, 2), pa.array([[1.0, np.inf], [0.0, 1e39], [np.nan, 2.0]]))
    assert dict(caught.value.rows) == {
        1: "column 'x' for input 'x' holds 1e+39, which is out of the range of float32"
    }


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.binary(),
        pa.large_binary(),
        pa.binary(2),
        pa.dictionary(pa.int8(), pa.string()),
    ],
)
def test_strings_become_bytes(kind: pa.DataType) -> None:
    """Every kind of text and bytes becomes an object array of bytes, NULs kept."""
    values = ["ab", "\x00\x00", "ba"]
    array = (
        pa.array(values).dictionary_encode().cast(kind)
        if pa.types.is_dictionary(kind)
        else pa.array([value.encode() for value in values])
        .cast(pa.binary(2) if kind == pa.binary(2) else pa.binary())
        .cast(kind)
    )
    found = arrays("string", (-1,), array)
    assert found.dtype == object
    assert found.tolist() == [b"ab", b"\x00\x00", b"ba"]
    with pytest.raises(ColumnError, match="numbers are not made text"):
        arrays("string", (-1,), [1])


def test_nothing_is_copied_where_arrow_has_the_array() -> None:
    """Lists of fixed size, plain lists and tensors of the input's dtype are views of Arrow's memory."""
    values = np.arange(12, dtype=np.float32)
    flat = pa.array(values)
    tensor = pa.fixed_shape_tensor(pa.float32(), [2, 3])
    fixed = pa.FixedSizeListArray.from_arrays(flat, 6)
    for column in (
        fixed,
        pa.ListArray.from_arrays(pa.array([0, 6, 12], pa.int32()), flat),
        pa.ExtensionArray.from_storage(tensor, fixed),
    ):
        for shape in ((-1, 6), (-1, 2, 3), (-1, 3, 2)):
            if shape == (-1, 3, 2) and column.type == tensor:
                continue
            found = arrays("float32", shape, column)
            np.testing.assert_array_equal(found, values.reshape(2, *shape[1:]))
            assert np.shares_memory(found, values)


# -- shapes -------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_arrays_survive_arrow(data: st.DataObject) -> None:
    """numpy to any list or tensor type and back gives the same array, also of a slice, also with a cast."""
    dtype = data.draw(st.sampled_from([np.bool_, np.uint8, np.int64, np.float16, np.float32, np.float64]))
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4))
    array = data.draw(
        hnp.arrays(dtype, shape, elements={"allow_nan": False} if dtype(0).dtype.kind == "f" else None)
    )
    rows, inner = shape[0], shape[1:]
    column: Any = pa.array(array.reshape(-1))
    kind = data.draw(st.sampled_from(["list", "large", "fixed", "tensor"]))
    if kind == "tensor" and inner:
        storage = pa.FixedSizeListArray.from_arrays(column, int(np.prod(inner)))
        column = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(column.type, list(inner)), storage)
    else:
        for size in reversed(inner):
            offsets = np.arange(0, len(column) + 1, size)
            column = {
                "list": lambda: pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), column),
                "large": lambda: pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), column),
            }.get(kind, lambda: pa.FixedSizeListArray.from_arrays(column, size))()
    start = data.draw(st.integers(0, rows))
    count = data.draw(st.integers(0, rows - start))
    known = data.draw(st.sampled_from([(-1, *inner), (-1,) * len(shape), None]))
    found = arrays(dtype.__name__.rstrip("_"), known, column.slice(start, count))
    assert found.dtype == array.dtype
    if count:
        np.testing.assert_array_equal(found, array[start : start + count])
    assert len(found) == count


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_bad_rows_are_exactly_those_that_are_bad(data: st.DataObject) -> None:
    """Nulls and wrong lengths, at any depth, are found in their rows and in no others."""
    rows = data.draw(st.integers(1, 12))
    values: list[Any] = [[[float(row)] * 2, [0.5, 1.5], [2.5, 3.5]] for row in range(rows)]
    bad = data.draw(st.sets(st.integers(0, rows - 1), max_size=4))
    for row in bad:
        how = data.draw(st.sampled_from(["null", "inner null", "value null", "short", "inner long"]))
        if how == "null":
            values[row] = None
        elif how == "inner null":
            values[row][1] = None
        elif how == "value null":
            values[row][2][0] = None
        elif how == "short":
            values[row] = values[row][:2]
        else:
            values[row][0] = [1.0, 2.0, 3.0]
    column = pa.array([None, *values], pa.list_(pa.list_(pa.float32()))).slice(1)
    if not bad:
        assert arrays("float32", (-1, 3, 2), column).shape == (rows, 3, 2)
        return
    with pytest.raises(BadRows) as caught:
        arrays("float32", (-1, 3, 2), column)
    assert set(caught.value.rows) == bad
    assert caught.value.count == rows
    assert str(caught.value).startswith(
        f"{len(bad)} of {rows} rows cannot be sent: row {min(bad)}: column 'x'"
    )


def test_bad_rows_of_several_inputs_come_together() -> None:
    """One error has the bad rows of all inputs; the rows that are left can be sent."""
    rows = batch(a=[1.0, None, 3.0, 4.0], b=pa.array([[1, 2], [1, 2], [1], [3, 4]]), c=["x", "y", "z", None])
    model = signature({"a": ("float32", (-1,)), "b": ("int64", (-1, 2)), "c": ("string", (-1,))})
    mapping = make_mapping(model, rows.schema)
    with pytest.raises(BadRows) as caught:
        mapping.inputs(rows)
    assert dict(caught.value.rows) == {
        1: "column 'a' for input 'a' is null",
        2: "column 'b' for input 'b' has 1 values, 2 are expected for int64 (-1, 2)",
        3: "column 'c' for input 'c' is null",
    }
    again = pickle.loads(pickle.dumps(caught.value))
    assert (dict(again.rows), again.count, str(again)) == (dict(caught.value.rows), 4, str(caught.value))
    left = rows.take(pa.array([0]))
    assert {name: array.tolist() for name, array in mapping.inputs(left).items()} == {
        "a": [1.0],
        "b": [[1, 2]],
        "c": [b"x"],
    }


def test_tensors() -> None:
    """Tensors keep their axes, also stored in another order; a null one is a bad row."""
    meant = np.arange(12, dtype=np.int32).reshape(2, 3, 2)
    storage = pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(meant.transpose(0, 2, 1)).reshape(-1)), 6
    )
    kind = pa.fixed_shape_tensor(pa.int32(), [2, 3], permutation=[1, 0])
    np.testing.assert_array_equal(
        arrays("int32", (-1, 3, 2), pa.ExtensionArray.from_storage(kind, storage)), meant
    )
    holes = pa.array([[1, 2], None], pa.list_(pa.int32(), 2))
    with pytest.raises(BadRows) as caught:
        arrays(
            "int32",
            (-1, 2, 1),
            pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.int32(), [2, 1]), holes),
        )
    assert list(caught.value.rows) == [1]
    with pytest.raises(
        ColumnError, match=r"expects int32 \(-1, 3\), column 'x' is a tensor of int32 \(2, 1\)"
    ):
        arrays(
            "int32", (-1, 3), pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.int32(), [2, 1]), holes)
        )


def test_rows_of_different_lengths_where_the_model_takes_any() -> None:
    """A dimension that the model leaves open is that of all rows of a call, or they are refused together."""
    assert arrays("float32", (-1, -1), pa.array([[1.0, 2.0], [3.0, 4.0]])).shape == (2, 2)
    assert arrays("float32", (-1, -1), pa.array([[1.0], [3.0]])).shape == (2, 1)
    with pytest.raises(ColumnError, match="has 2 values in one row and 1 in another: pad them"):
        arrays("float32", (-1, -1), pa.array([[1.0, 2.0], [3.0]]))
    with pytest.raises(
        ColumnError, match=r"expects float32 \(-1, -1, 3\), the rows of column 'x' have the shape \(4,\)"
    ):
        arrays("float32", (-1, -1, 3), pa.array([[1.0] * 4]))
    assert arrays("float32", (-1, -1, 3), pa.array([[1.0] * 6])).shape == (1, 2, 3)


def test_single_values_for_inputs_with_one() -> None:
    """Single values go to an input of shape (-1, 1), and a batch without rows keeps its shape."""
    assert arrays("float32", (-1, 1), [1.0, 2.0]).shape == (2, 1)
    assert arrays("float32", (-1, 1), pa.array([], pa.float32())).shape == (0, 1)
    assert arrays("float32", (-1, 28, 28), pa.array([], pa.list_(pa.float32()))).shape == (0, 28, 28)


# -- decoding -----------------------------------------------------------------------------------------


def test_files_are_read_and_decoded(tmp_path: Path) -> None:
    """Of a column of paths the hook gets the files' bytes, local or behind a URL, in several threads."""
    for number in range(6):
        (tmp_path / f"{number}.raw").write_bytes(bytes([number] * 4))
    fs = fsspec.filesystem("memory")
    fs.pipe("/columns/7.raw", bytes([7] * 4))
    threads = set()
    barrier = threading.Barrier(2, timeout=20)

    def decode(data: bytes) -> Any:
        threads.add(threading.current_thread().name)
        if data[0] in (0, 1):
            barrier.wait()  # which two of them pass only together
        return np.frombuffer(data, np.uint8).reshape(2, 2)

    paths = [f"{number}.raw" for number in range(6)] + ["memory://columns/7.raw"]
    hook = Decode(decode, root=str(tmp_path), threads=2)
    found = arrays("float32", (-1, 2, 2), paths, decode={"x": hook})
    np.testing.assert_array_equal(found[:, 0, 0], [0, 1, 2, 3, 4, 5, 7])
    assert found.dtype == np.float32
    assert len(threads) == 2
    assert not [thread for thread in threading.enumerate() if thread.name in threads]
    fs.rm("/columns", recursive=True)


def test_values_are_decoded() -> None:
    """A column of bytes is given as it is, and text too if that is said."""
    found = arrays("uint8", (-1, 2), [b"ab", b"cd"], decode={"x": lambda data: np.frombuffer(data, np.uint8)})
    assert found.tolist() == [[97, 98], [99, 100]]
    lengths = arrays("int32", (-1,), ["a", "bc"], decode={"x": Decode(len, reads="values")})
    assert lengths.tolist() == [1, 2]
    names = arrays("string", (-1,), [b"a", b"b"], decode={"x": lambda data: data.decode().upper()})
    assert names.tolist() == ["A", "B"]


def test_what_cannot_be_decoded_names_its_row(tmp_path: Path) -> None:
    """Missing files, failing hooks, and results of wrong shape, type or range are bad rows with reason."""
    (tmp_path / "good").write_bytes(b"12")

    def decode(data: bytes) -> Any:
        return {
            b"12": np.zeros(2),
            b"wide": np.zeros(3),
            b"text": np.array(["a", "b"]),
            b"big": [1.0, 1e300],
        }[data]

    with pytest.raises(BadRows) as caught:
        arrays("float32", (-1, 2), ["good", "bad", None], decode={"x": Decode(decode, root=str(tmp_path))})
    assert list(caught.value.rows) == [1, 2]
    assert "cannot be decoded (bad): FileNotFoundError" in caught.value.rows[1]
    with pytest.raises(BadRows) as caught:
        arrays("float32", (-1, 2), [b"12", b"wide", b"text", b"big", b"none"], decode={"x": decode})
    assert dict(caught.value.rows) == {
        1: "column 'x' for input 'x' was decoded to float64 (3,), float32 (2,) is expected",
        2: "column 'x' for input 'x' was decoded to <U1 (2,), float32 (2,) is expected",
        3: "column 'x' for input 'x' was decoded to 1e+300, which is out of the range of float32",
        4: "column 'x' for input 'x' cannot be decoded: KeyError: b'none'",
    }
    with pytest.raises(ColumnError, match=r"was decoded to \(1,\) in one row and \(2,\) in another"):
        arrays("uint8", (-1, -1), [b"a", b"bc"], decode={"x": lambda data: np.frombuffer(data, np.uint8)})


# -- tf.Examples --------------------------------------------------------------------------------------


def test_serialized_examples_for_classify_and_regress() -> None:
    """A column of bytes is taken for serialized Examples, by name or as the only one; nulls are bad rows."""
    model = signature({"inputs": ("string", (-1,))}, outputs=("scores",))
    rows = batch(id=[1, 2], example=[b"\x00", b""])
    mapping = make_mapping(model, rows.schema, method="classify")
    assert isinstance(mapping, ExampleMapping)
    assert mapping.columns == ("example",)
    assert mapping.inputs(rows)[None].tolist() == [b"\x00", b""]
    with pytest.raises(BadRows, match="row 1: column 'example' is null"):
        mapping.inputs(batch(id=[1, 2], example=[b"", None]))
    with pytest.raises(ColumnError, match="which column has the serialized tf.Examples"):
        make_mapping(model, batch(a=[b""], b=[b""]).schema, method="classify")
    with pytest.raises(ColumnError, match="signature 'serving_default' cannot be used to regress"):
        make_mapping(model, rows.schema, method="regress")
    with pytest.raises(ColumnError, match=r"column 'id' is int64, .* say inputs=\{'inputs': \['id'\]\}"):
        make_mapping(model, rows.schema, method="classify", inputs={"inputs": "id"})
    with pytest.raises(ColumnError, match="decode= is for predict"):
        make_mapping(model, rows.schema, method="classify", decode={"inputs": bytes})


def test_features_for_classify_and_regress() -> None:
    """Several columns become the features of Examples; rows with what no feature holds are bad."""
    model = signature({"inputs": ("string", (-1,))}, outputs=("outputs",))
    rows = batch(age=[31, 52], tags=[["a", "b"], ["c"]], other=[1, 2])
    mapping = make_mapping(model, rows.schema, method="regress", inputs={"inputs": ["age", "tags"]})
    assert mapping.inputs(rows)[None].tolist() == serialize_examples(  # type: ignore[index]
        [{"age": 31, "tags": ["a", "b"]}, {"age": 52, "tags": ["c"]}]
    )
    with pytest.raises(BadRows) as caught:
        mapping.inputs(batch(age=[31, None], tags=[["a"], ["c"]]))
    assert list(caught.value.rows) == [1]
    assert caught.value.rows[1].startswith("feature 'age' is null")


# -- with files ---------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_resuming_anywhere_gives_the_same_arrays(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Rows read on from any place, in pieces of any size, give the arrays of an undisturbed run."""
    folder = tmp_path_factory.mktemp("rows")
    count = data.draw(st.integers(1, 40))
    array = np.random.default_rng(count).random((count, 3)).astype(np.float32)
    ending = data.draw(st.sampled_from([".npy", ".parquet", ".jsonl"]))
    if ending == ".npy":
        np.save(folder / "x.npy", array)
    else:
        rows = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), 3)})
        if ending == ".parquet":
            pa.parquet.write_table(rows, folder / "x.parquet", row_group_size=data.draw(st.integers(1, 20)))
        else:
            (folder / "x.jsonl").write_text("\n".join(map(json.dumps, rows.to_pylist())))
    inputs = open_inputs(folder)
    mapping = make_mapping(signature({"x": ("float32", (-1, 3))}), inputs.schema)
    found, cursor, done = [], None, 0
    while done < len(array):
        for piece in inputs.pieces(
            start=cursor, columns=mapping.columns, piece_rows=data.draw(st.integers(1, 15))
        ):
            rows_now = data.draw(st.integers(1, len(piece)))
            found.append(mapping.inputs(piece.batch.slice(0, rows_now))["x"])  # type: ignore[index]
            cursor, done = piece.cursor_at(rows_now), done + rows_now
            if rows_now < len(piece) or data.draw(st.booleans()):
                break  # killed, and begun again
    np.testing.assert_array_equal(np.concatenate(found), array)
