"""Results of Classify, Regress and MultiInference, and what is refused about signatures and tasks."""

from __future__ import annotations

import numpy as np
import pytest

from aioserving import DecodeError, InvalidInputError, TensorSpec
from aioserving.dtypes import DataType
from aioserving.inference import (
    CLASSIFY,
    REGRESS,
    ClassifyResult,
    MultiInferenceResult,
    RegressResult,
    check_signature,
    read_tasks,
)
from aioserving.messages import (
    ClassificationResponse,
    InferenceTask,
    MultiInferenceResponse,
    RegressionResponse,
)
from aioserving.signature import Signature

SPEC = {"name": "m", "version": 3, "signature_name": "s"}
CLASSES = [
    [{"label": "a", "score": 0.25}, {"label": "b", "score": 0.5}, {"label": "c", "score": 0.5}],
    [{"label": "a", "score": 1.0}, {"label": "b", "score": 0.0}, {"label": "c", "score": float("nan")}],
]


def test_classify_result() -> None:
    """A sequence of examples, each a sequence of classes, and arrays over all of them."""
    data = ClassificationResponse(model_spec=SPEC, result=[{"classes": row} for row in CLASSES]).to_bytes()
    result = ClassifyResult.from_response(data)
    assert len(result) == 2
    assert result.scores.dtype == np.float32
    assert result.scores.shape == result.labels.shape == (2, 3)
    assert result.labels.tolist() == [["a", "b", "c"]] * 2
    assert [(item.label, item.score) for item in result] == [("b", 0.5), ("a", 1.0)]
    assert result[0].top(2) == [("b", 0.5, 1), ("c", 0.5, 2)]
    assert [item.label for item in result[1].top(9)] == ["a", "b", "c"]
    assert result[0][0] == ("a", 0.25, 0)
    assert [item.label for item in result[0][1:]] == ["b", "c"]
    assert [item.label for item in result[:1]] == ["b"]
    assert result[-1].label == "a"
    assert result[0].top(0) == []
    with pytest.raises(ValueError, match="at least 0"):
        result[0].top(-1)
    with pytest.raises(IndexError):
        result[2]
    assert result.serialized == data
    assert result.proto == ClassificationResponse.from_bytes(data).pb
    assert result.model_spec.version == 3
    assert repr(result) == "<ClassifyResult of m version 3: 2 examples, 3 classes>"
    assert repr(result[0]) == "<Classification b: 0.5, c: 0.5, a: 0.25>"


def test_an_example_without_classes() -> None:
    """A model may give none; there is no best one then."""
    data = ClassificationResponse(model_spec=SPEC, result=[{"classes": []}]).to_bytes()
    result = ClassifyResult.from_response(data)
    assert result.scores.shape == (1, 0)
    with pytest.raises(IndexError, match="no classes"):
        _ = result[0].label
    assert repr(result[0]) == "<Classification without classes>"


def test_regress_result() -> None:
    """A sequence of floats, and an array; zeros, which protobuf leaves out, are there."""
    values = [1.5, 0.0, -2.0, 4.0]
    data = RegressionResponse(model_spec=SPEC, result=[{"value": value} for value in values]).to_bytes()
    result = RegressResult.from_response(data)
    assert list(result) == values
    assert result.values.dtype == np.float32
    assert result.values.tolist() == values
    assert result[1:3] == [0.0, -2.0]
    assert result.proto == RegressionResponse.from_bytes(data).pb
    assert repr(result) == "<RegressResult of m version 3: 4 examples: 1.5, 0, -2, …>"


def test_multi_inference_result() -> None:
    """Typed results in the order of the tasks, each with its own message."""
    view = MultiInferenceResponse(
        results=[
            {"model_spec": SPEC, "regression_result": [{"value": 3.0}]},
            {"model_spec": SPEC, "classification_result": [{"classes": CLASSES[0]}]},
        ]
    )
    result = MultiInferenceResult.from_response(view.to_bytes())
    regress, classify = result
    assert isinstance(regress, RegressResult)
    assert isinstance(classify, ClassifyResult)
    assert classify[0].label == "b"
    assert regress.proto == view.pb.results[0]
    assert classify.proto == view.pb.results[1]
    assert result.proto == view.pb
    assert result.model_spec.name == "m"
    assert repr(result) == "<MultiInferenceResult of m version 3: regress s, classify s>"


def test_undecodable_answers() -> None:
    """Bytes that are no response, and responses that no server sends, are DecodeErrors."""
    for kind in (ClassifyResult, RegressResult, MultiInferenceResult):
        with pytest.raises(DecodeError):
            kind.from_response(b"\x0a\xff")
    ragged = ClassificationResponse(result=[{"classes": CLASSES[0]}, {"classes": []}]).to_bytes()
    with pytest.raises(DecodeError, match="different numbers"):
        ClassifyResult.from_response(ragged)
    with pytest.raises(DecodeError, match="no result"):
        MultiInferenceResult.from_response(MultiInferenceResponse(results=[{"model_spec": SPEC}]).to_bytes())


def signature(inputs: list[str], outputs: list[str]) -> Signature:
    def specs(names: list[str]) -> dict[str, TensorSpec]:
        # Declared dtypes can lie, so that none is looked at.
        return {name: TensorSpec(name, DataType.DT_FLOAT, None) for name in names}

    return Signature("s", specs(inputs), specs(outputs), "tensorflow/serving/predict", "m")


@pytest.mark.parametrize(
    ("kind", "inputs", "outputs", "told"),
    [
        (CLASSIFY, ["inputs"], ["classes"], None),
        (CLASSIFY, ["inputs"], ["scores", "other"], None),
        (REGRESS, ["inputs"], ["outputs"], None),
        (CLASSIFY, ["x"], ["scores"], "exactly one input"),
        (CLASSIFY, ["inputs", "x"], ["scores"], "exactly one input"),
        (CLASSIFY, [], ["scores"], "it has none"),
        (CLASSIFY, ["inputs"], ["a"], "'classes' or 'scores'"),
        (CLASSIFY, ["inputs"], ["a", "b", "scores"], "one or two outputs"),
        (REGRESS, ["inputs"], ["outputs", "b"], "exactly one output"),
        (REGRESS, ["inputs"], ["y"], "exactly one output"),
    ],
)
def test_signatures_are_checked_as_the_server_checks(
    kind: str, inputs: list[str], outputs: list[str], told: str | None
) -> None:
    """Numbers and names of tensors decide; method names and dtypes do not."""
    if told is None:
        check_signature(signature(inputs, outputs), kind, "Classify")
        return
    with pytest.raises(InvalidInputError, match=told):
        check_signature(signature(inputs, outputs), kind, "Classify")


def test_tasks() -> None:
    """Pairs and InferenceTasks, short and full method names; bad ones are told by their place."""
    view = InferenceTask(model_spec={"name": "m", "signature_name": "b"}, method_name=REGRESS)
    expected = [(CLASSIFY, None), (REGRESS, "b")]
    assert read_tasks("m", [("classify", None), view]) == expected
    assert read_tasks("m", ((CLASSIFY, None), view.pb)) == expected
    for tasks, told in (
        ("classify", "must be a list"),
        ([("classify",)], "task 0 must be"),
        ([("classify", None), ("regress", 3)], "task 1 must be"),
        ([("classify", None), ("regress", "serving_default")], "both use signature 'serving_default'"),
        ([("", None)], "method ''"),
        ([], "no tasks"),
    ):
        with pytest.raises(InvalidInputError, match=told):
            read_tasks("m", tasks)
    assert read_tasks("m", [], check=False) == []
    assert read_tasks("m", [("x", None)] * 2, check=False) == [("x", None)] * 2
