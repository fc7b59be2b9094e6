"""Classify and Regress with answers in columns, on a real server."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from aioserving import AsyncClient, InvalidArgumentError
from aioserving.jobs.inference import infer, output_specs
from aioserving.testing import ModelServer
from aioserving.tf_examples import serialize_examples

from ..models import graded


def test_answers_come_in_columns() -> None:
    """A row for each example, as declared; what the server refuses is raised as it is."""
    examples = serialize_examples({"x": [0.0, 0.25, 1.0]})

    async def story() -> None:
        async with ModelServer({"graded": graded()}) as server, AsyncClient(server.target) as client:
            classified = await infer(
                client.model("graded", signature_name="classify"), "classify", examples, timeout=10
            )
            assert list(classified) == [spec.name for spec in output_specs("classify")]
            assert classified["classes"].tolist() == [[b"low", b"high"]] * 3
            assert classified["scores"].tolist() == [[1.0, 0.0], [0.75, 0.25], [0.0, 1.0]]
            assert classified.model_spec.version == 1
            regress = client.model("graded", signature_name="regress")
            regressed = await infer(regress, "regress", examples)
            assert list(regressed) == [spec.name for spec in output_specs("regress")]
            assert regressed["value"].tolist() == [2.0, 2.125, 2.5]
            with pytest.raises(InvalidArgumentError):
                await infer(regress, "regress", serialize_examples([{"other": [1.0]}]))

    asyncio.run(story())


def test_outputs_are_declared_with_a_row_for_each_example() -> None:
    """Classes and their scores as many as the model has; one value for a regression."""
    classes, scores = output_specs("classify")
    assert (classes.dtype, classes.shape) == (np.dtype(object), (-1, -1))
    assert (scores.dtype, scores.shape) == (np.dtype(np.float32), (-1, -1))
    (value,) = output_specs("regress")
    assert (value.dtype, value.shape) == (np.dtype(np.float32), (-1,))
