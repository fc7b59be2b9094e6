"""PredictResult is a mapping of arrays that knows where it came from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from aioserving.codec import decode_predict_response, encode_model_spec, encode_predict_response
from aioserving.prediction import PredictResult


def result() -> PredictResult:
    spec = encode_model_spec("digits", version=7, signature_name="serving_default")
    data = encode_predict_response(
        {"scores": np.ones((2, 10), np.float32), "names": np.array([b"a", b"b"], object)}, model_spec=spec
    )
    return PredictResult(*decode_predict_response(data), data)


def test_it_is_a_mapping() -> None:
    """`dict(result)`, `in`, `len` and iteration work; a missing output names those that are there."""
    prediction = result()
    assert isinstance(prediction, Mapping)
    assert set(dict(prediction)) == {"scores", "names"}
    assert prediction["names"].tolist() == [b"a", b"b"]
    assert prediction.get("other") is None
    with pytest.raises(KeyError, match="no output 'other'; the outputs are"):
        prediction["other"]


def test_the_model_that_answered() -> None:
    """`model_spec` reads as plain values."""
    spec = result().model_spec
    assert (spec.name, spec.version, spec.signature_name) == ("digits", 7, "serving_default")


def test_the_raw_message_is_within_reach() -> None:
    """`proto` parses what `serialized` holds."""
    prediction = result()
    assert prediction.proto.outputs["scores"].tensor_shape.dim[1].size == 10
    assert prediction.proto == type(prediction.proto).FromString(prediction.serialized)


def test_repr_is_short() -> None:
    """Dtypes and shapes, never values."""
    assert repr(result()) == (
        "<PredictResult of digits version 7: scores: float32 (2, 10), names: object (2,)>"
    )
