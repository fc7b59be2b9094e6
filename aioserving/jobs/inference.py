"""Classify and Regress with answers in columns, as Predict has them, for what scores rows of tables.

    specs = output_specs("classify")                      # classes and scores: a list for each row
    result = await infer(model, "classify", examples)     # a PredictResult with these outputs

What the calls themselves do is `aioserving.inference`'s; how rows become tf.Examples that of
`aioserving.jobs.columns`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from aioserving._types import DEFAULT, Array, Metadata, Timeout
from aioserving.client import Model
from aioserving.dtypes import DataType
from aioserving.prediction import PredictResult
from aioserving.signature import TensorSpec

__all__ = ["infer", "output_specs"]


def output_specs(method: Literal["classify", "regress"]) -> list[TensorSpec]:
    """The outputs of `infer`, with a row for each example."""
    if method == "classify":
        return [
            TensorSpec("classes", DataType.DT_STRING, (-1, -1)),
            TensorSpec("scores", DataType.DT_FLOAT, (-1, -1)),
        ]
    return [TensorSpec("value", DataType.DT_FLOAT, (-1,))]


async def infer(
    model: Model,
    method: Literal["classify", "regress"],
    examples: Sequence[bytes],
    *,
    timeout: Timeout = DEFAULT,
    metadata: Metadata = (),
) -> PredictResult:
    """One call, with its answer in columns.

    Args:
        model: what is called.
        method: how.
        examples: serialized tf.Examples.
        timeout: see `Model.classify`.
        metadata: see there.

    Returns:
        ``classes`` (object, bytes) and ``scores`` (float32), both of shape (examples, classes); or ``value``
        (float32) of shape (examples,).

    Raises:
        RPCError: the call failed.
    """
    outputs: dict[str, Array]
    if method == "classify":
        answer = await model.classify(examples, timeout=timeout, metadata=metadata)
        labels = np.empty(answer.labels.shape, object)
        labels.ravel()[:] = [label.encode() for label in answer.labels.ravel().tolist()]
        outputs = {"classes": labels, "scores": answer.scores}
        return PredictResult(outputs, answer._model_spec, b"", answer.attempts)
    found = await model.regress(examples, timeout=timeout, metadata=metadata)
    return PredictResult({"value": found.values}, found._model_spec, b"", found.attempts)
