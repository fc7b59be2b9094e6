"""Inputs are checked and cast before sending, since the server would take them as they are."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioserving import _proto, codec
from aioserving.codec import encode_model_spec, encode_predict_request
from aioserving.dtypes import DataType
from aioserving.errors import (
    DecodeError,
    InvalidInputError,
    MessageTooLargeError,
    ServingError,
    SignatureNotFoundError,
)
from aioserving.signature import ModelMetadata, RequestEncoder, Signature, TensorSpec


def spec(
    name: str,
    data_type: DataType = DataType.DT_FLOAT,
    shape: tuple[int, ...] | None = (-1, 3),
    default: Any = None,
    kind: str = "dense",
) -> TensorSpec:
    return TensorSpec(name, data_type, shape, f"{name}:0", kind, default)


def signature(*inputs: TensorSpec) -> Signature:
    outputs = {"scores": spec("scores"), "classes": spec("classes", DataType.DT_STRING, (-1,))}
    return Signature("serving_default", {item.name: item for item in inputs}, outputs, model="digits")


IMAGES = signature(spec("images", shape=(-1, 784)))


def refused(signature: Signature, inputs: Any) -> str:
    with pytest.raises(InvalidInputError) as caught:
        signature.prepare(inputs)
    assert caught.value.model == "digits"
    assert caught.value.code == "INVALID_ARGUMENT"
    return caught.value.details


def test_a_fitting_array_is_passed_on_as_it_is() -> None:
    """What has the right dtype and shape is neither copied nor touched."""
    images = np.zeros((5, 784), np.float32)
    assert IMAGES.prepare({"images": images})["images"] is images


def test_a_single_input_may_be_given_alone() -> None:
    """A signature with one input needs no name."""
    images = np.zeros((5, 784), np.float32)
    assert IMAGES.prepare(images)["images"] is images


def test_a_single_value_for_several_inputs_is_refused() -> None:
    """With two inputs the error lists them."""
    assert refused(signature(spec("a"), spec("b")), np.zeros((1, 3))) == (
        "digits/serving_default takes 2 inputs ('a', 'b'), got a single ndarray: give a mapping from input "
        "names to values"
    )


def test_wrong_dtype_and_shape_are_told_together() -> None:
    """The message shows what was expected and what came."""
    assert refused(IMAGES, np.zeros((32, 28, 28))) == (
        "input 'images' of digits/serving_default expects float32 (-1, 784), got float64 (32, 28, 28)"
    )


@pytest.mark.parametrize("shape", [(), (784,), (1, 783), (1, 784, 1)])
def test_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    """The server would compute with it."""
    assert f"got float32 {shape}" in refused(IMAGES, np.zeros(shape, np.float32))


def test_unknown_rank_takes_any_shape() -> None:
    """A spec without a rank says nothing about shapes."""
    anything = signature(spec("x", shape=None))
    for shape in ((), (1,), (2, 0, 3)):
        assert anything.prepare(np.zeros(shape, np.float32))["x"].shape == shape
    assert str(anything.inputs["x"]) == "float32 of any shape"


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (np.float64, DataType.DT_FLOAT),
        (np.int64, DataType.DT_INT32),
        (np.int64, DataType.DT_FLOAT),
        (np.uint8, DataType.DT_FLOAT),
        (np.bool_, DataType.DT_INT64),
        (np.float32, DataType.DT_HALF),
        (np.float32, DataType.DT_COMPLEX64),
        (">f4", DataType.DT_FLOAT),
    ],
)
def test_arrays_are_cast_within_their_kind(source: Any, target: DataType) -> None:
    """What numpy calls `same_kind` is cast."""
    array = np.ones((1, 3), source)
    (prepared,) = signature(spec("x", target)).prepare(array).values()
    assert prepared.dtype == TensorSpec("x", target, None).dtype
    assert prepared.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize(
    ("array", "target"),
    [
        (np.ones((1, 3)), DataType.DT_INT32),
        (np.ones((1, 3), np.int32), DataType.DT_BOOL),
        (np.ones((1, 3), np.complex64), DataType.DT_FLOAT),
        (np.array([["a", "b", "c"]]), DataType.DT_FLOAT),
        (np.array([[1, 2, 3]], object), DataType.DT_FLOAT),
        (np.zeros((1, 3), "M8[s]"), DataType.DT_INT64),
        (np.zeros((1, 3), np.float32), DataType.DT_STRING),
    ],
)
def test_other_casts_of_arrays_are_refused(array: np.ndarray[Any, Any], target: DataType) -> None:
    """A cast that could change values is the caller's to make."""
    refused(signature(spec("x", target)), array)


def test_nan_never_becomes_an_integer() -> None:
    """NaN in a list or an array for an integer input is refused, not cut to a number."""
    whole = signature(spec("x", DataType.DT_INT32))
    refused(whole, [[1.0, float("nan"), 2.0]])
    refused(whole, np.array([[1.0, np.nan, 2.0]]))


@pytest.mark.parametrize("values", [[[300, 0, 0]], [[-129, 0, 0]]])
def test_integers_out_of_range_are_refused(values: list[list[int]]) -> None:
    """The server would let them wrap."""
    small = signature(spec("x", DataType.DT_INT8))
    assert "out of range" in refused(small, values)
    assert "out of range" in refused(small, np.array(values))


def test_floats_that_would_become_infinite_are_refused() -> None:
    """A float64 beyond float32 is an error; an infinity that was one stays one."""
    x = signature(spec("x"))
    assert "out of range" in refused(x, np.array([[1e300, 0, 0]]))
    assert x.prepare(np.array([[np.inf, np.nan, 0]]))["x"][0, 0] == np.inf


@pytest.mark.parametrize(
    ("value", "target", "shape", "expected"),
    [
        ([[1, 2, 3]], DataType.DT_FLOAT, (-1, 3), [[1.0, 2.0, 3.0]]),
        (((1.5, 2, True),), DataType.DT_FLOAT, (-1, 3), [[1.5, 2.0, 1.0]]),
        ([[1, 2, 3]], DataType.DT_UINT8, (-1, 3), [[1, 2, 3]]),
        ([True, False], DataType.DT_BOOL, (-1,), [True, False]),
        (7, DataType.DT_INT64, (), 7),
        (7, DataType.DT_FLOAT, (), 7.0),
        (range(3), DataType.DT_INT32, (-1,), [0, 1, 2]),
        ([], DataType.DT_INT32, (-1,), []),
        ("text", DataType.DT_STRING, (), "text"),
        (b"\0bytes\0", DataType.DT_STRING, (), b"\0bytes\0"),
        ([["a"], [b"b\0"]], DataType.DT_STRING, (-1, 1), [["a"], [b"b\0"]]),
        (np.float64(2.5), DataType.DT_FLOAT, (), 2.5),
    ],
)
def test_lists_and_scalars_take_the_signatures_dtype(
    value: Any, target: DataType, shape: tuple[int, ...], expected: Any
) -> None:
    """Plain Python values need no numpy on the caller's side."""
    one = signature(spec("x", target, shape))
    (prepared,) = one.prepare({"x": value}).values()
    assert prepared.dtype == one.inputs["x"].dtype
    assert prepared.tolist() == expected


@pytest.mark.parametrize(
    ("value", "target", "why"),
    [
        (None, DataType.DT_FLOAT, "got None"),
        ([None, 1.0, 2.0], DataType.DT_FLOAT, "it holds None"),
        ([[1, 2], [3]], DataType.DT_FLOAT, "inhomogeneous"),
        ([1.5, 2.0, 3.0], DataType.DT_INT32, "the values would change"),
        (["1", "2", "3"], DataType.DT_FLOAT, "no numbers"),
        ([1, 2, 3], DataType.DT_STRING, "str or bytes"),
        (["a", None], DataType.DT_STRING, "it holds"),
        ([2**70, 1, 1], DataType.DT_INT64, "out of range"),
        (object(), DataType.DT_FLOAT, "it holds"),
        ({1, 2}, DataType.DT_FLOAT, "it holds"),
    ],
)
def test_values_that_fit_no_array_are_refused(value: Any, target: DataType, why: str) -> None:
    """Ragged lists, None, cut values and foreign objects are told apart in the message."""
    details = refused(signature(spec("x", target, None)), {"x": value})
    assert why in details
    assert details.startswith("input 'x' of digits/serving_default expects")


def test_a_misspelt_input_suggests_the_near_name() -> None:
    """Both the extra name and the missing one are named."""
    details = refused(IMAGES, {"imagse": np.zeros((1, 784), np.float32)})
    assert details == (
        "unknown input 'imagse' (did you mean 'images'?); missing input 'images'; "
        "digits/serving_default takes 'images': float32 (-1, 784)"
    )


def test_missing_inputs_are_all_named() -> None:
    """One error lists everything that is missing."""
    assert "missing inputs 'b', 'c'" in refused(
        signature(spec("a"), spec("b"), spec("c")), {"a": np.zeros((1, 3), np.float32)}
    )


def test_inputs_with_a_default_may_be_left_out() -> None:
    """The server fills in a signature's defaults."""
    both = signature(spec("a"), spec("b", default=np.ones(3)))
    a = np.zeros((1, 3), np.float32)
    assert list(both.prepare({"a": a})) == ["a"]
    assert list(both.prepare(a)) == ["a"]
    assert "missing input 'a'" in refused(both, {"b": a})


def test_a_signature_without_inputs_takes_an_empty_mapping() -> None:
    """Stateful models have such signatures."""
    none = signature()
    assert none.prepare({}) == {}
    assert "takes no inputs" in refused(none, 1.0)


def test_sparse_inputs_are_refused() -> None:
    """Predict cannot feed them."""
    assert "sparse" in refused(signature(spec("x", kind="sparse")), [[1, 2, 3]])


def test_object_arrays_of_strings_are_checked() -> None:
    """An object array for a string input may hold str and bytes, nothing else."""
    strings = signature(spec("x", DataType.DT_STRING, (-1,)))
    array = np.array(["a", b"b"], object)
    assert strings.prepare(array)["x"] is array
    assert "it holds int 1" in refused(strings, np.array(["a", 1], object))
    assert strings.prepare(np.array(["a", "b"]))["x"].dtype.kind == "U"


def test_the_output_filter_is_checked() -> None:
    """An unknown output suggests the near one; a name may be there once."""
    IMAGES.check_outputs(["scores", "classes"])
    with pytest.raises(InvalidInputError, match=re.escape("(did you mean 'scores'?)")):
        IMAGES.check_outputs(["score"])
    with pytest.raises(InvalidInputError, match="twice"):
        IMAGES.check_outputs(["scores", "scores"])


def make_response() -> Any:
    response: Any = _proto.message_class("tensorflow.serving.GetModelMetadataResponse")()
    response.model_spec.name = "digits"
    response.model_spec.version.value = 7
    signatures: Any = _proto.message_class("tensorflow.serving.SignatureDefMap")()
    default = signatures.signature_def["serving_default"]
    default.method_name = "tensorflow/serving/predict"
    info = default.inputs["images"]
    info.name, info.dtype = "images:0", 1
    info.tensor_shape.dim.add(size=-1)
    info.tensor_shape.dim.add(size=784)
    other = default.inputs["bias"]
    other.name, other.dtype = "bias:0", 101  # DT_FLOAT_REF
    default.defaults["bias"].dtype = 1
    default.defaults["bias"].float_val.append(0.5)
    default.outputs["any"].dtype = 7
    default.outputs["any"].tensor_shape.unknown_rank = True
    default.inputs["ids"].coo_sparse.values_tensor_name = "ids:0"
    signatures.signature_def["__saved_model_init_op"].outputs["NoOp"].tensor_shape.unknown_rank = True
    response.metadata["signature_def"].Pack(signatures)
    return response


def test_metadata_is_read_from_the_response() -> None:
    """Names, dtypes, shapes, defaults and kinds come through; the internal signature is set apart."""
    metadata = ModelMetadata.from_response(make_response().SerializeToString())
    assert (metadata.name, metadata.version, list(metadata.signatures)) == ("digits", 7, ["serving_default"])
    default = metadata.signature()
    images, bias, ids = default.inputs["images"], default.inputs["bias"], default.inputs["ids"]
    assert (images.dtype, images.shape, images.tensor_name) == (np.float32, (-1, 784), "images:0")
    assert (bias.data_type, bias.shape, bias.default) == (DataType.DT_FLOAT, (), 0.5)
    assert ids.kind == "sparse"
    assert (default.outputs["any"].shape, default.outputs["any"].dtype) == (None, object)
    assert list(metadata.internal_signatures) == ["__saved_model_init_op"]
    assert metadata.proto == make_response()


def test_metadata_prints_as_a_table() -> None:
    """A table of inputs and outputs is what a person wants to see first."""
    lines = str(ModelMetadata.from_response(make_response().SerializeToString())).splitlines()
    assert lines[0] == "digits, version 7"
    assert any(
        line.split() == ["serving_default", "input", "images", "float32", "(-1,", "784)"] for line in lines
    )


def test_an_unknown_signature_suggests_the_near_one() -> None:
    """The error lists what the model has."""
    metadata = ModelMetadata.from_response(make_response().SerializeToString())
    with pytest.raises(SignatureNotFoundError, match=r"did you mean 'serving_default'\?"):
        metadata.signature("serving_defualt")


def test_bytes_that_are_no_metadata_are_a_decode_error() -> None:
    """A malformed answer is not protobuf's exception but ours."""
    with pytest.raises(DecodeError):
        ModelMetadata.from_response(b"\xff\xff\xff")


def test_repr_shows_the_call() -> None:
    """A signature's repr reads like a function's."""
    assert repr(IMAGES) == (
        "<Signature serving_default(images: float32 (-1, 784)) -> "
        "(scores: float32 (-1, 3), classes: string (-1,))>"
    )


def test_example_inputs() -> None:
    """Zeros and empty strings of shapes and dtypes that the signature itself takes."""
    shapes: dict[str, tuple[DataType, tuple[int, ...] | None, str]] = {
        "rows": (DataType.DT_FLOAT, (-1, 3, -1), "dense"),
        "scalar": (DataType.DT_INT64, (), "dense"),
        "fixed": (DataType.DT_BOOL, (4,), "dense"),
        "any": (DataType.DT_STRING, None, "dense"),
        "sparse": (DataType.DT_FLOAT, (-1,), "sparse"),
    }
    signature = Signature(
        "s",
        {name: TensorSpec(name, dtype, shape, kind=kind) for name, (dtype, shape, kind) in shapes.items()},
        {},
    )
    arrays = signature.example_inputs(batch=2)
    assert {name: (array.dtype.kind, array.shape) for name, array in arrays.items()} == {
        "rows": ("f", (2, 3, 1)),
        "scalar": ("i", ()),
        "fixed": ("b", (4,)),
        "any": ("O", (2,)),
    }
    assert arrays["any"].tolist() == [b"", b""]
    assert not arrays["rows"].any()
    assert all(signature.inputs[name].fits(array.shape) for name, array in arrays.items())
    with pytest.raises(ValueError, match="batch"):
        signature.example_inputs(batch=-1)


# ------------------------------------------------------------------ requests that repeat

SPEC = encode_model_spec("digits", signature_name="serving_default")
#: Signatures of every kind: one input, several, with a default, strings, any shape, none at all.
SIGNATURES = {
    "one": IMAGES,
    "two": signature(spec("a"), spec("b", DataType.DT_INT64, (-1,))),
    "default": signature(spec("a"), spec("b", default=np.zeros((1, 3), np.float32))),
    "strings": signature(spec("a", DataType.DT_STRING, (-1,))),
    "any": signature(spec("a", DataType.DT_BOOL, None)),
    "half": signature(spec("a", DataType.DT_HALF, (2, -1))),
    "quantized": signature(spec("a", DataType.DT_QINT8, (-1,))),
    "sparse": signature(spec("a", kind="sparse")),
    "none": signature(),
}
ARRAYS: list[Any] = [
    np.zeros((2, 784), np.float32),
    np.ones((2, 784), np.float32),
    np.ones((3, 784), np.float32),
    np.ones((784, 2), np.float32).T,
    np.ones((2, 784), ">f4"),
    np.ones((2, 784)),
    np.ones((2, 783), np.float32),
    np.ones((2, 784), np.float32).view(np.memmap),
    np.ma.masked_array(np.ones((2, 784), np.float32), mask=False),
    np.ones((2, 3), np.float32),
    np.ones((0, 3), np.float32),
    np.full((2, 3), 1e300),
    np.ones((2, 4), np.float16),
    np.arange(4),
    np.arange(4)[::2],
    np.arange(4, dtype=np.int8),
    np.array([True, False]),
    np.array(True),
    np.array([b"x", "y"], object),
    np.array([b"x", None], object),
    np.array(["x", "yy"]),
    np.array(["2020-01-01"], "M8[D]"),
    np.float32(1),
    [[1, 2, 3]],
    [1, 2],
    "text",
    None,
]
FILTERS: list[Sequence[str]] = [(), ["scores"], ("scores", "classes"), ["score"], ["scores", "scores"]]


def requested(encode: Callable[[], bytes]) -> bytes | tuple[type, str]:
    """The bytes, or the error and its text."""
    try:
        return encode()
    except ServingError as error:
        return type(error), str(error)


@pytest.mark.parametrize("kind", sorted(SIGNATURES))
@given(st.data())
@settings(deadline=None)
def test_what_was_encoded_before_changes_no_request(kind: str, data: st.DataObject) -> None:
    """An encoder gives the bytes and the errors of checking and encoding anew, whatever came before."""
    called = SIGNATURES[kind]
    encoder = RequestEncoder(called, SPEC)
    names = [*called.inputs, "other"]
    given_inputs = st.sampled_from(ARRAYS) | st.dictionaries(
        st.sampled_from(names), st.sampled_from(ARRAYS), max_size=3
    )
    # The same few again and again, so that most are known already.
    some = data.draw(st.lists(st.tuples(given_inputs, st.sampled_from(FILTERS)), min_size=1, max_size=5))
    for inputs, names_wanted in data.draw(st.lists(st.sampled_from(some), min_size=5, max_size=30)):

        def anew(inputs: Any = inputs, output_filter: Sequence[str] = names_wanted) -> bytes:
            arrays = called.prepare(inputs)
            called.check_outputs(output_filter)
            return encode_predict_request(arrays, model_spec=SPEC, output_filter=output_filter)

        assert requested(lambda: encoder.encode(inputs, names_wanted)) == requested(anew)


@pytest.mark.parametrize(
    "wrap", [lambda array: array, lambda array: {"images": array}], ids=["alone", "dict"]
)
@pytest.mark.parametrize("output_filter", [(), ["scores"]], ids=["all", "filter"])
def test_a_known_kind_of_input_is_not_checked_again(
    monkeypatch: pytest.MonkeyPatch, wrap: Callable[[Any], Any], output_filter: Sequence[str]
) -> None:
    """Arrays of a dtype and shape that were sent before need no look at the signature, and travel afresh."""
    encoder = RequestEncoder(IMAGES, SPEC)
    images = np.ones((2, 784), np.float32)
    encoder.encode(wrap(images), output_filter)
    monkeypatch.setattr(Signature, "prepare", None)
    images *= 2
    request = encoder.encode(wrap(images), output_filter)
    assert request == encode_predict_request({"images": images}, model_spec=SPEC, output_filter=output_filter)
    assert repr(encoder) == "<RequestEncoder for digits/serving_default, 1 kinds of inputs known>"


@pytest.mark.parametrize(
    "wrap", [lambda array: array, lambda array: {"images": array}], ids=["alone", "dict"]
)
def test_too_large_a_request_is_refused_each_time(
    monkeypatch: pytest.MonkeyPatch, wrap: Callable[[Any], Any]
) -> None:
    """The limit of a message holds for inputs that are known, too, and for what an output filter adds."""
    monkeypatch.setattr(codec, "MAX_MESSAGE_BYTES", 7000)
    monkeypatch.setattr("aioserving.signature.MAX_MESSAGE_BYTES", 7000)
    # A model of its own, since the beginnings of requests that fit the real limit are remembered elsewhere.
    limited = encode_model_spec("limited")
    encoder = RequestEncoder(IMAGES, limited)
    for _ in range(3):
        with pytest.raises(MessageTooLargeError):
            encoder.encode(wrap(np.ones((3, 784), np.float32)))
        assert encoder.encode(wrap(np.ones((2, 784), np.float32)))
    room = 7000 - len(encoder.encode(wrap(np.ones((2, 784), np.float32))))
    name = "s" * (room + 1)
    wide = RequestEncoder(
        Signature("serving_default", IMAGES.inputs, {name: spec(name)}, model="digits"), limited
    )
    for _ in range(3):
        assert wide.encode(wrap(np.ones((1, 784), np.float32)), [name])
        with pytest.raises(MessageTooLargeError):
            wide.encode(wrap(np.ones((2, 784), np.float32)), [name])
        assert wide.encode(wrap(np.ones((2, 784), np.float32)))


def test_what_an_encoder_keeps_is_bounded() -> None:
    """Batches of any number of sizes leave a bounded memory behind."""
    encoder = RequestEncoder(signature(spec("a")), SPEC)
    for size in range(3000):
        array = np.zeros((size, 3), np.float32)
        encoder.encode(array)
        encoder.encode({"a": array})
    assert 1 <= len(encoder._heads) <= 1024
    assert 1 <= len(encoder._alone) <= 1024


@pytest.mark.parametrize(
    "wrap", [lambda array: array, lambda array: {"images": array}], ids=["alone", "dict"]
)
def test_a_known_kind_of_input_may_lie_otherwise_in_memory(wrap: Callable[[Any], Any]) -> None:
    """An array whose memory is not in C order is sent in C order, also where such a shape is known."""
    encoder = RequestEncoder(IMAGES, SPEC)
    images = np.arange(2 * 784, dtype=np.float32).reshape(2, 784)
    request = encoder.encode(wrap(images))
    assert encoder.encode(wrap(np.asfortranarray(images))) == request
    assert encoder.encode(wrap(np.repeat(images, 2, axis=1)[:, ::2])) == request
    assert encoder.encode(wrap(images.astype(">f4"))) == request


def test_tensor_data_is_held_no_longer_than_needed() -> None:
    """Encoding takes the memory of the request, and that of a cast while it is made, and keeps no more."""
    encoder = RequestEncoder(IMAGES, SPEC)
    images = np.ones((2000, 784), np.float32)
    doubles = images.astype(np.float64)
    size = images.nbytes
    for inputs, copies in ((images, 1), (doubles, 2), (images, 1), (np.asfortranarray(images), 2)):
        tracemalloc.start()
        try:
            request = encoder.encode({"images": inputs})
            kept, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(request) > size
        assert kept < 1.01 * size
        assert peak < (copies + 0.01) * size
