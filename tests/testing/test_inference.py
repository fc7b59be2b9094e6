"""Requests as bytes, answers as bytes, on Python functions: every check of the reference, in its order."""

from __future__ import annotations

import dataclasses
import gc
import math
import struct
import sys
import weakref
from typing import Any

import numpy as np
import pytest

from aioserving import dtypes
from aioserving._proto import message_class
from aioserving.codec import encode_model_spec, encode_predict_request
from aioserving.dtypes import DataType
from aioserving.testing import inference
from aioserving.testing.servable import (
    CLASSIFY,
    PREDICT,
    REGRESS,
    CallableServable,
    CallableSignature,
    TensorSpec,
)
from aioserving.testing.status import StatusCode, StatusError

FLOATS = ("float32", (None,))
STRINGS = ("string", (None,))


@dataclasses.dataclass
class Options:
    enable_serialization_as_tensor_content: bool = False
    enable_signature_method_name_check: bool = False


def serving(message: str, /, **fields: Any) -> Any:
    return message_class(f"tensorflow.serving.{message}")(**fields)


def spec(signature: str = "", name: str = "model") -> Any:
    return serving("ModelSpec", name=name, signature_name=signature)


def answer(method: str, servable: CallableServable, request: Any, **options: bool) -> Any:
    """The parsed response of `servable`, as version 7 of `model`."""
    data = request if isinstance(request, bytes) else request.SerializeToString()
    functions = {
        "Predict": inference.predict,
        "Classify": inference.classify,
        "Regress": inference.regress,
        "MultiInference": inference.multi_inference,
        "GetModelMetadata": inference.get_model_metadata,
    }
    response = functions[method](servable, data, model_name="model", version=7, options=Options(**options))
    names = {
        "Predict": "PredictResponse",
        "Classify": "ClassificationResponse",
        "Regress": "RegressionResponse",
        "MultiInference": "MultiInferenceResponse",
        "GetModelMetadata": "GetModelMetadataResponse",
    }
    parsed: Any = message_class(f"tensorflow.serving.{names[method]}").FromString(response)
    return parsed


def refused(method: str, servable: CallableServable, request: Any, **options: bool) -> tuple[str, str]:
    """Code and message with which the request is refused."""
    with pytest.raises(StatusError) as caught:
        answer(method, servable, request, **options)
    return caught.value.code.name, caught.value.message


def array(*values: float, dtype: str = "float32") -> np.ndarray:
    return np.array(values, dtype)


# Predict


@pytest.fixture
def adder() -> CallableServable:
    """A model with two inputs and two outputs."""
    return CallableServable(
        lambda a, b: {"sum": a + b, "difference": a - b},
        inputs={"a": FLOATS, "b": FLOATS},
        outputs={"sum": FLOATS, "difference": FLOATS},
    )


def predict_request(
    inputs: dict[str, np.ndarray], *, output_filter: tuple[str, ...] = (), signature: str = ""
) -> bytes:
    return encode_predict_request(
        inputs, model_spec=encode_model_spec("model", signature_name=signature), output_filter=output_filter
    )


A, B = array(1, 2), array(10, 20)


def test_predict_answers_with_typed_fields_and_the_resolved_spec(adder: CallableServable) -> None:
    """An answer has all outputs in typed fields, and the name, version and signature that were found."""
    response = answer("Predict", adder, predict_request({"a": A, "b": B}))
    assert {name: list(tensor.float_val) for name, tensor in response.outputs.items()} == {
        "sum": [11, 22],
        "difference": [-9, -18],
    }
    assert all(not tensor.tensor_content for tensor in response.outputs.values())
    assert response.model_spec.name == "model"
    assert response.model_spec.version.value == 7
    assert response.model_spec.signature_name == "serving_default"


def test_predict_answers_with_tensor_content_if_told(adder: CallableServable) -> None:
    """With the serialization flag, values are in tensor_content and not in typed fields."""
    request = predict_request({"a": A, "b": B})
    response = answer("Predict", adder, request, enable_serialization_as_tensor_content=True)
    assert response.outputs["sum"].tensor_content == array(11, 22).tobytes()
    assert not response.outputs["sum"].float_val


def test_an_output_filter_selects_outputs(adder: CallableServable) -> None:
    """A filtered answer has exactly the outputs asked for."""
    response = answer("Predict", adder, predict_request({"a": A, "b": B}, output_filter=("difference",)))
    assert set(response.outputs) == {"difference"}


@pytest.mark.parametrize(
    ("inputs", "output_filter", "message"),
    [
        (
            {"a": A},
            (),
            "input size does not match signature: 1!=2 len({a}) != len({a,b}). Sent extra: {}. "
            "Missing but required: {b}.",
        ),
        (
            {"a": A, "b": B, "c": A},
            (),
            "input size does not match signature: 3!=2 len({a,b,c}) != len({a,b}). Sent extra: {c}. "
            "Missing but required: {}.",
        ),
        (
            {"z": A, "y": B},
            (),
            "Signature input alias: b(feed name: serving_default_b:0) not found in request and no default "
            "value provided. Inputs expected to be in the request {y,z}, or default input alias set: ",
        ),
        (
            {"a": A, "b": B},
            ("sum", "total"),
            "output tensor alias not found in signature: total Outputs expected to be in the set "
            "{difference,sum}.",
        ),
        ({"a": A, "b": B}, ("sum", "sum"), "duplicate output tensor alias: sum"),
        (
            {"a": A, "b": B.astype("f8")},
            (),
            "Expects arg[1] to be float but double is provided",
        ),
        # Of several mistakes, the one that is checked first.
        (
            {"a": A.astype("f8")},
            ("total",),
            "input size does not match signature: 1!=2 len({a}) != len({a,b}). Sent extra: {}. "
            "Missing but required: {b}.",
        ),
        (
            {"a": A, "b": B.astype("f8")},
            ("total",),
            "output tensor alias not found in signature: total Outputs expected to be in the set "
            "{difference,sum}.",
        ),
    ],
)
def test_predict_refuses_inputs_and_filters(
    adder: CallableServable, inputs: dict[str, np.ndarray], output_filter: tuple[str, ...], message: str
) -> None:
    """What does not fit the signature is INVALID_ARGUMENT, in the real server's words and order."""
    request = predict_request(inputs, output_filter=output_filter)
    assert refused("Predict", adder, request) == ("INVALID_ARGUMENT", message)


def test_predict_refuses_an_unknown_signature(adder: CallableServable) -> None:
    """A signature that the model lacks is FAILED_PRECONDITION, before its inputs are looked at."""
    assert refused("Predict", adder, predict_request({}, signature="nope")) == (
        "FAILED_PRECONDITION",
        'Serving signature key "nope" not found.',
    )


@pytest.fixture
def scaler() -> CallableServable:
    """A model whose second input has a default."""
    return CallableServable(
        lambda x, k: x * k,
        inputs={"x": FLOATS, "k": TensorSpec("float32", (1,), default=[3.0])},
        outputs={"y": FLOATS},
    )


def test_a_default_stands_in_for_a_missing_input(scaler: CallableServable) -> None:
    """An input with a default may be left out, and may be given."""
    assert list(answer("Predict", scaler, predict_request({"x": A})).outputs["y"].float_val) == [3, 6]
    given = predict_request({"x": A, "k": array(2)})
    assert list(answer("Predict", scaler, given).outputs["y"].float_val) == [2, 4]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {},
            "Signature input alias: x(feed name: serving_default_x:0) not found in request and no default "
            "value provided. Inputs expected to be in the request {}, or default input alias set: k",
        ),
        (
            {"x": A, "z": A},
            "Inputs contains invalid name. Used request inputs: x, request input: x,z",
        ),
        (
            {"x": A, "k": A, "z": A},
            "input size does not match signature: 3!=2 len({k,x,z}) != len({k,x}). Sent extra: {z}. "
            "Missing but required: {}.",
        ),
    ],
)
def test_defaults_change_what_is_said_of_names(
    scaler: CallableServable, inputs: dict[str, np.ndarray], message: str
) -> None:
    """With defaults, fewer inputs are no mistake by themselves; the names are."""
    assert refused("Predict", scaler, predict_request(inputs)) == ("INVALID_ARGUMENT", message)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ({}, "tensor parsing error: x"),
        ({"dtype": 99, "float_val": [1]}, "tensor parsing error: x"),
        ({"dtype": 101, "float_val": [1]}, "tensor parsing error: x"),
        ({"dtype": 1, "tensor_content": b"\0\0\0"}, "tensor parsing error: x"),
        ({"dtype": 21}, "Expects arg[0] to be float but variant is provided"),
        ({"dtype": 20}, "Invalid resource type hash code: 0(name:  type: ). Perhaps a resource tensor"),
        ({"dtype": 11, "int_val": [1]}, "Expects arg[0] to be float but qint8 is provided"),
    ],
)
def test_predict_refuses_tensors(tensor: dict[str, Any], message: str) -> None:
    """A tensor that the runtime does not parse, or that holds nothing a graph takes, is refused as by it."""
    servable = CallableServable(lambda x: x, inputs={"x": FLOATS}, outputs={"y": FLOATS})
    request = serving("PredictRequest", model_spec=spec())
    request.inputs["x"].CopyFrom(message_class("tensorflow.TensorProto")(**tensor))
    code, text = refused("Predict", servable, request)
    assert code == "INVALID_ARGUMENT"
    assert text.startswith(message)


def test_a_type_that_needs_ml_dtypes_is_a_wrong_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ml_dtypes the server cannot decode bfloat16, and need not: no function here takes it."""
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    monkeypatch.delitem(dtypes._numpy_dtypes, DataType.DT_BFLOAT16, raising=False)
    servable = CallableServable(lambda x: x, inputs={"x": FLOATS}, outputs={"y": FLOATS})
    request = serving("PredictRequest", model_spec=spec())
    tensor = message_class("tensorflow.TensorProto")(dtype=int(DataType.DT_BFLOAT16), half_val=[0x3F80])
    request.inputs["x"].CopyFrom(tensor)
    assert refused("Predict", servable, request) == (
        "INVALID_ARGUMENT",
        "Expects arg[0] to be float but bfloat16 is provided",
    )


def test_a_quantized_tensor_keeps_its_type() -> None:
    """DT_QINT8 and DT_INT8 are different types to a signature, and an answer has the declared one."""
    servable = CallableServable(lambda x: x, inputs={"x": ("qint8", ())}, outputs={"y": ("qint8", ())})
    request = serving("PredictRequest", model_spec=spec())
    tensor = message_class("tensorflow.TensorProto")(dtype=int(DataType.DT_QINT8), int_val=[-5])
    request.inputs["x"].CopyFrom(tensor)
    output = answer("Predict", servable, request).outputs["y"]
    assert output.dtype == DataType.DT_QINT8
    assert list(output.int_val) == [-5]
    request.inputs["x"].dtype = DataType.DT_INT8
    assert refused("Predict", servable, request)[1] == "Expects arg[0] to be qint8 but int8 is provided"


def test_a_repeated_dtype_field_counts_last() -> None:
    """Merged tensors keep the last dtype, also for telling quantized integers from plain ones."""
    servable = CallableServable(lambda x: x, inputs={"x": ("qint8", ())}, outputs={"y": ("qint8", ())})
    body = bytes([0x08, 6, 0x08, 11, 0x12, 0, 0x3A, 1, 5])  # int8, no, qint8, a scalar, 5
    entry = b"\x0a\x01x\x12" + bytes([len(body)]) + body
    request = b"\x0a\x07\x0a\x05model\x12" + bytes([len(entry)]) + entry
    assert list(answer("Predict", servable, request).outputs["y"].int_val) == [5]


@pytest.mark.parametrize("method", ["Predict", "Classify", "Regress", "MultiInference", "GetModelMetadata"])
@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x7f", b"\x0a\x04\x0a\x02\xff\xfe"])
def test_bytes_that_are_no_request_are_internal(method: str, data: bytes) -> None:
    """What protobuf does not parse ends as in a C++ gRPC server: INTERNAL, without a text."""
    if method == "MultiInference" and data.startswith(b"\x0a\x04"):
        data = b"\x0a\x06" + data  # a task around the spec
    with pytest.raises(StatusError) as caught:
        inference.parse(method, data)
    assert (caught.value.code, caught.value.message) == (StatusCode.INTERNAL, "")


def test_a_tensor_that_is_no_message_makes_the_request_unparsable() -> None:
    """Protobuf parses a request as a whole; bytes that are no TensorProto are not a tensor error."""
    servable = CallableServable(lambda x: x, inputs={"x": FLOATS}, outputs={"y": FLOATS})
    request = b"\x0a\x07\x0a\x05model\x12\x07\x0a\x01x\x12\x02\x12\x7f"
    assert refused("Predict", servable, request) == ("INTERNAL", "")


def test_what_a_function_returns_wrongly_is_internal() -> None:
    """An output that no TensorProto can hold is the model's mistake, and named."""
    objects: np.ndarray = np.array([object()], object)
    servable = CallableServable(lambda: objects, inputs={}, outputs={"y": STRINGS})
    code, text = refused("Predict", servable, predict_request({}))
    assert code == "INTERNAL"
    assert "'y'" in text


@pytest.mark.parametrize(
    ("method_name", "accepted"), [(PREDICT, True), (CLASSIFY, True), ("mine", False), ("", False)]
)
def test_predict_looks_at_method_names_only_if_told(method_name: str, accepted: bool) -> None:
    """With the flag, only the three method names are served; without, any."""
    servable = CallableServable(lambda: array(1), inputs={}, outputs={"y": FLOATS}, method_name=method_name)
    answer("Predict", servable, predict_request({}))
    if accepted:
        answer("Predict", servable, predict_request({}), enable_signature_method_name_check=True)
        return
    assert refused("Predict", servable, predict_request({}), enable_signature_method_name_check=True) == (
        "INTERNAL",
        "Expected prediction signature method_name to be one of {tensorflow/serving/predict, "
        f"tensorflow/serving/classify, tensorflow/serving/regress}}. Was: {method_name}",
    )


def test_the_timeout_reaches_the_model() -> None:
    """The seconds that are left of a call's deadline are what the model may take."""
    seen: list[float | None] = []

    class Recorder(CallableServable):
        def run(self, feeds: Any, fetches: Any, timeout: float | None) -> Any:
            seen.append(timeout)
            return super().run(feeds, fetches, timeout)

    servable = Recorder(lambda: array(1), inputs={}, outputs={"y": FLOATS})
    for timeout in (None, 2.5):
        inference.predict(
            servable, predict_request({}), model_name="m", version=1, options=Options(), timeout=timeout
        )
    assert seen == [None, 2.5]


# The step before the model is known


def test_the_model_spec_comes_first() -> None:
    """Parsing yields the spec to look up, or None where the request has none."""
    assert inference.request_model_spec("Predict", predict_request({}, signature="s")).signature_name == "s"
    assert inference.request_model_spec("Predict", b"") is None
    assert inference.request_model_spec("Classify", b"") is None
    assert inference.request_model_spec("GetModelMetadata", b"") is None
    assert inference.request_model_spec("MultiInference", b"").name == ""
    tasks = [serving("InferenceTask", model_spec=spec(name=name)) for name in ("one", "two")]
    request = serving("MultiInferenceRequest", tasks=tasks).SerializeToString()
    assert inference.request_model_spec("MultiInference", request).name == "one"


def test_a_parsed_request_runs_like_its_bytes(adder: CallableServable) -> None:
    """The two steps, parse and run, give what one step gives."""
    request = predict_request({"a": A, "b": B})
    call = inference.parse("Predict", request)
    arguments: dict[str, Any] = {"model_name": "model", "version": 7, "options": Options(), "timeout": None}
    expected = inference.predict(adder, request, **arguments)
    assert call.run(adder, **arguments) == expected
    assert inference.predict(adder, call, **arguments) == expected
    assert "inputs=['a', 'b']" in repr(call)


def test_a_forgotten_model_is_let_go(adder: CallableServable) -> None:
    """What is remembered of a model's signatures does not keep the model in memory."""
    servable = CallableServable(lambda: array(1), inputs={}, outputs={"y": FLOATS})
    answer("Predict", servable, predict_request({}))
    reference = weakref.ref(servable)
    del servable
    gc.collect()
    assert reference() is None


# Classify and Regress


def example(**features: float) -> Any:
    made: Any = message_class("tensorflow.Example")()
    for name, value in features.items():
        made.features.feature[name].float_list.value.append(value)
    return made


def examples(*made: Any, context: Any = None) -> Any:
    if context is None:
        return serving("Input", example_list=serving("ExampleList", examples=made))
    both = serving("ExampleListWithContext", examples=made, context=context)
    return serving("Input", example_list_with_context=both)


def values_of(serialized: np.ndarray, name: str) -> list[float]:
    parse = message_class("tensorflow.Example").FromString
    parsed: list[Any] = [parse(item) for item in serialized.tolist()]
    return [item.features.feature[name].float_list.value[0] for item in parsed]


def labelled(classes: Any = None, scores: Any = None, **arguments: Any) -> CallableServable:
    """A classifier that returns the given outputs, of the given dtypes."""
    outputs = {name: value for name, value in (("classes", classes), ("scores", scores)) if value is not None}
    declared = {
        name: ("string" if value.dtype == object else value.dtype, None) for name, value in outputs.items()
    }
    return CallableServable(
        lambda inputs: outputs,
        inputs={"inputs": STRINGS},
        outputs=declared,
        method_name=CLASSIFY,
        **arguments,
    )


def table(*rows: tuple[bytes, ...]) -> np.ndarray:
    made: np.ndarray = np.empty((len(rows), len(rows[0])), object)
    made[:] = rows
    return made


def classification_request(*made: Any, signature: str = "", context: Any = None) -> Any:
    return serving(
        "ClassificationRequest", model_spec=spec(signature), input=examples(*made, context=context)
    )


TWO = (example(x=1.0), example(x=2.0))


def test_classify_pairs_labels_and_scores() -> None:
    """Each example gets its classes, with label and score; the spec is the resolved one."""
    servable = labelled(table((b"cat", b"dog"), (b"cow", b"")), np.array([[0.5, 0.25], [0.0, -0.0]], "f4"))
    response = answer("Classify", servable, classification_request(*TWO))
    rows = [[(c.label, c.score) for c in row.classes] for row in response.result.classifications]
    assert rows == [[("cat", 0.5), ("dog", 0.25)], [("cow", 0.0), ("", 0.0)]]
    assert math.copysign(1, rows[1][1][1]) == -1
    assert (response.model_spec.name, response.model_spec.version.value) == ("model", 7)
    assert response.model_spec.signature_name == "serving_default"


@pytest.mark.parametrize("missing", ["classes", "scores"])
def test_classify_does_with_one_output(missing: str) -> None:
    """Without classes, labels are empty; without scores, scores are zero."""
    outputs = {"classes": table((b"a",), (b"b",)), "scores": np.array([[1.0], [2.0]], "f4")}
    del outputs[missing]
    response = answer("Classify", labelled(**outputs), classification_request(*TWO))
    rows = [[(c.label, c.score) for c in row.classes] for row in response.result.classifications]
    assert rows == ([[("", 1.0)], [("", 2.0)]] if missing == "classes" else [[("a", 0.0)], [("b", 0.0)]])


def test_classify_writes_what_protobuf_writes() -> None:
    """The hand-written encoding of results is the one that protobuf has for the same message."""
    labels, scores = (
        table((b"cat", b""), (b"\xc3\xa9" * 100, b"b")),
        np.array([[0.0, 1.5], [np.inf, -0.0]], "f4"),
    )
    servable = labelled(labels, scores)
    data = inference.classify(
        servable,
        classification_request(*TWO).SerializeToString(),
        model_name="model",
        version=7,
        options=Options(),
    )
    parsed = serving("ClassificationResponse").FromString(data)
    assert parsed.SerializeToString() == data


def test_labels_need_not_be_text() -> None:
    """A model's labels are sent as they are, as the real server sends them."""
    data = inference.classify(
        labelled(table((b"\xff\xfe",))),
        classification_request(TWO[0]).SerializeToString(),
        model_name="model",
        version=7,
        options=Options(),
    )
    assert b"\x0a\x02\xff\xfe" in data


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (
            {"classes": table((b"a",), (b"b",))[:, 0]},
            "Expected Tensor shape: [batch_size num_classes] but got [2]",
        ),
        ({"classes": np.zeros((2, 1), "i8")}, "Expected classes Tensor of DT_STRING. Got: DT_INT64"),
        ({"classes": table((b"a",))}, "Expected classes output batch size of 2. Got: 1"),
        (
            {"scores": np.zeros((2, 1, 1), "f4")},
            "Expected Tensor shape: [batch_size num_classes] but got [2,1,1]",
        ),
        ({"scores": np.zeros((2, 1), "f8")}, "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE"),
        ({"scores": np.zeros((4, 1), "f4")}, "Expected scores output batch size of 2. Got: 4"),
        (
            {"classes": table((b"a", b"b"), (b"c", b"d")), "scores": np.zeros((2, 3), "f4")},
            "Tensors class and score should match in dim_size(1). Got 2 vs. 3",
        ),
    ],
)
def test_classify_refuses_outputs(outputs: dict[str, np.ndarray], message: str) -> None:
    """What a model returns is checked for rank, type, rows and columns, in this order."""
    assert refused("Classify", labelled(**outputs), classification_request(*TWO)) == (
        "INVALID_ARGUMENT",
        message,
    )


def signature(
    inputs: dict[str, Any], outputs: dict[str, Any], method_name: str = CLASSIFY
) -> CallableServable:
    return CallableServable(
        lambda **given: pytest.fail("must not be called"),
        inputs=inputs,
        outputs=outputs,
        method_name=method_name,
    )


@pytest.mark.parametrize(
    ("servable", "message"),
    [
        (signature({"inputs": STRINGS, "more": STRINGS}, {"scores": FLOATS}), "Expected one input Tensor."),
        (signature({}, {"scores": FLOATS}), "Expected one input Tensor."),
        (
            signature({"inputs": STRINGS}, {"a": FLOATS, "b": FLOATS, "c": FLOATS}),
            "Expected one or two output Tensors, found 3",
        ),
        (signature({"inputs": STRINGS}, {}), "Expected one or two output Tensors, found 0"),
        (
            signature({"examples": STRINGS}, {"scores": FLOATS}),
            "No classification inputs found in SignatureDef: ",
        ),
        (
            signature({"inputs": STRINGS}, {"foo": FLOATS}),
            'Expected classification signature outputs to contain at least one of "classes" or "scores". '
            "Signature was: ",
        ),
    ],
)
def test_classify_refuses_signatures(servable: CallableServable, message: str) -> None:
    """A signature that is no classifier is refused by its shape, with the SignatureDef in the text."""
    code, text = refused("Classify", servable, classification_request(*TWO))
    assert code == "INVALID_ARGUMENT"
    if message.endswith(": "):
        assert text.startswith(message)
        assert 'method_name: "tensorflow/serving/classify"' in text
    else:
        assert text == message


@pytest.mark.parametrize("method", ["Classify", "Regress"])
def test_an_unknown_signature_has_another_text_than_in_predict(method: str) -> None:
    """Classify and Regress call a missing signature INVALID_ARGUMENT."""
    name = "ClassificationRequest" if method == "Classify" else "RegressionRequest"
    request = serving(name, model_spec=spec("nope"), input=examples(*TWO))
    assert refused(method, labelled(scores=np.zeros((2, 1), "f4")), request) == (
        "INVALID_ARGUMENT",
        "No signature was found with the name: nope",
    )


@pytest.mark.parametrize(
    "source",
    [
        serving("Input"),
        examples(),
        serving("Input", example_list_with_context=serving("ExampleListWithContext", context=example(x=1.0))),
    ],
)
def test_no_examples_are_refused(source: Any) -> None:
    """No input, an empty list, and a context alone are all empty."""
    request = serving("ClassificationRequest", model_spec=spec(), input=source)
    servable = labelled(scores=np.zeros((0, 1), "f4"))
    assert refused("Classify", servable, request) == ("INVALID_ARGUMENT", "Input is empty.")


def test_an_empty_example_is_an_example() -> None:
    """An Example without features counts; what it lacks is for the model to say."""
    servable = labelled(scores=np.array([[3.0]], "f4"))
    response = answer("Classify", servable, classification_request(example()))
    assert len(response.result.classifications) == 1


@pytest.fixture
def halver() -> CallableServable:
    """A regression x / 2, of a feature of serialized examples."""
    return CallableServable(
        lambda inputs: np.array(values_of(inputs, "x"), "f4") / 2,
        inputs={"inputs": STRINGS},
        outputs={"outputs": FLOATS},
        method_name=REGRESS,
    )


def regression_request(*made: Any, context: Any = None) -> Any:
    return serving("RegressionRequest", model_spec=spec(), input=examples(*made, context=context))


def test_regress_answers_one_value_per_example(halver: CallableServable) -> None:
    """A regression has one float per example, in order."""
    response = answer("Regress", halver, regression_request(example(x=3.0), example(x=0.0)))
    assert [row.value for row in response.result.regressions] == [1.5, 0.0]
    assert response.model_spec.signature_name == "serving_default"


def test_a_context_is_merged_into_each_example(halver: CallableServable) -> None:
    """Features of the context are there for every example, which may have its own."""
    request = regression_request(example(), example(x=8.0), context=example(x=2.0))
    assert [row.value for row in answer("Regress", halver, request).result.regressions] == [1.0, 4.0]


def regression(output: np.ndarray) -> CallableServable:
    return CallableServable(
        lambda inputs: output,
        inputs={"inputs": STRINGS},
        outputs={"outputs": (output.dtype, None)},
        method_name=REGRESS,
    )


def test_regress_takes_a_column() -> None:
    """A regression may be [batch] or [batch, 1]."""
    response = answer("Regress", regression(np.array([[1.0], [2.0]], "f4")), regression_request(*TWO))
    assert [row.value for row in response.result.regressions] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            np.zeros((2, 2), "f4"),
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [2,2]",
        ),
        (
            np.zeros((), "f4"),
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got []",
        ),
        (np.zeros(4, "f4"), "Input batch size did not match output batch size: 2 vs. 4"),
        (np.zeros(2, "i8"), "Expected output Tensor of DT_FLOAT.  Got: DT_INT64"),
    ],
)
def test_regress_refuses_outputs(output: np.ndarray, message: str) -> None:
    """What a model returns is checked for shape, rows and type, in this order."""
    assert refused("Regress", regression(output), regression_request(*TWO)) == ("INVALID_ARGUMENT", message)


@pytest.mark.parametrize(
    ("servable", "message"),
    [
        (signature({}, {"outputs": FLOATS}), "Expected one input Tensor."),
        (signature({"inputs": STRINGS}, {"outputs": FLOATS, "b": FLOATS}), "Expected one output Tensor."),
        (signature({"x": STRINGS}, {"outputs": FLOATS}), "No regression inputs found in SignatureDef: "),
        (signature({"inputs": STRINGS}, {"y": FLOATS}), "No regression outputs found in SignatureDef: "),
    ],
)
def test_regress_refuses_signatures(servable: CallableServable, message: str) -> None:
    """A signature that is no regression is refused by its shape."""
    code, text = refused("Regress", servable, regression_request(*TWO))
    assert code == "INVALID_ARGUMENT"
    assert text.startswith(message)


@pytest.mark.parametrize(
    ("method", "request_name", "message"),
    [
        (
            "Classify",
            "ClassificationRequest",
            "Expected classification signature method_name to be tensorflow/serving/classify. Was: mine",
        ),
        (
            "Regress",
            "RegressionRequest",
            "Expected regression signature method_name to be tensorflow/serving/regress. Was: mine",
        ),
    ],
)
def test_method_names_are_checked_first_if_told(method: str, request_name: str, message: str) -> None:
    """With the flag, a wrong method name is the first complaint about a signature."""
    servable = signature({}, {}, method_name="mine")
    request = serving(request_name, model_spec=spec(), input=examples(*TWO))
    assert refused(method, servable, request, enable_signature_method_name_check=True)[1] == message
    assert refused(method, servable, request)[1] == "Expected one input Tensor."


# MultiInference


@pytest.fixture
def both() -> CallableServable:
    """A model with a regression and a classifier."""
    doubled = CallableSignature(
        function=lambda inputs: np.array(values_of(inputs, "x"), "f4") * 2,
        inputs={"inputs": STRINGS},
        outputs={"outputs": FLOATS},
        method_name=REGRESS,
    )
    scored = CallableSignature(
        function=lambda inputs: np.array(values_of(inputs, "x"), "f4")[:, None],
        inputs={"inputs": STRINGS},
        outputs={"scores": ("float32", (None, 1))},
        method_name=CLASSIFY,
    )
    return CallableServable({"regress": doubled, "serving_default": scored})


def task(signature: str, method_name: str, name: str = "model") -> Any:
    return serving("InferenceTask", model_spec=spec(signature, name), method_name=method_name)


def multi_request(*tasks: Any, source: Any = None) -> Any:
    return serving("MultiInferenceRequest", tasks=tasks, input=source or examples(*TWO))


def test_multi_inference_answers_in_the_order_of_its_tasks(both: CallableServable) -> None:
    """Each task has its result and its own resolved spec, in order."""
    response = answer("MultiInference", both, multi_request(task("regress", REGRESS), task("", CLASSIFY)))
    regressed, classified = response.results
    assert [row.value for row in regressed.regression_result.regressions] == [2.0, 4.0]
    rows = classified.classification_result.classifications
    assert [[c.score for c in row.classes] for row in rows] == [[1.0], [2.0]]
    assert [result.model_spec.signature_name for result in response.results] == ["regress", "serving_default"]
    assert {result.model_spec.version.value for result in response.results} == {7}


@pytest.mark.parametrize(
    ("tasks", "code", "message"),
    [
        ([task("", CLASSIFY, name="")], "INVALID_ARGUMENT", "Found ModelSpec with an empty model name."),
        (
            [task("", CLASSIFY), task("regress", REGRESS, name="other")],
            "INVALID_ARGUMENT",
            "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
        ),
        (
            [task("regress", REGRESS), task("regress", CLASSIFY)],
            "INVALID_ARGUMENT",
            "Duplicate evaluation of signature: regress",
        ),
        (
            [task("", CLASSIFY), task("serving_default", CLASSIFY)],
            "INVALID_ARGUMENT",
            "Duplicate evaluation of signature: serving_default",
        ),
        ([task("nope", CLASSIFY)], "INVALID_ARGUMENT", "Requested signature not found in model graph: nope"),
        ([task("", PREDICT)], "UNIMPLEMENTED", f"Unsupported signature method_name: {PREDICT}"),
        ([task("", "")], "UNIMPLEMENTED", "Unsupported signature method_name: "),
        (
            [task("serving_default", REGRESS)],
            "INVALID_ARGUMENT",
            "No regression outputs found in SignatureDef: ",
        ),
    ],
)
def test_multi_inference_refuses_tasks(
    both: CallableServable, tasks: list[Any], code: str, message: str
) -> None:
    """Tasks are checked one after the other, before the input is."""
    found, text = refused("MultiInference", both, multi_request(*tasks, source=serving("Input")))
    assert found == code
    assert text.startswith(message)


def test_multi_inference_refuses_an_empty_input(both: CallableServable) -> None:
    """Good tasks without examples are as empty as a Classify without."""
    request = multi_request(task("", CLASSIFY), source=examples())
    assert refused("MultiInference", both, request) == ("INVALID_ARGUMENT", "Input is empty.")


def test_one_bad_output_fails_all_tasks() -> None:
    """An error of one task is the answer to the whole request."""
    good = CallableSignature(
        function=lambda inputs: array(1, 2), inputs={"inputs": STRINGS}, outputs={"outputs": FLOATS}
    )
    bad = dataclasses.replace(good, function=lambda inputs: array(1))
    servable = CallableServable({"good": good, "bad": bad})
    request = multi_request(task("good", REGRESS), task("bad", REGRESS))
    assert refused("MultiInference", servable, request)[1] == (
        "Input batch size did not match output batch size: 2 vs. 1"
    )


# GetModelMetadata


def test_metadata_has_all_signatures(both: CallableServable) -> None:
    """The metadata is the map of SignatureDefs, with a spec that has no signature name."""
    request = serving("GetModelMetadataRequest", model_spec=spec("regress"), metadata_field=["signature_def"])
    response = answer("GetModelMetadata", both, request)
    assert (response.model_spec.name, response.model_spec.version.value) == ("model", 7)
    assert response.model_spec.signature_name == ""
    assert set(response.metadata) == {"signature_def"}
    packed = response.metadata["signature_def"]
    assert packed.type_url == "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    signatures = serving("SignatureDefMap")
    assert packed.Unpack(signatures)
    assert dict(signatures.signature_def) == dict(both.signatures)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            serving("GetModelMetadataRequest", model_spec=spec()),
            "GetModelMetadataRequest must specify at least one metadata_field",
        ),
        (
            serving("GetModelMetadataRequest", model_spec=spec(), metadata_field=["signature_def", "junk"]),
            "Metadata field junk is not supported",
        ),
        (
            serving("GetModelMetadataRequest", model_spec=spec(name=""), metadata_field=["junk"]),
            "Metadata field junk is not supported",
        ),
    ],
)
def test_metadata_fields_are_checked_before_the_model(request_: Any, message: str) -> None:
    """A request that asks for nothing, or for something unknown, is refused before any model is looked up."""
    with pytest.raises(StatusError) as caught:
        inference.parse("GetModelMetadata", request_.SerializeToString())
    assert (caught.value.code, caught.value.message) == (StatusCode.INVALID_ARGUMENT, message)


def test_scores_keep_their_bits() -> None:
    """NaN and infinities of a model reach the answer bit by bit."""
    scores = np.frombuffer(struct.pack("<3I", 0x7FC12345, 0x7F800000, 0x80000000), "f4").reshape(1, 3)
    response = answer("Classify", labelled(scores=scores), classification_request(TWO[0]))
    (row,) = response.result.classifications
    assert np.array([c.score for c in row.classes], "f4").tobytes() == scores.tobytes()
