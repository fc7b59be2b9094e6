"""Scoring of Ray Data datasets: a model's outputs as further columns (extra ``ray``).

    model = pin("10.0.0.1:8500,10.0.0.2:8500", "digits")
    score_dataset(ray.data.read_parquet("in/"), model, actors=4).write_parquet("out/")

Actors score, each with one client that it opens when it starts. Blocks go to them as Arrow tables.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aioserving.engines.model import PinnedModel
from aioserving.jobs.readers.base import require_pyarrow

__all__ = ["ScoreBlocks", "score_dataset"]


class ScoreBlocks:
    """The callable that Ray makes one of in each actor; for `ray.data.Dataset.map_batches`.

    Args:
        model: from `aioserving.engines.model.pin`.
    """

    def __init__(self, model: PinnedModel) -> None:
        self._model = model
        model.client()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with {self._model!r}>"

    def __call__(self, block: Any) -> Any:
        """A `pyarrow.Table` with the model's outputs as further columns."""
        return self._model.score(_plain(block))


def score_dataset(
    dataset: Any,
    model: PinnedModel,
    *,
    actors: int | tuple[int, int] = 1,
    block_rows: int | None = None,
    **options: Any,
) -> Any:
    """`dataset` with the model's outputs as further columns; computed when Ray computes it.

    Ray runs a block again when its actor or node dies, and it is scored again, to the same rows. An error of
    scoring (a row that cannot be, servers that do not answer for longer than `pin`'s `outage`) ends the run,
    unless Ray is told to go on (``DataContext.max_errored_blocks``).

    Args:
        dataset: a `ray.data.Dataset`.
        model: from `aioserving.engines.model.pin`.
        actors: number of actors, or the fewest and the most of them.
        block_rows: rows of a block; by default those of 16 calls, so that several are always under way.
        **options: of `Dataset.map_batches`, such as ``num_cpus`` (each actor's share; little is needed, the
            work is done by the servers) and ``max_restarts``.

    Raises:
        ColumnError: the columns do not fit the model's inputs, where the dataset knows them already.
        ImportError: Ray is not installed.
    """
    try:
        import ray.data
    except ImportError as error:
        raise ImportError("score_dataset() needs Ray Data: pip install 'aioserving[ray]'") from error
    schema = dataset.schema(fetch_if_missing=False)
    known = getattr(schema, "base_schema", None)
    if (
        known is not None
        and hasattr(known, "field")
        and not any(_is_ray_tensor(kind) for kind in known.types)
    ):
        model.output_schema(known)
    fewest, most = (actors, actors) if isinstance(actors, int) else actors
    return dataset.map_batches(
        ScoreBlocks,
        fn_constructor_args=(model,),
        batch_format="pyarrow",
        batch_size=block_rows or 16 * model._settings["batch_size"],
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(min_size=fewest, max_size=most),
        **options,
    )


def _is_ray_tensor(kind: Any) -> bool:
    return str(getattr(kind, "extension_name", "")).startswith("ray.data.")


def _plain(block: Any) -> Any:
    """`block` with Ray's own tensor columns as Arrow's, where all rows have one shape."""
    pyarrow = require_pyarrow()
    for index, kind in enumerate(block.schema.types):
        if not _is_ray_tensor(kind):
            continue
        column = block.column(index).combine_chunks()
        chunks = column.chunks if hasattr(column, "chunks") else [column]
        values = np.concatenate([np.asarray(chunk.to_numpy(zero_copy_only=False)) for chunk in chunks])
        if values.dtype.kind == "O":
            continue  # of several shapes: refused by its type, with its name
        tensors = pyarrow.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))
        block = block.set_column(index, block.schema.names[index], tensors)
    return block
