"""Building `tf.Example`s: every form that examples come in, against protobuf's own reading of the bytes."""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aioserving import InvalidInputError, messages
from aioserving._proto import message_class
from aioserving.tf_examples import encode_input, serialize_examples


def features(serialized: bytes) -> dict[str, tuple[str | None, list[Any]]]:
    """Kind and values of every feature, read by protobuf."""
    example: Any = message_class("tensorflow.Example").FromString(serialized)
    found = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        found[name] = (kind, list(getattr(feature, kind).value) if kind else [])
    return found


def all_features(examples: Any) -> list[dict[str, tuple[str | None, list[Any]]]]:
    return [features(example) for example in serialize_examples(examples)]


def parsed(examples: Any, context: Any = None) -> tuple[Any, int]:
    data, count = encode_input(examples, context)
    return message_class("tensorflow.serving.Input").FromString(data), count


def test_a_dict_of_columns_is_one_example_for_each_position() -> None:
    """Arrays and lists with a common first axis become rows, kinds by dtype or type."""
    columns = {
        "age": np.array([31, 52], np.int32),
        "big": [300, -1],
        "weight": np.array([1.5, 2.5]),
        "pixels": np.arange(6, dtype=np.float32).reshape(2, 3),
        "grid": np.arange(8, dtype=np.uint8).reshape(2, 2, 2),
        "on": np.array([True, False]),
        "name": ["Zoë", b"\x00\xff"],
        "tags": np.array([["a", "b"], ["c", ""]]),
        "ragged": [[1.0, 2.0], [3.0]],
        "words": [["x"], ["y", "zz"]],
        "wide": [[1, 300], [70000]],
    }
    assert all_features(columns) == [
        {
            "age": ("int64_list", [31]),
            "big": ("int64_list", [300]),
            "weight": ("float_list", [1.5]),
            "pixels": ("float_list", [0.0, 1.0, 2.0]),
            "grid": ("int64_list", [0, 1, 2, 3]),
            "on": ("int64_list", [1]),
            "name": ("bytes_list", ["Zoë".encode()]),
            "tags": ("bytes_list", [b"a", b"b"]),
            "ragged": ("float_list", [1.0, 2.0]),
            "words": ("bytes_list", [b"x"]),
            "wide": ("int64_list", [1, 300]),
        },
        {
            "age": ("int64_list", [52]),
            "big": ("int64_list", [-1]),
            "weight": ("float_list", [2.5]),
            "pixels": ("float_list", [3.0, 4.0, 5.0]),
            "grid": ("int64_list", [4, 5, 6, 7]),
            "on": ("int64_list", [0]),
            "name": ("bytes_list", [b"\x00\xff"]),
            "tags": ("bytes_list", [b"c", b""]),
            "ragged": ("float_list", [3.0]),
            "words": ("bytes_list", [b"y", b"zz"]),
            "wide": ("int64_list", [70000]),
        },
    ]


def test_a_dict_with_a_scalar_is_one_example() -> None:
    """Lists in it are lists of that example's feature."""
    for scalar in (31, np.int64(31), np.array(31)):
        assert all_features({"age": scalar, "tags": ["a", "b"]}) == [
            {"age": ("int64_list", [31]), "tags": ("bytes_list", [b"a", b"b"])}
        ]


def test_a_list_of_dicts_is_one_example_for_each() -> None:
    """Lists are features' own, features may be missing, and an empty dict is an example too."""
    rows = [
        {"x": 2.0, "ids": [1, 2]},
        {},
        {"x": np.float32(0.5), "ids": []},
        {"ids": np.array([[3, 4], [5, 6]])},
        {"ids": (np.int8(7), np.array(8))},
    ]
    assert all_features(rows) == [
        {"x": ("float_list", [2.0]), "ids": ("int64_list", [1, 2])},
        {},
        {"x": ("float_list", [0.5]), "ids": ("int64_list", [])},
        {"ids": ("int64_list", [3, 4, 5, 6])},
        {"ids": ("int64_list", [7, 8])},
    ]
    assert all_features(iter([{"x": 1}])) == [{"x": ("int64_list", [1])}]
    assert serialize_examples([{}, {}]) == [b"", b""]
    assert parsed([{}])[1] == 1


def test_empty_features() -> None:
    """A feature without values keeps its kind where the dtype tells it, and is unset where nothing does."""
    assert (
        all_features({"a": np.empty((2, 0), np.float32), "b": [[], []]})
        == [{"a": ("float_list", []), "b": (None, [])}] * 2
    )


def test_ready_examples_go_as_they_are() -> None:
    """Messages, views and bytes, alone, in lists, and mixed with dicts."""
    view = messages.Example(features={"x": 2.5})
    serialized = view.to_bytes()
    for one in (view, view.pb, serialized, bytearray(serialized), memoryview(serialized)):
        assert serialize_examples(one) == [serialized]
        mixed = serialize_examples([{"x": 1.5}, one, {"x": 3.5}])
        assert mixed[1] == serialized
        assert [features(example)["x"][1] for example in mixed] == [[1.5], [2.5], [3.5]]
    assert serialize_examples(np.array([serialized] * 2, object)) == [serialized] * 2
    ready = messages.Input(example_list=[view, view])
    assert encode_input(ready) == (ready.to_bytes(), 2)
    assert encode_input(ready.pb) == (ready.to_bytes(), 2)


def test_context() -> None:
    """It travels beside the examples; lists in it are features of its own."""
    message, count = parsed({"x": [1.0, 2.0]}, {"country": "NL", "ids": [1, 2]})
    assert count == 2
    inner = message.example_list_with_context
    assert len(inner.examples) == 2
    assert features(inner.context.SerializeToString()) == {
        "country": ("bytes_list", [b"NL"]),
        "ids": ("int64_list", [1, 2]),
    }
    view = messages.Example(features={"x": 2.5})
    for context in (view, view.pb, view.to_bytes()):
        assert parsed([{}], context)[0].example_list_with_context.context == view.pb
    assert parsed([{}])[0].WhichOneof("kind") == "example_list"


# Other work on the machine makes single examples slow at times, and drawing them, too.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SCALARS = {
    "ints": st.integers(-(2**63), 2**63 - 1),
    "floats": st.floats(width=32, allow_nan=False),
    "texts": st.text(),
    "blobs": st.binary(),
    "flags": st.booleans(),
}


@PATIENT
@given(st.data())
def test_what_is_put_in_is_what_protobuf_reads(data: st.DataObject) -> None:
    """For any values, list lengths and missing features, by rows and by columns."""
    count = data.draw(st.integers(1, 70))
    columns = {
        name: data.draw(st.lists(st.lists(values, min_size=1, max_size=3), min_size=count, max_size=count))
        for name, values in SCALARS.items()
        if data.draw(st.booleans())
    }
    rows = [{name: column[index] for name, column in columns.items()} for index in range(count)]
    expected = [
        {
            name: [value.encode() if isinstance(value, str) else value for value in values]
            for name, values in row.items()
        }
        for row in rows
    ]
    assert [{k: v for k, (_, v) in row.items()} for row in all_features(rows)] == expected
    if columns:
        assert serialize_examples(columns) == serialize_examples(rows)
        message, read = parsed(columns)
        assert read == count
        assert [example.SerializeToString() for example in message.example_list.examples] == [
            message_class("tensorflow.Example").FromString(row).SerializeToString()
            for row in serialize_examples(rows)
        ]


def as_protobuf_builds_it(columns: dict[str, np.ndarray], context: dict[str, list[str]] | None = None) -> Any:
    """An Input, made with protobuf's own classes, value by value."""
    made: Any = message_class("tensorflow.serving.Input")()
    inner = made.example_list if context is None else made.example_list_with_context
    for index in range(len(next(iter(columns.values())))):
        feature = inner.examples.add().features.feature
        for name, column in columns.items():
            values = np.atleast_1d(column[index]).ravel().tolist()
            if column.dtype.kind == "O":
                made_one = feature[name]
                if values:  # objects without values have no kind
                    made_one.bytes_list.value.extend(value.encode() for value in values)
                continue
            values_of = feature[name].float_list if column.dtype.kind == "f" else feature[name].int64_list
            values_of.SetInParent()
            values_of.value.extend(values if column.dtype.kind == "f" else map(int, values))
    for name, texts in (context or {}).items():
        inner.context.features.feature[name].bytes_list.value.extend(text.encode() for text in texts)
    return made


@st.composite
def array_columns(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Columns as arrays of any kind and width, of few rows or many, with names of any length."""
    count = draw(st.sampled_from([1, 2, 3, 40, 130]))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    columns: dict[str, np.ndarray] = {}
    for _ in range(draw(st.integers(1, 5))):
        name = draw(st.text("abcä", max_size=3)) * draw(st.sampled_from([1, 1, 60]))
        shape = draw(st.sampled_from([(), (1,), (3,), (0,), (2, 2), (70,), (200,), (5000,)]))
        size = (count, *shape) if np.prod(shape) * count < 100_000 else (count,)
        kind = draw(st.sampled_from(["int", "int", "int", "u1", "bool", "float", "text"]))
        if kind == "int":
            low, high = draw(st.tuples(int64s, int64s).map(sorted))
            columns[name] = random.integers(low, high, size, endpoint=True)
        elif kind == "u1":
            columns[name] = random.integers(0, draw(st.sampled_from([127, 255])), size).astype(np.uint8)
        elif kind == "bool":
            columns[name] = random.integers(0, 2, size).astype(np.bool_)
        elif kind == "float":
            columns[name] = random.normal(size=size).astype(np.float32)
        else:
            texts = [f"é{number}" for number in random.integers(0, 10**6, int(np.prod(size)))]
            columns[name] = np.array(texts, object).reshape(size)
    return columns


int64s = st.integers(0, 63).flatmap(lambda bits: st.integers(-(2**bits), 2**bits - 1))


@PATIENT
@given(array_columns(), st.sampled_from([None, {"country": ["NL"]}]))
def test_columns_are_what_protobuf_builds(
    columns: dict[str, Any], context: dict[str, list[str]] | None
) -> None:
    """Any arrays, with and without context, in a request or as single Examples, give protobuf's messages."""
    expected = as_protobuf_builds_it(columns, context)
    found, count = parsed(columns, context)
    assert count == len(next(iter(columns.values())))
    assert found == expected
    single = [message_class("tensorflow.Example").FromString(one) for one in serialize_examples(columns)]
    kind = "example_list" if context is None else "example_list_with_context"
    assert single == list(getattr(expected, kind).examples)


@pytest.mark.parametrize("rows", [1, 2, 100])
@pytest.mark.parametrize("wide", [False, True])
def test_numbers_beside_wide_rows(rows: int, wide: bool) -> None:
    """Integers of uneven length stand beside floats and texts of any width."""
    random = np.random.default_rng(rows)
    columns: dict[str, np.ndarray] = {
        "pixels": random.normal(size=(rows, 784 if wide else 7)).astype(np.float32),
        "id": random.integers(-5, 10**6, rows),
        "on": random.integers(0, 2, rows).astype(np.bool_),
    }
    assert parsed(columns)[0] == as_protobuf_builds_it(columns)
    columns["text"] = np.array([f"t{row}" for row in range(rows)], object)
    assert parsed(columns)[0] == as_protobuf_builds_it(columns)


@pytest.mark.parametrize(
    "dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", ">i4", ">f8", "?"]
)
def test_every_number_dtype(dtype: str) -> None:
    """Any width and byte order reads back as the same numbers, from contiguous arrays and others."""
    array = np.array([[0, 1, 7], [100, 1, 0]]).astype(dtype)
    for given_array in (array, np.asfortranarray(array), np.repeat(array, 2, axis=1)[:, ::2]):
        assert [row["x"][1] for row in all_features({"x": given_array})] == array.tolist()


def test_small_floats() -> None:
    """ml_dtypes' bfloat16 is a float like others."""
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes")
    column = np.array([1.5, 2.0], ml_dtypes.bfloat16)
    assert [row["x"] for row in all_features({"x": column})] == [("float_list", [1.5]), ("float_list", [2.0])]
    assert all_features([{"x": column}]) == [{"x": ("float_list", [1.5, 2.0])}]


def test_subclasses_of_pythons_types() -> None:
    """An IntEnum is an int."""
    color = enum.IntEnum("color", ["RED", "BLUE"])
    assert all_features([{"x": color.BLUE}]) == [{"x": ("int64_list", [2])}]


@pytest.mark.parametrize(
    ("examples", "told"),
    [
        (
            [{"x": 1.0}, {"x": 2}],
            "feature 'x' of example 1 is or holds an int, but example 0 begins with a float",
        ),
        ({"x": [1.0, 2.0, "3"]}, "feature 'x' of example 2 is or holds a str"),
        ([{"x": [1, 2.5]}], "feature 'x' of example 0 is or holds a float"),
        ([{"x": [1, True]}], "feature 'x' of example 0 is or holds a bool"),
        ({"x": 1, "y": [1, "a"]}, "feature 'y' of the example is or holds a str"),
        ([{"x": 1.0}, {}, {"x": None}], "feature 'x' of example 2 is or holds None"),
        ({"x": [1.0, None]}, "feature 'x' of example 1 is or holds None"),
        ({"x": np.array(["a", None], object)}, "feature 'x' of example 1 is or holds None"),
        ([{"x": [[1, 2], [3]]}], "feature 'x' of example 0 is ragged"),
        ([{"x": [[1, 2], 3]}], "feature 'x' of example 0 is ragged"),
        ([{"x": [[[1], [2]], [[3], [4, 5]]]}], "feature 'x' of example 0 is ragged"),
        ([{"x": {"y": 1}}], "feature 'x' of example 0 is or holds a dict"),
        ([{"x": 1j}], "holds a complex"),
        ({"x": np.array([1j])}, "feature 'x' of example 0 is of dtype complex128"),
        ({"x": np.array(["2020-01-01"], "M8[D]")}, "is of dtype datetime64"),
        ([{"x": np.datetime64("2020-01-01")}], "is of dtype datetime64"),
        ([{"x": 1}, {"x": 2**63}], "feature 'x' of example 1 is out of int64's range: 9223372036854775808"),
        ({"x": np.array([1, 2**63], np.uint64)}, "feature 'x' of example 1 is out of int64's range"),
        (
            {"x": np.array([[1.0, 1.0], [1.0, 1e39]])},
            "feature 'x' of example 1 is out of float32's range: 1e",
        ),
        ([{"x": 0.0}, {"x": -1e300}], "feature 'x' of example 1 is out of float32's range"),
        ([{"x": "a"}, {"x": "\ud800"}], "feature 'x' of example 1 is no text that UTF-8 can hold"),
        ({"x": [1, 2], "y": [1]}, "columns differ in length ('x': 2, 'y': 1)"),
        ([{7: 1}], "names of features are str, got 7"),
        ([{"\ud800": 1}], "is no text that UTF-8 can hold"),
        ({}, "an empty dict"),
        ("text", "got str"),
        (3, "got int"),
        (None, "got NoneType"),
        ([3], "example 0 is an int"),
        ([{"x": 1}, "text"], "example 1 is a str"),
        (b"\x0a\xff", "these 2 bytes are no serialized tf.Example"),
        ([{}, b"\x0a\xff"], "example 1: these 2 bytes"),
        (messages.ModelSpec(name="m"), "got a tensorflow.serving.ModelSpec message"),
        ([messages.ModelSpec(name="m")], "example 0 must be a tf.Example"),
        (np.array([b"\x0a\x00"]), "use dtype=object"),
    ],
)
def test_bad_examples_say_which_feature_and_row(examples: Any, told: str) -> None:
    """Nothing is guessed: mixed types, ragged lists, None and what no feature holds are refused."""
    with pytest.raises(InvalidInputError) as caught:
        encode_input(examples)
    assert told in str(caught.value)


@pytest.mark.parametrize("examples", [[], {"x": []}, {"x": np.empty((0, 3))}, messages.Input()])
def test_no_examples_are_refused(examples: Any) -> None:
    """The server would say that its input is empty; a context alone changes nothing."""
    with pytest.raises(InvalidInputError, match="there are no examples"):
        encode_input(examples)
    if not isinstance(examples, messages.Input):
        with pytest.raises(InvalidInputError, match="there are no examples"):
            encode_input(examples, {"x": 1})
    assert encode_input(examples, check=False)[1] == 0


def test_bad_contexts() -> None:
    """A context is one example; errors in it name it."""
    with pytest.raises(InvalidInputError, match="feature 'x' of the context is or holds None"):
        encode_input([{}], {"x": None})
    with pytest.raises(InvalidInputError, match="context must be a dict"):
        encode_input([{}], [{"x": 1}])  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="the context: these 2 bytes"):
        encode_input([{}], b"\x0a\xff")
    with pytest.raises(InvalidInputError, match="carries its own context"):
        encode_input(messages.Input(), {"x": 1})


def test_unchecked_bytes_pass() -> None:
    """Without checks, what is sent is what was given."""
    assert encode_input(b"\x0a\xff", check=False) == (b"\x0a\x04\x0a\x02\x0a\xff", 1)


def test_a_pandas_data_frame() -> None:
    """Each row is an example, each column a feature."""
    pandas = pytest.importorskip("pandas", reason="needs pandas, which is optional")
    frame = pandas.DataFrame({"age": [31, 52], "weight": [1.5, 2.5], "name": ["a", "b"]}, index=[7, 9])
    assert all_features(frame) == [
        {"age": ("int64_list", [31]), "weight": ("float_list", [1.5]), "name": ("bytes_list", [b"a"])},
        {"age": ("int64_list", [52]), "weight": ("float_list", [2.5]), "name": ("bytes_list", [b"b"])},
    ]
    with pytest.raises(InvalidInputError, match="feature 'x' of example 1"):
        encode_input(pandas.DataFrame({"x": pandas.array([1, None], "Int64")}))
    with pytest.raises(InvalidInputError, match="the same name"):
        encode_input(pandas.DataFrame([[1, 2]], columns=["a", "a"]))
    with pytest.raises(InvalidInputError, match="there are no examples"):
        encode_input(frame[:0])


PANDAS_COLUMNS: dict[str, tuple[Any, Any, list[Any]]] = {
    # what pandas.array makes a column of, dtype, what features hold
    "nullable integers": ([1, 2], "Int64", [1, 2]),
    "narrow nullable integers": ([1, 200], "UInt8", [1, 200]),
    "nullable floats": ([1.5, 2.0], "Float64", [1.5, 2.0]),
    "nullable bools": ([True, False], "boolean", [1, 0]),
    "strings": (["a", "Zoë"], "string", [b"a", "Zoë".encode()]),
    "strings in pyarrow": (["a", "b"], "string[pyarrow]", [b"a", b"b"]),
    "integers in pyarrow": ([1, 2], "int32[pyarrow]", [1, 2]),
    "categories of text": (["b", "a"], "category", [b"b", b"a"]),
    "categories of integers": ([7, 3], "category", [7, 3]),
    "objects": (["a", b"b"], object, [b"a", b"b"]),
    "sparse integers": ([0, 5], "Sparse[int64]", [0, 5]),
}


@pytest.mark.parametrize(("values", "dtype", "expected"), PANDAS_COLUMNS.values(), ids=PANDAS_COLUMNS.keys())
def test_pandas_columns_of_any_dtype(values: list[Any], dtype: Any, expected: list[Any]) -> None:
    """A column gives its values, whatever pandas keeps them in, in a frame, as a Series or as an array."""
    pandas = pytest.importorskip("pandas", reason="needs pandas, which is optional")
    if "pyarrow" in str(dtype):
        pytest.importorskip("pyarrow", reason="these columns need pyarrow, which is optional")
    column = pandas.Series(values, dtype=dtype, index=[7, 3])
    for examples in (pandas.DataFrame({"x": column}), {"x": column}, {"x": column.array}):
        assert [row["x"][1] for row in all_features(examples)] == [[value] for value in expected]
    for value, one in zip(column, expected, strict=True):
        assert all_features([{"x": value}])[0]["x"][1] == [one]


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, None], "Int64"),
        ([1.5, None], "Float32"),
        ([True, None], "boolean"),
        (["a", None], "string"),
        (["a", None], "category"),
        ([1, None], "category"),
        ([1, None], "int64[pyarrow]"),
        (["a", None], "str"),
    ],
)
def test_what_is_missing_in_pandas_is_refused(values: list[Any], dtype: str) -> None:
    """NA is not made a NaN, nor the integers beside it floats, wherever the column stands."""
    pandas = pytest.importorskip("pandas", reason="needs pandas, which is optional")
    if "pyarrow" in dtype:
        pytest.importorskip("pyarrow", reason="these columns need pyarrow, which is optional")
    if dtype == "str" and int(pandas.__version__.partition(".")[0]) < 3:
        pytest.skip("pandas before 3 makes the text 'None' of None in a column of str")
    column = pandas.Series(values, dtype=dtype)
    told = "feature 'x' of example 1 is missing: fill it, or give a list of dicts"
    for examples in (pandas.DataFrame({"x": column}), {"x": column}, {"x": column.array}):
        with pytest.raises(InvalidInputError, match=told):
            encode_input(examples)
    with pytest.raises(InvalidInputError, match="feature 'x' of example 2 is missing"):
        encode_input([{}, {}, {"x": column}])


def test_what_no_feature_holds_in_pandas() -> None:
    """Dates, NaN among text, and names that are no str are refused; NaN among floats is a float."""
    pandas = pytest.importorskip("pandas", reason="needs pandas, which is optional")
    dates = pandas.to_datetime(["2020-01-01", "2020-01-02"])
    expected = "features hold int, float, bool, str or bytes"
    for column, told in [
        (dates, "is of dtype datetime64"),
        (dates.tz_localize("UTC"), "is or holds a Timestamp"),
        (dates - dates[0], "is of dtype timedelta64"),
        (dates.to_period("D"), "is or holds a Period"),
        (pandas.interval_range(0, 2), "is or holds an Interval"),
        (pandas.Series([pandas.NaT] * 2, dtype=object), "is or holds a NaTType"),
        (pandas.Series([pandas.NA] * 2, dtype=object), "is or holds a NAType"),
    ]:
        with pytest.raises(InvalidInputError, match=f"feature 'x' of example 0 {told}.*: {expected}"):
            encode_input(pandas.DataFrame({"x": column}))
    with pytest.raises(InvalidInputError, match="example 1 is or holds NaN, but example 0 begins with a str"):
        encode_input(pandas.DataFrame({"x": pandas.Series(["a", float("nan")], dtype=object)}))
    with pytest.raises(InvalidInputError, match="names of features are str, got 0"):
        encode_input(pandas.DataFrame([[1, 2]]))
    with pytest.raises(InvalidInputError, match="example 0 is a Series: an example is a dict"):
        encode_input([pandas.Series({"x": 1})])
    (kind, (value,)) = all_features(pandas.DataFrame({"x": [float("nan")]}))[0]["x"]
    assert kind == "float_list"
    assert np.isnan(value)


def test_a_polars_data_frame() -> None:
    """It can be read like pandas' own; its nulls are refused."""
    polars = pytest.importorskip("polars", reason="needs polars, which is optional")
    frame = polars.DataFrame({"x": [1, 2], "y": ["a", "b"], "z": [[1.5], [2.5, 3.5]]})
    assert all_features(frame) == [
        {"x": ("int64_list", [1]), "y": ("bytes_list", [b"a"]), "z": ("float_list", [1.5])},
        {"x": ("int64_list", [2]), "y": ("bytes_list", [b"b"]), "z": ("float_list", [2.5, 3.5])},
    ]
    for values in ([1, None], ["a", None], [[1], None]):
        with pytest.raises(InvalidInputError, match="feature 'x' of example 1 is null"):
            encode_input(polars.DataFrame({"x": values}))


@pytest.mark.parametrize(
    ("values", "mask", "row"),
    [
        ([1, 2], [False, True], 1),
        ([1.5, 2.5], [True, False], 0),
        (["a", "b"], [False, True], 1),
        ([[1, 2], [3, 4]], [[False, False], [False, True]], 1),
    ],
)
def test_masked_values_are_refused(values: list[Any], mask: list[Any], row: int) -> None:
    """What is under numpy's mask is not sent; a mask that hides nothing does not matter."""
    masked = np.ma.array(values, mask=mask)  # type: ignore[no-untyped-call]
    with pytest.raises(InvalidInputError, match=f"feature 'x' of example {row} is or holds a masked value"):
        encode_input({"x": masked})
    with pytest.raises(InvalidInputError, match="feature 'x' of example 1 is or holds a masked value"):
        encode_input([{}, {"x": masked}])
    with pytest.raises(InvalidInputError, match="feature 'x' of example 1 is or holds a masked value"):
        encode_input([{"x": masked.data}, {"x": masked}])
    unmasked = np.ma.array(values)  # type: ignore[no-untyped-call]
    assert all_features({"x": unmasked}) == all_features({"x": values})


def test_numpy_scalars_are_numbers_of_their_kind() -> None:
    """Scalars of any width count as int, float, bool, str or bytes, alone and in lists."""
    for value, expected in [
        (np.int8(-1), ("int64_list", [-1])),
        (np.uint64(2**63 - 1), ("int64_list", [2**63 - 1])),
        (np.bool_(True), ("int64_list", [1])),
        (np.float16(1.5), ("float_list", [1.5])),
        (np.float64(1.5), ("float_list", [1.5])),
        (np.longdouble(1.5), ("float_list", [1.5])),
        (np.str_("ä"), ("bytes_list", ["ä".encode()])),
        (np.bytes_(b"a"), ("bytes_list", [b"a"])),
    ]:
        assert all_features([{"x": value}]) == [{"x": expected}]
        assert all_features([{"x": [value, value]}]) == [{"x": (expected[0], expected[1] * 2)}]
    assert all_features([{"x": [np.int8(1), 2, np.int64(3)]}]) == [{"x": ("int64_list", [1, 2, 3])}]
    for values, told in [
        ([np.bool_(True), 1], "holds an int, but the example begins with a bool"),
        ([np.int8(1), np.float32(2)], "holds a float, but the example begins with an int"),
        ([np.uint64(2**63)], "is out of int64's range: 9223372036854775808"),
        ([np.float64(1e39)], "is out of float32's range"),
    ]:
        with pytest.raises(InvalidInputError, match=f"feature 'x' of the example .*{told}"):
            encode_input({"x": values, "y": 1})


def test_a_pyarrow_table() -> None:
    """Lists may differ in length; a null is refused, not made a NaN."""
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow, which is optional")
    table = pyarrow.table({"age": [31, 52], "on": [True, False], "name": ["a", "b"], "ids": [[1], [2, 3]]})
    assert all_features(table) == [
        {
            "age": ("int64_list", [31]),
            "on": ("int64_list", [1]),
            "name": ("bytes_list", [b"a"]),
            "ids": ("int64_list", [1]),
        },
        {
            "age": ("int64_list", [52]),
            "on": ("int64_list", [0]),
            "name": ("bytes_list", [b"b"]),
            "ids": ("int64_list", [2, 3]),
        },
    ]
    with pytest.raises(InvalidInputError, match="feature 'x' of example 1 is null"):
        encode_input(pyarrow.table({"x": [1, None]}))


def arrow_columns() -> dict[str, tuple[Any, list[list[Any]]]]:
    """Columns of pyarrow, and the values of the feature in each example."""
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow, which is optional")
    text = pyarrow.array(["a", "b"])
    pairs = pyarrow.list_(pyarrow.int32(), 2)
    return {
        "chunked": (pyarrow.chunked_array([[1], [2, 3]]), [[1], [2], [3]]),
        "dictionary": (text.dictionary_encode(), [[b"a"], [b"b"]]),
        "dictionary in chunks": (
            pyarrow.chunked_array([text.dictionary_encode(), text[1:].dictionary_encode()]),
            [[b"a"], [b"b"], [b"b"]],
        ),
        "run ends": (
            pyarrow.RunEndEncodedArray.from_arrays(pyarrow.array([2, 3], pyarrow.int32()), [5, 6]),
            [[5], [5], [6]],
        ),
        "large text": (pyarrow.array(["a"], pyarrow.large_string()), [[b"a"]]),
        "binary": (pyarrow.array([b"\0a"]), [[b"\0a"]]),
        "half floats": (pyarrow.array(np.array([1.5], np.float16)), [[1.5]]),
        "bools": (pyarrow.array([True, False]), [[1], [0]]),
        "lists": (pyarrow.array([[1], [], [2, 3]]), [[1], [], [2, 3]]),
        "lists of text": (pyarrow.array([["a"], ["b", "c"]]), [[b"a"], [b"b", b"c"]]),
        "slice of lists": (pyarrow.array([[None], [1], [2, 3]])[1:], [[1], [2, 3]]),
        "lists of dictionaries": (
            pyarrow.array(
                [["a"], ["b"]], pyarrow.list_(pyarrow.dictionary(pyarrow.int8(), pyarrow.string()))
            ),
            [[b"a"], [b"b"]],
        ),
        "pairs": (pyarrow.array([[1, 2], [3, 4]], pairs), [[1, 2], [3, 4]]),
        "slice of pairs": (pyarrow.array([[1, 2], [3, 4], [5, 6]], pairs)[1:], [[3, 4], [5, 6]]),
        "pairs in chunks": (
            pyarrow.chunked_array([pyarrow.array([[1, 2]], pairs), pyarrow.array([[300, 4]], pairs)]),
            [[1, 2], [300, 4]],
        ),
        "lists of lists": (pyarrow.array([[[1, 2], [3, 4]], [[5]]]), [[1, 2, 3, 4], [5]]),
    }


def test_pyarrow_columns_of_any_type() -> None:
    """A column gives its values, whatever its layout, in a table, a batch, and in a dict of columns."""
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow, which is optional")
    for name, (column, expected) in arrow_columns().items():
        for examples in (pyarrow.table({"x": column}), {"x": column}):
            assert [row["x"][1] for row in all_features(examples)] == expected, name
        if not isinstance(column, pyarrow.ChunkedArray):
            batch = pyarrow.record_batch({"x": column})
            assert [row["x"][1] for row in all_features(batch)] == expected, name
    empty = pyarrow.array([[], []], pyarrow.list_(pyarrow.int64()))
    assert all_features({"x": empty}) == [{"x": ("int64_list", [])}] * 2
    assert all_features([{"x": pyarrow.array([1, 2])}]) == [{"x": ("int64_list", [1, 2])}]


def test_nulls_of_pyarrow_are_refused() -> None:
    """Nulls are found in lists, dictionaries and runs too, and never made a NaN."""
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow, which is optional")
    for column in (
        pyarrow.array([1, None]),
        pyarrow.chunked_array([["a"], [None]]),
        pyarrow.array(["a", None]).dictionary_encode(),
        pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 1]), pyarrow.array([1, None])),
        pyarrow.RunEndEncodedArray.from_arrays(pyarrow.array([1, 2], pyarrow.int32()), [5, None]),
        pyarrow.array([[1], None]),
        pyarrow.array([[1], [2, None]]),
        pyarrow.array([[1.5], [2.5, None]]),
        pyarrow.array([[[1]], [[2], [None]]]),
        pyarrow.array([[1, 2], [3, None]], pyarrow.list_(pyarrow.int32(), 2)),
    ):
        for examples in (pyarrow.table({"x": column}), {"x": column}):
            with pytest.raises(
                InvalidInputError, match="feature 'x' of example 1 (is|is or holds a) null: fill"
            ):
                encode_input(examples)
        with pytest.raises(InvalidInputError, match="feature 'x' of example 0 (is|is or holds a) null: fill"):
            encode_input([{"x": column}])
    for column, told in [
        (pyarrow.array([0], pyarrow.timestamp("us")), "is of dtype datetime64"),
        (pyarrow.array([0], pyarrow.date32()), "is of dtype datetime64"),
        (pyarrow.array([{"a": 1}]), "is or holds a dict"),
        (pyarrow.array([2**63], pyarrow.uint64()), "is out of int64's range: 9223372036854775808"),
    ]:
        with pytest.raises(InvalidInputError, match=f"feature 'x' of example 0 {told}"):
            encode_input(pyarrow.table({"x": column}))
