"""Scoring of Spark DataFrames: a model's outputs as further columns (extra ``spark``).

    model = pin("10.0.0.1:8500,10.0.0.2:8500", "digits")
    score_frame(spark.read.parquet("in/"), model).write.parquet("out/")

Rows go to the executors' Python processes as Arrow batches (``mapInArrow``). Each process opens one client
when it scores its first rows, and keeps it for all tasks that Spark gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from aioserving.engines.model import PinnedModel
from aioserving.jobs.readers.base import require_pyarrow

__all__ = ["score_batches", "score_frame"]


def score_frame(frame: Any, model: PinnedModel, *, barrier: bool = False) -> Any:
    """`frame` with the model's outputs as further columns; computed when Spark computes it.

    Spark runs a failed task again (``spark.task.maxFailures``), and speculative copies of slow ones; each
    scores its rows from the start, and Spark takes the rows of one of them. Types that Spark has not are made
    the next wider ones: unsigned integers signed ones, half floats floats.

    Args:
        frame: a `pyspark.sql.DataFrame`.
        model: from `aioserving.engines.model.pin`.
        barrier: whether all tasks have to run at the same time.

    Raises:
        ColumnError: the columns do not fit the model's inputs, or an output cannot be a column of Spark's.
        ImportError: Spark is not installed.
    """
    try:
        from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema
        from pyspark.sql.types import StructType
    except ImportError as error:
        raise ImportError("score_frame() needs Spark: pip install 'aioserving[spark]'") from error
    pyarrow = require_pyarrow()
    scored = model.output_schema(to_arrow_schema(frame.schema))
    own = len(frame.schema)
    added = [pyarrow.field(field.name, _spark_type(model, field)) for field in list(scored)[own:]]
    # A new one: `add` would change the frame's own.
    schema = StructType([*frame.schema.fields, *from_arrow_schema(pyarrow.schema(added)).fields])
    return frame.mapInArrow(score_batches(model), schema, barrier=barrier)


def score_batches(model: PinnedModel) -> Callable[[Iterator[Any]], Iterator[Any]]:
    """The function that `score_frame` gives to ``mapInArrow``: Arrow batches in, Arrow batches out."""

    def score(batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            if not batch.num_rows:
                continue
            table = model.score(batch)
            own = batch.num_columns
            for index in range(own, table.num_columns):
                field = table.schema.field(index)
                kind = _spark_type(model, field)
                if kind != field.type:
                    table = table.set_column(index, field.name, table.column(index).cast(kind))
            yield from table.combine_chunks().to_batches()
            del table  # a batch is not kept while the next one is awaited

    return score


def _spark_type(model: PinnedModel, field: Any) -> Any:
    """The Arrow type that Spark takes for a column."""
    pyarrow = require_pyarrow()
    wider = {
        pyarrow.uint8(): pyarrow.int16(),
        pyarrow.uint16(): pyarrow.int32(),
        pyarrow.uint32(): pyarrow.int64(),
        pyarrow.float16(): pyarrow.float32(),
    }

    def of(kind: Any) -> Any:
        if pyarrow.types.is_list(kind):
            return pyarrow.list_(of(kind.value_type))
        if pyarrow.types.is_uint64(kind):
            raise model._refusal(f"column {field.name!r} is uint64, which Spark has no type for")
        return wider.get(kind, kind)

    return of(field.type)
