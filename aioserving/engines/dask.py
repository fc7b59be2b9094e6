"""Scoring of Dask DataFrames: a model's outputs as further columns (extra ``dask``).

    scored = score_frame(frame, pin("127.0.0.1:8500", "digits"))
    scored.to_parquet("out/")

Partitions are scored where Dask runs them: threads of one process share one client, each worker process opens
its own. Columns cross to Arrow and back; an output with inner dimensions is a column of numpy arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aioserving.engines.model import PinnedModel
from aioserving.jobs.readers.base import require_pyarrow

__all__ = ["score_frame", "score_partition"]


def score_frame(frame: Any, model: PinnedModel) -> Any:
    """`frame` with the model's outputs as further columns; computed when Dask computes it.

    A partition that Dask runs again is scored again, to the same rows.

    Args:
        frame: a `dask.dataframe.DataFrame`.
        model: from `aioserving.engines.model.pin`.

    Returns:
        A `dask.dataframe.DataFrame` with the same partitions, index and divisions.

    Raises:
        ColumnError: an output has the name of a column of `frame`, or cannot be a column. Whether columns fit
            the inputs shows when they are computed: a DataFrame does not say what its objects are.
        ImportError: Dask is not installed.
    """
    try:
        import dask.dataframe  # noqa: F401 - to tell what is missing
    except ImportError as error:
        raise ImportError("score_frame() needs Dask: pip install 'aioserving[dask]'") from error
    return frame.map_partitions(score_partition, model, meta=_meta(frame._meta, model))


def _meta(empty: Any, model: PinnedModel) -> Any:
    """A pandas DataFrame without rows, of the columns and dtypes of the result."""
    import pandas

    found = empty.copy()
    for field in model.output_fields():
        if field.name in found.columns:
            raise model._refusal(
                f"there is a column {field.name!r} already: name the output's with outputs={{...: 'another'}}"
            )
        found[field.name] = pandas.Series([], dtype=_dtype(model, field), index=found.index)
    return found


def _dtype(model: PinnedModel, field: Any) -> Any:
    pyarrow = require_pyarrow()
    kind = field.type
    # A column that may hold nulls is of floats or objects, whether it happens to or not.
    nulls = model._settings["error_column"] is not None
    if pyarrow.types.is_floating(kind):
        return np.dtype(kind.to_pandas_dtype())
    if pyarrow.types.is_integer(kind):
        return np.dtype(np.float64) if nulls else np.dtype(kind.to_pandas_dtype())
    if pyarrow.types.is_boolean(kind) and not nulls:
        return np.dtype(bool)
    return np.dtype(object)


def score_partition(frame: Any, model: PinnedModel) -> Any:
    """A pandas DataFrame with the model's outputs as further columns; what `score_frame` runs in workers.

    Raises:
        ColumnError: the columns do not fit the model's inputs.
        BadRows, RPCError: as `PinnedModel.score`.
    """
    import pandas

    pyarrow = require_pyarrow()
    fields = model.output_fields()
    found = frame.copy(deep=False)
    scored = None
    if len(frame):
        needed = frame.reset_index(drop=True)
        rows = pyarrow.Table.from_pandas(needed, preserve_index=False)
        scored = model.score(rows.replace_schema_metadata(None))
    for field in fields:
        dtype = _dtype(model, field)
        if scored is None:
            found[field.name] = pandas.Series([], dtype=dtype, index=frame.index)
            continue
        values = scored.column(field.name)
        if dtype.kind == "O":
            column = np.empty(len(frame), object)
            column[:] = _objects(values)
        else:
            column = values.to_numpy().astype(dtype, copy=False)
        found[field.name] = pandas.Series(column, index=frame.index, dtype=dtype)
    return found


def _objects(values: Any) -> list[Any]:
    pyarrow = require_pyarrow()
    if not pyarrow.types.is_list(values.type):
        found: list[Any] = values.to_pylist()
        return found
    return [None if value is None else np.array(value) for value in values.to_pylist()]
