"""aioserving.testing.json_tensor: what bodies mean and how answers are printed, without HTTP and models."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from aioserving._proto import message_class
from aioserving.dtypes import DataType, numpy_dtype
from aioserving.testing import json_tensor
from aioserving.testing.status import StatusCode, StatusError

FLOAT, DOUBLE, INT32, INT64 = DataType.DT_FLOAT, DataType.DT_DOUBLE, DataType.DT_INT32, DataType.DT_INT64
BOOL, STRING = DataType.DT_BOOL, DataType.DT_STRING


def column(value: Any, data_type: int) -> Any:
    """The tensor that ``{"inputs": value}`` is for a signature of one input."""
    tensors, row = json_tensor.predict_inputs({"inputs": value}, {"x": data_type})
    assert not row
    return tensors["x"]


def row(instances: Any, inputs: dict[str, int] | None = None) -> Any:
    """The tensors that ``{"instances": instances}`` are."""
    tensors, is_row = json_tensor.predict_inputs({"instances": instances}, inputs or {"x": FLOAT})
    assert is_row
    return tensors


def refused(value: Any, data_type: int) -> str:
    """The text that a column value is refused with."""
    with pytest.raises(StatusError) as caught:
        column(value, data_type)
    assert caught.value.code is StatusCode.INVALID_ARGUMENT
    return caught.value.message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b"  ", "JSON Parse error: The document is empty. at offset: 2"),
        (b"{nope}", "JSON Parse error: Missing a name for object member. at offset: 1"),
        (b'{"a" 1}', "JSON Parse error: Missing a colon after a name of object member. at offset: 5"),
        (
            b'{"a[": [1 2]}',
            "JSON Parse error: Missing a comma or ] after an array element. at offset: 10",
        ),
        (
            b'{"a\\"[": 1 2}',
            "JSON Parse error: Missing a comma or } after an object member. at offset: 11",
        ),
        (b'{"a": x}', "JSON Parse error: Invalid value. at offset: 6"),
        (b"{} {}", "JSON Parse error: The document root must not be followed by other values. at offset: 3"),
        (b'{"a', "JSON Parse error: Missing a closing quotation mark in string. at offset: 1"),
        (b"[1]", "JSON Value: [\n    1\n] Is not object"),
        (b"2.0", "JSON Value: 2.0 Is not object"),
        (b"null", "JSON Value: null Is not object"),
    ],
)
def test_documents(body: bytes, message: str) -> None:
    """A body that is no JSON object is refused in the words of the real server's parser."""
    with pytest.raises(StatusError) as caught:
        json_tensor.parse_object(body)
    assert (caught.value.code, caught.value.message) == (StatusCode.INVALID_ARGUMENT, message)


def test_document_extras() -> None:
    """A byte order mark, JavaScript's special numbers, and bytes that are not UTF-8 are all taken."""
    document = json_tensor.parse_object(b'\xef\xbb\xbf{"a": [NaN, -Infinity, "\xff"]}')
    assert math.isnan(document["a"][0])
    assert document["a"][1] == -math.inf
    assert column(document["a"][2], STRING)[()] == b"\xff"


def test_signature_name() -> None:
    """A signature name is a string, and an empty one stands for none."""
    assert json_tensor.signature_name({}) == ""
    assert json_tensor.signature_name({"signature_name": "s"}) == "s"
    with pytest.raises(StatusError, match="'signature_name' key must be a string value."):
        json_tensor.signature_name({"signature_name": 1})


@pytest.mark.parametrize(
    ("value", "data_type", "message"),
    [
        (True, FLOAT, "JSON Value: true Type: True is not of expected type: float"),
        ("1", FLOAT, 'JSON Value: "1" Type: String is not of expected type: float'),
        (None, FLOAT, "JSON Value: null Type: Null is not of expected type: float"),
        (
            {"b64": "AA=="},
            FLOAT,
            'JSON Value: {\n    "b64": "AA=="\n} Type: Object is not of expected type: float',
        ),
        (2**24, FLOAT, "Cannot convert JSON value: 16777216 to float without loss of precision."),
        (-(2**24), FLOAT, "Cannot convert JSON value: -16777216 to float without loss of precision."),
        (1e39, FLOAT, "Cannot convert JSON value: 1e+39 to float without loss of precision."),
        (2**53, DOUBLE, "Cannot convert JSON value: 9007199254740992 to double without loss of precision."),
        (1.0, INT32, "JSON Value: 1.0 Type: Number is not of expected type: int32"),
        (0.1, INT64, "JSON Value: 0.1 Type: Number is not of expected type: int64"),
        (2**31, INT32, "JSON Value: 2147483648 Type: Number is not of expected type: int32"),
        (2**63, INT64, "JSON Value: 9223372036854775808 Type: Number is not of expected type: int64"),
        (-1, DataType.DT_UINT32, "JSON Value: -1 Type: Number is not of expected type: uint32"),
        (-1, DataType.DT_UINT64, "JSON Value: -1 Type: Number is not of expected type: uint64"),
        (True, INT32, "JSON Value: true Type: True is not of expected type: int32"),
        (1, BOOL, "JSON Value: 1 Type: Number is not of expected type: bool"),
        (1.5, STRING, "JSON Value: 1.5 Type: Number is not of expected type: string"),
        (False, STRING, "JSON Value: false Type: False is not of expected type: string"),
        ({"b64": 1}, STRING, 'JSON Value: {\n    "b64": 1\n} not formatted correctly for base64 data'),
        ({"b64": "A"}, STRING, "Unable to base64 decode"),
        ({"b64": "A?=="}, STRING, "Unable to base64 decode"),
    ],
)
def test_values_refused(value: Any, data_type: int, message: str) -> None:
    """What does not fit a data type exactly is refused, alone as among many good values."""
    if type(value) is not dict:  # alone, an object is one of inputs by name
        assert refused(value, data_type) == message
    good = {BOOL: True, STRING: "s"}.get(DataType(data_type), 1)
    assert refused([[good, good], [value, good]], data_type) == message


@pytest.mark.parametrize(
    ("value", "data_type", "expected"),
    [
        (1, FLOAT, 1.0),
        (2**24 - 1, FLOAT, 16777215.0),
        (16777216.0, FLOAT, 16777216.0),
        (2**53 - 1, DOUBLE, 9007199254740991.0),
        (10**300, DOUBLE, 1e300),
        (10**30, FLOAT, np.float32(1e30)),
        (math.inf, FLOAT, math.inf),
        (-(2**63), INT64, -(2**63)),
        (2**64 - 1, DataType.DT_UINT64, 2**64 - 1),
        (200, DataType.DT_INT8, -56),
        (256, DataType.DT_UINT8, 0),
        (-1, DataType.DT_UINT8, 255),
        (True, BOOL, True),
        ("ä", STRING, "ä".encode()),
    ],
)
def test_values_taken(value: Any, data_type: int, expected: Any) -> None:
    """Whole numbers do for float inputs, narrow integers wrap, and nothing else is converted."""
    array = column([value, value], data_type)
    assert array.dtype == numpy_dtype(data_type)
    assert array.tolist() == [expected, expected]
    assert column(value, data_type).shape == ()


@pytest.mark.parametrize("text", ["aGk=", "aGk", " aG\nk= "])
def test_base64(text: str) -> None:
    """Base64 needs no padding and may have blanks, in a tensor of strings and alone."""
    assert column({"b64": text}, STRING)[()] == b"hi"
    assert column(["a", {"b64": text}], STRING).tolist() == [b"a", b"hi"]
    assert row([{"b64": text}], {"x": STRING})["x"].tolist() == [b"hi"]


def test_types_without_json() -> None:
    """A data type that JSON cannot carry is not implemented; a row tells the same as a bad argument."""
    with pytest.raises(StatusError) as caught:
        column([1], DataType.DT_HALF)
    assert (caught.value.code, caught.value.message) == (
        StatusCode.UNIMPLEMENTED,
        "Conversion of JSON Value: 1 to type: half",
    )
    with pytest.raises(StatusError) as caught:
        row([1], {"x": DataType.DT_UINT16})
    assert (caught.value.code, caught.value.message) == (
        StatusCode.INVALID_ARGUMENT,
        "Failed to process element: 0 of 'instances' list. Error: UNIMPLEMENTED: Conversion of JSON Value: 1 "
        "to type: uint16",
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1, 2], [3]], "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
        ([[1], 2], "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
        ([1, [2]], "Encountered list at unexpected level: 1 expected < 1"),
        ([[], [1]], "Encountered list at unexpected size: 1 at level: 1 expected size: 0"),
    ],
)
def test_ragged_columns(value: Any, message: str) -> None:
    """A nested list of uneven depth or length is refused where that shows."""
    assert refused(value, FLOAT) == message


def test_column_forms() -> None:
    """A column is one tensor or an object of all inputs; further keys do not matter."""
    inputs = {"a": FLOAT, "b": STRING}
    tensors, _ = json_tensor.predict_inputs({"inputs": {"a": [1], "b": "s", "c": 0}}, inputs)
    assert {name: value.tolist() for name, value in tensors.items()} == {"a": [1.0], "b": b"s"}
    assert column({"x": [[]]}, FLOAT).shape == (1, 0)
    for value, text in (
        ({"a": 1}, "Missing named input: b in 'inputs' object."),
        ([1], "inputs is a plain value/list, but expecting an object as multiple input tensors"),
    ):
        with pytest.raises(StatusError, match=text):
            json_tensor.predict_inputs({"inputs": value}, inputs)


@pytest.mark.parametrize(
    ("instances", "inputs", "message"),
    [
        ([1, [2]], {"x": FLOAT}, "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
         "Expecting shape [] but got: [1]"),
        ([[1], [2, 3]], {"x": FLOAT}, "Failed to process element: 1 of 'instances' list. Error: "
         "INVALID_ARGUMENT: Expecting tensor size: 1 but got: 2"),
        ([1, {"x": 1}], {"x": FLOAT}, "Expecting value/list but got object at item 1 of input list"),
        ([{"x": 1}, 1], {"x": FLOAT}, "Expecting object but got list at item 1 of input list"),
        ([1], {"x": FLOAT, "y": FLOAT}, "instances is a plain list, but expecting list of objects as "
         "multiple input tensors required as per tensorinfo_map"),
        ([{"x": 1}, {"z": 1}], {"x": FLOAT}, "Failed to process element: 1 key: z of 'instances' list. "
         "Error: INVALID_ARGUMENT: JSON object: does not have named input: z"),
        ([{"x": 1}], {"y": FLOAT, "x": FLOAT}, "Failed to process element: 0 of 'instances' list. JSON "
         'object: {\n    "x": 1\n} keys must be equal to: x,y'),
        ([{"x": 1}, {"x": True}], {"x": FLOAT}, "Failed to process element: 1 key: x of 'instances' list. "
         "Error: INVALID_ARGUMENT: JSON Value: true Type: True is not of expected type: float"),
    ],
)  # fmt: skip
def test_rows_refused(instances: Any, inputs: dict[str, int], message: str) -> None:
    """Rows have to be alike, in shape and keys; the first that is not is named."""
    with pytest.raises(StatusError) as caught:
        row(instances, inputs)
    assert (caught.value.code, caught.value.message) == (StatusCode.INVALID_ARGUMENT, message)


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({}, "Missing 'inputs' or 'instances' key"),
        ({"instances": [1], "inputs": 1}, "Not formatted correctly expecting only one of 'inputs' or"),
        ({"instances": 1}, "Excepting 'instances' to be an list/array"),
        ({"instances": []}, "No values in 'instances' array"),
    ],
)
def test_predict_forms_refused(document: dict[str, Any], text: str) -> None:
    """A Predict has rows or columns: exactly one of them, and at least one row."""
    with pytest.raises(StatusError, match=text):
        json_tensor.predict_inputs(document, {"x": FLOAT})


def test_rows() -> None:
    """Rows of values or of objects become tensors with the number of rows in front."""
    assert row([1, 2.5])["x"].tolist() == [1.0, 2.5]
    assert row([[[1]], [[2]]])["x"].shape == (2, 1, 1)
    assert row([[], []])["x"].shape == (2, 0)
    assert row([{"x": 1}, {"x": 2}])["x"].tolist() == [1.0, 2.0]
    tensors = row([{"a": [1, 2], "s": "p"}, {"s": {"b64": "cQ=="}, "a": [3, 4]}], {"s": STRING, "a": INT32})
    assert tensors["a"].tolist() == [[1, 2], [3, 4]]
    assert tensors["s"].tolist() == [b"p", b"q"]
    assert row([{"b64": 1}], {"b64": FLOAT})["b64"].tolist() == [1.0]


_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**65), 2**65),
    st.floats(),
    st.sampled_from(["", "a", {"b64": "QQ"}]),
)
_VALUES = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=6)


def outcome(work: Any) -> Any:
    """A result that compares, or the error's text."""
    try:
        array = work()
    except StatusError as error:
        return str(error)
    return array.shape, array.dtype, array.tobytes() if array.dtype != object else array.tolist()


@settings(max_examples=300, deadline=None)
@given(
    value=st.one_of(
        _VALUES, st.lists(st.integers(-3, 3) | st.floats()), st.lists(st.booleans() | st.text("ab"))
    ),
    data_type=st.sampled_from(
        [FLOAT, DOUBLE, INT32, INT64, BOOL, STRING, DataType.DT_UINT64, DataType.DT_INT8]
    ),
)
def test_shortcut_finds_the_same(value: Any, data_type: int) -> None:
    """Converting an array at a time gives what going value by value gives, errors included."""

    def slowly() -> Any:
        shape, found = json_tensor._shape(value), []  # type: ignore[var-annotated]
        json_tensor._fill(value, shape, 0, json_tensor._leaf(data_type), found)
        return json_tensor._array(found, data_type, shape)

    assert outcome(lambda: column(value, data_type)) == outcome(slowly)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.0, "2.0"),
        (0.1, "0.1"),
        (1e6, "1e+06"),
        (3e-5, "3e-05"),
        (1 / 3, "0.333333343"),
        (123456789, "123456792.0"),
        (-0.0, "-0.0"),
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
    ],
)
def test_float_printing(value: float, text: str) -> None:
    """Floats have a point or an exponent, and no more digits than they need."""
    array = np.array(value, np.float32)
    assert json_tensor.outputs({"y": array}) == f'{{\n    "outputs": {text}\n}}'.encode()


@settings(max_examples=200, deadline=None)
@given(npst.arrays(st.sampled_from([np.float32, np.float64]), st.integers(0, 5)))
def test_floats_survive(array: Any) -> None:
    """Whatever float is printed is read back as the same."""
    back = np.array(json.loads(json_tensor.outputs({"y": array}))["outputs"], array.dtype)
    np.testing.assert_array_equal(back, array)


def test_layout_of_rows() -> None:
    """Rows are laid out as the real server lays them out, down to the blanks."""
    x = np.array([[1, 2], [3, 4]], np.float32)
    assert json_tensor.predictions({"x": x}) == b'{\n    "predictions": [[1.0, 2.0], [3.0, 4.0]\n    ]\n}'
    names = np.array([b"p", b'"'], object)
    assert json_tensor.predictions({"n": names, "x": x}).decode() == (
        '{\n    "predictions": [\n        {\n            "n": "p",\n            "x": [1.0, 2.0]\n        },\n'
        '        {\n            "n": "\\"",\n            "x": [3.0, 4.0]\n        }\n    ]\n}'
    )
    assert json_tensor.predictions({"a_bytes": names}).decode() == (
        '{\n    "predictions": [{\n            "b64": "cA=="\n        }, '
        '{\n            "b64": "Ig=="\n        }\n    ]\n}'
    )


@given(npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
def test_shapes_of_answers(shape: tuple[int, ...]) -> None:
    """Answers have the shape of the tensor, whatever it is, alone and among others."""
    array = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
    both = {"a": array, "b": array}
    assert json.loads(json_tensor.outputs({"a": array})) == {"outputs": array.tolist()}
    assert json.loads(json_tensor.outputs(both)) == {"outputs": {"a": array.tolist(), "b": array.tolist()}}
    if shape:
        assert json.loads(json_tensor.predictions({"a": array})) == {"predictions": array.tolist()}
        rows = [{"a": item.tolist(), "b": item.tolist()} for item in array]
        assert json.loads(json_tensor.predictions(both)) == {"predictions": rows}


def test_kinds_of_answers() -> None:
    """Integers, booleans and text have JSON's own form; bytes are base64 where the name says so."""
    tensors = {
        "b": np.array([True, False]),
        "i": np.array([1, 2**64 - 1], np.uint64),
        "t": np.array(["ä".encode(), b"\n"], object),
        "t_bytes": np.array([b"\0\xff", b""], object),
    }
    assert json.loads(json_tensor.outputs(tensors)) == {
        "outputs": {
            "b": [True, False],
            "i": [1, 2**64 - 1],
            "t": ["ä", "\n"],
            "t_bytes": [{"b64": "AP8="}, {"b64": ""}],
        }
    }
    assert json_tensor.outputs({"t": np.array(b"\xff", object)}) == b'{\n    "outputs": "\xff"\n}'
    assert json.loads(json_tensor.outputs({"i_bytes": np.array(1, np.int8)})) == {"outputs": 1}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"y": np.float32(1)}, "Tensor name: y has no shape information "),
        (
            {"y": np.zeros(2, np.float32), "z": np.zeros(3, np.float32)},
            "Tensor name: z has inconsistent batch size: 3 expecting: 2",
        ),
        ({"y": np.zeros(2, np.float16)}, "Failed to write JSON value for tensor type: half"),
        ({"y": np.zeros(2, np.uint16)}, "Failed to write JSON value for tensor type: uint16"),
        ({"y": np.zeros(2, np.complex64)}, "Failed to write JSON value for tensor type: complex64"),
    ],
)
def test_answers_refused(tensors: dict[str, Any], message: str) -> None:
    """Outputs that are no batches, or of a type that JSON does not have, cannot be answered in rows."""
    arrays = {name: np.asarray(value) for name, value in tensors.items()}
    with pytest.raises(StatusError) as caught:
        json_tensor.predictions(arrays)
    assert (caught.value.code, caught.value.message) == (StatusCode.INVALID_ARGUMENT, message)


def test_examples() -> None:
    """Whole numbers and booleans are int64 features, decimals float, strings and base64 bytes."""
    document: dict[str, Any] = {
        "context": {"c": 1},
        "examples": [{"i": [1, True], "f": 1.5, "s": ["a", {"b64": "Yg=="}], "none": []}, {}],
    }
    source = json_tensor.examples_input(document)
    first, second = source.example_list_with_context.examples
    feature = first.features.feature
    assert list(feature["i"].int64_list.value) == [1, 1]
    assert list(feature["f"].float_list.value) == [1.5]
    assert list(feature["s"].bytes_list.value) == [b"a", b"b"]
    assert feature["none"].WhichOneof("kind") is None
    assert not second.features.feature
    context = source.example_list_with_context.context.features.feature
    assert list(context["c"].int64_list.value) == [1]
    assert json_tensor.examples_input({"examples": [{}]}).WhichOneof("kind") == "example_list"


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({}, "When method is classify, key 'examples' is expected and was not found"),
        ({"examples": 1}, "Expecting 'examples' value to be an list/array"),
        ({"examples": []}, "'examples' value is an empty array"),
        ({"examples": [1]}, "Example must be JSON object but got JSON Number"),
        ({"context": [], "examples": []}, "Example must be JSON object but got JSON Array"),
        ({"examples": [{"x": None}]}, "Feature: x has element with unexpected JSON type: Null"),
        ({"examples": [{"x": [[1]]}]}, "Feature: x has element with unexpected JSON type: Array"),
        ({"examples": [{"x": {"y": 1}}]}, "Feature: x has element with unexpected JSON type: Object"),
        ({"examples": [{"x": [1, 1.5]}]}, "Unexpected element type in feature: x expecting type: int64"),
        ({"examples": [{"x": [1.5, "a"]}]}, "Unexpected element type in feature: x expecting type: float"),
        ({"examples": [{"x": ["a", 1]}]}, "Unexpected element type in feature: x expecting type: bytes"),
        ({"examples": [{"x": 2**63}]}, "Feature: x has uint64 element. Only int64 is supported."),
        ({"examples": [{"x": 1e39}]}, r"Cannot convert JSON value: 1e\+39 to float without loss"),
    ],
)
def test_examples_refused(document: dict[str, Any], text: str) -> None:
    """Examples are objects of values, or of flat lists of one kind of value."""
    with pytest.raises(StatusError, match=text) as caught:
        json_tensor.examples_input(document)
    assert caught.value.code is StatusCode.INVALID_ARGUMENT


def test_results() -> None:
    """Classes are pairs of label and score, also a label that is not UTF-8; regressions are numbers."""
    # {result {classifications {classes {label: "\xff" score: 0.5} classes {}}}}
    response = bytes.fromhex("0a0e0a0c0a080a01ff150000003f0a00")
    assert json_tensor.classifications(response) == (
        b'{\n    "results": [[["\xff", 0.5], ["", 0.0]]\n    ]\n}'
    )
    message: Any = message_class("tensorflow.serving.RegressionResponse")()
    for value in (3.0, 0.0):
        message.result.regressions.add(value=value)
    assert json_tensor.regressions(message.SerializeToString()) == b'{\n    "results": [3.0, 0.0]\n}'
    assert json_tensor.error_body('a "b"\n') == b'{\n    "error": "a \\"b\\"\\n"\n}'


def test_values_in_texts() -> None:
    """Error texts quote nested values indented, with numbers in full and as short as can be."""
    assert json_tensor.value_text({"a": [1, 2.5, 1e22, 1e-7, 1e-05, None], "b": [], "c": {}}) == (
        '{\n    "a": [\n        1,\n        2.5,\n        1e22,\n        1e-7,\n        0.00001,\n'
        '        null\n    ],\n    "b": [],\n    "c": {}\n}'
    )
    assert json_tensor.value_text([1e300, -123000.0, 0.0]) == "[\n    1e300,\n    -123000.0,\n    0.0\n]"


def test_large_arrays_are_not_slow() -> None:
    """A body of 400,000 numbers takes no longer than a few times Python's own JSON."""
    import time

    array = np.random.default_rng(0).standard_normal((500, 800)).astype(np.float32)
    body = json.dumps({"instances": array.tolist()}).encode()
    shares = []
    for _ in range(3):
        began = time.perf_counter()
        json.dumps(json.loads(body))
        plain = time.perf_counter() - began
        began = time.perf_counter()
        tensors, _ = json_tensor.predict_inputs(json_tensor.parse_object(body), {"x": FLOAT})
        json_tensor.predictions(tensors)
        shares.append((time.perf_counter() - began) / plain)
    np.testing.assert_array_equal(tensors["x"], array)
    assert min(shares) < 8
