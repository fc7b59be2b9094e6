"""Ray datasets are scored by actors with a client each; a dead actor's block is scored again, once."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs the extra `ray`")
pytest.importorskip("ray.data", reason="needs the extra `ray`")

import numpy as np
import pyarrow as pa
import ray
import ray.data

from aioserving.engines.model import pin
from aioserving.engines.ray import ScoreBlocks, score_dataset
from aioserving.jobs.errors import ColumnError

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own, which differ from release to release


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    """Ray on this machine, for this module; it ends with it."""
    os.environ.update(RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0", RAY_USAGE_STATS_ENABLED="0")
    for attempt in range(2):
        try:
            ray.init(
                num_cpus=2,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
                object_store_memory=100 << 20,
                runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
            )
            break
        except RuntimeError as error:  # Ray gives its own processes 30 s to begin
            ray.shutdown()
            if "Timed out" not in str(error) or attempt:
                raise
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    with warnings.catch_warnings():
        # Ray ends its processes and lets go of them without waiting, which Python warns of when it finds out.
        warnings.simplefilter("ignore")
        ray.shutdown()
        gc.collect()


def test_a_dataset_is_scored(fleet: Any) -> None:
    """Every row is there once, with its outputs, of the version pinned, though another is rolled out."""
    model = pin(fleet.targets, "rows", batch_size=16)
    values = np.random.default_rng(1).random((500, 2))
    rows = pa.table({"id": np.arange(500), "x": pa.array(values.tolist(), pa.list_(pa.float64()))})
    scored = score_dataset(ray.data.from_arrow(rows), model, actors=2, block_rows=64, num_cpus=0.5)
    fleet.serve(1, 2)
    try:
        found = pa.concat_tables(ray.get(scored.to_arrow_refs())).sort_by("id")
    finally:
        fleet.serve(1)
    assert found.column("id").to_pylist() == list(range(500))
    assert set(found.column("version").to_pylist()) == {1}
    np.testing.assert_allclose(
        found.column("sum").to_numpy(), values.astype(np.float32).sum(axis=1), rtol=1e-6
    )


class _Dies(ScoreBlocks):
    """Dies with its process at the first block that no other of it has died at."""

    def __init__(self, model: Any, marker: str) -> None:
        super().__init__(model)
        self._marker = marker

    def __call__(self, block: Any) -> Any:
        found = super().__call__(block)
        try:
            os.close(os.open(self._marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return found
        os._exit(1)


def test_a_block_of_a_dead_actor_is_there_once(fleet: Any, tmp_path: Path) -> None:
    """Ray runs the block of an actor that died again; its rows are in the result once."""
    model = pin(fleet.targets, "rows", outputs=["sum"])
    rows = ray.data.from_numpy(np.arange(400, dtype=np.float32).reshape(200, 2))
    scored = rows.rename_columns({"data": "x"}).map_batches(
        _Dies,
        fn_constructor_args=(model, str(tmp_path / "died")),
        batch_format="pyarrow",
        batch_size=50,
        num_cpus=0.5,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=1),
    )
    found = sorted(row["sum"] for row in scored.take_all())
    assert found == [4.0 * i + 1 for i in range(200)]
    assert (tmp_path / "died").exists()


def test_columns_are_checked_on_the_driver(fleet: Any) -> None:
    """Columns that do not fit are refused before an actor is started."""
    rows = ray.data.from_arrow(pa.table({"a": [1], "b": [2]}))
    with pytest.raises(ColumnError, match="no column for input 'x'"):
        score_dataset(rows, pin(fleet.targets, "rows"))
