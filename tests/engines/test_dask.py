"""Dask DataFrames are scored by their partitions, in threads and in worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs the extra `dask`")
pytest.importorskip("dask.dataframe", reason="needs the extra `dask`")

import dask
import dask.dataframe
import numpy as np
import pandas as pd

from aioserving.engines.dask import score_frame
from aioserving.engines.model import close_clients, pin
from aioserving.jobs.errors import ColumnError
from aioserving.testing import ServerProcess
from aioserving.tf_examples import serialize_examples
from tests.engines.conftest import ROOT


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_clients()


def frame(rows: int, partitions: int) -> Any:
    found = pd.DataFrame(
        {"a": np.arange(rows, dtype=np.float64), "b": np.ones(rows), "name": [f"n{i}" for i in range(rows)]},
        index=np.arange(rows) * 10,
    )
    return dask.dataframe.from_pandas(found, npartitions=partitions)


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_partitions_are_scored(fleet: Any, scheduler: str) -> None:
    """Rows keep their columns, index and order, outputs have the dtypes that were announced."""
    model = pin(fleet.targets, "rows", inputs={"x": ["a", "b"]}, batch_size=16, strings="utf8")
    scored = score_frame(frame(200, 4), model)
    assert scored.known_divisions
    with dask.config.set(scheduler=scheduler, num_workers=2):
        found = scored.compute()
    assert found.index.tolist() == (np.arange(200) * 10).tolist()
    assert found["sum"].tolist() == (np.arange(200) + 1.0).tolist()
    assert found["sum"].dtype == scored["sum"].dtype == np.float32
    assert found["text"].tolist() == [str(i + 1) for i in range(200)]
    assert np.stack(found["double"]).tolist() == [[2.0 * i, 2.0] for i in range(200)]
    assert found["version"].tolist() == [1] * 200


def test_what_cannot_be_a_column(fleet: Any) -> None:
    """An output with the name of a column is refused when the graph is made; bad rows may have a column."""
    model = pin(fleet.targets, "rows", inputs={"x": ["a", "b"]}, outputs={"sum": "name"})
    with pytest.raises(ColumnError, match="there is a column 'name' already"):
        score_frame(frame(4, 1), model)
    told = pin(
        fleet.targets, "rows", inputs={"x": ["a", "b"]}, outputs=["sum", "version"], error_column="why"
    )
    rows = frame(6, 2)
    rows["a"] = rows["a"] - 1
    with dask.config.set(scheduler="synchronous"):
        found = score_frame(rows, told).compute()
    assert found["sum"].isna().tolist() == [True] + [False] * 5
    assert "below 0" in found["why"].iloc[0]
    assert found["why"].iloc[1:].isna().all()


def test_examples_are_classified() -> None:
    """Serialized Examples are a column of bytes; lists of classes and scores are arrays in each row."""
    examples = serialize_examples({"x": [0.0, 0.25, 0.5, 0.75]})
    with (
        ServerProcess(callables={"graded": "tests.models:graded"}, env={"PYTHONPATH": str(ROOT)}) as server,
        dask.config.set({"scheduler": "threads", "dataframe.convert-string": False}),
    ):
        rows = dask.dataframe.from_pandas(pd.DataFrame({"e": pd.Series(examples, dtype=object)}), 2)
        model = pin(server.target, "graded", signature_name="classify", method="classify", strings="utf8")
        found = score_frame(rows, model).compute()
        close_clients()
    assert np.stack(found["scores"]).tolist() == [[1.0, 0.0], [0.75, 0.25], [0.5, 0.5], [0.25, 0.75]]
    assert [list(one) for one in found["classes"]] == [["low", "high"]] * 4
