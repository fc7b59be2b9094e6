"""Spark DataFrames are scored in executors' Python processes; a failed task's rows are there once."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs the extra `spark`")
pytest.importorskip("pyspark.sql", reason="needs the extra `spark`")
if not (shutil.which("java") or os.environ.get("JAVA_HOME")):
    pytest.skip("Spark needs Java, and there is none", allow_module_level=True)

from pyspark import SparkContext
from pyspark.sql import SparkSession

from aioserving.engines.model import pin
from aioserving.engines.spark import score_batches, score_frame
from aioserving.jobs.errors import ColumnError

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.filterwarnings("ignore")  # of Spark's own, which differ from release to release


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    """Spark on this machine, which runs a failed task a second time; its processes end with the module."""
    before = {name: os.environ.get(name) for name in ("PYSPARK_PYTHON", "PYTHONPATH", "SPARK_LOCAL_IP")}
    os.environ.update(
        PYSPARK_PYTHON=sys.executable,
        PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), before["PYTHONPATH"]])),
        SPARK_LOCAL_IP="127.0.0.1",
    )
    session = (
        SparkSession.builder.master("local[2,2]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.memory", "512m")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "100")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("OFF")
    gateway = session.sparkContext._gateway
    yield session
    with warnings.catch_warnings():
        # What is left of connections to Java is collected here, where nobody is told.
        warnings.simplefilter("ignore")
        session.stop()
        gateway.shutdown()
        if gateway.java_process is not None:
            gateway.java_process.stdin.close()  # at which it ends
            gateway.java_process.wait(20)
        SparkContext._gateway = SparkContext._jvm = None
        del session, gateway
        gc.collect()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def test_a_frame_is_scored_and_a_failed_task_again(fleet: Any, spark: Any, tmp_path: Path) -> None:
    """Rows are there once, by the version pinned, also where a task had failed after it had scored."""
    model = pin(fleet.targets, "rows", inputs={"x": ["a", "b"]}, batch_size=16, strings="utf8")
    frame = spark.range(600, numPartitions=3).selectExpr("id", "cast(id as double) as a", "1.0D as b")
    scored = score_frame(frame, model)
    assert scored.schema.simpleString() == (
        "struct<id:bigint,a:double,b:double,double:array<float>,sum:float,text:string,version:bigint>"
    )
    fleet.serve(1, 2)
    try:
        rows = sorted(scored.collect(), key=lambda row: row["id"])
    finally:
        fleet.serve(1)
    assert [row["id"] for row in rows] == list(range(600))
    assert [row["sum"] for row in rows] == [i + 1.0 for i in range(600)]
    assert [row["double"] for row in rows] == [[2.0 * i, 2.0] for i in range(600)]
    assert {row["version"] for row in rows} == {1}
    assert rows[7]["text"] == "8"

    marker, score = str(tmp_path / "failed"), score_batches(model)

    def fails_once(batches: Any) -> Any:
        for scored_batch in score(batches):
            yield scored_batch
            try:
                os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            raise RuntimeError("the task fails when it has scored some rows")

    again = frame.mapInArrow(fails_once, scored.schema).select("id", "sum").collect()
    assert Path(marker).exists()
    assert sorted(row["id"] for row in again) == list(range(600))


def test_columns_are_checked_on_the_driver(fleet: Any, spark: Any) -> None:
    """Columns that do not fit are refused before a task is started."""
    with pytest.raises(ColumnError, match="no column for input 'x'"):
        score_frame(spark.range(3).selectExpr("id", "id as other"), pin(fleet.targets, "rows"))
